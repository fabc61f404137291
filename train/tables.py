"""Tables of finished runs: rows, columns, mean and spread; as Markdown and CSV."""

import csv
import io
import itertools
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from train import cells as cells_lib
from train import runs
from train.runs import Run

SWEEP = "sweep.json"
MORE_WEIGHTS = 1.05  # a row that has so many times the fewest weights is not compared


class Entry(NamedTuple):
  """What is known of one place in a table.

  Attributes:
    runs: the finished runs, which differ in their seeds only.
    word: done, or what the least advanced run is.
    note: why a run failed.
  """

  runs: list[Run]
  word: str
  note: str = ""

  @property
  def accuracies(self) -> list[float]:
    """Test accuracy of every seed."""
    return [accuracy for run in self.runs for accuracy in run.accuracies]

  @property
  def density(self) -> float:
    """Trained fraction of all kernels."""
    return float(np.mean([run.summary["density"] for run in self.runs]))


class Table(NamedTuple):
  """Entries in rows and columns.

  Attributes:
    title: one line.
    axes: axis to labels; the last one makes the rows.
    entries: labels of all axes, in order, to the entry.
  """

  title: str
  axes: dict[str, list[str]]
  entries: dict[tuple[str, ...], Entry]

  @property
  def rows(self) -> list[str]:
    """Labels of the rows."""
    return list(self.axes.values())[-1]

  @property
  def columns(self) -> list[tuple[str, ...]]:
    """Labels of the columns, one of each axis but the last."""
    return list(itertools.product(*list(self.axes.values())[:-1]))

  def column_name(self, column: tuple[str, ...]) -> str:
    """Names a column: "ResNet-32, density 0.1"."""
    words = [
      f"{axis} {label}".replace("_", " ") if _is_number(label) else label
      for axis, label in zip(self.axes, column, strict=False)
    ]
    return ", ".join(words) or "test accuracy"


def _is_number(label: str) -> bool:
  return re.fullmatch(r"[\d.e+-]+", label) is not None


def read_table(directory: Path) -> Table:
  """Reads the results of a sweep, or of other runs in a directory, one row a group.

  Raises:
    UserError: if there is no run.
  """
  if not (directory / SWEEP).exists():
    groups = runs.group(runs.read_runs([str(directory)]))
    entries = {(name,): Entry(found, "done") for name, found in groups.items()}
    return Table(directory.name, {"run": list(groups)}, entries)
  sweep = json.loads((directory / SWEEP).read_text(encoding="utf-8"))
  paths: dict[tuple[str, ...], list[str]] = {}
  for cell in sweep["cells"]:
    labels = tuple(cell["labels"][axis] for axis in sweep["axes"])
    paths.setdefault(labels, []).append(cell["path"])
  entries = {labels: _entry(directory, found) for labels, found in paths.items()}
  return Table(sweep["title"], sweep["axes"], entries)


def _entry(directory: Path, paths: list[str]) -> Entry:
  statuses = [cells_lib.read_status(directory / path) for path in paths]
  found = [runs.read_run(directory / path) for path in paths]
  order = ("failed", "running", "stopped", "todo", "done")
  worst = min(statuses, key=lambda status: order.index(status.word))
  return Entry([run for run in found if run is not None], worst.word, worst.note)


def markdown(table: Table) -> str:
  """Returns the table as Markdown: mean and deviation in %, the best in bold."""
  names = [table.column_name(column) for column in table.columns]
  sizes = {len(entry.accuracies) for entry in table.entries.values() if entry.runs}
  common = sizes.pop() if len(sizes) == 1 else None
  best = {column: _best(table, column) for column in table.columns}
  head = [list(table.axes)[-1], *names]
  lines = [f"**{table.title}**", "", _line(head), _line(["---"] * len(head))]
  for row in table.rows:
    fields = []
    for column in table.columns:
      text = _text(table.entries[*column, row], best[column].least, common)
      fields.append(f"**{text}**" if row in best[column].rows else text)
    lines.append(_line([row, *fields]))
  return "\n".join([*lines, "", *_legend(table, common), *_failures(table)]) + "\n"


def _line(fields: list[str]) -> str:
  return f"| {' | '.join(fields)} |"


class _Best(NamedTuple):
  """The rows of a column with the highest mean, and the fewest weights in it."""

  rows: list[str]
  least: float


def _best(table: Table, column: tuple[str, ...]) -> _Best:
  found = {row: table.entries[*column, row] for row in table.rows}
  found = {row: entry for row, entry in found.items() if entry.runs}
  if not found:
    return _Best([], 1.0)
  least = min(entry.density for entry in found.values())
  means = {
    row: round(float(np.mean(entry.accuracies)), 4)  # as precise as what is shown
    for row, entry in found.items()
    if entry.density <= MORE_WEIGHTS * least
  }
  top = max(means.values())
  best = [row for row, mean in means.items() if mean == top]
  return _Best(best if len(means) > 1 else [], least)


def _text(entry: Entry, least: float, common: int | None) -> str:
  """Shows one place of the table."""
  if not entry.runs:
    return entry.word
  text = f"{100 * np.mean(entry.accuracies):.2f}"
  if len(entry.accuracies) > 1:
    text += f" ± {100 * np.std(entry.accuracies, ddof=1):.2f}"
  notes = [] if common else [f"n = {len(entry.accuracies)}"]
  if entry.density > MORE_WEIGHTS * least:
    notes.append(f"density {entry.density:.2g}")
  notes += [entry.word] if entry.word != "done" else []
  return f"{text} ({', '.join(notes)})" if notes else text


def _legend(table: Table, common: int | None) -> list[str]:
  text = "Test accuracy in %"
  if common != 1:
    text += ": mean ± standard deviation over seeds"
  text += f", n = {common}. " if common else ". "
  text += "Bold: the best mean of a column among networks of its density."
  epochs = {
    run.config["num_epochs"] for entry in table.entries.values() for run in entry.runs
  }
  if len(epochs) == 1:
    text += f" Epochs: {epochs.pop()}."
  return [text]


def _failures(table: Table) -> list[str]:
  lines = [
    f"- {', '.join(labels)}: {entry.note}"
    for labels, entry in table.entries.items()
    if entry.word == "failed"
  ]
  return ["", "Failed:", "", *lines] if lines else []


def csv_text(table: Table) -> str:
  """Returns the table as CSV, one line a place; the last column is a time."""
  file = io.StringIO()
  writer = csv.writer(file, lineterminator="\n")
  names = ("status", "n", "mean", "std", "accuracies", "density of kernels", "epochs")
  writer.writerow([*table.axes, *names, "note", "train_seconds"])
  for labels, entry in table.entries.items():
    writer.writerow([*labels, entry.word, *_numbers(entry)])
  return file.getvalue()


def _numbers(entry: Entry) -> list[Any]:
  values = entry.accuracies
  if not values:
    return [0, "", "", "", "", "", entry.note, ""]
  return [
    len(values),
    f"{np.mean(values):.6f}",
    f"{np.std(values, ddof=1):.6f}" if len(values) > 1 else "",
    " ".join(f"{value:.6f}" for value in values),
    f"{entry.density:.6f}",
    entry.runs[0].config["num_epochs"],
    entry.note,
    f"{sum(run.summary['train_seconds'] for run in entry.runs):.1f}",
  ]
