"""Looks at a sparse network before it is trained.

python -m train.preflight --config=configs/quickstart.py

Prints a table of the kernels, totals, the Jacobian's singular values at the start and
what mean-field theory says of the gains. Leaves `preflight.json`, `preflight.png` and
`preflight.pdf` in the working directory. Flags are those of `train.run`.
"""

import json
import math
import sys
from pathlib import Path
from typing import Any

from absl import app, flags
from absl import logging as absl_logging

from train import command
from train import config as config_lib
from train.errors import UserError
from train.preflight_figure import plot_inspection
from train.preflight_measures import Inspection, Row, measure
from train.summaries import table, title
from train.workdir import replace_text

_SAMPLES = flags.DEFINE_integer(
  "samples", 16, "How many images the Jacobian and the gradients are of.", lower_bound=1
)


def as_text(inspection: Inspection) -> str:
  """Returns the report as text."""
  parts = [table([_HEADER, *map(_cells, inspection.rows)])]
  for heading, values in (
    ("totals", inspection.totals),
    ("singular values of the Jacobian", inspection.spectrum),
    ("mean-field theory", inspection.theory),
  ):
    if values:
      lines = [(name.replace("_", " "), _number(v)) for name, v in values.items()]
      parts.append(f"{heading}\n{table(lines)}")
  if not inspection.theory:
    parts.append("no mean-field theory: the network has shortcuts or normalization")
  low, high = inspection.slopes
  obstacles = [
    f"  {row.layer.name}: {'; '.join(row.obstacles)}"
    for row in inspection.rows
    if row.obstacles
  ]
  if high - low > 1e-3:
    obstacles.append(f"  activation: its slopes run from {low:.3g} to {high:.3g}")
  parts.append(
    "\n".join(["what is no isometry of every signal", *(obstacles or ["  none"])])
  )
  return "\n\n".join(parts)


_HEADER = (
  "kernel",
  "shape",
  "density",
  "floor",
  "live",
  "dead in",
  "dead out",
  "Gram error",
  "FLOPs",
  "gain",
  "gradient",
)


def _cells(row: Row) -> tuple[str, ...]:
  layer = row.layer
  shape = "x".join(map(str, layer.shape))
  return (
    layer.name,
    f"{layer.count} of {shape}" if layer.count > 1 else shape,
    f"{layer.density:.4f}",
    f"{row.floor:.4f}",
    f"{layer.live:,}",
    f"{row.dead_inputs:,}",
    f"{row.dead_outputs:,}",
    f"{layer.orthogonality_error:.1e}",
    _short(row.flops * layer.density),
    f"{_mean(row.gains):.2g}",
    f"{_mean(row.gradient_norms):.2g}",
  )


def _mean(values: list[float]) -> float:
  return math.fsum(values) / len(values)


def _short(count: float) -> str:
  for factor, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
    if count >= factor:
      return f"{count / factor:.3g}{suffix}"
  return f"{count:.0f}"


def _number(value: Any) -> str:
  if isinstance(value, int):
    return f"{value:,}"
  return f"{value:.4g}" if isinstance(value, float) else str(value)


def as_json(inspection: Inspection) -> str:
  """Returns the report as JSON; what is not finite is null."""
  rows = [row.layer._asdict() | row._asdict() for row in inspection.rows]
  content = {
    "layers": [{k: v for k, v in row.items() if k != "layer"} for row in rows],
    "totals": inspection.totals,
    "spectrum": inspection.spectrum,
    "theory": inspection.theory,
    "slopes": inspection.slopes,
  }
  return json.dumps(_finite(content), indent=2) + "\n"


def _finite(tree: Any) -> Any:
  if isinstance(tree, dict):
    return {name: _finite(value) for name, value in tree.items()}
  if isinstance(tree, list | tuple):
    return [_finite(value) for value in tree]
  return None if isinstance(tree, float) and not math.isfinite(tree) else tree


def preflight(config: Any, workdir: Path, *, num_samples: int = 16) -> Inspection:
  """Inspects one config and writes the report into `workdir`.

  Args:
    config: a config; it is checked here. Of one that compares, the fields as they are.
    workdir: the directory; it is made.
    num_samples: images for Jacobian and gradients.

  Raises:
    UserError: if a field is wrong or a kernel cannot have its density.
  """
  config_lib.validate(config)
  inspection = measure(config, num_samples=num_samples)
  workdir.mkdir(parents=True, exist_ok=True)
  replace_text(workdir / "preflight.json", as_json(inspection))
  plot_inspection(workdir / "preflight", inspection, title(config))
  return inspection


def main(argv: list[str]) -> None:
  """Inspects what the flags ask for."""
  del argv
  absl_logging.set_verbosity(absl_logging.WARNING)
  workdir = Path(flags.FLAGS["workdir"].value or command.default_workdir(sys.argv[1:]))
  try:
    inspection = preflight(
      flags.FLAGS["config"].value, workdir, num_samples=_SAMPLES.value
    )
  except UserError as error:
    command.exit_with(error)
  print(f"{as_text(inspection)}\n\n  figure: {workdir / 'preflight.png'}")


if __name__ == "__main__":
  app.run(main, flags_parser=command.parse)
