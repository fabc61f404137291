"""Writes what a run has learned into one file, and reads it back.

python -m train.export workdirs/quickstart/eoi --checkpoint=best --format=safetensors

Leaves `export/model.msgpack` or `.safetensors` in the workdir, of several seeds one for
each: trees by the names that they have in the network and, in JSON, `metadata`; see
`Exported`. In a script of your own:

  from train import export

  exported = export.load("model.safetensors")
  logits = exported.logits(images)  # uint8, as in the data set

A file needs no trainer, either: `flax.serialization.msgpack_restore` gives a dictionary
of trees, `safetensors.numpy.load_file` arrays by names such as
`params/hidden/dense/kernel`.
"""

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import app, flags
from flax import serialization, traverse_util

from eoi_jax.layouts import fill_tree, named_leaves
from train.core import config as config_lib
from train.core.console import UserError, program, warnings_only
from train.core.plan import Plan, plan_start, seeds_of
from train.core.saved import restore_saved, saved_config
from train.core.state import TrainState, take_seed
from train.data.datasets import DatasetSpec
from train.data.images import normalize
from train.models import create_model
from train.models.blocks import dense_view

FORMATS: tuple[str, ...] = ("msgpack", "safetensors")


class Exported(NamedTuple):
  """A trained network."""

  model: Any  # the Linen module
  params: Any  # its parameters; dead weights are exactly zero
  batch_stats: Any  # running statistics of normalization layers, {} without any
  masks: Any  # tree like `params`: bool leaves, True = trained, or None = dense leaf
  # config, layouts (by name of a leaf: its fields), step, seed and spec, the constants
  # of the data set
  metadata: dict[str, Any]

  def logits(self, images: jax.Array) -> jax.Array:
    """Maps images as they are in the data set, `[n, ...]`, to logits `[n, classes]`."""
    variables = {"params": self.params, "batch_stats": self.batch_stats}
    inputs = normalize(images, _spec(self.metadata))
    return self.model.apply(variables, inputs, train=False)


def export(
  workdir: Path, checkpoint: str | None = None, formats: tuple[str, ...] = ("msgpack",)
) -> list[Path]:
  """Writes a checkpoint of a run, one file for each seed and format.

  Args:
    workdir: the directory of one run, finished or not.
    checkpoint: "best", by held-out accuracy, "last" or a step; None: the best, or the
      last if nothing was held out.
    formats: of `FORMATS`.

  Returns:
    The files, in `export/` of `workdir`.

  Raises:
    UserError: if there is no such checkpoint, or a package or the data set is missing.
  """
  config = saved_config(workdir)
  plan = plan_start(config)
  state = restore_saved(plan, workdir, checkpoint)
  folder, files = workdir / "export", []
  folder.mkdir(exist_ok=True)
  for index, seed in enumerate(seeds_of(config)):
    trees, metadata = _content(plan, jax.device_get(take_seed(state, index)), seed)
    name = f"model-seed{seed}" if config.seeds else "model"
    for form in formats:
      files.append(folder / f"{name}.{form}")
      _write(files[-1], trees, json.dumps(metadata))
  return files


def _content(plan: Plan, state: TrainState, seed: int) -> tuple[dict, dict]:
  """Returns trees of arrays, and what is to be known of them."""
  model, shown = plan.recipe.model.without_blocks, state.evaluated
  layouts = {n: x for n, x in model.layouts.items() if x is not None}
  params, flags = dense_view(shown.params, state.masks, state.layouts)
  masks = {n: x for n, x in named_leaves(flags).items() if x is not None}
  masks = traverse_util.unflatten_dict(masks, sep="/")
  trees = {"params": params, "batch_stats": shown.batch_stats, "masks": masks}
  metadata = {
    "step": int(state.step),
    "seed": seed,
    "config": json.loads(config_lib.to_json(plan.config)),
    "layouts": {name: dataclasses.asdict(x) for name, x in layouts.items()},
    "spec": plan.recipe.spec._asdict(),
  }
  return jax.tree.map(np.asarray, trees), metadata


def load(path: str | Path) -> Exported:
  """Reads what `python -m train.export` has written.

  Args:
    path: a file that ends with .msgpack or .safetensors. The module of a network of
      your own must be importable.

  Raises:
    UserError: if the file is missing or of another kind.
  """
  path = Path(path)
  if path.suffix.removeprefix(".") not in FORMATS:
    raise UserError(f"{path} must end with one of {', '.join(FORMATS)}.")
  try:
    trees, text = _read(path)
    metadata = json.loads(text)
    config, params = config_lib.from_saved(metadata["config"]), trees["params"]
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise UserError(f"{path} cannot be read: {error}.") from error
  masks, stats = (trees.get(n, {}) for n in ("masks", "batch_stats"))  # may be empty
  model = create_model(config, _spec(metadata), bias_std=0.0)
  return Exported(
    model, params, stats, fill_tree(params, named_leaves(masks)), metadata
  )


def _spec(metadata: dict[str, Any]) -> DatasetSpec:
  spec = metadata["spec"]
  tuples = {name: tuple(spec[name]) for name in ("shape", "mean", "std")}
  return DatasetSpec(**(spec | tuples))


def _safetensors() -> Any:
  try:
    import safetensors.numpy  # pyright: ignore[reportMissingImports]
  except ImportError as error:
    raise UserError(
      "files of safetensors need that package: run `pip install safetensors`."
    ) from error
  return safetensors


def _write(path: Path, trees: dict, metadata: str) -> None:
  if path.suffix == ".msgpack":
    content = trees | {"metadata": metadata}
    path.write_bytes(serialization.msgpack_serialize(content))
  else:
    flat = traverse_util.flatten_dict(trees, sep="/")
    flat = {name: np.ascontiguousarray(array) for name, array in flat.items()}
    _safetensors().numpy.save_file(flat, path, metadata={"metadata": metadata})


def _read(path: Path) -> tuple[dict, str]:
  if path.suffix == ".msgpack":
    trees: Any = serialization.msgpack_restore(path.read_bytes())
    return trees, trees.pop("metadata")
  with _safetensors().safe_open(path, "numpy") as file:
    flat = {name: file.get_tensor(name) for name in sorted(file.keys())}
    return traverse_util.unflatten_dict(flat, sep="/"), file.metadata()["metadata"]


def parse(argv: list[str]) -> argparse.Namespace:
  """Reads the command line."""
  flags.FLAGS(argv[:1])  # there are none, but absl asks for it
  parser = argparse.ArgumentParser("train.export")
  parser.add_argument("workdir", type=Path, help="directory of one run")
  text = "best, last or a step; best if there is one, else last"
  parser.add_argument("--checkpoint", help=text)
  text = f"{' or '.join(FORMATS)}, or both, with a comma"
  parser.add_argument("--format", default="msgpack", help=text)
  return parser.parse_args(argv[1:])


@program
def main(options: argparse.Namespace) -> None:
  """Writes what the command line asks for."""
  warnings_only()
  formats = tuple(options.format.split(","))
  if not set(formats) <= set(FORMATS):
    raise UserError(f"--format must be of {', '.join(FORMATS)}, got {options.format}.")
  for path in export(options.workdir, options.checkpoint, formats):
    print(path)


if __name__ == "__main__":
  app.run(main, flags_parser=parse)
