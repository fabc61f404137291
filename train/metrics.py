"""Metrics of a run as JSON lines, without gaps or duplicates after a restart."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from train.errors import UserError
from train.workdir import replace_text


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
