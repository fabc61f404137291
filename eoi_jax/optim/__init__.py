"""Optax transformations that keep a network sparse, with static and moving masks."""

from eoi_jax.optim.dynamic import DynamicSparsityState, current_masks, dynamic_sparsity
from eoi_jax.optim.recipes import rigl, set_evolution
from eoi_jax.optim.restore import restore_isometry
from eoi_jax.optim.rules import evolve_masks
from eoi_jax.optim.schedule import drop_schedule
from eoi_jax.optim.static import StaticSparsityState, static_sparsity

__all__ = [
  "DynamicSparsityState",
  "StaticSparsityState",
  "current_masks",
  "drop_schedule",
  "dynamic_sparsity",
  "evolve_masks",
  "restore_isometry",
  "rigl",
  "set_evolution",
  "static_sparsity",
]
