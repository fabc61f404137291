"""A plain convolutional network of any depth, without normalization or shortcuts."""

import functools

import flax.linen as nn
import jax
from jax.nn.initializers import Initializer

from eoi_jax.initializers import delta_orthogonal
from train.models.activations import ACTIVATIONS
from train.models.convolution import convolution
from train.models.network import Classifier
from train.models.stacks import run_hidden


class CNN(Classifier, kw_only=True):
  """`depth - 1` circular 3 x 3 convolutions and one dense layer.

  The first convolution has stride 1, the next two stride 2, the other `depth - 4` are
  one stack of parameters, `hidden/conv/kernel`. Then an average pool of 2 and the
  dense layer. `depth=998, width=128` is the paper's 1000-layer CNN: 3 -> 128, two of
  stride 2, 994 more, 2048 -> 10.
  """

  depth: int  # number of layers with a kernel, at least 4
  width: int  # channels of every convolution
  activation: str = "tanh"
  kernel_init: Initializer = delta_orthogonal()
  remat: bool = False  # whether to save memory (`run_in_segments`)

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    """Maps `[batch, height, width, channels]` to `[batch, num_classes]` logits."""
    del train  # no layer behaves differently in training
    if self.depth < 4:
      raise ValueError(f"`model.depth` of a CNN must be at least 4, got {self.depth}.")
    conv = functools.partial(
      convolution, self.width, 3, padding="CIRCULAR", **self.options
    )
    activation = ACTIVATIONS[self.activation]
    for number, stride in enumerate((1, 2, 2)):
      x = activation(x) if number else x
      x = conv(strides=stride, name=f"input{number}")(x)
    if self.depth > 4:
      make = functools.partial(conv, name="conv")
      x = run_hidden(self, self.depth - 4, make, activation, x)
    x = nn.pool(activation(x), 0.0, jax.lax.add, (2, 2), (2, 2), "VALID") / 4.0
    return self.logits(x.reshape((x.shape[0], -1)))
