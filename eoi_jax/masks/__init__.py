"""Masks as trees of bools, where the density goes, and the scores that decide it."""

from eoi_jax.masks.allocation import allocate, erk, uniform
from eoi_jax.masks.saliency import (
  global_masks,
  grasp_scores,
  magnitude_scores,
  random_scores,
  snip_scores,
)
from eoi_jax.masks.synflow import synflow_masks, synflow_scores
from eoi_jax.masks.trees import (
  DeadUnits,
  MaskCount,
  apply_masks,
  count_masks,
  dead_units,
  kernel_masks,
  mask_densities,
  random_masks,
)

__all__ = [
  "DeadUnits",
  "MaskCount",
  "allocate",
  "apply_masks",
  "count_masks",
  "dead_units",
  "erk",
  "global_masks",
  "grasp_scores",
  "kernel_masks",
  "magnitude_scores",
  "mask_densities",
  "random_masks",
  "random_scores",
  "snip_scores",
  "synflow_masks",
  "synflow_scores",
  "uniform",
]
