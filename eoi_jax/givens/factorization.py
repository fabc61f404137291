"""Orthogonal matrices as lists of planes and angles, and back."""

from __future__ import annotations

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from eoi_jax import _checks as checks
from eoi_jax.givens.rotations import Rotations, apply_rotations


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
        undone.append((row, column, _eliminate(work, row, column)))
    # The last column left has nothing to turn with: its sign shows a reflection.
    if work[row, row] < 0.0 and row + 1 < hi:
      undone.append((row, row + 1, _half_turn(work, row, row + 1)))
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


def _eliminate(work: np.ndarray, row: int, column: int) -> float:
  """Rotates columns `row` and `column` so that `work[row, column]` is zero."""
  angle = float(np.arctan2(work[row, column], work[row, row]))
  _rotate(work, row, column, angle)
  work[row, column] = 0.0
  return angle


def _half_turn(work: np.ndarray, i: int, j: int) -> float:
  """Negates columns `i` and `j`."""
  _rotate(work, i, j, np.pi)
  return np.pi


def _rotate(work: np.ndarray, i: int, j: int, angle: float) -> None:
  x, y = work[:, i].copy(), work[:, j].copy()
  work[:, i] = np.cos(angle) * x + np.sin(angle) * y
  work[:, j] = np.cos(angle) * y - np.sin(angle) * x
