"""Tiny ImageNet as a tfds data set, read from the official zip file.

`python -m train.prepare --dataset=tiny_imagenet --manual_dir=DIR` runs this builder on
`DIR/tiny-imagenet-200.zip` (Le and Yang, 2015, CS231n at Stanford). The labels of its
test images are not public: what others call the test set is its `validation` split.
"""

import collections
import os
import zipfile
from collections.abc import Iterator
from typing import Any, NamedTuple

import tensorflow_datasets as tfds

from train.core.console import UserError
from train.data.datasets import MANUAL

(ARCHIVE,) = MANUAL["tiny_imagenet"].archives
URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
SHAPE = (64, 64, 3)
_ROOT = ARCHIVE.removesuffix(".zip")


class Sizes(NamedTuple):
  """How many classes the archive must have, and images of each."""

  num_classes: int = 200
  train: int = 500
  validation: int = 50


def read_index(
  archive: zipfile.ZipFile, sizes: Sizes
) -> tuple[list[str], dict[str, dict[str, str]]]:
  """Lists the labelled images of the official archive, and counts them.

  It has `wnids.txt`, `train/ID/images/*.JPEG`, `val/images/*.JPEG` and
  `val/val_annotations.txt` under `tiny-imagenet-200/`.

  Returns:
    The WordNet ids, sorted: a label is a place among them, as in torch's ImageFolder.
    And for training and validation the id of each image, by its name in the archive.

  Raises:
    UserError: if a file is missing or a count is not that of `sizes`.
  """
  files = set(archive.namelist())
  classes = sorted(_text(archive, "wnids.txt").split())
  if len(set(classes)) != sizes.num_classes:
    raise UserError(
      f"{ARCHIVE} must have {sizes.num_classes} classes, has {len(set(classes))}."
    )
  train, validation = {}, {}
  for name in sorted(files):
    parts = name.split("/")
    if parts[1:2] == ["train"] and name.endswith(".JPEG"):
      train[name] = parts[2]
  for line in _text(archive, "val/val_annotations.txt").splitlines():
    image, wnid = line.split("\t")[:2]
    validation[f"{_ROOT}/val/images/{image}"] = wnid
  if missing := sorted(validation.keys() - files):
    raise UserError(f"{ARCHIVE} has no {missing[0]}.")
  splits = {"train": train, "validation": validation}
  for (split, labels), wanted in zip(splits.items(), sizes[1:], strict=True):
    counts = collections.Counter(labels.values())
    kind = "training" if split == "train" else split
    for wnid in sorted({*classes, *counts}):
      expected = wanted if wnid in classes else 0
      if counts[wnid] != expected:
        raise UserError(
          f"{ARCHIVE} must have {expected} {kind} images of class {wnid}, "
          f"has {counts[wnid]}."
        )
  return classes, splits


def _text(archive: zipfile.ZipFile, name: str) -> str:
  try:
    return archive.read(f"{_ROOT}/{name}").decode()
  except KeyError as error:
    raise UserError(f"{ARCHIVE} has no {_ROOT}/{name}.") from error


class TinyImagenet(tfds.core.GeneratorBasedBuilder):
  """100,000 training and 10,000 validation images of 64 x 64 in 200 classes.

  The pixels are stored as PNG, those of grey images as three equal channels, so that
  they do not depend on the reader's JPEG decoder.
  """

  VERSION = tfds.core.Version("1.0.0")
  MANUAL_DOWNLOAD_INSTRUCTIONS = f"Download {URL}; the directory must hold {ARCHIVE}."

  def __init__(self, *, sizes: Sizes | None = None, **options: Any):
    """Creates the builder of an archive of such sizes; options are those of tfds."""
    self.sizes = Sizes() if sizes is None else sizes
    super().__init__(**options)

  def _info(self) -> tfds.core.DatasetInfo:
    label = tfds.features.ClassLabel(num_classes=self.sizes.num_classes)
    image = tfds.features.Image(shape=SHAPE, encoding_format="png")
    return tfds.core.DatasetInfo(
      builder=self,
      description=str(type(self).__doc__),
      features=tfds.features.FeaturesDict({"image": image, "label": label}),
      supervised_keys=("image", "label"),
      homepage="http://cs231n.stanford.edu/",
    )

  def _split_generators(self, dl_manager) -> dict[str, Iterator]:
    path = os.path.join(os.fspath(dl_manager.manual_dir), ARCHIVE)
    with zipfile.ZipFile(path) as archive:
      classes, splits = read_index(archive, self.sizes)
    features: Any = self.info.features
    features["label"].names = classes
    return {name: self._generate_examples(path, x) for name, x in splits.items()}

  def _generate_examples(self, path: str, labels: dict[str, str]) -> Iterator:
    from PIL import Image

    with zipfile.ZipFile(path) as archive:
      for name, wnid in labels.items():
        with archive.open(name) as file, Image.open(file) as image:
          if image.size != SHAPE[:2]:
            raise UserError(
              f"{name} must be 64 x 64 pixels, is {image.size[0]} x {image.size[1]}."
            )
          yield name, {"image": image.convert("RGB"), "label": wnid}
