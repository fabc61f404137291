"""Images on the device: normalized, cropped and flipped."""

import jax
import jax.numpy as jnp

from train.data.datasets import DatasetSpec

PADDING = 4


def normalize(images: jax.Array, spec: DatasetSpec) -> jax.Array:
  """Maps uint8 `[n, ...]` to float32 of about zero mean and unit deviation."""
  mean = jnp.asarray(spec.mean, jnp.float32)[None, None, None]
  std = jnp.asarray(spec.std, jnp.float32)[None, None, None]
  return (images.astype(jnp.float32) / jnp.float32(spec.white) - mean) / std


def crop_and_flip(
  key: jax.Array, images: jax.Array, *, padding: int = PADDING
) -> jax.Array:
  """Crops each image at random from its reflect-padded form, flips half of them.

  He et al., 2016, arXiv:1512.03385, section 4.2, with reflected edges. Nothing is
  padded: the reflected rows and columns of the crop are read from the image at once.

  Args:
    key: consumed; crops and flips of a batch are a function of it alone.
    images: `[batch, height, width, channels]` of any type.
    padding: pixels on each side, smaller than height and width.

  Returns:
    Images of the same shape and type, each shifted by at most `padding` pixels along
    both axes and mirrored left to right with probability 1/2, independently.

  Raises:
    ValueError: if `padding` is negative or not smaller than an image.
  """
  batch, height, width, _ = images.shape
  if not 0 <= padding < min(height, width):
    raise ValueError(
      f"`padding` must be in [0, {min(height, width) - 1}] for images of {height} x "
      f"{width}, got {padding}."
    )
  keys = jax.random.split(key)
  shifts = jax.random.randint(keys[0], (2, batch, 1), -padding, padding + 1)
  flips = jax.random.bernoulli(keys[1], shape=(batch, 1))
  rows = _reflect(shifts[0] + jnp.arange(height)[None], height)
  columns = _reflect(shifts[1] + jnp.arange(width)[None], width)
  columns = jnp.where(flips, columns[:, ::-1], columns)
  crop = jax.vmap(lambda image, row, column: image[row[:, None], column[None, :]])
  return crop(images, rows, columns)


def _reflect(index: jax.Array, size: int) -> jax.Array:
  """Maps indices beyond the edges back; the edge itself is not repeated."""
  index = jnp.abs(index)
  return size - 1 - jnp.abs(size - 1 - index)
