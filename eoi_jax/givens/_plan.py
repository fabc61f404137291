"""Which rotations make a matrix: candidates, levels of disjoint columns, the budget.

Candidates come in one of two sequences:

  - "iid": every rotation takes a uniformly random pair of columns, as in the paper.
    After `2 T / N` rotations a column, the nonzeros of a row follow the recurrence of
    `density.py`: a wide, skewed law, and about `(1 - d) / d` columns stay untouched.
  - "matching": every round pairs all columns at random. A row's nonzeros double from
    round to round, less what overlaps: nonzeros per row and column are nearly equal,
    and a density takes `log2(ln(1 - d) / ln(1 - 1 / N))` rounds.

Rotations of disjoint columns commute, so a rotation joins the level after the last
earlier one that shares a column with it: `T` independent rotations of `N` columns make
about `8.8 T / N` levels, and going level by level gives the matrix of the sequence.

A rotation turns the supports `S_i`, `S_j` of its columns into `S_i | S_j` and so adds
`|S_i xor S_j|` nonzeros: on packed bits, the longest prefix of the sequence that fits
the budget is known before any arithmetic.
"""

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from eoi_jax import _checks as checks
from eoi_jax import _keys as keys_lib
from eoi_jax._sharding import vary_alike

Angle = float | Callable[[jax.Array, tuple[int, ...]], jax.Array] | None

SCHEDULES = ("iid", "matching")
_WORD = 32
# Quadrature of the limit over W = exp(u): the trapezoid rule converges geometrically.
_LOG_W = np.arange(-90.0, 5.0, 0.25)
_W = np.exp(_LOG_W)
_WEIGHT = 0.25 * _W * np.exp(-_W)


def check_schedule(schedule: str) -> str:
  """Returns `schedule` or raises ValueError, with the known ones."""
  if schedule not in SCHEDULES:
    raise ValueError(f"`schedule` must be one of {SCHEDULES}, got {schedule!r}.")
  return schedule


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


class Matrix(NamedTuple):
  """Sizes of one matrix; with "iid", int32 scalars may take the place of the ints."""

  lo: int | jax.Array  # the smaller side
  hi: int | jax.Array  # the larger side, whose rows or columns are rotated
  num_rotations: int | jax.Array  # of candidates, those that cover not counted


class Settings(NamedTuple):
  """What a compiled program depends on; sizes are those of `Matrix`, or the largest."""

  rows: int  # `lo`
  columns: int  # `hi`
  num_rotations: int
  depth: int  # number of levels to make room for
  dtype: jnp.dtype  # of the result
  tall: bool = False  # whether the result is `[columns, rows]`, not `[rows, columns]`
  angle: Angle = None
  schedule: str = "iid"
  cover: bool = False

  @property
  def shape(self) -> tuple[int, int]:
    """Shape of the result."""
    return (self.columns, self.rows) if self.tall else (self.rows, self.columns)


class Levels(NamedTuple):
  """A plan as tables `[D, N]` of `D` levels of `N` columns."""

  partner: jax.Array  # int32, the column that a column is rotated with, or itself
  cos: jax.Array  # factor of the column itself
  sin: jax.Array  # factor of its partner
  depth: int | jax.Array  # number of leading levels in use


class Sequence(NamedTuple):
  """Rotations `c_i' = cos c_i + sin c_j`, `c_j' = cos c_j - sin c_i`, `[T]`."""

  i: jax.Array
  j: jax.Array
  cos: jax.Array
  sin: jax.Array
  level: jax.Array  # of each rotation, int32; `settings.depth` where it is left out
  depth: int | jax.Array  # number of leading levels in use


Plan = Sequence | Levels


def num_candidates(lo: int, hi: int, budget: int, schedule: str) -> int:
  """Candidate rotations that reach `budget` nonzeros but for a negligible chance.

  It is rounded up so that nearby budgets share a number, and a compiled program. `lo`
  and `hi` are the smaller and the larger side.
  """
  if budget <= lo:
    return 0
  # A matrix is done once one more rotation, of up to `lo` nonzeros, may not fit.
  density = min(budget / (lo * hi), 1.0 - 0.5 / hi)
  if schedule == "matching":
    mean = math.log2(max(1.0, math.log1p(-density) / math.log1p(-1 / hi)))
    spare = 1 if (1.0 - density) * lo > 32 else 2 + math.ceil(12 / math.sqrt(lo))
    return (math.ceil(mean) + spare) * (hi // 2)
  # The number needed scatters by about 0.6 N / sqrt(lo) around the mean; close to
  # density 1 the last missing cells take exponentially distributed times. Measured
  # over thousands of draws, with a margin of more than five deviations.
  mean = limit_rotations(hi, density)
  spread = 3.2 / math.sqrt(lo) + 8.0 / (1.0 + (1.0 - density) * lo)
  quantum = -(-hi // 4)
  return -(-math.ceil(mean + hi * spread) // quantum) * quantum


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


@functools.lru_cache(maxsize=4096)
def limit_rotations(num_columns: int, density: float) -> float:
  """Rotations that reach a density, in the limit of many columns.

  `1 - d = E[1 / (1 + a W)]` with `W` exponential and `a = exp(2 t / N) / N`, to first
  order in `1 / N`: a rotation multiplies by `1 + 2 / N`, not `exp(2 / N)`, and starts
  with one nonzero instead of a share of it. Density 1 counts as the last float64 below
  it; the result is not rounded.
  """
  if density <= 1 / num_columns:
    return 0.0
  missing = max(1.0 - density, 2.0**-54)
  low, high = -math.log(num_columns) - 1.0, 45.0
  for _ in range(50):
    middle = (low + high) / 2
    above = float(_WEIGHT @ (1 / (1 + math.exp(middle) * _W))) > missing
    low, high = (middle, high) if above else (low, middle)
  growth = math.log(num_columns) + low
  return max(0.0, (num_columns - 1) / 2 * growth - 1.0 - density / 2)


def draw_rotations(
  words: jax.Array, place: jax.Array, num_columns: int | jax.Array, angle: Angle
) -> Rotations:
  """The rotations of `sample_rotations` at some places `[T]` of its sequence."""
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
  """Angles in radians of the given `shape`, by the rule of `sample_rotations`."""
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
  if angle is None or callable(angle):
    return angle  # pyright: ignore[reportReturnType]
  return checks.number("angle", angle)


def _pairs(words: jax.Array, matrix: Matrix, settings: Settings) -> Rotations:
  """Independent pairs, those that cover in front; `i == j` where there is none.

  A matrix gets the same sequence however much larger the sizes in `settings` are.
  """
  place = jnp.arange(settings.num_rotations, dtype=jnp.int32)
  i, j, angles = draw_rotations(words, place, matrix.hi, settings.angle)
  rotations = Rotations(i, jnp.where(place < matrix.num_rotations, j, i), angles)
  if not settings.cover:
    return rotations
  first = _covering(words, settings)
  return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), first, rotations)


def _covering(words: jax.Array, settings: Settings) -> Rotations:
  """Rotations of each column that is empty at the start with a live one."""
  first, live = [], settings.rows
  cover_words = keys_lib.fold_in(words, 1)
  for new in _cover_sizes(settings):
    order = orders(keys_lib.fold_in(cover_words, live), 1, live)
    first.append(order[0, :new])
    live += new
  i = jnp.concatenate(first)
  j = settings.rows + jnp.arange(i.shape[0], dtype=jnp.int32)
  angles = draw_angles(cover_words, i.shape, settings.angle)
  return Rotations(i, j, angles.astype(jnp.result_type(float)))


def _cover_sizes(settings: Settings) -> Iterator[int]:
  """Rotations of each round that covers: live columns double by round."""
  live = settings.rows
  while live < settings.columns:
    new = min(live, settings.columns - live)
    yield new
    live += new


def orders(words, number: int, size: int) -> jax.Array:
  """Uniformly random orders of `0 ... size - 1`, int32 `[number, size]`."""
  index = jnp.arange(size, dtype=jnp.uint32)[None, :]
  rounds = jnp.arange(number, dtype=jnp.uint32)[:, None]
  bits = keys_lib.random_bits(words, rounds * jnp.uint32(size) + index)
  if size > 2**12:
    index = jnp.broadcast_to(index, bits.shape)
    return jax.lax.sort((bits, index), num_keys=2)[1].astype(jnp.int32)
  # 20 random bits with the index below them: one operand sorts twice as fast.
  mask = jnp.uint32(2**12 - 1)
  return (jnp.sort((bits & ~mask) | index) & mask).astype(jnp.int32)


def plan(
  words: jax.Array,
  budget: jax.Array,
  matrix: Matrix,
  settings: Settings,
  *,
  stop_early: bool,
  supports: jax.Array | None = None,
) -> Plan:
  """Plans the longest prefix of the candidates that keeps within the budget.

  Args:
    words: threefry key data, uint32 `[2]`.
    budget: largest number of nonzeros, int32 scalar.
    matrix: sizes of the matrix.
    settings: the largest sizes.
    stop_early: whether loops end with the levels in use, rather than after a number of
      levels that is known when the program is compiled.
    supports: packed supports of the columns that are rotated, uint32 `[N, words]`;
      those of a partial identity if None.
  """
  limit = budget - matrix.lo
  if supports is None:
    supports = identity_bits(settings, matrix.lo)
  else:
    nonzeros = jax.lax.population_count(supports).sum(dtype=jnp.uint32)
    limit = budget - nonzeros.astype(jnp.int32)
  if settings.schedule == "matching":
    return _plan_rounds(words, limit, supports, settings, stop_early)
  return _plan_pairs(words, limit, supports, matrix, settings, stop_early)


def _plan_pairs(
  words, limit, supports, matrix, settings: Settings, stop_early
) -> Sequence:
  """`plan` of independent pairs, whose levels have to be found."""
  rotations = _pairs(words, matrix, settings)
  num, depth = rotations.i.shape[0], settings.depth
  place = jnp.arange(num, dtype=jnp.int32)
  column = jnp.arange(settings.columns, dtype=jnp.int32)
  i, j = (jnp.append(side, 0) for side in (rotations.i, rotations.j))

  def next_level(carry):
    level, levels, supports, added = carry
    # A rotation is next if no earlier one is pending on either of its columns.
    waiting = jnp.where(levels == depth, place, num)
    first = jnp.full(settings.columns, num, jnp.int32)
    first = first.at[rotations.i].min(waiting).at[rotations.j].min(waiting)
    ready = (_take(first, rotations.i) == place) & (_take(first, rotations.j) == place)
    partner = _take(i, first) + _take(j, first) - column
    free = (first == num) | (_take(first, jnp.clip(partner, 0)) != first)
    others = _take(supports, jnp.where(free, column, partner))
    new = jax.lax.population_count(supports ^ others).sum(-1, dtype=jnp.uint32)
    added = jnp.where(ready, _take(new.astype(jnp.int32), rotations.i), added)
    return level + 1, jnp.where(ready, level, levels), supports | others, added

  # Where a rotation takes one column alone, there is none: it waits for nothing.
  none = rotations.i == rotations.j
  start = jnp.where(none, jnp.int32(-1), jnp.int32(depth))
  carry = (jnp.int32(0), start, supports, jnp.zeros(num, jnp.int32))
  carry = vary_alike(carry, words, limit)
  if stop_early:
    unfinished = lambda carry: (carry[0] < depth) & jnp.any(carry[1] == depth)  # noqa: E731
    carry = jax.lax.while_loop(unfinished, next_level, carry)
  else:
    carry = jax.lax.fori_loop(0, depth, lambda _, carry: next_level(carry), carry)
  _, levels, _, added = carry
  # A rotation that found no level (a negligible chance) ends the sequence.
  end = jnp.min(jnp.where(levels == depth, place, num))
  kept = (place < _longest(place, added, limit, end, num)) & ~none
  angle = rotations.angle.astype(np.promote_types(settings.dtype, jnp.float32))
  return Sequence(
    i=rotations.i,
    j=rotations.j,
    cos=jnp.cos(angle),
    sin=jnp.sin(angle),
    level=jnp.where(kept, levels, depth),
    depth=jnp.max(jnp.where(kept, 1 + levels, 0)) if stop_early else depth,
  )


def _plan_rounds(words, limit, supports, settings: Settings, stop_early) -> Levels:
  """`plan` of rounds of disjoint pairs: each is a level, and no table is searched."""
  place, partner, angles = _rounds(words, settings)
  depth, column = len(place), jnp.arange(settings.columns, dtype=jnp.int32)[None]
  first = column < partner

  def next_level(carry):
    level, supports, total, added = carry
    others = _take(supports, _take(partner, level))
    new = jax.lax.population_count(supports ^ others).sum(-1, dtype=jnp.uint32)
    new = jnp.where(_take(first, level), new.astype(jnp.int32), 0)
    total += new.sum(dtype=jnp.int32)
    return level + 1, supports | others, total, added.at[level].set(new)

  carry = (jnp.int32(0), supports, jnp.int32(0), jnp.zeros_like(place))
  carry = vary_alike(carry, words, limit)
  if stop_early:
    fits = lambda carry: (carry[0] < depth) & (carry[2] <= limit)  # noqa: E731
    carry = jax.lax.while_loop(fits, next_level, carry)
  else:
    carry = jax.lax.fori_loop(0, depth, lambda _, carry: next_level(carry), carry)
  end = math.prod(place.shape) // 2
  kept = (place < _longest(place, carry[3], limit, end, end)) & (partner != column)
  angles = angles.astype(np.promote_types(settings.dtype, jnp.float32))
  angles = vary_alike(angles, words, limit)
  turn = lambda *_: (jnp.cos(angles), jnp.sin(angles))  # noqa: E731
  # A loop of one pass, unknown to the compiler: else it would draw and turn the angles
  # anew for each column, in the loop that gathers.
  empty = vary_alike((jnp.zeros_like(angles),) * 2, angles)
  turned = jax.lax.fori_loop(0, jnp.minimum(carry[0], 1), turn, empty)
  cos, sin = (_take(x, place) for x in turned)
  level = jnp.arange(1, depth + 1, dtype=jnp.int32)[:, None]
  return Levels(
    partner=jnp.where(kept, partner, column),
    cos=jnp.where(kept, cos, 1),
    sin=jnp.where(kept, jnp.where(first, sin, -sin), 0),
    depth=jnp.max(jnp.where(kept, level, 0), initial=0) if stop_early else depth,
  )


def _rounds(words, settings: Settings) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Rounds of uniformly random perfect matchings, those that cover in front.

  Gives for each column of each round, `[D, N]`, the place of its rotation in the
  sequence and its partner (itself if it rests, as one does where N is odd); and the
  angles in order, `[T]`.
  """
  size, pairs = settings.columns, settings.columns // 2
  order = orders(words, settings.num_rotations // pairs, size)
  number = jnp.arange(len(order), dtype=jnp.int32)[:, None]
  index = jnp.broadcast_to(jnp.arange(size, dtype=jnp.int32), order.shape)
  where = index.at[number, order].set(index, mode="promise_in_bounds")
  other = jnp.where(where < pairs, where + pairs, where - pairs)
  other = jnp.where(where < 2 * pairs, other, where)
  partner = jnp.take_along_axis(order, other, axis=1, mode="promise_in_bounds")
  place = number * pairs + jnp.minimum(jnp.minimum(where, other), pairs - 1)
  num_angles = (settings.num_rotations,)
  angles = draw_angles(keys_lib.fold_in(words, 2), num_angles, settings.angle)
  if not settings.cover:
    return place, partner, angles
  i, j, first_angles = _covering(words, settings)
  sizes = list(_cover_sizes(settings))
  level = np.repeat(np.arange(len(sizes)), sizes)
  count = jnp.arange(len(level), dtype=jnp.int32)
  index = jnp.broadcast_to(index[0], (len(sizes), size))
  first_place = jnp.zeros_like(index).at[level, i].set(count).at[level, j].set(count)
  first_partner = index.at[level, i].set(j).at[level, j].set(i)
  return (
    jnp.concatenate([first_place, place + len(level)]),
    jnp.concatenate([first_partner, partner]),
    jnp.concatenate([first_angles, angles]),
  )


def _longest(place, added, limit, end, num: int) -> jax.Array:
  """The longest prefix, up to `end` of `num` places, that adds at most `limit`."""

  def bisect(bit, count):  # a cumulative sum compiles to a longer program
    longer = count + jnp.left_shift(1, num.bit_length() - 1 - bit)
    total = jnp.sum(jnp.where(place < longer, added, 0), dtype=jnp.int32)
    return jnp.where((longer <= end) & (total <= limit), longer, count)

  start = vary_alike(jnp.int32(0), added, limit)
  return jax.lax.fori_loop(0, num.bit_length(), bisect, start)


def reversed_plan(plan: Plan, settings: Settings) -> Plan:
  """The plan that undoes another one, last rotations first."""
  if isinstance(plan, Levels):
    depth = len(plan.partner)
    level = (plan.depth - 1 - jnp.arange(depth, dtype=jnp.int32)) % depth
    partner, cos, sin = (_take(table, level) for table in plan[:3])
    return Levels(partner, cos, -sin, plan.depth)
  used = plan.level < settings.depth
  level = jnp.where(used, plan.depth - 1 - plan.level, plan.level)
  return plan._replace(sin=-plan.sin, level=level)


def levels(plan: Plan, settings: Settings) -> Levels:
  """Lays a plan out in tables."""
  if isinstance(plan, Levels):
    return plan
  shape = (settings.depth, settings.columns)
  column = jnp.arange(settings.columns, dtype=jnp.int32)
  cos, sin = (jnp.full(shape, x, plan.cos.dtype) for x in (1, 0))
  partner = jnp.broadcast_to(column, shape)
  partner, cos, sin = vary_alike((partner, cos, sin), plan.cos)
  for side, sign in ((plan.i, 1), (plan.j, -1)):
    place = (plan.level, side)
    partner = partner.at[place].set(plan.i + plan.j - side, mode="drop")
    cos = cos.at[place].set(plan.cos, mode="drop")
    sin = sin.at[place].set(sign * plan.sin, mode="drop")
  return Levels(partner, cos, sin, plan.depth)


def identity_bits(settings: Settings, lo: int | jax.Array) -> jax.Array:
  """Packed supports of the columns of a partial identity, uint32 `[N, words]`."""
  row = jnp.arange(settings.columns, dtype=jnp.int32)[:, None]
  word = jnp.arange(-(-settings.rows // _WORD), dtype=jnp.int32)[None, :]
  bit = jnp.left_shift(jnp.uint32(1), (row % _WORD).astype(jnp.uint32))
  return jnp.where((row // _WORD == word) & (row < lo), bit, jnp.uint32(0))


def _take(values: jax.Array, index: jax.Array) -> jax.Array:
  return values.at[index].get(mode="promise_in_bounds")


def rotate(columns: jax.Array, levels: Levels) -> jax.Array:
  """Applies levels of rotations to columns `[N, rows]`.

  One column of the matrix is a row here; an int `depth` runs as `lax.scan`.
  """
  columns = vary_alike(columns, levels.cos)
  level = lambda place, columns: rotate_level(columns, levels, place)  # noqa: E731
  return jax.lax.fori_loop(0, levels.depth, level, columns)


def rotate_level(columns: jax.Array, levels: Levels, place) -> jax.Array:
  """Applies one level, as one gather."""
  partner, cos, sin = (
    jax.lax.dynamic_index_in_dim(table, place, keepdims=False) for table in levels[:3]
  )
  return cos[:, None] * columns + sin[:, None] * _take(columns, partner)
