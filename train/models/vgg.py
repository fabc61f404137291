"""VGG-16 for CIFAR, configurations C and D.

Simonyan and Zisserman, 2015, arXiv:1409.1556, with batch normalization.
"""

import functools

import flax.linen as nn
import jax

from train.models.activations import ACTIVATIONS
from train.models.convolution import convolution
from train.models.network import Classifier
from train.models.norms import batch_norm

# Channels and window of each convolution, stage by stage; a pool ends a stage.
_WIDTHS = (64, 128, 256, 512, 512)
_LENGTHS = (2, 2, 3, 3, 3)
_LAST_WINDOW = {"C": 1, "D": 3}


class VGG(Classifier):
  """Thirteen convolutions in five stages, and three dense layers.

  Each convolution, with bias, is followed by normalization and activation; each dense
  layer but the last by activation, then normalization. In form C the third
  convolution of a stage is 1 x 1 and padded by 1 all the same: 32 x 32 images end as
  2 x 2 x 512, in form D as 1 x 1 x 512.
  """

  form: str  # "C" or "D"

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    """Maps `[batch, height, width, channels]` to `[batch, num_classes]` logits."""
    activation = ACTIVATIONS[self.activation]
    norm = batch_norm(train, self.bias_init)
    conv = functools.partial(convolution, padding=1, **self.options)
    for stage, (width, length) in enumerate(zip(_WIDTHS, _LENGTHS, strict=True)):
      for number in range(length):
        name = f"{stage + 1}_{number + 1}"
        window = _LAST_WINDOW[self.form] if number == 2 else 3
        x = conv(width, window, 1, name=f"conv{name}")(x)
        x = activation(norm(name=f"norm{name}")(x))
      x = nn.max_pool(x, (2, 2), (2, 2))
    x = x.reshape((x.shape[0], -1))
    for number in (1, 2):
      dense = self.dense(f"dense{number}", **self.options)
      x = activation(dense(512, name=f"dense{number}")(x))
      x = norm(name=f"dense_norm{number}")(x)
    return self.logits(x)
