"""How far the kernels of a network are from isometries."""

import itertools
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from eoi_jax import _checks as checks
from eoi_jax._sharding import replicate
from eoi_jax.layouts.trees import Layouts, find_kernels


def gram_errors(
  params: Any, *, scale: float = 1.0, layouts: Layouts | None = None
) -> dict[str, np.ndarray]:
  """How far every kernel is from an isometry.

  A dense kernel `W` has error `max |G - scale^2 I|` on the smaller Gram side. A
  convolution with circular padding and stride 1 is an isometry exactly if
  `sum_t K_t K_{t + lag}^T` is the identity at lag zero and zero at every other lag;
  its error is the largest deviation over all lags. For a delta kernel that is the
  error of its centre tap. A kernel whose layout has strides may be an isometry at
  stride 1 or at its own: it has the smaller of the two errors. A kernel with groups
  has the error of its worst group.

  Args:
    params: tree of arrays, real or complex.
    scale: gain `sigma_w` that the kernels should have.
    layouts: how leaves are read; None = by shape (`kernel_layouts`).

  Returns:
    Dict from the name of each kernel to its errors, float array `[num_layers]`.

  Raises:
    ValueError: if there is no kernel or value, or `layouts` does not fit `params`.

  Example:
    >>> gram_errors({"kernel": 2 * jnp.eye(3)})["kernel"].tolist()
    [3.0]
  """
  scale, errors = checks.number("scale", scale), {}
  for name, kernel in find_kernels(params, layouts).items():
    leaf = kernel.leaf
    if isinstance(leaf, jax.ShapeDtypeStruct | jax.core.Tracer):
      raise ValueError(f"`params` must hold values, got {leaf} in {name!r}.")
    blocks = kernel.to_blocks(
      np.asarray(replicate(leaf) if isinstance(leaf, jax.Array) else leaf)
    )
    if not jnp.issubdtype(blocks.dtype, jnp.complexfloating):
      blocks = blocks.astype(checks.compute_dtype(blocks.dtype))
    found = _isometry_errors(blocks, scale)
    if max(strides := kernel.layout.strides, default=1) > 1:
      blocks = blocks.swapaxes(-1, -2) if kernel.layout.transposed else blocks
      strided = _isometry_errors(_phases_as_channels(blocks, strides), scale)
      found = np.minimum(found, strided)
    errors[name] = found.reshape(kernel.num_layers, -1).max(axis=1)
  return errors


def _phases_as_channels(kernels: np.ndarray, strides: tuple[int, ...]) -> np.ndarray:
  """Strided kernels as those of stride 1 of all phases of an image together."""
  window = kernels.shape[1:-2]
  if not window:  # the whole window is one matrix
    return kernels
  rest = [(0, -size % stride) for size, stride in zip(window, strides, strict=True)]
  kernels = np.pad(kernels, [(0, 0), *rest, (0, 0), (0, 0)])
  return np.concatenate(
    [
      kernels[:, *(slice(n, None, s) for n, s in zip(phase, strides, strict=True))]
      for phase in np.ndindex(*strides)
    ],
    axis=-2,
  )


def _isometry_errors(kernels: np.ndarray, scale: float) -> np.ndarray:
  """Largest entry of each kernel's autocorrelation less that of an isometry.

  On the host, in NumPy: programs for a dozen shapes compile in seconds, and taps
  without weights, most of a delta kernel's, cost nothing here.
  """
  if kernels.shape[-2] > kernels.shape[-1]:
    kernels = kernels.swapaxes(-1, -2)
  *window, rows, _ = kernels.shape[1:]
  taps = {tap: kernels[:, *tap] for tap in np.ndindex(*window)}
  taps = {tap: matrices for tap, matrices in taps.items() if matrices.any()}
  eye = np.eye(rows, dtype=kernels.dtype)
  # Opposite lags have transposed sums: of each pair of taps one order is enough.
  grams: dict[tuple[int, ...], Any] = {(0,) * len(window): -(scale**2) * eye}
  for (tap, one), (later, other) in itertools.combinations_with_replacement(
    taps.items(), 2
  ):
    lag = tuple(b - a for a, b in zip(tap, later, strict=True))
    grams[lag] = grams.get(lag, 0) + other @ one.conj().swapaxes(-1, -2)
  largest = [np.abs(gram).max((-2, -1)) for gram in grams.values()]
  return np.broadcast_to(np.max(largest, axis=0), len(kernels))
