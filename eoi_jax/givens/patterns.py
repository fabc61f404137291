"""Sparse orthogonal matrices whose support stays inside a given pattern.

Start from a perfect matching of the pattern, a partial permutation matrix. A rotation
of two columns (or of two rows: both keep the matrix orthogonal) is accepted only if
the union of the two supports stays inside the pattern of both. Rounds of random
matchings of the pairs that the pattern allows, of columns and of rows in turn, fill
the pattern as far as such rotations reach.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from eoi_jax import _checks as checks
from eoi_jax import _keys as keys_lib
from eoi_jax._sharding import vary_alike
from eoi_jax.givens._plan import Angle, check_angle, draw_angles

_NUM_PHASES = 4  # columns, rows, columns, rows


class _Neighbours(NamedTuple):
  """For each line (column or row) the lines that it may ever be rotated with."""

  start: jax.Array  # int32 `[n]`, first place of its list in `indices`
  degree: jax.Array  # int32 `[n]`, length of its list
  indices: jax.Array  # int32, all lists, padded


def sample_in_pattern(
  key: jax.Array, pattern: np.ndarray, budget: int, dtype, *, angle: Angle = None
) -> jax.Array:
  """`sparse_orthogonal` inside a pattern `[rows, cols]`, of at most `budget` nonzeros.

  Raises:
    ValueError: if the pattern has no perfect matching; rows (columns) that are left
      without a partner are named.
  """
  tall = pattern.shape[0] > pattern.shape[1]
  wide = pattern.T if tall else pattern
  match = match_lines(pattern)
  if problem := matching_error(match, pattern.shape):
    raise ValueError(problem)
  matrix = _sample(
    keys_lib.as_key(key),
    jnp.asarray(wide),
    jnp.asarray(match),
    _neighbours(wide.T, wide.shape[0] == wide.shape[1]),
    _neighbours(wide, True),
    jnp.int32(budget),
    dtype=jnp.dtype(dtype),
    angle=check_angle(angle),
  )
  return matrix.T if tall else matrix


def check_pattern(pattern, shape: tuple[int, int]) -> np.ndarray:
  """Returns `pattern` as a NumPy array of bools of `shape` or raises ValueError."""
  if isinstance(pattern, jax.core.Tracer):
    raise ValueError("`pattern` must be a concrete array, got a traced value.")
  return _check_bools(np.asarray(pattern), shape)


def _check_bools(pattern: Any, shape: tuple[int, ...]) -> Any:
  """Returns an array if it is of bools and of `shape` or raises ValueError."""
  if pattern.dtype != np.bool_ or pattern.shape != tuple(shape):
    raise ValueError(
      f"`pattern` must be a bool array of shape {tuple(shape)}, got {pattern.dtype} of "
      f"shape {pattern.shape}."
    )
  return pattern


def pattern_fill(matrix: jax.Array, pattern: jax.Array) -> jax.Array:
  """Fraction of a pattern that a matrix fills.

  Args:
    matrix: array `[rows, cols]`.
    pattern: bool `[rows, cols]`.

  Returns:
    Scalar in `[0, 1]`: nonzeros of `matrix` inside the pattern over its True entries.

  Raises:
    ValueError: if `pattern` is not of bools, or of another shape.

  Example:
    >>> float(pattern_fill(jnp.eye(2), jnp.ones((2, 2), bool)))
    0.5
  """
  matrix = jnp.asarray(matrix)
  given = pattern if isinstance(pattern, jax.Array) else np.asarray(pattern)
  live = jnp.asarray(_check_bools(given, matrix.shape))
  filled = jnp.sum((matrix != 0) & live, dtype=jnp.float32)
  return filled / jnp.maximum(jnp.sum(live, dtype=jnp.float32), 1)


def match_lines(pattern: np.ndarray) -> np.ndarray:
  """Matches as many lines as possible with a partner of their own in the pattern.

  Gives int32 `[min(rows, cols)]`: for each line of the smaller side (rows of a square)
  the number of the line on the other side, or -1.
  """
  from scipy.sparse import csgraph, csr_matrix

  wide = pattern.T if pattern.shape[0] > pattern.shape[1] else pattern
  match = csgraph.maximum_bipartite_matching(csr_matrix(wide), perm_type="column")
  return match.astype(np.int32)


def matching_error(match: np.ndarray, shape: tuple[int, ...]) -> str | None:
  """Says which lines of a pattern of `shape` have no partner, None if all have."""
  alone = np.flatnonzero(match < 0)
  if not alone.size:
    return None
  side = "column" if shape[0] > shape[1] else "row"
  shown = ", ".join(map(str, alone[:8])) + (", ..." if alone.size > 8 else "")
  return (
    "`pattern` must have a perfect matching (a partner of its own for every "
    f"{side}), got none for {side} {shown}."
  )


def _neighbours(lines: np.ndarray, all_live: bool) -> _Neighbours:
  """Lists pairs of lines whose patterns share two entries (one, if lines are empty)."""
  from scipy import sparse

  graph = sparse.csr_matrix(lines, dtype=np.int32)
  shared = (graph @ graph.T).tocsr()
  shared.setdiag(0)
  shared.data[shared.data < (2 if all_live else 1)] = 0
  shared.eliminate_zeros()
  # Padded to powers of two, so that patterns of like size share a compiled program.
  size = 1 << max(0, int(shared.nnz) - 1).bit_length()
  indices = np.pad(shared.indices, (0, size - shared.nnz))
  lists = (shared.indptr[:-1], np.diff(shared.indptr), indices)
  return _Neighbours(*(jnp.asarray(array, jnp.int32) for array in lists))


@functools.partial(jax.jit, static_argnames=("dtype", "angle"))
def _sample(key, pattern, match, columns, rows, budget, *, dtype, angle):
  """Runs all phases; `pattern` is `[lo, hi]` with `lo <= hi`."""
  compute_dtype = checks.compute_dtype(dtype)
  lo, hi = pattern.shape
  matrix = jnp.zeros((lo, hi), compute_dtype)
  matrix = matrix.at[jnp.arange(lo, dtype=jnp.int32), match].set(1)
  matrix, left = vary_alike((matrix, budget - lo), key)
  support = matrix != 0
  num_rounds = math.ceil(8 * math.log2(max(hi, 2))) // 2
  for phase, phase_key in enumerate(jax.random.split(key, _NUM_PHASES)):
    # Lines are rotated in the layout `[line, entry]`: columns are transposed.
    turn = jnp.transpose if phase % 2 == 0 else lambda x: x
    neighbours = columns if phase % 2 == 0 else rows
    step = functools.partial(_round, turn(pattern), neighbours, angle)
    keys = jax.random.split(phase_key, num_rounds)
    carry, _ = jax.lax.scan(step, (turn(matrix), turn(support), left), keys)
    matrix, support, left = turn(carry[0]), turn(carry[1]), carry[2]
  return matrix.astype(dtype)


def _round(pattern, neighbours: _Neighbours, angle: Angle, carry, key):
  """Rotates a random matching of the allowed pairs of lines, as far as it fits."""
  lines, support, left = carry
  key_pairs, key_angle = jax.random.split(key)
  partner = _random_matching(key_pairs, neighbours)
  index = jnp.arange(partner.shape[0], dtype=jnp.int32)
  union = support | support[partner]
  allowed = jnp.all(~union | (pattern & pattern[partner]), axis=1)
  # A pair adds as many nonzeros to either of its lines; it is counted at the first.
  added = jnp.sum(union ^ support, axis=1, dtype=jnp.int32)
  added += jnp.sum(union ^ support[partner], axis=1, dtype=jnp.int32)
  first = allowed & (index < partner)
  total = jnp.cumsum(jnp.where(first, added, 0))
  kept = first & (total <= left)
  kept |= kept[partner] & (index > partner)
  angles = draw_angles(jax.random.key_data(key_angle), partner.shape, angle)
  angles = angles.astype(lines.dtype)
  angles = jnp.where(index < partner, angles, angles[partner])
  cos = jnp.where(kept, jnp.cos(angles), 1)[:, None]
  sin = jnp.where(index < partner, jnp.sin(angles), -jnp.sin(angles))
  rotated = cos * lines + jnp.where(kept, sin, 0)[:, None] * lines[partner]
  support = jnp.where(kept[:, None], union, support)
  used = jnp.sum(jnp.where(kept & first, added, 0), dtype=jnp.int32)
  return (rotated, support, left - used), None


def _random_matching(key, neighbours: _Neighbours) -> jax.Array:
  """Random disjoint pairs of neighbours: partner of each line, or the line itself.

  Every line proposes a random neighbour; a proposal wins if it has the highest
  priority among all that name one of its two lines.
  """
  size = neighbours.start.shape[0]
  index = jnp.arange(size, dtype=jnp.int32)
  key_choice, key_order = jax.random.split(key)
  share = jax.random.uniform(key_choice, (size,), jnp.float32)
  place = (share * neighbours.degree.astype(jnp.float32)).astype(jnp.int32)
  place = neighbours.start + jnp.minimum(place, neighbours.degree - 1)
  choice = neighbours.indices.at[place].get(mode="clip")
  choice = jnp.where(neighbours.degree > 0, choice, index)
  priority = jax.random.permutation(key_order, index)
  highest = priority.at[choice].max(priority)
  wins = (highest == priority) & (highest[choice] == priority) & (choice != index)
  partner = jnp.where(wins, choice, index)
  return partner.at[jnp.where(wins, choice, size)].set(index, mode="drop")
