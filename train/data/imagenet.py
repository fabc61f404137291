"""The two official archives of ImageNet (ILSVRC2012), and their contents checked.

`python -m train.prepare --dataset=imagenet --manual_dir=DIR` checks them and runs the
builder `imagenet2012` of tensorflow-datasets. That builder pairs the sorted names of
the validation images with a list of 50,000 labels by their order, and counts nothing: a
missing file would shift all labels after it.
"""

import functools
import io
import math
import os
import sys
import tarfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from train.core.console import UserError
from train.data.datasets import DATASETS, MANUAL, Dataset, prepared, whole
from train.data.images import AREA, ATTEMPTS, RATIO
from train.data.streams import StreamOptions, evaluation_stream, training_stream

TRAIN, VALIDATION = MANUAL["imagenet"].archives


class Sizes(NamedTuple):
  """How many classes and images the archives must have."""

  num_classes: int = 1000
  train: int = 1_281_167
  validation: int = 50_000


def wordnet_ids() -> list[str]:
  """Returns the classes, sorted: a label is a place in it."""
  return _lines("labels.txt")


def validation_ids() -> list[str]:
  """Returns the classes of the validation images, in the order of their numbers."""
  return _lines("validation_labels.txt")


def _lines(name: str) -> list[str]:
  import tensorflow_datasets as tfds

  path = tfds.core.tfds_path(f"datasets/imagenet2012/{name}")
  return path.read_text().split()


def validation_name(number: int) -> str:
  """Returns the file name of a validation image, counted from 1."""
  return f"ILSVRC2012_val_{number:08d}.JPEG"


def check_archives(folder: str | os.PathLike, sizes: Sizes | None) -> None:
  """Counts classes and images of both archives, without reading the images.

  The training archive is a tar file of one tar file for each class, that of validation
  one of images. With `sizes=None` they may hold any part of the classes and training
  images, and the first so many validation images.

  Raises:
    UserError: if a count is not that of `sizes`, or a name unknown.
  """
  counts = _count_train(Path(folder) / TRAIN)
  with _open(Path(folder) / VALIDATION) as archive:
    validation = sorted(archive.getnames())
  found = Sizes(len(counts), sum(counts.values()), len(validation))
  sorts = (TRAIN, "classes"), (TRAIN, "images"), (VALIDATION, "images")
  rows = zip(sorts, found, sizes or found, strict=True)
  for (archive, words), value, expected in rows:
    if value != expected or not value:
      raise UserError(f"{archive} must have {expected or 'some'} {words}, has {value}.")
  for number, name in enumerate(validation, 1):
    if name != validation_name(number):
      raise UserError(f"{VALIDATION} must have {validation_name(number)}, has {name}.")


def _count_train(path: Path) -> dict[str, int]:
  """Returns the number of images of each class."""
  known, counts = set(wordnet_ids()), {}
  with _open(path) as archive:
    for member in archive:
      wnid, name = member.name.removesuffix(".tar"), member.name
      if wnid not in known:
        raise UserError(f"{TRAIN} must hold a tar file of each class, has {name}.")
      with tarfile.open(fileobj=archive.extractfile(member)) as images:
        names = images.getnames()
      for image in names:
        if not image.startswith(f"{wnid}_"):
          raise UserError(f"{name} must hold images of its class, has {image}.")
      if not names:
        raise UserError(f"{TRAIN} has no image of class {wnid}.")
      counts[wnid] = len(names)
  return counts


def _open(path: Path) -> tarfile.TarFile:
  try:
    return tarfile.open(path)
  except tarfile.TarError as error:
    raise UserError(f"{path} is no whole tar file: {error}") from error


SIZE = 224
_CENTRE = 224 / 256  # part of the shorter side that an evaluation sees

Box = tuple[float, float, float, float]  # left, top, right, bottom


def open_imagenet(options: StreamOptions, *, validation: float = 0.01) -> Dataset:
  """Opens the prepared data set; images are read as the streams are.

  `train.prepare` has shuffled the stored examples once for all; the first of the
  training split, a fraction `validation` in `[0, 1)`, are held out, whatever the seed.
  Images are uint8 `[batch, 224, 224, 3]`, labels numbers of the sorted WordNet ids.
  Those of the training depend on seed and step: random crops, flipped or not, if
  `options.augmentation` resizes, else centres; what else it asks for is left to the
  device. The test set is the official validation split.

  Raises:
    UserError: if the data set or Grain is missing, or a batch does not fit.
  """
  try:
    import grain
  except ImportError as error:
    raise UserError(
      "data set 'imagenet' needs grain: run `pip install grain pillow`."
    ) from error
  with prepared("imagenet") as builder:
    from tensorflow_datasets import decode

    decoders = {"image": decode.SkipDecoding()}  # examples as stored: JPEG files
    sources = builder.as_data_source(decoders=decoders)
  train: Any = grain.MapDataset.source(sources["train"])
  test: Any = grain.MapDataset.source(sources["validation"])
  held_out = int(validation * len(train) + 1e-9)
  spec, limit = DATASETS["imagenet"], options.limit or None

  def evaluation(examples):
    examples = examples[:limit]
    size = len(examples)
    return evaluation_stream(examples.map(centre), size, spec.shape, options)

  examples, settings = train[held_out:][:limit], options.augmentation
  shuffled, size = examples.seed(options.seed).shuffle().repeat(), len(examples)

  def copy(place):  # each example `repeats` times, of an epoch the first `size`
    epoch, row = divmod(int(place), size)
    return shuffled[epoch * size + row // settings.repeats]

  copies = grain.MapDataset.range(sys.maxsize).map(copy)
  if settings.resized:
    crop = functools.partial(random_crop, cubic=settings.augment == "three_augment")
    copies = copies.seed(options.seed).random_map(crop)
  else:
    copies = copies.map(centre)
  splits = {"train": training_stream(copies, size, options), "test": evaluation(test)}
  if held_out:
    splits["validation"] = evaluation(train[:held_out])
  return whole(spec, splits)


def random_crop(
  example: dict[str, Any], rng: np.random.Generator, *, cubic: bool = False
) -> tuple:
  """Decodes an example; returns a random crop, flipped or not, and the label."""
  image = _decode(example)
  pixels = _resize(image, random_box(rng, *image.size), cubic)
  pixels = pixels[:, ::-1] if rng.random() < 0.5 else pixels
  return pixels, np.int32(example["label"])


def centre(example: dict[str, Any]) -> tuple:
  """Decodes an example; returns its centre and the label."""
  image = _decode(example)
  return _resize(image, centre_box(*image.size)), np.int32(example["label"])


def random_box(rng: np.random.Generator, width: int, height: int) -> Box:
  """Draws a crop: its area is uniform, and so is the logarithm of its ratio.

  Draws again where the crop is wider or higher than the image; in the end it is the
  largest centred one whose ratio is allowed.
  """
  for _ in range(ATTEMPTS):
    area = width * height * rng.uniform(*AREA)
    ratio = math.exp(rng.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
    wide, high = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
    if 0 < wide <= width and 0 < high <= height:
      left = int(rng.integers(width - wide + 1))
      top = int(rng.integers(height - high + 1))
      return left, top, left + wide, top + high
  wide = min(width, height * RATIO[1])
  return _centred(width, height, wide, min(height, width / RATIO[0]))


def centre_box(width: int, height: int) -> Box:
  """Returns the square that is left of an image resized to 256 and cut to 224."""
  side = _CENTRE * min(width, height)
  return _centred(width, height, side, side)


def _centred(width: int, height: int, wide: float, high: float) -> Box:
  left, top = (width - wide) / 2, (height - high) / 2
  return left, top, left + wide, top + high


def _decode(example: dict[str, Any]):
  from PIL import Image

  return Image.open(io.BytesIO(example["image"])).convert("RGB")


def _resize(image, box: Box, cubic: bool = False) -> np.ndarray:
  """Returns uint8 `[224, 224, 3]`: the box by a linear or cubic antialiased filter."""
  from PIL import Image

  method = Image.Resampling.BICUBIC if cubic else Image.Resampling.BILINEAR
  return np.asarray(image.resize((SIZE, SIZE), method, box))
