"""Sparse orthogonal matrices: Gram = identity, counts in the budget, exact zeros."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eoi_jax import orthogonality_error, sparse_orthogonal
from tests.cases import few

# Rounding of a few hundred plane rotations, each entry at most one in size.
ATOL = {"float32": 5e-6, "float64": 1e-12}
# Each pair of shape and density compiles, so the hundreds of cases come from the keys.
DENSITIES = {
  (64, 32): (1 / 64, 0.08, 1.0),
  (32, 64): (1 / 64, 0.2, 0.77),
  (48, 48): (0.125, 1.0),
  (7, 50): (0.03, 0.5),
  (1, 16): (1 / 16, 0.5),
  (16, 1): (0.3,),
  (1, 1): (1.0,),
}
CASES = [(shape, d) for shape, densities in DENSITIES.items() for d in densities]
NUM_KEYS = 24
# A typical case for the questions that need only one.
SHAPE, DENSITY = (32, 64), 0.2


@functools.cache
def sample(shape, density):
  """`NUM_KEYS` matrices of one compilation, and the keys."""
  key = jax.random.fold_in(jax.random.key(0), CASES.index((shape, density)))
  keys = jax.random.split(key, NUM_KEYS)
  draw = jax.jit(jax.vmap(lambda key: sparse_orthogonal(key, shape, density)))
  return keys, np.asarray(draw(keys))


def gram_error(matrix):
  """Largest |G - I| on the smaller side, in float64."""
  a = np.asarray(matrix, np.float64)
  gram = a @ a.T if a.shape[0] <= a.shape[1] else a.T @ a
  return np.abs(gram - np.eye(len(gram))).max()


@pytest.mark.slow
@pytest.mark.parametrize(("shape", "density"), few(CASES, 3, rows=True))
def test_hundreds_of_triples_are_orthogonal_within_the_budget(shape, density):
  _, matrices = sample(shape, density)
  budget = round(density * shape[0] * shape[1])
  assert matrices.dtype == np.float32
  for matrix in matrices:
    assert matrix.shape == shape
    assert gram_error(matrix) < ATOL["float32"]
    count = np.count_nonzero(matrix)
    assert budget - min(shape) < count <= budget


@pytest.mark.slow
@pytest.mark.parametrize(("shape", "density"), [((64, 32), 0.08), ((7, 50), 0.5)])
def test_zeros_are_zeros_and_not_rounding(shape, density):
  _, matrices = sample(shape, density)
  # The product of a few sines is far above 1e-12, the rounding of a cancelled sum is
  # not: a matrix with a blurred zero would pass no other bound here.
  live = np.abs(matrices[matrices != 0])
  assert live.min() > 1e-12
  zeros = matrices[matrices == 0]
  assert zeros.size and not np.isnan(matrices).any()


@pytest.mark.parametrize("shape", [(64, 32), (32, 64)])
def test_at_the_floor_it_is_a_partial_permutation(shape):
  _, matrices = sample(shape, 1 / max(shape))
  for matrix in matrices:
    chex.assert_trees_all_equal(np.abs(matrix[matrix != 0]), np.ones(min(shape)))
    assert (np.count_nonzero(matrix, axis=np.argmax(shape)) <= 1).all()


@pytest.mark.parametrize(("shape", "density"), [((64, 32), 0.08), ((48, 48), 0.125)])
def test_keys_give_different_supports(shape, density):
  _, matrices = sample(shape, density)
  supports = {(m != 0).tobytes() for m in matrices}
  assert len(supports) == len(matrices)


def test_all_parts_of_the_matrix_are_used_alike():
  _, matrices = sample((48, 48), 0.125)
  share = (matrices != 0).mean(axis=0)
  share = np.where(np.eye(48, dtype=bool), 0.125, share)  # the start is the identity
  for half in (share[:24], share[24:], share[:, :24], share[:, 24:]):
    assert abs(half.mean() - 0.11) < 0.02


@pytest.mark.slow
def test_jit_equals_no_jit():
  compiled = jax.jit(sparse_orthogonal, static_argnums=(1, 2))
  for seed in range(3):
    key = jax.random.key(seed)
    chex.assert_trees_all_equal(
      compiled(key, SHAPE, DENSITY), sparse_orthogonal(key, SHAPE, DENSITY)
    )


@pytest.mark.slow
@pytest.mark.parametrize(("shape", "density"), [(SHAPE, DENSITY), ((48, 48), 0.125)])
def test_vmap_over_keys_equals_a_loop(shape, density):
  keys, together = sample(shape, density)
  alone = np.stack([np.asarray(sparse_orthogonal(k, shape, density)) for k in keys])
  chex.assert_trees_all_equal(together != 0, alone != 0)
  # A batched program may contract multiplies and adds in another way.
  chex.assert_trees_all_close(together, alone, rtol=0, atol=1e-6)


def test_same_key_same_matrix_and_old_style_keys():
  key = jax.random.key(5)
  first = sparse_orthogonal(key, SHAPE, DENSITY)
  chex.assert_trees_all_equal(first, sparse_orthogonal(key, SHAPE, DENSITY))
  raw = jax.random.key_data(key)
  chex.assert_trees_all_equal(first, sparse_orthogonal(raw, SHAPE, DENSITY))


def test_shape_may_be_a_list_and_density_a_numpy_scalar():
  key = jax.random.key(5)
  want = sparse_orthogonal(key, SHAPE, DENSITY)
  got = sparse_orthogonal(key, list(SHAPE), np.float64(DENSITY))
  chex.assert_trees_all_equal(got, want)


def test_density_one_may_be_an_int():
  np.testing.assert_array_equal(
    jnp.abs(sparse_orthogonal(jax.random.key(5), (1, 1), 1)), [[1]]
  )


def small_angles(key, shape):
  return jax.random.uniform(key, shape, minval=0.1, maxval=0.2)


@pytest.mark.slow
@pytest.mark.parametrize("angle", few([np.pi / 180, np.deg2rad(80), small_angles]))
def test_angles(angle):
  matrix = np.asarray(sparse_orthogonal(jax.random.key(0), SHAPE, DENSITY, angle=angle))
  budget = round(DENSITY * matrix.size)
  assert budget - min(SHAPE) < np.count_nonzero(matrix) <= budget
  assert gram_error(matrix) < ATOL["float32"]


def test_one_degree_stays_close_to_the_start():
  matrix = sparse_orthogonal(jax.random.key(0), SHAPE, DENSITY, angle=np.pi / 180)
  # At most some twenty rotations of 1 degree touch a column.
  assert float(jnp.abs(jnp.diag(matrix)).min()) > 0.8
  free = sparse_orthogonal(jax.random.key(0), SHAPE, DENSITY)
  assert float(jnp.abs(jnp.diag(free)).min()) < 0.5


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(64, 32), (48, 48)])
def test_float64(shape, x64):
  matrix = sparse_orthogonal(jax.random.key(0), shape, 0.3, jnp.float64)
  assert matrix.dtype == jnp.float64
  assert gram_error(matrix) < ATOL["float64"]
  budget = round(0.3 * matrix.size)
  assert budget - min(shape) < np.count_nonzero(matrix) <= budget


@pytest.mark.slow
def test_float32_under_x64(x64):
  matrix = sparse_orthogonal(jax.random.key(0), SHAPE, DENSITY)
  assert matrix.dtype == jnp.float32
  assert gram_error(matrix) < ATOL["float32"]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_lower_precision_is_a_cast_at_the_end(dtype):
  key = jax.random.key(0)
  matrix = sparse_orthogonal(key, SHAPE, DENSITY, dtype)
  assert matrix.dtype == dtype
  want = sparse_orthogonal(key, SHAPE, DENSITY, jnp.float32).astype(dtype)
  chex.assert_trees_all_equal(matrix.astype(jnp.float32), want.astype(jnp.float32))


@pytest.mark.slow
def test_orthogonality_error_of_known_matrices():
  assert float(orthogonality_error(jnp.eye(3, 5))) == 0
  assert float(orthogonality_error(jnp.eye(5, 3))) == 0
  assert float(orthogonality_error(2 * jnp.eye(4))) == 3
  assert float(orthogonality_error(jnp.zeros((4, 2)))) == 1
  # Off-diagonal: two rows of one direction.
  twins = jnp.array([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
  assert float(orthogonality_error(twins)) == 1


@pytest.mark.slow
def test_orthogonality_error_is_traceable_and_agrees_with_numpy():
  matrix = jax.random.normal(jax.random.key(0), (6, 9)) / 3
  got = jax.jit(orthogonality_error)(matrix)
  assert got.shape == ()
  chex.assert_trees_all_close(got, gram_error(matrix), rtol=1e-5)
  chex.assert_trees_all_close(orthogonality_error(matrix.T), got, rtol=1e-6)
  batch = jax.vmap(orthogonality_error)(jnp.stack([matrix, 2 * matrix]))
  chex.assert_trees_all_close(batch[0], got, rtol=1e-6)


def test_orthogonality_error_of_half_precision_is_computed_in_float32():
  matrix = sparse_orthogonal(jax.random.key(0), SHAPE, DENSITY, jnp.bfloat16)
  got = float(orthogonality_error(matrix))
  assert got == pytest.approx(gram_error(matrix.astype(jnp.float32)), rel=1e-4)


@pytest.mark.parametrize("shape", [(), (4,), (2, 4, 4)])
def test_orthogonality_error_wants_a_matrix(value_error, shape):
  with value_error("matrix", str(shape)):
    orthogonality_error(jnp.zeros(shape))


@pytest.mark.parametrize(
  "density", [0, 0.0, -0.3, 1.0001, 7, 0.001, float("nan"), float("inf")]
)
def test_malformed_density(value_error, density):
  with value_error("`density` must be in [0.01562, 1]", "(64, 32)", str(density)):
    sparse_orthogonal(jax.random.key(0), (64, 32), density)


@pytest.mark.parametrize("shape", [(), (8,), (2, 3, 4), (0, 4), (4, -1), (2.5, 4)])
def test_malformed_shape(value_error, shape):
  with value_error("shape", str(shape)):
    sparse_orthogonal(jax.random.key(0), shape, 0.5)


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.bool_, jnp.complex64])
def test_malformed_dtype(value_error, dtype):
  with value_error("dtype", jnp.dtype(dtype).name):
    sparse_orthogonal(jax.random.key(0), (8, 8), 0.5, dtype)


@pytest.mark.parametrize("schedule", ["", "IID", "fastest"])
def test_unknown_schedule_lists_the_known_ones(value_error, schedule):
  with value_error("schedule", repr(schedule), "iid"):
    sparse_orthogonal(jax.random.key(0), (8, 8), 0.5, schedule=schedule)


def test_malformed_angle(value_error):
  with value_error("angle", "nan"):
    sparse_orthogonal(jax.random.key(0), (8, 8), 0.5, angle=float("nan"))
