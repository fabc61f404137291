"""Gram errors: zero for isometries however the leaf holds them, the deviation else."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from eoi_jax.layouts import Layout, kernel_layouts
from eoi_jax.signal import gram_errors

ATOL = 2e-6  # a sum of 12 products of float32


def orthogonal(*shape):
  """Stack of matrices with orthonormal rows or columns, `[..., in, out]`."""
  rows, cols = shape[-2:]
  draw = np.random.default_rng(0).normal(
    size=(*shape[:-2], max(shape[-2:]), min(shape[-2:]))
  )
  q = np.linalg.qr(draw)[0]
  return (q if rows >= cols else q.swapaxes(-1, -2)).astype(np.float32)


CENTRE = np.eye(9, dtype=np.float32)[4].reshape(3, 3, 1, 1)
# name: (leaf, layout, number of layers); each block of each leaf is an isometry.
ISOMETRIES = {
  "dense": (orthogonal(12, 6), "io", 1),
  "attention query": (orthogonal(12, 12).reshape(12, 4, 3), "ioo", 1),
  "attention output": (orthogonal(12, 6).reshape(4, 3, 6), "iio", 1),
  "experts": (orthogonal(8, 12, 6), "sio", 8),
  "scanned attention": (orthogonal(8, 12, 6).reshape(8, 12, 2, 3), "sioo", 8),
  "convolution": (CENTRE * orthogonal(6, 12), "wwio", 1),
  "convolution of PyTorch": (
    (CENTRE * orthogonal(6, 12)).transpose(3, 2, 0, 1),
    "oiww",
    1,
  ),
  "depthwise convolution": (
    CENTRE * np.ones((1, 12), np.float32),
    Layout("wwio", 12),
    1,
  ),
  "merged query, key, value": (
    np.concatenate(orthogonal(3, 12, 12), axis=-1),
    Layout("io", groups=3),
    1,
  ),
  "patches": (orthogonal(12, 6).reshape(2, 2, 3, 6), "iiio", 1),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ISOMETRIES)
def test_isometries_have_no_error(name):
  leaf, layout, num_layers = ISOMETRIES[name]
  params = {"layer": {"kernel": 1.5 * leaf, "bias": np.ones(3, np.float32)}}
  layouts = kernel_layouts(params, {"layer/kernel": layout})
  (errors,) = gram_errors(params, scale=1.5, layouts=layouts).values()
  chex.assert_shape(errors, (num_layers,))
  chex.assert_trees_all_close(errors, np.zeros(num_layers), atol=ATOL)


def test_errors_are_those_of_each_layer_and_the_worst_group():
  stack = np.stack([np.eye(4), 2 * np.eye(4), np.eye(4)]).astype(np.float32)
  stack[2, 1, 2] = 0.5
  found = gram_errors([stack], layouts=kernel_layouts([stack], {"0": "sio"}))
  chex.assert_trees_all_close(found["0"], np.array([0, 3, 0.5]), atol=1e-6)
  groups = np.concatenate([np.eye(4), 3 * np.eye(4)], axis=1)
  layouts = kernel_layouts([groups], {"0": Layout("io", groups=2)})
  chex.assert_trees_all_close(
    gram_errors([groups], layouts=layouts)["0"], np.array([8.0])
  )


def test_a_convolution_is_judged_at_every_lag():
  """Two equal taps: the Gram matrix is right at lag 0, and 1/2 at lags -1 and 1."""
  kernel = np.zeros((3, 3, 4, 4), np.float32)
  kernel[1, :2] = np.eye(4) / np.sqrt(2)
  chex.assert_trees_all_close(
    gram_errors({"kernel": kernel})["kernel"], np.array([0.5])
  )


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e4m3fn", "complex64"])
def test_dtypes(dtype):
  """Low precision is squared in float32; a unitary matrix is an isometry."""
  kernel = jnp.asarray([[0, 1, 0], [1, 0, 0]], dtype)
  kernel = 1j * kernel if dtype == "complex64" else kernel
  for leaf in (kernel, kernel.T):
    error = gram_errors({"kernel": leaf})["kernel"]
    assert error.dtype == np.float32 and error == 0
    assert gram_errors({"kernel": 2 * leaf})["kernel"] == 3


def test_leaves_of_an_explicit_mesh():
  mesh = jax.make_mesh((1,), ("x",), axis_types=(AxisType.Explicit,))
  sharding = NamedSharding(mesh, PartitionSpec(None, "x", None))
  kernel = jax.device_put(orthogonal(12, 12).reshape(12, 4, 3), sharding)
  layouts = kernel_layouts([kernel], {"0": "ioo"})
  assert gram_errors([kernel], layouts=layouts)["0"] < ATOL


def test_a_kernel_in_doubt_is_an_error(value_error):
  with value_error("`layouts`", "'query/kernel'", "(12, 4, 3)"):
    gram_errors({"query": {"kernel": jnp.ones((12, 4, 3))}})
  with value_error("`params`", "kernel"):
    gram_errors({"bias": jnp.ones(3)})


def test_a_kernel_without_values_is_an_error(value_error):
  params = {"kernel": jnp.ones((4, 4))}
  for function in (
    jax.jit(gram_errors),
    lambda p: gram_errors(jax.eval_shape(lambda: p)),
  ):
    with value_error("`params` must hold values", "float32", "'kernel'"):
      function(params)
