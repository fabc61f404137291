"""What a config may hold: types, ranges and choices, checked before anything runs."""

import difflib
import json
import math
from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from train.data import DATASETS
from train.dynamic import METHODS
from train.errors import UserError
from train.gains import CRITICAL
from train.mesh import PARAMETERS
from train.models import ACTIVATIONS, DTYPES, MODELS
from train.optimizers import OPTIMIZERS, SCHEDULES
from train.state import BY_SHAPE, SCORED

Check = Callable[[Any], str | None]  # returns the rule that the value breaks

REFERENCES = ("orthogonal", "delta_orthogonal", "conv_orthogonal")
STARTS = ("eoi", "eoi_in_mask", "eoi_structured", "base", "ai", "sao", *REFERENCES)
DISTRIBUTIONS = (*BY_SHAPE, *SCORED)


def _integer(low: int, high: int) -> Check:
  def check(value):
    if isinstance(value, int) and not isinstance(value, bool) and low <= value <= high:
      return None
    return f"an integer in [{low}, {high}]"

  return check


def _number(low: float, high: float = math.inf, *, open_low=False, open_high=False):
  left = "(" if open_low else "["
  right = ")" if open_high or high == math.inf else "]"
  rule = f"{left}{low:g}, {high:g}{right}"

  def check(value):
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if number and math.isfinite(value) and low <= value <= high:
      on_open_end = (open_low and value == low) or (open_high and value == high)
      return f"a number in {rule}" if on_open_end else None
    return f"a number in {rule}"

  return check


def _choice(*known: str) -> Check:
  def check(value):
    if isinstance(value, str) and value in known:
      return None
    return "one of " + ", ".join(known)

  return check


def _boolean(value) -> str | None:
  return None if isinstance(value, bool) else "True or False"


def _text(value) -> str | None:
  return None if isinstance(value, str) else "a string"


def _values(value) -> str | None:
  plain = isinstance(value, list | tuple) and all(
    isinstance(v, str | int | float) for v in value
  )
  if plain and len(set(map(str, value))) == len(value):
    return None
  return "a tuple of different strings or numbers"


def _scale(value) -> str | None:
  if value == CRITICAL or _number(0, open_low=True)(value) is None:
    return None
  return f"a number in (0, inf] or {CRITICAL!r}"


def _seeds(value) -> str | None:
  check = _integer(0, 2**32 - 1)
  fine = isinstance(value, list | tuple) and not any(map(check, value))
  if fine and len(set(value)) == len(value):
    return None
  return f"a tuple of different seeds, each {check(None)}"


MANY = 10**9
FIELDS: dict[str, Check] = {
  "seed": _integer(0, 2**32 - 1),
  "seeds": _seeds,
  "num_epochs": _integer(1, MANY),
  "batch_size": _integer(1, MANY),
  "steps_per_dispatch": _integer(1, MANY),
  "eval_every": _integer(1, MANY),
  "checkpoint_every": _integer(1, MANY),
  "keep_checkpoints": _integer(1, MANY),
  "keep_best": _integer(0, MANY),
  "placement": _choice(*PARAMETERS),
  "tensorboard": _boolean,
  "dry_run": _boolean,
  "data.name": _choice(*DATASETS),
  "data.augment": _boolean,
  "data.validation": _number(0, 1, open_high=True),
  "data.limit": _integer(0, MANY),
  "model.name": _choice(*MODELS),
  "model.depth": _integer(2, 10**5),
  "model.width": _integer(1, 10**6),
  "model.activation": _choice(*ACTIVATIONS),
  "model.dtype": _choice(*DTYPES),
  "model.remat": _boolean,
  "sparsity.start": _choice(*STARTS),
  "sparsity.distribution": _choice(*DISTRIBUTIONS),
  "sparsity.density": _number(0, 1, open_low=True),
  "sparsity.scale": _scale,
  "sparsity.q_star": _number(0, open_low=True),
  "sparsity.bias_std": _number(0),
  "sparsity.reference": _choice(*REFERENCES),
  "sparsity.ai_method": _choice("sgd", "adam"),
  "sparsity.ai_steps": _integer(0, MANY),
  "sparsity.floors": _choice("raise", "error"),
  "sparsity.angle": _number(-360, 360),
  "sparsity.grasp_examples": _integer(2, MANY),
  "sparsity.synflow_rounds": _integer(1, MANY),
  "optimizer.name": _choice(*OPTIMIZERS),
  "optimizer.learning_rate": _number(0),
  "optimizer.momentum": _number(0, 1, open_high=True),
  "optimizer.nesterov": _boolean,
  "optimizer.weight_decay": _number(0),
  "optimizer.schedule": _choice(*SCHEDULES),
  "optimizer.warmup": _number(0, 1),
  "optimizer.label_smoothing": _number(0, 1, open_high=True),
  "optimizer.clip_norm": _number(0),
  "dynamic.method": _choice(*METHODS),
  "dynamic.fraction": _number(0, 1),
  "dynamic.every": _integer(1, MANY),
  "dynamic.until": _number(0, 1),
  "dynamic.scope": _choice("layer", "global"),
  "dynamic.mean_decay": _number(0, 1, open_high=True),
  "dynamic.skip_step": _boolean,
  "dynamic.isometry_steps": _integer(0, MANY),
  "dynamic.isometry_scale": _number(0),
  "compare.field": _text,
  "compare.choices": _values,
}


def flatten(config: Any) -> dict[str, Any]:
  """Returns `{"model.depth": 7, ...}` from a config or a nested dictionary."""
  flat = {}
  for name, value in dict(config).items():
    if isinstance(value, ConfigDict | dict):
      flat |= {f"{name}.{rest}": leaf for rest, leaf in flatten(value).items()}
    else:
      flat[name] = value
  return flat


def validate(config: Any) -> None:
  """Checks names, types and ranges of every field.

  Raises:
    UserError: for the first field that is unknown, missing or out of its range.
  """
  flat = flatten(config)
  check_names(flat, FIELDS)
  for name, check in FIELDS.items():
    if name not in flat:
      raise UserError(f"config field `{name}` is missing.")
    if rule := check(flat[name]):
      raise UserError(f"`{name}` must be {rule}, got {flat[name]!r}.")
  _check_compare(config, flat)


def _check_compare(config: Any, flat: dict[str, Any]) -> None:
  field, values = config.compare.field, config.compare.choices
  if bool(field) != bool(len(values)):
    raise UserError("`compare.field` and `compare.choices` must be given together.")
  if not field:
    return
  names = _fields(field)
  for name in names:
    if name not in FIELDS or name.startswith("compare."):
      raise UserError(f"`compare.field` must name a field, got {name!r}.")
  for value in values:
    parts = _parts(names, value)
    if len(parts) != len(names):
      raise UserError(
        f"`compare.choices` must hold {len(names)} values joined by '+', as "
        f"`compare.field` does fields, got {value!r}."
      )
    for name, part in zip(names, parts, strict=True):
      if rule := FIELDS[name](part):
        raise UserError(f"`compare.choices` for `{name}` must be {rule}, got {part!r}.")
  now = [flat[name] for name in names]
  if now not in [_parts(names, value) for value in values]:
    shown = repr(now[0]) if len(now) == 1 else repr("+".join(map(str, now)))
    raise UserError(
      f"`{field}` is {shown}, but this config compares "
      f"{', '.join(map(str, values))}; change `compare.choices` instead."
    )


def _fields(field: str) -> list[str]:
  """Fields that are compared: one, or several joined by "+"."""
  return field.split("+")


def _parts(names: list[str], value: Any) -> list[Any]:
  """Values of the fields in one choice."""
  return [value] if len(names) == 1 else str(value).split("+")


def check_names(names: Any, known: Any) -> None:
  """Raises a UserError, with the nearest known name, unless all names are known."""
  for name in names:
    if name not in known:
      near = difflib.get_close_matches(name, list(known), 1, 0.5)
      parts = [n.partition(".") for n in known]
      top = dict.fromkeys(head + (dot and ".*") for head, dot, _ in parts)
      hint = f"did you mean `{near[0]}`?" if near else f"known: {', '.join(top)}."
      raise UserError(f"unknown config field `{name}`; {hint}")


def label(field: str, value: Any) -> str:
  """Returns what to call a run that has `value` in `field`, such as "eoi start".

  Of several fields the values alone tell: "erk eoi".
  """
  if "+" in field:
    return str(value).replace("+", " ").replace("_", " ")
  section, _, leaf = field.rpartition(".")
  return f"{value} {section if leaf == 'name' else leaf}".replace("_", " ")


def expand(config: Any) -> dict[str, Any]:
  """Returns one config for each value that `config` compares, by name.

  Each is what a person would write to train that one alone. A config that compares
  nothing gives itself, under the name of its start.
  """
  field, values = config.compare.field, config.compare.choices
  if not field:
    return {config.sparsity.start: config}
  runs = {}
  for value in values:
    run = config.copy_and_resolve_references()
    run.unlock()
    names = _fields(field)
    changes = dict(zip(names, _parts(names, value), strict=True))
    changes |= {"compare.field": "", "compare.choices": ()}
    with run.ignore_type():  # a scale may be a number or a word
      run.update_from_flattened_dict(changes)
    runs[str(value)] = run.lock()
  return runs


def to_json(config: Any) -> str:
  """Returns the config as JSON text, fields in their order."""
  return json.dumps(config.to_dict(), indent=2) + "\n"


def differences(ours: Any, theirs: dict[str, Any]) -> list[str]:
  """Lists the fields in which a config and a saved config differ."""
  left, right = flatten(json.loads(to_json(ours))), flatten(theirs)
  absent = "(absent)"
  return [
    f"{name}: {right.get(name, absent)!r} there, {left.get(name, absent)!r} here"
    for name in sorted(left.keys() | right.keys())
    if left.get(name, absent) != right.get(name, absent)
  ]
