"""Expected density of a product of random Givens rotations, and its inverse.

A row of `r` nonzeros grows to `r + 1` with chance `r (N - r) / C(N, 2)`: the exact law
is a recurrence of `O(N)` a rotation. For many columns a row first multiplies at
random, to `W exp(2 t / N)` with `W` exponential of mean 1, then follows the logistic
curve of its mean: this limit inverts in under a millisecond for any `N`.
"""

import functools
import itertools
import math

import numpy as np

from eoi_jax import _checks as checks
from eoi_jax.givens._plan import limit_rotations

# Columns and rotations up to which `rotations_for_density` runs the recurrence (.1 s).
_EXACT_COLUMNS, _EXACT_ROTATIONS = 2048, 2**14


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
  number = int(steps.max(initial=0)) + 1
  curve = np.array(list(itertools.islice(_evolve(num_columns), number)))
  densities = curve[steps.astype(np.int64)]
  return float(densities) if steps.ndim == 0 else densities


def rotations_for_density(num_columns: int, density: float) -> int:
  """First number of rotations whose expected density reaches `density`.

  Args:
    num_columns: as in `expected_density`.
    density: target in `(0, 1]`.

  Returns:
    The smallest `t` with `expected_density(num_columns, t) >= density` (in float64).
    It is exact up to 2048 columns and 2^14 rotations. Beyond, the limit of many columns
    gives the same number at every density tried, with 4096, 8192 and 16384 columns.

  Raises:
    ValueError: if `num_columns < 1` or `density` is not in `(0, 1]`.

  Example:
    >>> rotations_for_density(128, 0.1), rotations_for_density(2**20, 0.1)
    (174, 6166878)

  Reference: Nowak et al., 2024, arXiv:2406.01755, appendix A.
  """
  num_columns = checks.integer("num_columns", num_columns, 1)
  density = checks.density(density)
  limit = math.ceil(limit_rotations(num_columns, density))
  if num_columns > _EXACT_COLUMNS or limit > _EXACT_ROTATIONS:
    return limit
  return _first_rotation(num_columns, density)


@functools.lru_cache(maxsize=4096)
def _first_rotation(num_columns: int, density: float) -> int:
  if density <= 1 / num_columns:
    return 0
  return next(t for t, value in enumerate(_evolve(num_columns)) if value >= density)


def _evolve(num_columns: int):
  """Yields the expected density after 0, 1, 2, ... rotations."""
  n = num_columns
  r = np.arange(1, n + 1, dtype=np.float64)
  pairs = max(1.0, n * (n - 1) / 2)
  stay = (r * (r - 1) / 2 + (n - r) * (n - r - 1) / 2) / pairs
  grow = r * (n - r) / pairs
  law = np.zeros(n)  # law[r - 1]: chance that a row has r nonzeros
  law[0] = 1.0
  filled = r / n
  missing = 1.0 - filled
  low, high = 0, 1  # the chances below `low` and from `high` on are negligible
  while True:
    density = float(law[low:high] @ filled[low:high])
    # Close to 1, the mean of what is missing keeps its relative precision.
    yield density if density < 0.5 else 1.0 - float(law[low:high] @ missing[low:high])
    top = min(high + 1, n)
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
