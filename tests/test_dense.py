"""Dense references: isometric as matrices, at the centre, or as convolutions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eoi_jax import gram_errors, kernel_layouts
from eoi_jax.initializers import conv_orthogonal, delta_orthogonal, dense_orthogonal

ATOL = 5e-6
INITS = [dense_orthogonal, delta_orthogonal, conv_orthogonal]
# Windows of rank 1 to 3, square and not, odd and even; more inputs and more outputs.
SHAPES = [(3, 6, 8), (3, 3, 8, 6), (2, 4, 6, 6), (2, 3, 2, 5, 7), (1, 1, 4, 6)]


def gram_error(kernel, scale=1.0):
  axes = "w" * (kernel.ndim - 2) + "io"
  layouts = kernel_layouts([kernel], {"0": axes})
  (error,) = gram_errors([kernel], scale=scale, layouts=layouts).values()
  return float(error[0])


def circular(inputs, kernel):
  pads = [((k - 1) // 2, k // 2) for k in kernel.shape[:-2]]
  inputs = jnp.pad(inputs, [(0, 0), *pads, (0, 0)], mode="wrap")
  return jax.lax.conv_general_dilated(
    inputs,
    kernel,
    (1, 1),
    "VALID",
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
    precision="highest",
  )


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.complex64, "x"])
@pytest.mark.parametrize("init", [dense_orthogonal, delta_orthogonal, conv_orthogonal])
def test_kernels_are_floating_point(value_error, init, dtype):
  with value_error("`dtype`", str(getattr(dtype, "__name__", dtype))):
    init()(jax.random.key(0), (3, 3, 4, 4), dtype)


@pytest.mark.slow
@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("shape", [(16, 16), (8, 12), (12, 8), (1, 5)])
def test_dense_kernels_are_orthogonal(init, shape):
  kernel = init(1.5)(jax.random.key(0), shape)
  assert kernel.shape == shape and gram_error(kernel, 1.5) < ATOL


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("init", [delta_orthogonal, conv_orthogonal])
def test_convolutions_are_isometries(init, shape):
  kernel = init(1.5)(jax.random.key(0), shape)
  assert kernel.shape == shape and gram_error(kernel, 1.5) < ATOL


@pytest.mark.parametrize("shape", SHAPES)
def test_block_convolution_uses_every_tap(shape):
  kernel = np.asarray(conv_orthogonal()(jax.random.key(0), shape))
  assert np.count_nonzero(kernel) == kernel.size
  taps = np.abs(kernel).reshape(-1, *shape[-2:]).max(axis=(1, 2))
  assert taps.min() > 1e-3


@pytest.mark.slow
def test_block_convolution_keeps_norms_under_circular_padding():
  kernel = conv_orthogonal()(jax.random.key(0), (3, 3, 4, 8))
  inputs = jax.random.normal(jax.random.key(1), (2, 6, 6, 4))
  outputs = circular(inputs, kernel)
  np.testing.assert_allclose(
    jnp.sum(outputs**2, (1, 2, 3)), jnp.sum(inputs**2, (1, 2, 3)), rtol=1e-5
  )


@pytest.mark.slow
def test_the_flat_reference_is_orthogonal_over_its_patches():
  kernel = dense_orthogonal()(jax.random.key(0), (3, 3, 4, 8))
  flat = kernel.reshape(36, 8)
  gram = jnp.matmul(flat.T, flat, precision="highest")
  np.testing.assert_allclose(gram, np.eye(8), atol=ATOL)
  assert gram_error(kernel) > 0.01  # no isometry where patches overlap
  patches = gram_errors([kernel], layouts=kernel_layouts([kernel], {"0": "iiio"}))
  assert float(patches["0"][0]) < ATOL


@pytest.mark.parametrize("init", INITS)
def test_lower_precision_is_cast_last(init):
  low = init(1.5)(jax.random.key(0), (3, 3, 4, 8), jnp.bfloat16)
  want = init(1.5)(jax.random.key(0), (3, 3, 4, 8)).astype(jnp.bfloat16)
  assert low.dtype == jnp.bfloat16
  np.testing.assert_array_equal(low.astype(jnp.float32), want.astype(jnp.float32))


@pytest.mark.slow
@pytest.mark.parametrize("init", INITS)
def test_initializers_are_pure_and_vmap(init):
  keys = jax.random.split(jax.random.key(0), 3)
  many = jax.jit(jax.vmap(lambda key: init()(key, (3, 3, 4, 8))))(keys)
  np.testing.assert_allclose(many[1], init()(keys[1], (3, 3, 4, 8)), atol=1e-6)
  assert float(jnp.abs(many[0] - many[1]).max()) > 0.1


@pytest.mark.parametrize("init", INITS)
def test_errors_say_what_is_wrong(init, value_error):
  with value_error("`scale`", "nan"):
    init(float("nan"))
  with value_error("`shape`", "(5,)"):
    init()(jax.random.key(0), (5,))
