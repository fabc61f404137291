"""Supports of rotated matrices, planned on packed bits."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from eoi_jax.givens._levels import Levels
from eoi_jax.givens.rotations import Rotations

_WORD = 32


def identity_bits(num_columns: int, num_rows: int) -> jax.Array:
  """Packed supports of the columns of a partial identity, uint32 `[N, words]`."""
  row = jnp.arange(num_columns, dtype=jnp.int32)[:, None]
  word = jnp.arange(-(-num_rows // _WORD), dtype=jnp.int32)[None, :]
  bit = jnp.left_shift(jnp.uint32(1), (row % _WORD).astype(jnp.uint32))
  return jnp.where((row // _WORD == word) & (row < num_rows), bit, jnp.uint32(0))


def added_nonzeros(support: jax.Array, partner: jax.Array, depth) -> jax.Array:
  """Nonzeros that each level adds to each column.

  Args:
    support: packed supports of the columns, uint32 `[N, words]`.
    partner: int32 `[D, N]`, the column that a column is rotated with, or itself.
    depth: int32 scalar, at most `D`; levels from there on are left out.

  Returns:
    int32 `[D, N]`: `|S_c xor S_partner|` before the level, 0 past `depth`. A rotation
    of columns `i` and `j` adds this number at `i` (or at `j`: it is the same).
  """

  def merge(level, carry):
    support, added = carry
    mine = jax.lax.dynamic_index_in_dim(partner, level, keepdims=False)
    other = support.at[mine].get(mode="promise_in_bounds")
    new = jax.lax.population_count(support ^ other).sum(-1, dtype=jnp.uint32)
    added = jax.lax.dynamic_update_index_in_dim(added, new.astype(jnp.int32), level, 0)
    return support | other, added

  none = jnp.zeros(partner.shape, jnp.int32)
  return jax.lax.fori_loop(0, depth, merge, (support, none))[1]


def num_fitting(
  added: jax.Array, levels: Levels, rotations: Rotations, limit
) -> jax.Array:
  """Number of leading rotations that fit into a budget of nonzeros.

  Args:
    added: int32 `[D, N]` of `added_nonzeros`.
    levels: the candidate rotations, grouped.
    rotations: the same rotations, `T` of them.
    limit: nonzeros that may be added in all; an int or a traced int32 scalar.

  Returns:
    int32 scalar `t`: the largest number of candidates that, taken from the start of
    the sequence, add at most `limit` nonzeros.
  """
  new = added.at[levels.level, rotations.i].get(mode="fill", fill_value=0)
  fits = jnp.cumsum(new) <= limit
  # A rotation past the last level (a negligible chance) ends the sequence too.
  fits &= levels.level < added.shape[0]
  return jnp.sum(jnp.cumprod(fits, dtype=jnp.int32), dtype=jnp.int32)
