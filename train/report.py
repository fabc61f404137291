"""Makes the table and the figures of sweeps, or of any finished runs.

python -m train.report workdirs/mlp7_schemes-cpu

Each directory gets `table.md`, `table.csv`, `figure.png` and `curves-COLUMN.png`, or
`curves.png` where there is one column, with a PDF beside each figure. A cell counts as
soon as it is finished.
"""

from pathlib import Path

from absl import app

from train.core.console import UserError, program, warnings_only
from train.sweeps.report import write_report


@program
def main(argv: list[str]) -> None:
  """Makes the tables of the directories that the command line names."""
  warnings_only()
  if len(argv) < 2:
    raise UserError("name a directory of runs, such as workdirs/mlp7_schemes-cpu.")
  for directory in argv[1:]:
    print(write_report(Path(directory)))


if __name__ == "__main__":
  app.run(main)
