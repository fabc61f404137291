"""Meters in a network: signals and gradients at every layer, in one backward pass.

A meter is a row of zeros that has no say in the outputs of a network. Its *gradient*
is the reading: `watch` gives it the squares of a layer's input, of its output, and of
the gradient that comes back. So meters go wherever parameters go, through scans,
branches and rematerialization, in any framework.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

_READINGS = 4


class LayerProfile(NamedTuple):
  """Signal and gradient at one layer, or `[layers]` of them.

  Attributes:
    mean_square: of the outputs.
    gain: norm of the outputs over that of the inputs; 1 for an isometry.
    gradient_gain: norm of the gradient at the outputs over that at the end of the
      network.
  """

  mean_square: jax.Array
  gain: jax.Array
  gradient_gain: jax.Array


def new_meter(*, num_layers: int | None = None) -> jax.Array:
  """A meter, or a stack of them for layers that are scanned.

  Args:
    num_layers: length of the leading axis; None for a single meter.

  Returns:
    Float32 zeros `[4]` or `[num_layers, 4]`.

  Example:
    >>> new_meter(num_layers=2).shape
    (2, 4)
  """
  return jnp.zeros((_READINGS,) if num_layers is None else (num_layers, _READINGS))


@jax.custom_vjp
def watch(meter: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
  """Puts a meter at a layer: returns `y`, the output, as it is.

  Reverse derivatives only. Readings of a meter that is used twice add up.

  Args:
    meter: float `[4]`, of `new_meter`.
    x: input of the layer.
    y: its output.

  Returns:
    `y`; what follows must use it for the gradient to be seen.

  Example:
    >>> bool(watch(new_meter(), jnp.ones(2), jnp.ones(3)).sum() == 3)
    True
  """
  del meter, x
  return y


def _watch_forward(meter, x, y):
  readings = _square(x), _square(y), jnp.asarray(y.size, jnp.float32)
  return y, (meter, readings)


def _watch_backward(kept, gradient):
  meter, (x, y, size) = kept
  readings = jnp.stack([x, y, _square(gradient), size])
  return readings.astype(meter.dtype), None, gradient


watch.defvjp(_watch_forward, _watch_backward)


def _square(x: jax.Array) -> jax.Array:
  return jnp.sum(jnp.square(x.astype(jnp.float32)))


def layer_profiles(
  key: jax.Array,
  apply_fn: Callable[[Any, jax.Array], jax.Array],
  meters: Any,
  inputs: jax.Array,
) -> Any:
  """Gains of signals and gradients at every layer of a network of any kind.

  The gradient is that of a random Gaussian combination of all outputs.

  Args:
    key: a PRNG key; it is consumed.
    apply_fn: `(meters, inputs) -> outputs`, with a leading batch axis. It calls
      `y = watch(meter, x, y)` behind each layer to be seen; static.
    meters: tree of meters, of `new_meter`.
    inputs: float array `[batch, ...]`.

  Returns:
    Tree like `meters` of `LayerProfile`, whose fields have the shape of the meter but
    for its last axis. Norms are over all samples together. A layer that has no say in
    the outputs reads nan.

  Example:
    >>> def apply_fn(meters, x):
    ...   for meter in meters:
    ...     x = watch(meter, x, 2 * x)
    ...   return x
    >>> first, last = layer_profiles(
    ...   jax.random.key(0), apply_fn, [new_meter(), new_meter()], jnp.ones((1, 3))
    ... )
    >>> float(last.mean_square), float(last.gain), float(first.gradient_gain)
    (16.0, 2.0, 2.0)
  """
  readings, end = _readings(key, apply_fn, meters, inputs)
  return jax.tree.map(lambda reading: _profile(reading, end), readings)


@functools.partial(jax.jit, static_argnames="apply_fn")
def _readings(key, apply_fn, meters, inputs):
  def combination(meters):
    outputs = apply_fn(meters, inputs).astype(jnp.float32)
    weights = jax.random.normal(key, outputs.shape)
    return jnp.sum(outputs * weights), jnp.linalg.norm(weights.ravel())

  with jax.default_matmul_precision("highest"):
    return jax.grad(combination, has_aux=True)(meters)


def _profile(reading: jax.Array, end: jax.Array) -> LayerProfile:
  x, y, gradient, size = jnp.moveaxis(reading, -1, 0)
  return LayerProfile(y / size, jnp.sqrt(y / x), jnp.sqrt(gradient) / end)
