"""Rotated identities on several devices, each of which computes its own part.

The rows of a matrix whose columns are rotated never interact: a device makes its rows
on its own. Nor do its columns, if the rotations are undone backwards on the rows of a
part of the identity: `E G_1 ... G_T` restricted to some columns is `E (G_1 (... (G_T
I)))` restricted to them. So either side may be sharded, and nothing is exchanged.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import NamedSharding, PartitionSpec

from eoi_jax.givens import _levels as levels


def rotated_part(
  partner: jax.Array,
  cos: jax.Array,
  sin: jax.Array,
  rows: jax.Array,
  cols: jax.Array,
  *,
  num_rows: int,
) -> jax.Array:
  """Rows and columns of a rotated partial identity.

  Args:
    partner: int32 `[D, hi]`, levels of rotations of the columns.
    cos: float `[D, hi]`.
    sin: float `[D, hi]`.
    rows: int32, indices of the rows wanted.
    cols: int32, indices of the columns wanted.
    num_rows: number of rows of the whole matrix.

  Returns:
    The rotated `eye(num_rows, hi)` at these rows and columns.
  """
  depth, hi = partner.shape
  line = jnp.arange(hi, dtype=jnp.int32)[:, None]
  if cols.shape[0] < hi and rows.shape[0] == num_rows:
    part = (line == cols[None, :]).astype(cos.dtype)
    tables = partner[::-1], cos[::-1], -sin[::-1]
    return levels.rotate(part, *tables, depth)[:num_rows]
  part = (line == rows[None, :]).astype(cos.dtype)
  part = levels.rotate(part, partner, cos, sin, depth)
  return (part if cols.shape[0] == hi else part[cols]).T


@custom_partitioning
def rotated_identity(partner, cos, sin, rows, cols) -> jax.Array:
  """`rotated_part` of all rows and columns, partitioned as the result is sharded."""
  return rotated_part(partner, cos, sin, rows, cols, num_rows=rows.shape[0])


def _infer(mesh, arg_shapes, result_shape) -> NamedSharding:
  del arg_shapes, result_shape
  return NamedSharding(mesh, PartitionSpec())


def _partition(mesh, arg_shapes, result_shape):
  # Of a sharding that is not given by axes every device makes the whole.
  spec = PartitionSpec(*getattr(result_shape.sharding, "spec", ()))
  rows, cols = (*spec, None, None)[:2]
  tables = [NamedSharding(mesh, PartitionSpec())] * 3
  lines = [NamedSharding(mesh, PartitionSpec(axis)) for axis in (rows, cols)]
  num_rows = arg_shapes[3].shape[0]

  def lower(partner, cos, sin, rows, cols):
    return rotated_part(partner, cos, sin, rows, cols, num_rows=num_rows)

  return mesh, lower, NamedSharding(mesh, spec), (*tables, *lines)


rotated_identity.def_partition(
  partition=_partition,
  infer_sharding_from_operands=_infer,
  sharding_rule="d h, d h, d h, r, c -> r c",
)
