"""Exactly the `count` highest of many scores, under tracing and on the host."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from eoi_jax._sharding import replicate


def top_mask(scores: jax.Array, count) -> jax.Array:
  """Marks the `count` highest scores; ties go to the lowest index.

  Counts the scores above a threshold once per bit instead of sorting them: for
  millions of scores that is several times faster, and `count` may be traced. Scores are
  real, of any shape, without nan.

  Example:
    >>> top_mask(jnp.array([3.0, 1.0, 3.0, 3.0]), 2).tolist()
    [True, False, True, False]
  """
  bits = _ordered_bits(scores)
  num_bits = 8 * bits.dtype.itemsize
  count = jnp.asarray(count, jnp.int32)

  def refine(step, threshold):
    bit = jnp.left_shift(
      jnp.ones((), bits.dtype), (num_bits - 1 - step).astype(bits.dtype)
    )
    higher = threshold | bit
    enough = jnp.sum(bits >= higher, dtype=jnp.int32) >= count
    return jnp.where(enough, higher, threshold)

  # Zero, but with the manual axes of the scores inside `shard_map`.
  zero = jnp.max(bits, initial=0) & jnp.zeros((), bits.dtype)
  threshold = jax.lax.fori_loop(jnp.int32(0), jnp.int32(num_bits), refine, zero)
  above = bits > threshold
  ties = bits == threshold
  rank = jnp.cumsum(ties.reshape(-1), dtype=jnp.int32).reshape(scores.shape)
  return above | (ties & (rank <= count - jnp.sum(above, dtype=jnp.int32)))


def top_masks(scores: dict[str, jax.Array], count) -> dict[str, jax.Array]:
  """Marks the `count` highest scores of several arrays: `top_mask` of all in a row."""
  with jax.numpy_dtype_promotion("standard"):
    dtype = jnp.result_type(jnp.uint8, *scores.values())  # bools are 0 and 1
  own = {name: jax.typeof(score).sharding for name, score in scores.items()}
  flat = [jnp.ravel(replicate(score)).astype(dtype) for score in scores.values()]
  ends = np.cumsum([piece.size for piece in flat])[:-1]
  pieces = jnp.split(top_mask(jnp.concatenate(flat), count), ends)
  return {
    name: piece.reshape(scores[name].shape, out_sharding=own[name])
    for name, piece in zip(scores, pieces, strict=True)
  }


def mark_highest(
  argument: str, given: dict[str, Any], count: int
) -> dict[str, np.ndarray]:
  """Masks of the `count` highest of all scores; of equal ones, the first.

  Selection in linear time on the host, where it is many times faster than sorting.
  """
  scores = {name: np.asarray(leaf) for name, leaf in given.items()}
  for name, score in scores.items():
    if np.iscomplexobj(score) or np.isnan(score.astype(np.float64)).any():
      raise ValueError(f"`{argument}` must be real numbers, got others in {name!r}.")
    scores[name] = score.astype(np.float64)
  if not any(score.any() for score in scores.values()):
    raise ValueError(f"`{argument}` must not be zero everywhere: that ranks nothing.")
  if count == 0:
    return {name: np.zeros(s.shape, bool) for name, s in scores.items()}
  flat = np.concatenate([s.reshape(-1) for s in scores.values()])
  flat.partition(flat.size - count)
  threshold = flat[flat.size - count]
  masks = {name: np.asarray(s > threshold) for name, s in scores.items()}
  missing = count - sum(np.count_nonzero(mask) for mask in masks.values())
  for name, s in scores.items():
    ties = np.flatnonzero(s == threshold)[:missing]
    masks[name].reshape(-1)[ties] = True
    missing -= ties.size
  return masks


def _ordered_bits(scores: jax.Array) -> jax.Array:
  """Unsigned integers in the order of the scores."""
  scores = jnp.asarray(scores)
  if jnp.issubdtype(scores.dtype, jnp.unsignedinteger):
    return scores
  width = 8 * scores.dtype.itemsize
  unsigned = jnp.dtype(f"uint{width}")
  top = jnp.array(1 << (width - 1), unsigned)
  if jnp.issubdtype(scores.dtype, jnp.integer):
    return jax.lax.bitcast_convert_type(scores, unsigned) ^ top
  scores = jnp.where(scores == 0, jnp.zeros_like(scores), scores)  # -0 ties with 0
  bits = jax.lax.bitcast_convert_type(scores, unsigned)
  return jnp.where(bits & top != 0, ~bits, bits | top)
