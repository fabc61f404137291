"""Sparse isometric convolution kernels with nonzeros on all taps.

A chain "rotate the channels, delay each by its own pixel offset, rotate again" is an
isometry of every signal on a torus, since each link is one. With sparse orthogonal
matrices `H1 (in, mid)`, `H2 (mid, out)`, `mid = max(in, out)`, and a tap `s_m` for
every middle channel `m`, the chain is the convolution with

    K[t] = H1[:, s == t] H2[s == t, :],

whose matrix at a frequency `f` is `H1 diag(exp(i f . s)) H2`. A window with more taps
than middle channels takes one delay for each of several groups of its axes.

The nonzeros of the kernel are counted on packed bits before any arithmetic: rotations
of the output channels merge columns of the kernel's support, as those of a matrix do.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from eoi_jax import _checks as checks
from eoi_jax import _keys as keys_lib
from eoi_jax._sharding import vary_alike
from eoi_jax.givens import _plan as plan_lib
from eoi_jax.givens import _tuning as tuning
from eoi_jax.givens import orthogonal
from eoi_jax.givens._plan import Angle
from eoi_jax.layouts.layout import block_floor


class Settings(NamedTuple):
  """What a compiled program depends on, beside `sample`'s arrays."""

  window: tuple[int, ...]
  inputs: int
  outputs: int
  strides: tuple[int, ...]  # () for 1
  max_budget: int
  dtype: jnp.dtype
  angle: Angle
  schedule: str
  cover: bool

  @property
  def law(self) -> dict:
    return {"angle": self.angle, "schedule": self.schedule}


def all_taps(
  key: jax.Array, shape: tuple[int, ...], budget, dtype=jnp.float32, **options: Any
) -> jax.Array:
  """Samples a sparse kernel on all taps whose circular convolution is an isometry.

  With `K` the result, `lo = min(in, out)` and `hi = max(in, out)`: at stride 1 with
  circular padding, on an image at least as large as the window, all `lo * pixels`
  singular values of the convolution are 1 to rounding.

  Circular padding with strides that divide the image: still exact if `in >= out`.
  Else the isometry is sampled, all values are at most 1 and their squares add up to
  `1 / prod(strides)` of what they were (of 3 x 3 taps, 16 -> 32, stride 2: mean
  square 1/2, as of a kernel at the centre, whose values are 0 and 1); `_polyphase.py`
  has the kernels that are exact then.

  Zero padding: values are at most 1. What a channel's delay moves out of the image is
  lost: 16 % of all values of a 3 x 3 window, 16 -> 16, on 8 x 8 pixels are 0 and the
  rest 1, on 32 x 32 pixels 4 % are. A kernel at the centre loses nothing.

  The taps get about equal shares of the nonzeros: middle channels with many nonzeros
  in `H1` are paired with rows of `H2` that have few, and dealt to the taps in turns.
  Measured, 100 kernels each, 64 to 130 channels, 40 nonzeros a tap and more: every tap
  has between half and twice its share with "matching" and 1.3 channels a tap (windows
  up to 7 x 7), with "iid" and four. With "iid" and 2.4 a tap, one kernel in 100
  has a tap below that; with one channel a tap, every third.

  The floor is `lo` nonzeros, those of the sparsest matrix of rank `lo`: one channel,
  one tap each. Down there only `lo` taps can take part. A tap takes at least one of
  `hi` middle channels, so a window with more than `hi` taps is split into groups of
  axes, each with a delay of its own; an axis longer than `hi` keeps empty taps.

  The shape is `(*window, in, out)`; other arguments are those of `sample`. `cover` is
  for the first matrix: no middle channel is dead. "iid" needs denser factors for the
  same kernel, since their nonzeros scatter more. The result has at most `budget`
  nonzeros, and fewer by less than one rotation adds, `2 budget / hi`.
  """
  return sample(_draw, key, shape, budget, dtype, **options)


def sample(
  draw: Callable[..., jax.Array],
  key: jax.Array,
  shape: tuple[int, ...],
  budget,
  dtype,
  *,
  strides: tuple[int, ...] = (),
  max_budget: int | None = None,
  angle: Angle = None,
  schedule: str = "matching",
  cover: bool = False,
) -> jax.Array:
  """Samples one kernel by `draw(words, budget, settings)`, or under `vmap` many.

  Other arguments are those of `sample_to_budget`.

  Raises:
    ValueError: if the largest budget is out of range.
  """
  *window, inputs, outputs = shape
  lowest, size = block_floor(shape, strides), math.prod(shape)
  largest = budget if max_budget is None else max_budget
  if not lowest <= largest <= size:
    name = "budget" if max_budget is None else "max_budget"
    of = f"shape {shape}" + (f" and strides {strides}" if strides else "")
    raise ValueError(f"`{name}` must be in [{lowest}, {size}] for {of}, got {largest}.")
  settings = Settings(
    window=tuple(window),
    inputs=inputs,
    outputs=outputs,
    strides=strides,
    max_budget=int(largest),
    dtype=checks.compute_dtype(dtype),
    angle=plan_lib.check_angle(angle),
    schedule=plan_lib.check_schedule(schedule),
    cover=bool(cover),
  )
  words, budget = keys_lib.key_data(key), jnp.asarray(budget, jnp.int32)
  return orthogonal.cast(_sample(words, budget, draw, settings), dtype)


@functools.partial(jax.jit, static_argnames=("draw", "settings"))
def _sample(words, budget, draw, settings: Settings) -> jax.Array:
  def one(words, budget, *, alone):
    del alone
    return draw(words, budget, settings)

  size = math.prod((*settings.window, settings.inputs, settings.outputs))
  return tuning.batched(one, words, budget, size)


def _draw(words, budget, settings: Settings) -> jax.Array:
  window, inputs, outputs, *_ = settings
  lo, hi = min(inputs, outputs), max(inputs, outputs)
  groups = delays(window, hi)
  budgets = _budgets(jnp, budget, groups, lo, hi)
  largest = [int(x) for x in _budgets(np, settings.max_budget, groups, lo, hi)]
  kernel = sparse_factor(
    keys_lib.fold_in(words, 0), (lo, hi), budgets[0], largest[0], settings
  )
  right = rotation_sizes(hi, largest[0], lo, settings)
  for place, (taps, total) in enumerate(zip(groups, budgets[1:], strict=True)):
    words_delay = keys_lib.fold_in(words, place + 1)
    kernel = delay_and_rotate(words_delay, kernel, taps, budgets[0] / lo, total, right)
    kernel = kernel.reshape(-1, hi).T
  kernel = kernel.T.reshape(*window, lo, hi)
  return jnp.swapaxes(kernel, -1, -2) if inputs > outputs else kernel


def sparse_factor(words, shape, budget, largest: int, settings: Settings) -> jax.Array:
  """The first matrix of a chain, transposed; `largest` is its largest budget."""
  return orthogonal.sample_to_budget(
    words,
    shape,
    budget,
    settings.dtype,
    max_budget=min(largest + 1, math.prod(shape)),
    cover=settings.cover,
    transposed=True,
    **settings.law,
  )


def rotation_sizes(hi: int, nonzeros: float, rows: int, settings) -> plan_lib.Settings:
  """Sizes of the rotations `[hi, hi]` whose rows have `nonzeros / rows` each."""
  rotations, schedule = 0, settings.schedule
  if hi > 1 and settings.max_budget > rows:
    # `_mean_to_expect`; rounds of matchings have one to spare.
    spare = 1.0 if schedule == "matching" else 3.0
    dense = min(hi * hi, math.ceil(spare * hi * nonzeros / rows))
    rotations = plan_lib.num_candidates(hi, hi, dense, schedule)
  depth = plan_lib.max_depth(hi, hi, rotations, schedule)
  return plan_lib.Settings(hi, hi, rotations, depth, settings.dtype, **settings.law)


def delays(window: tuple[int, ...], hi: int) -> list[int]:
  """Number of taps of each delay, of the last axes first."""
  groups = []
  for size in reversed(window):
    if groups and groups[-1] * size <= hi:
      groups[-1] *= size
    else:
      groups.append(size)
  return [taps for taps in groups if taps > 1]


def _budgets(xp, budget, groups: list[int], lo: int, hi: int) -> list:
  """Nonzeros of the first matrix and of the product after each delay.

  All `n` matrices get one density `x`. A product of `j` of them with delays of `t`
  taps in all has `q = hi^(j - 1) / t` paths of chance `x^j` to each of its `t lo hi`
  cells, and so the density `1 - (1 - x^j)^q`; with `q < 1`, `q x^j`. Rows that scatter
  by "iid" and are paired for balance have fewer paths than that.
  """
  taps = math.prod(groups)
  factors = 1 + len(groups)

  def paths(j, taps):
    return hi ** (j - 1) / taps

  density = xp.minimum(budget / (taps * lo * hi), 1.0)
  chance = path_chance(xp, density, paths(factors, taps))
  each = xp.clip(chance ** (1 / factors), 1 / hi, 1.0)
  budgets, taps = [], 1
  for j, new in enumerate([1, *groups[:-1]], start=1):
    taps *= new
    q = paths(j, taps)
    filled = 1 - (1 - each**j) ** q if q >= 1 else q * each**j
    number = xp.round(filled * (taps * lo * hi)).astype("int32")
    budgets.append(xp.clip(number, lo, budget))
  return [*budgets, budget] if groups else [budget]


def path_chance(xp, density, paths: float):
  """Chance of each of some paths to a cell that leads to a density of cells."""
  if paths < 1:
    return xp.minimum(density / paths, 1.0)
  with np.errstate(divide="ignore"):
    return -xp.expm1(xp.log1p(-density) / paths)


def delay_and_rotate(
  words, columns, taps: int, mean, budget, settings: plan_lib.Settings
) -> jax.Array:
  """Delays the columns of a kernel and rotates them up to a budget of nonzeros.

  Args:
    words: threefry key data, uint32 `[2]`.
    columns: `[hi, rows]`: those of a kernel on earlier taps, all taps together.
    taps: number of offsets that columns are delayed by; the result is
      `[taps, rows, hi]`.
    mean: nonzeros to expect of a row of the product of the rotations.
    budget: nonzeros that the result may have, at least those of `columns`.
    settings: of the rotations, which make a matrix `[hi, hi]`.
  """
  hi = columns.shape[0]
  matrix = plan_lib.Matrix(hi, hi, settings.num_rotations)
  draw = functools.partial(
    plan_lib.plan,
    words,
    matrix=matrix,
    settings=settings,
    stop_early=tuning.in_cache(),
  )
  zeros = ((0, 0), (0, -columns.shape[1] % 32))
  bits = jnp.packbits(jnp.pad(columns != 0, zeros), axis=1, bitorder="little")
  supports = bits.view(jnp.uint32)
  nonzeros, spread = _count_bits(supports), jnp.ones(hi, jnp.int32)
  orders = plan_lib.orders(keys_lib.fold_in(words, 1), 2, hi)
  pairing = orders[0]  # the column of each row of the rotations
  # Matched rows differ by a factor of 2 at most: over 6 of them, that is no matter.
  even = settings.schedule == "matching" and hi >= 6 * taps
  if settings.num_rotations and not even:
    descending = jnp.lexsort((orders[0], -nonzeros)).astype(jnp.int32)
    target = hi * _mean_to_expect(nonzeros[descending], mean, settings.schedule)
    spread = _row_nonzeros(draw(target.astype(jnp.int32)), settings)
    pairing = pairing.at[jnp.lexsort((orders[1], spread))].set(descending)
  supports, weights = supports[pairing], nonzeros[pairing] * spread
  alike = _signatures(supports, keys_lib.fold_in(words, 3))
  order = jnp.lexsort((alike, -weights)).astype(jnp.int32)
  channel = _deal(order, weights, taps)
  channel = channel[plan_lib.orders(keys_lib.fold_in(words, 4), 1, taps)[0]]
  right = jnp.eye(hi, dtype=columns.dtype)
  if settings.num_rotations:
    every_tap = jnp.arange(taps, dtype=jnp.int32)[:, None]
    tap = jnp.zeros(hi, jnp.int32).at[channel].set(every_tap, mode="drop")
    here = tap[:, None, None] == every_tap[None]
    bits = jnp.where(here, supports[:, None, :], jnp.uint32(0)).reshape(hi, -1)
    plan = draw(budget, supports=bits)
    # Backwards, for the product itself rather than its transpose.
    back, tall = plan_lib.reversed_plan(plan, settings), settings._replace(tall=True)
    right = tuning.rotated_identity(back, tall, hi, alone=False)
  # A tap that has no channel in a turn has zeros there.
  here = pairing.at[channel].get(mode="fill", fill_value=hi)
  columns = jnp.swapaxes(columns.at[here].get(mode="fill", fill_value=0), 1, 2)
  rows = right.at[channel].get(mode="fill", fill_value=0)
  return jnp.matmul(columns, rows, precision=jax.lax.Precision.HIGHEST)


def _mean_to_expect(nonzeros: jax.Array, mean: jax.Array, schedule: str) -> jax.Array:
  """Mean nonzeros of rows that are paired in ascending order, float scalar.

  In random order columns of `c_m` nonzeros and rows of `r_m` have `sum(c_m r_m) = mean
  sum(c_m)` paths between them. In opposite orders they have fewer, so that it takes
  more nonzeros to as many paths: rows follow a geometric law by "iid"; by "matching"
  they are sums of `2^k` rows of one or two nonzeros, about normal. `nonzeros` are
  `c_m`, `[n]`, descending; the result is between `mean` and `4 mean`, at most `n`.
  """
  number = nonzeros.shape[0]
  means = mean * (1 + jnp.arange(49, dtype=jnp.float32) / 16)[:, None]
  means = jnp.clip(means, 1, number)
  place = (jnp.arange(number, dtype=jnp.float32)[None, :] + 0.5) / number
  if schedule == "matching":
    half = jnp.exp2(jnp.floor(jnp.log2(means)))
    deviation = jnp.sqrt((means - half) * (2 - means / half))
    normal = 3**0.5 / math.pi * jnp.log(place / (1 - place))
    rows = jnp.clip(means + deviation * normal, half, 2 * half)
  else:
    odds = jnp.log1p(-1 / jnp.maximum(means, 1.001))
    rows = jnp.ceil(jnp.log1p(-place) / odds)
  rows = jnp.minimum(rows, number)
  columns = nonzeros.astype(jnp.float32)
  enough = (rows * columns[None, :]).sum(1) >= mean * columns.sum()
  return means[jnp.where(enough.any(), jnp.argmax(enough), 48), 0]


def _row_nonzeros(plan: plan_lib.Plan, settings: plan_lib.Settings) -> jax.Array:
  """Nonzeros of each row of a rotated identity, int32 `[hi]`."""
  # Last rotations first: supports of rows instead of columns.
  partner = plan_lib.levels(plan_lib.reversed_plan(plan, settings), settings).partner

  def merge(level, bits):
    return bits | bits.at[partner[level]].get(mode="promise_in_bounds")

  bits = vary_alike(plan_lib.identity_bits(settings, settings.rows), partner)
  return _count_bits(jax.lax.fori_loop(0, plan.depth, merge, bits))


def _count_bits(supports: jax.Array) -> jax.Array:
  """Nonzeros of each packed support `[n, words]`, int32 `[n]`."""
  return jax.lax.population_count(supports).sum(-1, dtype=jnp.uint32).astype(jnp.int32)


def _signatures(supports: jax.Array, words) -> jax.Array:
  """Random numbers, equal ones of equal packed supports `[n, words]`, uint32 `[n]`."""
  place = np.arange(supports.shape[1], dtype=np.uint32)
  of_word = keys_lib.fold_in(words[None], place).T[:, None, :]
  return keys_lib.random_bits(of_word, supports).sum(1, dtype=jnp.uint32)


def _deal(order: jax.Array, weights: jax.Array, taps: int) -> jax.Array:
  """Deals channels to taps, back and forth; the rest to the taps that got least.

  Neighbours in the order never meet in a turn, nor in one after the other: two columns
  and two rows of equal supports, whose nonzeros would be the same, get a tap each.
  `order` `[n]` lists the channels by descending weight; the result `[taps, turns]`
  holds those of each tap, `n` where there is none.
  """
  number = order.shape[0]
  turns, rest = divmod(number, taps)
  # Swapped in NumPy: XLA of jax 0.12 loses channels when an array is set to itself.
  place = np.arange(turns * taps).reshape(turns, taps)
  if taps > 1:
    place[1:, :2] = place[1:, 1::-1].copy()
  place[1::2] = place[1::2, ::-1].copy()
  dealt, left = order[place], order[turns * taps :]
  if rest:
    least = jnp.argsort(weights[dealt].sum(0))[:rest]
    last = jnp.full((1, taps), number, jnp.int32).at[0, least].set(left)
    dealt = jnp.concatenate([dealt, last])
  return dealt.T
