"""Givens rotations of pairs of columns: drawn, applied, and read off a matrix.

Reference: Nowak et al., 2024, arXiv:2406.01755, section 4.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from eoi_jax import _checks as checks
from eoi_jax import _keys as keys_lib

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
  place = jnp.arange(num_rotations, dtype=jnp.int32)
  words = keys_lib.key_data(key)
  return draw_rotations(words, place, num_columns, check_angle(angle))


def draw_rotations(
  words: jax.Array, place: jax.Array, num_columns: int | jax.Array, angle: Angle
) -> Rotations:
  """The rotations of `sample_rotations` at some places of its sequence.

  Args:
    words: threefry key data, uint32 `[2]`.
    place: int32 `[T]`.
    num_columns: an int or int32 scalar.
    angle: as `check_angle` returns it.

  Returns:
    `Rotations` with fields `[T]`.
  """
  counters = jnp.arange(3, dtype=jnp.uint32)[:, None]
  bits = keys_lib.random_bits(words, counters + 3 * place.astype(jnp.uint32)[None, :])
  if angle is None:
    angles = _angle_from_bits(bits[2])
  else:
    # Far from the counters that the bits above come from.
    angles = draw_angles(keys_lib.fold_in(words, 2**31 - 1), place.shape, angle)
  first = _scale_bits(bits[0], num_columns)
  other = _scale_bits(bits[1], num_columns - 1)
  other = jnp.where(other >= first, other + 1, other)
  return Rotations(jnp.minimum(first, other), jnp.maximum(first, other), angles)


def _scale_bits(bits: jax.Array, bound: int | jax.Array) -> jax.Array:
  """Integers `floor(bits * bound / 2**32)` in `[0, bound)`, int32, from uint32 bits.

  No value is likelier than another by more than `bound / 2**32` of itself.
  """
  bits_high, bits_low = bits >> 16, bits & 0xFFFF
  bound = jnp.asarray(bound, jnp.uint32)
  high, low = bound >> 16, bound & 0xFFFF
  middle = bits_high * low + ((bits_low * low) >> 16)
  carry = bits_low * high + (middle & 0xFFFF)
  return (bits_high * high + (middle >> 16) + (carry >> 16)).astype(jnp.int32)


def _angle_from_bits(bits: jax.Array) -> jax.Array:
  """Angles on `[0, 2 pi)` from uint32 bits, in the default floating dtype."""
  dtype = jnp.result_type(float)
  return (bits >> 8).astype(dtype) * jnp.array(2 * math.pi / 2**24, dtype)


def draw_angles(words: jax.Array, shape: tuple[int, ...], angle: Angle) -> jax.Array:
  """Angles in radians of the given `shape`, by the rule of `sample_rotations`.

  Args:
    words: threefry key data, uint32 `[2]`; it is consumed.
    shape: shape of the result.
    angle: as `check_angle` returns it.

  Returns:
    Float array of `shape`.

  Raises:
    ValueError: if `angle` is a function that returns another shape.
  """
  if angle is None:
    counters = jnp.arange(math.prod(shape), dtype=jnp.uint32).reshape(shape)
    return _angle_from_bits(keys_lib.random_bits(words, counters))
  if callable(angle):
    key = jax.random.wrap_key_data(words, impl="threefry2x32")
    angles = jnp.asarray(angle(key, shape))
    if angles.shape != shape:
      raise ValueError(
        f"`angle` must return an array of shape {shape}, got {angles.shape}."
      )
    return angles
  return jnp.full(shape, angle)


def check_angle(angle: Any) -> Angle:
  """Returns `angle` as None, a function or a finite float, or raises ValueError."""
  return angle if angle is None or callable(angle) else checks.number("angle", angle)


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
  rotations = _check_rotations(rotations, matrix.shape[1])
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


def rotated_identity(
  shape: tuple[int, int], rotations: Rotations, *, dtype=jnp.float32
) -> jax.Array:
  """Builds the orthogonal matrix of an explicit list of rotations.

  Args:
    shape: `(rows, cols)`, static.
    rotations: `Rotations` of the `max(shape)` columns of the partial identity
      `eye(min(shape), max(shape))`, applied in order; if `rows > cols` the result is
      transposed, as in `sparse_orthogonal`.
    dtype: floating dtype of the result.

  Returns:
    Array of `shape` with orthonormal rows or columns. Its support is that of the
    planes: every rotation unites the supports of two columns.

  Raises:
    ValueError: if a plane names a column out of range, or fields differ in length.

  Example:
    >>> quarter = Rotations(jnp.array([0]), jnp.array([1]), jnp.array([jnp.pi / 2]))
    >>> bool(jnp.allclose(rotated_identity((2, 2), quarter),
    ...                   jnp.array([[0., -1.], [1., 0.]]), atol=1e-6))
    True
  """
  rows, cols = shape
  identity = jnp.eye(min(shape), max(shape), dtype=checks.compute_dtype(dtype))
  matrix = apply_rotations(identity, rotations)
  return (matrix.T if rows > cols else matrix).astype(dtype)


def rotations_from_orthogonal(matrix) -> Rotations:
  """Factors an orthogonal matrix into rotations of columns (Givens QR).

  Zeros are skipped, so that a sparse matrix gives a short list. Runs on the host in
  float64.

  Args:
    matrix: float array `[rows, cols]`, orthonormal on its smaller side, not traced. A
      square matrix must have determinant 1: rotations make no reflection. (A matrix
      with determinant -1 becomes one when a row or column is negated.)

  Returns:
    `Rotations` that `rotated_identity(matrix.shape, ...)` turns back into the matrix;
    angles are float64 under x64, else float32.

  Raises:
    ValueError: if `matrix` is traced, not two-dimensional, not orthogonal, or a
      reflection.

  Example:
    >>> from eoi_jax import sparse_orthogonal
    >>> q = sparse_orthogonal(jax.random.key(0), (16, 24), 0.2)
    >>> rotations = rotations_from_orthogonal(q)
    >>> bool(jnp.allclose(rotated_identity((16, 24), rotations), q, atol=1e-5))
    True
  """
  if isinstance(matrix, jax.core.Tracer):
    raise ValueError("`matrix` must be a concrete array, got a traced value.")
  work = np.array(matrix, np.float64)
  if work.ndim != 2:
    raise ValueError(f"`matrix` must have shape (rows, cols), got shape {work.shape}.")
  work = work.T.copy() if work.shape[0] > work.shape[1] else work
  lo, hi = work.shape
  error = np.abs(work @ work.T - np.eye(lo)).max(initial=0.0)
  if not error < 1e-3:
    raise ValueError(
      "`matrix` must be orthonormal on its smaller side, got a Gram error of "
      f"{error:.3g}."
    )
  undone = []
  for row in range(lo):
    for column in range(row + 1, hi):
      if work[row, column] != 0.0:
        angle = float(np.arctan2(work[row, column], work[row, row]))
        undone.append((row, column, angle))
        _rotate(work, row, column, angle)
        work[row, column] = 0.0
    # The last column left has nothing to turn with: its sign shows a reflection.
    if work[row, row] < 0.0 and row + 1 < hi:
      undone.append((row, row + 1, np.pi))
      _rotate(work, row, row + 1, np.pi)
  if lo == hi and work[-1, -1] < 0.0:
    raise ValueError(
      "`matrix` must have determinant 1, got -1: negate a row or column first."
    )
  planes = np.array([(i, j) for i, j, _ in reversed(undone)], np.int32).reshape(-1, 2)
  angles = np.array([-angle for _, _, angle in reversed(undone)], np.float64)
  dtype = jnp.result_type(float)
  return Rotations(
    jnp.asarray(planes[:, 0]), jnp.asarray(planes[:, 1]), jnp.asarray(angles, dtype)
  )


def _rotate(work: np.ndarray, i: int, j: int, angle: float) -> None:
  """Rotates two columns in place."""
  x, y = work[:, i].copy(), work[:, j].copy()
  work[:, i] = np.cos(angle) * x + np.sin(angle) * y
  work[:, j] = np.cos(angle) * y - np.sin(angle) * x


def _check_rotations(rotations: Rotations, num_columns: int) -> Rotations:
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
