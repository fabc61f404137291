"""PRNG keys of the layers of a tree, on the host and under tracing alike.

What a layer draws depends on the caller's key, the layer's name and its number alone.
The keys are those of `jax.random.fold_in`, computed by arithmetic that NumPy and JAX
share: outside of `jax.jit` nothing is compiled for them.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from eoi_jax.layouts import Kernel

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA


def key_data(key: Any) -> Any:
  """Two words that stand for a key of any kind, uint32 `[2]`.

  They seed threefry, whatever the kind of the key: what others draw (the bits of "rbg"
  keys under `vmap`) may depend on the company that they are drawn in.

  Returns:
    A NumPy array; a traced array if the key is traced.

  Raises:
    ValueError: if `key` is not one PRNG key.
  """
  dtype = getattr(key, "dtype", None)
  if dtype is None or jnp.ndim(key) > 1:
    raise ValueError(f"`key` must be one PRNG key, {_hint(key)}")
  if jnp.issubdtype(dtype, jax.dtypes.prng_key):
    if jnp.ndim(key) != 0:
      raise ValueError(f"`key` must be one PRNG key, {_hint(key)}")
    data = jax.random.key_data(key)
  elif dtype == jnp.uint32 and key.shape in ((2,), (4,)):
    data = key
  else:
    raise ValueError(f"`key` must be one PRNG key, {_hint(key)}")
  if not isinstance(data, jax.core.Tracer):
    data = np.asarray(data)
  if data.shape[-1] == 4:
    data = _stack(*_threefry(*(data[..., n] for n in range(4))))
  return data


def _hint(key: Any) -> str:
  if callable(key):
    return "got a stream of keys: draw one from it, `rngs.params()`."
  shape = getattr(key, "shape", None)
  got = repr(key) if shape is None else f"{key.dtype} of shape {shape}"
  return f"such as `jax.random.key(0)`, got {got}."


def as_key(key: Any) -> jax.Array:
  """The threefry key of `key_data`."""
  return jax.random.wrap_key_data(jnp.asarray(key_data(key)), impl="threefry2x32")


def fold_in(data: Any, word: Any) -> Any:
  """`jax.random.fold_in` of threefry key data `[..., 2]` and uint32 words `[...]`."""
  if not isinstance(word, jax.core.Tracer):
    word = np.asarray(word, np.uint32)
  zero = np.zeros(np.shape(word), np.uint32)
  return _stack(*_threefry(data[..., 0], data[..., 1], zero, word))


def layer_keys(data: Any, kernels: Sequence[Kernel]) -> Any:
  """Key data of every layer of some kernels, in order, uint32 `[n, 2]`.

  `fold_in` of the name of the leaf, then of the number of the layer.
  """
  words = [zlib.crc32(kernel.name.encode()) for kernel in kernels]
  sizes = [kernel.num_layers for kernel in kernels]
  layers = np.concatenate([np.arange(size, dtype=np.uint32) for size in sizes])
  names = np.repeat(np.array(words, np.uint32), sizes)
  return fold_in(fold_in(data[None], names), layers)


def block_keys(data: Any, kernels: Sequence[Kernel]) -> Any:
  """Key data of every block of some kernels of equal groups, in order, `[n, 2]`.

  Without groups they are those of the layers; else the group is folded in.
  """
  keys, groups = layer_keys(data, kernels), kernels[0].groups
  if groups == 1:
    return keys
  number = np.arange(1, groups + 1, dtype=np.uint32)
  return fold_in(keys[:, None], number[None, :]).reshape(-1, 2)


def _stack(first: Any, second: Any) -> Any:
  traced = isinstance(first, jax.core.Tracer)
  return (jnp if traced else np).stack([first, second], axis=-1)


def _threefry(key_0: Any, key_1: Any, x: Any, y: Any) -> tuple[Any, Any]:
  """Threefry-2x32 with 20 rounds, on uint32 NumPy or JAX arrays.

  Reference: Salmon et al., 2011, "Parallel random numbers: as easy as 1, 2, 3".
  """
  with np.errstate(over="ignore"):
    shape = np.broadcast_shapes(*(np.shape(a) for a in (key_0, key_1, x, y)))
    xp = jnp if isinstance(key_0, jax.core.Tracer) else np
    key_0, key_1, x, y = (xp.broadcast_to(a, shape) for a in (key_0, key_1, x, y))
    keys = (key_0, key_1, key_0 ^ key_1 ^ np.uint32(_PARITY))
    x, y = x + keys[0], y + keys[1]
    for step in range(5):
      for rotation in _ROTATIONS[step % 2]:
        x = x + y
        y = (y << np.uint32(rotation)) | (y >> np.uint32(32 - rotation))
        y = x ^ y
      x = x + keys[(step + 1) % 3]
      y = y + keys[(step + 2) % 3] + np.uint32(step + 1)
  return x, y
