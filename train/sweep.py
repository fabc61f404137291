"""Trains a grid of configs, one run after another, and makes their table.

python -m train.sweep --config=configs/sweeps/mlp7_schemes.py:cpu
python -m train.sweep --config=configs/sweeps/mlp7_schemes.py:cpu --status

Every cell of the grid is a run with its own directory in the workdir. The same command
goes on after an interruption: finished cells are skipped, those that failed are too
unless --retry is given. Several processes share a sweep by --index and --count, as in a
Slurm array; a cell that another process trains is left to it. On a CPU, --workers=2
trains two cells side by side, each on its part of the cores.
`python -m train.report WORKDIR` makes the table again.
"""

import fnmatch
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import jax
from absl import app, flags

from train import cells as cells_lib
from train import grid, report, tables
from train.command import default_workdir, exit_with, log_to_stderr, parse, scan
from train.errors import UserError
from train.grid import Cell, Sweep
from train.loop import train_and_evaluate
from train.prepared import prepared
from train.progress import logger
from train.workdir import is_claimed, refuse_another_config, replace_text
from train.workers import run_workers, split_cores

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


def prepare(sweep: Sweep, workdir: Path) -> None:
  """Makes `workdir` the home of a sweep: what `train.report` needs is in it.

  Raises:
    UserError: if a cell's directory holds a run of another config, or the directory
      cannot be written.
  """
  for cell in sweep.cells:
    if (path := workdir / cell.path / "config.json").exists():
      refuse_another_config(path, cell.config)
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    replace_text(workdir / tables.SWEEP, grid.to_json(sweep))
  except OSError as error:
    raise UserError(f"cannot write to workdir {workdir}: {error.strerror}.") from error


def check_data(cells: Sequence[Cell]) -> None:
  """Raises a UserError, which says how to get it, if data of a sweep is missing."""
  for name in sorted({cell.config.data.name for cell in cells} - {"digits"}):
    with prepared(name):
      pass


def share(cells: Sequence[Cell], index: int, count: int, only: str = "*") -> list[Cell]:
  """Returns the cells that one of `count` processes trains, each directory once.

  Shares are runs of neighbours, which have compiled programs in common.

  Raises:
    UserError: if there is no such share, or no cell has a name like `only`.
  """
  if not 0 <= index < count:
    raise UserError(
      f"--index must be in [0, {count}) with --count={count}, got {index}."
    )
  unique = list({cell.path: cell for cell in cells}.values())
  chosen = [cell for cell in unique if fnmatch.fnmatchcase(cell.path, only)]
  if not chosen:
    raise UserError(f"no cell is like --only={only!r}; one is {unique[0].path!r}.")
  return chosen[index * len(chosen) // count : (index + 1) * len(chosen) // count]


def in_turn(cells: Sequence[Cell], worker: int, workers: int) -> list[Cell]:
  """Returns all cells, those first that are this worker's share."""
  begin = worker * len(cells) // workers
  return [*cells[begin:], *cells[:begin]]


def check_backend(workers: int) -> None:
  """Raises a UserError where several workers would share one accelerator."""
  if (backend := jax.default_backend()) != "cpu":
    raise UserError(
      f"--workers must be 1 where jax uses an accelerator ({backend}), got {workers}; "
      "JAX_PLATFORMS=cpu leaves it out."
    )


def run(cells: Sequence[Cell], workdir: Path, *, retry: bool = False) -> bool:
  """Trains all cells that are not finished; one that breaks does not stop the others.

  Args:
    cells: what to train, in this order.
    workdir: directory of the sweep.
    retry: whether to try those again that failed before.

  Returns:
    Whether none of them has failed.
  """
  whole = True
  for number, cell in enumerate(cells, 1):
    begin = time.monotonic()
    before = cells_lib.read_status(workdir / cell.path).word
    if before in ("todo", "stopped") or (before == "failed" and retry):
      _train(cell, workdir / cell.path)
    after = cells_lib.read_status(workdir / cell.path)
    whole &= after.word != "failed"
    if after.word != before or after.word == "failed":
      accuracy = "" if after.accuracy is None else f", accuracy {after.accuracy:.2%}"
      seconds = f", {time.monotonic() - begin:.0f} s"
      progress = f"[{number}/{len(cells)}] {cell.path}: {after.word}"
      logger.info("%s%s%s %s", progress, accuracy, seconds, after.note)
  return whole


def _train(cell: Cell, workdir: Path) -> None:
  """Trains one cell; what goes wrong in it is noted in its directory."""
  cells_lib.forget_failure(workdir)
  try:
    train_and_evaluate(cell.config, workdir, name=cell.path)
  except Exception as error:  # whatever it is: the other cells shall run
    if not is_claimed(workdir):
      cells_lib.write_failure(workdir, error)


def main(argv: list[str]) -> None:
  """Trains, or shows, the sweep that the flags name."""
  log_to_stderr()
  try:
    whole = _main(argv)
  except UserError as error:
    exit_with(error)
  except KeyboardInterrupt:
    print("\nstopped; the same command goes on from the last checkpoint.")
    sys.exit(130)
  sys.exit(0 if whole else 1)


def _main(argv: list[str]) -> bool:
  del argv
  file, overrides = scan(sys.argv[1:])
  base = flags.FLAGS["config"].value
  sweep = grid.load_sweep(str(file), base, one_by_one=_ONE_BY_ONE.value)
  for field in sorted(sweep.fields & overrides.keys()):
    raise UserError(f"`{field}` is an axis of the sweep; choose cells by --only.")
  workdir = Path(flags.FLAGS["workdir"].value or default_workdir(sys.argv[1:]))
  chosen = share(sweep.cells, _INDEX.value, _COUNT.value, _ONLY.value)
  if _STATUS.value:
    named = [(cell.path, cells_lib.read_status(workdir / cell.path)) for cell in chosen]
    print(cells_lib.status_table(named))
    return True
  if _WORKER.value is not None:
    check_backend(_WORKERS.value)
    turns = in_turn(chosen, _WORKER.value, _WORKERS.value)
    return run(turns, workdir, retry=_RETRY.value)
  split_cores(_WORKERS.value)  # fail early
  check_data(chosen)
  prepare(sweep, workdir)
  if _WORKERS.value == 1:
    whole = run(chosen, workdir, retry=_RETRY.value)
  else:
    whole = _run_side_by_side(_WORKERS.value)
  print(report.make(workdir))
  return whole


def _run_side_by_side(count: int) -> bool:
  """Trains all cells by `count` processes of this command line."""
  command = [sys.executable, "-m", "train.sweep", *sys.argv[1:]]
  statuses = run_workers([[*command, f"--worker={n}"] for n in range(count)])
  for number, status in enumerate(statuses):
    if status < 0:
      logger.warning("worker %d was ended by signal %d.", number, -status)
      sys.exit(128 - status)
    if status > 1:  # 1: a cell has failed, which is noted in its directory
      sys.exit(status)
  return not any(statuses)


if __name__ == "__main__":
  app.run(main, flags_parser=parse)
