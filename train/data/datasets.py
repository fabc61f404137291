"""The image data sets by name: what is known of each, and how to open it."""

import concurrent.futures
import contextlib
import logging
import os
import tempfile
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from train.core import cache
from train.core.console import UserError, logger


class Split(NamedTuple):
  """Examples, on the host (numpy) or on the device."""

  images: Any  # uint8 `[n, height, width, channels]`; float32 of a data set of your own
  labels: Any  # int32 `[n]`


@dataclass(frozen=True)
class Stream:
  """Examples that are too many to hold, in batches from the host; no pytree.

  `batches(begin)` yields this process's part of batch `begin` and of those after it:
  uint8 images and int32 labels. A training stream is endless, and batch `n` is that of
  step `n`. An evaluation stream ends after all examples; what fills its last batch is
  black and has the label -1.
  """

  size: int  # examples of the whole split, over all processes
  batches: Callable[[int], Iterator[Split]]


class DatasetSpec(NamedTuple):
  """What is known of a data set before it is read."""

  shape: tuple[int, int, int]  # `(height, width, channels)` of an image
  num_classes: int  # number of labels
  white: float  # the largest pixel value; 1 of float images, whatever their range
  mean: tuple[float, ...]  # per channel, of pixels divided by `white`
  std: tuple[float, ...]  # per channel, likewise
  # of the images, in memory: uint8, or float32 of a data set of your own
  dtype: str = "uint8"


@dataclass(frozen=True)
class Dataset:
  """Splits of one data set, each a Split, or each a Stream; no pytree.

  Splits in memory may still be read while their sizes are known: `read` waits for them.
  """

  spec: DatasetSpec
  sizes: Mapping[str, int]  # of train, test, and validation if any is held out
  read: Callable[[str], Any]  # a split by its name; always the same one

  @property
  def train(self) -> Any:
    """The training split."""
    return self.read("train")

  @property
  def validation(self) -> Any:
    """The held-out split, or None."""
    return self.read("validation") if "validation" in self.sizes else None

  @property
  def test(self) -> Any:
    """The test split."""
    return self.read("test")


def whole(spec: DatasetSpec, splits: Mapping[str, Any]) -> Dataset:
  """Returns a data set of splits that are there."""
  sizes = {
    name: split.size if isinstance(split, Stream) else len(split.labels)
    for name, split in splits.items()
  }
  return Dataset(spec, sizes, splits.__getitem__)


def in_background(function: Callable[[Any], Any], items: Iterable[Any]) -> Callable:
  """Calls a function of each item in a thread, one after the other.

  Returns what waits for the result of an item, or raises what its call raised. A
  process that ends does not wait for the thread, as it would for that of an executor.
  """
  futures = {item: concurrent.futures.Future() for item in items}

  def call():
    for item, future in futures.items():
      try:
        future.set_result(function(item))
      except BaseException as error:  # of whom waits
        future.set_exception(error)

  threading.Thread(target=call, daemon=True).start()
  return lambda item: futures[item].result()


# Means and deviations of MNIST and CIFAR-10 are those of the paper's code, of digits
# measured, of the others in common use with PyTorch: of all training pixels.
DATASETS = {
  "digits": DatasetSpec((8, 8, 1), 10, 16.0, (0.3053,), (0.3760,)),
  "mnist": DatasetSpec((28, 28, 1), 10, 255.0, (0.1307,), (0.3081,)),
  "cifar10": DatasetSpec(
    (32, 32, 3), 10, 255.0, (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
  ),
  "cifar100": DatasetSpec(
    (32, 32, 3), 100, 255.0, (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)
  ),
  "fashion_mnist": DatasetSpec((28, 28, 1), 10, 255.0, (0.2860,), (0.3530,)),
  "tiny_imagenet": DatasetSpec(
    (64, 64, 3), 200, 255.0, (0.4802, 0.4481, 0.3975), (0.2770, 0.2691, 0.2821)
  ),
  "imagenet": DatasetSpec(
    (224, 224, 3), 1000, 255.0, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
  ),
}
STREAMED = ("imagenet",)  # read as they are used; the others are held in memory
TFDS = "tfds:"  # before the name of any other data set of tensorflow-datasets


class Manual(NamedTuple):
  """Files that the user must bring, for `train.prepare --manual_dir`."""

  archives: tuple[str, ...]
  source: str


MANUAL = {
  "tiny_imagenet": Manual(("tiny-imagenet-200.zip",), "http://cs231n.stanford.edu"),
  "imagenet": Manual(
    ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"), "https://image-net.org"
  ),
}


def tfds_name(name: str) -> str:
  """Returns what tensorflow-datasets calls a data set."""
  return "imagenet2012" if name == "imagenet" else name.removeprefix(TFDS)


def prepare_hint(name: str) -> str:
  """Returns what a person without the data set `name` has to run."""
  command = f"python -m train.prepare --dataset={name}"
  if name in MANUAL:
    archives, source = MANUAL[name]
    brought = f"{' and '.join(archives)} of {source}"
    return f"run `{command} --manual_dir=DIR` with {brought} in DIR"
  return f"run `{command}` to download it"


@contextlib.contextmanager
def prepared(name: str) -> Iterator[Any]:
  """Opens a prepared data set, a key of `DATASETS` or `tfds:NAME`: yields its builder.

  Raises:
    UserError: if tensorflow-datasets or the data set is missing, or if it cannot be
      read: here or in the body of the `with` statement.
  """
  try:
    import tensorflow_datasets as tfds
    from absl import logging as absl_logging
  except ImportError as error:
    raise UserError(
      f"data set {name!r} needs tensorflow-datasets: "
      "run `pip install tensorflow-datasets importlib_resources pillow`."
    ) from error
  absl_logging.get_absl_logger().addFilter(_no_warning_of_tfds)
  place = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
  builder: Any = None
  try:
    builder = tfds.builder(tfds_name(name), data_dir=place)
    if not os.path.isdir(builder.data_dir):
      raise tfds.core.DatasetNotFoundError
    yield builder
  except tfds.core.DatasetNotFoundError as error:  # of a manual one: not prepared
    raise UserError(
      f"data set {name!r} is not in {place}; {prepare_hint(name)}, or set "
      "TFDS_DATA_DIR to the directory that holds it."
    ) from error
  except NotImplementedError as error:
    raise UserError(
      f"data set {name!r} in {builder.data_dir} is not in array_record format; move "
      f"it away and {prepare_hint(name)}."
    ) from error
  except (OSError, RuntimeError) as error:
    raise UserError(f"data set {name!r} cannot be read: {error}") from error


def _no_warning_of_tfds(record: logging.LogRecord) -> bool:
  """Hides that OpenCV or folders are missing; whatever else is wrong is an error."""
  return record.levelno >= logging.ERROR or "tensorflow_datasets" not in record.pathname


_BLOCK = 10_000  # examples decoded at once: a list of arrays takes more than one
_KEPT = 2**28  # bytes of decoded images, at most, that the cache keeps of a split


def read_split(builder: Any, split: str) -> Split:
  """Reads a split of an open builder into host memory, or what an earlier call kept."""
  files = [(file, os.stat(file)) for file in builder.info.splits[split].filepaths]
  facts = [(str(file), found.st_size, found.st_mtime_ns) for file, found in files]
  name = f"{builder.info.full_name}/{split}-{zlib.crc32(repr(facts).encode()):08x}"
  return kept(name, lambda: _decode(builder, split))


def kept(name: str, read: Callable[[], Split]) -> Split:
  """Returns what `read` returns, from the cache if it is there, and keeps it there.

  Decoding takes 10 s for CIFAR-10; an import, for digits, one. The name has to change
  whenever the examples do.
  """
  folder = cache.directory("data")
  if folder is None:
    return read()
  path = folder / f"{name.replace('/', '-')}.npz"
  try:
    with open(path, "rb") as file, np.load(file) as arrays:
      return Split(arrays["images"], arrays["labels"])
  except (OSError, ValueError, KeyError, zipfile.BadZipFile):
    pass  # not there, or cut short
  examples = read()
  if examples.images.nbytes <= _KEPT:
    try:
      with tempfile.TemporaryDirectory(dir=folder) as place:
        np.savez(written := Path(place) / path.name, **examples._asdict())
        os.replace(written, path)
    except OSError as error:
      logger.debug("decoded images are not kept: %s", error)
  return examples


def _decode(builder: Any, split: str) -> Split:
  source, image = builder.as_data_source(split), builder.info.features["image"]
  images = np.empty((len(source), *image.shape), image.np_dtype)
  labels = np.empty(len(source), np.int32)
  for begin in range(0, len(source), _BLOCK):
    rows = range(begin, min(begin + _BLOCK, len(source)))
    for row, example in zip(rows, source.__getitems__(rows), strict=True):
      images[row], labels[row] = example["image"], example["label"]
  return Split(images, labels)
