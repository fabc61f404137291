"""Approximate isometry: the published curve, and a way that ends lower sooner."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eoi_jax.initializers import approximate_isometry

PUBLISHED = 2.23613  # after 1000 steps, from 7.2133


@pytest.fixture(scope="module")
def recorded(golden):
  return dict(np.load(golden / "approximate_isometry.npz"))


@pytest.fixture(scope="module")
def start(recorded):
  """The recorded start and mask, as stacks of one; in torch layout, which is square."""
  kernels = jnp.asarray(recorded["uniform64_w_init_unmasked"])[None]
  return kernels, jnp.asarray(recorded["uniform64_mask"]).astype(bool)[None]


def frobenius_error(kernel, scale=1.0):
  """The definition, in float64: of the smaller Gram matrix."""
  matrix = np.asarray(kernel, np.float64).reshape(-1, kernel.shape[-1])
  matrix = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
  return np.linalg.norm(matrix @ matrix.T - scale**2 * np.eye(len(matrix)))


def test_the_published_settings_follow_the_recorded_curve(recorded, start):
  result = approximate_isometry(*start, num_steps=1000, curve=True)
  errors = np.asarray(result.errors)[:, 0]
  assert errors.shape == (1001,)
  recorded_curve = recorded["uniform64_float32_1000_loss_curve"]
  np.testing.assert_allclose(errors[:1000:10], recorded_curve, rtol=1e-5)
  np.testing.assert_allclose(errors[-1], PUBLISHED, atol=1e-4)
  np.testing.assert_allclose(
    result.kernels[0], recorded["uniform64_float32_1000_w_final"], atol=1e-4
  )


def test_adam_ends_lower_in_a_fifth_of_the_steps(start):
  result = approximate_isometry(*start, method="adam")
  assert float(result.errors[-1, 0]) < 1.5  # of sqrt(1) that the mask allows
  np.testing.assert_allclose(
    frobenius_error(result.kernels[0]), result.errors[-1, 0], rtol=1e-4
  )


def test_the_defaults_are_the_published_ones(start):
  """Compared on a small matrix, where ten thousand steps take no time."""
  kernels, masks = (x[:, :8, :8] for x in start)
  default = approximate_isometry(kernels, masks)
  explicit = approximate_isometry(
    kernels, masks, method="sgd", num_steps=10_000, step_size=0.1
  )
  np.testing.assert_array_equal(default.kernels, explicit.kernels)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["sgd", "adam"])
@pytest.mark.parametrize("shape", [(8, 24), (24, 8), (3, 3, 4, 16), (3, 3, 4, 40)])
def test_zeros_stay_and_the_smaller_gram_side_counts(method, shape):
  kernels = jax.random.normal(jax.random.key(0), (2, *shape)) / 4
  masks = jax.random.bernoulli(jax.random.key(1), 0.4, (2, *shape))
  result = approximate_isometry(kernels, masks, method=method, num_steps=100, scale=1.5)
  assert result.kernels.shape == kernels.shape
  assert not np.any(np.asarray(result.kernels)[~np.asarray(masks)])
  assert bool(jnp.all(result.errors[-1] < 0.9 * result.errors[0]))
  for kernel, error in zip(result.kernels, result.errors[-1], strict=True):
    np.testing.assert_allclose(frobenius_error(kernel, 1.5), error, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["sgd", "adam"])
def test_layers_do_not_see_each_other(method):
  kernels = jax.random.normal(jax.random.key(0), (3, 16, 16)) / 4
  masks = jax.random.bernoulli(jax.random.key(1), 0.4, (3, 16, 16))
  together = approximate_isometry(kernels, masks, method=method, num_steps=50)
  alone = approximate_isometry(kernels[1:2], masks[1:2], method=method, num_steps=50)
  np.testing.assert_allclose(together.kernels[1], alone.kernels[0], atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["sgd", "adam"])
def test_nothing_to_do_is_no_nan(method):
  """Empty rows, an empty mask, and a start that is exact already."""
  kernels = jnp.broadcast_to(jnp.eye(8), (3, 8, 8))
  masks = jnp.stack(
    [jnp.ones((8, 8), bool), jnp.zeros((8, 8), bool), jnp.eye(8, dtype=bool)]
  )
  masks = masks.at[2, 0].set(False)
  result = approximate_isometry(kernels, masks, method=method, num_steps=20)
  assert bool(jnp.all(jnp.isfinite(result.kernels)))
  assert not np.any(np.asarray(result.kernels[1]))
  np.testing.assert_allclose(result.errors[-1], [0, 8**0.5, 1], atol=1e-5)


def test_low_precision_is_cast_last(start):
  kernels, masks = start
  low = approximate_isometry(kernels.astype(jnp.bfloat16), masks, num_steps=5)
  assert low.kernels.dtype == jnp.bfloat16 and low.errors.dtype == jnp.float32


@pytest.mark.parametrize(
  ("options", "words"),
  [
    ({"method": "lbfgs"}, ("`method`", "sgd", "adam", "lbfgs")),
    ({"num_steps": -1}, ("`num_steps`", "-1")),
    ({"step_size": 0.0}, ("`step_size`", "positive")),
    ({"scale": -1.0}, ("`scale`", "positive")),
  ],
)
def test_errors_say_what_is_wrong(options, words, start, value_error):
  with value_error(*words):
    approximate_isometry(*start, **options)


def test_masks_must_fit(start, value_error):
  kernels, masks = start
  with value_error("masks", "(1, 64, 64)"):
    approximate_isometry(kernels, masks[:, :32])
  with value_error("masks", "float32"):
    approximate_isometry(kernels, masks.astype(jnp.float32))
  for wrong in (kernels.astype(int), kernels.astype(complex), kernels[:0]):
    with value_error("floating `kernels`", "not empty", str(wrong.dtype)):
      approximate_isometry(wrong, masks[: len(wrong)])
