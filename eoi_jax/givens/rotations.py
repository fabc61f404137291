"""Random Givens rotations of pairs of columns (arXiv:2406.01755, section 4)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from eoi_jax import _checks as checks

Angle = float | Callable[[jax.Array, tuple[int, ...]], jax.Array] | None


class Rotations(NamedTuple):
  """A sequence of `T` Givens rotations of columns, applied in order.

  Attributes:
    i: first column of each plane, int32 `[T]`, with `i < j`.
    j: second column of each plane, int32 `[T]`.
    angle: angle of each rotation in radians, float `[T]`.
  """

  i: jax.Array
  j: jax.Array
  angle: jax.Array


def sample_rotations(
  key: jax.Array,
  num_columns: int,
  num_rotations: int,
  *,
  angle: Angle = None,
) -> Rotations:
  """Samples independent random rotations: a uniform pair of columns, an angle.

  Args:
    key: a PRNG key; it is consumed.
    num_columns: number `N >= 2` of columns to draw pairs from, static.
    num_rotations: number `T >= 0` of rotations, static.
    angle: None for angles uniform on `[0, 2 pi)`; a float in radians for one
      constant angle; or `f(key, shape) -> angles` for a law of your own.

  Returns:
    `Rotations` with fields of shape `[T]`; every pair `i < j` is equally likely.

  Raises:
    ValueError: if `num_columns < 2`, `num_rotations < 0`, or `angle` is not finite.

  Example:
    >>> rotations = sample_rotations(jax.random.key(0), 8, 3)
    >>> rotations.i.shape, bool((rotations.i < rotations.j).all())
    ((3,), True)

  Reference: Nowak et al., 2024, arXiv:2406.01755, section 4.
  """
  num_columns = checks.integer("num_columns", num_columns, 2)
  num_rotations = checks.integer("num_rotations", num_rotations, 0)
  # One draw of bits for all: most of the time of a small kernel is spent here.
  bits = jax.random.bits(key, (num_rotations, 3), jnp.uint32)
  if angle is None:
    angles = _angle_from_bits(bits[:, 2])
  else:
    # Far from the counters that the bits above come from.
    key_angle = jax.random.fold_in(key, 2**31 - 1)
    angles = sample_angles(key_angle, (num_rotations,), angle)
  first = _scale_bits(bits[:, 0], num_columns)
  other = _scale_bits(bits[:, 1], num_columns - 1)
  other = jnp.where(other >= first, other + 1, other)
  return Rotations(jnp.minimum(first, other), jnp.maximum(first, other), angles)


def _scale_bits(bits: jax.Array, bound: int) -> jax.Array:
  """Integers `floor(bits * bound / 2**32)` in `[0, bound)`, int32, from uint32 bits.

  No value is likelier than another by more than `bound / 2**32` of itself.
  """
  bits_high, bits_low = bits >> 16, bits & 0xFFFF
  high, low = jnp.uint32(bound >> 16), jnp.uint32(bound & 0xFFFF)
  middle = bits_high * low + ((bits_low * low) >> 16)
  carry = bits_low * high + (middle & 0xFFFF)
  return (bits_high * high + (middle >> 16) + (carry >> 16)).astype(jnp.int32)


def _angle_from_bits(bits: jax.Array) -> jax.Array:
  """Angles on `[0, 2 pi)` from uint32 bits, in the default floating dtype."""
  dtype = jnp.result_type(float)
  return (bits >> 8).astype(dtype) * jnp.array(2 * math.pi / 2**24, dtype)


def sample_angles(key: jax.Array, shape: tuple[int, ...], angle: Angle) -> jax.Array:
  """Angles in radians of the given `shape`, by the rule of `sample_rotations`."""
  if angle is None:
    return jax.random.uniform(key, shape, maxval=2 * jnp.pi)
  if callable(angle):
    angles = jnp.asarray(angle(key, shape))
    if angles.shape != shape:
      raise ValueError(
        f"`angle` must return an array of shape {shape}, got {angles.shape}."
      )
    return angles
  return jnp.full(shape, checks.number("angle", angle))


def apply_rotations(matrix: jax.Array, rotations: Rotations) -> jax.Array:
  """Rotates pairs of columns of a matrix, one rotation after another.

  `c_i' = cos(a) c_i + sin(a) c_j` and `c_j' = -sin(a) c_i + cos(a) c_j`.

  Args:
    matrix: float array `[rows, cols]`.
    rotations: `Rotations` with `i != j` and both in `[0, cols)`.

  Returns:
    The rotated matrix, same shape and dtype. Arithmetic is in float32 at least.

  Raises:
    ValueError: if `matrix` is not two-dimensional or not floating point, the fields of
      `rotations` differ in length, or a plane is invalid. (Traced planes cannot be
      read: invalid ones then have no defined effect.)

  Example:
    >>> quarter = Rotations(jnp.array([0]), jnp.array([1]), jnp.array([jnp.pi / 2]))
    >>> bool(jnp.allclose(apply_rotations(jnp.eye(2), quarter),
    ...                   jnp.array([[0., -1.], [1., 0.]]), atol=1e-6))
    True

  Reference: Nowak et al., 2024, arXiv:2406.01755, section 4.
  """
  matrix = jnp.asarray(matrix)
  if matrix.ndim != 2:
    raise ValueError(
      f"`matrix` must have shape (rows, cols), got shape {matrix.shape}."
    )
  if not jnp.issubdtype(matrix.dtype, jnp.floating):
    raise ValueError(f"`matrix` must be floating point, got {matrix.dtype}.")
  rotations = check_rotations(rotations, matrix.shape[1])
  compute_dtype = checks.compute_dtype(matrix.dtype)
  rotated = _rotate_one_by_one(matrix.astype(compute_dtype), rotations)
  return rotated.astype(matrix.dtype)


@jax.jit
def _rotate_one_by_one(matrix: jax.Array, rotations: Rotations) -> jax.Array:
  compute_dtype = matrix.dtype
  pairs = jnp.stack([rotations.i, rotations.j], axis=-1)
  angles = rotations.angle
  if angles.dtype != jnp.float64:
    angles = angles.astype(compute_dtype)
  cos = jnp.cos(angles).astype(compute_dtype)
  sin = jnp.sin(angles).astype(compute_dtype)

  def rotate(columns, rotation):
    pair, c, s = rotation
    x, y = columns.at[pair].get(mode="promise_in_bounds")
    rotated = jnp.stack([c * x + s * y, c * y - s * x])
    return columns.at[pair].set(rotated, mode="promise_in_bounds"), None

  columns = jnp.swapaxes(matrix, 0, 1)
  columns, _ = jax.lax.scan(rotate, columns, (pairs, cos, sin))
  return jnp.swapaxes(columns, 0, 1)


def check_rotations(rotations: Rotations, num_columns: int) -> Rotations:
  """Returns rotations as arrays `[T]`, checked as far as their values are known.

  Args:
    rotations: three sequences or arrays.
    num_columns: number of columns that the planes may name.

  Returns:
    `Rotations` of int32, int32 and floating arrays.

  Raises:
    ValueError: if the fields differ in length or a plane is invalid.
  """
  i, j, angle = (jnp.asarray(field) for field in rotations)
  if not i.shape == j.shape == angle.shape or i.ndim != 1:
    raise ValueError(
      "`rotations` must have three fields of one shape [T], got shapes "
      f"{i.shape}, {j.shape} and {angle.shape}."
    )
  if i.size and not all(jnp.issubdtype(x.dtype, jnp.integer) for x in (i, j)):
    raise ValueError(
      f"`rotations` must name columns by integers, got {i.dtype} and {j.dtype}."
    )
  if not isinstance(i, jax.core.Tracer) and not isinstance(j, jax.core.Tracer):
    first, second = np.asarray(i), np.asarray(j)
    low, high = np.minimum(first, second), np.maximum(first, second)
    for t in np.flatnonzero((low < 0) | (high >= num_columns) | (low == high))[:1]:
      raise ValueError(
        f"`rotations` must name two different columns in [0, {num_columns}), got "
        f"({first[t]}, {second[t]}) at place {t}."
      )
  if not jnp.issubdtype(angle.dtype, jnp.floating):
    angle = angle.astype(jnp.float32)
  return Rotations(i.astype(jnp.int32), j.astype(jnp.int32), angle)
