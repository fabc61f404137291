"""How far the runs of a sweep are, read off their workdirs."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from train.errors import UserError
from train.metrics import read_metrics
from train.summaries import table
from train.workdir import is_claimed, replace_text

_FAILURE = "failed.json"


class Status(NamedTuple):
  """Where a run stands.

  Attributes:
    word: done, running, stopped (it will go on), failed, or todo.
    epoch: the last one evaluated, None before.
    accuracy: of the test set if done, else of the last evaluation; None before.
    note: why it failed, in one line.
  """

  word: str
  epoch: float | None = None
  accuracy: float | None = None
  note: str = ""


def read_status(workdir: Path) -> Status:
  """Reads the status of a run; it may be running meanwhile."""
  if (workdir / "summary.json").exists():
    summary = json.loads((workdir / "summary.json").read_text(encoding="utf-8"))
    return Status("done", _last(workdir)[0], summary["test_accuracy"])
  epoch, accuracy = _last(workdir)
  if is_claimed(workdir):
    return Status("running", epoch, accuracy)
  if (workdir / _FAILURE).exists():
    failure = json.loads((workdir / _FAILURE).read_text(encoding="utf-8"))
    return Status("failed", epoch, accuracy, failure["error"])
  return Status("stopped" if (workdir / "config.json").exists() else "todo")


def _last(workdir: Path) -> tuple[float | None, float | None]:
  """Epoch and accuracy of the last evaluation."""
  records = [
    r for r in read_metrics(workdir / "metrics.jsonl") if r["split"] != "train"
  ]
  return (records[-1]["epoch"], records[-1]["accuracy"]) if records else (None, None)


def write_failure(workdir: Path, error: Exception) -> None:
  """Notes why a run ended, in one line.

  Raises:
    UserError: if it cannot be written; the sweep had better stop then.
  """
  kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
  reason = kind + " ".join(str(error).split())
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    replace_text(workdir / _FAILURE, json.dumps({"error": reason}) + "\n")
  except OSError as new:
    raise UserError(f"{reason}; cannot write to {workdir}: {new.strerror}.") from error


def forget_failure(workdir: Path) -> None:
  """Lets a run that failed be tried again."""
  (workdir / _FAILURE).unlink(missing_ok=True)


def status_table(named: Iterable[tuple[str, Status]]) -> str:
  """Returns the runs as text, one a line, and their counts."""
  rows: list[tuple[str, ...]] = [("run", "status", "epoch", "accuracy")]
  counts: dict[str, int] = {}
  notes = []
  for name, status in named:
    epoch = "" if status.epoch is None else f"{status.epoch:g}"
    accuracy = "" if status.accuracy is None else f"{status.accuracy:.2%}"
    rows.append((name, status.word, epoch, accuracy))
    counts[status.word] = counts.get(status.word, 0) + 1
    notes += [f"  {name}: {status.note}"] if status.note else []
  total = ", ".join(f"{count} {word}" for word, count in counts.items())
  return "\n".join([table(rows), *notes, f"  {total}"])
