"""Data sets of your own: any prepared one of tensorflow-datasets, or a function."""

import operator
from collections.abc import Mapping
from typing import Any

import numpy as np

from train.core.own import blamed, find, is_own
from train.data.datasets import TFDS, DatasetSpec, Split, prepared, read_split

FIELD = "data.name"
SPLITS = ("train", "validation", "test")


def is_own_data(name: str) -> bool:
  """Whether a name is of the form `tfds:NAME` or `module:function`."""
  return (name.startswith(TFDS) and name != TFDS) or is_own(name)


def load(name: str) -> tuple[DatasetSpec, dict[str, Split]]:
  """Reads a data set that is not in the table.

  Args:
    name: `tfds:NAME`, or `module:function` of a function that returns a dictionary:
      `num_classes`, and `train`, `test` and perhaps `validation`, each a pair of images
      `[n, height, width, channels]`, uint8 or floating point, and integer labels `[n]`.

  Returns:
    What is known of it, with mean and deviation of all training pixels; and its splits.

  Raises:
    UserError: if it is not on this machine, or not of that form.
  """
  with blamed(FIELD, name):
    num_classes, found = (_tfds if name.startswith(TFDS) else _call)(name)
    splits = {split: _checked(split, *pair) for split, pair in found.items()}
    train = splits["train"].images
    for split, (images, labels) in splits.items():
      rule = f"images of {split!r} must be those of 'train', {_kind(train[0])}"
      _require(_kind(images[0]) == _kind(train[0]), rule, _kind(images[0]))
      low, high = int(labels.min()), int(labels.max())
      rule = f"labels of {split!r} must be in [0, {num_classes - 1}]"
      _require(0 <= low <= high < num_classes, rule, f"labels from {low} to {high}")
  white = 255.0 if train.dtype == np.uint8 else 1.0
  shape, dtype = train.shape[1:], train.dtype.name
  return DatasetSpec(shape, num_classes, white, *measure(train), dtype), splits


def measure(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
  """Returns mean and deviation of each channel, of uint8 pixels divided by 255.

  Those of uint8 are of exact sums, and six digits are kept: the same on all machines.
  """
  channels = np.moveaxis(images, -1, 0)
  if images.dtype == np.uint8:
    values = np.arange(256) / 255
    counts = np.stack([np.bincount(c.reshape(-1), minlength=256) for c in channels])
    weights = counts / counts.sum(1, keepdims=True)
    mean = weights @ values
    std = np.sqrt((weights * (values - mean[:, None]) ** 2).sum(1))
  else:
    mean = np.array([c.mean(dtype=np.float64) for c in channels])
    std = np.array([c.std(dtype=np.float64) for c in channels])
  std = np.where(std > 0, std, 1.0)  # a channel of one value
  return _digits(mean), _digits(std)


def _digits(numbers: np.ndarray) -> tuple[float, ...]:
  return tuple(float(f"{number:.6g}") for number in numbers)


def _require(holds: Any, rule: str, got: Any) -> None:
  """Raises what `blamed` says with the name of the data set."""
  if not holds:
    raise ValueError(f"{rule}, got {got}.")


def _kind(array: np.ndarray) -> str:
  return f"{array.dtype} {list(array.shape)}"


def _checked(split: str, images: Any, labels: Any) -> Split:
  images, labels = np.asarray(images), np.asarray(labels)
  floating = np.issubdtype(images.dtype, np.floating)
  is_images = (
    images.ndim == 4 and images.size and (images.dtype == np.uint8 or floating)
  )
  rule = (
    f"images of {split!r} must be uint8 or floating point, [n, height, width, "
    "channels], at least one"
  )
  _require(is_images, rule, _kind(images))
  is_labels = labels.shape == images.shape[:1] and labels.dtype.kind in "iu"
  rule = f"labels of {split!r} must be integers [{len(images)}]"
  _require(is_labels, rule, _kind(labels))
  if floating:
    images = images.astype(np.float32)
    finite = np.isfinite(images).all()
    _require(finite, f"images of {split!r} must be finite", "nan or inf")
  return Split(images, labels.astype(np.int32))


def _call(name: str) -> tuple[int, dict[str, Any]]:
  found = find(FIELD, name)()
  is_mapping, known = isinstance(found, Mapping), (*SPLITS, "num_classes")
  is_whole = is_mapping and {"train", "test", "num_classes"} <= {*found}
  got = sorted(found) if is_mapping else type(found).__name__
  _require(is_whole, "must return a dictionary of train, test and num_classes", got)
  unknown = sorted({*found} - {*known})
  got = f"{', '.join(map(repr, unknown))} besides"
  _require(not unknown, f"may return {', '.join(known)}", got)
  num_classes = found["num_classes"]
  is_count = hasattr(num_classes, "__index__") and operator.index(num_classes) > 1
  rule = "`num_classes` must be an integer of at least 2"
  _require(is_count, rule, repr(num_classes))
  splits = {split: found[split] for split in SPLITS if split in found}
  for split, pair in splits.items():
    is_pair = isinstance(pair, tuple | list) and len(pair) == 2
    rule = f"{split!r} must be a pair of images and labels"
    _require(is_pair, rule, type(pair).__name__)
  return operator.index(num_classes), splits


def _tfds(name: str) -> tuple[int, dict[str, Any]]:
  with prepared(name) as builder:
    features, splits = builder.info.features, list(builder.info.splits)
    image, label = (dict(features).get(key) for key in ("image", "label"))
    num_classes = getattr(label, "num_classes", 0)
    fits = num_classes and None not in getattr(image, "shape", (None,))
    rule = "must have an `image` of a fixed size and a `label` of known classes"
    _require(fits, rule, features)
    # Where the labels of the test set are not public, validation takes its place.
    roles = {split: split for split in SPLITS if split in splits}
    if "test" not in roles and "validation" in roles:
      roles["test"] = roles.pop("validation")
    is_whole = {"train", "test"} <= {*roles}
    _require(is_whole, "must have the splits train and test or validation", splits)
    return num_classes, {role: read_split(builder, s) for role, s in roles.items()}
