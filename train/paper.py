"""Draws the figures of the paper, each from data that the same command computes.

python -m train.paper density        # expected and measured density over rotations
python -m train.paper spectrum       # singular values over density, by scheme
python -m train.paper time           # initialization time over size and density
python -m train.paper angles         # rotation angles: kernels, training curves
python -m train.paper delta          # a delta-orthogonal kernel and its mask
python -m train.paper curves DIR...  # training curves of finished runs
python -m train.paper accuracy DIR... # accuracy over density of finished runs

Each leaves NAME.png, NAME.pdf and NAME.json, the numbers, in `--out`.
"""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from absl import app, flags

from train.core import figures
from train.core.command import use_compilation_cache
from train.core.config import read_word
from train.core.console import UserError, program, warnings_only
from train.core.workdir import replace_text
from train.reproduce import draw, numbers
from train.sweeps import tables

_OUT = flags.DEFINE_string("out", "workdirs/figures", "directory of the figures")
_SEEDS = flags.DEFINE_integer("seeds", 3, "how many seeds", lower_bound=1)
_ACTIVATIONS = flags.DEFINE_list(
  "activations", ["linear", "tanh"], "spectrum: a row of panels each"
)
_DISTRIBUTIONS = flags.DEFINE_list(
  "distributions", ["uniform"], "spectrum: a column of panels each"
)
_STARTS = flags.DEFINE_list("starts", ["eoi", "ai", "base"], "spectrum: a curve each")
_DENSITIES = flags.DEFINE_list(
  "densities", ["0.03", "0.05", "0.1", "0.2", "0.4", "1"], "spectrum: where to measure"
)
_AI_METHOD = flags.DEFINE_string("ai_method", "sgd", "spectrum: sgd, adam")
_AI_STEPS = flags.DEFINE_integer(
  "ai_steps", 1000, "spectrum: published are 10000, to the same end", lower_bound=1
)


class Figure(NamedTuple):
  """How one figure is made."""

  # directories of runs to numbers that JSON can hold
  compute: Callable[[list[str]], dict[str, Any]]
  draw: Callable[[dict[str, Any]], Any]  # numbers to a matplotlib figure
  from_runs: bool = False  # whether it shows finished runs


def _spectrum(_: list[str]) -> dict[str, Any]:
  read = functools.partial(read_word, "sparsity.density", title="each of `densities`")
  return numbers.spectrum(
    activations=_ACTIVATIONS.value,
    distributions=_DISTRIBUTIONS.value,
    starts=_STARTS.value,
    densities=list(map(read, _DENSITIES.value)),
    num_seeds=_SEEDS.value,
    ai_method=_AI_METHOD.value,
    ai_steps=_AI_STEPS.value,
  )


FIGURES = {
  "density": Figure(
    lambda _: numbers.density(num_seeds=_SEEDS.value), draw.draw_density
  ),
  "spectrum": Figure(_spectrum, draw.draw_spectrum),
  "time": Figure(lambda _: numbers.init_time(), draw.draw_time),
  "angles": Figure(lambda _: numbers.angles(num_seeds=_SEEDS.value), draw.draw_angles),
  "delta": Figure(lambda _: numbers.delta_kernel(), draw.draw_delta),
  "curves": Figure(tables.curves, draw.draw_curves, from_runs=True),
  "accuracy": Figure(tables.accuracy_over_density, draw.draw_accuracy, True),
}


def make(name: str, out: Path, arguments: list[str]) -> Path:
  """Computes and draws one figure, a key of `FIGURES`; returns the path of the PNG.

  `arguments` are directories of finished runs, for figures of such.

  Raises:
    UserError: if there is no such figure or run.
  """
  if name not in FIGURES:
    raise UserError(f"the figure must be one of {', '.join(FIGURES)}, got {name!r}.")
  figure = FIGURES[name]
  if bool(arguments) != figure.from_runs:
    need = "needs directories of runs" if figure.from_runs else "takes no directories"
    raise UserError(f"figure {name!r} {need}.")
  out.mkdir(parents=True, exist_ok=True)  # before the work, which would be lost
  data = figure.compute(arguments)
  replace_text(out / f"{name}.json", json.dumps(data) + "\n")
  figures.save(figure.draw(data), out / name)
  return out / f"{name}.png"


@program
def main(argv: list[str]) -> None:
  """Makes the figure that the command line names."""
  warnings_only()
  if len(argv) < 2:
    raise UserError(f"name a figure: {', '.join(FIGURES)}.")
  use_compilation_cache()
  print(f"figure: {make(argv[1], Path(_OUT.value), argv[2:])}")


if __name__ == "__main__":
  app.run(main)
