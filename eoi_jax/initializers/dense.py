"""Dense orthogonal initializers: the references that sparse starts are compared with.

Three readings of "orthogonal" for a convolution kernel `(*window, in, out)`:

  - `dense_orthogonal`: the matrix `(taps * in, out)` has orthonormal columns or rows.
    The convolution is not an isometry, but where stride = window: patches are disjoint;
  - `delta_orthogonal`: an orthogonal `(in, out)` matrix at the centre tap, zeros
    elsewhere. An isometry at stride 1 with "SAME" or circular padding;
  - `conv_orthogonal`: every tap takes part. An isometry at stride 1 with circular
    padding.

For dense kernels `(in, out)` all three are the same matrix.
"""

import math

import jax
import jax.numpy as jnp

from eoi_jax import _checks, _keys
from eoi_jax.givens.orthogonal import check_dtype
from eoi_jax.initializers.eoi import Initializer, check_shape, delta_kernel, place


def dense_orthogonal(scale: float = 1.0) -> Initializer:
  """Dense orthogonal initializer of the flattened kernel (QR, signs fixed).

  Args:
    scale: gain, the singular values of the kernel's matrix `(taps * in, out)`.

  Returns:
    `init(key, shape, dtype=jnp.float32, out_sharding=None)` for `(in, out)` or
    `(*window, in, out)`.

  Example:
    >>> kernel = dense_orthogonal()(jax.random.key(0), (3, 3, 4, 8)).reshape(36, 8)
    >>> bool(jnp.allclose(kernel.T @ kernel, jnp.eye(8), atol=1e-5))
    True

  Reference: Saxe et al., 2014, arXiv:1312.6120.
  """
  return _initializer(scale, _flat)


def delta_orthogonal(scale: float = 1.0) -> Initializer:
  """Dense orthogonal initializer, at the centre tap for convolutions.

  Args:
    scale: gain, the singular values of the kernel's matrix.

  Returns:
    As `dense_orthogonal`; `in` may exceed `out`.

  Example:
    >>> kernel = delta_orthogonal()(jax.random.key(0), (3, 3, 4, 8))
    >>> int((kernel[1, 1] != 0).sum()), int((kernel != 0).sum())
    (32, 32)

  Reference: Xiao et al., 2018, arXiv:1806.05393.
  """

  def sample(key, shape, dtype, scale):
    return delta_kernel(_flat(key, shape[-2:], dtype, scale), shape[:-2])

  return _initializer(scale, sample)


def conv_orthogonal(scale: float = 1.0) -> Initializer:
  """Orthogonal convolution with weights at every tap, by block convolution.

  Along each axis of the window, `size - 1` filters of two taps `(P, I - P)`, with `P`
  a random orthogonal projection of half the channels, are convolved with each other
  and with an orthogonal matrix. Each is an isometry of sequences, so the whole is.

  Args:
    scale: gain: the singular values of the convolution as a map.

  Returns:
    As `dense_orthogonal`; `in` may exceed `out`.

  Example:
    >>> kernel = conv_orthogonal()(jax.random.key(0), (3, 3, 4, 8))
    >>> gram = jnp.einsum("xyio,xyjo->ij", kernel, kernel)
    >>> bool(jnp.allclose(gram, jnp.eye(4), atol=1e-5))
    True

  Reference: Xiao et al., 2018, arXiv:1806.05393, algorithms 1 and 2.
  """

  def sample(key, shape, dtype, scale):
    *window, rows, cols = shape
    compute_dtype = _checks.compute_dtype(dtype)
    key_matrix, key_blocks = jax.random.split(key)
    kernel = _flat(key_matrix, (rows, cols), compute_dtype, scale)
    kernel = kernel.T if rows > cols else kernel
    kernel = kernel.reshape(*(1,) * len(window), *kernel.shape)
    # The axis of each filter, in turns.
    rounds = range(max(window, default=1) - 1)
    axes = [axis for n in rounds for axis, size in enumerate(window) if n < size - 1]
    for step, axis in enumerate(axes):
      key_step = jax.random.fold_in(key_blocks, step)
      projection = _projection(key_step, max(rows, cols), compute_dtype)
      kernel = _widen(kernel, projection, axis)
    kernel = jnp.swapaxes(kernel, -1, -2) if rows > cols else kernel
    return kernel.astype(dtype)

  return _initializer(scale, sample)


def _initializer(scale: float, sample) -> Initializer:
  """A JAX initializer of `sample(key, shape, dtype, scale)`, its arguments checked."""
  scale = _checks.number("scale", scale)

  def init(key, shape, dtype=jnp.float32, out_sharding=None):
    shape, dtype, key = check_shape(shape), check_dtype(dtype), _keys.as_key(key)
    return place(sample(key, shape, dtype, scale), out_sharding)

  return init


def _flat(key, shape, dtype, scale: float) -> jax.Array:
  """Kernel whose `(fan_in, out)` matrix is `scale` times orthogonal, cast last."""
  compute_dtype = _checks.compute_dtype(dtype)
  matrix = (math.prod(shape[:-1]), shape[-1])
  kernel = jax.nn.initializers.orthogonal(scale)(key, matrix, compute_dtype)
  return kernel.astype(dtype).reshape(shape)


def _projection(key, size: int, dtype) -> jax.Array:
  """Projection onto a uniformly random subspace of `size // 2` dimensions."""
  basis = jax.nn.initializers.orthogonal()(key, (size, size), dtype)[:, : size // 2]
  return jnp.matmul(basis, basis.T, precision=jax.lax.Precision.HIGHEST)


def _widen(kernel: jax.Array, projection: jax.Array, axis: int) -> jax.Array:
  """Convolves with the two taps `(P, I - P)` along an axis of the window."""
  first = jnp.matmul(kernel, projection, precision=jax.lax.Precision.HIGHEST)
  zero = jnp.zeros_like(jax.lax.slice_in_dim(kernel, 0, 1, axis=axis))
  second = jnp.concatenate([zero, kernel - first], axis)
  return jnp.concatenate([first, zero], axis) + second
