"""Optax transformations that keep a network sparse, with static and moving masks."""

from eoi_jax.optim._compact import LiveWeights
from eoi_jax.optim.dynamic import (
  DynamicSparsityState,
  current_masks,
  drop_schedule,
  dynamic_sparsity,
  gradual_pruning,
  rigl,
  set_evolution,
)
from eoi_jax.optim.restore import restore_isometry
from eoi_jax.optim.rules import evolve_masks
from eoi_jax.optim.static import StaticSparsityState, static_sparsity

__all__ = [
  "DynamicSparsityState",
  "LiveWeights",
  "StaticSparsityState",
  "current_masks",
  "drop_schedule",
  "dynamic_sparsity",
  "evolve_masks",
  "gradual_pruning",
  "restore_isometry",
  "rigl",
  "set_evolution",
  "static_sparsity",
]
