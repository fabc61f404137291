"""The layout of a leaf by its name and shape, where these leave no doubt."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from eoi_jax.layouts.layout import Layout

# Names of leaves that are kernels, and of leaves of rank 2 or more that are none.
_KERNELS = ("kernel", "weight", "w")
_OTHERS = ("bias", "scale")
# None of these beside a kernel or in a norm; of rank 2 or more, matrices may have these
# names, too.
_BESIDE = ("b", "offset", "gamma", "beta", "mean", "var")
_EMBEDDING = re.compile(r"embed|(^|_)(emb|wte|wpe|vocab)(_|$)")
_NORM = re.compile(r"norm|(^|_)(ln|rms|bn|gn)(_|\d|$)")
# Names of leaves that are rarely kernels, for the error.
_NO_KERNEL = re.compile(r"^pos|^cls|token|table|^a_log$|^grn|gamma|beta|scale|bias")
# Sizes that a window may have where only the shape tells.
_WINDOWS = (1, 3, 5, 7, 9, 11)
CONVENTIONS = {"hwio": lambda w: "w" * w + "io", "oihw": lambda w: "oi" + "w" * w}


def by_shape(
  name: str, leaf: Any, leaves: Mapping[str, Any], convention: str | None = None
) -> tuple[Layout | None, str | None]:
  """The layout of a leaf, and what to write in the table if that is in doubt.

  Args:
    name: of the leaf.
    leaf: array or shape-dtype struct.
    leaves: of the whole tree, by name.
    convention: as in `kernel_layouts`.
  """
  shape, dtype = tuple(jnp.shape(leaf)), jnp.result_type(leaf)
  *modules, last = [w for w in name.split("/") if w and not w.isdigit()] or ["kernel"]
  words = [module.lower() for module in modules]
  named, parent = last.lower() in _KERNELS, name.rpartition("/")[0]
  is_embedding = "embed" in last.lower().replace("unembed", "")
  if len(shape) < 2 or last.lower() in _OTHERS or is_embedding:
    return None, None
  if not named and dtype != jnp.bool_ and not jnp.issubdtype(dtype, jnp.inexact):
    return None, None
  rank, suggestion = len(shape), _suggest(words, last.lower(), shape, convention)
  prefix = f"{parent}/" if parent else ""
  has_kernel = any(f"{prefix}{kernel}" in leaves for kernel in _KERNELS)
  if last in _BESIDE and (has_kernel or _is_norm(words)):
    return None, None
  # The weight of an embedding or a norm (as Equinox names them), or of an adapter.
  odd = any("lora" in w for w in words) or (last != "kernel" and _is_no_layer(words))
  bias = leaves.get(f"{prefix}bias")
  odd |= last == "weight" and bias is not None and jnp.shape(bias) == shape
  if not named or odd:
    return None, "None" if odd else suggestion
  axes = CONVENTIONS[convention or "hwio"](rank - 2)
  window = [size for size, axis in zip(shape, axes, strict=True) if axis == "w"]
  ends = [size for size, axis in zip(shape, axes, strict=True) if axis != "w"]
  square = _is_square(window)
  if rank == 3:
    fits = convention is not None and square and any("conv" in w for w in words[-1:])
  else:
    fits = rank == 2 or (rank == 4 and square and (convention or not _is_window(ends)))
  if not fits:
    return None, suggestion
  layout = Layout(axes)
  if math.prod(window) > 1 and shape[axes.index("i")] == 1:
    layout = dataclasses.replace(layout, groups=None)
  return layout, None


def _is_no_layer(words: list[str]) -> bool:
  """Whether modules are named like an embedding, or the last of them like a norm."""
  return any(map(_EMBEDDING.search, words)) or _is_norm(words)


def _is_norm(words: list[str]) -> bool:
  """Whether the last module is named like a norm."""
  return bool(words) and _NORM.search(words[-1]) is not None


def _is_window(sizes: Sequence[int]) -> bool:
  """Whether sizes look like those of a window: odd, and at most 11."""
  return all(size in _WINDOWS for size in sizes)


def _is_square(sizes: Sequence[int]) -> bool:
  """Likewise, of one size, and perhaps 1."""
  return len({*sizes} - {1}) <= 1 and _is_window(sizes)


def _suggest(words: list[str], last: str, shape, convention: str | None) -> str:
  """Letters that the error shows for a leaf in doubt."""
  rank, parent = len(shape), words[-1] if words else ""
  adapter = any("lora" in w or w.startswith(("pos", "cls")) for w in (*words, last))
  if adapter or _NO_KERNEL.search(last) or _is_no_layer(words):
    return "None"
  heads = re.search(r"query|key|value|qkv|^[qkv](_|$)|attn|attention|heads", parent)
  oihw = convention == "oihw" or (rank > 3 and _is_square(shape[2:]))
  if rank == 2:
    letters = "oi" if convention == "oihw" else "io"
  elif rank == 3 and "conv" in parent:
    letters = "oiw" if oihw or shape[-1] < shape[0] else "wio"
  elif rank == 3 and (parent.startswith("out") or parent == "o_proj"):
    letters = "iio"
  elif rank == 3:
    letters = "ioo" if heads or shape[0] > shape[1] else "sio"
    letters = "soi" if convention == "oihw" else letters
  elif rank == 4 and heads:
    letters = "sioo" if shape[0] < shape[1] else "iooo"
  elif rank == 4 and (oihw or _is_square(shape[:2])):
    letters = "oiww" if oihw else "wwio"
  elif rank == 4:
    letters = "iiio" if shape[0] == shape[1] else "ssio"
  elif rank == 5:
    letters = "soiww" if oihw else "swwio"
  else:
    return "None"
  inputs = shape[letters.index("i")] if "w" in letters else 0
  groups = shape[letters.index("o")] if inputs == 1 else 1
  return f'Layout("{letters}", groups={groups})' if groups > 1 else f'"{letters}"'
