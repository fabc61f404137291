"""Fields that runs are given and do not read.

No errors: a recipe holds the settings of several starts, and a flag chooses one.
"""

from collections.abc import Iterable
from typing import Any

from train.core.config import CRITICAL, FIELDS, SCORED, START_FIELDS, STARTS, flatten
from train.core.console import logger
from train.core.optimizers import METHODS, MOVING
from train.models import title_and_fields

# One of several conditions: fields, and the values that each of them must have.
Conditions = tuple[dict[str, tuple], ...]


def _starts(field: str) -> Conditions:
  """The starts that read a field; eoi_in_mask reads those of its fallback, too."""
  starts = tuple(start for start, fields in START_FIELDS.items() if field in fields)
  conditions: Conditions = ({"sparsity.start": starts},)
  if instead := tuple(start for start in starts if start in ("base", "ai")):
    replaced = {"sparsity.start": ("eoi_in_mask",), "sparsity.fallback": instead}
    conditions += (replaced,)
  return conditions


_METHODS = {  # the fields of `dynamic` that some methods read
  MOVING: ("fraction", "skip_step"),
  ("rigl", "srigl"): ("mean_decay",),
  ("gmp",): ("begin", "density"),
  METHODS[1:]: ("every", "until", "scope", "isometry_steps", "isometry_scale"),
}
READ_WITH: dict[str, Conditions] = {
  **{f"sparsity.{x}": _starts(x) for fields in START_FIELDS.values() for x in fields},
  **{
    f"dynamic.{field}": ({"dynamic.method": methods},)
    for methods, fields in _METHODS.items()
    for field in fields
  },
  "sparsity.scale": (
    {"sparsity.start": tuple(name for name in STARTS if name != "fan_in_uniform")},
  ),
  "sparsity.q_star": ({"sparsity.scale": (CRITICAL,)},),
  "sparsity.reference": (*_starts("reference"), {"sparsity.distribution": SCORED}),
  "sparsity.center": ({"sparsity.start": ("eoi",), "sparsity.taps": ("center",)},),
  "sparsity.grasp_examples": ({"sparsity.distribution": ("grasp",)},),
  "sparsity.synflow_rounds": ({"sparsity.distribution": ("synflow",)},),
}


def warn_of_unread(configs: Iterable[Any]) -> list[str]:
  """Logs, and returns, which fields are not at their default and read by no run.

  Of runs that belong together, such as those of a comparison, one may hold what another
  reads. Each field gives a sentence, with its value and what would read it.
  """
  flats, lines = [flatten(config) for config in configs], []
  for name, field in FIELDS.items():
    values = [flat[name] for flat in flats if flat[name] != field.default]
    if values and not any(_reads(flat, name) for flat in flats):
      read = f"it is read with {_text(READ_WITH.get(name, ()))} alone"
      why = read if name in READ_WITH else "no network here takes it"
      lines.append(f"`{name}` = {values[0]!r} changes nothing here: {why}.")
      logger.warning("%s", lines[-1])
  return lines


def _reads(flat: dict[str, Any], name: str) -> bool:
  section, _, leaf = name.rpartition(".")
  if section == "model" and leaf not in ("name", "options"):
    return leaf in title_and_fields(flat["model.name"])[1]
  conditions = READ_WITH.get(name, ({},))
  return any(
    all(flat[field] in allowed for field, allowed in condition.items())
    for condition in conditions
  )


def _text(conditions: Conditions) -> str:
  return " or ".join(
    " and ".join(f"`{field}` {', '.join(allowed)}" for field, allowed in each.items())
    for each in conditions
  )
