"""Exactly orthogonal block-sparse kernels.

Let `m` be the units of a group on the smaller side, `U_g` (`bi x m`) and `V_h`
(`m x bo`) random matrices with orthonormal rows or columns, and `S_0 ... S_{r-1}` a
partition of the `m` channels. The block between input group `g` and output group
`h = p_c(g)` is

    W[g, h] = U_g[:, S_c] V_h[S_c, :]

so `W = blockdiag(U) P blockdiag(V)` with a permutation `P` of the `G m` channels, which
takes channel `S_c` of `g` to channel `S_c` of `p_c(g)`: a product of isometries.

Where groups differ by one unit, the larger ones of the smaller side have a channel
more. It goes along the first matching, which joins larger groups with larger ones.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from eoi_jax import _checks as checks
from eoi_jax import _keys as keys_lib
from eoi_jax._sharding import partitioned
from eoi_jax.blocks import layout as layout_lib
from eoi_jax.blocks.layout import BlockLayout
from eoi_jax.givens import orthogonal


def block_orthogonal(
  key: jax.Array, layout: BlockLayout, dtype=jnp.float32, *, scale: float = 1.0
) -> jax.Array:
  """Samples the blocks of a kernel with exactly orthonormal rows or columns.

  All blocks are trainable. Where a group has fewer units than blocks, as in a
  classifier of few outputs, some blocks start at zero.

  Args:
    key: a PRNG key; it is consumed.
    layout: places of the blocks, of one kernel or of a stack.
    dtype: floating dtype of the result; computed in float32 at least, cast last.
    scale: gain, the singular values of the kernel.

  Returns:
    Blocks `[*stack, G, r, bi, bo]`; the rows of each kernel are orthonormal, times
    `scale`, if `in <= out`, else the columns.

  Raises:
    ValueError: if `key` is no PRNG key, `dtype` no floating one or `scale` not finite.

  Example:
    >>> from eoi_jax.blocks import block_layout, blocks_to_dense
    >>> layout = block_layout(jax.random.key(0), (96, 384), 0.25, block_size=8)
    >>> matrix = blocks_to_dense(block_orthogonal(jax.random.key(1), layout), layout)
    >>> bool(jnp.allclose(matrix @ matrix.T, jnp.eye(96), atol=5e-6))
    True
  """
  key = keys_lib.as_key(key)
  layout_lib.check_layout(layout)
  dtype = orthogonal.check_dtype(dtype)
  scale = checks.number("scale", scale)
  draw = functools.partial(_sample_stack, dtype=dtype)
  spec = jax.typeof(layout.inputs).sharding.spec
  return partitioned(draw, spec, key, layout, scale)


def block_gram_error(blocks: jax.Array, layout: BlockLayout, *, scale: float = 1.0):
  """Largest entry of `|W W^T - scale^2 I|` on the smaller Gram side.

  Args:
    blocks: `[*stack, G, r, bi, bo]`.
    layout: layout of the blocks.
    scale: gain that the kernel should have.

  Returns:
    Float array of shape `stack`.
  """
  layout_lib.check_blocks(blocks, layout)
  scale = checks.number("scale", scale)
  return partitioned(_gram_error, jax.P(), blocks, layout, scale)


@jax.jit
def _gram_error(blocks, layout: BlockLayout, scale):
  matrix = layout_lib.blocks_to_dense(blocks, layout)
  matrix = matrix.astype(checks.compute_dtype(matrix.dtype))
  if layout.shape[0] > layout.shape[1]:
    matrix = matrix.swapaxes(-1, -2)
  gram = jnp.einsum("...ik,...jk->...ij", matrix, matrix, precision="highest")
  target = jnp.square(jnp.asarray(scale, gram.dtype)) * jnp.eye(
    gram.shape[-1], dtype=gram.dtype
  )
  return jnp.max(jnp.abs(gram - jnp.broadcast_to(target, gram.shape)), axis=(-2, -1))


@functools.partial(jax.jit, static_argnames="dtype")
def _sample_stack(key, layout: BlockLayout, scale, dtype) -> jax.Array:
  """Blocks of every kernel of the stack, one after another."""
  compute_dtype = checks.compute_dtype(dtype)
  scale = jnp.asarray(scale, compute_dtype)
  if not layout.stack_shape:
    return (scale * _sample_blocks(key, layout, compute_dtype)).astype(dtype)
  flat = jax.tree.map(lambda table: table.reshape(-1, *table.shape[-2:]), layout)
  keys = jax.random.split(key, flat.inputs.shape[0])
  sample = lambda pair: _sample_blocks(pair[0], pair[1], compute_dtype)  # noqa: E731
  blocks = jax.lax.map(sample, (keys, flat))
  return (scale * blocks).astype(dtype).reshape(layout.blocks_shape)


def _sample_blocks(key, layout: BlockLayout, dtype) -> jax.Array:
  """Blocks `[G, r, bi, bo]` of one kernel."""
  groups, (bi, bo) = layout.num_groups, layout.block_shape
  rows, cols = (layout_lib.group_sizes(n, groups) for n in layout.shape)
  # Channels of each group: all units of the smaller side, which the larger side takes
  # over along the matchings.
  channels = min(bi, bo)
  if layout.shape[0] <= layout.shape[1]:
    middle_in = jnp.asarray(rows)
    middle_out = channels - 1 + _is_larger(layout, 0)[layout.inputs[:, 0]]
  else:
    middle_out = jnp.asarray(cols)
    middle_in = channels - 1 + _is_larger(layout, 1)[layout.outputs[:, 0]]
  both = _isometries(
    key,
    (max(bi, bo), channels),
    jnp.asarray(np.concatenate([rows, cols])),
    jnp.concatenate([middle_in, middle_out]),
    dtype,
  )
  left, right = both[:groups, :bi], both[groups:, :bo]
  # Which matching a channel follows; the last channel, which small groups lack, is of
  # the first matching.
  base = min(layout.shape) // groups
  owner = np.sort(np.arange(base) % layout.num_matchings)[::-1]
  owner = np.append(owner, np.zeros(channels - base, int))
  mine = jnp.asarray(owner == np.arange(layout.num_matchings)[:, None], dtype)
  return jnp.einsum(
    "hcim,cm,hom->hcio", left[layout.inputs], mine, right, precision="highest"
  )


def _is_larger(layout: BlockLayout, side: int) -> jax.Array:
  """Whether a group of inputs (0) or outputs (1) has the size of the block's side."""
  sizes = layout_lib.group_sizes(layout.shape[side], layout.num_groups)
  return jnp.asarray(sizes == layout.block_shape[side]).astype(jnp.int32)


def _isometries(key, shape: tuple[int, int], rows, cols, dtype) -> jax.Array:
  """Matrices `[len(rows), *shape]`, orthonormal columns, zero past `rows`, `cols`."""

  def sample(args):
    key, rows, cols = args
    live = (jnp.arange(shape[0], dtype=jnp.int32) < rows)[:, None]
    normal = jnp.where(live, jax.random.normal(key, shape, dtype), 0)
    # Column by column: what stands in a column that is dropped changes no other.
    factor, triangle = _qr(normal)
    sign = jnp.where(jnp.diagonal(triangle) < 0, -1, 1).astype(dtype)
    live = live & (jnp.arange(shape[1], dtype=jnp.int32) < cols)[None]
    return jnp.where(live, factor * sign[None], 0)

  return jax.lax.map(sample, (jax.random.split(key, rows.shape[0]), rows, cols))


@jax.custom_batching.sequential_vmap
def _qr(matrix):
  """QR of one matrix at a time: batched QR is slower on a CPU, and can hang there."""
  return tuple(jnp.linalg.qr(matrix))
