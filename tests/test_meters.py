"""Meters say nothing to the outputs, and read the signal and the gradient."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eoi_jax import layer_profiles, new_meter, watch

KEY = jax.random.key(0)
SHAPES = {"first": (6, 8), "second": (8, 8), "last": (8, 3)}


@pytest.fixture(scope="module")
def params():
  keys = jax.random.split(KEY, len(SHAPES))
  draw = jax.nn.initializers.lecun_normal()
  return {n: draw(k, s) for k, (n, s) in zip(keys, SHAPES.items(), strict=True)}


@pytest.fixture(scope="module")
def inputs():
  return jax.random.normal(jax.random.key(1), (5, 6))


def network(params, meters, x):
  """Two branches join before the last layer."""

  def layer(name, x):
    return watch(meters[name], x, x @ params[name])

  x = jnp.tanh(layer("first", x))
  return layer("last", x + jnp.tanh(layer("second", x)))


def test_readings_are_those_of_the_definition(params, inputs):
  meters = {name: new_meter() for name in SHAPES}
  apply_fn = functools.partial(network, params)
  profiles = layer_profiles(KEY, apply_fn, meters, inputs)

  def outputs_of(offsets):
    first = inputs @ params["first"] + offsets["first"]
    hidden = jnp.tanh(first)
    second = hidden @ params["second"] + offsets["second"]
    joined = hidden + jnp.tanh(second)
    last = joined @ params["last"] + offsets["last"]
    layers = {"first": (inputs, first), "second": (hidden, second)}
    return last, layers | {"last": (joined, last)}

  zeros = {name: jnp.zeros((5, shape[1])) for name, shape in SHAPES.items()}
  outputs, pull, layers = jax.vjp(outputs_of, zeros, has_aux=True)
  end = jax.random.normal(KEY, outputs.shape)
  (gradients,) = pull(end)
  for name, (x, y) in layers.items():
    norm = jnp.linalg.norm
    expected = (
      jnp.mean(y**2),
      norm(y) / norm(x),
      norm(gradients[name]) / norm(end),
    )
    np.testing.assert_allclose(profiles[name], expected, rtol=1e-5)


def test_a_meter_has_no_say(params, inputs):
  meters = {name: new_meter() for name in SHAPES}
  loud = {name: new_meter() + 7 for name in SHAPES}

  def loss(params, meters):
    return jnp.sum(network(params, meters, inputs) ** 2)

  quiet, other = (jax.value_and_grad(loss)(params, m) for m in (meters, loud))
  jax.tree.map(np.testing.assert_array_equal, quiet, other)


def test_scanned_layers_have_a_stack_of_meters():
  """Four isometries of gain 2: the gradient at layer k has passed 3 - k of them."""
  kernels = 2 * jax.vmap(lambda key: jax.random.orthogonal(key, 6))(
    jax.random.split(KEY, 4)
  )

  def apply_fn(meters, x):
    @jax.checkpoint
    def layer(x, layer):
      kernel, meter = layer
      return watch(meter, x, x @ kernel), None

    return jax.lax.scan(layer, x, (kernels, meters))[0]

  inputs = jax.random.normal(KEY, (3, 6), jnp.float32)
  profile = layer_profiles(KEY, apply_fn, new_meter(num_layers=4), inputs)
  np.testing.assert_allclose(profile.gain, 2, rtol=1e-5)
  np.testing.assert_allclose(profile.gradient_gain, [8, 4, 2, 1], rtol=1e-5)
  growth = profile.mean_square / jnp.mean(inputs**2)
  np.testing.assert_allclose(growth, [4, 16, 64, 256], rtol=1e-5)


def test_low_precision_is_read_in_float32(inputs):
  def apply_fn(meters, x):
    return watch(meters, x, 300 * x)

  low = inputs.astype(jnp.bfloat16)
  profile = layer_profiles(KEY, apply_fn, new_meter(), low)
  assert {reading.dtype.name for reading in profile} == {"float32"}
  np.testing.assert_allclose(profile.gain, 300, rtol=0.01)
  np.testing.assert_allclose(profile.gradient_gain, 1, rtol=0.01)


def test_a_layer_without_a_say_reads_nan(inputs):
  def apply_fn(meters, x):
    watch(meters["lost"], x, x)
    return watch(meters["seen"], x, x)

  meters = {"lost": new_meter(), "seen": new_meter()}
  with jax.debug_nans(False):
    profiles = layer_profiles(KEY, apply_fn, meters, inputs)
  assert np.isnan(profiles["lost"].gain) and profiles["seen"].gain == 1
