"""Kernels on all taps: isometric, counted exactly, spread evenly."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eoi_jax.initializers._paraunitary import all_taps
from eoi_jax.signal.convolution import conv_singular_values
from tests.cases import few

ATOL = 1e-5
KEYS = 6

# So many channels that each tap gets several.
WIDE = [
  ((3, 3, 64, 64), "matching"),
  ((3, 3, 64, 64), "iid"),
  ((3, 3, 64, 256), "iid"),
  ((5, 5, 64, 64), "matching"),
  ((3, 3, 3, 64, 64), "matching"),
  ((4, 64, 128), "matching"),
]


def sample_many(shape, budgets, **options):
  """A kernel for each key and budget, `[keys, budgets, *shape]`, in one program."""
  budgets = jnp.asarray(budgets, jnp.int32)
  largest = int(budgets.max())

  def sample(key, budget):
    return all_taps(key, shape, budget, max_budget=largest, **options)

  keys = jax.random.split(jax.random.key(0), KEYS)
  many = jax.vmap(jax.vmap(sample, in_axes=(None, 0)), in_axes=(0, None))
  return np.asarray(jax.jit(many)(keys, budgets))


def budgets_of(shape):
  """From the floor to every cell."""
  size = math.prod(shape)
  densities = (0.0, 0.02, 0.05, 0.1, 0.3, 0.7, 1.0)
  return [max(min(shape[-2:]), round(density * size)) for density in densities]


def assert_isometric(kernels):
  """All singular values of all circular convolutions, image larger than window."""
  window = kernels.shape[-2 - (kernels.ndim - 4) : -2]
  kernels = kernels.reshape(-1, *kernels.shape[2:])
  for kernel in kernels:
    values = conv_singular_values(
      kernel, [size + 1 for size in window], padding="CIRCULAR"
    )
    chex.assert_trees_all_close(values, np.ones_like(values), atol=ATOL, rtol=1e-7)


def nonzeros(kernels):
  """Nonzeros of each kernel, `[keys, budgets]`."""
  return np.count_nonzero(kernels, axis=tuple(range(2, kernels.ndim)))


@pytest.mark.slow
@pytest.mark.parametrize(
  ("shape", "schedule"),
  few(
    [
      ((1, 1, 6, 6), "matching"),
      ((3, 3, 24, 16), "iid"),
      ((3, 3, 16, 24), "matching"),
      ((2, 4, 12, 12), "matching"),
      ((3, 3, 3, 16), "iid"),
      ((5, 12, 8), "matching"),
      ((2, 3, 2, 8, 14), "iid"),
      *WIDE,
    ],
    2,
    rows=True,
  ),
)
def test_kernels_are_isometric_within_their_budget(shape, schedule):
  budgets = np.array(budgets_of(shape))
  kernels = sample_many(shape, budgets, schedule=schedule)
  wide = (shape, schedule) in WIDE
  assert_isometric(kernels[:1] if wide else kernels)
  counts = nonzeros(kernels)
  assert (counts <= budgets).all()
  assert (counts[:, 0] == min(shape[-2:])).all()  # the floor is exact
  assert (counts[:, -1] == math.prod(shape)).all()  # so is density 1
  # One more rotation would pass the budget: it adds what two columns do not share.
  lines = np.minimum(2 * budgets / max(shape[-2:]), math.prod(shape[:-1]))
  assert ((budgets - counts).mean(axis=0) <= lines + 1).all()
  if wide:
    assert_even(kernels[:, 1:5], budgets[1:5])


def assert_even(kernels, budgets):
  """The budget is used, and all taps get about equal shares of it."""
  counts = nonzeros(kernels)
  assert (counts > 0.95 * budgets).all()
  taps = np.count_nonzero(kernels, axis=(-2, -1)).reshape(*counts.shape, -1)
  shares = taps * taps.shape[-1] / counts[..., None]
  assert shares.min() > 0.5 and shares.max() < 2


@pytest.mark.slow
@pytest.mark.parametrize(
  ("shape", "budget"), [((5, 5, 64, 64), 3_072), ((7, 7, 64, 64), 2_007)]
)
def test_equal_outer_products_get_a_tap_each(shape, budget):
  # Of 100 keys two to five had a tap of two channels whose nonzeros were the same.
  def count(key):
    return jnp.count_nonzero(all_taps(key, shape, budget), axis=(-2, -1)).ravel()

  taps = np.asarray(jax.jit(jax.vmap(count))(jax.random.split(jax.random.key(0), 100)))
  shares = taps / taps.mean(axis=1, keepdims=True)
  assert shares.min() > 0.5 and shares.max() < 2


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(3, 3, 4, 4), (3, 3, 3, 6, 10), (5, 5, 12, 8)])
def test_windows_of_more_taps_than_channels_take_several_delays(shape):
  kernels = sample_many(shape, budgets_of(shape)[-3:])
  assert_isometric(kernels)
  assert (nonzeros(kernels) <= budgets_of(shape)[-3:]).all()
  alive = (kernels != 0).any(axis=(-1, -2))
  assert alive[:, -1].all() and alive.mean() > 0.8


@pytest.mark.slow
def test_one_channel_is_a_shift():
  kernels = sample_many((3, 3, 1, 1), [1, 9])
  assert (nonzeros(kernels) == 1).all()
  assert_isometric(kernels)


@pytest.mark.slow
def test_cover_leaves_no_output_dead():
  shape = (3, 3, 4, 24)
  kernels = sample_many(shape, [100], cover=True)
  assert (kernels != 0).any(axis=tuple(range(2, kernels.ndim - 1))).all()
  assert_isometric(kernels)


SHAPE, BUDGET = (3, 3, 8, 12), 200


@pytest.mark.slow
def test_values_do_not_depend_on_the_transformation():
  keys = jax.random.split(jax.random.key(3), 3)
  want = jnp.stack([all_taps(key, SHAPE, BUDGET) for key in keys])
  jitted = jax.jit(lambda key: all_taps(key, SHAPE, BUDGET))
  mapped = jax.vmap(lambda key: all_taps(key, SHAPE, BUDGET))(keys)
  several = jnp.stack([jitted(key) for key in keys])
  chex.assert_trees_all_close(several, want, atol=1e-6, rtol=1e-7)
  chex.assert_trees_all_close(mapped, want, atol=1e-6, rtol=1e-7)
  chex.assert_trees_all_equal(mapped != 0, want != 0)
  traced = jax.vmap(
    lambda key, budget: all_taps(key, SHAPE, budget, max_budget=BUDGET), (0, None)
  )(keys, jnp.int32(BUDGET))
  chex.assert_trees_all_close(traced, want, atol=1e-6, rtol=1e-7)
  chex.assert_trees_all_equal(traced != 0, want != 0)
  assert len({bytes(np.asarray(kernel)) for kernel in want}) == len(keys)


@pytest.mark.slow
def test_raw_keys_and_angles():
  raw = all_taps(jax.random.PRNGKey(0), SHAPE, BUDGET)
  chex.assert_trees_all_equal(raw, all_taps(jax.random.key(0), SHAPE, BUDGET))
  kernel = all_taps(jax.random.key(0), SHAPE, BUDGET, angle=0.3)
  assert_isometric(np.asarray(kernel)[None, None])
  assert np.count_nonzero(kernel) <= BUDGET
  drawn = all_taps(
    jax.random.key(0), SHAPE, BUDGET, angle=lambda _, shape: jnp.full(shape, 0.3)
  )
  chex.assert_trees_all_close(drawn, kernel, atol=1e-6, rtol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_lower_precision_is_cast_last(dtype):
  kernel = all_taps(jax.random.key(0), SHAPE, BUDGET)
  lower = all_taps(jax.random.key(0), SHAPE, BUDGET, dtype)
  chex.assert_type(lower, dtype)
  chex.assert_trees_all_equal(lower, kernel.astype(dtype))


@pytest.mark.slow
def test_zero_padding_loses_only_at_the_border():
  kernel = all_taps(jax.random.key(0), (3, 3, 16, 16), 400)
  values = conv_singular_values(kernel, (6, 6), padding="SAME")
  assert values[0] < 1 + ATOL
  inside = conv_singular_values(kernel, (6, 6), padding="VALID")
  chex.assert_trees_all_close(
    values[: len(inside) // 4], np.ones(len(inside) // 4), atol=1e-3, rtol=1e-7
  )


def test_budgets_out_of_range_are_named(value_error):
  for budget in (7, 3 * 8 * 12 + 1):
    with value_error("`budget`", "[8, 288]", "(3, 8, 12)", str(budget)):
      all_taps(jax.random.key(0), (3, 8, 12), budget)
  with value_error("`max_budget`", "[8, 288]", "7"):
    all_taps(jax.random.key(0), (3, 8, 12), jnp.int32(8), max_budget=7)
