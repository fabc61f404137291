"""Tuning: convolutions whose gradients are fast inside of a CPU's compiled loops.

XLA brings a convolution into the form of its fast CPU kernels only outside of loops:
the gradients that JAX defines take up to a hundred times longer inside of `lax.scan`.
The primitive here is a call of `lax.conv_general_dilated` whose gradients are
convolutions in that form already, of transposed arrays, and so are theirs. Where the
result is smaller than the kernel, for one filter a channel and for 1 x 1 windows a
convolution is a sum of products, one a tap. The gradient on a kernel of fewer channels
than pixels is a matrix product a few images at a time, whose operands fit in a core's
cache: 2 (16 channels) to 5 times (64) faster than as a convolution.
"""

import functools
import itertools
import math
import os
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir


class _Window(NamedTuple):
  """How a window goes over the pixels."""

  strides: tuple[int, int]  # of the window
  # zeros before and after, for height and width, after the spreading
  padding: tuple[tuple[int, int], tuple[int, int]]
  dilation: tuple[int, int] = (1, 1)  # distance of the taps
  # distance that the pixels of the inputs are brought to, zeros between them
  spread: tuple[int, int] = (1, 1)


def cpu_convolution(
  inputs: jax.Array,
  kernel: jax.Array,
  strides: tuple[int, int],
  padding: Any,
  *,
  groups: int = 1,
) -> jax.Array:
  """Convolves images; has derivatives of every order, forward and in reverse.

  Inputs are `[batch, height, width, in]`, kernels `[rows, cols, in, out]`; or, if
  `groups` is `in`, `[rows, cols, 1, in]` of one filter a channel.

  Raises:
    ValueError: if there are other groups.
  """
  each = groups > 1  # one filter a channel
  if each and not kernel.shape[2] == 1 == kernel.shape[3] // groups:
    raise ValueError(
      "a grouped convolution must have one filter a channel, got a kernel of shape "
      f"{kernel.shape} in {groups} groups."
    )
  window, taps = _Window(strides, padding), max(kernel.shape[:2])
  is_large = min(inputs.shape[1:3]) >= max(strides) * taps
  if is_large and taps > 1 and not each:
    return _convolve(inputs, kernel, window)
  # The backward pass cuts the patches again rather than keep one for each tap.
  convolve = functools.partial(_sum_of_taps, window=window, each=each)
  return jax.checkpoint(convolve, prevent_cse=False)(inputs, kernel)


def _sum_of_taps(inputs, kernel, *, window: _Window, each: bool) -> jax.Array:
  """Adds up shifted inputs times the kernel's matrix at each tap."""
  padded = jnp.pad(inputs, ((0, 0), *window.padding, (0, 0)))
  batch, height, width, channels = padded.shape
  rows, cols = kernel.shape[:2]
  result: Any = None
  for row, col in itertools.product(range(rows), range(cols)):
    ends = (batch, height - rows + row + 1, width - cols + col + 1, channels)
    patch = jax.lax.slice(padded, (0, row, col, 0), ends, (1, *window.strides, 1))
    tap = kernel[row, col]
    term = patch * tap[None, None] if each else patch @ tap
    result = term if result is None else result + term
  return result


def _lax_convolution(inputs, kernel, window: _Window) -> jax.Array:
  """`[batch, height, width, in]` by `[rows, cols, in, out]`."""
  return jax.lax.conv_general_dilated(
    inputs,
    kernel,
    window.strides,
    window.padding,
    lhs_dilation=window.spread,
    rhs_dilation=window.dilation,
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
  )


def _convolve(inputs, kernel, window: _Window) -> jax.Array:
  """The same, by the primitive; who reads a jaxpr finds the call's own inside."""
  like = (jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (inputs, kernel))
  call = _call_jaxpr(*like, window)
  return convolution_p.bind(inputs, kernel, window=window, call_jaxpr=call)


@functools.lru_cache(maxsize=256)  # equal calls carry one jaxpr, and compile once
def _call_jaxpr(inputs, kernel, window: _Window) -> Any:
  return jax.make_jaxpr(lambda x, k: _lax_convolution(x, k, window))(inputs, kernel)


def _extent(size: int, distance: int) -> int:
  """Pixels from the first to the last of `size` that are `distance` apart."""
  return (size - 1) * distance + 1


def _inputs_gradient(out, inputs, kernel, *, window: _Window, **_) -> jax.Array:
  """The gradient on the inputs: every tap gives back to the pixel that it read."""
  strides, padding, dilation, spread = window
  edges = []
  for n in range(2):
    before = padding[n][0]
    reach = _extent(kernel.shape[n], dilation[n]) - 1
    size = _extent(inputs.aval.shape[n + 1], spread[n])
    covered = _extent(out.shape[n + 1], strides[n])
    edges.append((reach - before, size - covered + before))
  flipped = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
  return _convolve(out, flipped, _Window(spread, tuple(edges), dilation, strides))


def _kernel_gradient(out, inputs, kernel, *, window: _Window, **_) -> jax.Array:
  """The gradient on the kernel: inputs and outputs a tap apart, over all images."""
  strides, padding, dilation, spread = window
  pixels, channels = math.prod(out.shape[1:3]), max(inputs.shape[3], out.shape[3])
  if strides == dilation == spread == (1, 1) and pixels >= channels:
    return _products(out, inputs, kernel.aval.shape, padding)
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
  result: Any = _convolve(
    inputs[:, *kept].transpose(3, 1, 2, 0),
    out.transpose(1, 2, 0, 3),
    _Window(strides=dilation, padding=tuple(edges), dilation=strides, spread=spread),
  )
  return result.transpose(1, 2, 0, 3)


_NUMBERS = 2**18  # of a few images: the operands of a product stay in a core's cache


def _products(out, inputs, shape: tuple[int, ...], padding) -> jax.Array:
  """The gradient on a kernel of `shape` and of strides 1, as products.

  Inputs shifted by every column of the window, times outputs shifted by every row, have
  all taps among their products, and each array is copied 3 times for 9 taps.
  """
  rows, cols, channels, features = shape
  size, height, width = out.shape[:3]
  images = min(size, max(1, _NUMBERS // (height * width * max(channels, features))))
  missing = -size % images
  zero = jnp.zeros((), out.dtype)
  precise = jnp.promote_types(out.dtype, jnp.float32)
  groups = math.gcd(images, os.cpu_count() or 1)  # one for each core

  def parts(array):
    full = jax.lax.pad(array, zero, ((0, missing, 0), *((0, 0, 0),) * 3))
    return full.reshape(-1, images, *array.shape[1:])

  def add(total, part):
    outs, pixels = part
    edges = ((0, 0, 0), *((*pair, 0) for pair in padding), (0, 0, 0))
    pixels = jax.lax.pad(pixels, zero, edges)
    shifts = (((0, 0, 0), (r, rows - 1 - r, 0), *((0, 0, 0),) * 2) for r in range(rows))
    left = [pixels[:, :, col : col + width] for col in range(cols)]
    right = [jax.lax.pad(outs, zero, shift) for shift in shifts]
    # Pixels first on both sides, as they come. XLA does not share one product of many
    # pixels and few channels among cores, but several.
    products = jax.lax.dot_general(
      jnp.concatenate(left, -1).reshape(groups, -1, cols * channels),
      jnp.concatenate(right, -1).reshape(groups, -1, rows * features),
      (((1,), (1,)), ((0,), (0,))),
      preferred_element_type=precise,
    )
    return total + products.sum(0), None

  total = jnp.zeros((cols * channels, rows * features), precise)
  total, _ = jax.lax.scan(add, total, (parts(out), parts(inputs)))
  taps = total.reshape(cols, channels, rows, features).transpose(2, 0, 1, 3)
  return taps.astype(out.dtype)


def _batched(arrays, axes, *, window: _Window, **_):
  """`vmap`: more images for one kernel, and one kernel after another."""
  inputs, kernel = (
    x if axis is None else jnp.moveaxis(x, axis, 0)
    for x, axis in zip(arrays, axes, strict=True)
  )
  if axes[1] is None:
    out = _convolve(inputs.reshape(-1, *inputs.shape[2:]), kernel, window)
    return out.reshape(*inputs.shape[:2], *out.shape[1:]), 0
  if axes[0] is None:
    return jax.lax.map(lambda kernel: _convolve(inputs, kernel, window), kernel), 0
  return jax.lax.map(lambda xk: _convolve(xk[0], xk[1], window), (inputs, kernel)), 0


def _call(inputs, kernel, *, window: _Window, **_):
  return _lax_convolution(inputs, kernel, window)


convolution_p = Primitive("cpu_convolution")
convolution_p.def_impl(jax.jit(_call, static_argnames=("window", "call_jaxpr")))
convolution_p.def_abstract_eval(lambda *_, call_jaxpr, **__: call_jaxpr.out_avals[0])
ad.defbilinear(convolution_p, _inputs_gradient, _kernel_gradient)
batching.primitive_batchers[convolution_p] = _batched
mlir.register_lowering(convolution_p, mlir.lower_fun(_call, multiple_results=False))
