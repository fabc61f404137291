"""The first step of weights that were just grown."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from eoi_jax import _kernels as kernels_lib

# In steps of the layer's other weights. Gradients alone differ by far less; a division
# by a second moment that is still zero gives 1e8 and more.
_LIMIT = 1e3


def withhold_wild(was_due: jax.Array, updates: Any, params: Any, masks: Any) -> Any:
  """Leaves out the first step of a new weight where it is beyond all measure.

  A few optimizers divide by the second moment of the step before (ACProp). That of a
  weight that was dead so far is zero, and its first step would end the training. The
  weight then starts one step later, when its moments have seen a gradient.

  Args:
    was_due: bool scalar, whether masks changed in the step before.
    updates: tree like `params`: what the optimizer would do.
    params: tree of arrays; new weights are those that are alive and zero.
    masks: tree like `params`: bool leaves, True = trained; None = dense leaf.

  Returns:
    Tree like `updates`.
  """
  return jax.lax.cond(was_due, _withhold, lambda u, *_: u, updates, params, masks)


def _withhold(updates: Any, params: Any, masks: Any) -> Any:
  weights, mask_of = map(kernels_lib.named_leaves, (params, masks))
  tamed = {
    name: _tame(update, weights[name], mask_of[name])
    for name, update in kernels_lib.named_leaves(updates).items()
    if not kernels_lib.is_leaf(update) and mask_of[name] is not None
  }
  return kernels_lib.fill_tree(updates, tamed, keep=True)


def _tame(update: jax.Array, weights: jax.Array, mask: jax.Array) -> jax.Array:
  new = mask & (weights == 0)
  size = jnp.abs(update)
  others = jnp.max(jnp.where(mask & ~new, size, jnp.zeros((), size.dtype)))
  sane = size <= jnp.asarray(_LIMIT, size.dtype) * others
  return jnp.where(new & ~sane, jnp.zeros((), update.dtype), update)
