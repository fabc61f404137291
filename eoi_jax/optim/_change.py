"""One change of the masks, in an update that a transformation has prepared."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from eoi_jax import _kernels as kernels_lib
from eoi_jax._kernels import LeafPredicate
from eoi_jax.masks.trees import apply_masks
from eoi_jax.optim._moments import reset_moments
from eoi_jax.optim.rules import Rules, evolve_masks

# `(params, masks) -> params`.
Restore = Callable[[Any, Any], Any]


class Change(NamedTuple):
  """How masks change: nothing in it is an array.

  Attributes:
    inner: the optimizer.
    rules: who is dropped, who is grown.
    skip_step: whether the optimizer's step is left out where masks change.
    restore: what is done to the weights afterwards, or None.
    impl: kind of the PRNG key, None without one.
    is_stacked: `(name, leaf) -> bool`, which leaves have a leading axis of layers.
  """

  inner: optax.GradientTransformationExtraArgs
  rules: Rules
  skip_step: bool
  restore: Restore | None
  impl: Any
  is_stacked: LeafPredicate


class Step(NamedTuple):
  """An update of the optimizer before anything is done to the masks.

  Attributes:
    updates: what the optimizer would do; live weights move only.
    inner_state: its state after that.
    dense: the dense gradients, or their running mean.
    params: the parameters before the update.
    state: `DynamicSparsityState` before the update.
    count: number of updates, this one included.
    fraction: fraction of the live weights to replace.
  """

  updates: Any
  inner_state: Any
  dense: Any
  params: Any
  state: Any
  count: jax.Array
  fraction: jax.Array


class Outcome(NamedTuple):
  """Updates and state that follow from a `Step`.

  Attributes:
    updates: what is done to the parameters.
    inner_state: the optimizer's state.
    masks: the masks.
    num_grown: tree like `masks`: weights grown so far, int32 `[layers]`.
  """

  updates: Any
  inner_state: Any
  masks: Any
  num_grown: Any


def change_if(change: Change, due: jax.Array, step: Step) -> Outcome:
  """Changes the masks where `due`; under `vmap` no member pays if none is due.

  Args:
    change: how.
    due: bool scalar.
    step: the optimizer's update.

  Returns:
    What to do, and the state after it.
  """
  step = step._replace(updates=_wide(step.updates, step.params, step.state.masks))

  def maybe(step):
    return jax.tree.map(
      functools.partial(jnp.where, due), _change(change, step), _keep(step)
    )

  return jax.lax.cond(_any_member(due), maybe, _keep, step)


@jax.custom_batching.custom_vmap
def _any_member(due: jax.Array) -> jax.Array:
  """Whether any member of a `vmap` is due: one answer, so `cond` stays a branch."""
  return due


@_any_member.def_vmap
def _(axis_size, in_batched, due):
  del axis_size, in_batched
  return _any_member(jnp.any(due)), False


def _keep(step: Step) -> Outcome:
  state = step.state
  return Outcome(step.updates, step.inner_state, state.masks, state.num_grown)


def _change(change: Change, step: Step) -> Outcome:
  """Does the step, drops, grows, restores, and starts moments anew."""
  updates, inner_state = step.updates, step.inner_state
  if change.skip_step:
    updates = jax.tree.map(jnp.zeros_like, updates)
    inner_state = step.state.inner_state
  old = step.state.masks
  weights = apply_masks(optax.apply_updates(step.params, updates), old)
  new = evolve_masks(
    _step_key(change, step),
    *(weights, step.dense, old, step.fraction),
    **change.rules._asdict(),
    is_stacked=change.is_stacked,
  )
  weights = apply_masks(weights, new)
  if change.restore is not None:
    weights = apply_masks(change.restore(weights, new), new)
  changed = jax.tree.map(jnp.logical_xor, old, new)
  updates = _updates_to(weights, step.params, updates, changed, new, change.restore)
  num_grown = jax.tree.map(_add_grown, step.state.num_grown, changed, new)
  inner_state = reset_moments(change.inner, inner_state, weights, changed)
  return Outcome(updates, inner_state, new, num_grown)


def _add_grown(num_grown: jax.Array, changed: jax.Array, masks: jax.Array) -> jax.Array:
  layers = (changed & masks).reshape(len(num_grown), -1)
  return num_grown + jnp.sum(layers, axis=1, dtype=jnp.int32)


def _step_key(change: Change, step: Step) -> jax.Array | None:
  if change.impl is None:
    return None
  key = jax.random.wrap_key_data(step.state.key_data, impl=change.impl)
  return jax.random.fold_in(key, step.count)


def _updates_to(weights, params, updates, changed, masks, restore) -> Any:
  """Updates of masked leaves that lead to `weights`, to exact zero off the masks.

  Weights that nothing but the optimizer moved get its update to the last bit.
  """
  before, after = kernels_lib.named_leaves(params), kernels_lib.named_leaves(weights)
  changed = kernels_lib.named_leaves(changed)
  moved = {}
  for name, mask in _masked(updates, masks):
    update = kernels_lib.named_leaves(updates)[name]
    to_target = after[name].astype(update.dtype) - before[name].astype(update.dtype)
    kept = mask & ~changed[name] if restore is None else jnp.zeros_like(mask)
    moved[name] = jnp.where(kept, update, to_target)
  return kernels_lib.fill_tree(updates, moved, keep=True)


def _masked(updates: Any, masks: Any) -> list[tuple[str, jax.Array]]:
  """Names and masks of the leaves that are there and masked."""
  present = kernels_lib.named_leaves(updates)
  return [
    (name, mask)
    for name, mask in kernels_lib.named_leaves(masks).items()
    if mask is not None and not kernels_lib.is_leaf(present[name])
  ]


def _wide(updates: Any, params: Any, masks: Any) -> Any:
  """Updates of masked leaves in a dtype that can take a weight to exact zero."""
  leaves, weights = kernels_lib.named_leaves(updates), kernels_lib.named_leaves(params)
  wide = {}
  for name, _ in _masked(updates, masks):
    dtype = jnp.promote_types(leaves[name].dtype, weights[name].dtype)
    wide[name] = leaves[name].astype(dtype)
  return kernels_lib.fill_tree(updates, wide, keep=True)
