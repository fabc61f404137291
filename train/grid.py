"""A sweep as plain data: one config, axes of changes to it, and the cells they span."""

import itertools
import json
import re
import runpy
from pathlib import Path
from typing import Any, NamedTuple

from train import config as config_lib
from train.command import load_config
from train.errors import UserError

Axes = dict[str, dict[str, dict[str, Any]]]  # axis to label to changed fields


class Cell(NamedTuple):
  """One run of a sweep.

  Attributes:
    labels: its place in the grid: axis to label.
    path: of its workdir, below that of the sweep. Cells of equal configs share one.
    config: what it trains.
  """

  labels: dict[str, str]
  path: str
  config: Any


class Sweep(NamedTuple):
  """A grid of runs.

  Attributes:
    title: what it shows, in one line.
    axes: the last one makes the rows of its table, the others make the columns.
    cells: all runs; those of the last axis lie side by side.
    fields: the config fields that every cell sets itself.
  """

  title: str
  axes: dict[str, list[str]]
  cells: list[Cell]
  fields: frozenset[str]


def load_sweep(value: str, base: Any = None, *, one_by_one: bool = False) -> Sweep:
  """Expands the sweep that `FILE` or `FILE:VARIANT` names.

  The file is a config, by `get_config(variant)`, and has `get_axes(variant)` besides: a
  dict from a field to its values, or from the name of an axis to
  `{label: {field: value}}`. A later axis wins where two change the same field.

  Args:
    value: the path, with a variant if there is any.
    base: the config to change, if not the file's own.
    one_by_one: a run for each of `config.seeds`, instead of all seeds in one program.

  Returns:
    The sweep; all of its configs have been checked.

  Raises:
    UserError: if the file, an axis or the config of a cell is wrong.
  """
  base = load_config(value) if base is None else base
  path, colon, variant = value.partition(":")
  module = runpy.run_path(path)
  if "get_axes" not in module:
    raise UserError(f"{path} has no get_axes(); train.run is for single configs.")
  axes = _read_axes(module["get_axes"](*([variant] if colon else [])))
  title = (module.get("__doc__") or Path(path).stem).strip().splitlines()[0].rstrip(".")
  labels = {axis: list(choices) for axis, choices in axes.items()}
  common = [frozenset.intersection(*map(frozenset, c.values())) for c in axes.values()]
  cells = _expand(base, axes, one_by_one=one_by_one)
  return Sweep(title, labels, cells, frozenset.union(*common))


def _read_axes(axes: Any) -> Axes:
  """Brings both forms of an axis to one."""
  if not isinstance(axes, dict) or not axes:
    raise UserError(f"get_axes() must return a dict of axes, got {axes!r}.")
  result = {}
  for name, choices in axes.items():
    if not isinstance(choices, dict):
      config_lib.check_names([name], config_lib.FIELDS)
      choices = {f"{value}": {name: value} for value in choices}
    if not choices:
      raise UserError(f"axis {name!r} must have at least one choice.")
    result[name.rpartition(".")[2]] = choices
  if len(result) < len(axes):
    raise UserError(f"axes must have different names, got {', '.join(axes)}.")
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
    for folder, seed in _seeds(base, one_by_one):
      config = _change(base, changes | seed)
      text = config_lib.to_json(config)
      cells.append(Cell(labels, paths.setdefault(text, path + folder), config))
  if len({cell.path for cell in cells}) < len(paths):
    raise UserError("two cells of the sweep have the same name; change their labels.")
  return cells


def _folder(axis: str, label: str) -> str:
  """Names a directory: numbers say what they are, `density=0.05`; words alone do."""
  text = f"{axis}={label}" if re.fullmatch(r"[\d.e+-]+", label) else label
  return re.sub(r"[^\w.=+-]+", "_", text)


def _seeds(base: Any, one_by_one: bool) -> list[tuple[str, dict[str, Any]]]:
  """What the runs of a cell change for their seeds, and how they are called."""
  if not (one_by_one and base.seeds):
    return [("", {})]
  return [(f"/seed={seed}", {"seed": seed, "seeds": ()}) for seed in base.seeds]


def _change(base: Any, changes: dict[str, Any]) -> Any:
  config = base.copy_and_resolve_references()
  config_lib.check_names(changes, config_lib.FIELDS)
  with config.ignore_type():  # a scale may be a number or a word
    config.update_from_flattened_dict(changes)
  config_lib.validate(config)
  if config.compare.field or config.dry_run:
    raise UserError("a sweep takes neither `compare.field` nor `dry_run`.")
  return config


def to_json(sweep: Sweep) -> str:
  """Returns what `train.report` needs to know of a sweep."""
  cells = [{"labels": cell.labels, "path": cell.path} for cell in sweep.cells]
  return json.dumps({"title": sweep.title, "axes": sweep.axes, "cells": cells}) + "\n"
