"""Expected density of a product of random Givens rotations (exact recurrence)."""

from __future__ import annotations

import functools

import numpy as np

from eoi_jax import _checks as checks


@functools.lru_cache(maxsize=64)
def _coefficients(num_columns: int) -> tuple[np.ndarray, np.ndarray]:
  """Chances that a row of `r` nonzeros keeps `r`, or grows to `r + 1`; r = 1..N."""
  n = num_columns
  r = np.arange(1, n + 1, dtype=np.float64)
  pairs = n * (n - 1) / 2
  stay = (r * (r - 1) / 2 + (n - r) * (n - r - 1) / 2) / pairs
  return stay, r * (n - r) / pairs


def _evolve(num_columns: int):
  """Yields the expected density after 0, 1, 2, ... rotations."""
  stay, grow = _coefficients(num_columns)
  law = np.zeros(num_columns)  # law[r - 1]: chance that a row has r nonzeros
  law[0] = 1.0
  filled = np.arange(1, num_columns + 1) / num_columns
  missing = 1.0 - filled
  low, high = 0, 1  # the chances below `low` and from `high` on are negligible
  while True:
    density = float(law[low:high] @ filled[low:high])
    # Close to 1, the mean of what is missing keeps its relative precision.
    yield density if density < 0.5 else 1.0 - float(law[low:high] @ missing[low:high])
    top = min(high + 1, num_columns)
    new = law[low:top] * stay[low:top]
    new[1:] += law[low : top - 1] * grow[low : top - 1]
    law[low:top] = new
    high = top
    while high - low > 1 and law[high - 1] < 1e-30:
      law[high - 1] = 0.0
      high -= 1
    while high - low > 1 and law[low] < 1e-30:
      law[low] = 0.0
      low += 1


def expected_density(num_columns: int, num_rotations):
  """Expected density of a partial identity after random Givens rotations.

  With `p(t, r)` the chance that a row has `r` nonzeros after `t` rotations of
  uniformly random pairs of the `N` columns: `p(0, 1) = 1` and `p(t + 1, r) =
  p(t, r) (C(r, 2) + C(N - r, 2)) / C(N, 2) + p(t, r - 1) (r - 1)(N - r + 1) /
  C(N, 2)`; the density is `sum_r r p(t, r) / N`. It does not depend on the number
  of rows, as long as that is at most `N`.

  Args:
    num_columns: number `N >= 1` of columns, the larger side of the matrix.
    num_rotations: int, or array of ints of any shape, at least 0.

  Returns:
    A float in `[1 / N, 1]`, or a float64 NumPy array of the shape of `num_rotations`.

  Raises:
    ValueError: if `num_columns < 1`, or `num_rotations` is negative or not integer.

  Example:
    >>> expected_density(2, 1), expected_density(100, [0, 0]).tolist()
    (1.0, [0.01, 0.01])

  Reference: Nowak et al., 2024, arXiv:2406.01755, appendix A.
  """
  num_columns = checks.integer("num_columns", num_columns, 1)
  steps = np.asarray(num_rotations)
  if not np.issubdtype(steps.dtype, np.integer) and steps.size:
    raise ValueError(f"`num_rotations` must be integer, got dtype {steps.dtype}.")
  if steps.size and steps.min() < 0:
    raise ValueError(f"`num_rotations` must be at least 0, got {steps.min()}.")
  last = int(steps.max()) if steps.size else 0
  if num_columns == 1:
    curve = np.ones(last + 1)
  else:
    densities = _evolve(num_columns)
    curve = np.array([next(densities) for _ in range(last + 1)])
  if steps.ndim == 0:
    return float(curve[last])
  return curve[steps.astype(np.int64)]


def rotations_for_density(num_columns: int, density: float) -> int:
  """First number of rotations whose expected density reaches `density`.

  Args:
    num_columns: number `N >= 1` of columns, the larger side of the matrix.
    density: target in `(0, 1]`.

  Returns:
    The smallest `t` with `expected_density(num_columns, t) >= density` (in float64).

  Raises:
    ValueError: if `num_columns < 1` or `density` is not in `(0, 1]`.

  Example:
    >>> rotations_for_density(128, 0.1), rotations_for_density(1024, 0.1)
    (174, 2470)

  Reference: Nowak et al., 2024, arXiv:2406.01755, appendix A.
  """
  return _first_rotation(
    checks.integer("num_columns", num_columns, 1), checks.density(density)
  )


@functools.lru_cache(maxsize=4096)
def _first_rotation(num_columns: int, density: float) -> int:
  if density <= 1 / num_columns:
    return 0
  for step, value in enumerate(_evolve(num_columns)):
    if value >= density:
      return step
  raise AssertionError("the expected density converges to 1")
