"""How signals and gradients grow or shrink over depth."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from eoi_jax import _kernels as kernels_lib
from eoi_jax._kernels import LeafPredicate


class SignalProfile(NamedTuple):
  """A signal and a gradient on their way through a stack of layers.

  Attributes:
    mean_square: `[layers]`, of the outputs of each layer.
    gain: `[layers]`, norm of a layer's output over that of its input.
    gradient_gain: `[layers]`, norm of the gradient at a layer's input over that at the
      end of the stack.
  """

  mean_square: jax.Array
  gain: jax.Array
  gradient_gain: jax.Array


def signal_profile(
  key: jax.Array,
  layer_fn: Callable[[Any, jax.Array], jax.Array],
  layer_params: Any,
  inputs: jax.Array,
) -> SignalProfile:
  """Follows a signal through a stack of layers, and a gradient back.

  Args:
    key: a PRNG key for the Gaussian gradient at the end; it is consumed.
    layer_fn: `(params of one layer, x) -> y`, of equal shapes; static.
    layer_params: tree of arrays with a leading axis of layers.
    inputs: float array `[batch, ...]`.

  Returns:
    A `SignalProfile`; norms are over all samples together.

  Example:
    >>> layers = jnp.stack([2 * jnp.eye(3)] * 4)
    >>> profile = signal_profile(
    ...   jax.random.key(0), lambda w, x: x @ w, layers, jnp.ones((1, 3))
    ... )
    >>> profile.gain.round(5).tolist(), profile.gradient_gain.round().tolist()
    ([2.0, 2.0, 2.0, 2.0], [16.0, 8.0, 4.0, 2.0])
  """
  return _signal_profile(key, layer_fn, layer_params, inputs)


@functools.partial(jax.jit, static_argnames="layer_fn")
def _signal_profile(key, layer_fn, layer_params, inputs):
  def forward(x, params):
    y = layer_fn(params, x)
    return y, (x, jnp.mean(jnp.square(y)), _norm(y) / _norm(x))

  def backward(cotangent, layer):
    params, x = layer
    _, pull = jax.vjp(lambda x: layer_fn(params, x), x)
    (cotangent,) = pull(cotangent)
    return cotangent, _norm(cotangent)

  with jax.default_matmul_precision("highest"):
    last, (xs, mean_square, gain) = jax.lax.scan(forward, inputs, layer_params)
    end = jax.random.normal(key, last.shape, last.dtype)
    _, norms = jax.lax.scan(backward, end, (layer_params, xs), reverse=True)
  return SignalProfile(mean_square, gain, norms / _norm(end))


def gradient_norms(
  key: jax.Array,
  apply_fn: Callable[[Any, jax.Array], jax.Array],
  params: Any,
  inputs: jax.Array,
  *,
  is_kernel: LeafPredicate = kernels_lib.is_kernel,
  is_stacked: LeafPredicate = kernels_lib.never_stacked,
) -> dict[str, jax.Array]:
  """Norm of the gradient of every kernel, over the depth of a network.

  The gradient is that of a random Gaussian combination of each sample's outputs, of
  unit norm on average, so that no loss and no label take part.

  Args:
    key: a PRNG key; it is consumed.
    apply_fn: `(params, inputs) -> outputs`, with a leading batch axis.
    params: tree of arrays.
    inputs: float array `[batch, ...]`.
    is_kernel: `(name, leaf) -> bool`, which leaves are kernels.
    is_stacked: `(name, leaf) -> bool`, which kernels have a leading axis of layers.

  Returns:
    Dict from the name of each kernel to float `[num_layers]`: the Frobenius norm of
    the gradient of the sum over samples, divided by the root of their number.

  Example:
    >>> norms = gradient_norms(
    ...   jax.random.key(0), lambda p, x: x @ p["kernel"], {"kernel": jnp.eye(2)},
    ...   jnp.ones((1, 2))
    ... )
    >>> norms["kernel"].shape
    (1,)
  """
  kernels = kernels_lib.find_kernels(params, is_kernel=is_kernel, is_stacked=is_stacked)

  def combination(values):
    tree = kernels_lib.fill_tree(params, values, keep=True)
    outputs = apply_fn(tree, inputs)
    outputs = outputs.reshape(outputs.shape[0], -1)
    weights = jax.random.normal(key, outputs.shape, outputs.dtype)
    scale = (outputs.shape[0] * outputs.shape[1]) ** -0.5
    return jnp.sum(outputs * weights) * scale

  values = {name: kernel.leaf for name, kernel in kernels.items()}
  gradients = jax.jit(jax.grad(combination))(values)
  return {
    name: jax.vmap(_norm)(kernels_lib.as_layers(kernels[name], gradient))
    for name, gradient in gradients.items()
  }


def _norm(x: jax.Array) -> jax.Array:
  return jnp.linalg.norm(x.ravel())
