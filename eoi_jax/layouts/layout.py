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
"""

import dataclasses
import functools
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from eoi_jax import _checks

LETTERS = "i input, o output, w window, s stack of layers or experts"
LINE = "layouts=kernel_layouts(params, {})"  # to write, with {} for the table
# Which taps of a convolution carry nonzeros, and of what it is an isometry.
TAPS = ("center", "all", "polyphase")
# Those of Flax that have names.
PADDINGS = ("SAME", "SAME_LOWER", "CIRCULAR", "REFLECT", "VALID", "CAUSAL")


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
    strides: strides of a convolution, a tuple, one for each `w`; () for 1.
    padding: padding of a convolution, "SAME", "CIRCULAR", "VALID" or "CAUSAL", say, as
      Flax names it; None if unknown.
    transposed: whether a convolution is a transposed one, whose strides spread pixels.

  Raises:
    ValueError: if a letter is unknown, an input or output is missing, there are more
      than three `w`, or another field is none of these.
  """

  axes: str
  groups: int | None = 1
  strides: tuple[int, ...] = ()
  padding: str | None = None
  transposed: bool = False

  def __post_init__(self):
    letters = set(self.axes if isinstance(self.axes, str) else ())
    if not {"i", "o"} <= letters <= set("iows") or self.axes.count("w") > 3:
      raise ValueError(
        f"`axes` must have one letter an axis ({LETTERS}), at least one i and one o "
        f"and at most three w, got {self.axes!r}."
      )
    if self.groups is not None and not _are_positive([self.groups]):
      raise ValueError(f"`groups` must be a positive integer, got {self.groups!r}.")
    steps, windows = self.strides, self.axes.count("w")
    known = isinstance(steps, tuple) and _are_positive(steps)
    if not known or (steps and windows not in (0, len(steps))):
      raise ValueError(
        "`strides` must be a tuple of positive integers, one for each w of "
        f"{self.axes!r}, or (), got {steps!r}."
      )
    if self.padding not in (known := (None, *PADDINGS)):
      raise ValueError(f"`padding` must be one of {known}, got {self.padding!r}.")
    if not isinstance(self.transposed, bool):
      raise ValueError(f"`transposed` must be True or False, got {self.transposed!r}.")

  def axes_of(self, letter: str) -> tuple[int, ...]:
    """Numbers of the axes with a letter, in order."""
    return tuple(n for n, axis in enumerate(self.axes) if axis == letter)

  def __str__(self) -> str:
    """The letters, and the groups if there are several."""
    return self.axes + (f" groups={self.groups}" if self.groups != 1 else "")


def _are_positive(values: Sequence[Any]) -> bool:
  """Whether all values are integers of at least 1."""
  integers = (isinstance(x, int | np.integer) and x is not True for x in values)
  return all(integers) and all(value >= 1 for value in values)


@dataclasses.dataclass(frozen=True)
class Kernel:
  """A leaf and its layout: the leaf as layers, and as blocks.

  A *layer* is one element of the stack, `(*window, in, out)`: it has a density of its
  own. A *block* is one group of a layer, `(*window, in, out / groups)`: it is what is
  to be isometric. Without groups the two are the same.
  """

  name: str  # path of the leaf, joined by "/"
  leaf: Any  # array or shape-dtype struct
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
    return (*self._sizes("w"), *(math.prod(self._sizes(end)) for end in "io"))

  @property
  def layer_size(self) -> int:
    """Number of weights of one layer."""
    return math.prod(self.layer_shape)

  @property
  def groups(self) -> int:
    """Number of groups; a ValueError if the shape alone does not tell."""
    if self.layout.groups is None:
      doubts = {self.name: entry(self.layout.axes, self.layer_shape[-1])}
      raise ValueError(in_doubt(doubts, {self.name: self.leaf}, {}, LINE))
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
    """Fewest nonzeros of a layer whose blocks are isometric, with `taps` of `eoi_init`.

    "polyphase" is isometric at the strides of the layout; an unknown name is a
    ValueError.
    """
    _checks.one_of("taps", taps, TAPS)
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
      layers = layers.reshape(*layers.shape[:-1], self.groups, self.block_shape[-1])
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


# What a name and a shape tell.

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
# What arrays of a rank often are, for the error.
_OFTEN = {
  2: '"io", "oi" of PyTorch and Equinox',
  3: '"sio" layers or experts, "ioo" query, key or value, "iio" output of attention, '
  '"wio" or "oiw" a convolution',
  4: '"wwio" or "oiww" a convolution, "iiio" patches, "ssio" layers of experts, "sioo" '
  'or "siio" layers of attention',
  5: '"wwwio" or "oiwww" a convolution, "swwio" or "soiww" layers of convolutions',
}
CONVENTIONS = {"hwio": lambda w: "w" * w + "io", "oihw": lambda w: "oi" + "w" * w}


def by_shape(
  name: str, leaf: Any, leaves: Mapping[str, Any], convention: str | None = None
) -> tuple[Layout | None, str | None]:
  """The layout of a leaf, and what to write in the table if that is in doubt.

  `leaves` are those of the whole tree, by name.
  """
  try:
    shape, dtype = tuple(jnp.shape(leaf)), jnp.result_type(leaf)
  except TypeError:
    raise ValueError(f"`params` must hold arrays, got {leaf!r} in {name!r}.") from None
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
  axes = CONVENTIONS[convention or "hwio"](rank - 2)
  start = axes.index("w") if rank > 2 else 0
  window, inputs = shape[start : start + rank - 2], shape[axes.index("i")]
  square = _is_square(window)
  if rank == 3:
    fits = convention is not None and square and any("conv" in w for w in words[-1:])
  else:
    sure = convention or not {*shape[2:]} <= {*_WINDOWS}  # no window of OIHW
    fits = rank == 2 or (rank == 4 and square and sure)
  if not fits:
    return None, suggestion
  unknown = math.prod(window) > 1 and inputs == 1
  return Layout(axes, None if unknown else 1), None


def _is_norm(words: list[str]) -> bool:
  """Whether the last module is named like a norm."""
  return bool(words) and _NORM.search(words[-1]) is not None


def _is_no_layer(words: list[str]) -> bool:
  """Likewise, or any of them like an embedding."""
  return any(map(_EMBEDDING.search, words)) or _is_norm(words)


def _is_square(sizes: Sequence[int]) -> bool:
  """Whether sizes look like those of a window: one of `_WINDOWS`, and perhaps 1."""
  return {*sizes} <= {*_WINDOWS} and len({*sizes} - {1}) <= 1


def entry(letters: str, groups: int | None) -> str:
  """What to write in a table."""
  many = groups is not None and groups > 1
  return f'Layout("{letters}", groups={groups})' if many else f'"{letters}"'


def _suggest(words: list[str], last: str, shape, convention: str | None) -> str:
  """Letters that the error shows for a leaf in doubt."""
  rank, parent = len(shape), words[-1] if words else ""
  adapter = any("lora" in w or w.startswith(("pos", "cls")) for w in (*words, last))
  if adapter or _NO_KERNEL.search(last) or _is_no_layer(words):
    return "None"
  heads = re.search(r"query|key|value|qkv|^[qkv](_|$)|attn|attention|heads", parent)
  oihw = convention == "oihw" or (rank > 3 and _is_square(shape[2:]))
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
  elif rank == 4 and (oihw or _is_square(shape[:2])):
    letters = "oiww" if oihw else "wwio"
  elif rank == 4:
    letters = "iiio" if shape[0] == shape[1] else "ssio"
  elif rank == 5:
    letters = "soiww" if oihw else "swwio"
  else:
    return "None"
  inputs = shape[letters.index("i")] if "w" in letters else 0
  return entry(letters, shape[letters.index("o")] if inputs == 1 else 1)


def in_doubt(
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
  entries = ", ".join(f"{json.dumps(n)}: {doubts[n]}" for n in shown)
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
    f"({LETTERS}; None = no kernel{often}), for example "
    f"`{line.format('{' + entries + '}')}`{read if argument == 'layouts' else ''}."
  )
