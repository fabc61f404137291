"""A multilayer perceptron of any depth that compiles as fast as a shallow one."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer

from train.models.activations import ACTIVATIONS
from train.models.network import Classifier
from train.models.stacks import run_hidden


class MLP(Classifier, kw_only=True):
  """`depth` dense layers: input, `depth - 2` equal hidden ones, output.

  The equal layers are one stack of parameters, `hidden/dense/kernel` of shape
  `(depth - 2, width, width)`, and run under `nn.scan`: the compiled program does not
  grow with the depth. `depth=7, width=100` is the paper's MLP-7.
  """

  depth: int  # number of dense layers, at least 2
  width: int  # units of every layer but the last
  activation: str = "tanh"
  kernel_init: Initializer = nn.initializers.orthogonal()
  # whether to save memory by a second forward pass (`run_in_segments`)
  remat: bool = False

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    """Maps `[batch, ...]` inputs to `[batch, num_classes]` logits."""
    del train  # no layer behaves differently in training
    options: Any = {"kernel_init": self.kernel_init, "bias_init": self.bias_init}
    dense = functools.partial(self.dense, dtype=jnp.dtype(self.dtype), **options)
    activation = ACTIVATIONS[self.activation]
    x = x.reshape((x.shape[0], -1))
    x = dense("input")(self.width, name="input")(x)
    if self.depth > 2:
      make = functools.partial(dense("hidden/dense"), self.width, name="dense")
      x = run_hidden(self, self.depth - 2, make, activation, x)
    return self.logits(activation(x))
