"""Levels: the same matrix as one rotation after another, in few wide steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eoi_jax import Rotations, apply_rotations, sample_rotations
from eoi_jax.givens import _candidates as schedules
from eoi_jax.givens import _levels as levels_lib


@pytest.mark.parametrize("num_columns, num_rotations", [(2, 5), (33, 150), (64, 300)])
def test_levels_give_the_matrix_of_the_sequence(num_columns, num_rotations):
  rotations = sample_rotations(jax.random.key(0), num_columns, num_rotations)
  depth = num_rotations
  grouped = levels_lib.group(rotations, num_columns, depth)
  for count in (0, num_rotations // 2, num_rotations):
    cos, sin = levels_lib.coefficients(grouped, rotations, count, jnp.float32)
    columns = jnp.eye(num_columns)
    by_level = levels_lib.rotate(columns, grouped.partner, cos, sin, depth).T
    first = Rotations(*(field[:count] for field in rotations))
    one_by_one = apply_rotations(jnp.eye(num_columns), first)
    np.testing.assert_allclose(by_level, one_by_one, atol=1e-6)
    np.testing.assert_array_equal(by_level != 0, one_by_one != 0)


def test_a_dynamic_depth_gives_the_same():
  rotations = sample_rotations(jax.random.key(1), 16, 40)
  grouped = levels_lib.group(rotations, 16, 40)
  tables = (
    grouped.partner,
    *levels_lib.coefficients(grouped, rotations, 40, jnp.float32),
  )
  used = jnp.max(grouped.level) + 1
  static = levels_lib.rotate(jnp.eye(16), *tables, 40)
  np.testing.assert_allclose(
    levels_lib.rotate(jnp.eye(16), *tables, used), static, atol=1e-6
  )


def test_rotations_of_one_level_are_disjoint_and_in_order():
  rotations = sample_rotations(jax.random.key(2), 20, 90)
  level = np.asarray(levels_lib.group(rotations, 20, 90).level)
  i, j = np.asarray(rotations.i), np.asarray(rotations.j)
  last = np.full(20, -1)
  for t in range(90):  # the definition of a greedy level
    expected = 1 + max(last[i[t]], last[j[t]])
    assert level[t] == expected
    last[i[t]] = last[j[t]] = expected


def test_sorting_two_operands_gives_the_same_levels():
  # Many columns and rotations do not fit into one packed word.
  rotations = sample_rotations(jax.random.key(3), 12, 30)
  wide = levels_lib.group(rotations, 2**27, 0).level
  np.testing.assert_array_equal(wide, levels_lib.group(rotations, 12, 30).level)


@pytest.mark.parametrize("schedule", schedules.SCHEDULES)
@pytest.mark.parametrize("density", [0.05, 0.1, 0.3])
def test_depth_at_4096_is_at_most_64(schedule, density):
  num = schedules.num_candidates(4096, 4096, round(density * 4096**2), schedule)
  assert schedules.max_depth(4096, 4096, num, schedule) <= 64


def test_random_sequences_stay_far_from_the_depth_bound():
  num_columns, num_rotations = 64, 300
  bound = schedules.max_depth(64, 64, num_rotations, "iid")

  def depth(key):
    rotations = sample_rotations(key, num_columns, num_rotations)
    return 1 + jnp.max(levels_lib.group(rotations, num_columns, bound).level)

  depths = jax.jit(jax.vmap(depth))(jax.random.split(jax.random.key(4), 300))
  # Gaussian with this margin: a chance under 1e-6.
  assert depths.mean() + 5 * depths.std() < bound
