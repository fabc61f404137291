"""SET and RigL by name."""

from __future__ import annotations

from typing import Any

import jax
import optax

from eoi_jax import _kernels as kernels_lib
from eoi_jax._kernels import LeafPredicate
from eoi_jax.optim._change import Restore
from eoi_jax.optim.dynamic import dynamic_sparsity
from eoi_jax.optim.schedule import drop_schedule


def set_evolution(
  inner: optax.GradientTransformation,
  masks: Any,
  *,
  key: jax.Array,
  num_steps: int,
  fraction: float = 0.3,
  every: int = 100,
  until: float = 0.75,
  scope: str = "layer",
  skip_step: bool = False,
  restore: Restore | None = None,
  is_stacked: LeafPredicate = kernels_lib.never_stacked,
) -> optax.GradientTransformationExtraArgs:
  """SET: drops the smallest weights and grows others at random.

  Args:
    inner: any optax transformation.
    masks: tree like the parameters: bool leaves, True = trained; None = dense leaf.
    key: a PRNG key.
    num_steps: length of the training.
    fraction: fraction of the live weights to replace, at the start of a cosine.
    every: steps from one change of the masks to the next.
    until: fraction of the training after which masks stay.
    scope: "layer" or "global", as in `dynamic_sparsity`.
    skip_step: whether the optimizer's step is left out where masks change.
    restore: `(params, masks) -> params`, done after growth: `restore_isometry`, say.
    is_stacked: `(name, leaf) -> bool`, which leaves have a leading axis of layers.

  Returns:
    A transformation with state `DynamicSparsityState`.

  Reference: Mocanu et al., 2018, Nature Communications 9, 2383; with the cosine of
  Evci et al., 2020.
  """
  schedule = drop_schedule(fraction, num_steps=num_steps, every=every, until=until)
  return dynamic_sparsity(
    inner,
    masks,
    schedule=schedule,
    grow="random",
    scope=scope,
    skip_step=skip_step,
    restore=restore,
    key=key,
    is_stacked=is_stacked,
  )


def rigl(
  inner: optax.GradientTransformation,
  masks: Any,
  *,
  num_steps: int,
  fraction: float = 0.3,
  every: int = 100,
  until: float = 0.75,
  scope: str = "layer",
  mean_decay: float = 0.0,
  skip_step: bool = False,
  restore: Restore | None = None,
  is_stacked: LeafPredicate = kernels_lib.never_stacked,
) -> optax.GradientTransformationExtraArgs:
  """RigL: drops the smallest weights and grows those of the largest gradients.

  Args:
    inner: any optax transformation.
    masks: tree like the parameters: bool leaves, True = trained; None = dense leaf.
    num_steps: length of the training.
    fraction: fraction of the live weights to replace, at the start of a cosine.
    every: steps from one change of the masks to the next.
    until: fraction of the training after which masks stay.
    scope: "layer" or "global", as in `dynamic_sparsity`.
    mean_decay: of the running mean of gradients that growth looks at, in `[0, 1)`; 0
      looks at those of one batch alone, as published.
    skip_step: whether the optimizer's step is left out where masks change, as
      published.
    restore: `(params, masks) -> params`, done after growth: `restore_isometry`, say.
    is_stacked: `(name, leaf) -> bool`, which leaves have a leading axis of layers.

  Returns:
    A transformation with state `DynamicSparsityState`.

  Reference: Evci et al., 2020, arXiv:1911.11134.
  """
  schedule = drop_schedule(fraction, num_steps=num_steps, every=every, until=until)
  return dynamic_sparsity(
    inner,
    masks,
    schedule=schedule,
    grow="gradient",
    scope=scope,
    mean_decay=mean_decay,
    skip_step=skip_step,
    restore=restore,
    is_stacked=is_stacked,
  )
