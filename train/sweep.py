"""Trains a grid of configs, one run after another, and makes their table.

python -m train.sweep --config=configs/sweeps/mlp7_schemes.py:cpu
python -m train.sweep --config=configs/sweeps/mlp7_schemes.py:cpu --status

Every cell of the grid is a run with its own directory in the workdir. The same command
continues after an interruption: finished cells are skipped, those that failed are too
unless --retry is given. Several processes share a sweep by --index and --count, as in a
Slurm array; a cell that another process trains is left to it. On a CPU, --workers=2
trains two cells side by side, each on its part of the cores.
`python -m train.report WORKDIR` makes the table again.
"""

import sys
from pathlib import Path

from absl import app, flags

from train.core.command import CONFIG, WORKDIR, parse, scan
from train.core.console import UserError, log_to_stderr, program
from train.core.unread import warn_of_unread
from train.sweeps import running
from train.sweeps.grid import forget_failure, load_sweep, read_status, status_table
from train.sweeps.report import write_report

_STATUS = flags.DEFINE_bool(
  "status", False, "Show how far the sweep is; train nothing."
)
_RETRY = flags.DEFINE_bool("retry", False, "Try cells that failed once more.")
_ONLY = flags.DEFINE_string(
  "only", "*", "Cells to train, such as '*/erk-eoi'; the table has all that are done."
)
_INDEX = flags.DEFINE_integer("index", 0, "Which share of the cells to train.")
_COUNT = flags.DEFINE_integer("count", 1, "Into how many shares to split the cells.")
_WORKERS = flags.DEFINE_integer(
  "workers", 1, "How many cells to train side by side, on a CPU with as many cores."
)
_WORKER = flags.DEFINE_integer("worker", None, "Which of the --workers this one is.")
_ONE_BY_ONE = flags.DEFINE_bool(
  "one_by_one", False, "A run for each seed, instead of all seeds in one program."
)


@program
def main(_: list[str]) -> None:
  """Trains, or shows, the sweep that the flags name; exits with 1 if a cell failed."""
  log_to_stderr()
  file, changes, _ = scan(sys.argv[1:])
  sweep = load_sweep(str(file), CONFIG.value, one_by_one=_ONE_BY_ONE.value)
  for field in sorted(sweep.fields & changes.keys()):
    raise UserError(f"`{field}` is an axis of the sweep; choose cells by --only.")
  workdir = Path(WORKDIR.value)
  chosen = running.share(sweep.cells, _INDEX.value, _COUNT.value, _ONLY.value)
  if _STATUS.value:
    named = [(cell.path, read_status(workdir / cell.path)) for cell in chosen]
    print(status_table(named))
    return
  if _WORKER.value is not None:
    running.check_backend(_WORKERS.value)
    turns = running.in_turn(chosen, _WORKER.value, _WORKERS.value)
    sys.exit(not running.run(turns, workdir))
  running.split_cores(_WORKERS.value)  # fail early
  running.check_data(chosen)
  running.prepare(sweep, workdir)
  if _RETRY.value:
    for cell in chosen:
      forget_failure(workdir / cell.path)
  warn_of_unread(cell.config for cell in sweep.cells)
  if _WORKERS.value == 1:
    whole = running.run(chosen, workdir)
  else:
    whole = running.run_side_by_side(_WORKERS.value)
  print(write_report(workdir))
  sys.exit(not whole)


if __name__ == "__main__":
  app.run(main, flags_parser=parse)
