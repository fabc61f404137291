"""SAO: exact degrees, exact isometry, and legal degrees only."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eoi_jax import orthogonality_error
from eoi_jax.initializers import sao_degrees, sao_orthogonal

ATOL = 5e-6


@pytest.mark.slow
@pytest.mark.parametrize(
  ("shape", "degree"),
  [((128, 128), 16), ((100, 100), 10), ((16, 64), 8), ((64, 16), 32), ((9, 9), 1)],
)
def test_sao_is_orthogonal_with_exact_degrees(shape, degree):
  matrix = sao_orthogonal(jax.random.key(0), shape, degree)
  lo, hi = min(shape), max(shape)
  assert matrix.shape == shape
  assert float(orthogonality_error(matrix)) < ATOL
  live = np.asarray(matrix != 0)
  along_hi = live.sum(axis=shape.index(hi) if lo != hi else 1)
  along_lo = live.sum(axis=1 - shape.index(hi) if lo != hi else 0)
  assert set(along_hi) == {degree}
  assert set(along_lo) == {degree * lo // hi}


@pytest.mark.slow
@pytest.mark.parametrize(("shape", "degree"), [((128, 128), 16), ((16, 32), 8)])
def test_the_relu_form_has_singular_values_0_and_2(shape, degree):
  matrix = np.asarray(sao_orthogonal(jax.random.key(0), shape, degree, relu=True))
  values = np.linalg.svd(matrix, compute_uv=False)
  half = min(shape) // 2
  np.testing.assert_allclose(values[:half], 2, atol=ATOL)
  np.testing.assert_allclose(values[half:], 0, atol=ATOL)
  assert set((matrix != 0).sum(axis=1)) == {degree}
  top, bottom = np.split(matrix, 2)
  np.testing.assert_array_equal(top, -bottom)


@pytest.mark.slow
def test_the_relu_form_looks_linear_through_a_relu():
  """Equal and opposite halves: `[x, -x]` stays of that form, and x goes linearly."""
  matrix = sao_orthogonal(jax.random.key(0), (16, 16), 4, relu=True)
  inner = matrix[:8, :8]
  x = jax.random.normal(jax.random.key(1), (5, 8))
  hidden = jax.nn.relu(jnp.concatenate([x, -x], axis=1))
  out = jnp.matmul(hidden, matrix, precision="highest")
  want = jnp.matmul(x, inner, precision="highest")
  np.testing.assert_allclose(out, jnp.concatenate([want, -want], axis=1), atol=1e-5)


def test_legal_degrees_divide():
  assert sao_degrees((128, 128)) == (1, 2, 4, 8, 16, 32, 64, 128)
  assert sao_degrees((7, 7)) == (1, 7)
  assert sao_degrees((16, 32)) == sao_degrees((32, 16)) == (2, 4, 8, 16, 32)
  assert sao_degrees((128, 128), relu=True) == (2, 4, 8, 16, 32, 64, 128)
  assert sao_degrees((7, 7), relu=True) == ()


@pytest.mark.parametrize("degree", [0, -1, 7, 101, 2.5, True, "a"])
def test_illegal_degrees_list_the_legal_ones(degree, value_error):
  with value_error("`degree`", "1, 2, 4, 5, 10, 20, 25, 50, 100", str(degree)):
    sao_orthogonal(jax.random.key(0), (100, 100), degree)


def test_odd_sides_have_no_relu_form(value_error):
  with value_error("`shape`", "even", "(7, 8)"):
    sao_orthogonal(jax.random.key(0), (7, 8), 2, relu=True)
  with value_error("`degree`", "ReLU", "2, 10, 50", "got 5"):
    sao_orthogonal(jax.random.key(0), (50, 50), 5, relu=True)


def test_keys_and_dtypes():
  one, other = (
    sao_orthogonal(jax.random.key(k), (16, 16), 4, jnp.bfloat16) for k in (0, 1)
  )
  assert one.dtype == jnp.bfloat16
  assert bool(((one != 0) != (other != 0)).any())
