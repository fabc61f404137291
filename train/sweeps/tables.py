"""Finished runs read back, grouped, and put in tables: Markdown, CSV, curves."""

import csv
import io
import itertools
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from train.core.config import DENSE_STARTS, LOCAL, flatten
from train.core.console import UserError
from train.core.workdir import read_json, read_records
from train.sweeps.grid import SWEEP, is_number, read_status

SEEDS = ("seed", "seeds")  # fields in which repetitions of a run differ


class Run(NamedTuple):
  """What a finished run has left."""

  directory: Path  # where it is
  config: dict[str, Any]  # flat dictionary of its fields
  summary: dict[str, Any]  # contents of `summary.json`
  records: list[dict[str, Any]]  # lines of `metrics.jsonl`

  @property
  def seeds(self) -> list[int]:
    """The seeds of the run."""
    return self.config.get("seeds") or [self.config["seed"]]

  @property
  def accuracies(self) -> list[float]:
    """Test accuracy of each seed of the run."""
    return self.summary.get("test_accuracy_seeds") or [self.summary["test_accuracy"]]


def read_run(directory: Path) -> Run | None:
  """Reads a run, None if it is not finished."""
  paths = [directory / name for name in ("config.json", "summary.json")]
  if not all(path.exists() for path in (*paths, directory / "metrics.jsonl")):
    return None
  config, summary = map(read_json, paths)
  records = read_records(directory / "metrics.jsonl")
  return Run(directory, flatten(config), summary, records)


def read_runs(directories: list[str]) -> list[Run]:
  """Reads all finished runs in some directories, however deep.

  Raises:
    UserError: if there is none.
  """
  paths = (p for d in directories for p in sorted(Path(d).rglob("metrics.jsonl")))
  found = [run for path in paths if (run := read_run(path.parent)) is not None]
  if not found:
    raise UserError(f"no finished run in {', '.join(directories)}.")
  return found


def group(runs: list[Run], *, apart: tuple[str, ...] = SEEDS) -> dict[str, list[Run]]:
  """Groups runs that differ in the fields `apart`, or in local ones, only.

  Their names are of what tells them apart: "eoi, erk".
  """
  fields = {name for run in runs for name in run.config} - {*apart, *LOCAL}
  odd = [
    name
    for name in sorted(fields)
    if len({json.dumps(run.config.get(name)) for run in runs}) > 1
  ]
  groups: dict[str, list[Run]] = {}
  for run in runs:
    words = [f"{run.config.get(name)}" for name in odd]
    groups.setdefault(", ".join(words) or run.config["sparsity.start"], []).append(run)
  return groups


def count_once(runs: list[Run]) -> list[Run]:
  """Leaves out runs that repeat others: the same seeds gave the same numbers.

  Raises:
    UserError: if two runs, which differ in their seeds only, have one in common and are
      no repetitions. Which of them counts is not for a table to decide.
  """
  held: dict[int, Run] = {}
  kept: list[Run] = []
  for run in runs:
    common = [seed for seed in run.seeds if seed in held]
    if not common:
      kept.append(run)
      held |= dict.fromkeys(run.seeds, run)
    elif _numbers_of(run) != _numbers_of(other := held[common[0]]):
      raise UserError(
        f"`seed` must differ between runs of one config, got {common[0]} in both "
        f"{other.directory} and {run.directory}; leave one of them out."
      )
  return kept


def _numbers_of(run: Run) -> tuple[Any, ...]:
  """What is the same in a run and its repetition, times left out."""
  return run.seeds, run.accuracies, [record.get("loss") for record in run.records]


def curves(directories: list[str]) -> dict[str, Any]:
  """Training loss and held-out accuracy over epochs: mean and deviation over seeds."""
  groups = group(read_runs(directories)).items()
  return {name: curves_of(count_once(runs)) for name, runs in groups}


def curves_of(runs: list[Run]) -> dict[str, Any]:
  """Curves of runs that differ in their seeds only; see `curves`."""
  return {
    "loss": _over_epochs(runs, ("train",), "loss"),
    "accuracy": _over_epochs(runs, ("validation", "monitor"), "accuracy"),
    "runs": sum(len(run.accuracies) for run in runs),
  }


def _over_epochs(runs: list[Run], splits: tuple[str, ...], value: str) -> dict:
  columns: list[dict[float, float]] = []  # one for each seed
  for run in runs:
    records = [r for r in run.records if r["split"] in splits]
    seeds = {r["epoch"]: r.get("seeds", {}).get(value) or [r[value]] for r in records}
    for number in range(len(run.accuracies)):
      columns.append({epoch: values[number] for epoch, values in seeds.items()})
  epochs = sorted(set.intersection(*(set(column) for column in columns)))
  table = np.array([[column[epoch] for epoch in epochs] for column in columns])
  std = table.std(axis=0, ddof=min(1, len(table) - 1))
  return {"epoch": epochs, "mean": table.mean(axis=0).tolist(), "std": std.tolist()}


def accuracy_over_density(directories: list[str]) -> dict[str, Any]:
  """Test accuracy over the density at the end: mean and deviation over seeds."""
  result, apart = {}, (*SEEDS, "sparsity.density", "dynamic.density")
  for name, found in group(read_runs(directories), apart=apart).items():
    by_density: dict[Any, list[Run]] = {}
    for run in found:
      by_density.setdefault(_wanted(run), []).append(run)
    entries = [Entry(count_once(runs), "done") for runs in by_density.values()]
    entries.sort(key=lambda entry: entry.density)
    result[name] = {
      "density": [entry.density for entry in entries],
      "mean": [entry.mean for entry in entries],
      "std": [entry.std for entry in entries],
      "runs": [len(entry.accuracies) for entry in entries],
    }
  return result


def _wanted(run: Run) -> tuple[Any, Any]:
  """The densities of a config at the start and at the end, where they are used."""
  is_dense = run.config["sparsity.start"] in DENSE_STARTS
  prunes = run.config.get("dynamic.method") == "gmp"
  begin = None if is_dense else run.config["sparsity.density"]
  return begin, run.config["dynamic.density"] if prunes else None


MORE_WEIGHTS = 1.05  # a row that has so many times the fewest weights is not compared


class Entry(NamedTuple):
  """What is known of one place in a table."""

  runs: list[Run]  # the finished runs, which differ in their seeds only
  word: str  # done, or what the least advanced run is
  note: str = ""  # why a run failed

  @property
  def accuracies(self) -> list[float]:
    """Test accuracy of every seed."""
    return [accuracy for run in self.runs for accuracy in run.accuracies]

  @property
  def mean(self) -> float:
    """Mean of the accuracies."""
    return float(np.mean(self.accuracies))

  @property
  def std(self) -> float:
    """Their standard deviation; 0 of a single one."""
    return float(np.std(self.accuracies, ddof=min(1, len(self.accuracies) - 1)))

  @property
  def density(self) -> float:
    """Trained fraction of the kernels that may be sparse."""
    return float(np.mean([run.summary["density"] for run in self.runs]))


class Table(NamedTuple):
  """Entries in rows and columns."""

  title: str  # one line
  axes: dict[str, list[str]]  # axis to labels; the last one makes the rows
  entries: dict[tuple[str, ...], Entry]  # labels of all axes, in order, to the entry

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
      f"{axis} {label}".replace("_", " ") if is_number(label) else label
      for axis, label in zip(self.axes, column, strict=False)
    ]
    return ", ".join(words) or "test accuracy"


def read_table(directory: Path) -> Table:
  """Reads the results of a sweep, or of other runs in a directory, one row a group.

  Raises:
    UserError: if there is no run.
  """
  if not (directory / SWEEP).exists():
    groups = group(read_runs([str(directory)]))
    entries = {(n,): Entry(count_once(runs), "done") for n, runs in groups.items()}
    return Table(directory.name, {"run": list(groups)}, entries)
  sweep = read_json(directory / SWEEP)
  paths: dict[tuple[str, ...], list[str]] = {}
  for cell in sweep["cells"]:
    labels = tuple(cell["labels"][axis] for axis in sweep["axes"])
    paths.setdefault(labels, []).append(cell["path"])
  entries = {labels: _entry(directory, found) for labels, found in paths.items()}
  return Table(sweep["title"], sweep["axes"], entries)


def _entry(directory: Path, paths: list[str]) -> Entry:
  statuses = [read_status(directory / path) for path in paths]
  runs = [run for path in paths if (run := read_run(directory / path)) is not None]
  order = ("failed", "running", "stopped", "todo", "done")
  worst = min(statuses, key=lambda status: order.index(status.word))
  return Entry(runs, worst.word, worst.note)


def markdown(table: Table) -> str:
  """Returns the table as Markdown: mean and deviation in %, the best in bold."""
  sizes = {len(entry.accuracies) for entry in table.entries.values() if entry.runs}
  common = sizes.pop() if len(sizes) == 1 else None
  columns = [[list(table.axes)[-1], "---", *table.rows]]
  for column in table.columns:
    entries = [table.entries[*column, row] for row in table.rows]
    columns.append([table.column_name(column), "---", *_texts(entries, common)])
  lines = [f"**{table.title}**", ""]
  lines += [f"| {' | '.join(line)} |" for line in zip(*columns, strict=True)]
  lines += ["", _legend(table, common)]
  failed = {n: entry for n, entry in table.entries.items() if entry.word == "failed"}
  lines += ["", "Failed:", ""] if failed else []
  lines += [f"- {', '.join(n)}: {entry.note}" for n, entry in failed.items()]
  return "\n".join(lines) + "\n"


def _texts(entries: list[Entry], common: int | None) -> list[str]:
  """Shows the places of a column; the highest of several comparable means is bold."""
  most = MORE_WEIGHTS * min((e.density for e in entries if e.runs), default=1.0)
  # As precise as what is shown.
  means = [round(e.mean, 4) for e in entries if e.runs and e.density <= most]
  texts = []
  for entry in entries:
    if not entry.runs:
      texts.append(entry.word)
      continue
    text, count = f"{100 * entry.mean:.2f}", len(entry.accuracies)
    text += f" ± {100 * entry.std:.2f}" if count > 1 else ""
    notes = [] if common else [f"n = {count}"]
    notes += [f"density {entry.density:.2g}"] if entry.density > most else []
    notes += [entry.word] if entry.word != "done" else []
    text += f" ({', '.join(notes)})" if notes else ""
    is_best = entry.density <= most and round(entry.mean, 4) == max(means)
    texts.append(f"**{text}**" if is_best and len(means) > 1 else text)
  return texts


def _legend(table: Table, common: int | None) -> str:
  spread = "" if common == 1 else ": mean ± standard deviation over seeds"
  number = f", n = {common}" if common else ""
  runs = [run for entry in table.entries.values() for run in entry.runs]
  epochs = {run.config["num_epochs"] for run in runs}
  length = f" Epochs: {epochs.pop()}." if len(epochs) == 1 else ""
  text = "Bold: the best mean of a column among networks of its density."
  return f"Test accuracy in %{spread}{number}. {text}{length}"


def csv_text(table: Table) -> str:
  """Returns the table as CSV, one line a place; the last column is a time."""
  file = io.StringIO()
  writer = csv.writer(file, lineterminator="\n")
  names = ("status", "n", "mean", "std", "accuracies", "density of kernels", "epochs")
  writer.writerow([*table.axes, *names, "note", "train_seconds"])
  for labels, entry in table.entries.items():
    values, numbers, seconds = entry.accuracies, [""] * 5, ""
    if values:
      numbers = [
        f"{entry.mean:.6f}",
        f"{entry.std:.6f}" if len(values) > 1 else "",
        " ".join(f"{value:.6f}" for value in values),
        f"{entry.density:.6f}",
        entry.runs[0].config["num_epochs"],
      ]
      seconds = f"{sum(run.summary['train_seconds'] for run in entry.runs):.1f}"
    writer.writerow([*labels, entry.word, len(values), *numbers, entry.note, seconds])
  return file.getvalue()
