"""Trees by the names of their leaves, and the layouts of these: by hand, by shape."""

import collections
import fnmatch
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from eoi_jax import _checks
from eoi_jax.layouts.layout import (
  CONVENTIONS,
  LINE,
  Kernel,
  Layout,
  by_shape,
  check_fit,
  in_doubt,
)

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


def present_leaves(tree: Any) -> dict[str, Any]:
  """Leaves of a tree by name, but for those that are left out."""
  return {name: x for name, x in named_leaves(tree).items() if not is_leaf(x)}


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
  leaves = named_leaves(params)
  filled = [values.get(name, x if keep else None) for name, x in leaves.items()]
  return jax.tree.unflatten(jax.tree.structure(params, is_leaf=is_leaf), filled)


def match_leaves(params: Any, other: Any, argument: str) -> dict[str, Any]:
  """Leaves of `other` by name, checked to have the names of `params`.

  Its containers may be others: a dict of the names of an NNX state, say.
  """
  expected, found = named_leaves(params), named_leaves(other)
  for name in expected | found:
    if name not in found or name not in expected:
      problem = "is missing" if name in expected else "is not in `params`"
      raise ValueError(
        f"`{argument}` must have the structure of `params`: leaf {name!r} {problem}."
      )
  return found


class Layouts(Mapping[str, Layout | None]):
  """The layout of every leaf of a tree, by name; None = no kernel, stays dense.

  Made by `linen_layouts`, `nnx_layouts` or `kernel_layouts`. It is immutable and no
  pytree: plain data beside the parameters. `print` shows it as a table.
  """

  def __init__(self, entries: Mapping[str, Layout | None], shapes: Mapping[str, Any]):
    self._entries = dict(entries)
    self._shapes = dict(shapes)

  def __getitem__(self, name: str) -> Layout | None:
    return self._entries[name]

  def __iter__(self) -> Iterator[str]:
    return iter(self._entries)

  def __len__(self) -> int:
    return len(self._entries)

  def __eq__(self, other: object) -> bool:
    return isinstance(other, Layouts) and self._entries == other._entries

  def __hash__(self) -> int:
    return hash(tuple(self._entries.items()))

  def replace(self, table: Mapping[str, str | Layout | None]) -> "Layouts":
    """Layouts with other entries where a pattern of the table fits.

    The table, and its errors, are those of `kernel_layouts`.
    """
    return Layouts(self._entries | apply_table(table, self._shapes), self._shapes)

  def __repr__(self) -> str:
    rows = [
      (name, str(tuple(self._shapes[name])), "dense" if layout is None else str(layout))
      for name, layout in self._entries.items()
      if layout is not None or len(self._shapes[name]) > 1
    ]
    if not rows:
      return "Layouts(no kernels)"
    widths = [max(len(row[n]) for row in rows) for n in range(3)]
    lines = (
      "  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)) for r in rows
    )
    return "\n".join(line.rstrip() for line in lines)


def kernel_layouts(
  params: Any,
  table: Mapping[str, str | Layout | None] | None = None,
  *,
  convention: str | None = None,
) -> Layouts:
  """Layouts of a tree by hand, and by shape where the shape leaves no doubt.

  Leaves that no pattern of the table fits are read by these rules:

    - rank 0 or 1, an integer or bool array, or a bias, scale or embedding by its name:
      no kernel;
    - a weight of a module named like an embedding or a norm, or beside a bias of its
      own shape (as in a norm over several axes), is in doubt;
    - named kernel, weight or w (or a tree without names) and of rank 2: "io";
    - likewise, of rank 4, with a window of one odd size up to 11 (and perhaps 1) in
      front and no such window behind: a convolution, "wwio"; but a window over one
      input channel is in doubt: it may be depthwise (`groups` = outputs) or see a gray
      image;
    - with a `convention` these two as that says, and of rank 3, in a module named like
      a convolution, "wio" or "oiw";
    - anything else is in doubt: of higher rank, layers may be stacked.

  Args:
    params: tree of arrays or shape-dtype structs.
    table: glob pattern of leaf names to a layout, its letters, or None = no kernel. The
      last pattern that fits counts: `{"*": None, "*/query/kernel": "ioo"}`.
    convention: None; or "hwio" if kernels are `(in, out)` and `(*window, in, out)` as
      in Flax and Haiku; or "oihw" if they are `(out, in)` and `(out, in, *window)` as
      in Equinox and PyTorch.

  Returns:
    `Layouts` of every leaf of `params`.

  Raises:
    ValueError: if leaves are in doubt (all are named, with the line to write), a
      pattern fits no leaf, or a layout does not fit its leaf.

  Example:
    >>> params = {"query": {"kernel": jnp.ones((64, 4, 16)), "bias": jnp.ones((4, 16))}}
    >>> kernel_layouts(params, {"query/kernel": "ioo"})
    query/bias    (4, 16)      dense
    query/kernel  (64, 4, 16)  ioo
  """
  _checks.one_of("convention", convention, (None, *CONVENTIONS))
  leaves = present_leaves(params)
  shapes = {name: jnp.shape(leaf) for name, leaf in leaves.items()}
  known = "table | " if table else ""
  rest = f', convention="{convention}"' if convention else ""
  line = f"layouts=kernel_layouts(params, {known}{{}}{rest})"
  layouts = complete(apply_table(table or {}, shapes), leaves, convention, line=line)
  for name, layout in layouts.items():
    if layout is not None and layout.groups is None:
      Kernel(name, leaves[name], layout).groups  # noqa: B018 (raises)
  return layouts


def complete(
  given: Mapping[str, Layout | None],
  leaves: Mapping[str, Any],
  convention: str | None = None,
  *,
  doubts: Mapping[str, str] | None = None,
  reasons: Mapping[str, str] | None = None,
  line: str = LINE,
) -> Layouts:
  """Layouts of all leaves by name: those that are given, the rest by shape.

  The error names all `doubts`, with what to write in the table, their `reasons` where
  that is not the shape, and the `line` to write, with {} for the table. Groups are None
  of a window over one channel.
  """
  entries, doubts = {}, dict(doubts or {})
  for name, leaf in leaves.items():
    if name in given:
      entries[name] = given[name]
    elif name not in doubts:
      entries[name], doubt = by_shape(name, leaf, leaves, convention)
      if doubt is not None:
        doubts[name] = doubt
  if doubts:
    raise ValueError(in_doubt(doubts, leaves, reasons or {}, line))
  return Layouts(entries, {name: jnp.shape(leaf) for name, leaf in leaves.items()})


def apply_table(
  table: Mapping[str, str | Layout | None], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Layout | None]:
  """Layouts of the names that the patterns of a table fit."""
  given: dict[str, Layout | None] = {}
  if not isinstance(table, Mapping):
    raise ValueError(f"`table` must be a dict from names to layouts, got {table!r}.")
  for pattern, value in table.items():
    layout = Layout(value) if isinstance(value, str) else value
    if layout is not None and not isinstance(layout, Layout):
      raise ValueError(
        f"`table` must hold letters, a Layout or None, got {value!r} for {pattern!r}."
      )
    # A name is no pattern, even with brackets in it.
    names = [pattern] if pattern in shapes else []
    names = names or [name for name in shapes if fnmatch.fnmatchcase(name, pattern)]
    if not names:
      raise ValueError(
        f"`table` must name leaves of {[*shapes]}, got the pattern {pattern!r}."
      )
    for name in names:
      if layout is not None:
        check_fit(name, shapes[name], layout)
      given[name] = layout
  return given


def find_kernels(params: Any, layouts: Layouts | None = None) -> dict[str, Kernel]:
  """Kernels of a tree by name, in the order of its leaves.

  Args:
    params: tree of arrays or shape-dtype structs: parameters, or masks of them. The
      variables of a Linen model, `{"params": ..., ...}`, will do for its layouts.
    layouts: layouts of its leaves; None = by shape, as `kernel_layouts(params)`, but
      that groups are asked for only where they matter.

  Returns:
    Dict from name to `Kernel`; leaves that are left out (None) are absent.

  Raises:
    ValueError: if there is no kernel, a leaf is in doubt or has no entry in `layouts`,
      or a layout does not fit its leaf.
  """
  leaves = present_leaves(params)
  if layouts is None:
    layouts = complete({}, leaves)
  elif not isinstance(layouts, Layouts):
    raise ValueError(
      "`layouts` must be None or made by `kernel_layouts`, `linen_layouts` or "
      f"`nnx_layouts`, got {type(layouts).__name__}."
    )
  is_variables = isinstance(params, Mapping) and "params" in params
  kernels = {}
  for name, leaf in leaves.items():
    known = name
    if is_variables and name not in layouts:
      if not name.startswith("params/"):
        continue
      known = name.removeprefix("params/")
    if known not in layouts:
      raise ValueError(
        f"`layouts` must have an entry for every leaf, got none for {name!r}; it has "
        f"{[*layouts][:8]}{' ...' if len(layouts) > 8 else ''}."
      )
    layout = layouts[known]
    if layout is not None:
      check_fit(name, jnp.shape(leaf), layout)
      kernels[name] = Kernel(name, leaf, layout)
  if not kernels:
    raise ValueError(
      "`params` must have at least one kernel, got none among the leaves "
      f"{[*leaves][:8]}{' ...' if len(leaves) > 8 else ''}; name them: "
      '`layouts=kernel_layouts(params, {"...": "io"})`.'
    )
  return kernels
