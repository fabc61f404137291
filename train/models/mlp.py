"""A multilayer perceptron of any depth that compiles as fast as a shallow one."""

import functools

import flax.linen as nn
import jax
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
  remat: bool = False  # whether to save memory (`run_in_segments`)

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    """Maps `[batch, ...]` inputs to `[batch, num_classes]` logits."""
    del train  # no layer behaves differently in training
    dense = functools.partial(self.dense, **self.options)
    activation = ACTIVATIONS[self.activation]
    x = dense("input")(self.width, name="input")(x.reshape((x.shape[0], -1)))
    if self.depth > 2:
      make = functools.partial(dense("hidden/dense"), self.width, name="dense")
      x = run_hidden(self, self.depth - 2, make, activation, x)
    return self.logits(activation(x))
