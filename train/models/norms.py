"""Normalization in float32, whatever the precision of the other layers.

Flax's own layers mix bfloat16 inputs with float32 statistics by implicit promotion.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer


class BatchNorm(nn.BatchNorm):
  """Batch normalization in float32; the output has the dtype of the input."""

  def __call__(self, x: jax.Array) -> jax.Array:
    """Normalizes each channel."""
    return super().__call__(x.astype(jnp.float32)).astype(x.dtype)


class LayerNorm(nn.LayerNorm):
  """Layer normalization in float32; the output has the dtype of the input."""

  def __call__(self, x: jax.Array) -> jax.Array:
    """Normalizes each token."""
    return super().__call__(x.astype(jnp.float32)).astype(x.dtype)


def batch_norm(train: bool, bias_init: Initializer) -> Any:
  """Returns what makes normalization layers, with torch's constants.

  In training statistics come from the batch, and update the running ones.
  """
  return functools.partial(
    BatchNorm,
    use_running_average=not train,
    momentum=0.9,
    epsilon=1e-5,
    bias_init=bias_init,
  )
