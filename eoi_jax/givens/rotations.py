"""Givens rotations of pairs of columns: drawn, applied, and read off a matrix.

Reference: Nowak et al., 2024, arXiv:2406.01755, section 4.
"""

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from eoi_jax import _checks as checks
from eoi_jax import _keys as keys_lib
from eoi_jax._sharding import vary_alike
from eoi_jax.givens._plan import Angle, Rotations, check_angle, draw_rotations
from eoi_jax.givens.orthogonal import check_dtype, check_shape


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


def apply_rotations(matrix: jax.Array, rotations: Rotations) -> jax.Array:
  """Rotates pairs of columns of a matrix, one rotation after another.

  `c_i' = cos(a) c_i + sin(a) c_j` and `c_j' = -sin(a) c_i + cos(a) c_j`.

  Args:
    matrix: float array `[rows, cols]`.
    rotations: `Rotations` with `i != j` and both in `[0, cols)`.

  Returns:
    The rotated matrix, same shape and dtype. Arithmetic is in float32 at least.

  Raises:
    ValueError: if `matrix` is not two-dimensional or not floating point, fields of
      `rotations` differ in length, or a plane is invalid. (Traced planes cannot be
      read: invalid ones have no defined effect.)

  Example:
    >>> quarter = Rotations(jnp.array([0]), jnp.array([1]), jnp.array([jnp.pi / 2]))
    >>> bool(jnp.allclose(apply_rotations(jnp.eye(2), quarter),
    ...                   jnp.array([[0., -1.], [1., 0.]]), atol=1e-6))
    True

  Reference: Nowak et al., 2024, arXiv:2406.01755, section 4.
  """
  matrix = checks.matrix(matrix)
  rotations = _check_rotations(rotations, matrix.shape[1])
  compute_dtype = checks.compute_dtype(matrix.dtype)
  rotated = _rotate_one_by_one(matrix.astype(compute_dtype), rotations)
  return rotated.astype(matrix.dtype)


@jax.jit
def _rotate_one_by_one(matrix: jax.Array, rotations: Rotations) -> jax.Array:
  pairs, angles = jnp.stack(rotations[:2], axis=-1), rotations.angle
  if angles.dtype != jnp.float64:
    angles = angles.astype(matrix.dtype)
  cos, sin = (turn(angles).astype(matrix.dtype) for turn in (jnp.cos, jnp.sin))

  def rotate(columns, rotation):
    pair, c, s = rotation
    x, y = columns.at[pair].get(mode="promise_in_bounds")
    rotated = jnp.stack([c * x + s * y, c * y - s * x])
    return columns.at[pair].set(rotated, mode="promise_in_bounds"), None

  columns = vary_alike(matrix.T, pairs, cos)
  return jax.lax.scan(rotate, columns, (pairs, cos, sin))[0].T


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
    ValueError: if `shape` is not two-dimensional, `dtype` not floating point, or
      `rotations` are invalid, as in `apply_rotations`.

  Example:
    >>> quarter = Rotations(jnp.array([0]), jnp.array([1]), jnp.array([jnp.pi / 2]))
    >>> bool(jnp.allclose(rotated_identity((2, 2), quarter),
    ...                   jnp.array([[0., -1.], [1., 0.]]), atol=1e-6))
    True
  """
  rows, cols = shape = check_shape(shape)
  dtype = check_dtype(dtype)
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
  i, j, angles = np.array(undone, np.float64).reshape(-1, 3)[::-1].T
  i, j = (jnp.asarray(side, jnp.int32) for side in (i, j))
  return Rotations(i, j, jnp.asarray(-angles, jnp.result_type(float)))


def _rotate(work: np.ndarray, i: int, j: int, angle: float) -> None:
  """Rotates two columns in place."""
  x, y = work[:, i].copy(), work[:, j].copy()
  work[:, i] = np.cos(angle) * x + np.sin(angle) * y
  work[:, j] = np.cos(angle) * y - np.sin(angle) * x


def _check_rotations(rotations: Rotations, num_columns: int) -> Rotations:
  """Returns rotations as arrays `[T]`, checked as far as their values are known."""
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
