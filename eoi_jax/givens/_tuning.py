"""How the work is laid out on a device; what is computed stands in `orthogonal.py`.

On a CPU work goes in pieces that stay in cache, and a batch goes matrix by matrix. On
several devices each computes its part of a sharded matrix, with nothing exchanged.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from eoi_jax._sharding import vary_alike
from eoi_jax.givens import _plan as plan_lib

# Numbers of an array that a CPU core keeps in its cache beside a copy.
_CACHE_SIZE = 2**16
# Rows of a block: fewer leave the vector units short of work. With a power of two, 64,
# on an Intel Xeon the rotations take 1 to 1.7 times as long (512 to 8192 columns).
_MIN_BLOCK = 48
# Bytes of an array from which on XLA parts an operation that reads it between cores.
_PARTED_SIZE = 7 * 2**16
# Numbers that an accelerator works on at once, to bound its memory.
_DEVICE_SIZE = 2**28


def in_cache() -> bool:
  """Whether to work in pieces; several devices share whole arrays between them."""
  return jax.default_backend() == "cpu" and jax.device_count() == 1


def batched(
  sample: Callable[..., jax.Array], words: jax.Array, budget: jax.Array, size: int
) -> jax.Array:
  """Calls `sample(words, budget, alone=...)` for one matrix, or for all of a `vmap`.

  `sample` draws one matrix, of `size` entries, from threefry key data and a budget;
  `alone` says whether it may be partitioned.
  """

  @jax.custom_batching.custom_vmap
  def many(words, budgets):
    if budgets.shape[0] == 1:
      return sample(words[0], budgets[0], alone=True)[None]
    one = lambda args: sample(*args, alone=False)  # noqa: E731
    group = None if in_cache() else max(1, _DEVICE_SIZE // size)
    if group is None or group < budgets.shape[0]:
      return jax.lax.map(one, (words, budgets), batch_size=group)
    return jax.vmap(one)((words, budgets))

  @many.def_vmap
  def _(axis_size, in_batched, *args):
    args = [
      arg if axis else jnp.broadcast_to(arg, (axis_size, *arg.shape))
      for arg, axis in zip(args, in_batched, strict=True)
    ]
    matrices = many(*(arg.reshape(-1, *arg.shape[2:]) for arg in args))
    return matrices.reshape(*args[1].shape, *matrices.shape[1:]), True

  return many(words[None], budget[None])[0]


class _Steps(NamedTuple):
  """A plan in steps of `2 C` columns: those that a level leaves alone are not passed.

  Of random pairs a level takes a fifth of the columns only: at density .1 an identity
  is rotated 1.6 to 3 times as fast as by whole levels (512 to 4096 columns).
  """

  own: jax.Array  # int32 `[S, 2 C]`, the columns to write; `N` where there is none
  partner: jax.Array  # the column that each is rotated with, in the same step
  cos: jax.Array
  sin: jax.Array
  number: jax.Array  # of leading steps in use


def _steps(plan: plan_lib.Sequence, settings: plan_lib.Settings) -> _Steps:
  """Sorts the rotations of a plan by level and cuts levels into steps."""
  depth, columns, num = settings.depth, settings.columns, plan.i.shape[0]
  size = min(max(columns // 32, 16), 128)  # rotations of a step
  # What is sorted is computed once: tables that gather from the rotations themselves
  # would draw and turn each number anew for each of their places.
  place = jnp.arange(num, dtype=jnp.int32)
  operands = (plan.level, place, plan.i, plan.j, plan.cos, plan.sin)
  _, _, *fields = jax.lax.sort(operands, num_keys=2)
  level = jnp.arange(depth, dtype=jnp.int32)
  ends = jnp.sum(plan.level[None] <= level[:, None], axis=1, dtype=jnp.int32)
  starts = jnp.concatenate([jnp.zeros(1, jnp.int32), ends[:-1]])
  last_steps = jnp.cumsum((ends - starts + size - 1) // size)
  step = jnp.arange(depth + num // size, dtype=jnp.int32)
  level = jnp.sum(last_steps[None] <= step[:, None], axis=1, dtype=jnp.int32)
  level = jnp.minimum(level, depth - 1)
  # Steps and places are counted from the first of their level.
  step = step - jnp.concatenate([jnp.zeros(1, jnp.int32), last_steps[:-1]])[level]
  place = starts[level] + step * size
  place = place[:, None] + jnp.arange(size, dtype=jnp.int32)[None]
  there = place < ends[level][:, None]
  i, j, cos, sin = (field.at[place].get(mode="clip") for field in fields)
  i, j = (jnp.where(there, side, columns) for side in (i, j))
  return _Steps(
    own=jnp.concatenate([i, j], axis=1),
    partner=jnp.concatenate([j, i], axis=1),
    cos=jnp.concatenate([cos, cos], axis=1),
    sin=jnp.concatenate([sin, -sin], axis=1),
    number=last_steps[-1],
  )


def _laid_out(
  plan: plan_lib.Plan, settings: plan_lib.Settings
) -> _Steps | plan_lib.Levels:
  """Tables of the rotations of a plan, for `_rotate`."""
  if isinstance(plan, plan_lib.Sequence) and in_cache():
    return _steps(plan, settings)
  return plan_lib.levels(plan, settings)


def _rotate(columns: jax.Array, tables: _Steps | plan_lib.Levels) -> jax.Array:
  """Rotates the columns of a matrix, `[N, rows]`, one column a row."""
  if isinstance(tables, _Steps):
    return _rotate_steps(columns, tables)
  if in_cache():
    return _rotate_in_turns(columns, tables)
  return plan_lib.rotate(columns, tables)


def _rotate_steps(columns: jax.Array, steps: _Steps) -> jax.Array:
  """Rotates the columns of one step after another, in place."""
  # XLA would part the arithmetic of a step between the cores, for the size of the
  # whole block, and wait longer for them than for the work. What is written into a
  # part of an array is done by one core: at 4096 columns twice as fast.
  guard = columns.size * columns.dtype.itemsize > _PARTED_SIZE

  def step(place, carry):
    columns, halves = carry
    own, partner, cos, sin = (
      jax.lax.dynamic_index_in_dim(table, place, keepdims=False) for table in steps[:4]
    )
    mine = columns.at[own].get(mode="promise_in_bounds")
    other = columns.at[partner].get(mode="promise_in_bounds")
    new = cos[:, None] * mine + sin[:, None] * other
    if guard:
      halves = jax.lax.dynamic_update_index_in_dim(halves, new, place % 2, 0)
      new = jax.lax.dynamic_index_in_dim(halves, place % 2, keepdims=False)
    new = columns.at[own].set(new, mode="promise_in_bounds", unique_indices=True)
    return new, halves

  columns = jnp.pad(columns, ((0, 1), (0, 0)))  # to write to where there is none
  shape = (2 if guard else 0, steps.own.shape[1], columns.shape[1])
  carry = vary_alike((columns, jnp.zeros(shape, columns.dtype)), steps.cos)
  return jax.lax.fori_loop(0, steps.number, step, carry)[0][:-1]


def _rotate_in_turns(columns: jax.Array, levels: plan_lib.Levels) -> jax.Array:
  """Rotates all columns level by level, to and fro between two arrays.

  A level that reads the array that it writes makes XLA copy it. One that writes a part
  of another array does not: 1.3 to 1.8 times as fast.
  """
  if len(levels.partner) % 2:
    more = ((0, 1), (0, 0))  # a level that rotates nothing
    levels = levels._replace(
      partner=jnp.pad(levels.partner, more),
      cos=jnp.pad(levels.cos, more, constant_values=1),
      sin=jnp.pad(levels.sin, more),
    )
  size = len(columns)

  def two_levels(turn, arrays):
    here, there = arrays
    start = jnp.minimum(turn, 0)  # 0, unknown to the compiler
    for target in (0, 1):
      new = plan_lib.rotate_level(here[:size], levels, 2 * turn + target)
      here, there = jax.lax.dynamic_update_slice_in_dim(there, new, start, 0), here
    return here, there

  here = vary_alike(jnp.pad(columns, ((0, 1), (0, 0))), levels.cos)
  arrays = (here, jnp.zeros_like(here))
  return jax.lax.fori_loop(0, (levels.depth + 1) // 2, two_levels, arrays)[0][:size]


def rotated_identity(
  plan: plan_lib.Plan, settings: plan_lib.Settings, lo: int | jax.Array, alone: bool
) -> jax.Array:
  """A partial identity with its columns rotated, of `settings.shape`.

  Rows from `lo` on have no meaning. `alone`: no other matrix is computed beside it.
  """
  rows, columns, tall = settings.rows, settings.columns, settings.tall
  tables = _laid_out(plan, settings)
  if alone and _may_be_sharded():
    lines = (jnp.arange(size, dtype=jnp.int32) for size in (rows, columns))
    matrix = _partitioned(*tables[:3], *lines)
    return (matrix.T if tall else matrix).astype(settings.dtype)
  width = rows
  if in_cache():
    # Columns of many rows pay where a step is guarded anyway.
    size = _MIN_BLOCK * columns * tables.cos.dtype.itemsize
    guarded = isinstance(tables, _Steps) and size > _PARTED_SIZE
    least = 2 * _MIN_BLOCK if guarded else _MIN_BLOCK
    width = min(rows, max(least, _CACHE_SIZE // (2 * columns)))

  def block(start):
    row = start + jnp.arange(width, dtype=jnp.int32)
    part = _rows(tables, row, columns).astype(settings.dtype)
    return part if tall else part.T

  if width == rows:
    return block(jnp.int32(0))
  axis = 1 if tall else 0

  def write(index, whole):
    # The last block overlaps the one before it where blocks do not divide the rows.
    start = jnp.minimum(index * width, rows - width)
    return jax.lax.dynamic_update_slice_in_dim(whole, block(start), start, axis)

  empty = vary_alike(jnp.zeros(settings.shape, settings.dtype), plan.cos)
  return jax.lax.fori_loop(0, (lo + width - 1) // width, write, empty)


def _rows(
  tables: _Steps | plan_lib.Levels, row: jax.Array, num_columns: int
) -> jax.Array:
  """Rows of a rotated identity, `[N, rows]`."""
  column = jnp.arange(num_columns, dtype=jnp.int32)[:, None]
  return _rotate((column == row[None, :]).astype(tables.cos.dtype), tables)


def _may_be_sharded() -> bool:
  """Whether the result may be sharded without a word of it in the program.

  Under a mesh of explicit or manual axes shardings are part of types instead, and
  `out_sharding` asks for them.
  """
  axis_types = jax.sharding.get_abstract_mesh().axis_types
  return jax.device_count() > 1 and all(axis is AxisType.Auto for axis in axis_types)


@custom_partitioning
def _partitioned(partner, cos, sin, rows, cols) -> jax.Array:
  """Rows and columns of a rotated identity, partitioned as the result is sharded.

  The rows of a matrix whose columns are rotated never interact: a device makes its
  rows on its own. Nor do its columns, if the rotations are undone backwards on the
  rows of a part of the identity: `E G_1 ... G_T` restricted to some columns is `E (G_1
  (... (G_T I)))` restricted to them.
  """
  del cols
  levels = plan_lib.Levels(partner, cos, sin, partner.shape[0])
  return _rows(levels, rows, partner.shape[1]).T


def _partition(mesh, arg_shapes, result_shape):
  # Of a sharding that is not given by axes every device makes the whole.
  spec = PartitionSpec(*getattr(result_shape.sharding, "spec", ()))
  tables = [NamedSharding(mesh, PartitionSpec())] * 3
  row_axis, column_axis = (*spec, None, None)[:2]
  lines = [NamedSharding(mesh, PartitionSpec(axis)) for axis in (row_axis, column_axis)]
  num_rows = arg_shapes[3].shape[0]

  def lower(partner, cos, sin, rows, cols):
    depth, num_columns = partner.shape
    if cols.shape[0] < num_columns and rows.shape[0] == num_rows:
      back = plan_lib.Levels(partner[::-1], cos[::-1], -sin[::-1], depth)
      return _rows(back, cols, num_columns)[:num_rows]
    part = _rows(plan_lib.Levels(partner, cos, sin, depth), rows, num_columns)
    return (part if cols.shape[0] == num_columns else part[cols]).T

  return mesh, lower, NamedSharding(mesh, spec), (*tables, *lines)


_partitioned.def_partition(
  partition=_partition,
  infer_sharding_from_operands=lambda mesh, *_: NamedSharding(mesh, PartitionSpec()),
  sharding_rule="d h, d h, d h, r, c -> r c",
)
