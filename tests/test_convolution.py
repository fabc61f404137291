"""`conv_singular_values` against the matrix that the convolution is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eoi_jax.initializers import dense
from eoi_jax.signal import convolution
from eoi_jax.signal.convolution import conv_singular_values

# Singular values of float32 matrices, of values up to about 5.
ATOL = 2e-5


def matrix_of(kernel, image, padding, strides):
  """The convolution of XLA applied to every unit image, `[inputs, outputs]`."""
  spatial = "DHW"[-len(image) :]
  units = jnp.eye(int(np.prod(image)) * kernel.shape[-2])
  units = units.reshape(-1, *image, kernel.shape[-2])
  if padding == "CIRCULAR":
    pads = [((k - 1) // 2, k // 2) for k in kernel.shape[:-2]]
    units = jnp.pad(units, [(0, 0), *pads, (0, 0)], mode="wrap")
    padding = "VALID"
  outputs = jax.lax.conv_general_dilated(
    units,
    kernel,
    window_strides=strides,
    padding=padding,
    dimension_numbers=(f"N{spatial}C", f"{spatial}IO", f"N{spatial}C"),
    precision="highest",
  )
  return outputs.reshape(outputs.shape[0], -1)


CASES = [
  ((3, 3, 2, 3), (6, 6), (1, 1)),
  ((3, 3, 3, 2), (6, 4), (2, 2)),
  ((2, 4, 2, 3), (6, 4), (1, 1)),
  ((2, 4, 2, 3), (6, 4), (2, 1)),
  ((3, 3, 2, 3), (5, 7), (2, 3)),
  ((5, 2, 1), (4,), (2,)),
  ((4, 1, 3), (9,), (3,)),
  ((2, 3, 2, 2, 1), (4, 3, 2), (2, 1, 1)),
]


@pytest.mark.slow
@pytest.mark.parametrize("padding", ["CIRCULAR", "SAME", "VALID"])
@pytest.mark.parametrize(("shape", "image", "strides"), CASES)
def test_values_are_those_of_the_dense_matrix(shape, image, strides, padding):
  if padding == "VALID" and any(n < k for n, k in zip(image, shape, strict=False)):
    pytest.skip("no output")
  kernel = jax.random.normal(jax.random.key(0), shape)
  matrix = np.asarray(matrix_of(kernel, image, padding, strides), np.float64)
  want = np.linalg.svd(matrix, compute_uv=False)
  got = conv_singular_values(kernel, image, padding=padding, strides=strides)
  assert got.shape == want.shape
  np.testing.assert_allclose(got, want, atol=ATOL)
  assert (np.diff(got) <= 0).all()


@pytest.mark.slow
@pytest.mark.parametrize("padding", ["CIRCULAR", "SAME"])
def test_large_maps_give_extremes(monkeypatch, padding):
  kernel = jax.random.normal(jax.random.key(0), (3, 3, 3, 2))
  image, strides = (7, 5), (2, 2)
  want = conv_singular_values(kernel, image, padding=padding, strides=strides)
  monkeypatch.setattr(convolution, "_DENSE_SIZE", 0)
  whole = conv_singular_values(kernel, image, padding=padding, strides=strides)
  np.testing.assert_allclose(whole, [want[0], want[-1]], atol=ATOL)
  part = conv_singular_values(
    kernel, image, padding=padding, strides=strides, num_iterations=24
  )
  assert part.shape == (2,)
  np.testing.assert_allclose(part[0], want[0], rtol=1e-4)
  assert part[-1] >= want[-1] - ATOL


def test_names_and_shapes_are_read_generously():
  kernel = jax.random.normal(jax.random.key(0), (3, 3, 2, 3))
  want = conv_singular_values(kernel, (4, 4), padding="CIRCULAR", strides=2)
  for image, padding, strides in [
    ((4, 4, 2), "circular", (2, 2)),
    ([4, 4], "Circular", [2, 2]),
  ]:
    got = conv_singular_values(kernel, image, padding=padding, strides=strides)
    np.testing.assert_array_equal(got, want)


def test_bfloat16_kernels_are_measured_as_they_are():
  kernel = jax.random.normal(jax.random.key(0), (3, 2, 3)).astype(jnp.bfloat16)
  got = conv_singular_values(kernel, (6,), padding="same")
  want = conv_singular_values(kernel.astype(jnp.float32), (6,), padding="same")
  np.testing.assert_array_equal(got, want)


@pytest.mark.slow
def test_known_isometries_have_ones():
  kernel = dense.conv_orthogonal()(jax.random.key(0), (3, 3, 8, 12))
  values = conv_singular_values(kernel, (8, 8), padding="CIRCULAR")
  np.testing.assert_allclose(values, 1, atol=1e-5)
  values = conv_singular_values(kernel, (8, 8), padding="SAME")
  assert values[0] < 1 + 1e-5 and values[-1] < 0.5


@pytest.mark.parametrize(
  ("change", "words"),
  [
    ({"kernel": jnp.ones((3, 3))}, ("`kernel`", "(3, 3)")),
    ({"kernel": jnp.ones((3, 3, 1, 1), jnp.int32)}, ("`kernel`", "int32")),
    ({"input_shape": (4,)}, ("`input_shape`", "(4,)")),
    ({"input_shape": (4, 4, 5)}, ("`input_shape`", "(4, 4, 5)")),
    ({"input_shape": (4, 0)}, ("`input_shape`", "(4, 0)")),
    ({"input_shape": (2, 4), "padding": "VALID"}, ("`input_shape`", "(2, 4)")),
    ({"padding": "reflect"}, ("`padding`", "CIRCULAR", "reflect")),
    ({"strides": 0}, ("`strides`", "0")),
    ({"strides": (1, 2, 1)}, ("`strides`", "(1, 2, 1)")),
    ({"num_iterations": 0}, ("`num_iterations`", "0")),
  ],
)
def test_errors_name_argument_rule_and_value(value_error, change, words):
  arguments = {
    "kernel": jnp.ones((3, 3, 1, 2)),
    "input_shape": (4, 4),
    "padding": "CIRCULAR",
    **change,
  }
  with value_error(*words):
    conv_singular_values(
      arguments.pop("kernel"), arguments.pop("input_shape"), **arguments
    )
