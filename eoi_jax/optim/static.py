"""Optax transformations that keep a network sparse."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import optax

from eoi_jax import _kernels as kernels_lib
from eoi_jax.masks.trees import apply_masks, check_masks


class StaticSparsityState(NamedTuple):
  """State of `static_sparsity`.

  Attributes:
    inner_state: state of the wrapped transformation.
    masks: tree like the parameters: bool leaves, True = trained; None = dense leaf.
  """

  inner_state: Any
  masks: Any


def static_sparsity(
  inner: optax.GradientTransformation, masks: Any
) -> optax.GradientTransformationExtraArgs:
  """Keeps dead weights at exact zero through any optimizer.

  Masks the updates and the parameters before `inner`, so that norms, moments,
  clipping and decay see live weights only, and the updates after it, so that nothing
  that `inner` does (weight decay, noise, orthogonalization) moves a dead weight. A
  dead weight that is not zero when training starts is brought to zero by the first
  update. nan and inf in dead gradients are dropped.

  The masks live in the state: they travel with it through `jit`, `vmap`, sharding and
  checkpoints, and are no constants of the compiled program.

  Args:
    inner: any optax transformation.
    masks: tree like the parameters: bool leaves, True = trained; None = dense leaf.

  Returns:
    A transformation with state `StaticSparsityState`; extra arguments of `update` are
    passed on to `inner`.

  Raises:
    ValueError: if `inner` is no optax transformation; from `init`, if structures,
      shapes or dtypes of the masks do not fit the parameters; the leaf is named.

  Example:
    >>> params = {"w": jnp.array([1.0, 0.0])}
    >>> tx = static_sparsity(optax.sgd(0.1, 0.9), {"w": jnp.array([True, False])})
    >>> updates, state = tx.update({"w": jnp.ones(2)}, tx.init(params), params)
    >>> optax.apply_updates(params, updates)["w"].tolist()[1]
    0.0
  """
  if not isinstance(inner, optax.GradientTransformation):
    raise ValueError(f"`inner` must be an optax.GradientTransformation, got {inner!r}.")
  inner = optax.with_extra_args_support(inner)

  def init_fn(params):
    used = kernels_lib.fill_tree(params, check_masks(params, masks))
    return StaticSparsityState(inner.init(apply_masks(params, used)), used)

  def update_fn(updates, state, params=None, **extra_args):
    updates, inner_state = masked_update(
      inner, updates, state.inner_state, params, state.masks, **extra_args
    )
    return updates, StaticSparsityState(inner_state, state.masks)

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def masked_update(
  inner: optax.GradientTransformationExtraArgs,
  updates: Any,
  inner_state: Any,
  params: Any,
  masks: Any,
  **extra_args: Any,
) -> tuple[Any, Any]:
  """One update of `inner` that sees live weights only and moves no others.

  Args:
    inner: a transformation that takes extra arguments.
    updates: tree like `params`.
    inner_state: state of `inner`.
    params: tree of arrays, or None.
    masks: tree like `params`: bool leaves, True = trained; None = dense leaf.
    **extra_args: passed on to `inner`.

  Returns:
    Updates, which take dead weights to zero, and the new state of `inner`.
  """
  live_params = None if params is None else apply_masks(params, masks)
  updates, inner_state = inner.update(
    apply_masks(updates, masks), inner_state, live_params, **extra_args
  )
  return _keep_zero(updates, params, masks), inner_state


def _keep_zero(updates: Any, params: Any, masks: Any) -> Any:
  """Replaces the updates of dead weights by what takes them to zero."""
  if params is None:
    return apply_masks(updates, masks)
  weights = kernels_lib.named_leaves(params)
  mask_of = kernels_lib.named_leaves(masks)
  kept = {
    name: jnp.where(mask_of[name], update, -weights[name].astype(update.dtype))
    for name, update in kernels_lib.named_leaves(updates).items()
    if not kernels_lib.is_leaf(update) and mask_of[name] is not None
  }
  return kernels_lib.fill_tree(updates, kept, keep=True)
