"""Which blocks of a block-sparse kernel exist, and its dense view.

A kernel `(in, out)` is cut into `G` groups of inputs and `G` groups of outputs. Of its
`G x G` blocks exist `r G`: `r` perfect matchings `p_0 ... p_{r-1}` between the groups,
no block in two of them. Only those blocks are stored, `[G, r, bi, bo]`, so that
parameters, gradients and optimizer state have `r / G` of the dense kernel's size.

Sizes that `G` does not divide make groups that differ by one: the first `in % G` input
groups have `bi = ceil(in / G)` units, the others `bi - 1`, and so for outputs. A stored
block has a zero row or column where its group is smaller: it reads zeros and writes to
what is cut off, so it has no gradient.
"""

import dataclasses
import functools
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from eoi_jax import _checks as checks
from eoi_jax import _keys as keys_lib
from eoi_jax._sharding import partitioned

AUTO_SIZES = (128, 64, 32, 16)


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=("inputs", "outputs"),
  meta_fields=("shape", "num_groups", "num_matchings"),
)
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class BlockLayout:
  """Places of the blocks of a kernel, or of a stack of kernels of one shape.

  A pytree whose leaves are the two index tables; all else is static. So one compiled
  function serves every layer of a shape, a stack of layouts passes through `vmap` and
  `scan` beside its blocks, and a checkpoint holds it. Products that know the tables
  when they are compiled were no faster.

  Attributes:
    inputs: int32 `[*stack, G, r]`; the input group of block `c` of output group `h`.
    outputs: int32 `[*stack, G, r]`; the output group of block `c` of input group `g`;
      `inputs[outputs[g, c], c] == g`.
    shape: `(in, out)`.
    num_groups: `G`.
    num_matchings: `r`, blocks of every input group and of every output group.
  """

  inputs: Any
  outputs: Any
  shape: tuple[int, int]
  num_groups: int
  num_matchings: int

  @property
  def block_shape(self) -> tuple[int, int]:
    """`(bi, bo)`, the larger size where groups differ by one."""
    rows, cols = self.shape
    return -(-rows // self.num_groups), -(-cols // self.num_groups)

  @property
  def stack_shape(self) -> tuple[int, ...]:
    """Leading axes: layers, experts."""
    return tuple(self.inputs.shape[:-2])

  @property
  def blocks_shape(self) -> tuple[int, ...]:
    """Shape of the array of blocks, `[*stack, G, r, bi, bo]`."""
    return (*self.stack_shape, self.num_groups, self.num_matchings, *self.block_shape)

  @property
  def num_weights(self) -> int:
    """Weights of the kernel that exist, zero padding apart, over the whole stack.

    It is `r in out / G` for each kernel if `G` divides `in` or `out`. Else it depends
    on the tables by at most `r G` and needs them concrete.
    """
    rows, cols = self.shape
    if rows % self.num_groups == 0 or cols % self.num_groups == 0:
      kernels = math.prod(self.stack_shape)
      return kernels * self.num_matchings * rows * cols // self.num_groups
    sizes_in = group_sizes(rows, self.num_groups)
    sizes_out = group_sizes(cols, self.num_groups)
    return int((sizes_in[np.asarray(self.inputs)] * sizes_out[:, None]).sum())

  @property
  def density(self) -> float:
    """Fraction of the weights of the dense kernel that exist."""
    return self.num_weights / (math.prod(self.stack_shape) * math.prod(self.shape))

  def __repr__(self) -> str:
    rows, cols = self.block_shape
    stack = f"stack={self.stack_shape}, " if self.stack_shape else ""
    return (
      f"BlockLayout({stack}shape={self.shape}, blocks of {rows} x {cols}, "
      f"{self.num_matchings} of {self.num_groups} a group)"
    )


def group_sizes(size: int, num_groups: int) -> np.ndarray:
  """Units of each group: the first `size % num_groups` have one more."""
  larger = np.arange(num_groups) < size % num_groups
  return (size // num_groups + larger).astype(np.int32)


def block_layout(
  key: jax.Array,
  shape: tuple[int, ...],
  density: float,
  *,
  block_size: int | Literal["auto"] = "auto",
) -> BlockLayout:
  """Samples the places of the blocks of a kernel.

  The matchings are `p_c(g) = t(s^-1(s(g) + k_c mod G))` with random permutations `s`
  and `t` of the groups and distinct random shifts `k_c`, `k_0 = 0`: every input group
  and every output group has exactly `r` blocks, at any density.

  The number of groups is `G = min(in, out) / block_size`, rounded, and `r = G density`,
  rounded. Where `density` is below `1 / G`, `G` is `1 / density`, rounded up, and the
  blocks are smaller than `block_size`. `BlockLayout.density` is what is met.

  Args:
    key: a PRNG key; it is consumed.
    shape: `(in, out)`, or `(*stack, in, out)` for layers or experts, each with a layout
      of its own.
    density: fraction of the weights that exist, in `[1 / min(in, out), 1]`.
    block_size: units of a group on the smaller side, or "auto": the largest of 128, 64,
      32 and 16 that meets the density to 5 % with at least two blocks a group, or else
      the one that is closest to it.

  Returns:
    A `BlockLayout`, a function of the key.

  Raises:
    ValueError: if an argument is out of range.

  Example:
    >>> layout = block_layout(jax.random.key(0), (512, 2048), 0.25, block_size=64)
    >>> layout, layout.num_weights
    (BlockLayout(shape=(512, 2048), blocks of 64 x 256, 2 of 8 a group), 262144)
  """
  key = keys_lib.as_key(key)
  shape = tuple(checks.integer("shape", size, 1) for size in shape)
  if len(shape) < 2:
    raise ValueError(f"`shape` must be (*stack, in, out), got {shape}.")
  *stack, rows, cols = shape
  density = checks.density(density)
  if density * min(rows, cols) < 1 - 1e-6:
    raise ValueError(
      f"`density` must be in [{1 / min(rows, cols):.4g}, 1] for blocks of shape "
      f"{(rows, cols)}, got {density}."
    )
  num_groups, num_matchings = _plan(min(rows, cols), density, block_size)
  sample = functools.partial(
    _sample_tables, shape=(rows, cols), groups=num_groups, matchings=num_matchings
  )
  if stack:  # one after another: a key gives the same tables alone and in a stack
    keys = jax.random.split(key, math.prod(stack))
    inputs, outputs = (
      table.reshape(*stack, *table.shape[1:]) for table in jax.lax.map(sample, keys)
    )
  else:
    inputs, outputs = sample(key)
  return BlockLayout(inputs, outputs, (rows, cols), num_groups, num_matchings)


def _plan(side: int, density: float, block_size) -> tuple[int, int]:
  """Groups, and blocks of a group, for a smaller side of `side` units."""

  def plan(size: int) -> tuple[int, int]:
    groups = max(1, round(side / size), math.ceil(1 / density - 1e-6))
    groups = min(groups, side)
    return groups, max(1, round(density * groups))

  if block_size != "auto":
    return plan(checks.integer("block_size", block_size, 1))
  plans = [plan(size) for size in AUTO_SIZES]
  errors = [abs(r / groups / density - 1) for groups, r in plans]
  for (groups, r), error in zip(plans, errors, strict=True):
    if error <= 0.05 and r >= 2:
      return groups, r
  return plans[int(np.argmin(errors))]


@functools.partial(jax.jit, static_argnames=("shape", "groups", "matchings"))
def _sample_tables(key, *, shape, groups: int, matchings: int):
  """Tables `inputs` and `outputs` of one kernel."""
  index = jnp.arange(groups, dtype=jnp.int32)
  # Four random orders by one sort: input groups and output groups, the larger ones
  # first, which `block_orthogonal` needs; the circle; and the shifts, zero first.
  ranks = jax.random.uniform(key, (4, groups))
  smaller = jnp.stack([index >= size % groups for size in shape])
  ranks = ranks.at[:2].add(smaller.astype(ranks.dtype)).at[3, 0].set(-1)
  order = jnp.argsort(ranks, axis=1).astype(jnp.int32)
  first = jnp.zeros_like(index).at[order[0]].set(order[1])
  place = jnp.zeros_like(index).at[order[2]].set(index)
  shifts = order[3, :matchings]
  outputs = first[order[2][(place[:, None] + shifts[None]) % groups]]
  matching = jnp.broadcast_to(jnp.arange(matchings)[None], outputs.shape)
  sources = jnp.broadcast_to(index[:, None], outputs.shape)
  inputs = jnp.zeros_like(outputs).at[outputs, matching].set(sources)
  return inputs, outputs


def pad_groups(x: jax.Array, size: int, num_groups: int) -> jax.Array:
  """Brings all groups of the last axis to one size by zeros at the end of a group."""

  def pad(groups):
    return jnp.pad(groups, [(0, 0)] * (groups.ndim - 1) + [(0, 1)])

  return _change_small(pad, x, size, num_groups)


def trim_groups(x: jax.Array, size: int, num_groups: int) -> jax.Array:
  """Inverse of `pad_groups`."""
  return _change_small(lambda groups: groups[..., :-1], x, size, num_groups)


def _change_small(change, x: jax.Array, size: int, num_groups: int) -> jax.Array:
  """Changes the smaller groups of the last axis, `[..., groups, units]`, if any."""
  larger = size % num_groups
  if not larger:
    return x
  head, tail = jnp.split(x, [larger * (size // num_groups + 1)], axis=-1)
  tail = change(tail.reshape(*tail.shape[:-1], num_groups - larger, -1))
  return jnp.concatenate([head, tail.reshape(*tail.shape[:-2], -1)], axis=-1)


def blocks_to_dense(blocks: jax.Array, layout: BlockLayout) -> jax.Array:
  """The kernel as a dense matrix.

  Args:
    blocks: `[*stack, G, r, bi, bo]`.
    layout: layout of the blocks.

  Returns:
    `[*stack, in, out]`, zero where there is no block.
  """
  check_blocks(blocks, layout)
  return partitioned(_to_dense, jax.P(), blocks, layout)


def dense_to_blocks(matrix: jax.Array, layout: BlockLayout) -> jax.Array:
  """The blocks of a dense matrix; what lies outside of them is dropped.

  Args:
    matrix: `[*stack, in, out]`.
    layout: layout of the blocks.

  Returns:
    `[*stack, G, r, bi, bo]`, the inverse of `blocks_to_dense`.

  Raises:
    ValueError: if `matrix` has another shape than the layout.

  Example:
    >>> layout = block_layout(jax.random.key(0), (8, 12), 0.5, block_size=2)
    >>> blocks = jnp.ones(layout.blocks_shape)
    >>> matrix = blocks_to_dense(blocks, layout)
    >>> int(matrix.sum()), bool((dense_to_blocks(matrix, layout) == blocks).all())
    (48, True)
  """
  check_layout(layout)
  expected = (*layout.stack_shape, *layout.shape)
  if matrix.shape != expected:
    raise ValueError(f"`matrix` must have shape {expected}, got {matrix.shape}.")

  spec = jax.typeof(layout.inputs).sharding.spec
  return partitioned(_from_dense, spec, matrix, layout)


def block_mask(layout: BlockLayout) -> jax.Array:
  """Mask of the dense view: True = the weight exists.

  Args:
    layout: layout of the blocks.

  Returns:
    Bool array `[*stack, in, out]`.

  Example:
    >>> layout = block_layout(jax.random.key(0), (100, 70), 0.2, block_size=8)
    >>> int(block_mask(layout).sum()) == layout.num_weights
    True
  """
  check_layout(layout)
  return blocks_to_dense(jnp.ones(layout.blocks_shape, bool), layout)


def check_layout(layout: BlockLayout) -> None:
  """Raises ValueError if this is no layout of blocks."""
  if not isinstance(layout, BlockLayout):
    raise ValueError(f"`layout` must be made by `block_layout`, got {layout!r}.")


def check_blocks(blocks: jax.Array, layout: BlockLayout) -> None:
  """Raises ValueError if the blocks are not those of the layout."""
  check_layout(layout)
  if blocks.shape != layout.blocks_shape:
    raise ValueError(
      f"`blocks` must have shape {layout.blocks_shape} for this layout, got "
      f"{blocks.shape}."
    )


@jax.jit
def _to_dense(blocks: jax.Array, layout: BlockLayout) -> jax.Array:
  groups, (rows, cols) = layout.num_groups, layout.block_shape

  def dense(blocks, inputs):
    matrix = jnp.zeros((groups, groups, rows, cols), blocks.dtype)
    matrix = matrix.at[inputs, jnp.arange(groups)[:, None]].set(blocks)
    matrix = matrix.swapaxes(1, 2).reshape(groups * rows, groups * cols)
    matrix = trim_groups(matrix, layout.shape[1], groups)
    return trim_groups(matrix.T, layout.shape[0], groups).T

  for _ in layout.stack_shape:
    dense = jax.vmap(dense)
  return dense(blocks, layout.inputs)


@jax.jit
def _from_dense(matrix: jax.Array, layout: BlockLayout) -> jax.Array:
  groups, (rows, cols) = layout.num_groups, layout.block_shape

  def cut(matrix, inputs):
    matrix = pad_groups(matrix.T, layout.shape[0], groups).T
    matrix = pad_groups(matrix, layout.shape[1], groups)
    matrix = matrix.reshape(groups, rows, groups, cols).swapaxes(1, 2)
    return matrix[inputs, jnp.arange(groups)[:, None]]

  for _ in layout.stack_shape:
    cut = jax.vmap(cut)
  return cut(matrix, layout.inputs)
