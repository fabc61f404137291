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


def _method(*names: str) -> Conditions:
  return ({"dynamic.method": names},)


def _starts(field: str) -> Conditions:
  """The starts that read a field; eoi_in_mask reads those of its fallback, too."""
  starts = tuple(start for start, fields in START_FIELDS.items() if field in fields)
  conditions: Conditions = ({"sparsity.start": starts},)
  if instead := tuple(start for start in starts if start in ("base", "ai")):
    replaced = {"sparsity.start": ("eoi_in_mask",), "sparsity.fallback": instead}
    conditions += (replaced,)
  return conditions


READ_WITH: dict[str, Conditions] = {
  "sparsity.scale": (
    {"sparsity.start": tuple(name for name in STARTS if name != "fan_in_uniform")},
  ),
  "sparsity.q_star": ({"sparsity.scale": (CRITICAL,)},),
  "sparsity.reference": (*_starts("reference"), {"sparsity.distribution": SCORED}),
  "sparsity.center": ({"sparsity.start": ("eoi",), "sparsity.taps": ("center",)},),
  **{
    f"sparsity.{name}": _starts(name)
    for name in ("fallback", "taps", "ai_method", "ai_steps", "floors", "angle")
  },
  "sparsity.grasp_examples": ({"sparsity.distribution": ("grasp",)},),
  "sparsity.synflow_rounds": ({"sparsity.distribution": ("synflow",)},),
  "dynamic.fraction": _method(*MOVING),
  "dynamic.begin": _method("gmp"),
  "dynamic.density": _method("gmp"),
  "dynamic.mean_decay": _method("rigl", "srigl"),
  "dynamic.skip_step": _method(*MOVING),
  **{
    f"dynamic.{name}": _method(*METHODS[1:])
    for name in ("every", "until", "scope", "isometry_steps", "isometry_scale")
  },
}


def list_unread(configs: Iterable[Any]) -> list[str]:
  """Lists fields that are not at their default, and that none of the runs reads.

  Of runs that belong together, such as those of a comparison, one may hold what another
  reads. Each field gives a sentence, with its value and what would read it.
  """
  flats, lines = [flatten(config) for config in configs], []
  for name, field in FIELDS.items():
    values = [flat[name] for flat in flats if flat[name] != field.default]
    if values and not any(_reads(flat, name) for flat in flats):
      why = "no network here takes it"
      if name in READ_WITH:
        why = f"it is read with {_text(READ_WITH[name])} alone"
      lines.append(f"`{name}` = {values[0]!r} changes nothing here: {why}.")
  return lines


def warn_of_unread(configs: Iterable[Any]) -> None:
  """Logs each sentence of `list_unread`."""
  for line in list_unread(configs):
    logger.warning("%s", line)


def _reads(flat: dict[str, Any], name: str) -> bool:
  section, _, leaf = name.rpartition(".")
  if section == "model" and leaf not in ("name", "options"):
    return leaf in title_and_fields(flat["model.name"])[1]
  if name not in READ_WITH:
    return True
  return any(
    all(flat[field] in allowed for field, allowed in condition.items())
    for condition in READ_WITH[name]
  )


def _text(conditions: Conditions) -> str:
  return " or ".join(
    " and ".join(f"`{field}` {', '.join(allowed)}" for field, allowed in each.items())
    for each in conditions
  )
