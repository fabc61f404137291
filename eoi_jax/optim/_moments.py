"""Moments of weights that a mask loses or gains start anew, in any optax state."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from eoi_jax import _kernels as kernels_lib

_NOBODY = "//"  # no name of a leaf


def reset_moments(
  inner: optax.GradientTransformation, inner_state: Any, params: Any, changed: Any
) -> Any:
  """Sets moments to what `inner.init(params)` gives, where a mask changed.

  Which parts of the state belong to which parameter is found by
  `optax.tree_map_params`; where the transformation cannot say, by name: a leaf of the
  state whose path ends in that of a parameter. A leaf that has the shape of its
  parameter, or that with leading axes (a history, say), is reset entry by entry; what
  is shared between entries (factored moments, norms of a layer) stays.

  Args:
    inner: the transformation.
    inner_state: its state.
    params: tree of arrays, the parameters after the change.
    changed: tree like `params`: bool leaves, True = start anew; None = nothing.

  Returns:
    A state of the structure and dtypes of `inner_state`.
  """
  owners = _owners(inner, inner_state, params)
  changed_of = {
    name: mask
    for name, mask in kernels_lib.named_leaves(changed).items()
    if not kernels_lib.is_leaf(mask)
  }

  def reset(owner, old, new):
    mask = changed_of.get(owner)
    if mask is None or jnp.shape(old)[-mask.ndim :] != mask.shape:
      return old
    mask = jnp.broadcast_to(mask, old.shape)
    return jnp.where(mask, jnp.asarray(new, old.dtype), old)

  return jax.tree.map(reset, owners, inner_state, inner.init(params))


def _owners(inner, inner_state: Any, params: Any) -> Any:
  """Tree like the state: at each leaf the name of its parameter, or `_NOBODY`."""
  names = kernels_lib.fill_tree(params, {n: n for n in _arrays(params)}, keep=True)
  try:
    return optax.tree_map_params(
      inner,
      lambda leaf, name: leaf if kernels_lib.is_leaf(leaf) else name,
      inner_state,
      names,
      transform_non_params=lambda leaf: jax.tree.map(lambda _: _NOBODY, leaf),
      is_leaf=kernels_lib.is_leaf,
    )
  except Exception:  # `init` may fail in any way on optax's placeholder
    found = {path: _owner(path, names) for path in _arrays(inner_state)}
    return kernels_lib.fill_tree(inner_state, found, keep=True)


def _arrays(tree: Any) -> list[str]:
  """Names of the leaves that are not left out."""
  leaves = kernels_lib.named_leaves(tree).items()
  return [name for name, leaf in leaves if not kernels_lib.is_leaf(leaf)]


def _owner(path: str, names: Any) -> str:
  """The longest name that the path ends in."""
  ends = [n for n in _arrays(names) if not n or f"/{path}".endswith(f"/{n}")]
  return max(ends, key=len, default=_NOBODY)
