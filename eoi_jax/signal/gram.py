"""Measures of isometry of the kernels of a network."""

from __future__ import annotations

import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from eoi_jax import _blocks as blocks_lib
from eoi_jax import _checks as checks
from eoi_jax import _kernels as kernels_lib
from eoi_jax._blocks import GroupCount
from eoi_jax._kernels import LeafPredicate


def gram_errors(
  params: Any,
  *,
  scale: float = 1.0,
  is_kernel: LeafPredicate = kernels_lib.is_kernel,
  is_stacked: LeafPredicate = kernels_lib.never_stacked,
  num_groups: GroupCount = blocks_lib.depthwise_groups,
  is_patches: LeafPredicate = blocks_lib.never_patches,
) -> dict[str, np.ndarray]:
  """How far every kernel is from an isometry.

  A dense kernel `W` has error `max |G - scale^2 I|` on the smaller Gram side. A
  convolution with circular padding and stride 1 is an isometry exactly if
  `sum_t K_t K_{t + lag}^T` is the identity at lag zero and zero at every other lag;
  its error is the largest deviation over all lags. For a delta kernel that is the
  error of its centre tap.

  Args:
    params: tree of arrays.
    scale: gain `sigma_w` that the kernels should have.
    is_kernel: `(name, leaf) -> bool`, which leaves are kernels.
    is_stacked: `(name, leaf) -> bool`, which kernels have a leading axis of layers.
    num_groups: `(name, leaf) -> int`, groups of a convolution, as in `sparsify`.
    is_patches: `(name, leaf) -> bool`, which convolutions have stride = window.

  Returns:
    Dict from the name of each kernel to its errors, float array `[num_layers]`.

  Example:
    >>> gram_errors({"kernel": 2 * jnp.eye(3)})["kernel"].tolist()
    [3.0]
  """
  kernels = kernels_lib.find_kernels(params, is_kernel=is_kernel, is_stacked=is_stacked)
  layouts = blocks_lib.find_layouts(
    kernels, num_groups=num_groups, is_patches=is_patches
  )
  errors = {}
  for name, layout in layouts.items():
    blocks = _isometry_errors(blocks_lib.split(layout, layout.kernel.leaf), scale)
    errors[name] = np.asarray(blocks).reshape(-1, layout.groups).max(axis=1)
  return errors


@jax.jit
def _isometry_errors(blocks: jax.Array, scale: jax.Array) -> jax.Array:
  return jax.vmap(_isometry_error, in_axes=(0, None))(blocks, scale)


def _isometry_error(kernel: jax.Array, scale: jax.Array) -> jax.Array:
  """Largest entry of the kernel's autocorrelation less that of an isometry."""
  kernel = kernel.astype(checks.compute_dtype(kernel.dtype))
  if kernel.shape[-2] > kernel.shape[-1]:
    kernel = jnp.swapaxes(kernel, -1, -2)
  window, (rows, cols) = kernel.shape[:-2], kernel.shape[-2:]
  # The lag with the opposite sign gives the transpose: half of them are enough.
  lags = itertools.product(*[range(-size + 1, size) for size in window])
  lags = [lag for lag in lags if lag >= (0,) * len(window)]
  errors = []
  for lag in lags:
    here = tuple(
      slice(max(0, -x), min(n, n - x)) for x, n in zip(lag, window, strict=True)
    )
    there = tuple(
      slice(max(0, x), min(n, n + x)) for x, n in zip(lag, window, strict=True)
    )
    shape = (math.prod(kernel[here].shape[:-2]), rows, cols)
    gram = jnp.einsum(
      "tac,tbc->ab",
      kernel[here].reshape(shape),
      kernel[there].reshape(shape),
      precision=jax.lax.Precision.HIGHEST,
    )
    if not any(lag):
      gram = gram - scale**2 * jnp.eye(rows, dtype=gram.dtype)
    errors.append(jnp.max(jnp.abs(gram)))
  return jnp.max(jnp.stack(errors))
