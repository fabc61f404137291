"""Convolutions that are fast inside of compiled loops, on a CPU too.

XLA brings convolutions into the form of its fast CPU kernels only outside of loops; the
gradients that `lax.conv_general_dilated` defines, inside of `lax.scan` or `fori_loop`,
take some hundred times longer. The operation here has that form, and so have its
derivatives of every order: the gradients are convolutions of transposed arrays.
Where the result is smaller than the kernel, and for one filter a channel, XLA has no
fast kernel at all; there, and for 1 x 1, a convolution is a sum of products, one a tap.
"""

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.core import ShapedArray
from jax.extend import core as jex_core
from jax.interpreters import ad, batching, mlir


def convolution(
  features: int, window: int, strides: int = 1, *, padding: Any = None, **options
) -> nn.Conv:
  """Returns a square convolution.

  Args:
    features: output channels.
    window: height and width of the kernel.
    strides: in both directions.
    padding: pixels on every side, half the window by default, or "CIRCULAR".
    **options: further fields of `nn.Conv`.
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
  """`lax.conv_general_dilated` for the uses of this package."""
  if jax.default_backend() != "cpu":
    return jax.lax.conv_general_dilated(
      inputs,
      kernel,
      strides,
      padding,
      feature_group_count=feature_group_count,
      **options,
    )
  edges = ((0, 0), (0, 0)) if padding == "VALID" else tuple(map(tuple, padding))
  each = feature_group_count > 1  # one filter a channel
  if each and not kernel.shape[2] == 1 == kernel.shape[3] // feature_group_count:
    raise ValueError(
      "a grouped convolution must have one filter a channel, got a kernel of shape "
      f"{kernel.shape} in {feature_group_count} groups."
    )
  window = {"strides": tuple(strides), "padding": edges}
  taps = max(kernel.shape[:2])
  is_large = min(inputs.shape[1:3]) >= max(strides) * taps
  if is_large and taps > 1 and not each:
    return conv_p.bind(inputs, kernel, dilation=(1, 1), spread=(1, 1), **window)
  # The backward pass cuts the patches again rather than keep one for each tap.
  convolve = functools.partial(_sum_of_taps, each=each, **window)
  return jax.checkpoint(convolve, prevent_cse=False)(inputs, kernel)


def _sum_of_taps(inputs, kernel, *, strides, padding, each: bool) -> jax.Array:
  """Adds up shifted inputs times the kernel's matrix at each tap.

  Args:
    inputs: `[batch, height, width, in]`.
    kernel: `[rows, cols, in, out]`, or `[rows, cols, 1, in]` if `each`.
    strides: two integers.
    padding: zeros before and after, for height and width.
    each: whether every channel has its own filter.
  """
  padded = jnp.pad(inputs, ((0, 0), *padding, (0, 0)))
  batch, height, width, channels = padded.shape
  rows, cols = kernel.shape[:2]
  ends = (height - rows, width - cols)
  result: Any = None
  for row, col in itertools.product(range(rows), range(cols)):
    patch = jax.lax.slice(
      padded,
      (0, row, col, 0),
      (batch, row + ends[0] + 1, col + ends[1] + 1, channels),
      (1, *strides, 1),
    )
    tap = kernel[row, col]
    term = patch * tap[None, None] if each else patch @ tap
    result = term if result is None else result + term
  return result


def _lax_convolution(inputs, kernel, *, strides, padding, dilation, spread):
  """The operation: `[batch, height, width, in]` by `[rows, cols, in, out]`.

  Args:
    inputs: as above.
    kernel: as above.
    strides: of the window.
    padding: zeros before and after, for height and width, after the spreading.
    dilation: distance of the taps.
    spread: distance that the pixels of the inputs are brought to, zeros between them.
  """
  return jax.lax.conv_general_dilated(
    inputs,
    kernel,
    strides,
    padding,
    lhs_dilation=spread,
    rhs_dilation=dilation,
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
  )


def _shape(inputs, kernel, **window):
  """Shape and dtype of the result."""
  out = jax.eval_shape(functools.partial(_lax_convolution, **window), inputs, kernel)
  return ShapedArray(out.shape, out.dtype)


def _extent(size: int, distance: int) -> int:
  """Pixels from the first to the last of `size` that are `distance` apart."""
  return (size - 1) * distance + 1


def _inputs_gradient(out, inputs, kernel, *, strides, padding, dilation, spread):
  """The gradient on the inputs: every tap gives back to the pixel that it read."""
  edges = []
  for n in range(2):
    before = padding[n][0]
    reach = _extent(kernel.shape[n], dilation[n]) - 1
    size = _extent(inputs.aval.shape[n + 1], spread[n])
    covered = _extent(out.shape[n + 1], strides[n])
    edges.append((reach - before, size - covered + before))
  window = {"strides": spread, "padding": tuple(edges), "dilation": dilation}
  flipped = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
  return conv_p.bind(out, flipped, spread=strides, **window)


def _kernel_gradient(out, inputs, kernel, *, strides, padding, dilation, spread):
  """The gradient on the kernel: inputs and outputs a tap apart, over all images."""
  edges, kept = [], []
  for n in range(2):
    before = padding[n][0]
    reach = _extent(kernel.aval.shape[n], dilation[n]) - 1
    size = _extent(inputs.shape[n + 1], spread[n])
    covered = _extent(out.shape[n + 1], strides[n])
    after = covered + reach - size - before
    # No window ends on the pixels that are left: the fast kernels cut nothing off.
    unread = max(0, -(after // spread[n]))
    edges.append((before, after + unread * spread[n]))
    kept.append(slice(inputs.shape[n + 1] - unread))
  result = conv_p.bind(
    inputs[:, *kept].transpose(3, 1, 2, 0),
    out.transpose(1, 2, 0, 3),
    strides=dilation,
    padding=tuple(edges),
    dilation=strides,
    spread=spread,
  )
  return result.transpose(1, 2, 0, 3)


def _batched(arrays, axes, **window):
  """`vmap`: more images for one kernel, and one kernel after another."""
  bind = functools.partial(conv_p.bind, **window)
  inputs, kernel = (
    x if axis is None else jnp.moveaxis(x, axis, 0)
    for x, axis in zip(arrays, axes, strict=True)
  )
  if axes[1] is None:
    out = bind(inputs.reshape(-1, *inputs.shape[2:]), kernel)
    return out.reshape(*inputs.shape[:2], *out.shape[1:]), 0
  if axes[0] is None:
    return jax.lax.map(lambda kernel: bind(inputs, kernel), kernel), 0
  return jax.lax.map(lambda pair: bind(*pair), (inputs, kernel)), 0


# What reads a traced network knows the operation by the name that it has in JAX.
conv_p = jex_core.Primitive("conv_general_dilated")
_WINDOW = ("strides", "padding", "dilation", "spread")
conv_p.def_impl(jax.jit(_lax_convolution, static_argnames=_WINDOW))
conv_p.def_abstract_eval(_shape)
ad.defbilinear(conv_p, _inputs_gradient, _kernel_gradient)
batching.primitive_batchers[conv_p] = _batched
mlir.register_lowering(conv_p, mlir.lower_fun(_lax_convolution, multiple_results=False))
