"""Images on the device: cropped, flipped, coloured, mixed and normalized.

Everything random is a function of a key. Pixels are those of the data set, between 0
and its largest value, until `normalize`.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from train.data.datasets import DatasetSpec

PADDING = 4
AUGMENTS = ("none", "crop_flip", "random_resized_crop", "three_augment")
AREA = (0.08, 1.0)  # of a random resized crop, as part of the image
RATIO = (3 / 4, 4 / 3)  # of its sides, width to height
ATTEMPTS = 10  # to find a crop that lies inside of the image
_JITTER = 0.3  # factors of 3-Augment's colour jitter: 1 +- this
_SIGMA = (0.1, 2.0)  # of its Gaussian blur, in pixels
_REACH = 6  # pixels of the blur on each side, 3 sigma at most
_SOLARIZED = 128 / 255  # part of the largest value from which solarizing inverts


class Augmentation(NamedTuple):
  """How training images change, hashable; the part of `config.data` for it."""

  augment: str = "none"  # one of `AUGMENTS`
  repeats: int = 1  # copies of each image in a batch, each augmented by itself
  mixup: float = 0.0  # alpha of mixup, 0 for none
  # alpha of CutMix, 0 for none; with both, each batch takes one of them
  cutmix: float = 0.0

  @property
  def resized(self) -> bool:
    """Whether crops of random size are resized: a stream does that on the host."""
    return self.augment in ("random_resized_crop", "three_augment")


def normalize(images: jax.Array, spec: DatasetSpec) -> jax.Array:
  """Maps pixels `[n, ...]` to float32 of about zero mean and unit deviation."""
  mean = jnp.asarray(spec.mean, jnp.float32)[None, None, None]
  std = jnp.asarray(spec.std, jnp.float32)[None, None, None]
  return (images.astype(jnp.float32) / jnp.float32(spec.white) - mean) / std


def augment(
  key: jax.Array,
  images: jax.Array,
  settings: Augmentation,
  *,
  white: float = 255.0,
  cropped: bool = False,
) -> jax.Array:
  """Augments each image of `[batch, height, width, channels]` by itself.

  `settings.augment` says how; nothing is mixed or repeated here. `white` is the largest
  pixel value; `cropped` says that crops of random size have been taken on the host.
  """
  if settings.augment == "crop_flip":
    return crop_and_flip(key, images)
  crop, color = jax.random.split(key)
  three = settings.augment == "three_augment"
  if settings.resized and not cropped:
    method = "cubic" if three else "linear"
    images = random_resized_crop(crop, images, method=method, white=white)
  return three_augment(color, images, white=white) if three else images


def crop_and_flip(
  key: jax.Array, images: jax.Array, *, padding: int = PADDING
) -> jax.Array:
  """Crops each image at random from its reflect-padded form, flips half of them.

  He et al., 2016, arXiv:1512.03385, section 4.2, with reflected edges: a shift of at
  most `padding` pixels along both axes. Nothing is padded: the reflected rows and
  columns of the crop are read from the image at once.

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
  shifts = jax.random.randint(keys[0], (2, batch), -padding, padding + 1)

  def reflected(shift, size):  # the edge itself is not repeated
    return size - 1 - jnp.abs(size - 1 - jnp.abs(shift + jnp.arange(size)))

  @jax.vmap
  def crop(image, down, right, flip):
    columns = reflected(right, width)
    columns = jnp.where(flip, columns[::-1], columns)
    return image[reflected(down, height)[:, None], columns[None]]

  flips = jax.random.bernoulli(keys[1], shape=(batch,))
  return crop(images, shifts[0], shifts[1], flips)


def random_resized_crop(
  key: jax.Array, images: jax.Array, *, method: str = "linear", white: float = 255.0
) -> jax.Array:
  """Resizes a random part of each image to its full size, flips half of them.

  Szegedy et al., 2015, arXiv:1409.4842, section 6: the part's area is uniform in
  [.08, 1], the logarithm of its ratio in +-log(4/3); the whole image where ten draws do
  not fit. The filter, a `method` of `jax.image.resize`, is antialiased, and what a
  cubic one adds beyond `[0, white]` is cut off. Returns float32.
  """
  batch, height, width, _ = images.shape
  keys = jax.random.split(key, 4)
  draw, low, high = (batch, ATTEMPTS), *map(math.log, RATIO)
  areas = jax.random.uniform(keys[0], draw, minval=AREA[0], maxval=AREA[1])
  ratios = jnp.exp(jax.random.uniform(keys[1], draw, minval=low, maxval=high))
  whole = jnp.array([height, width], jnp.float32)

  @jax.vmap
  def crop(image, area, ratio, start, flip):
    area = area * float(height * width)
    sizes = jnp.round(jnp.sqrt(jnp.stack([area / ratio, area * ratio], -1)))
    fits = ((sizes > 0) & (sizes <= whole[None])).all(-1)
    size = jnp.where(fits.any(), sizes[fits.argmax()], whole)
    scale = whole / size
    moved = -jnp.floor(start * (whole - size + 1)) * scale
    image = jax.image.scale_and_translate(
      image.astype(jnp.float32), image.shape, (0, 1), scale, moved, method
    )
    return jnp.clip(jnp.where(flip, image[:, ::-1], image), 0, white)

  starts = jax.random.uniform(keys[2], (batch, 2))
  flips = jax.random.bernoulli(keys[3], shape=(batch,))
  return crop(images, areas, ratios, starts, flips)


def three_augment(
  key: jax.Array, images: jax.Array, *, white: float = 255.0
) -> jax.Array:
  """Makes each image grey, or solarizes or blurs it, and jitters its colours.

  3-Augment of DeiT III (Touvron et al., 2022, arXiv:2204.07118, section 3 and the
  published code), without its crop and flip: one of the three at random, then
  brightness, contrast and saturation in random order, each by a factor in [.7, 1.3].
  Pixels are in `[0, white]` before and, in float32, after.
  """
  batch = images.shape[0]
  keys = jax.random.split(key, 4)
  sigmas = jax.random.uniform(keys[0], (batch,), minval=_SIGMA[0], maxval=_SIGMA[1])
  choices = jax.random.randint(keys[1], (batch,), 0, 3)
  orders = jnp.argsort(jax.random.uniform(keys[2], (batch, 3)), 1)
  low, high = 1 - _JITTER, 1 + _JITTER
  factors = jax.random.uniform(keys[3], (batch, 3), minval=low, maxval=high)

  @jax.vmap
  def change(image, sigma, choice, order, factors):
    image = image.astype(jnp.float32)
    three = grey(image), solarize(image, white), blur(image, sigma)
    return jitter(jax.lax.select_n(choice, *three), order, factors, white)

  return change(images, sigmas, choices, orders, factors)


def grey(image: jax.Array) -> jax.Array:
  """Returns an image of equal channels: the luma of ITU-R 601 of three, else the mean.

  Like the next three it takes one image, float `[height, width, channels]`.
  """
  channels = image.shape[-1]
  luma = (0.299, 0.587, 0.114) if channels == 3 else (1 / channels,) * channels
  total = jnp.sum(image * jnp.array(luma, jnp.float32)[None, None], -1, keepdims=True)
  return jnp.broadcast_to(total, image.shape)


def solarize(image: jax.Array, white: float = 255.0) -> jax.Array:
  """Inverts the pixels that are at least 128/255 of the largest value."""
  return jnp.where(image < _SOLARIZED * white, image, white - image)


def jitter(
  image: jax.Array, order: jax.Array, factors: jax.Array, white: float = 255.0
) -> jax.Array:
  """Changes brightness (0), contrast (1) and saturation (2), as Pillow does.

  Each moves the image from or to another: black, its mean, or itself in grey. `order`
  says which of the three comes first, second and third, by which of the `factors`.
  """
  for place in range(3):
    plain = grey(image)
    others = jnp.zeros_like(plain), jnp.full_like(plain, plain.mean()), plain
    other = jax.lax.select_n(order[place], *others)
    image = jnp.clip(other + factors[place] * (image - other), 0, white)
  return image


def blur(image: jax.Array, sigma: jax.Array) -> jax.Array:
  """Blurs by a Gaussian of a deviation up to 2 pixels; edges are repeated."""
  places = jnp.arange(-_REACH, _REACH + 1, dtype=jnp.float32)
  weights = jax.nn.softmax(-0.5 * (places / sigma) ** 2)
  for axis in (0, 1):
    size, edges = image.shape[axis], [(0, 0)] * 3
    edges[axis] = (_REACH, _REACH)
    wide = jnp.pad(image, edges, "edge")
    parts = [
      weights[n] * jax.lax.slice_in_dim(wide, n, n + size, axis=axis)
      for n in range(len(places))
    ]
    image = sum(parts[1:], start=parts[0])
  return image


def mix(
  key: jax.Array, images: jax.Array, shares: jax.Array, settings: Augmentation
) -> tuple[jax.Array, jax.Array]:
  """Mixes each example with its counterpart in the reversed batch.

  Mixup (Zhang et al., 2018, arXiv:1710.09412) adds the two images; CutMix (Yun et al.,
  2019, arXiv:1905.04899) pastes a box of the other one. As in timm and DeiT, one number
  of Beta(alpha, alpha) is drawn for the whole batch, and of two methods one, with equal
  chances. A label's share, of `[batch, num_classes]`, is that of its image's pixels;
  images are floats. Without an alpha in `settings` nothing changes.
  """
  if not (settings.mixup or settings.cutmix):
    return images, shares
  height, width = images.shape[1:3]
  which, share, row, column = jax.random.split(key, 4)
  paste = jax.random.bernoulli(which) if settings.mixup else jnp.array(True)
  paste = paste if settings.cutmix else jnp.array(False)
  alpha = jnp.where(paste, settings.cutmix, settings.mixup)
  own = jax.random.beta(share, alpha, alpha, dtype=jnp.float32)

  def inside(key, size):
    half = jnp.floor(size * jnp.sqrt(1 - own)).astype(jnp.int32) // 2
    places, middle = jnp.arange(size), jax.random.randint(key, (), 0, size)
    return (places >= middle - half) & (places < middle + half)

  box = inside(row, height)[:, None] & inside(column, width)[None, :]
  weights = jnp.where(paste, jnp.where(box, 0.0, 1.0), own)  # of the pixels
  pixels = weights[None, :, :, None]
  images = pixels * images + (1 - pixels) * images[::-1]
  part = weights.mean()
  return images, part * shares + (1 - part) * shares[::-1]
