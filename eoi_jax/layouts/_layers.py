"""Layouts of the kernels of single layers of Flax, from what they are set to."""

import itertools
import math
from typing import Any

import jax

from eoi_jax.layouts.layout import Layout


def find_doubt(module, name: str, *methods: str) -> str:
  """Why a layer of Flax may apply another matrix than its kernel, "" if it does not.

  A method that a subclass has of its own may standardize the kernel, say.
  """
  if "lora" in name.lower() and type(module).__name__ in ("Dense", "Linear"):
    return "named like a low-rank adapter"
  if getattr(module, "mask", None) is not None:
    return "`mask` may change it"
  if max(jax.tree.leaves(getattr(module, "input_dilation", 1)), default=1) > 1:
    return "`input_dilation` may change it"
  flax = ("flax.", "eoi_jax.")
  own = itertools.takewhile(
    lambda kind: not kind.__module__.startswith(flax), type(module).__mro__
  )
  found = (f"{k.__name__}.{m}" for k in own for m in methods if m in vars(k))
  return next((f"{method} may change it" for method in found), "")


def einsum(einsum_str: str, shape: tuple[int, ...]) -> Layout | None:
  """Axes of an einsum's second operand; None if none is contracted or none is kept."""
  operands, _, result = einsum_str.replace(" ", "").replace("...", "").partition("->")
  inputs, kernel = operands.split(",")
  if len(kernel) != len(shape):
    raise ValueError(
      f"`einsum_str` must name every axis of the kernel {shape}, got {einsum_str!r}."
    )

  def letter(index: str) -> str:
    if index in inputs:
      return "s" if index in result else "i"
    if index in result:
      return "o"
    raise ValueError(
      "`einsum_str` must use every axis of its kernel in the inputs or the outputs, "
      f"got {index!r} in {einsum_str!r}."
    )

  axes = "".join(map(letter, kernel))
  return Layout(axes) if {"i", "o"} <= set(axes) else None


def conv(module, shape: tuple[int, ...]) -> Layout:
  """Kernels `(*window, in / groups, out)`; patches where windows do not overlap."""
  rank, window, groups = len(shape) - 2, shape[:-2], module.feature_group_count
  strides, padding = _per_axis(module.strides, rank), _padding(module.padding)
  dilation = _per_axis(module.kernel_dilation, rank)
  causal = [((k - 1) * step, 0) for k, step in zip(window, dilation, strict=True)]
  if padding is None and jax.tree.leaves(module.padding) == jax.tree.leaves(causal):
    padding = "CAUSAL"
  if max(dilation, default=1) > 1:  # taps see the same phase of an image more often
    pairs = zip(strides, dilation, strict=True)
    strides = tuple(stride // math.gcd(stride, step) for stride, step in pairs)
  elif math.prod(window) > 1 and _apart(strides, window):
    return Layout("i" * (rank + 1) + "o", groups, strides, padding)
  return Layout("w" * rank + "io", groups, strides, padding)


def conv_transpose(module, shape: tuple[int, ...]) -> Layout:
  """Kernels `(*window, in, out)`, or `(*window, out, in)` if `transpose_kernel`."""
  rank = len(shape) - 2
  strides, padding = _per_axis(module.strides, rank), _padding(module.padding)
  dilation = _per_axis(module.kernel_dilation, rank)
  ends = "oi" if module.transpose_kernel else "io"
  named = padding in ("VALID", "SAME", "CIRCULAR")
  if named and _apart(strides, shape[:-2]) and max(dilation, default=1) == 1:
    return Layout("o" * rank + ends, strides=strides, padding=padding)
  return Layout("w" * rank + ends, 1, strides, padding, transposed=True)


def _apart(strides: tuple[int, ...], window: tuple[int, ...]) -> bool:
  """Whether windows at these strides do not overlap."""
  return all(step >= size for step, size in zip(strides, window, strict=True))


def _per_axis(value: Any, rank: int) -> tuple[int, ...]:
  """One number for each axis of a window, of one for all; None is 1."""
  if value is None or isinstance(value, int):
    return (value or 1,) * rank
  return tuple(value)


def _padding(padding: Any) -> str | None:
  """Name of a padding, or None for amounts that have none."""
  if isinstance(padding, str):
    return padding.upper()  # as the convolutions of JAX read it
  amounts = jax.tree.leaves(padding)
  return "VALID" if amounts and not any(amounts) else None
