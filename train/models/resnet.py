"""Residual networks: those for CIFAR (20, 32, 56, 110 layers) and ResNet-50.

He et al., 2016, arXiv:1512.03385. The blocks after the first of a stage are equal and
run under `nn.scan`.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax

from train.models.activations import ACTIVATIONS
from train.models.convolution import convolution
from train.models.network import Classifier
from train.models.norms import batch_norm
from train.models.stacks import keep_products, stack


class _Layers(nn.Module):
  """What the layers of a block have in common."""

  width: int  # channels inside of the block
  strides: int  # of the first convolution of that size
  # makes a convolution without bias: `conv(features, window, strides)`
  conv: Callable[..., nn.Module]
  norm: Callable[..., nn.Module]  # makes a normalization layer
  activation: Callable[[jax.Array], jax.Array]  # the nonlinearity

  def unit(self, x: jax.Array, name: str, *args: int) -> jax.Array:
    """Convolution and normalization."""
    return self.norm(name=f"norm{name}")(self.conv(*args, name=f"conv{name}")(x))

  def shortcut(self, x: jax.Array, width: int) -> jax.Array:
    """The identity, or a 1 x 1 convolution and normalization where shapes differ."""
    if self.strides == 1 and x.shape[-1] == width:
      return x
    return self.unit(x, "_shortcut", width, 1, self.strides)


class _BasicBlock(_Layers):
  """Two 3 x 3 convolutions."""

  @nn.compact
  def __call__(self, x: jax.Array, _: None) -> tuple[jax.Array, None]:
    y = self.activation(self.unit(x, "1", self.width, 3, self.strides))
    y = self.unit(y, "2", self.width, 3, 1)
    return self.activation(y + self.shortcut(x, self.width)), None


class _Bottleneck(_Layers):
  """1 x 1, 3 x 3 (with the stride) and 1 x 1 to four times the width."""

  @nn.compact
  def __call__(self, x: jax.Array, _: None) -> tuple[jax.Array, None]:
    y = self.activation(self.unit(x, "1", self.width, 1, 1))
    y = self.activation(self.unit(y, "2", self.width, 3, self.strides))
    y = self.unit(y, "3", 4 * self.width, 1, 1)
    return self.activation(y + self.shortcut(x, 4 * self.width)), None


class ResNet(Classifier):
  """Four or three stages of residual blocks."""

  stages: tuple[int, ...]  # number of blocks of each stage
  width: int  # inner channels of the first stage; each stage doubles them
  block: str = "basic"  # "basic" or "bottleneck"
  # "small", a 3 x 3 convolution, or "large", a 7 x 7 of stride 2 and a maximum pool of
  # stride 2
  stem: str = "small"

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    """Maps `[batch, height, width, channels]` to `[batch, num_classes]` logits."""
    activation = ACTIVATIONS[self.activation]
    conv = functools.partial(convolution, use_bias=False, **self.options)
    norm = batch_norm(train, self.bias_init)
    block = {"basic": _BasicBlock, "bottleneck": _Bottleneck}[self.block]
    window, strides = {"small": (3, 1), "large": (7, 2)}[self.stem]
    x = conv(self.width, window, strides, name="stem")(x)
    x = activation(norm(name="norm")(x))
    if self.stem == "large":
      edges: Any = ((1, 1), (1, 1))
      x = nn.max_pool(x, (3, 3), (2, 2), edges)
    for number, length in enumerate(self.stages):
      width, strides = self.width * 2**number, 1 if number == 0 else 2
      first, rest = f"stage{number + 1}_first", f"stage{number + 1}_rest"
      options = (conv, norm, activation)
      x, _ = block(width, strides, *options, name=first)(x, None)
      if length > 1:
        blocks = stack(block, length - 1, remat=True, policy=keep_products)
        x, _ = blocks(width, 1, *options, name=rest)(x, None)
    return self.logits(x.mean((1, 2)))


def cifar_resnet(depth: int, **options) -> ResNet:
  """Returns the ResNet for CIFAR with `depth` layers: widths 16, 32, 64.

  Raises:
    ValueError: if `depth` is not 6 n + 2.
  """
  blocks, rest = divmod(depth - 2, 6)
  if rest or blocks < 1:
    raise ValueError(
      f"`model.depth` of a CIFAR ResNet must be 6 n + 2 (20, 32, 56, 110), got {depth}."
    )
  return ResNet(stages=(blocks,) * 3, width=16, **options)


def resnet50(**options) -> ResNet:
  """Returns ResNet-50, with the stride in the 3 x 3 convolutions."""
  return ResNet(
    stages=(3, 4, 6, 3), width=64, block="bottleneck", stem="large", **options
  )
