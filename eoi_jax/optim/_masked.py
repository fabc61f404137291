"""What static and moving masks share: updates of live weights alone, layouts of arrays.

Arrays are laid out as others are: explicit shardings, manual axes of `shard_map`.
"""

import functools
import inspect
import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from eoi_jax.layouts.trees import fill_tree, leaf_names, match_leaves, named_leaves
from eoi_jax.masks.trees import check_masks, is_concrete, is_traced

is_none = functools.partial(operator.is_, None)  # built in: costs no Python call


def as_transformation(inner: Any) -> optax.GradientTransformationExtraArgs:
  """What has `init` and `update`, as a transformation that takes extra arguments."""
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
  """Masks, or a function of `params` that gives them, in the tree of `params`.

  Masked nodes in `params` hide the masks at and below their place. Masks are copied, if
  at all, with the sharding of their leaf and varying over the same manual axes.

  Raises:
    ValueError: if names, shapes or dtypes do not fit, or a weight off the masks is
      not finite, which no update takes to zero; the leaf is named.
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
  fitted = check_masks(params, masks)
  for name, mask in fitted.items():
    _check_dead(name, leaves[name], mask)
    fitted[name] = _placed(mask, leaves[name]) if copy else mask
  return fill_tree(params, fitted)


def _placed(mask: Any, leaf: Any) -> Any:
  """A copy of a mask, laid out as its leaf is where types say how."""
  if isinstance(mask, jax.ShapeDtypeStruct):
    return mask
  if is_concrete(leaf) and leaf.committed and not is_traced(mask):
    if not is_concrete(mask) or mask.sharding != leaf.sharding:
      return jax.device_put(mask, leaf.sharding, may_alias=False)
  elif is_concrete(mask) and mask.is_fully_addressable:
    mask = np.asarray(mask)  # a constant of any program
  mask = _copy(mask)
  return mask if isinstance(leaf, jax.ShapeDtypeStruct) else match_type(mask, leaf)


def _check_dead(name: str, leaf: Any, mask: Any) -> None:
  """Refuses known weights off the mask that are not finite."""
  if not all(isinstance(x, np.ndarray) or is_concrete(x) for x in (leaf, mask)):
    return
  if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
    return
  values = np.asarray(leaf)
  if np.isfinite(values).all():
    return
  for value in values[~np.isfinite(values) & ~np.asarray(mask)][:1]:
    raise ValueError(
      f"`params` must be finite off the masks, got {value} in {name!r}; "
      "`apply_masks(params, masks)` first."
    )


@jax.jit
def _copy(mask: Any) -> jax.Array:
  return jnp.array(mask, copy=True)


def masked_update(inner, updates, inner_state, params, masks, **extra_args):
  """One update of `inner`, which sees live weights only, and its new state.

  Dead weights of `params`, if these are given, are taken to zero.
  """
  live = None if params is None else keep_live(masks, params)
  updates, inner_state = inner.update(
    keep_live(masks, updates), inner_state, live, **extra_args
  )
  if params is None:
    return keep_live(masks, updates), inner_state
  return jax.tree.map(_to_zero, masks, updates, params, is_leaf=is_none), inner_state


def check_trees(
  masks: Any, updates: Any, params: Any, *, is_leaf: Any = is_none, front: bool = False
) -> None:
  """Checks that updates, and parameters if given, fit masks in structure and shape.

  `is_leaf` tells the leaves of `masks`, which have a shape or are None. With `front`
  updates may have axes in front: of examples, for `inner` to sum.
  """
  leaves, treedef = jax.tree.flatten(masks, is_leaf=is_leaf)
  for argument, tree in (("updates", updates), ("params", params)):
    if tree is None:
      continue
    try:
      given = treedef.flatten_up_to(tree)
    except ValueError:
      match_leaves(treedef.unflatten(range(len(leaves))), tree, argument)
      raise ValueError(
        f"`{argument}` must have the containers that `params` had in `init`, got a "
        f"{type(tree).__name__} with others."
      ) from None
    for n, (mask, leaf) in enumerate(zip(leaves, given, strict=True)):
      if mask is None:
        continue
      shape = end = getattr(leaf, "shape", None)
      if front and shape and argument == "updates":
        end = shape[-len(mask.shape) :]
      if end != mask.shape:
        paths, _ = jax.tree_util.tree_flatten_with_path(masks, is_leaf=is_leaf)
        raise ValueError(
          f"`{argument}` must have the shapes of the masks, {mask.shape} for "
          f"{leaf_names([path for path, _ in paths])[n]!r}, got "
          f"{type(leaf).__name__ if shape is None else shape}."
        )


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


def match_type(array: jax.Array, like: Any) -> jax.Array:
  """Gives an array the explicit sharding and the varying manual axes of another."""
  array, sharding = match_axes(array, like), jax.typeof(like).sharding
  return jax.sharding.reshard(array, sharding) if any(sharding.spec) else array


def gathered(array: Any) -> jax.Array:
  """The array without explicit sharding, for what looks at all of it."""
  array = jnp.asarray(array)
  sharding = jax.typeof(array).sharding
  if not any(sharding.spec):
    return array
  return jax.sharding.reshard(array, jax.NamedSharding(sharding.mesh, jax.P()))


def match_axes(array: jax.Array, like: Any) -> jax.Array:
  """Lets an array vary over the manual axes (of `jax.shard_map`) of another."""
  own, wanted = (jax.typeof(x).manual_axis_type.varying for x in (array, like))
  axes = tuple(wanted - own)
  return jax.lax.pcast(array, axes, to="varying") if axes else array
