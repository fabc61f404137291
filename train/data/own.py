"""Data sets of your own: any prepared one of tensorflow-datasets, or a function."""

import contextlib
import operator
from collections.abc import Mapping
from typing import Any, NoReturn

import numpy as np

from train.core.console import UserError
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
  if name.startswith(TFDS):
    num_classes, found = _tfds(name)
  else:
    num_classes, found = _call(name)
  splits = {split: _checked(name, split, *found[split]) for split in found}
  train = splits["train"]
  for split, other in splits.items():
    ours, theirs = train.images, other.images
    if (ours.shape[1:], ours.dtype) != (theirs.shape[1:], theirs.dtype):
      _refuse(
        name,
        f"images of {split!r} must be those of 'train', {ours.dtype} "
        f"{list(ours.shape[1:])}",
        f"{theirs.dtype} {list(theirs.shape[1:])}",
      )
    low, high = int(other.labels.min()), int(other.labels.max())
    if low < 0 or high >= num_classes:
      rule = f"labels of {split!r} must be in [0, {num_classes - 1}]"
      _refuse(name, rule, f"labels from {low} to {high}")
  white = 255.0 if train.images.dtype == np.uint8 else 1.0
  mean, std = measure(train.images)
  shape = train.images.shape[1:]
  spec = DatasetSpec(shape, num_classes, white, mean, std, train.images.dtype.name)
  return spec, splits


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


def _refuse(name: str, rule: str, got: str) -> NoReturn:
  raise UserError(f"`{FIELD}` = {name!r}: {rule}, got {got}.")


def _checked(name: str, split: str, images: Any, labels: Any) -> Split:
  images, labels = np.asarray(images), np.asarray(labels)
  floating = np.issubdtype(images.dtype, np.floating)
  if images.ndim != 4 or not images.size or not (images.dtype == np.uint8 or floating):
    _refuse(
      name,
      f"images of {split!r} must be uint8 or floating point, [n, height, width, "
      "channels], at least one",
      f"{images.dtype} {list(images.shape)}",
    )
  if labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
    rule = f"labels of {split!r} must be integers [{len(images)}]"
    _refuse(name, rule, f"{labels.dtype} {list(labels.shape)}")
  if floating:
    images = images.astype(np.float32)
    if not np.isfinite(images).all():
      _refuse(name, f"images of {split!r} must be finite", "nan or inf")
  return Split(images, labels.astype(np.int32))


def _call(name: str) -> tuple[int, dict[str, Any]]:
  with blamed(FIELD, name):
    found = find(FIELD, name)()
  known = (*SPLITS, "num_classes")
  if not isinstance(found, Mapping) or not {"train", "test", "num_classes"} <= {*found}:
    got = sorted(found) if isinstance(found, Mapping) else type(found).__name__
    _refuse(name, "must return a dictionary of train, test and num_classes", f"{got}")
  if unknown := sorted(set(found) - set(known)):
    _refuse(name, f"may return {', '.join(known)}", f"{unknown[0]!r} besides")
  num_classes = found["num_classes"]
  with contextlib.suppress(TypeError):
    num_classes = operator.index(num_classes)
  if not isinstance(num_classes, int) or num_classes < 2:
    _refuse(name, "`num_classes` must be an integer of at least 2", f"{num_classes!r}")
  splits = {split: found[split] for split in SPLITS if split in found}
  for split, pair in splits.items():
    if not isinstance(pair, tuple | list) or len(pair) != 2:
      got = type(pair).__name__
      _refuse(name, f"{split!r} must be a pair of images and labels", got)
  return num_classes, splits


def _tfds(name: str) -> tuple[int, dict[str, Any]]:
  with prepared(name) as builder:
    features, splits = builder.info.features, list(builder.info.splits)
    image, label = (dict(features).get(key) for key in ("image", "label"))
    num_classes = getattr(label, "num_classes", None)
    if num_classes is None or None in getattr(image, "shape", (None,)):
      _refuse(
        name,
        "must have an `image` of a fixed size and a `label` of known classes",
        f"{features}",
      )
    # Where the labels of the test set are not public, validation takes its place.
    roles = {split: split for split in SPLITS if split in splits}
    if "test" not in roles and "validation" in roles:
      roles = roles | {"test": roles.pop("validation")}
    if not {"train", "test"} <= set(roles):
      _refuse(name, "must have the splits train and test or validation", f"{splits}")
    found = {role: read_split(builder, split) for role, split in roles.items()}
    return num_classes, found
