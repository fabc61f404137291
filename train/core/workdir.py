"""The directory of a run: whose it is, and its records."""

import contextlib
import fcntl
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from train.core import config as config_lib
from train.core.console import UserError

_LOCK = "lock"


@contextlib.contextmanager
def claim_workdir(workdir: Path, config: Any) -> Iterator[None]:
  """Makes `workdir` the home of this config and of this process, while it is entered.

  Writes `config.json` once and adds a line to `environment.jsonl` at every start: git
  commit, versions, devices. The operating system gives the directory back when the
  process ends, whatever ends it.

  Raises:
    UserError: if the directory holds a run of another config, is in use by another
      process, or cannot be written.
  """
  path = workdir / "config.json"
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    lock = open(workdir / _LOCK, "a+", encoding="utf-8")  # noqa: SIM115
  except OSError as error:
    raise UserError(f"cannot write to workdir {workdir}: {error.strerror}.") from error
  with lock:
    _hold(lock, workdir)
    try:
      if path.exists():
        refuse_another_config(path, config)
      else:
        replace_text(path, config_lib.to_json(config))
      with open(workdir / "environment.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(environment()) + "\n")
    except OSError as error:
      raise UserError(
        f"cannot write to workdir {workdir}: {error.strerror}."
      ) from error
    yield


def _hold(lock: Any, workdir: Path) -> None:
  """Locks a file until it is closed, with the number of this process in it."""
  try:
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError as error:
    lock.seek(0)
    raise UserError(
      f"workdir {workdir} is in use by process {lock.read().strip() or 'unknown'}; "
      "wait for it, or choose another --workdir."
    ) from error
  lock.truncate(0)
  lock.write(f"{os.getpid()} on {platform.node()}\n")
  lock.flush()


def is_claimed(workdir: Path) -> bool:
  """Whether a process is at work in `workdir`."""
  try:
    with open(workdir / _LOCK, encoding="utf-8") as lock:
      fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
  except BlockingIOError:
    return True
  except OSError:
    return False
  return False


def refuse_another_config(path: Path, config: Any) -> None:
  """Compares the config saved in `path`.

  Raises:
    UserError: if it differs; the fields are named.
  """
  try:
    saved = json.loads(path.read_text(encoding="utf-8"))
  except ValueError as error:
    raise UserError(f"{path} is not a JSON file; choose another --workdir.") from error
  if found := config_lib.differences(config, saved):
    raise UserError(
      f"workdir {path.parent} holds a run of another config "
      f"({'; '.join(found)}); choose another --workdir."
    )


def replace_text(path: Path, text: str) -> None:
  """Writes a file so that a reader, or a crash, sees all of it or none."""
  part = path.with_name(f"{path.name}.{os.getpid()}.part")
  part.write_text(text, encoding="utf-8")
  part.replace(path)


def environment() -> dict[str, str]:
  """Returns what the result may depend on besides the config."""
  device = jax.devices()[0]
  return {
    "git_commit": git_commit(),
    "python": platform.python_version(),
    "jax": jax.__version__,
    "device": f"{jax.device_count()} x {device.device_kind}",
    "processes": str(jax.process_count()),
    "machine": platform.machine(),
    "command": " ".join(sys.argv),
  }


def git_commit() -> str:
  """Returns the checkout's commit, with `-dirty` if files differ, or `unknown`."""
  try:
    return subprocess.run(
      ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
      cwd=Path(__file__).parent,
      capture_output=True,
      check=True,
      text=True,
    ).stdout.strip()
  except (OSError, subprocess.CalledProcessError):
    return "unknown"


def read_metrics(path: Path) -> list[dict[str, Any]]:
  """Reads the records of a run; a line cut short by a crash ends the list."""
  records = []
  if path.exists():
    for line in path.read_text(encoding="utf-8").splitlines():
      try:
        records.append(json.loads(line))
      except ValueError:
        break
  return records


def with_spread(values: dict[str, Any], *, several: bool) -> dict[str, Any]:
  """Returns numbers of one seed as they are, those of several with their spread.

  Args:
    values: name to a number, or to an array of one number for each seed.
    several: whether the run names its seeds.

  Returns:
    Name to the mean over seeds. If `several`, also `NAME_std`, the standard deviation
    over seeds (of n - 1 degrees of freedom, 0 for a single one), and `seeds`: name to
    the list of all.
  """
  arrays = {k: np.atleast_1d(np.asarray(v, np.float64)) for k, v in values.items()}
  record: dict[str, Any] = {k: float(array.mean()) for k, array in arrays.items()}
  if several:
    for name, array in arrays.items():
      record[f"{name}_std"] = float(array.std(ddof=1)) if len(array) > 1 else 0.0
    record["seeds"] = {k: array.tolist() for k, array in arrays.items()}
  return record


class MetricsWriter:
  """Appends records to `metrics.jsonl` and keeps them in memory.

  Attributes:
    records: all records, oldest first: dictionaries with `step`, `epoch`, `split`
      (train, validation, monitor, test), `loss`, `accuracy`. Those of train also have
      `learning_rate`, `steps_per_second`, `seconds` (the training time so far without
      compilation), and of the last step `grad_norm`, `update_norm` and `param_norm`;
      where masks move, `grown_weights` so far. Those of validation and monitor have
      `live_weights`. With several seeds, see `with_spread`.
  """

  def __init__(
    self,
    path: Path,
    resume_step: int | None,
    *,
    primary: bool = True,
    tensorboard: bool = False,
  ):
    """Opens the file; records after `resume_step`, which will come again, go.

    Args:
      path: the file; it need not exist.
      resume_step: the step of the checkpoint, None for a start from nothing.
      primary: whether to write; other processes only keep the records.
      tensorboard: whether to write event files, too, into `tensorboard/` beside it.
    """
    limit = -1 if resume_step is None else resume_step
    self.records = [
      r for r in read_metrics(path) if r["step"] <= limit and r["split"] != "test"
    ]
    self._path, self._file, self._events = path, None, None
    if not primary:
      return
    replace_text(path, "".join(json.dumps(r) + "\n" for r in self.records))
    self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115
    if tensorboard:
      self._events = _event_writer(path.with_name("tensorboard"), limit)

  def __enter__(self) -> "MetricsWriter":
    return self

  def __exit__(self, *args) -> None:
    for file in (self._file, self._events):
      if file is not None:
        file.close()

  def write(self, record: dict[str, Any]) -> None:
    """Appends one record; it survives the death of the process from here on.

    Raises:
      UserError: if the file cannot be written.
    """
    self.records.append(record)
    if self._file is None:
      return
    try:
      self._file.write(json.dumps(record) + "\n")
      self._file.flush()
    except OSError as error:
      raise UserError(
        f"cannot write {self._path}: {error.strerror}; make room and run the same "
        "command again."
      ) from error
    if self._events is not None:
      _write_events(self._events, record)

  def last(self, split: str) -> dict[str, Any] | None:
    """Returns the newest record of a split, or None."""
    return next((r for r in reversed(self.records) if r["split"] == split), None)


def check_tensorboard() -> None:
  """Raises a UserError unless event files can be written."""
  try:
    import tensorboardX  # noqa: F401
  except ImportError as error:
    raise UserError(
      "`tensorboard` = True needs tensorboardX: run `pip install tensorboardX`."
    ) from error


def _event_writer(directory: Path, limit: int) -> Any:
  import tensorboardX

  return tensorboardX.SummaryWriter(str(directory), purge_step=limit + 1)


def _write_events(events: Any, record: dict[str, Any]) -> None:
  split, step = record["split"], record["step"]
  for name, value in record.items():
    if name not in ("step", "split", "seeds"):
      events.add_scalar(f"{split}/{name}", value, step)
  events.flush()
