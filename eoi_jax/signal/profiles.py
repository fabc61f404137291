"""How signals and gradients grow or shrink over depth.

`record_signal` puts a meter at a layer. A meter is a row of zeros that has no influence
on the outputs of a network. Its *gradient* is the reading: the squares of the layer's
input, of its output, and of the gradient at its output. So meters go wherever
parameters go, through scans, branches and rematerialization, in any framework, and one
backward pass reads them all.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from eoi_jax import _keys
from eoi_jax._sharding import replicate, vary_alike
from eoi_jax.layouts.trees import Layouts, fill_tree, find_kernels
from eoi_jax.signal._networks import ApplyFn, outputs_of

_READINGS = 4


class SignalProfile(NamedTuple):
  """Signal and gradient at one layer, `[]`, or at a stack of them, `[layers]`.

  Norms are over all samples together.

  Attributes:
    mean_square: of the outputs.
    gain: norm of the outputs over that of the inputs; 1 for an isometry.
    gradient_gain: norm of the gradient at the layer's outputs over that at the end of
      the network; 1 behind the last layer.
  """

  mean_square: jax.Array
  gain: jax.Array
  gradient_gain: jax.Array


def signal_meter(*, num_layers: int | None = None) -> jax.Array:
  """A meter for `record_signal`.

  Args:
    num_layers: number of layers that are scanned with a meter each; None for a single
      meter.

  Returns:
    Float32 zeros `[4]` or `[num_layers, 4]`.

  Example:
    >>> signal_meter(num_layers=2).shape
    (2, 4)
  """
  return jnp.zeros((_READINGS,) if num_layers is None else (num_layers, _READINGS))


def record_signal(meter: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
  """Puts a meter at a layer: returns `y`, the output, unchanged.

  Reverse derivatives only. Readings of a meter that is used twice add up.

  Args:
    meter: float `[4]`, of `signal_meter`.
    x: input of the layer.
    y: output of the layer.

  Returns:
    `y`; what follows must use it for the gradient to be recorded.

  Example:
    >>> bool(record_signal(signal_meter(), jnp.ones(2), jnp.ones(3)).sum() == 3)
    True
  """
  # Per device inside `jax.shard_map`, or the sum over those that share the meter.
  meter, y = vary_alike((meter, y), x)
  return _record(meter, x, y)


@jax.custom_vjp
def _record(meter, x, y):
  del meter, x
  return y


def _record_forward(meter, x, y):
  return y, (meter, _square(x), _square(y))


def _record_backward(kept, gradient):
  meter, x, y = kept
  size = jnp.asarray(gradient.size, jnp.float32)
  readings = vary_alike(jnp.stack([x, y, _square(gradient), size]), meter)
  return readings.astype(meter.dtype), None, gradient


_record.defvjp(_record_forward, _record_backward)


def _square(x: jax.Array) -> jax.Array:
  return jnp.sum(jnp.square(jnp.abs(x).astype(jnp.float32)))


@functools.partial(jax.jit, static_argnames="apply_fn")
def layer_profiles(key: jax.Array, apply_fn: ApplyFn, meters: Any, inputs: Any) -> Any:
  """Gains of signals and gradients at every layer of a network of any kind.

  The gradient is that of a random Gaussian combination of all outputs.

  Args:
    key: a PRNG key; it is consumed.
    apply_fn: `(meters, inputs) -> outputs`, or a tuple with the outputs first; static.
      It calls `y = record_signal(meter, x, y)` behind each layer to be measured.
    meters: tree of meters, of `signal_meter`.
    inputs: array or tree of arrays.

  Returns:
    Tree like `meters` of `SignalProfile`, whose fields have the shape of the meter
    without its last axis. A layer that does not influence the outputs reads nan.

  Raises:
    ValueError: if the outputs are not a real floating-point array.

  Example:
    >>> def apply_fn(meters, x):
    ...   for meter in meters:
    ...     x = record_signal(meter, x, 2 * x)
    ...   return x
    >>> meters = [signal_meter(), signal_meter()]
    >>> first, last = layer_profiles(
    ...   jax.random.key(0), apply_fn, meters, jnp.ones((1, 3))
    ... )
    >>> float(last.mean_square), float(last.gain), float(first.gradient_gain)
    (16.0, 2.0, 2.0)
  """
  return _profiles(key, apply_fn, meters, inputs)


@functools.partial(jax.jit, static_argnames="layer_fn")
def signal_profile(
  key: jax.Array,
  layer_fn: Callable[[Any, jax.Array], jax.Array],
  layer_params: Any,
  inputs: jax.Array,
) -> SignalProfile:
  """Follows a signal through a stack of equal layers, and a gradient back.

  Args:
    key: a PRNG key for the Gaussian gradient at the end; it is consumed.
    layer_fn: `(params of one layer, x) -> y`, of equal shapes; static.
    layer_params: tree of arrays with a leading axis of layers.
    inputs: float array `[batch, ...]`.

  Returns:
    A `SignalProfile` of `[layers]`.

  Example:
    >>> layers = jnp.stack([2 * jnp.eye(3)] * 4)
    >>> profile = signal_profile(
    ...   jax.random.key(0), lambda w, x: x @ w, layers, jnp.ones((1, 3))
    ... )
    >>> profile.gain.round(5).tolist(), profile.gradient_gain.round(5).tolist()
    ([2.0, 2.0, 2.0, 2.0], [8.0, 4.0, 2.0, 1.0])
  """

  @jax.checkpoint
  def layer(x, params_and_meter):
    params, meter = params_and_meter
    return record_signal(meter, x, layer_fn(params, x)), None

  def apply_fn(meters, inputs):
    return jax.lax.scan(layer, inputs, (layer_params, meters))[0]

  meters = signal_meter(num_layers=len(jax.tree.leaves(layer_params)[0]))
  inputs = vary_alike(inputs, layer_params)
  return _profiles(key, apply_fn, meters, inputs)


def _profiles(key, apply_fn, meters, inputs):
  key = _keys.as_key(key)
  outputs = jax.eval_shape(functools.partial(outputs_of, apply_fn), meters, inputs)
  meters, inputs = vary_alike((meters, inputs), key, outputs)

  def combination(meters):
    outputs = outputs_of(apply_fn, meters, inputs)
    weights = jax.random.normal(key, outputs.shape, outputs.dtype)
    return jnp.sum(outputs * weights), _square(weights)

  def profile(reading):
    x, y, gradient, size = jnp.moveaxis(reading, -1, 0)
    return SignalProfile(y / size, jnp.sqrt(y / x), jnp.sqrt(gradient / end))

  with jax.default_matmul_precision("highest"):
    readings, end = jax.grad(combination, has_aux=True)(meters)
  return jax.tree.map(profile, readings)


def gradient_norms(
  key: jax.Array,
  apply_fn: ApplyFn,
  params: Any,
  inputs: Any,
  *,
  layouts: Layouts | None = None,
) -> dict[str, jax.Array]:
  """Norm of the gradient of every kernel, over the depth of a network.

  The gradient is that of a random Gaussian combination of each sample's outputs, of
  unit norm on average: it needs neither a loss nor labels.

  Args:
    key: a PRNG key; it is consumed.
    apply_fn: `(params, inputs) -> outputs`, or a tuple with the outputs first; static.
    params: tree of arrays.
    inputs: array `[batch, ...]` or tree of them; token ids will do.
    layouts: how leaves are read; None = by shape (`kernel_layouts`).

  Returns:
    Dict from the name of each kernel to float `[num_layers]`: the Frobenius norm of
    the gradient of the sum over samples, divided by the root of their number.

  Raises:
    ValueError: as in `layer_profiles`, or if there is no kernel or `layouts` does not
      fit `params`.

  Example:
    >>> norms = gradient_norms(
    ...   jax.random.key(0), lambda p, x: x @ p["kernel"], {"kernel": jnp.eye(2)},
    ...   jnp.ones((1, 2))
    ... )
    >>> norms["kernel"].shape
    (1,)
  """
  kernels = find_kernels(params, layouts)
  leaves = {name: kernel.leaf for name, kernel in kernels.items()}
  gradients = _gradients(_keys.as_key(key), apply_fn, params, leaves, inputs)
  norms = {}
  for name, kernel in kernels.items():
    layers = kernel.to_layers(gradients[name]).reshape(kernel.num_layers, -1)
    norms[name] = jnp.linalg.norm(layers, axis=1)
  return norms


@functools.partial(jax.jit, static_argnames="apply_fn")
def _gradients(key, apply_fn, params, leaves, inputs):
  outputs = jax.eval_shape(functools.partial(outputs_of, apply_fn), params, inputs)
  leaves = vary_alike(leaves, key, outputs)

  def combination(leaves):
    tree = fill_tree(params, leaves, keep=True)
    outputs = outputs_of(apply_fn, tree, inputs)
    weights = jax.random.normal(key, outputs.shape, outputs.dtype)
    return jnp.sum(outputs * weights) * outputs.size**-0.5

  return replicate(jax.grad(combination)(leaves))
