"""Meters do not change the outputs, and read the signal and the gradient."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from eoi_jax.layouts import kernel_layouts
from eoi_jax.signal import (
  gradient_norms,
  layer_profiles,
  record_signal,
  signal_meter,
  signal_profile,
)
from tests.processes import finish, start

KEY = jax.random.key(0)
SHAPES = {"first": (6, 8), "second": (8, 8), "last": (8, 3)}
RTOL = 1e-5  # of sums of at most 64 float32 squares
close = functools.partial(chex.assert_trees_all_close, rtol=RTOL)


def normal(seed, *shape):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


INPUTS = normal(0, 5, 6)
PARAMS = {name: normal(1, *shape) / shape[0] ** 0.5 for name, shape in SHAPES.items()}
ISOMETRIES = np.linalg.qr(normal(2, 4, 6, 6))[0]


def network(params, meters, x):
  """Two branches join before the last layer."""

  def layer(name, x):
    return record_signal(meters[name], x, x @ params[name])

  x = jnp.tanh(layer("first", x))
  return layer("last", x + jnp.tanh(layer("second", x)))


@pytest.mark.slow
def test_readings_are_those_of_the_definition():
  meters = {name: signal_meter() for name in SHAPES}
  profiles = layer_profiles(KEY, functools.partial(network, PARAMS), meters, INPUTS)

  def outputs_of(offsets):
    first = INPUTS @ PARAMS["first"] + offsets["first"]
    hidden = jnp.tanh(first)
    second = hidden @ PARAMS["second"] + offsets["second"]
    joined = hidden + jnp.tanh(second)
    last = joined @ PARAMS["last"] + offsets["last"]
    layers = {"first": (INPUTS, first), "second": (hidden, second)}
    return last, layers | {"last": (joined, last)}

  zeros = {name: jnp.zeros((5, shape[1])) for name, shape in SHAPES.items()}
  outputs, pull, layers = jax.vjp(outputs_of, zeros, has_aux=True)
  end = jax.random.normal(KEY, outputs.shape)
  (gradients,) = pull(end)
  norm = jnp.linalg.norm
  for name, (x, y) in layers.items():
    expected = jnp.mean(y**2), norm(y) / norm(x), norm(gradients[name]) / norm(end)
    close(tuple(profiles[name]), expected)


def test_a_meter_does_not_change_the_network():
  meters = {name: signal_meter() for name in SHAPES}
  other = {name: signal_meter() + 7 for name in SHAPES}

  def loss(params, meters):
    return jnp.sum(network(params, meters, INPUTS) ** 2)

  results = [jax.value_and_grad(loss)(PARAMS, m) for m in (meters, other)]
  chex.assert_trees_all_equal(*results)


def test_a_stack_and_its_meters_give_one_profile():
  """Four isometries of gain 2: the gradient behind layer k passes 3 - k of them."""

  def layer_fn(kernel, x):
    return x @ kernel

  def apply_fn(meters, x):
    def layer(x, layer):
      kernel, meter = layer
      return record_signal(meter, x, layer_fn(kernel, x)), None

    return jax.lax.scan(layer, x, (2 * ISOMETRIES, meters))[0]

  profile = signal_profile(KEY, layer_fn, 2 * ISOMETRIES, INPUTS)
  chex.assert_shape(profile, (4,))
  start = np.mean(np.square(INPUTS))
  gains, powers = np.full(4, 2.0, np.float32), 4.0 ** np.arange(1, 5)
  close(tuple(profile), (start * powers, gains, np.array([8.0, 4.0, 2.0, 1.0])))
  metered = layer_profiles(KEY, apply_fn, signal_meter(num_layers=4), INPUTS)
  close(metered, profile)


def test_equal_stacks_compile_once():
  @chex.assert_max_traces(n=3)  # the scan's shapes, its forward and its backward pass
  def layer_fn(kernel, x):
    return x @ kernel

  for stack in (ISOMETRIES, 2 * ISOMETRIES, 3 * ISOMETRIES):
    signal_profile(KEY, layer_fn, stack, INPUTS)


def test_low_precision_is_read_in_float32_and_a_tuple_by_its_first():
  def apply_fn(meters, x):
    return record_signal(meters, x, 300 * x), {"loss": x.sum()}

  profile = layer_profiles(
    KEY, apply_fn, signal_meter(), jnp.asarray(INPUTS, jnp.bfloat16)
  )
  assert {reading.dtype.name for reading in profile} == {"float32"}
  expected = (jnp.float32(300), jnp.float32(1))
  chex.assert_trees_all_close(tuple(profile[1:]), expected, rtol=0.01)


def test_a_layer_without_influence_reads_nan():
  def apply_fn(meters, x):
    record_signal(meters["lost"], x, x)
    return record_signal(meters["seen"], x, x)

  meters = {"lost": signal_meter(), "seen": signal_meter()}
  profiles = layer_profiles(KEY, apply_fn, meters, INPUTS)
  assert np.isnan(profiles["lost"].gain) and profiles["seen"].gain == 1


def test_gradient_norms_of_isometries():
  """An isometry keeps both norms: E |x|^2 E |u|^2 = 12 of 12 features."""
  kernels = np.linalg.qr(normal(3, 3, 12, 12))[0]
  params = [{"kernel": kernel, "bias": np.zeros(12, np.float32)} for kernel in kernels]

  def apply_fn(params, x):
    for layer in params:
      x = x @ layer["kernel"] + layer["bias"][None]
    return x, None

  norms = gradient_norms(KEY, apply_fn, params, normal(4, 256, 12))
  assert list(norms) == [f"{n}/kernel" for n in range(3)]
  # Two deviations of a norm of 256 * 12 samples.
  close(norms, {name: np.array([12**0.5]) for name in norms}, rtol=0.15)


def test_gradient_norms_of_a_stack_from_tokens():
  """Equal kernels of a stack have equal gradients; token ids are inputs too."""
  params = {
    "table": np.eye(4, dtype=np.float32),
    "kernel": np.stack([2 * np.eye(4)] * 3),
  }
  params["kernel"] = params["kernel"].astype(np.float32)

  def apply_fn(params, tokens):
    x = params["table"][tokens]
    return jax.lax.scan(lambda x, w: (x @ w, None), x, params["kernel"])[0]

  layouts = kernel_layouts(params, {"table": None, "kernel": "sio"})
  tokens = jnp.array([0, 1, 3])
  norms = gradient_norms(KEY, apply_fn, params, tokens, layouts=layouts)["kernel"]
  chex.assert_shape(norms, (3,))
  assert norms[0] > 0
  close(norms, jnp.full(3, norms[0]))


def test_gradient_norms_on_an_explicit_mesh():
  kernel = normal(5, 12, 4, 3)
  mesh = jax.make_mesh((1,), ("x",), axis_types=(AxisType.Explicit,))
  sharding = NamedSharding(mesh, PartitionSpec(None, "x", None))

  def apply_fn(params, x):
    return jnp.einsum("bi,iho->bho", x, params[0])

  layouts = kernel_layouts([kernel], {"0": "ioo"})
  found = [
    gradient_norms(KEY, apply_fn, [leaf], normal(6, 5, 12), layouts=layouts)
    for leaf in (kernel, jax.device_put(kernel, sharding))
  ]
  chex.assert_trees_all_close(*found, rtol=RTOL)


@pytest.mark.slow
def test_each_device_of_a_shard_map_reads_its_own():
  assert "equal on 2 devices" in finish(start("sharded_signal.py"))


@pytest.mark.parametrize(
  "outputs", [lambda x: x.astype("complex64"), lambda x: {"logits": x}]
)
def test_errors(outputs, value_error):
  with value_error("`apply_fn`", "real floating-point"):
    layer_profiles(KEY, lambda meter, x: outputs(x), signal_meter(), INPUTS)
