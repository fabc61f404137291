"""Static sparse training under any optax optimizer."""

from __future__ import annotations

import functools
import inspect
import operator
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
import optax

from eoi_jax.layouts.trees import fill_tree, named_leaves
from eoi_jax.masks.trees import check_masks
from eoi_jax.optim import _compact
from eoi_jax.optim._sharding import match_type

is_none = functools.partial(operator.is_, None)  # built in: costs no Python call


class StaticSparsityState(NamedTuple):
  """State of `static_sparsity`.

  Attributes:
    inner_state: state of the wrapped transformation.
    masks: tree like the parameters: bool leaves, True = trained; None = dense leaf.
      With `compact=True` a `LiveWeights` stands in place of each mask.
  """

  inner_state: Any
  masks: Any


def static_sparsity(
  inner: optax.GradientTransformation, masks: Any, *, compact: bool = False
) -> optax.GradientTransformationExtraArgs:
  """Keeps dead weights at exact zero through any optimizer.

  Masks the updates and the parameters before `inner`, so that norms, moments,
  clipping and decay see live weights only, and the updates after it, so that nothing
  that `inner` does (weight decay, noise, orthogonalization) moves a dead weight. A
  dead weight that is not zero when training starts is brought to zero by the first
  update. nan and inf in dead gradients are dropped.

  The masks live in the state, as copies: they travel with it through `jit`, `vmap`,
  sharding, donation and checkpoints, and are no constants of the compiled program.
  For `optax.tree_map_params` they are not parameters. Functions that read the state of
  the optimizer take `state.inner_state`, for example
  `optax.contrib.schedule_free_eval_params(state.inner_state, params)`.

  It must come last in `optax.chain`: what changes its updates afterwards keeps dead
  weights from reaching zero. Write `static_sparsity(optax.chain(...), masks)`.
  `optax.lookahead` may stand around it if dead weights start at zero, not within.
  Functions among the extra arguments (`grad_fn` of an opaque SAM) are passed on as they
  are: let them mask what they return.

  Args:
    inner: any optax transformation, or an object with `init` and `update`, such as
      `optax.MultiSteps`.
    masks: tree like the parameters: bool leaves, True = trained; None = dense leaf. Or
      a function `params -> masks`. Under `optax.partition` and `optax.masked` the
      masks of the whole tree will do.
    compact: whether `inner` sees each masked leaf as the vector of its live weights, in
      row-major order, so that its state is that much smaller. `inner` must treat a
      weight the same wherever it stands: SGD, Adam, AdamW, RMSprop, Lion and the like,
      clipping by value or by the norm of a leaf or of the tree. Others (Muon,
      Adafactor, noise, decay by the rank of a leaf) are refused by `init`, which tries
      a few steps of `inner` on a small copy of the tree, and cannot see what would
      begin after many. The masks must then be concrete: their
      counts are shapes. Not under `nnx.Optimizer`, which takes its states apart.

  Returns:
    A transformation with state `StaticSparsityState`; extra arguments of `update` are
    passed on to `inner`.

  Raises:
    ValueError: if `inner` is no optax transformation; from `init`, if structures,
      shapes or dtypes of the masks do not fit the parameters (the leaf is named), or
      `inner` does not work with `compact`.

  Example:
    >>> params = {"w": jnp.array([1.0, 0.0])}
    >>> tx = static_sparsity(optax.sgd(0.1, 0.9), {"w": jnp.array([True, False])})
    >>> updates, state = tx.update({"w": jnp.ones(2)}, tx.init(params), params)
    >>> optax.apply_updates(params, updates)["w"].tolist()[1]
    0.0
  """
  inner = as_transformation(inner)

  def init_fn(params):
    used = fit_masks(params, masks, copy=not compact)
    if not named_leaves(params):  # the placeholder of `optax.tree_map_params`
      return StaticSparsityState(inner.init(params), used)
    if not compact:
      return StaticSparsityState(inner.init(keep_live(used, params)), used)
    live = _compact.find_live(used)
    _compact.check_elementwise(inner, params, live)
    return StaticSparsityState(inner.init(_compact.gather(live, params)), live)

  def update_fn(updates, state, params=None, **extra_args):
    step = _compact.update if compact else masked_update
    updates, inner_state = step(
      inner, updates, state.inner_state, params, state.masks, **extra_args
    )
    return updates, StaticSparsityState(inner_state, state.masks)

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def as_transformation(inner: Any) -> optax.GradientTransformationExtraArgs:
  """Whatever has `init` and `update`, as a transformation that takes extra arguments.

  Raises:
    ValueError: if `inner` lacks one of them.
  """
  if not all(callable(getattr(inner, name, None)) for name in ("init", "update")):
    raise ValueError(
      f"`inner` must be an optax transformation (init, update), got {inner!r}."
    )
  parameters = inspect.signature(inner.update).parameters
  if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
    return optax.GradientTransformationExtraArgs(inner.init, inner.update)
  known = [*parameters][3:]

  def update_fn(updates, state, params=None, **extra_args):
    extra_args = {name: extra_args[name] for name in known if name in extra_args}
    return inner.update(updates, state, params, **extra_args)

  return optax.GradientTransformationExtraArgs(inner.init, update_fn)


def fit_masks(params: Any, masks: Any, *, copy: bool = True) -> Any:
  """Masks in the tree of `params`, checked.

  Args:
    params: tree of arrays or shape-dtype structs; masked nodes in it hide the masks at
      and below their place.
    masks: tree with the names of `params`: bool leaves or None; or a function of
      `params`.
    copy: whether the masks are copied, with the sharding of their leaf and varying over
      the same manual axes.

  Returns:
    Tree like `params`, with bool leaves; None = dense leaf.

  Raises:
    ValueError: if names, shapes or dtypes do not fit; the leaf is named.
  """
  if callable(masks) and jax.tree_util.all_leaves([masks]):
    masks = masks(params)
  leaves = named_leaves(params)
  if not leaves:
    return masks
  hidden = [n for n, x in leaves.items() if isinstance(x, optax.MaskedNode)]
  if hidden:
    below = tuple(f"{name}/" for name in hidden)
    given = named_leaves(masks).items()
    masks = dict.fromkeys(hidden) | {
      name: mask
      for name, mask in given
      if name not in hidden and not name.startswith(below)
    }
  fitted = {
    name: _placed(mask, leaves[name]) if copy else mask
    for name, mask in check_masks(params, masks).items()
    if mask is not None
  }
  return fill_tree(params, fitted)


def _placed(mask: Any, leaf: Any) -> Any:
  """A copy of a mask, laid out as its leaf is where types say how."""
  if isinstance(mask, jax.ShapeDtypeStruct):
    return mask
  if _is_concrete(leaf) and leaf.committed and not isinstance(mask, jax.core.Tracer):
    if not _is_concrete(mask) or mask.sharding != leaf.sharding:
      return jax.device_put(mask, leaf.sharding, may_alias=False)
  elif _is_concrete(mask) and mask.is_fully_addressable:
    mask = np.asarray(mask)  # a constant of any program
  mask = _copy(mask)
  return mask if isinstance(leaf, jax.ShapeDtypeStruct) else match_type(mask, leaf)


def _is_concrete(array: Any) -> bool:
  return isinstance(array, jax.Array) and not isinstance(array, jax.core.Tracer)


@jax.jit
def _copy(mask: Any) -> jax.Array:
  return jnp.array(mask, copy=True)


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
  live = None if params is None else keep_live(masks, params)
  updates, inner_state = inner.update(
    keep_live(masks, updates), inner_state, live, **extra_args
  )
  if params is None:
    return keep_live(masks, updates), inner_state
  return jax.tree.map(_to_zero, masks, updates, params, is_leaf=is_none), inner_state


def keep_live(masks: Any, tree: Any) -> Any:
  """Sets what is off the masks to zero: `apply_masks` of trees that fit."""
  return jax.tree.map(_keep_live, masks, tree, is_leaf=is_none)


def _keep_live(mask: Any, leaf: Any) -> Any:
  structs = isinstance(mask, jax.ShapeDtypeStruct) or isinstance(
    leaf, jax.ShapeDtypeStruct
  )
  return leaf if mask is None or structs else _where(mask, leaf)


@functools.partial(jax.jit, inline=True)
def _where(mask: jax.Array, leaf: jax.Array) -> jax.Array:
  return jnp.where(mask, leaf, jnp.zeros((), leaf.dtype))


def _to_zero(mask: Any, update: Any, leaf: Any) -> Any:
  """The update of live weights; of dead ones what takes them to exact zero.

  In the wider of both dtypes: rounded to bfloat16, `-leaf` would not do it.
  """
  if mask is None:
    return update
  dtype = jnp.promote_types(update.dtype, leaf.dtype)
  return jnp.where(mask, update.astype(dtype), -leaf.astype(dtype))
