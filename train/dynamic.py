"""Masks that change during training, by name."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import eoi_jax
from eoi_jax._kernels import LeafPredicate, never_stacked

METHODS = ("static", "set", "rigl")


class DynamicSettings(NamedTuple):
  """Plain values: hashable, so that a compiled step may depend on them.

  `configs/default.py` explains them; by default masks stay.
  """

  method: str = "static"
  fraction: float = 0.3
  every: int = 100
  until: float = 0.75
  scope: str = "layer"
  mean_decay: float = 0.0
  skip_step: bool = False
  isometry_steps: int = 0
  isometry_scale: float = 0.0


STATIC = DynamicSettings()


def dynamic_settings(config: Any) -> DynamicSettings:
  """Returns the part of a config that moves masks as a hashable value."""
  return DynamicSettings(**config.dynamic.to_dict())


def keep_sparse(
  tx: optax.GradientTransformation,
  masks: Any,
  *,
  settings: DynamicSettings,
  num_steps: int,
  key: jax.Array | None = None,
  is_stacked: LeafPredicate = never_stacked,
) -> optax.GradientTransformation:
  """Wraps an optimizer so that dead weights stay exactly zero, and masks may move.

  Args:
    tx: the optimizer.
    masks: tree like the parameters; bool leaves, True = trained, None = dense.
    settings: whether and how masks move.
    num_steps: length of the training.
    key: a PRNG key; SET needs it.
    is_stacked: `(name, leaf) -> bool`, which leaves hold several layers.

  Returns:
    An optax transformation with the masks in its state.
  """
  if settings.method == "static":
    return eoi_jax.static_sparsity(tx, masks)
  restore = None
  if settings.isometry_steps:
    restore = functools.partial(
      eoi_jax.restore_isometry,
      scale=settings.isometry_scale or None,
      num_steps=settings.isometry_steps,
      is_stacked=is_stacked,
    )
  options: dict[str, Any] = {
    "num_steps": num_steps,
    "fraction": settings.fraction,
    "every": settings.every,
    "until": settings.until,
    "scope": settings.scope,
    "skip_step": settings.skip_step,
    "restore": restore,
    "is_stacked": is_stacked,
  }
  if settings.method == "set":
    assert key is not None
    return eoi_jax.set_evolution(tx, masks, key=key, **options)
  return eoi_jax.rigl(tx, masks, mean_decay=settings.mean_decay, **options)


def count_grown(opt_state: Any) -> dict[str, jax.Array]:
  """Counts the weights that were grown since the start.

  Args:
    opt_state: of `keep_sparse`, of one seed or of several.

  Returns:
    `{"grown_weights": number}`, one for each seed; empty where masks stay.
  """
  if not isinstance(opt_state, eoi_jax.DynamicSparsityState):
    return {}
  return {"grown_weights": _total(opt_state.num_grown)}


@jax.jit
def _total(num_grown: Any) -> jax.Array:
  totals = [jnp.sum(counts, axis=-1) for counts in jax.tree.leaves(num_grown)]
  return jnp.sum(jnp.stack(totals), axis=0)
