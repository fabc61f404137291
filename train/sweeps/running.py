"""Trains the cells of a sweep, one after another or by several processes.

XLA spreads every step over all cores, which pays for large steps only: one of the
1000-layer MLP takes .21 s on one core of two, .24 s on both (batch 128, measured). So
each worker gets cores of its own.
"""

import fnmatch
import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax

from train.core.console import UserError, logger
from train.core.loop import train_and_evaluate
from train.core.own import find, is_own
from train.core.workdir import is_claimed, refuse_another_config, replace_text, writing
from train.data.datasets import TFDS, prepared
from train.sweeps.grid import SWEEP, Cell, Sweep, read_status, to_json, write_failure


def prepare(sweep: Sweep, workdir: Path) -> None:
  """Makes `workdir` the home of a sweep: what `train.report` needs is in it.

  Raises:
    UserError: if a cell's directory holds a run of another config, or the directory
      cannot be written.
  """
  for cell in sweep.cells:
    if (path := workdir / cell.path / "config.json").exists():
      refuse_another_config(path, cell.config)
  with writing(workdir):
    workdir.mkdir(parents=True, exist_ok=True)
    replace_text(workdir / SWEEP, to_json(sweep))


def check_data(cells: Sequence[Cell]) -> None:
  """Raises a UserError, which says how to get it, if data of a sweep is missing."""
  for name in sorted({cell.config.data.name for cell in cells} - {"digits"}):
    if is_own(name) and not name.startswith(TFDS):
      find("data.name", name)
      continue
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


def run(cells: Sequence[Cell], workdir: Path) -> bool:
  """Trains all cells that are to be; returns whether none of them has failed.

  What goes wrong in one is noted in its directory, and does not stop the others.
  """
  whole = True
  for number, cell in enumerate(cells, 1):
    begin = time.monotonic()
    before = read_status(workdir / cell.path).word
    if before in ("todo", "stopped"):
      try:
        train_and_evaluate(cell.config, workdir / cell.path, name=cell.path)
      except Exception as error:  # whatever it is: the other cells shall run
        if not is_claimed(workdir / cell.path):
          write_failure(workdir / cell.path, error)
    after = read_status(workdir / cell.path)
    whole &= after.word != "failed"
    if after.word != before or after.word == "failed":
      accuracy = "" if after.accuracy is None else f", accuracy {after.accuracy:.2%}"
      seconds = f", {time.monotonic() - begin:.0f} s"
      progress = f"[{number}/{len(cells)}] {cell.path}: {after.word}"
      logger.info("%s%s%s %s", progress, accuracy, seconds, after.note)
  return whole


def split_cores(count: int) -> list[set[int]]:
  """Splits the cores that this process may use into `count` even parts.

  Raises:
    UserError: if there are fewer cores, or none of them.
  """
  cores = sorted(_cores())
  if not 1 <= count <= len(cores):
    raise UserError(
      f"--workers must be from 1 to {len(cores)}, the number of cores, got {count}."
    )
  ends = [n * len(cores) // count for n in range(count + 1)]
  return [set(cores[a:b]) for a, b in itertools.pairwise(ends)]


def _cores() -> set[int]:
  if hasattr(os, "sched_getaffinity"):
    return os.sched_getaffinity(0)
  return set(range(os.cpu_count() or 1))


def _pin(cores: set[int]) -> None:
  """Keeps this thread on some cores, where the system can be told so."""
  if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, cores)


def run_side_by_side(count: int) -> bool:
  """Trains all cells by `count` processes; returns whether none of them has failed.

  Each has its part of the cores. Their output comes line by line on the standard error.
  SIGTERM is passed on to them; Ctrl-C reaches them by itself.
  """
  command = [sys.executable, "-m", "train.sweep", *sys.argv[1:]]
  pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
  processes: list[subprocess.Popen] = []

  def stop(*_: Any) -> None:
    for process in processes:
      process.terminate()

  before, mine = signal.signal(signal.SIGTERM, stop), _cores()
  try:
    for number, cores in enumerate(split_cores(count)):
      _pin(cores)  # the new process inherits it
      worker = [*command, f"--worker={number}"]
      processes.append(subprocess.Popen(worker, text=True, **pipes))
    _pin(mine)
    with ThreadPoolExecutor(count) as pool:
      statuses = list(pool.map(_show, processes))
  finally:
    stop()
    for process in processes:
      process.wait()
    signal.signal(signal.SIGTERM, before)
  for number, status in enumerate(statuses):
    if status < 0:
      logger.warning("worker %d was ended by signal %d.", number, -status)
      sys.exit(128 - status)
    if status > 1:  # 1: a cell has failed, which is noted in its directory
      sys.exit(status)
  return not any(statuses)


def _show(process: subprocess.Popen) -> int:
  """Passes on what a process writes; returns its exit status."""
  assert process.stdout is not None
  for line in process.stdout:
    sys.stderr.write(line)
  return process.wait()
