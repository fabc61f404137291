"""Trees by name: leaves as a dict, and a dict back into a tree."""

from __future__ import annotations

from typing import Any

import jax
import optax

# Attributes that wrap an array (of an NNX variable, say): no part of its name.
_WRAPPERS = ("value", "raw_value")


def is_leaf(node: Any) -> bool:
  """None and optax's masked nodes stand where a leaf is left out."""
  return node is None or isinstance(node, optax.MaskedNode)


def leaf_name(path: tuple[Any, ...]) -> str:
  """Name of a leaf: the keys of its path joined by "/", without wrappers."""
  while path and getattr(path[-1], "name", None) in _WRAPPERS:
    path = path[:-1]
  return jax.tree_util.keystr(path, simple=True, separator="/")


def named_leaves(tree: Any) -> dict[str, Any]:
  """Leaves of a tree by name, in order, with None where a leaf is left out.

  Raises:
    ValueError: if two leaves have one name.
  """
  leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_leaf)
  named = {leaf_name(path): leaf for path, leaf in leaves}
  if len(named) < len(leaves):
    names = [leaf_name(path) for path, _ in leaves]
    twice = next(name for name in names if names.count(name) > 1)
    raise ValueError(
      f"leaves must differ in their joined path, got two of the name {twice!r}: keys "
      'must not contain "/".'
    )
  return named


def fill_tree(params: Any, values: dict[str, Any], *, keep: bool = False) -> Any:
  """Tree like `params` with `values` at the named leaves.

  Args:
    params: the tree that gives the structure.
    values: new leaves by name.
    keep: whether other leaves keep their value; None replaces them otherwise.

  Returns:
    A tree of the structure of `params`.
  """
  paths, treedef = jax.tree_util.tree_flatten_with_path(params, is_leaf=is_leaf)
  leaves = [values.get(leaf_name(path), leaf if keep else None) for path, leaf in paths]
  return jax.tree.unflatten(treedef, leaves)


def match_leaves(params: Any, other: Any, argument: str) -> dict[str, Any]:
  """Leaves of `other` by name, checked to have the names of `params`.

  Args:
    params: the tree that gives the structure.
    other: tree with the same names, None where a leaf has no counterpart. Its
      containers may be others: a dict of the names of an NNX state, say.
    argument: name of `other` for the error.

  Returns:
    Dict from the names of `params` to leaves of `other`.

  Raises:
    ValueError: if the names differ; the first odd leaf is named.
  """
  expected, found = named_leaves(params), named_leaves(other)
  for name in expected:
    if name not in found:
      raise ValueError(
        f"`{argument}` must have the structure of `params`: leaf {name!r} is missing."
      )
  for name in found:
    if name not in expected:
      raise ValueError(
        f"`{argument}` must have the structure of `params`: leaf {name!r} is not in "
        "`params`."
      )
  return found
