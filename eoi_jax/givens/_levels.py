"""Grouping of consecutive rotations on disjoint columns, which run together.

Greedy levels: a rotation goes one level after the last earlier rotation that shares
a column with it. Running the levels in order gives the very matrix of the sequential
order, since only rotations of disjoint columns change places. `T` random rotations of
`N` columns make about `8.8 T / N` levels: dozens, where `T` is thousands.

A level is one gather: every column becomes `cos * itself + sin * partner`, with
`partner = itself` where no rotation touches it. That is a single fused pass over the
columns, with no scatter, on every backend.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from eoi_jax.givens.rotations import Rotations


class Levels(NamedTuple):
  """`T` rotations of `N` columns arranged in `D` levels.

  Attributes:
    partner: int32 `[D, N]`, the other column of the rotation that touches a column at
      a level, or the column itself.
    level: int32 `[T]`, level of each rotation; `D` or more where it found no place.
  """

  partner: jax.Array
  level: jax.Array


def group(
  rotations: Rotations, num_columns: int, depth: int, level: jax.Array | None = None
) -> Levels:
  """Arranges rotations in greedy levels.

  Args:
    rotations: sequence with fields `[T]`.
    num_columns: number `N` of columns.
    depth: number `D` of levels to make room for.
    level: int32 `[T]`, levels that are known to keep the order of the sequence on
      every column; greedy levels if None.

  Returns:
    `Levels` of that depth. Rotations at a level past it are left out.
  """
  if level is None:
    level = _greedy_level(rotations, num_columns)
  partner = jnp.broadcast_to(
    jnp.arange(num_columns, dtype=jnp.int32), (depth, num_columns)
  )
  partner = partner.at[level, rotations.i].set(rotations.j, mode="drop")
  partner = partner.at[level, rotations.j].set(rotations.i, mode="drop")
  return Levels(partner, level)


def _greedy_level(rotations: Rotations, num_columns: int) -> jax.Array:
  """Level of each rotation, int32 `[T]`: one more than the last before it."""
  num_rotations = rotations.i.shape[-1]
  before = _previous(rotations, num_columns)

  def relax(state):
    level, _ = state
    known = jnp.concatenate([level, jnp.full(1, -1, jnp.int32)])
    deeper = 1 + known[before].max(axis=0)
    return deeper, jnp.any(deeper != level)

  # After k sweeps the first k levels are final.
  start = (jnp.zeros(num_rotations, jnp.int32), jnp.bool(True))
  return jax.lax.while_loop(lambda state: state[1], relax, start)[0]


def _previous(rotations: Rotations, num_columns: int) -> jax.Array:
  """Last earlier rotation of columns `i` and `j`, int32 `[2, T]`; `T` if there is none.

  Sorting the touches by column, then time, makes those of one column neighbours.
  """
  num_rotations = rotations.i.shape[-1]
  columns = jnp.concatenate([rotations.i, rotations.j])
  times = jnp.tile(jnp.arange(num_rotations, dtype=jnp.int32), 2)
  places = jnp.arange(2 * num_rotations, dtype=jnp.int32)
  if num_columns * 2 * num_rotations < 2**32:  # one packed operand sorts faster
    packed = columns.astype(jnp.uint32) * jnp.uint32(2 * num_rotations)
    packed = jnp.sort(packed + (2 * times + places // num_rotations).astype(jnp.uint32))
    columns = (packed // jnp.uint32(2 * num_rotations)).astype(jnp.int32)
    touch = (packed % jnp.uint32(2 * num_rotations)).astype(jnp.int32)
    times, places = touch // 2, touch % 2 * num_rotations + touch // 2
  else:
    columns, times, places = jax.lax.sort((columns, times, places), num_keys=2)
  same = columns[1:] == columns[:-1]
  before = jnp.where(same, times[:-1], num_rotations)
  before = jnp.concatenate([jnp.full(1, num_rotations, jnp.int32), before])
  unsorted = jnp.zeros_like(before).at[places].set(before, unique_indices=True)
  return unsorted.reshape(2, num_rotations)


def coefficients(
  levels: Levels, rotations: Rotations, count, dtype
) -> tuple[jax.Array, jax.Array]:
  """Factors of each column and of its partner at each level, `[D, N]` each.

  Args:
    levels: the grouped rotations.
    rotations: the same rotations.
    count: int or int32 scalar; only the first `count` of the sequence are applied.
    dtype: floating dtype of the result.

  Returns:
    `(cos, sin)`, where a column stays as it is `(1, 0)`.
  """
  num_rotations = rotations.i.shape[-1]
  shape = levels.partner.shape
  kept = jnp.arange(num_rotations, dtype=jnp.int32) < count
  level = jnp.where(kept, levels.level, shape[0])
  angle = rotations.angle.astype(dtype)
  cos, sin = jnp.cos(angle), jnp.sin(angle)
  at_i, at_j = (level, rotations.i), (level, rotations.j)
  keep = jnp.ones(shape, dtype).at[at_i].set(cos, mode="drop")
  mix = jnp.zeros(shape, dtype).at[at_i].set(sin, mode="drop")
  keep = keep.at[at_j].set(cos, mode="drop")
  return keep, mix.at[at_j].set(-sin, mode="drop")


def rotate(
  columns: jax.Array,
  partner: jax.Array,
  cos: jax.Array,
  sin: jax.Array,
  depth: jax.Array | int,
) -> jax.Array:
  """Applies the first `depth` levels of rotations.

  Args:
    columns: float array `[N, rows]`, one column of the matrix a row.
    partner: int32 `[D, N]`.
    cos: float `[D, N]`.
    sin: float `[D, N]`.
    depth: int or int32 scalar, at most `D`; an int runs as `lax.scan`.

  Returns:
    The rotated columns, same shape and dtype.
  """

  def step(columns, level):
    partner, c, s = level
    other = columns.at[partner].get(mode="promise_in_bounds")
    return c[:, None] * columns + s[:, None] * other, None

  if isinstance(depth, int):
    return jax.lax.scan(step, columns, (partner[:depth], cos[:depth], sin[:depth]))[0]

  def body(level, columns):
    tables = (
      jax.lax.dynamic_index_in_dim(table, level, keepdims=False)
      for table in (partner, cos, sin)
    )
    return step(columns, tuple(tables))[0]

  return jax.lax.fori_loop(0, depth, body, columns)
