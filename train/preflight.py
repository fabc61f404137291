"""Measures a sparse network before it is trained.

python -m train.preflight --config=configs/quickstart.py

Prints a table of the kernels, totals, the Jacobian's singular values at the start and
what mean-field theory says of the gains. Leaves `preflight.json`, `preflight.png` and
`preflight.pdf` in the working directory, and `batch.png`, training images as the
network will see them. Flags are those of `train.run`.
"""

from pathlib import Path
from typing import Any

from absl import app, flags

from train.analysis.figure import plot_batch, plot_inspection
from train.analysis.preflight import Inspection, as_json, as_text, measure
from train.core.command import CONFIG, WORKDIR, parse
from train.core.console import program, warnings_only
from train.core.plan import make_plan
from train.core.summaries import title
from train.core.workdir import replace_text

_SAMPLES = flags.DEFINE_integer(
  "samples", 16, "How many images the Jacobian and the gradients are of.", lower_bound=1
)


def preflight(config: Any, workdir: Path, *, num_samples: int = 16) -> Inspection:
  """Inspects one config and writes the report into `workdir`.

  Of a config that compares, the fields as they are.

  Raises:
    UserError: if a field is wrong or a kernel cannot have its density.
  """
  plan = make_plan(config)
  workdir.mkdir(parents=True, exist_ok=True)
  plot_batch(workdir / "batch.png", plan)
  inspection = measure(plan, num_samples=num_samples)
  replace_text(workdir / "preflight.json", as_json(inspection))
  plot_inspection(workdir / "preflight", inspection, title(config))
  return inspection


@program
def main(_: list[str]) -> None:
  """Inspects what the flags ask for."""
  warnings_only()
  workdir = Path(WORKDIR.value)
  inspection = preflight(CONFIG.value, workdir, num_samples=_SAMPLES.value)
  print(f"{as_text(inspection)}\n\n  figures: {workdir / 'preflight.png'}, batch.png")


if __name__ == "__main__":
  app.run(main, flags_parser=parse)
