"""The compiled sampler of sparse orthogonal matrices, one or many at once.

All matrices of one call go through each step together: their columns are stacked, and
a level of rotations is one gather over the stack. On a CPU the work is cut into pieces
that stay in cache, which never interact: groups of small matrices, blocks of rows of
large ones.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from eoi_jax import _checks as checks
from eoi_jax.givens import _candidates as schedules
from eoi_jax.givens import _levels as levels
from eoi_jax.givens import _partitioning as partitioning
from eoi_jax.givens import _support as support
from eoi_jax.givens.rotations import Angle

# Numbers of an array that a CPU core keeps in its cache beside a copy.
_CACHE_SIZE = 2**16
# Rows of a block: fewer leave the vector units short of work.
_MIN_BLOCK = 64
# Numbers that an accelerator works on at once, to bound its memory.
_DEVICE_SIZE = 2**28


class Settings(NamedTuple):
  """What a compiled sampler depends on; matrices with equal settings share it.

  Attributes:
    lo: the smaller side.
    hi: the larger side, whose rows or columns are rotated.
    tall: whether the result is `(hi, lo)` rather than `(lo, hi)`.
    num_rotations: number of candidates, `cover` not counted.
    dtype: dtype of the result.
    angle: law of the angles.
    schedule: one of `schedules.SCHEDULES`.
    cover: whether every column is touched first.
    impl: name of the PRNG implementation.
  """

  lo: int
  hi: int
  tall: bool
  num_rotations: int
  dtype: jnp.dtype
  angle: Angle
  schedule: str
  cover: bool
  impl: str

  @property
  def shape(self) -> tuple[int, int]:
    """Shape of one matrix."""
    return (self.hi, self.lo) if self.tall else (self.lo, self.hi)


def sample_to_budget(
  key: jax.Array,
  shape: tuple[int, int],
  budget,
  dtype,
  *,
  max_budget: int | None = None,
  angle: Angle = None,
  schedule: str = "iid",
  cover: bool = False,
) -> jax.Array:
  """Samples a sparse orthogonal matrix of at most `budget` nonzeros.

  Args:
    key: a PRNG key; it is consumed.
    shape: `(rows, cols)`, static.
    budget: largest number of nonzeros, at least `min(shape)`; an int, or a traced
      int32 scalar if `max_budget` is given.
    dtype: floating dtype of the result.
    max_budget: largest value of `budget`, static; it sizes the compiled program.
    angle: as in `sparse_orthogonal`.
    schedule: as in `sparse_orthogonal`.
    cover: as in `sparse_orthogonal`.

  Returns:
    Array of `shape`.
  """
  if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
    key = jax.random.wrap_key_data(key)
  lo, hi = min(shape), max(shape)
  largest = budget if max_budget is None else max_budget
  settings = Settings(
    lo=lo,
    hi=hi,
    tall=shape[0] > shape[1],
    num_rotations=schedules.num_candidates(lo, hi, largest, schedule),
    dtype=jnp.dtype(dtype),
    angle=angle,
    schedule=schedule,
    cover=cover and hi > lo and largest > lo,
    impl=str(jax.random.key_impl(key)),
  )
  return _sample_one(key, jnp.int32(budget), settings)


@functools.partial(jax.jit, static_argnames="settings")
def _sample_one(key: jax.Array, budget: jax.Array, settings: Settings) -> jax.Array:
  return _sampler(settings)(jax.random.key_data(key)[None], budget[None])[0]


@functools.lru_cache(maxsize=1024)
def _sampler(settings: Settings) -> Callable[[jax.Array, jax.Array], jax.Array]:
  """Returns `f(key_data [n, ...], budgets [n]) -> [n, *shape]`; `vmap` widens `n`."""

  @jax.custom_batching.custom_vmap
  def sample(key_data, budgets):
    return _sample_all(key_data, budgets, settings)

  @sample.def_vmap
  def _(axis_size, in_batched, key_data, budgets):
    args = [
      arg if batched else jnp.broadcast_to(arg, (axis_size, *arg.shape))
      for arg, batched in zip((key_data, budgets), in_batched, strict=True)
    ]
    flat = [arg.reshape(-1, *arg.shape[2:]) for arg in args]
    matrices = sample(*flat)
    return matrices.reshape(*args[1].shape, *matrices.shape[1:]), True

  return sample


def _in_cache() -> bool:
  """Whether to work in pieces; several devices share whole arrays between them."""
  return jax.default_backend() == "cpu" and jax.device_count() == 1


def _may_be_sharded() -> bool:
  """Whether the result may be sharded without a word of it in the program.

  Under a mesh of explicit axes shardings are part of types instead, and
  `out_sharding` asks for them.
  """
  axis_types = jax.sharding.get_abstract_mesh().axis_types
  explicit = any(axis is jax.sharding.AxisType.Explicit for axis in axis_types)
  return jax.device_count() > 1 and not explicit


def _sample_all(key_data, budgets, settings: Settings) -> jax.Array:
  """Samples `n` matrices, in groups of a size that suits the device."""
  number = budgets.shape[0]
  limit = _CACHE_SIZE if _in_cache() else _DEVICE_SIZE
  group = min(number, max(1, limit // (settings.lo * settings.hi)))
  if group == number:
    return _sample_group(key_data, budgets, settings)

  def sample(start):
    rows = start + jnp.arange(group, dtype=jnp.int32)
    return _sample_group(key_data[rows], budgets[rows], settings)

  shape = (number, *settings.shape)
  return _fill(sample, shape, group, axis=0, dtype=settings.dtype)


def _fill(
  make: Callable[[jax.Array], jax.Array],
  shape: tuple[int, ...],
  width: int,
  *,
  axis: int,
  dtype: jnp.dtype,
) -> jax.Array:
  """Joins pieces `make(start)` of `width` along an axis to an array of `shape`.

  The last piece overlaps the one before it where `width` does not divide the axis: so
  nothing is padded, and the result is written in place.
  """
  total = shape[axis]

  def write(index, whole):
    start = jnp.minimum(index * width, total - width)
    return jax.lax.dynamic_update_slice_in_dim(whole, make(start), start, axis)

  return jax.lax.fori_loop(0, -(-total // width), write, jnp.zeros(shape, dtype))


def _sample_group(key_data, budgets, settings: Settings) -> jax.Array:
  """Samples `n` matrices together."""
  lo, hi, number = settings.lo, settings.hi, budgets.shape[0]
  compute_dtype = checks.compute_dtype(settings.dtype)
  if settings.num_rotations == 0:
    matrix = jnp.eye(hi, lo, dtype=settings.dtype)
    matrix = matrix if settings.tall else matrix.T
    return jnp.broadcast_to(matrix, (number, *matrix.shape))
  partner, cos, sin, depth = _plan(key_data, budgets, settings, compute_dtype)
  if number == 1 and _may_be_sharded():
    rows, cols = (jnp.arange(size, dtype=jnp.int32) for size in (lo, hi))
    matrix = partitioning.rotated_identity(partner, cos, sin, rows, cols)
    return (matrix.T if settings.tall else matrix).astype(settings.dtype)[None]
  if not _in_cache():
    depth = partner.shape[0]  # static: `lax.scan` over levels
  tables = (partner, cos, sin)
  return _rotate_blocks(tables, depth, number, settings, compute_dtype)


def _plan(key_data, budgets, settings: Settings, dtype):
  """Plans the rotations of all matrices, whose columns are stacked.

  Returns:
    `(partner, cos, sin, depth)`: tables `[D, n hi]` and the levels that are in use.
  """
  lo, hi, number = settings.lo, settings.hi, budgets.shape[0]
  depth = schedules.max_depth(
    lo, hi, settings.num_rotations, settings.schedule, cover=settings.cover
  )
  known = schedules.known_levels(
    lo, hi, settings.num_rotations, settings.schedule, cover=settings.cover
  )
  known = None if known is None else jnp.asarray(known)

  def draw(data):
    rotations = schedules.sample_candidates(
      jax.random.wrap_key_data(data, impl=settings.impl),
      lo,
      hi,
      settings.num_rotations,
      schedule=settings.schedule,
      angle=settings.angle,
      cover=settings.cover,
    )
    return rotations, levels.group(rotations, hi, depth, known)

  rotations, grouped = jax.vmap(draw)(key_data)
  offset = hi * jnp.arange(number, dtype=jnp.int32)[:, None, None]
  partner = _stack_columns(grouped.partner + offset)
  bits = jnp.tile(support.identity_bits(hi, lo), (number, 1))
  used = jnp.minimum(jnp.max(grouped.level) + 1, depth)
  added = support.added_nonzeros(bits, partner, used)
  added = jnp.swapaxes(added.reshape(depth, number, hi), 0, 1)
  counts = jax.vmap(support.num_fitting)(added, grouped, rotations, budgets - lo)
  cos, sin = jax.vmap(levels.coefficients, in_axes=(0, 0, 0, None))(
    grouped, rotations, counts, dtype
  )
  places = jnp.arange(rotations.i.shape[-1], dtype=jnp.int32)
  kept = places[None, :] < counts[:, None]
  used = jnp.max(jnp.where(kept, grouped.level + 1, 0))
  return partner, _stack_columns(cos), _stack_columns(sin), used


def _stack_columns(table: jax.Array) -> jax.Array:
  """From `[n, D, hi]` to `[D, n hi]`."""
  number, depth, hi = table.shape
  return jnp.swapaxes(table, 0, 1).reshape(depth, number * hi)


def _rotate_blocks(tables, depth, number: int, settings: Settings, dtype) -> jax.Array:
  """Rotates partial identities, block of rows by block of rows."""
  lo, hi, tall = settings.lo, settings.hi, settings.tall
  width = lo
  if _in_cache():
    width = min(lo, max(_MIN_BLOCK, _CACHE_SIZE // (2 * number * hi)))
  partner, cos, sin = tables

  def block(start):
    column = jnp.arange(hi, dtype=jnp.int32)[:, None]
    row = start + jnp.arange(width, dtype=jnp.int32)[None, :]
    columns = jnp.tile((column == row).astype(dtype), (number, 1))
    columns = levels.rotate(columns, partner, cos, sin, depth).astype(settings.dtype)
    columns = columns.reshape(number, hi, width)
    return columns if tall else jnp.swapaxes(columns, 1, 2)

  if width == lo:
    return block(0)
  shape = (number, *settings.shape)
  return _fill(block, shape, width, axis=2 if tall else 1, dtype=settings.dtype)
