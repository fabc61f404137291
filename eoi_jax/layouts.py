"""Layouts: how each leaf of a tree of parameters is a batch of matrices, or none.

An array does not say what its axes mean: `(32, 4, 8)` may be a query projection of
attention, a one-dimensional convolution or a stack of 32 layers. A `Layout` says it,
with one letter an axis:

    i  input      merged with the other inputs, in order
    o  output     merged likewise
    w  window     of a convolution
    s  stack      independent kernels: layers of a scan, experts, heads

    "io"    dense kernel of Flax or Haiku      "oi"    of PyTorch and Equinox
    "wwio"  convolution of Flax (HWIO)         "oiww"  of PyTorch and Equinox (OIHW)
    "ioo"   query, key or value of attention   "iio"   output projection of attention
    "sio"   scanned layers, experts            "iiio"  patches: stride = window

`Layouts` holds one for every leaf of a tree. It is read off a Flax module
(`linen_layouts`, `nnx_layouts`), written by hand, or taken from shapes where those
leave no doubt (`kernel_layouts`). What is in doubt is an error, never a guess.
"""

from __future__ import annotations

import collections
import dataclasses
import fnmatch
import functools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

# Names of leaves that are kernels, and of leaves of rank 2 or more that are none.
_KERNELS = ("kernel", "weight", "w")
_OTHERS = ("bias", "scale")
# None of these beside a kernel or in a norm; of rank 2 or more, matrices may have these
# names, too.
_BESIDE = ("b", "offset", "gamma", "beta", "mean", "var")
_EMBEDDING = re.compile(r"embed|(^|_)(emb|wte|wpe|vocab)(_|$)")
_NORM = re.compile(r"norm|(^|_)(ln|rms|bn|gn)(_|\d|$)")
# Names of leaves that are rarely kernels, for the error.
_NO_KERNEL = re.compile(r"^pos|^cls|token|table|^a_log$|^grn|gamma|beta|scale|bias")
# Sizes that a window may have where only the shape tells.
_WINDOWS = (1, 3, 5, 7, 9, 11)
_CONVENTIONS = {"hwio": lambda w: "w" * w + "io", "oihw": lambda w: "oi" + "w" * w}
# Attributes that wrap an array (of an NNX variable, say): no part of its name.
_WRAPPERS = ("value", "raw_value")
# Which taps of a convolution carry nonzeros, and of what it is an isometry.
TAPS = ("center", "all", "polyphase")
_LETTERS = "i input, o output, w window, s stack of layers or experts"
_LINE = "layouts=kernel_layouts(params, {})"  # to write, with {} for the table
# What arrays of a rank often are, for the error.
_OFTEN = {
  2: '"io", "oi" of PyTorch and Equinox',
  3: '"sio" layers or experts, "ioo" query, key or value, "iio" output of attention, '
  '"wio" or "oiw" a convolution',
  4: '"wwio" or "oiww" a convolution, "iiio" patches, "ssio" layers of experts, "sioo" '
  'or "siio" layers of attention',
  5: '"wwwio" or "oiwww" a convolution, "swwio" or "soiww" layers of convolutions',
}


@dataclasses.dataclass(frozen=True)
class Layout:
  """How a kernel is a batch of matrices `(in, out)` or of convolutions of them.

  Attributes:
    axes: one letter for each axis of the leaf: `i` input, `o` output, `w` window, `s`
      stack; at least one `i` and one `o`.
    groups: matrices that lie side by side along the outputs: the groups of a
      convolution, whose inputs are those of one group, or merged projections that
      share their inputs (3 for query, key and value in one kernel). None = unknown:
      an error where it matters.
    strides: strides of a convolution, one for each `w`; () for 1.
    padding: padding of a convolution, "SAME", "CIRCULAR", "VALID" or "CAUSAL"; None if
      unknown.
    transposed: whether a convolution is a transposed one, whose strides spread pixels.

  Raises:
    ValueError: if a letter is unknown, an input or output is missing, there are more
      than three `w`, or `groups` is less than 1.
  """

  axes: str
  groups: int | None = 1
  strides: tuple[int, ...] = ()
  padding: str | None = None
  transposed: bool = False

  def __post_init__(self):
    letters = set(self.axes)
    if not {"i", "o"} <= letters <= set("iows") or self.axes.count("w") > 3:
      raise ValueError(
        f"`axes` must have one letter an axis ({_LETTERS}), at least one i and one o "
        f"and at most three w, got {self.axes!r}."
      )
    groups = 1 if self.groups is None else self.groups
    if not isinstance(groups, int) or groups < 1:
      raise ValueError(f"`groups` must be a positive integer, got {self.groups!r}.")

  def axes_of(self, letter: str) -> tuple[int, ...]:
    """Numbers of the axes with a letter, in order."""
    return tuple(n for n, axis in enumerate(self.axes) if axis == letter)

  def __str__(self) -> str:
    """The letters, and the groups if there are several."""
    return self.axes + (f" groups={self.groups}" if self.groups != 1 else "")


@dataclasses.dataclass(frozen=True)
class Kernel:
  """A leaf and its layout: the leaf as layers, and as blocks.

  A *layer* is one element of the stack, `(*window, in, out)`: it has a density of its
  own. A *block* is one group of a layer, `(*window, in, out / groups)`: it is what is
  to be isometric. Without groups the two are the same.

  Attributes:
    name: path of the leaf, joined by "/".
    leaf: array or shape-dtype struct.
    layout: its layout.
  """

  name: str
  leaf: Any
  layout: Layout

  def _sizes(self, letter: str) -> tuple[int, ...]:
    return tuple(self.leaf.shape[axis] for axis in self.layout.axes_of(letter))

  @functools.cached_property
  def stack_shape(self) -> tuple[int, ...]:
    """Sizes of the stack, () if the leaf is one layer."""
    return self._sizes("s")

  @functools.cached_property
  def num_layers(self) -> int:
    """Number of layers that the leaf holds."""
    return math.prod(self.stack_shape)

  @functools.cached_property
  def layer_shape(self) -> tuple[int, ...]:
    """`(*window, in, out)` of one layer."""
    ends = (math.prod(self._sizes("i")), math.prod(self._sizes("o")))
    return (*self._sizes("w"), *ends)

  @property
  def layer_size(self) -> int:
    """Number of weights of one layer."""
    return math.prod(self.layer_shape)

  @property
  def groups(self) -> int:
    """Number of groups of the layout.

    Raises:
      ValueError: if the shape alone does not tell.
    """
    if self.layout.groups is None:
      doubts, leaves = {self.name: _grouped(self)}, {self.name: self.leaf}
      raise ValueError(_in_doubt(doubts, leaves, {}, _LINE))
    return self.layout.groups

  @property
  def num_blocks(self) -> int:
    """Number of blocks in the leaf, over all layers."""
    return self.num_layers * self.groups

  @property
  def block_shape(self) -> tuple[int, ...]:
    """`(*window, in, out / groups)` of one block."""
    *front, out = self.layer_shape
    return (*front, out // self.groups)

  @property
  def center(self) -> tuple[int, ...]:
    """The tap of a window that reads the output's own pixel: where a delta lies.

    It is `(size - 1) // 2`; the last tap of causal padding, and `size // 2` of a
    transposed convolution of stride 1 under "SAME".
    """
    layout, window = self.layout, self.layer_shape[:-2]
    if layout.padding == "CAUSAL":
      return tuple(size - 1 for size in window)
    # Flipped taps, with outputs first, count from the other end.
    late = layout.transposed and layout.padding == "SAME" and layout.axes[-1] == "o"
    strides = layout.strides if window and layout.strides else (1,) * len(window)
    pairs = zip(window, strides, strict=True)
    return tuple((k if late and s == 1 else k - 1) // 2 for k, s in pairs)

  def floor(self, taps: str = "center") -> int:
    """Fewest nonzeros of a layer whose blocks are isometric.

    Args:
      taps: as in `eoi_init`: "polyphase" is isometric at the strides of the layout.

    Raises:
      ValueError: if `taps` is unknown.
    """
    if taps not in TAPS:
      raise ValueError(f"`taps` must be one of {TAPS}, got {taps!r}.")
    strides = self.layout.strides if taps == "polyphase" else ()
    shape = self.block_shape
    if self.layout.transposed:  # the transpose of a convolution back
      shape = (*shape[:-2], shape[-1], shape[-2])
    return self.groups * block_floor(shape, strides)

  @functools.cached_property
  def _order(self) -> tuple[int, ...]:
    return tuple(axis for letter in "swio" for axis in self.layout.axes_of(letter))

  def to_layers(self, array: Any) -> Any:
    """Views an array of the leaf's shape as `[num_layers, *window, in, out]`."""
    return array.transpose(self._order).reshape(self.num_layers, *self.layer_shape)

  def from_layers(self, layers: Any) -> Any:
    """The array of the leaf's shape that `to_layers` gives these layers for."""
    shape = tuple(self.leaf.shape[axis] for axis in self._order)
    back = sorted(range(len(self._order)), key=self._order.__getitem__)
    return layers.reshape(shape).transpose(back)

  def to_blocks(self, array: Any) -> Any:
    """Views an array of the leaf's shape as `[num_blocks, *window, in, out / groups]`.

    Layer by layer, group by group.
    """
    layers = self.to_layers(array)
    if self.groups > 1:
      *front, out = layers.shape
      layers = layers.reshape(*front, self.groups, out // self.groups)
      rank = layers.ndim
      layers = layers.transpose(0, rank - 2, *range(1, rank - 2), rank - 1)
    return layers.reshape(self.num_blocks, *self.block_shape)

  def from_blocks(self, blocks: Any) -> Any:
    """The array of the leaf's shape that `to_blocks` gives these blocks for."""
    if self.groups > 1:
      blocks = blocks.reshape(self.num_layers, self.groups, *self.block_shape)
      rank = blocks.ndim
      blocks = blocks.transpose(0, *range(2, rank - 1), 1, rank - 1)
    return self.from_layers(blocks)


def block_floor(shape: tuple[int, ...], strides: tuple[int, ...] = ()) -> int:
  """Fewest nonzeros of an isometric `(*window, in, out)`: those of its matrix.

  Its inputs are those of every phase of the strides that the window sees.
  """
  *window, inputs, outputs = shape
  phases = math.prod(map(min, strides, window))
  return min(inputs * phases, outputs)


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

  def replace(self, table: Mapping[str, str | Layout | None]) -> Layouts:
    """Layouts with other entries where a pattern of the table fits.

    Args:
      table: as in `kernel_layouts`.

    Returns:
      New layouts.

    Raises:
      ValueError: if a pattern fits no leaf, or a layout does not fit its leaf.
    """
    given = apply_table(table, self._shapes)
    return Layouts(self._entries | given, self._shapes)

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
  if convention not in (None, *_CONVENTIONS):
    raise ValueError(
      f"`convention` must be None or one of {tuple(_CONVENTIONS)}, got {convention!r}."
    )
  leaves = {
    name: leaf for name, leaf in named_leaves(params).items() if not is_leaf(leaf)
  }
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
  line: str = _LINE,
) -> Layouts:
  """Layouts of all leaves: those that are given, the rest by shape.

  Args:
    given: layouts that are known, by name.
    leaves: arrays or shape-dtype structs by name.
    convention: as in `kernel_layouts`.
    doubts: leaves that are in doubt, with what to write in the table.
    reasons: why, where it is not the shape.
    line: what the caller is to write, with {} for the table.

  Returns:
    `Layouts` in the order of `leaves`; groups are None of a window over one channel.

  Raises:
    ValueError: if leaves are in doubt.
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
    raise ValueError(_in_doubt(doubts, leaves, reasons or {}, line))
  return Layouts(entries, {name: jnp.shape(leaf) for name, leaf in leaves.items()})


def by_shape(
  name: str, leaf: Any, leaves: Mapping[str, Any], convention: str | None = None
) -> tuple[Layout | None, str | None]:
  """The layout of a leaf, and what to write in the table if that is in doubt.

  Args:
    name: of the leaf.
    leaf: array or shape-dtype struct.
    leaves: of the whole tree, by name.
    convention: as in `kernel_layouts`.
  """
  shape, dtype = tuple(jnp.shape(leaf)), jnp.result_type(leaf)
  *modules, last = [w for w in name.split("/") if w and not w.isdigit()] or ["kernel"]
  words = [module.lower() for module in modules]
  named, parent = last.lower() in _KERNELS, name.rpartition("/")[0]
  is_embedding = "embed" in last.lower().replace("unembed", "")
  if len(shape) < 2 or last.lower() in _OTHERS or is_embedding:
    return None, None
  if not named and dtype != jnp.bool_ and not jnp.issubdtype(dtype, jnp.inexact):
    return None, None
  rank, suggestion = len(shape), _suggest(words, last.lower(), shape, convention)
  prefix = f"{parent}/" if parent else ""
  has_kernel = any(f"{prefix}{kernel}" in leaves for kernel in _KERNELS)
  if last in _BESIDE and (has_kernel or _is_norm(words)):
    return None, None
  # The weight of an embedding or a norm (as Equinox names them), or of an adapter.
  odd = any("lora" in w for w in words) or (last != "kernel" and _is_no_layer(words))
  bias = leaves.get(f"{prefix}bias")
  odd |= last == "weight" and bias is not None and jnp.shape(bias) == shape
  if not named or odd:
    return None, "None" if odd else suggestion
  axes = _CONVENTIONS[convention or "hwio"](rank - 2)
  window = [size for size, axis in zip(shape, axes, strict=True) if axis == "w"]
  ends = [size for size, axis in zip(shape, axes, strict=True) if axis != "w"]
  square = len({*window} - {1}) <= 1 and _is_window(window)
  if rank == 3:
    fits = convention is not None and square and any("conv" in w for w in words[-1:])
  else:
    fits = rank == 2 or (rank == 4 and square and (convention or not _is_window(ends)))
  if not fits:
    return None, suggestion
  layout = Layout(axes)
  if math.prod(window) > 1 and shape[axes.index("i")] == 1:
    layout = dataclasses.replace(layout, groups=None)
  return layout, None


def _grouped(kernel: Kernel) -> str:
  """What to write for a window over one channel, if it is depthwise."""
  return f'Layout("{kernel.layout.axes}", groups={kernel.layer_shape[-1]})'


def _is_no_layer(words: list[str]) -> bool:
  """Whether modules are named like an embedding, or the last of them like a norm."""
  return any(map(_EMBEDDING.search, words)) or _is_norm(words)


def _is_norm(words: list[str]) -> bool:
  """Whether the last module is named like a norm."""
  return bool(words) and _NORM.search(words[-1]) is not None


def _is_window(sizes: Sequence[int]) -> bool:
  """Whether sizes look like those of a window: odd, and at most 11."""
  return all(size in _WINDOWS for size in sizes)


def _suggest(words: list[str], last: str, shape, convention: str | None) -> str:
  """Letters that the error shows for a leaf in doubt."""
  rank, parent = len(shape), words[-1] if words else ""
  adapter = any("lora" in w or w.startswith(("pos", "cls")) for w in (*words, last))
  if adapter or _NO_KERNEL.search(last) or _is_no_layer(words):
    return "None"
  heads = re.search(r"query|key|value|qkv|^[qkv](_|$)|attn|attention|heads", parent)
  oihw = convention == "oihw" or (rank > 3 and _is_window(shape[2:]))
  if rank == 2:
    letters = "oi" if convention == "oihw" else "io"
  elif rank == 3 and "conv" in parent:
    letters = "oiw" if oihw or shape[-1] < shape[0] else "wio"
  elif rank == 3 and (parent.startswith("out") or parent == "o_proj"):
    letters = "iio"
  elif rank == 3:
    letters = "ioo" if heads or shape[0] > shape[1] else "sio"
    letters = "soi" if convention == "oihw" else letters
  elif rank == 4 and heads:
    letters = "sioo" if shape[0] < shape[1] else "iooo"
  elif rank == 4 and (oihw or _is_window(shape[:2])):
    letters = "oiww" if oihw else "wwio"
  elif rank == 4:
    letters = "iiio" if shape[0] == shape[1] else "ssio"
  elif rank == 5:
    letters = "soiww" if oihw else "swwio"
  else:
    return "None"
  inputs = shape[letters.index("i")] if "w" in letters else 0
  groups = shape[letters.index("o")] if inputs == 1 else 1
  return f'Layout("{letters}", groups={groups})' if groups > 1 else f'"{letters}"'


def _in_doubt(
  doubts: Mapping[str, str],
  leaves: Mapping[str, Any],
  reasons: Mapping[str, str],
  line: str,
) -> str:
  """The error that names leaves in doubt and shows the line to write."""
  shown = list(doubts)[:8]
  shapes = {name: tuple(jnp.shape(leaves[name])) for name in shown}
  why = {name: f" ({reason})" for name, reason in reasons.items()}
  named = ", ".join(f"{n!r} {shape}{why.get(n, '')}" for n, shape in shapes.items())
  entries = ", ".join(f'"{name}": {doubts[name]}' for name in shown)
  more = f" and {len(doubts) - len(shown)} more" if len(doubts) > len(shown) else ""
  ranks = sorted({len(shape) for shape in shapes.values()} & _OFTEN.keys())
  often = "".join(f"; of rank {rank} often {_OFTEN[rank]}" for rank in ranks)
  argument = "layouts" if "kernel_layouts" in line else "table"
  read = (
    ", or read them off a Flax model: `linen_layouts(model, inputs)`, "
    "`nnx_layouts(module)`"
  )
  return (
    f"`{argument}` must say how each array is read where its shape does not tell: in "
    f"doubt {'is' if len(doubts) == 1 else 'are'} {named}{more}. One letter an axis "
    f"({_LETTERS}; None = no kernel{often}), for example "
    f"`{line.format('{' + entries + '}')}`{read if argument == 'layouts' else ''}."
  )


def apply_table(
  table: Mapping[str, str | Layout | None], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Layout | None]:
  """Layouts of the names that the patterns of a table fit."""
  given: dict[str, Layout | None] = {}
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


def check_fit(name: str, shape: tuple[int, ...], layout: Layout) -> None:
  """Raises ValueError unless a layout fits the shape of its leaf."""
  if len(layout.axes) != len(shape) or math.prod(shape) == 0:
    raise ValueError(
      f"layout {str(layout)!r} must have a letter for each axis of {name!r}, with at "
      f"least one element, got shape {tuple(shape)}."
    )
  outputs = math.prod(shape[axis] for axis in layout.axes_of("o"))
  if outputs % (layout.groups or 1):
    raise ValueError(
      f"`groups` must divide the {outputs} outputs of {name!r}, got {layout.groups}."
    )


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
  if layouts is None:
    leaves = named_leaves(params)
    layouts = complete({}, {n: x for n, x in leaves.items() if not is_leaf(x)})
  elif not isinstance(layouts, Layouts):
    raise ValueError(
      "`layouts` must be None or made by `kernel_layouts`, `linen_layouts` or "
      f"`nnx_layouts`, got {type(layouts).__name__}."
    )
  leaves = named_leaves(params)
  is_variables = isinstance(params, Mapping) and "params" in params
  kernels = {}
  for name, leaf in leaves.items():
    if is_leaf(leaf):
      continue
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


# Trees by name.


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
  """Leaves of a tree by name, in order, with None where a leaf is left out.

  Raises:
    ValueError: if two leaves have one name.
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
