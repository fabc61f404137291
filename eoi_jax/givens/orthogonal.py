"""Sparse, exactly orthogonal matrices: plan the support on bits, then rotate.

A rotation of columns turns the supports `S_i`, `S_j` into `S_i | S_j` and so adds
`|S_i xor S_j|` nonzeros: which rotations fit into a budget is known before any
arithmetic (`support.py`). Rotations of disjoint columns commute, so planning and
arithmetic go level by level (`levels.py`): dozens of wide steps instead of thousands
of narrow ones, for one matrix or many at once (`sampling.py`).
"""

from __future__ import annotations

import math
import operator

import jax
import jax.core
import jax.numpy as jnp

from eoi_jax import _checks as checks
from eoi_jax.givens import _candidates as schedules
from eoi_jax.givens import _sampler as sampling
from eoi_jax.givens import patterns as guided
from eoi_jax.givens.rotations import Angle


def sparse_orthogonal(
  key: jax.Array,
  shape: tuple[int, int],
  density: float,
  dtype=jnp.float32,
  *,
  angle: Angle = None,
  schedule: str = "iid",
  cover: bool = False,
  pattern=None,
) -> jax.Array:
  """Samples a sparse matrix with exactly orthonormal rows or columns.

  Composes random Givens rotations of a partial identity until one more would pass
  the budget of nonzeros. Zeros are exact; orthogonality holds to rounding. Under
  `vmap` over keys all matrices are made together.

  Args:
    key: a PRNG key; it is consumed.
    shape: `(rows, cols)`, static. Columns are orthonormal if `rows >= cols`, rows if
      `rows <= cols`.
    density: fraction of nonzeros, a Python float in `[1 / max(shape), 1]`.
    dtype: floating dtype of the result. Arithmetic is in float32 at least and is cast
      last.
    angle: None for angles uniform on `[0, 2 pi)`, a float in radians, or
      `f(key, shape) -> angles`. Special angles (multiples of `pi / 4`, say) can make
      planned nonzeros cancel.
    schedule: "iid", independent uniform pairs of columns, the paper's law: nonzeros per
      row scatter widely, and about `(1 - d) / d` of the columns of a square matrix are
      never rotated. Or "matching", rounds of random perfect matchings: every column
      is rotated in every round, nonzeros per row and column are nearly equal.
    cover: whether rectangular matrices first spend one nonzero on every column (row)
      that would be empty at the start, so that no input or output is dead as far as
      the density allows: `density >= 1 / min(shape)` leaves none.
    pattern: bool array of `shape`, not traced, True = may be nonzero: keeps the support
      inside it. Rounds of random rotations of columns and of rows take the place of
      `schedule` and `cover`; the matrix falls short of the budget where they reach no
      further (`pattern_fill` tells). Density 1 fills as much as can be filled.

  Returns:
    Array of `shape`: at most `round(density * rows * cols)` nonzeros, and fewer by
    less than `min(shape)` (but for `pattern`).

  Raises:
    ValueError: if `shape` is not two-dimensional, `density` is out of range, `dtype`
      is not floating point, `schedule` is unknown, or `pattern` has another shape or
      no perfect matching.

  Example:
    >>> q = sparse_orthogonal(jax.random.key(0), (64, 32), density=0.2)
    >>> bool(jnp.allclose(q.T @ q, jnp.eye(32), atol=1e-5))
    True
    >>> 409 - 32 < int((q != 0).sum()) <= 409
    True

  Reference: Nowak et al., 2024, arXiv:2406.01755, section 4.
  """
  shape = check_shape(shape)
  budget = round(check_density(density, shape) * shape[0] * shape[1])
  if pattern is not None:
    pattern = guided.check_pattern(pattern, shape)
    return guided.sample_in_pattern(
      key, pattern, budget, check_dtype(dtype), angle=angle
    )
  return sampling.sample_to_budget(
    key,
    shape,
    budget,
    check_dtype(dtype),
    angle=angle,
    schedule=schedules.check_schedule(schedule),
    cover=bool(cover),
  )


def orthogonality_error(matrix: jax.Array) -> jax.Array:
  """Largest deviation of the Gram matrix from the identity.

  Args:
    matrix: float array `[rows, cols]`.

  Returns:
    Scalar `max |G - I|` with `G = M^T M` if `rows >= cols`, else `G = M M^T`, in
    float32 at least.

  Raises:
    ValueError: if `matrix` is not two-dimensional or not floating point.

  Example:
    >>> float(orthogonality_error(2 * jnp.eye(3, 5)))
    3.0
  """
  matrix = jnp.asarray(matrix)
  if matrix.ndim != 2:
    raise ValueError(
      f"`matrix` must have shape (rows, cols), got shape {matrix.shape}."
    )
  if not jnp.issubdtype(matrix.dtype, jnp.floating):
    raise ValueError(f"`matrix` must be floating point, got {matrix.dtype}.")
  matrix = matrix.astype(checks.compute_dtype(matrix.dtype))
  if matrix.shape[0] < matrix.shape[1]:
    matrix = matrix.T
  gram = jnp.matmul(matrix.T, matrix, precision=jax.lax.Precision.HIGHEST)
  return jnp.max(jnp.abs(gram - jnp.eye(gram.shape[0], dtype=gram.dtype)), initial=0.0)


def check_shape(shape) -> tuple[int, int]:
  """Returns `shape` as two positive ints or raises ValueError."""
  try:
    sizes = tuple(operator.index(size) for size in shape)
  except TypeError:
    sizes = ()
  if len(sizes) != 2 or min(sizes) < 1:
    raise ValueError(
      f"`shape` must be two positive integers (rows, cols), got {shape!r}."
    )
  if math.prod(sizes) >= 2**31:
    raise ValueError(f"`shape` must have fewer than 2**31 elements, got {sizes}.")
  return sizes


def check_density(density, shape: tuple[int, int]) -> float:
  """Returns `density` as a float in `[1 / max(shape), 1]` or raises ValueError."""
  if isinstance(density, jax.core.Tracer):
    raise ValueError(
      "`density` must be a Python number, since it fixes the number of candidate "
      "rotations; got a traced value."
    )
  floor = 1 / max(shape)
  # One part in 10^9 of slack: 1 / max(shape) computed elsewhere may round below.
  try:
    value = float(density)
  except (TypeError, ValueError):
    value = math.nan
  if not floor * (1 - 1e-9) <= value <= 1.0:
    raise ValueError(
      f"`density` must be in [{floor:.4g}, 1] for shape {tuple(shape)}, got {density}."
    )
  return value


def check_dtype(dtype):
  """Returns the canonical floating dtype or raises ValueError."""
  dtype = jax.dtypes.canonicalize_dtype(dtype)
  if not jnp.issubdtype(dtype, jnp.floating):
    raise ValueError(f"`dtype` must be floating point, got {dtype}.")
  return dtype
