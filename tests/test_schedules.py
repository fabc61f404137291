"""What the schedules do to the nonzeros of rows and columns."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eoi_jax import (
  apply_rotations,
  expected_density,
  kernel_layouts,
  sample_rotations,
  sparse_orthogonal,
)
from eoi_jax.masks import dead_units

SCHEDULES = ("iid", "matching")


@pytest.fixture(scope="module")
def draw():
  @functools.partial(jax.jit, static_argnums=(1, 2, 3, 4))
  def draw(keys, shape, density, schedule, cover=False):
    sample = functools.partial(
      sparse_orthogonal, shape=shape, density=density, schedule=schedule, cover=cover
    )
    return jax.vmap(sample)(keys)

  return lambda number, *args: draw(jax.random.split(jax.random.key(5), number), *args)


def _row_law(num_columns: int, num_rotations: int) -> tuple[float, float]:
  """Mean and variance of the nonzeros of a row, by the recurrence in plain Python."""
  pairs = num_columns * (num_columns - 1) / 2
  law = {1: 1.0}
  for _ in range(num_rotations):
    new: dict[int, float] = {}
    for r, p in law.items():
      grow = r * (num_columns - r) / pairs
      new[r] = new.get(r, 0.0) + p * (1 - grow)
      new[r + 1] = new.get(r + 1, 0.0) + p * grow
    law = new
  mean = sum(r * p for r, p in law.items())
  return mean, sum((r - mean) ** 2 * p for r, p in law.items())


def test_iid_rows_follow_the_recurrence():
  num_columns, num_rotations, number = 24, 40, 600
  assert expected_density(num_columns, num_rotations) == pytest.approx(
    _row_law(num_columns, num_rotations)[0] / num_columns, rel=1e-12
  )

  def rows(key):
    rotations = sample_rotations(key, num_columns, num_rotations)
    return jnp.sum(apply_rotations(jnp.eye(num_columns), rotations) != 0, axis=1)

  keys = jax.random.split(jax.random.key(0), number)
  counts = np.asarray(jax.jit(jax.vmap(rows))(keys), np.float64)
  mean, variance = _row_law(num_columns, num_rotations)
  means = counts.mean(axis=1)  # the rows of one matrix are dependent: n = matrices
  assert abs(means.mean() - mean) < 3 * means.std() / np.sqrt(number)
  squares = ((counts - mean) ** 2).mean(axis=1)
  assert abs(squares.mean() - variance) < 3 * squares.std() / np.sqrt(number)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(64, 64), (32, 64), (64, 10)])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_counts_and_isometry(draw, shape, schedule):
  density = 0.2
  q = np.asarray(draw(40, shape, density, schedule), np.float64)
  counts = (q != 0).sum(axis=(1, 2))
  budget = round(density * shape[0] * shape[1])
  assert (counts <= budget).all() and (counts > budget - min(shape)).all()
  wide = np.swapaxes(q, 1, 2) if shape[0] > shape[1] else q
  gram = wide @ np.swapaxes(wide, 1, 2)
  assert np.abs(gram - np.eye(min(shape))).max() < 5e-6


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 3, 5, 16])
def test_matching_fills_small_matrices(draw, size):
  assert (np.asarray(draw(40, (size, size), 1.0, "matching")) != 0).all()


@pytest.mark.slow
def test_matching_evens_out_the_nonzeros(draw):
  spread = {}
  for schedule in SCHEDULES:
    support = np.asarray(draw(40, (64, 64), 0.2, schedule)) != 0
    spread[schedule] = support.sum(axis=1).std(), support.sum(axis=2).std()
  assert all(
    m < 0.5 * i for m, i in zip(spread["matching"], spread["iid"], strict=True)
  )


@pytest.mark.slow
def test_matching_rotates_every_column_above_density_two_over_n(draw):
  support = np.asarray(draw(40, (64, 64), 2.05 / 64, "matching")) != 0
  assert (support.sum(axis=1) >= 2).all()  # an untouched column has one nonzero
  untouched = np.asarray(draw(40, (64, 64), 2.05 / 64, "iid")) != 0
  assert (untouched.sum(axis=1) == 1).any()


@pytest.mark.slow
def test_a_round_is_a_uniform_perfect_matching(draw):
  # 12 nonzeros: the first round of the matching, and nothing more.
  size, number = 6, 3000
  support = np.asarray(draw(number, (size, size), 12 / 36, "matching")) != 0
  pairs = support & ~np.eye(size, dtype=bool)
  whole = support.sum(axis=(1, 2)) == 12
  # (Cosines and sines are never zero but for a chance of 2^-22.)
  assert whole.mean() > 0.999
  assert (pairs[whole].sum(axis=1) == 1).all() and (pairs[whole].sum(axis=2) == 1).all()
  observed = pairs.sum(axis=0)[np.triu_indices(size, 1)]
  expected = number * 3 / 15
  # Chi-square with 14 degrees of freedom: 36.1 is its 0.999 quantile.
  assert ((observed - expected) ** 2 / expected).sum() < 36.1


@pytest.mark.slow
@pytest.mark.parametrize(
  "schedule, shape", [("iid", (10, 100)), ("matching", (100, 10))]
)
def test_cover_leaves_no_dead_unit(draw, schedule, shape):
  for matrix in np.asarray(draw(20, shape, 0.1, schedule, True)):
    assert dead_units(matrix)[""] == (0, 0)
  plain = np.asarray(draw(20, shape, 0.1, "iid"))
  assert sum(sum(dead_units(matrix)[""]) for matrix in plain) > 0


@pytest.mark.slow
def test_cover_reaches_as_far_as_the_density_allows(draw):
  # 60 nonzeros: ten columns are live at the start, each more costs one.
  for matrix in np.asarray(draw(20, (10, 100), 0.06, "iid", True)):
    assert np.count_nonzero(matrix) == 60 == 100 - dead_units(matrix)[""].outputs


def test_unknown_schedule_is_refused():
  with pytest.raises(ValueError, match=r"`schedule` must be one of .*got 'brick'"):
    sparse_orthogonal(jax.random.key(0), (4, 4), 0.5, schedule="brick")


def test_dead_units_of_trees_and_stacks():
  kernel = np.zeros((3, 3, 4, 5))
  kernel[0, 2, 1, :] = 1
  stack = np.stack([np.eye(3), np.zeros((3, 3))])
  tree = {"conv": {"kernel": kernel}, "stack": {"kernel": stack}, "bias": np.zeros(3)}
  layouts = kernel_layouts(tree, {"stack/*": "sio", "conv/*": "wwio"})
  counted = dead_units(tree, layouts=layouts)
  assert counted == {"conv/kernel": (3, 0), "stack/kernel": (3, 3)}
