"""Image data sets by name: small ones whole, as uint8 arrays, large ones as streams."""

import importlib.metadata
from typing import Any

import numpy as np

from train.core.console import UserError
from train.data import own
from train.data.datasets import (
  DATASETS,
  STREAMED,
  Dataset,
  Split,
  in_background,
  kept,
  prepared,
  read_split,
  whole,
)
from train.data.imagenet import open_imagenet
from train.data.streams import StreamOptions


def hold_out(split: Split, fraction: float) -> tuple[Split, Split]:
  """Splits `floor(fraction * n)` examples off, evenly from every class.

  Whatever the seed of a run. Returns `(rest, held_out)`, both in the original order.
  """
  by_class = np.argsort(split.labels, kind="stable")
  marks = np.floor(np.arange(len(by_class) + 1) * fraction + 1e-9)
  held = np.zeros(len(by_class), bool)
  held[by_class] = np.diff(marks) > 0
  return Split(*(a[~held] for a in split)), Split(*(a[held] for a in split))


def load_dataset(
  name: str, *, validation: float = 0.1, stream: StreamOptions | None = None
) -> Dataset:
  """Reads a data set into host memory, or opens the streams of a larger one.

  Args:
    name: a key of `DATASETS`, or as in `train.data.own.load`.
    validation: fraction of the training set to hold out, in `[0, 1)`; a data set of
      your own that has a validation split keeps it.
    stream: what the batches of a data set in `STREAMED` are a function of; None else.

  Returns:
    The data set with disjoint splits, those in memory perhaps still being read. The
    test set of `digits`, which has none of its own, is a fixed fifth of it; those of
    `tiny_imagenet` and `imagenet` are their official validation splits.

  Raises:
    UserError: if the data set is unknown or not on this machine.
    ValueError: if `stream` is missing or of no use.
  """
  if name not in DATASETS and not own.is_own_data(name):
    raise UserError(f"`data.name` must be one of {', '.join(DATASETS)}, got {name!r}.")
  if (name in STREAMED) != (stream is not None):
    rule = "is needed for" if stream is None else "must be None for"
    raise ValueError(f"`stream` {rule} data set {name!r}, got {stream}.")
  if stream is not None:
    return open_imagenet(stream, validation=validation)
  if name in DATASETS and name != "digits":
    return _tfds(name, validation)
  spec, splits = (DATASETS[name], _digits()) if name in DATASETS else own.load(name)
  if "validation" not in splits:
    splits |= _parted(splits["train"], validation)
  return whole(spec, splits)


def _parted(train: Split, validation: float) -> dict[str, Split]:
  """The training split, and what is held out of it, if anything is."""
  parts = hold_out(train, validation) if validation else [train]
  return dict(zip(("train", "validation"), parts, strict=False))


def _digits() -> dict[str, Split]:
  try:
    version = importlib.metadata.version("scikit-learn")
  except importlib.metadata.PackageNotFoundError as error:
    raise UserError(
      "data set 'digits' needs scikit-learn: run `pip install scikit-learn`."
    ) from error

  def read():
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    images = digits.images.astype(np.uint8)[..., None]
    return Split(images, digits.target.astype(np.int32))

  train, test = hold_out(kept(f"digits-{version}", read), 0.2)
  return {"train": train, "test": test}


def _tfds(name: str, validation: float) -> Dataset:
  """Opens a prepared data set, and reads it in a thread: programs compile meanwhile."""
  # The labels of the test set of Tiny ImageNet are not public.
  test = "validation" if name == "tiny_imagenet" else "test"
  found = {"train": "train", "test": test}
  with prepared(name) as builder:
    sizes = {
      split: builder.info.splits[stored].num_examples for split, stored in found.items()
    }
  if validation:
    sizes["validation"] = int(sizes["train"] * validation + 1e-9)
    sizes["train"] -= sizes["validation"]

  def read(stored):
    with prepared(name) as builder:
      split = read_split(builder, found[stored])
    return _parted(split, validation) if stored == "train" else {stored: split}

  wait = in_background(read, found)

  def read_one(split):
    return wait("train" if split == "validation" else split)[split]

  return Dataset(DATASETS[name], sizes, read_one)
