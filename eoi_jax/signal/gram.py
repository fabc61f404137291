"""How far the kernels of a network are from isometries."""

from __future__ import annotations

import functools
import itertools
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
  *window, rows, cols = kernel.shape
  # The lag with the opposite sign gives the transpose: half of them are enough.
  lags = itertools.product(*[range(-size + 1, size) for size in window])
  lags = [lag for lag in lags if lag >= (0,) * len(window)]
  errors = []
  for lag in lags:
    ends = list(zip(lag, window, strict=True))
    here = kernel[tuple(slice(max(0, -x), min(n, n - x)) for x, n in ends)]
    there = kernel[tuple(slice(max(0, x), min(n, n + x)) for x, n in ends)]
    gram = jnp.einsum(
      "tac,tbc->ab",
      here.reshape(-1, rows, cols),
      there.reshape(-1, rows, cols).conj(),
      precision=jax.lax.Precision.HIGHEST,
    )
    if not any(lag):
      gram -= jnp.eye(rows, dtype=gram.dtype) * (scale**2)
    errors.append(jnp.max(jnp.abs(gram)))
  return jnp.max(jnp.stack(errors))
