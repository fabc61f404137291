"""EfficientNet-B0 (Tan and Le, 2019, arXiv:1905.11946)."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax

from train.models.activations import ACTIVATIONS
from train.models.convolution import convolution
from train.models.network import Classifier
from train.models.norms import batch_norm
from train.models.stacks import stack


class _Stage(NamedTuple):
  expansion: int
  window: int
  strides: int
  width: int
  length: int


_STAGES = (
  _Stage(1, 3, 1, 16, 1),
  _Stage(6, 3, 2, 24, 2),
  _Stage(6, 5, 2, 40, 2),
  _Stage(6, 3, 2, 80, 3),
  _Stage(6, 5, 1, 112, 3),
  _Stage(6, 5, 2, 192, 4),
  _Stage(6, 3, 1, 320, 1),
)


class _Block(nn.Module):
  """Inverted bottleneck: expand, convolve each channel, squeeze and excite, project."""

  stage: _Stage
  strides: int
  conv: Callable[..., nn.Module]
  norm: Callable[..., nn.Module]
  activation: Callable[[jax.Array], jax.Array]

  @nn.compact
  def __call__(self, x: jax.Array, _: None) -> tuple[jax.Array, None]:
    stage, width = self.stage, x.shape[-1]
    wide, y = stage.expansion * width, x
    if stage.expansion > 1:
      y = self.conv(wide, 1, 1, name="expand")(y)
      y = self.activation(self.norm(name="norm_expand")(y))
    y = self.conv(
      wide,
      stage.window,
      self.strides,
      feature_group_count=wide,
      kernel_init=nn.initializers.lecun_normal(),  # of each channel on its own
      name="depthwise",
    )(y)
    y = self.activation(self.norm(name="norm_depthwise")(y))
    dense = functools.partial(self.conv, window=1, use_bias=True)
    gate = dense(max(1, width // 4), name="squeeze")(y.mean((1, 2), keepdims=True))
    y = y * nn.sigmoid(dense(wide, name="excite")(self.activation(gate)))
    y = self.norm(name="norm_project")(self.conv(stage.width, 1, 1, name="project")(y))
    same = self.strides == 1 and width == stage.width
    return (x + y if same else y), None


class EfficientNet(Classifier):
  """EfficientNet-B0, without dropout and stochastic depth.

  The kernels of depthwise convolutions, a tenth of a percent to one percent of a
  block, stay dense: a sparse orthogonal `(1, channels)` matrix would be one unit vector
  and cut most channels.
  """

  activation: str = "silu"

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    """Maps `[batch, height, width, channels]` to `[batch, num_classes]` logits."""
    activation = ACTIVATIONS[self.activation]
    conv = functools.partial(convolution, use_bias=False, **self.options)
    norm = batch_norm(train, self.bias_init)
    options = (conv, norm, activation)
    x = activation(norm(name="norm_stem")(conv(32, 3, 2, name="stem")(x)))
    for number, stage in enumerate(_STAGES):
      first, rest = f"stage{number + 1}_first", f"stage{number + 1}_rest"
      x, _ = _Block(stage, stage.strides, *options, name=first)(x, None)
      if stage.length > 1:
        blocks = stack(_Block, stage.length - 1)(stage, 1, *options, name=rest)
        x, _ = blocks(x, None)
    x = activation(norm(name="norm_head")(conv(1280, 1, 1, name="head")(x)))
    return self.logits(x.mean((1, 2)))

  @staticmethod
  def may_be_sparse(name: str) -> bool:
    """Whether the kernel called `name` may become sparse: not the depthwise ones."""
    return "/depthwise/" not in name
