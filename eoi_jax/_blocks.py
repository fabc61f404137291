"""A kernel as the blocks that a start treats one by one.

The shape of a kernel does not tell how a convolution uses it. Three readings:

  - plain: one block, the kernel itself;
  - grouped: `groups` convolutions side by side. The kernel `(*window, in, out)` has
    the inputs of one group and the outputs of all; block `g` holds outputs
    `g * out / groups` and on. A depthwise convolution has one input channel a group;
  - patches: stride = window and "VALID" padding, so that every input is seen once. The
    block is the matrix `(taps * in, out)`, and any orthogonal matrix is an isometry.

A strided convolution whose window overlaps is treated as plain: a delta kernel then
reads one pixel of each stride and is isometric from those pixels alone.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from eoi_jax import _kernels as kernels_lib
from eoi_jax._kernels import Kernel, LeafPredicate

GroupCount = Callable[[str, Any], int]


class Layout(NamedTuple):
  """How a kernel leaf falls into blocks.

  Attributes:
    kernel: the leaf.
    groups: groups of the convolution, 1 if plain.
    patches: whether the convolution reads patches that do not overlap.
  """

  kernel: Kernel
  groups: int
  patches: bool

  @property
  def num_blocks(self) -> int:
    """Blocks in the leaf, over all layers."""
    return self.kernel.num_layers * self.groups

  @property
  def shape(self) -> tuple[int, ...]:
    """Shape of one block."""
    *window, rows, cols = self.kernel.shape
    if self.patches:
      return (math.prod(window) * rows, cols)
    return (*window, rows, cols // self.groups)


def depthwise_groups(name: str, leaf: Any) -> int:
  """The default of `num_groups`: a window over one input channel is depthwise.

  A convolution of an image of one channel has such a kernel, too: say
  `num_groups=lambda name, leaf: 1` for it.

  Args:
    name: path of the leaf, joined by "/".
    leaf: one layer's kernel, with a `shape`.

  Returns:
    The number of output channels if the window has more than one tap and there is
    one input channel, else 1.
  """
  del name
  *window, rows, cols = leaf.shape
  return cols if rows == 1 and math.prod(window) > 1 else 1


def never_patches(name: str, leaf: Any) -> bool:
  """The default of `is_patches`: windows overlap, or nothing is known of it."""
  del name, leaf
  return False


def find_layouts(
  kernels: dict[str, Kernel],
  *,
  num_groups: GroupCount = depthwise_groups,
  is_patches: LeafPredicate = never_patches,
) -> dict[str, Layout]:
  """Layouts of kernels by name.

  Args:
    kernels: kernels by name.
    num_groups: `(name, leaf) -> int`, groups of a convolution; of a stacked leaf it
      sees one layer.
    is_patches: `(name, leaf) -> bool`, whether stride = window; likewise.

  Returns:
    Dict from name to `Layout`.

  Raises:
    ValueError: if the groups do not divide the outputs, or a kernel of patches is
      grouped.
  """
  layouts = {}
  for name, kernel in kernels.items():
    layer = jax.ShapeDtypeStruct(kernel.shape, kernel.leaf.dtype)
    patches = bool(is_patches(name, layer)) and len(kernel.shape) > 2
    groups = 1 if patches else int(num_groups(name, layer))
    cols = tuple(kernel.leaf.shape)[-1]
    if groups < 1 or cols % groups:
      raise ValueError(
        f"`num_groups` must divide the {cols} outputs of {name!r}, got {groups}."
      )
    layouts[name] = Layout(kernel, groups, patches)
  return layouts


def split(layout: Layout, leaf: jax.Array) -> jax.Array:
  """Blocks `[num_blocks, *shape]` of a leaf, layer by layer, group by group."""
  layers = kernels_lib.as_layers(layout.kernel, jnp.asarray(leaf))
  if layout.groups > 1:
    *front, cols = layers.shape
    layers = layers.reshape(*front, layout.groups, cols // layout.groups)
    layers = jnp.moveaxis(layers, -2, 1)
  return layers.reshape(layout.num_blocks, *layout.shape)


def join(layout: Layout, blocks: jax.Array) -> jax.Array:
  """The leaf that `split` gives these blocks for."""
  kernel = layout.kernel
  if layout.groups > 1:
    layers = blocks.reshape(kernel.num_layers, layout.groups, *layout.shape)
    blocks = jnp.moveaxis(layers, 1, -2)
  return blocks.reshape(kernel.leaf.shape)


def block_keys(key: jax.Array, layouts: list[Layout]) -> jax.Array:
  """One PRNG key for each block of each layout, `[n]`.

  They depend on `key`, the name, the layer and, where there are several, the group
  alone; without groups they are those of `kernels.kernel_keys`.
  """
  words, layers, groups = [], [], []
  for layout in layouts:
    word = zlib.crc32(layout.kernel.name.encode())
    words.append(np.full(layout.num_blocks, word, np.uint32))
    layer = np.arange(layout.kernel.num_layers, dtype=np.uint32)
    layers.append(np.repeat(layer, layout.groups))
    group = np.arange(1, layout.groups + 1, dtype=np.uint32)
    group = group if layout.groups > 1 else np.zeros(1, np.uint32)
    groups.append(np.tile(group, layout.kernel.num_layers))
  return _fold(key, *(np.concatenate(x) for x in (words, layers, groups)))


@jax.jit
def _fold(key, words, layers, groups) -> jax.Array:
  """Folds words and layers into a key, and groups where they are not 0."""

  def fold(word, layer, group):
    layer_key = jax.random.fold_in(jax.random.fold_in(key, word), layer)
    return jnp.where(group > 0, jax.random.fold_in(layer_key, group), layer_key)

  return jax.vmap(fold)(words, layers, groups)


def block_counts(layout: Layout, counts: np.ndarray) -> np.ndarray:
  """Shares the trained weights of each layer out to its groups, evenly.

  Args:
    layout: the layout.
    counts: integers `[num_layers]`.

  Returns:
    int32 `[num_blocks]`; groups of a layer differ by at most one.
  """
  first = np.arange(layout.groups)[None, :]
  shares = (counts[:, None] + layout.groups - 1 - first) // layout.groups
  return shares.reshape(-1).astype(np.int32)
