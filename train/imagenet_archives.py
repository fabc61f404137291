"""The two official archives of ImageNet (ILSVRC2012), and their contents checked.

`python -m train.prepare --dataset=imagenet --manual_dir=DIR` checks them and runs the
builder `imagenet2012` of tensorflow-datasets. That builder pairs the sorted names of
the validation images with a list of 50,000 labels by their order, and counts nothing: a
missing file would shift all labels after it.
"""

import os
import tarfile
from pathlib import Path
from typing import NamedTuple

from train.datasets import MANUAL
from train.errors import UserError

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


OFFICIAL = Sizes()


def check_archives(folder: str | os.PathLike, sizes: Sizes | None = OFFICIAL) -> Sizes:
  """Counts classes and images of both archives, without reading the images.

  Args:
    folder: holds the training archive, a tar file of one tar file for each class, and
      the validation archive, a tar file of images.
    sizes: what the counts must be, or None to accept any part of the classes and
      training images, and the first so many validation images.

  Returns:
    The counts.

  Raises:
    UserError: if a count is another, or a name unknown.
  """
  counts = _count_train(Path(folder) / TRAIN)
  validation = _names(Path(folder) / VALIDATION)
  found = Sizes(len(counts), sum(counts.values()), len(validation))
  for wnid, count in counts.items():
    if not count:
      raise UserError(f"{TRAIN} has no image of class {wnid}.")
  wanted = found if sizes is None else sizes
  for archive, words, value, expected in (
    (TRAIN, "classes", found.num_classes, wanted.num_classes),
    (TRAIN, "images", found.train, wanted.train),
    (VALIDATION, "images", found.validation, wanted.validation),
  ):
    if value != expected or not value:
      raise UserError(f"{archive} must have {expected or 'some'} {words}, has {value}.")
  for number, name in enumerate(sorted(validation), 1):
    if name != validation_name(number):
      raise UserError(f"{VALIDATION} must have {validation_name(number)}, has {name}.")
  return found


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
      counts[wnid] = len(names)
  return counts


def _names(path: Path) -> list[str]:
  with _open(path) as archive:
    return archive.getnames()


def _open(path: Path) -> tarfile.TarFile:
  try:
    return tarfile.open(path)
  except tarfile.TarError as error:
    raise UserError(f"{path} is no whole tar file: {error}") from error
