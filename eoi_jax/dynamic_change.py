"""One change of the masks, in an update that a transformation has prepared."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from eoi_jax import kernels as kernels_lib
from eoi_jax.dynamic_moments import reset_moments
from eoi_jax.dynamic_rules import Rules, evolve_masks
from eoi_jax.kernels import LeafPredicate
from eoi_jax.masks import apply_masks

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
    dense: the dense gradients.
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
    num_grown: number of grown weights, int32.
  """

  updates: Any
  inner_state: Any
  masks: Any
  num_grown: jax.Array


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
  do = functools.partial(_change, change)

  @jax.custom_batching.custom_vmap
  def run(due, step):
    return jax.lax.cond(due, do, _keep, step)

  @run.def_vmap
  def _(axis_size, in_batched, due, step):
    due, step = jax.tree.map(
      lambda x, is_batched: x if is_batched else _repeat(x, axis_size),
      (due, step),
      tuple(in_batched),
    )

    def some(due, step):
      return jax.vmap(functools.partial(_where, do))(due, step)

    def none(due, step):
      del due
      return jax.vmap(_keep)(step)

    outcome = jax.lax.cond(jnp.any(due), some, none, due, step)
    return outcome, jax.tree.map(lambda _: True, outcome)

  return run(due, step)


def _repeat(x: jax.Array, size: int) -> jax.Array:
  return jnp.broadcast_to(x, (size, *jnp.shape(x)))


def _where(do, due, step: Step) -> Outcome:
  return jax.tree.map(functools.partial(jnp.where, due), do(step), _keep(step))


def _keep(step: Step) -> Outcome:
  zero = jnp.zeros((), jnp.int32)
  return Outcome(step.updates, step.inner_state, step.state.masks, zero)


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
  grown = [jnp.sum(a & b, dtype=jnp.int32) for a, b in _pairs(changed, new)]
  return Outcome(
    updates,
    reset_moments(change.inner, inner_state, weights, changed),
    new,
    sum(grown, jnp.zeros((), jnp.int32)),
  )


def _pairs(left: Any, right: Any):
  return zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True)


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
