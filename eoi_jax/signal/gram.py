"""How far the kernels of a network are from isometries."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from eoi_jax import _checks as checks
from eoi_jax.layouts import Layouts, find_kernels
from eoi_jax.signal._networks import replicate


def gram_errors(
  params: Any, *, scale: float = 1.0, layouts: Layouts | None = None
) -> dict[str, np.ndarray]:
  """How far every kernel is from an isometry.

  A dense kernel `W` has error `max |G - scale^2 I|` on the smaller Gram side. A
  convolution with circular padding and stride 1 is an isometry exactly if
  `sum_t K_t K_{t + lag}^T` is the identity at lag zero and zero at every other lag;
  its error is the largest deviation over all lags. For a delta kernel that is the
  error of its centre tap. A kernel with groups has the error of its worst group.

  Args:
    params: tree of arrays, real or complex.
    scale: gain `sigma_w` that the kernels should have.
    layouts: which leaves are kernels and how each is read; None = by shape, see
      `kernel_layouts`.

  Returns:
    Dict from the name of each kernel to its errors, float array `[num_layers]`.

  Raises:
    ValueError: if there is no kernel, or `layouts` does not fit `params`.

  Example:
    >>> gram_errors({"kernel": 2 * jnp.eye(3)})["kernel"].tolist()
    [3.0]
  """
  errors = {}
  for name, kernel in find_kernels(params, layouts).items():
    blocks = kernel.to_blocks(replicate(jnp.asarray(kernel.leaf)))
    if not jnp.issubdtype(blocks.dtype, jnp.complexfloating):
      blocks = blocks.astype(checks.compute_dtype(blocks.dtype))
    found = np.asarray(_isometry_errors(blocks, scale))
    errors[name] = found.reshape(kernel.num_layers, -1).max(axis=1)
  return errors


@jax.jit
@functools.partial(jax.vmap, in_axes=(0, None))
def _isometry_errors(kernel: jax.Array, scale: jax.Array) -> jax.Array:
  """Largest entry of a kernel's autocorrelation less that of an isometry."""
  if kernel.shape[-2] > kernel.shape[-1]:
    kernel = jnp.swapaxes(kernel, -1, -2)
  kernel = jnp.expand_dims(kernel, 0)  # a window for a matrix, too
  *window, rows, _ = kernel.shape

  # A loop over the taps, each beside all of them: written out, the pairs of 3 x 3 taps
  # take twice as long to compile, those of 5 x 5 five times.
  def add(grams, tap):
    products = jnp.einsum(
      "ac,...bc->...ab",
      kernel[tuple(tap)],
      kernel.conj(),
      precision=jax.lax.Precision.HIGHEST,
    )
    start = (*(jnp.array(window) - 1 - tap), 0, 0)
    sums = jax.lax.dynamic_slice(grams, start, products.shape) + products
    return jax.lax.dynamic_update_slice(grams, sums, start), None

  lags = [2 * size - 1 for size in window]
  # Of an entry, so that a mesh of explicit axes knows where the sums lie.
  grams = jnp.broadcast_to(0 * kernel.reshape(-1)[0], (*lags, rows, rows))
  taps = jnp.array(list(np.ndindex(*window)))
  grams, _ = jax.lax.scan(add, grams, taps)
  none = tuple(size - 1 for size in window)
  identity = jnp.eye(rows, dtype=grams.dtype) * (scale**2)
  return jnp.max(jnp.abs(grams.at[none].add(-identity)))
