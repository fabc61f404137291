"""Orthogonal matrices read off as rotations and replayed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eoi_jax import Rotations, sparse_orthogonal
from eoi_jax.givens import rotated_identity, rotations_from_orthogonal


def _proper(seed, size):
  q = np.linalg.qr(np.random.default_rng(seed).normal(size=(size, size)))[0]
  q[:, 0] *= np.linalg.det(q)
  return q


@pytest.mark.parametrize("seed", range(3))
def test_a_random_orthogonal_matrix_replays(seed):
  q = _proper(seed, 64)
  rotations = rotations_from_orthogonal(q)
  assert rotations.i.shape == (64 * 63 // 2,)
  np.testing.assert_allclose(rotated_identity((64, 64), rotations), q, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(12, 20), (20, 12), (1, 5), (16, 16)])
def test_sparse_matrices_replay_with_their_support(shape):
  q = sparse_orthogonal(jax.random.key(0), shape, 0.3)
  rotations = rotations_from_orthogonal(q)
  assert rotations.i.size < min(shape) * max(shape) - min(shape) * (min(shape) + 1) // 2
  again = rotated_identity(shape, rotations)
  np.testing.assert_allclose(again, q, atol=1e-5)


def test_signs_cost_half_turns():
  q = np.diag([-1.0, 1.0, -1.0])
  np.testing.assert_allclose(
    rotated_identity((3, 3), rotations_from_orthogonal(q)), q, atol=1e-6
  )
  wide = -np.eye(2, 3)
  np.testing.assert_allclose(
    rotated_identity((2, 3), rotations_from_orthogonal(wide)), wide, atol=1e-6
  )


def test_an_explicit_list_of_planes_gives_its_pattern():
  planes = Rotations(jnp.array([0, 2]), jnp.array([1, 3]), jnp.full(2, 0.3))
  q = rotated_identity((4, 4), planes)
  np.testing.assert_array_equal(q != 0, np.kron(np.eye(2), np.ones((2, 2))))


@pytest.mark.parametrize(
  "matrix, rule",
  [
    (np.diag([1.0, -1.0]), "determinant 1"),
    (2 * np.eye(3), "Gram error of 3"),
    (np.full((2, 2), np.nan), "Gram error of nan"),
    (np.eye(3)[0], r"shape \(rows, cols\)"),
  ],
)
def test_what_is_no_rotation_is_refused(matrix, rule):
  with pytest.raises(ValueError, match=rule):
    rotations_from_orthogonal(matrix)


def test_traced_matrices_are_refused():
  with pytest.raises(ValueError, match="concrete"):
    jax.jit(rotations_from_orthogonal)(jnp.eye(2))
