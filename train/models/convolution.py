"""Square convolutions: `nn.Conv` as the networks use it, fast on a CPU, too."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax

from train.models._cpu_convolution import cpu_convolution


def convolution(
  features: int, window: int, strides: int = 1, *, padding: Any = None, **options
) -> nn.Conv:
  """Returns a square convolution, `window` pixels wide and high; options are Flax's.

  `padding` is a number of pixels on every side, half the window by default, or
  "CIRCULAR".
  """
  if padding != "CIRCULAR":
    pixels = window // 2 if padding is None else padding
    padding = ((pixels, pixels), (pixels, pixels))
  return nn.Conv(
    features,
    (window, window),
    strides,
    padding,
    conv_general_dilated=_convolve,
    **options,
  )


def _convolve(
  inputs: jax.Array,
  kernel: jax.Array,
  strides: Sequence[int],
  padding: Any,
  *,
  feature_group_count: int = 1,
  **options: Any,
) -> jax.Array:
  """`lax.conv_general_dilated`, or its like for CPUs."""
  if jax.default_backend() == "cpu":
    edges = ((0, 0), (0, 0)) if padding == "VALID" else tuple(map(tuple, padding))
    groups = feature_group_count
    steps = (strides[0], strides[1])
    return cpu_convolution(inputs, kernel, steps, edges, groups=groups)
  return jax.lax.conv_general_dilated(
    inputs, kernel, strides, padding, feature_group_count=feature_group_count, **options
  )
