"""A sweep as plain data: its grid of runs, and how far each of them is."""

import itertools
import json
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from train.core import config as config_lib
from train.core.command import load_config, run_file
from train.core.console import UserError, one_line, table
from train.core.workdir import is_claimed, read_json, read_records, replace_text

SWEEP, _FAILURE = "sweep.json", "failed.json"
Axes = dict[str, dict[str, dict[str, Any]]]  # axis to label to changed fields


class Cell(NamedTuple):
  """One run of a sweep."""

  labels: dict[str, str]  # its place in the grid: axis to label
  path: str  # of its workdir, below that of the sweep; cells of equal configs share one
  config: Any  # what it trains


class Sweep(NamedTuple):
  """A grid of runs."""

  title: str  # what it shows, in one line
  # the last one makes the rows of its table, the others make the columns
  axes: dict[str, list[str]]
  cells: list[Cell]  # all runs; those of the last axis lie side by side
  fields: frozenset[str]  # the config fields that every cell sets itself


def load_sweep(value: str, base: Any = None, *, one_by_one: bool = False) -> Sweep:
  """Expands the sweep that `FILE` or `FILE:VARIANT` names; its configs are checked.

  The file is a config, by `get_config(variant)`, and has `get_axes(variant)` besides: a
  dict from a field to its values, or from the name of an axis to `{label: {field:
  value}}`. A later axis wins where two change the same field. `base` takes the place of
  the file's own config; `one_by_one` makes a run for each of `config.seeds`.

  Raises:
    UserError: if the file, an axis or the config of a cell is wrong.
  """
  base = load_config(value) if base is None else base
  path, colon, variant = value.partition(":")
  module = run_file(Path(path).resolve())
  if "get_axes" not in module:
    raise UserError(f"{path} has no get_axes(); train.run is for single configs.")
  try:
    axes = _read_axes(module["get_axes"](*([variant] if colon else [])))
  except UserError:
    raise
  except Exception as error:  # of the file's own code
    raise UserError(f"{path}: get_axes(): {one_line(error)}") from error
  title = (module.get("__doc__") or Path(path).stem).strip().splitlines()[0].rstrip(".")
  labels = {axis: list(choices) for axis, choices in axes.items()}
  common = [frozenset.intersection(*map(frozenset, c.values())) for c in axes.values()]
  cells = _expand(base, axes, one_by_one=one_by_one)
  return Sweep(title, labels, cells, frozenset.union(*common))


def _read_axes(axes: Any) -> Axes:
  """Brings both forms of an axis to one, and gives every choice a label."""
  named = isinstance(axes, dict) and all(isinstance(name, str) for name in axes)
  if not named or not axes:
    raise UserError(f"get_axes() must return a dict of axes, got {axes!r}.")
  result, ends = {}, Counter(name.rpartition(".")[2] for name in axes)
  for name, choices in axes.items():
    if isinstance(choices, list | tuple):
      config_lib.check_names([name])
      choices = {f"{value}": {name: value} for value in choices}
    if not isinstance(choices, dict):
      raise UserError(
        f"axis {name!r} must be a tuple of values, or a dict from labels to fields, "
        f"got {choices!r}."
      )
    if not choices:
      raise UserError(f"axis {name!r} must have at least one choice.")
    for label, changes in choices.items():
      if not isinstance(changes, dict):
        raise UserError(
          f"axis {name!r} must give a dict of fields for {label!r}, got {changes!r}."
        )
    end = name.rpartition(".")[2]
    result[end if ends[end] == 1 else name] = {
      config_lib.run_name(name, label): changes for label, changes in choices.items()
    }
  return result


def _expand(base: Any, axes: Axes, *, one_by_one: bool) -> list[Cell]:
  cells, paths = [], {}
  config_lib.validate(base)
  for choice in itertools.product(*axes.values()):
    labels = dict(zip(axes, choice, strict=True))
    changes: dict[str, Any] = {}
    for axis, label in labels.items():
      changes |= axes[axis][label]
    path = "/".join(_folder(axis, label) for axis, label in labels.items())
    seeds = _change(base, changes).seeds if one_by_one else ()
    runs = [(f"/seed={seed}", {"seed": seed, "seeds": ()}) for seed in seeds]
    for folder, seed in runs or [("", {})]:
      config = _change(base, changes | seed)
      text = config_lib.to_json(config)
      cells.append(Cell(labels, paths.setdefault(text, path + folder), config))
  if len({cell.path for cell in cells}) < len(paths):
    raise UserError("two cells of the sweep have the same name; change their labels.")
  return cells


def is_number(label: str) -> bool:
  """Whether a label is a number, which does not say by itself what it means."""
  return re.fullmatch(r"[\d.e+-]+", label) is not None


def _folder(axis: str, label: str) -> str:
  """Names a directory: `density=0.05`, or a word alone."""
  text = f"{axis}={label}" if is_number(label) else label
  return re.sub(r"[^\w.=+-]+", "_", text)


def _change(base: Any, changes: dict[str, Any]) -> Any:
  config_lib.check_names(changes)
  config = config_lib.changed(base, changes)
  config_lib.validate(config)
  if config.compare.field or config.dry_run:
    raise UserError("a sweep takes neither `compare.field` nor `dry_run`.")
  return config


def to_json(sweep: Sweep) -> str:
  """Returns what `train.report` needs to know of a sweep."""
  cells = [{"labels": cell.labels, "path": cell.path} for cell in sweep.cells]
  return json.dumps({"title": sweep.title, "axes": sweep.axes, "cells": cells}) + "\n"


class Status(NamedTuple):
  """Where a run stands."""

  word: str  # done, running, stopped (it will continue), failed, or todo
  epoch: float | None = None  # the last one evaluated, None before
  # of the test set if done, else of the last evaluation; None before
  accuracy: float | None = None
  note: str = ""  # why it failed, in one line


def read_status(workdir: Path) -> Status:
  """Reads the status of a run; it may be running meanwhile."""
  word, note = "todo", ""
  if (workdir / "summary.json").exists():
    word = "done"
  elif is_claimed(workdir):
    word = "running"
  elif (workdir / _FAILURE).exists():
    word, note = "failed", read_json(workdir / _FAILURE)["error"]
  elif (workdir / "config.json").exists():
    word = "stopped"
  records = read_records(workdir / "metrics.jsonl")
  last = next((r for r in reversed(records) if r["split"] != "train"), {})
  accuracy = last.get("accuracy")
  if word == "done":
    accuracy = read_json(workdir / "summary.json")["test_accuracy"]
  return Status(word, last.get("epoch"), accuracy, note)


def write_failure(workdir: Path, error: Exception) -> None:
  """Notes why a run ended, in one line.

  Raises:
    UserError: if it cannot be written; the sweep had better stop then.
  """
  reason = one_line(error)
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
  counts, notes = Counter(), []
  for name, status in named:
    epoch = "" if status.epoch is None else f"{status.epoch:g}"
    accuracy = "" if status.accuracy is None else f"{status.accuracy:.2%}"
    rows.append((name, status.word, epoch, accuracy))
    counts[status.word] += 1
    notes += [f"  {name}: {status.note}"] if status.note else []
  total = ", ".join(f"{count} {word}" for word, count in counts.items())
  return "\n".join([table(rows), *notes, f"  {total}"])
