"""Expected density: the exact recurrence, its inverse, and the sampler behind it."""

import functools
import math
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eoi_jax import (
  apply_rotations,
  expected_density,
  rotations_for_density,
  sample_rotations,
)

# First t whose expected density reaches 0.05, 0.1, 0.3 (PAPER: section 4).
TABLE = {
  128: (124, 174, 272),
  512: (854, 1057, 1450),
  1024: (2064, 2470, 3258),
  2048: (4840, 5653, 7229),
}


def recurrence(n, steps):
  """The recurrence over exact binomials, one step at a time, as a list of E."""
  pairs = math.comb(n, 2)
  p = {1: 1.0}
  expected = []
  for _ in range(steps + 1):
    expected.append(sum(r * p[r] for r in p) / n)
    q = dict.fromkeys(range(1, n + 1), 0.0)
    for r, mass in p.items():
      q[r] += mass * (math.comb(r, 2) + math.comb(n - r, 2)) / pairs
      if r < n:
        q[r + 1] += mass * r * (n - r) / pairs
    p = q
  return np.array(expected)


@pytest.mark.parametrize("num_columns", [32, 100])
def test_every_step_of_the_golden_recurrence(golden, num_columns):
  with np.load(golden / "expected_density.npz") as file:
    want = file[f"E_m{num_columns}"]
  got = expected_density(num_columns, np.arange(len(want)))
  assert np.asarray(got).dtype == np.float64
  np.testing.assert_allclose(got, want, rtol=0, atol=1e-9)


@pytest.mark.parametrize("case", ["n32_m32", "n100_m100", "n16_m32"])
def test_golden_points_and_the_smaller_side_does_not_matter(golden, case):
  with np.load(golden / "expected_density.npz") as file:
    t, want = file[f"{case}_t"], file[f"{case}_analytic"]
    mean, sd = file[f"{case}_mc_mean"], file[f"{case}_mc_sd"]
  num_columns = int(case.split("_m")[1])
  got = expected_density(num_columns, t)
  np.testing.assert_allclose(got, want, rtol=0, atol=1e-9)
  assert (np.abs(mean - got) <= 0.3 * sd + 1e-12).all()
  one_by_one = [expected_density(num_columns, int(x)) for x in t]
  np.testing.assert_array_equal(one_by_one, got)


def test_against_the_recurrence_written_out():
  np.testing.assert_allclose(
    expected_density(7, np.arange(60)), recurrence(7, 59), rtol=0, atol=1e-12
  )


def test_an_int_gives_a_float():
  got = expected_density(32, 10)
  assert isinstance(got, float)
  assert 1 / 32 < got < 1


def test_arrays_keep_their_shape_and_order():
  t = np.array([[30, 0, 5], [5, 400, 1]])
  got = expected_density(32, t)
  assert got.shape == t.shape
  np.testing.assert_array_equal(got[0, 2], got[1, 0])
  np.testing.assert_array_equal(got[0, 1], 1 / 32)
  np.testing.assert_array_equal(expected_density(32, [3, 4]), got_at(32, 3, 4))


def got_at(n, *steps):
  return [expected_density(n, t) for t in steps]


@pytest.mark.parametrize("n", [1, 2, 3])
def test_smallest_sizes(n):
  assert expected_density(n, 0) == pytest.approx(1 / n, abs=1e-15)
  if n == 2:
    assert expected_density(n, 1) == 1.0
  if n == 3:
    assert expected_density(n, 1) == pytest.approx(5 / 9, abs=1e-15)


def test_density_grows_to_one():
  curve = np.asarray(expected_density(32, np.arange(400)))
  assert (np.diff(curve) >= 0).all() and (np.diff(curve[:200]) > 0).all()
  assert curve.max() <= 1 and curve[-1] > 0.99


@pytest.mark.slow
def test_monte_carlo_over_the_sampler_of_the_library():
  n, steps, draws = 24, (15, 45), 400

  @functools.partial(jax.jit, static_argnums=1)
  @functools.partial(jax.vmap, in_axes=(0, None))
  def nonzeros(key, t):
    rotated = apply_rotations(jnp.eye(10, n), sample_rotations(key, n, t))
    return jnp.count_nonzero(rotated)

  for t in steps:
    keys = jax.random.split(jax.random.key(t), draws)
    seen = np.asarray(nonzeros(keys, t)) / (10 * n)
    standard_error = seen.std(ddof=1) / np.sqrt(draws)
    assert abs(seen.mean() - expected_density(n, t)) < 3 * standard_error, t


@pytest.mark.parametrize("num_columns", sorted(TABLE))
def test_published_numbers_of_rotations(num_columns):
  got = tuple(rotations_for_density(num_columns, d) for d in (0.05, 0.1, 0.3))
  assert got == TABLE[num_columns]
  assert all(isinstance(t, int) for t in got)


@pytest.mark.parametrize("density", [0.05, 0.123, 0.5, 0.9, 0.999])
def test_it_is_the_first_step_that_reaches_the_density(density):
  t = rotations_for_density(32, density)
  assert expected_density(32, t) >= density
  assert t == 0 or expected_density(32, t - 1) < density


@pytest.mark.parametrize(
  "num_columns, density, want",  # by the recurrence, which takes minutes
  [
    (4096, 0.1, 12729),
    (8192, 0.02, 21046),
    (8192, 0.8, 46383),
    (16384, 10 / 16384, 18871),
    (16384, 0.3, 74896),
  ],
)
def test_many_columns_agree_with_the_recurrence(num_columns, density, want):
  assert rotations_for_density(num_columns, density) == pytest.approx(want, rel=1e-4)


def test_planning_a_million_columns_is_no_wait():
  begin = time.perf_counter()
  few, many = (rotations_for_density(2**20, d) for d in (0.1, 1.0))
  assert few < many and time.perf_counter() - begin < 0.5


def test_the_floor_needs_no_rotation():
  assert rotations_for_density(64, 1 / 64) == 0
  assert rotations_for_density(64, 0.001) == 0  # already there without a rotation
  assert rotations_for_density(1, 1.0) == 0
  assert rotations_for_density(2, 1.0) == 1


@pytest.mark.parametrize(
  ("num_columns", "num_rotations", "words"),
  [
    (0, 3, ("num_columns", "0")),
    (-1, 3, ("num_columns", "-1")),
    (8, -2, ("num_rotations", "-2")),
    (8, np.array([1, -2]), ("num_rotations", "-2")),
    (8, 1.5, ("num_rotations", "float")),
    (2.5, 1, ("num_columns", "2.5")),
  ],
)
def test_malformed_counts(value_error, num_columns, num_rotations, words):
  with value_error(*words):
    expected_density(num_columns, num_rotations)


@pytest.mark.parametrize("density", [0.0, -0.5, 1.5, float("nan"), float("inf")])
def test_malformed_density(value_error, density):
  with value_error("`density` must be in (0, 1]", str(density)):
    rotations_for_density(32, density)
