"""The paper's activations by name, and those of EfficientNet and ViT."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp


def linear(x: jax.Array) -> jax.Array:
  """Returns `x`: the activation of a linear network."""
  return x


def gelu(x: jax.Array) -> jax.Array:
  """Returns the exact GELU, with the error function."""
  return nn.gelu(x, approximate=False)


@jax.custom_jvp
def tanh(x: jax.Array) -> jax.Array:
  """Returns the hyperbolic tangent; the backward pass keeps nothing but the result.

  JAX's own keeps one minus the result besides, for each layer of a stack.
  """
  return jnp.tanh(x)


@tanh.defjvp
def _tanh_jvp(primals, tangents):
  (x,), (tangent,) = primals, tangents
  result = tanh(x)

  def slope(result, tangent):
    return tangent * (1 - result * result)

  return result, jax.checkpoint(slope, prevent_cse=False)(result, tangent)


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
  "linear": linear,
  "tanh": tanh,
  "hard_tanh": nn.hard_tanh,
  "relu": nn.relu,
  "leaky_relu": nn.leaky_relu,
  "selu": nn.selu,
  "silu": nn.silu,
  "gelu": gelu,
}
