"""SIGTERM, by which schedulers ask a process to leave: noticed between chunks."""

import signal
import threading

import jax
from jax.experimental import multihost_utils

EXIT_STATUS = 128 + signal.SIGTERM


class Preemption:
  """Remembers a SIGTERM instead of dying from it.

  Use as a context manager around the steps of a training. With several processes the
  notice of one reaches all, through the service of `jax.distributed`, and all leave
  after the same step.
  """

  def __init__(self):
    self._noticed, self._before = False, None

  def __enter__(self) -> "Preemption":
    here = threading.current_thread() is threading.main_thread()
    if jax.process_count() == 1 and here:
      self._before = signal.signal(signal.SIGTERM, self._notice)
    return self

  def __exit__(self, *args) -> None:
    if self._before is not None:
      signal.signal(signal.SIGTERM, self._before)

  def _notice(self, *_) -> None:
    self._noticed = True

  def reached(self, step: int) -> bool:
    """Whether to save after `step` and leave; each process asks for every step."""
    if jax.process_count() > 1:
      return multihost_utils.reached_preemption_sync_point(step)
    return self._noticed
