"""Several processes of one program on one machine, each on cores of its own.

XLA spreads every step over all cores, which pays for large steps only: one of the
1000-layer MLP takes .21 s on one core of two, .24 s on both (batch 128, measured).
"""

import itertools
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import Any

from train.errors import UserError


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


def run_workers(commands: Sequence[Sequence[str]]) -> list[int]:
  """Runs commands side by side; their output comes line by line on the standard error.

  SIGTERM is passed on to them; Ctrl-C reaches them by itself.

  Args:
    commands: one for each part of the cores, at most as many as there are cores.

  Returns:
    The exit status of each.
  """
  processes: list[subprocess.Popen] = []

  def stop(*_: Any) -> None:
    for process in processes:
      process.terminate()

  before = signal.signal(signal.SIGTERM, stop)
  try:
    for command, cores in zip(commands, split_cores(len(commands)), strict=True):
      processes.append(_start(command, cores))
    readers = [threading.Thread(target=_show, args=(p,)) for p in processes]
    for reader in readers:
      reader.start()
    for reader in readers:
      reader.join()
    return [process.wait() for process in processes]
  finally:
    stop()
    for process in processes:
      process.wait()
    signal.signal(signal.SIGTERM, before)


def _start(command: Sequence[str], cores: set[int]) -> subprocess.Popen:
  """Starts a command on some of the cores, where the system can tell it so."""
  mine = _cores()
  pins = hasattr(os, "sched_setaffinity")
  try:
    if pins:
      os.sched_setaffinity(0, cores)  # of this thread; the new process inherits it
    return subprocess.Popen(
      command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
  finally:
    if pins:
      os.sched_setaffinity(0, mine)


def _show(process: subprocess.Popen) -> None:
  assert process.stdout is not None
  for line in process.stdout:
    sys.stderr.write(line)
