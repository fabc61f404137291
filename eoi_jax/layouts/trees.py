"""Trees of parameters by the names of their leaves."""

from __future__ import annotations

import collections
from collections.abc import Sequence
from typing import Any

import jax
import optax

# Attributes that wrap an array (of an NNX variable, say): no part of its name.
_WRAPPERS = ("value", "raw_value")


def is_leaf(node: Any) -> bool:
  """None and optax's masked nodes stand where a leaf is left out."""
  return node is None or isinstance(node, optax.MaskedNode)


def leaf_names(paths: Sequence[tuple[Any, ...]]) -> list[str]:
  """Names of the leaves of a tree: keys of their paths joined by "/".

  An attribute `value` that is alone in its node wraps an array, and is left out.
  """
  children: collections.Counter = collections.Counter()
  if any(map(_is_wrapper, paths)):
    children.update(p[:end] for p in paths for end in range(len(p)))
  names = []
  for path in paths:
    while _is_wrapper(path) and children[path[:-1]] == 1:
      path = path[:-1]
    names.append(jax.tree_util.keystr(path, simple=True, separator="/"))
  return names


def _is_wrapper(path: tuple[Any, ...]) -> bool:
  return bool(path) and getattr(path[-1], "name", None) in _WRAPPERS


def named_leaves(tree: Any) -> dict[str, Any]:
  """Leaves of a tree by name.

  Args:
    tree: any tree.

  Returns:
    Dict from name to leaf, in the order of the tree; None where a leaf is left out.

  Raises:
    ValueError: if two leaves have one name.

  Example:
    >>> named_leaves({"a": {"w": 1.0, "b": None}})
    {'a/b': None, 'a/w': 1.0}
  """
  leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_leaf)
  names = leaf_names([path for path, _ in leaves])
  named = {name: leaf for name, (_, leaf) in zip(names, leaves, strict=True)}
  if len(named) < len(leaves):
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

  Example:
    >>> fill_tree({"a": {"w": 1.0, "b": 2.0}}, {"a/w": 3.0}, keep=True)
    {'a': {'b': 2.0, 'w': 3.0}}
  """
  paths, treedef = jax.tree_util.tree_flatten_with_path(params, is_leaf=is_leaf)
  names = leaf_names([path for path, _ in paths])
  pairs = zip(names, paths, strict=True)
  leaves = [values.get(name, leaf if keep else None) for name, (_, leaf) in pairs]
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
