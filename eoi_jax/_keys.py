"""PRNG keys of the layers of a tree, on the host and under tracing alike.

What a layer draws depends on the caller's key, the layer's name and its number alone.
The keys are those of `jax.random.fold_in`, computed by arithmetic that NumPy and JAX
share: outside of `jax.jit` nothing is compiled for them.
"""

import zlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from eoi_jax.layouts.layout import Kernel

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))


def check_key(key: Any) -> jax.Array:
  """Returns the typed key of a typed one or of legacy uint32 key data."""
  if isinstance(key, jax.Array | np.ndarray):
    if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
      if isinstance(key, jax.Array) and key.ndim == 0:
        return key
    elif key.dtype == np.uint32 and key.shape in ((2,), (4,)):
      impl = "threefry2x32" if key.size == 2 else "rbg"
      return jax.random.wrap_key_data(jnp.asarray(key), impl=impl)
    got = f"an array of shape {key.shape} and dtype {key.dtype}"
  else:
    got = repr(key) if isinstance(key, int | float | str) else type(key).__name__
  hint = "; of an NNX stream pass `rngs.params()`" if callable(key) else ""
  raise ValueError(
    f"`key` must be a PRNG key such as `jax.random.key(0)`, got {got}{hint}."
  )


def key_data(key: Any) -> Any:
  """Two words that stand for a key of any kind, uint32 `[2]`.

  They seed threefry, whatever the kind of the key: the bits of "rbg" keys under `vmap`
  may depend on the company that they are drawn in. Traced keys give traced words.
  """
  data = jax.random.key_data(check_key(key))
  if not isinstance(data, jax.core.Tracer):
    data = np.asarray(data)
  words = data[:2]
  for place in range(2, data.shape[0]):
    words = fold_in(words, data[place])
  return words


def as_key(key: Any) -> jax.Array:
  """The threefry key of `key_data`."""
  return jax.random.wrap_key_data(jnp.asarray(key_data(key)), impl="threefry2x32")


def fold_in(data: Any, word: Any) -> Any:
  """`jax.random.fold_in` of threefry key data `[..., 2]` and uint32 words `[...]`."""
  if not isinstance(word, jax.core.Tracer):
    word = np.asarray(word, np.uint32)
  zero = np.zeros(np.shape(word), np.uint32)
  if isinstance(data, jax.Array) or isinstance(word, jax.Array):
    return jnp.stack(_traced_threefry(data[..., 0], data[..., 1], zero, word), axis=-1)
  return np.stack(_threefry(data[..., 0], data[..., 1], zero, word), axis=-1)


def random_bits(data: Any, counters: jax.Array) -> jax.Array:
  """Random uint32 of each counter: `jax.random.bits` where counters are places.

  Written out, it compiles three times faster than `jax.random.bits` on a CPU (.1 s
  instead of .3 s), and the number at a place does not depend on the array's shape.
  `data` is threefry key data, uint32 `[2]`; `counters` are uint32 of any shape.
  """
  zero = jnp.zeros_like(counters)
  return jnp.bitwise_xor(*_traced_threefry(data[0], data[1], zero, counters))


def layer_keys(data: Any, kernels: Sequence[Kernel]) -> Any:
  """Key data of every layer of some kernels, in order, uint32 `[n, 2]`.

  `fold_in` of the name of the leaf, then of the number of the layer.
  """
  names = [zlib.crc32(k.name.encode()) for k in kernels for _ in range(k.num_layers)]
  layers = [layer for k in kernels for layer in range(k.num_layers)]
  return fold_in(fold_in(data[None], names), layers)


def block_keys(data: Any, kernels: Sequence[Kernel]) -> Any:
  """Key data of every block of some kernels of equal groups, in order, `[n, 2]`.

  Without groups they are those of the layers; else the group is folded in.
  """
  keys, groups = layer_keys(data, kernels), kernels[0].groups
  if groups == 1:
    return keys
  return fold_in(keys[:, None], np.arange(1, groups + 1)[None]).reshape(-1, 2)


def _threefry(key_0: Any, key_1: Any, x: Any, y: Any) -> tuple[Any, Any]:
  """Threefry-2x32 with 20 rounds, on uint32 NumPy or JAX arrays.

  Reference: Salmon et al., 2011, "Parallel random numbers: as easy as 1, 2, 3".
  """
  with np.errstate(over="ignore"):
    keys = (key_0, key_1, key_0 ^ key_1 ^ np.uint32(0x1BD11BDA))
    x, y = x + keys[0], y + keys[1]
    for step in range(5):
      for rotation in _ROTATIONS[step % 2]:
        x = x + y
        y = x ^ ((y << np.uint32(rotation)) | (y >> np.uint32(32 - rotation)))
      x = x + keys[(step + 1) % 3]
      y = y + keys[(step + 2) % 3] + np.uint32(step + 1)
  return x, y


# Traced once for each shape, not at each of a program's dozen calls.
_traced_threefry = jax.jit(_threefry)
