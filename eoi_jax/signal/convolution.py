"""Singular values of a convolution as a linear map from image to image."""

import math
import operator

import jax
import jax.numpy as jnp
import numpy as np

from eoi_jax import _checks as checks
from eoi_jax.signal import jacobian

PADDINGS = ("CIRCULAR", "SAME", "VALID")

# Entries of the largest matrix that is decomposed whole.
_DENSE_SIZE = 2**22


def conv_singular_values(
  kernel,
  input_shape: tuple[int, ...],
  *,
  padding: str,
  strides: int | tuple[int, ...] = 1,
  num_iterations: int = 128,
) -> np.ndarray:
  """Singular values of the map from an image to its convolution.

  Circular padding, with strides that divide the image: the discrete Fourier transform
  splits the map into blocks, one for each frequency of the output, from the
  `prod(strides)` frequencies of the input that alias to it. All values are exact.

  Any other map of at most 2^22 entries is decomposed as a dense matrix; all values are
  exact. A larger one is multiplied with, not formed, and only the largest and the
  smallest value are returned (`jacobian_extremes`): the largest is soon exact, the
  smallest is a bound from above.

  Args:
    kernel: float array `(*window, in, out)`, window of rank 1 to 3.
    input_shape: `(*spatial)`, or `(*spatial, in)`.
    padding: "CIRCULAR" (as Flax pads: the centre tap is `(k - 1) // 2`), "SAME" or
      "VALID", in any case of letters.
    strides: int, or one for each axis of the window.
    num_iterations: of `jacobian_extremes`.

  Returns:
    float64 array, largest first: all `[min(inputs, outputs)]` values, with errors of
    about 1e-12 of the largest; of a large map `[2]`, in float32.

  Raises:
    ValueError: if a shape, the padding or the strides do not fit together.

  Example:
    >>> kernel = jnp.zeros((3, 3, 2, 2)).at[0, 2].set(jnp.eye(2))
    >>> values = conv_singular_values(kernel, (4, 4), padding="circular")
    >>> len(values), bool(np.allclose(values, 1))
    (32, True)
    >>> values = conv_singular_values(kernel, (4, 4), padding="same")
    >>> int((values > 0.5).sum())  # a row and a column of pixels are moved out
    18

  Reference: Sedghi, Gupta and Long, 2019, arXiv:1805.10408.
  """
  dtype = getattr(kernel, "dtype", np.asarray(kernel).dtype)
  if not jnp.issubdtype(dtype, jnp.floating):
    raise ValueError(f"`kernel` must be floating point, got {dtype}.")
  kernel = np.asarray(kernel).astype(np.float64)
  if not 3 <= kernel.ndim <= 5 or kernel.size == 0:
    raise ValueError(
      "`kernel` must have shape (*window, in, out) with a window of rank 1 to 3, got "
      f"shape {kernel.shape}."
    )
  image, window = _check_image(input_shape, kernel), kernel.shape[:-2]
  strides = checks.strides(strides, len(image))
  given, padding = padding, str(padding).upper()
  if padding not in PADDINGS:
    raise ValueError(f"`padding` must be one of {PADDINGS}, got {given!r}.")
  num_iterations = checks.integer("num_iterations", num_iterations, 1)
  if padding == "VALID" and any(n < k for n, k in zip(image, window, strict=True)):
    raise ValueError(
      f'`input_shape` must be at least the window {window} with padding "VALID", got '
      f"{image}."
    )
  axes = list(zip(image, window, strides, strict=True))
  counts = [_outputs(*axis, padding)[0] for axis in axes]
  if padding == "CIRCULAR" and not any(size % stride for size, _, stride in axes):
    values = _by_frequency(kernel, image, strides)
  elif math.prod((*image, *counts, *kernel.shape[-2:])) <= _DENSE_SIZE:
    values = np.linalg.svd(_dense(kernel, axes, padding), compute_uv=False)
  else:
    values = _extremes(kernel, image, strides, padding, num_iterations)
  return np.sort(values, axis=None)[::-1]


def _check_image(input_shape, kernel) -> tuple[int, ...]:
  rank, channels = kernel.ndim - 2, kernel.shape[-2]
  try:
    shape = tuple(operator.index(size) for size in input_shape)
  except TypeError:
    shape = ()
  if len(shape) == rank + 1 and shape[rank] == channels:
    shape = shape[:-1]
  if len(shape) != rank or min(shape) < 1:
    raise ValueError(
      f"`input_shape` must be {rank} positive integers, or those and {channels} "
      f"channels, for a kernel of shape {kernel.shape}, got {input_shape!r}."
    )
  return shape


def _by_frequency(kernel, image, strides) -> np.ndarray:
  """Singular values of a circular convolution, from blocks of aliased frequencies."""
  spectrum = kernel.astype(np.complex128)
  for axis, (size, stride) in enumerate(zip(image, strides, strict=True)):
    taps = np.arange(kernel.shape[axis])
    # Frequency `a size / stride + g` aliases to `g`.
    frequency = np.arange(size).reshape(stride, -1)
    wave = np.exp(2j * np.pi * frequency[:, :, None] * taps / size) / math.sqrt(stride)
    spectrum = np.moveaxis(
      np.tensordot(wave, spectrum, axes=(2, 2 * axis)), (0, 1), (2 * axis, 2 * axis + 1)
    )
  *_, rows, cols = spectrum.shape
  rank = len(image)
  order = [*range(1, 2 * rank, 2), *range(0, 2 * rank, 2), 2 * rank, 2 * rank + 1]
  blocks = spectrum.transpose(order).reshape(-1, math.prod(strides) * rows, cols)
  return np.linalg.svd(blocks, compute_uv=False)


def _outputs(size: int, window: int, stride: int, padding: str) -> tuple[int, int]:
  """Number of outputs along one axis, and inputs that are missing before the first."""
  if padding == "VALID":
    return (size - window) // stride + 1, 0
  count = -(-size // stride)
  if padding == "SAME":
    return count, max((count - 1) * stride + window - size, 0) // 2
  return count, (window - 1) // 2


def _dense(kernel, axes, padding: str) -> np.ndarray:
  """Matrix of the convolution, float `[inputs, outputs]`.

  `axes` are the size of the image, the window and the stride along each axis.
  """
  reads = []  # which input an output reads at a tap, [window, inputs, outputs]
  for size, window, stride in axes:
    count, before = _outputs(size, window, stride, padding)
    place = np.arange(count) * stride + np.arange(window)[:, None] - before
    if padding == "CIRCULAR":
      place %= size
    reads.append((place[:, None, :] == np.arange(size)[:, None]).astype(np.float64))
  rank = len(axes)
  taps, inputs, outputs = "abc"[:rank], "def"[:rank], "ghi"[:rank]
  letters = ",".join(map("".join, zip(taps, inputs, outputs, strict=True)))
  matrix = np.einsum(
    f"{taps}xy,{letters}->{inputs}x{outputs}y", kernel, *reads, optimize=True
  )
  return matrix.reshape(math.prod(matrix.shape[: rank + 1]), -1)


def _extremes(kernel, image, strides, padding: str, num_iterations: int) -> np.ndarray:
  """Largest and smallest singular value, from products with the map alone."""
  spatial = "DHW"[-len(image) :]
  wraps = [((size - 1) // 2, size // 2) for size in kernel.shape[:-2]]

  def apply(weights, x):
    if padding == "CIRCULAR":
      x = jnp.pad(x, [(0, 0), *wraps, (0, 0)], mode="wrap")
    return jax.lax.conv_general_dilated(
      x,
      weights,
      window_strides=strides,
      padding="VALID" if padding == "CIRCULAR" else padding,
      dimension_numbers=(f"N{spatial}C", f"{spatial}IO", f"N{spatial}C"),
    )

  extremes = jacobian.jacobian_extremes(
    jax.random.key(0),
    apply,
    jnp.asarray(kernel, jnp.float32),
    jnp.zeros((1, *image, kernel.shape[-2])),
    num_iterations=num_iterations,
    num_probes=2,
  )
  return np.array([extremes.max[0], extremes.min[0]], np.float64)
