"""ImageNet (ILSVRC2012) as streams of 224 x 224 pixels, cropped on the host.

Training images are cropped at random and resized, and flipped (Szegedy et al., 2015,
arXiv:1409.4842, section 6); of the others the centre is taken: 224 pixels of 256.
"""

import io
import math
from typing import Any

import numpy as np

from train.datasets import DATASETS, Dataset
from train.errors import UserError
from train.prepared import prepared
from train.streams import StreamOptions, evaluation_stream, training_stream

SIZE = 224
_CENTRE = 224 / 256  # part of the shorter side that an evaluation sees
_AREA = (0.08, 1.0)  # of a random crop, as part of the image
_RATIO = (3 / 4, 4 / 3)  # of its sides, width to height
_ATTEMPTS = 10  # to find a crop that lies inside of the image

Box = tuple[float, float, float, float]  # left, top, right, bottom


def open_imagenet(options: StreamOptions, *, validation: float = 0.01) -> Dataset:
  """Opens the prepared data set; images are read as the streams are.

  The examples are stored in an order that `train.prepare` has shuffled once for all;
  the first of the training split are held out, whatever the seed.

  Args:
    options: what the batches are a function of.
    validation: fraction of the training split to hold out, in `[0, 1)`.

  Returns:
    Streams of uint8 images `[batch, 224, 224, 3]` and labels in `[0, 1000)`, in the
    order of the sorted WordNet ids. Training images depend on seed and step; the test
    set is the official validation split.

  Raises:
    UserError: if the data set or Grain is missing, or a batch does not fit.
  """
  try:
    import grain
  except ImportError as error:
    raise UserError(
      "data set 'imagenet' needs grain: run `pip install grain pillow`."
    ) from error
  sources = _sources()
  train = grain.MapDataset.source(sources["train"])
  test = grain.MapDataset.source(sources["validation"])
  held_out = int(validation * len(train) + 1e-9)
  spec = DATASETS["imagenet"]

  def evaluation(examples):
    examples = _first(examples, options.limit)
    size = len(examples)
    return evaluation_stream(examples.map(centre), size, spec.shape, options)

  examples = _first(train[held_out:], options.limit)
  shuffled = examples.seed(options.seed).shuffle().random_map(random_crop).repeat()
  return Dataset(
    spec,
    training_stream(shuffled, len(examples), options),
    evaluation(train[:held_out]) if held_out else None,
    evaluation(test),
  )


def _sources() -> dict[str, Any]:
  """Returns the splits, examples as stored: images are JPEG files."""
  with prepared("imagenet") as builder:
    from tensorflow_datasets import decode

    decoders = {"image": decode.SkipDecoding()}
    return builder.as_data_source(decoders=decoders)


def _first(examples: Any, limit: int) -> Any:
  return examples[:limit] if limit else examples


def random_crop(example: dict[str, Any], rng: np.random.Generator) -> tuple:
  """Decodes an example; returns a random crop, flipped or not, and the label."""
  image = _decode(example)
  pixels = _resize(image, random_box(rng, *image.size))
  flip = rng.random() < 0.5
  return (pixels[:, ::-1] if flip else pixels), np.int32(example["label"])


def centre(example: dict[str, Any]) -> tuple:
  """Decodes an example; returns its centre and the label."""
  image = _decode(example)
  return _resize(image, centre_box(*image.size)), np.int32(example["label"])


def random_box(rng: np.random.Generator, width: int, height: int) -> Box:
  """Draws a crop: its area is uniform, and so is the logarithm of its ratio.

  Draws again where the crop is wider or higher than the image; in the end it is the
  largest centred one whose ratio is allowed.
  """
  for _ in range(_ATTEMPTS):
    area = width * height * rng.uniform(*_AREA)
    ratio = math.exp(rng.uniform(math.log(_RATIO[0]), math.log(_RATIO[1])))
    wide, high = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
    if 0 < wide <= width and 0 < high <= height:
      left = int(rng.integers(width - wide + 1))
      top = int(rng.integers(height - high + 1))
      return left, top, left + wide, top + high
  wide = min(width, height * _RATIO[1])
  return _centred(width, height, wide, min(height, width / _RATIO[0]))


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


def _resize(image, box: Box) -> np.ndarray:
  """Returns uint8 `[224, 224, 3]`: the box with bilinear weights, antialiased."""
  from PIL import Image

  return np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BILINEAR, box))
