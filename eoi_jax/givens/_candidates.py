"""Sequences of candidate rotations: independent pairs, or perfect matchings.

"iid": every rotation takes a uniformly random pair of columns, as in the paper. After
`2 T / N` rotations a column, the nonzeros of a row follow the recurrence of
`density.py`: a wide, skewed law, and about `(1 - d) / d` columns stay untouched.

"matching": every round pairs all columns at random, and rotates each pair. A row's
nonzeros double from round to round, less what overlaps, until the budget ends the last
round early: nonzeros per row and column are nearly equal, no column stays untouched,
and a density takes `log2(ln(1 - d) / ln(1 - 1 / N))` rounds.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from eoi_jax.givens import density as density_lib
from eoi_jax.givens.rotations import Angle, Rotations, sample_angles, sample_rotations

SCHEDULES = ("iid", "matching")


def check_schedule(schedule: str) -> str:
  """Returns `schedule` or raises ValueError, with the known ones."""
  if schedule not in SCHEDULES:
    raise ValueError(f"`schedule` must be one of {SCHEDULES}, got {schedule!r}.")
  return schedule


def num_candidates(lo: int, hi: int, budget: int, schedule: str) -> int:
  """Candidate rotations that reach `budget` nonzeros but for a negligible chance.

  It is rounded up so that nearby budgets share a number, and a compiled program.

  Args:
    lo: number of rows, the smaller side.
    hi: number of columns, the larger side.
    budget: nonzeros to reach, less `lo`.
    schedule: one of `SCHEDULES`.

  Returns:
    Number `T` of rotations to draw.
  """
  if budget <= lo:
    return 0
  # A matrix is done once one more rotation, of up to `lo` nonzeros, may not fit.
  density = min(budget / (lo * hi), 1.0 - 0.5 / hi)
  if schedule == "matching":
    return _num_rounds(lo, hi, density) * (hi // 2)
  # The number needed scatters by about 0.6 N / sqrt(lo) around the recurrence; close to
  # density 1 the last missing cells take exponentially distributed times. Measured
  # over thousands of draws, with a margin of more than five deviations.
  mean = density_lib.rotations_for_density(hi, density)
  spread = 3.2 / math.sqrt(lo) + 8.0 / (1.0 + (1.0 - density) * lo)
  quantum = -(-hi // 4)
  return -(-math.ceil(mean + hi * spread) // quantum) * quantum


def _num_rounds(lo: int, hi: int, density: float) -> int:
  """Rounds of perfect matchings after which `density` is passed, with a margin."""
  mean = math.log2(max(1.0, math.log1p(-density) / math.log1p(-1 / hi)))
  spare = 1 if (1.0 - density) * lo > 32 else 2 + math.ceil(12 / math.sqrt(lo))
  return math.ceil(mean) + spare


def sample_candidates(
  key: jax.Array,
  lo: int,
  hi: int,
  num_rotations: int,
  *,
  schedule: str = "iid",
  angle: Angle = None,
  cover: bool = False,
) -> Rotations:
  """Draws a sequence of candidate rotations.

  Args:
    key: a PRNG key; it is consumed.
    lo: number of rows, the smaller side.
    hi: number of columns, the larger side, at least 2.
    num_rotations: number `T` of candidates.
    schedule: one of `SCHEDULES`.
    angle: as in `sample_rotations`.
    cover: whether `hi - lo` rotations come first that touch each of the columns `lo`
      to `hi - 1`, empty at the start, once; they cost one nonzero each.

  Returns:
    `Rotations` of length `T`, or `hi - lo + T` with `cover`.
  """
  if schedule == "iid":
    rotations = sample_rotations(key, hi, num_rotations, angle=angle)
  else:
    rotations = _sample_matchings(key, hi, num_rotations, angle)
  if not cover or lo == hi:
    return rotations
  key_pairs, key_angle = jax.random.split(jax.random.fold_in(key, 1))
  first = _sample_cover(key_pairs, lo, hi)
  angles = sample_angles(key_angle, (hi - lo,), angle)
  first = Rotations(*first, angles.astype(rotations.angle.dtype))
  return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), first, rotations)


def _sample_matchings(key, num_columns: int, num_rotations: int, angle) -> Rotations:
  """Rounds of uniformly random perfect matchings (one column rests if N is odd)."""
  key_pairs, key_angle = jax.random.split(key)
  pairs = num_columns // 2
  num_rounds = num_rotations // pairs
  order = _random_orders(key_pairs, num_rounds, num_columns)
  first, second = order[:, :pairs].reshape(-1), order[:, pairs : 2 * pairs].reshape(-1)
  angles = sample_angles(key_angle, (num_rotations,), angle)
  return Rotations(jnp.minimum(first, second), jnp.maximum(first, second), angles)


def _random_orders(key: jax.Array, number: int, size: int) -> jax.Array:
  """Uniformly random orders of `0 ... size - 1`, int32 `[number, size]`."""
  bits = jax.random.bits(key, (number, size), jnp.uint32)
  index = jnp.broadcast_to(jnp.arange(size, dtype=jnp.uint32), bits.shape)
  width = max(1, (size - 1).bit_length())
  if width > 12:
    return jax.lax.sort((bits, index), num_keys=1)[1].astype(jnp.int32)
  # 20 random bits or more with the index below them: one operand sorts twice as fast.
  mask = jnp.uint32((1 << width) - 1)
  return (jnp.sort((bits & ~mask) | index) & mask).astype(jnp.int32)


def _sample_cover(key, lo: int, hi: int) -> tuple[jax.Array, jax.Array]:
  """Pairs each empty column with a live one; live columns double round by round."""
  live, partners = lo, []
  while live < hi:
    new = min(live, hi - live)
    order = _random_orders(jax.random.fold_in(key, live), 1, live)[0]
    partners.append(order[:new])
    live += new
  return jnp.concatenate(partners), jnp.arange(lo, hi, dtype=jnp.int32)


def max_depth(
  lo: int, hi: int, num_rotations: int, schedule: str, *, cover: bool = False
) -> int:
  """Levels that the candidates need, but for a negligible chance.

  For independent pairs measured means are `8.8 T / N`, deviations 1 to 3.
  """
  covering = math.ceil(math.log2(hi / lo)) if cover else 0
  if schedule == "matching":
    return covering + num_rotations // (hi // 2) if hi > 1 else 0
  return covering + min(num_rotations, math.ceil(8.8 * num_rotations / hi) + 12)


def known_levels(
  lo: int, hi: int, num_rotations: int, schedule: str, *, cover: bool = False
) -> np.ndarray | None:
  """Levels of the candidates where the schedule lays them down, else None.

  Returns:
    int32 `[T]` (with `cover`, `[hi - lo + T]`) for "matching": one level a round.
  """
  if schedule != "matching":
    return None
  rounds, live = [], lo
  while cover and live < hi:
    rounds.append(min(live, hi - live))
    live += rounds[-1]
  rounds += [hi // 2] * (num_rotations // (hi // 2))
  return np.repeat(np.arange(len(rounds), dtype=np.int32), rounds)
