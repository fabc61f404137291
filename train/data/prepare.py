"""Prepares data sets by the builders of tensorflow-datasets, without TensorFlow."""

import contextlib
import importlib.util
import io
import os
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from unittest import mock

from train.core.console import UserError
from train.data.datasets import MANUAL, prepare_hint, tfds_name
from train.data.imagenet import Sizes, check_archives


def prepare(
  name: str,
  data_dir: str | None = None,
  manual_dir: str | None = None,
  *,
  partial: bool = False,
  **options: Any,
) -> str:
  """Runs the builder of a data set; needs the network unless it is a manual one.

  The arguments are those of `train.prepare`; options are the builder's. Returns the
  directory of the data set.

  Raises:
    UserError: if an archive is missing or not the official one.
  """
  import tensorflow_datasets as tfds

  data_dir, config = data_dir or os.environ.get("TFDS_DATA_DIR") or None, None
  options |= {"data_dir": data_dir, "file_format": "array_record"}
  if name in MANUAL:
    for archive in MANUAL[name].archives:
      if not manual_dir or not os.path.isfile(os.path.join(manual_dir, archive)):
        where = f"is not in {manual_dir}" if manual_dir else "is to be brought"
        raise UserError(f"{archive} {where}: {prepare_hint(name)}.")
    config = tfds.download.DownloadConfig(manual_dir=manual_dir)
  if partial and name != "imagenet":
    raise UserError(f"--partial is for imagenet, got {name}.")
  if name == "imagenet" and manual_dir:
    check_archives(manual_dir, None if partial else Sizes())
  if name == "tiny_imagenet":
    from train.data.tiny_imagenet import TinyImagenet

    builder: Any = TinyImagenet(**options)
  else:
    try:
      builder = tfds.builder(tfds_name(name), **options)
    except tfds.core.DatasetNotFoundError as error:
      raise UserError(
        f"--dataset must be one that tensorflow-datasets has, got {name}."
      ) from error
  with without_tensorflow():
    builder.download_and_prepare(download_config=config)
  return str(builder.data_dir)


def _open(path, mode="r"):
  return open(os.fspath(path), mode)


_TENSORFLOW = SimpleNamespace(
  io=SimpleNamespace(gfile=SimpleNamespace(GFile=_open, exists=os.path.exists)),
  compat=SimpleNamespace(as_text=os.fsdecode),
)


def _encode_image(encoder, pixels) -> bytes:
  from PIL import Image

  grey = pixels.shape[-1] == 1
  return encoder._encode_pil_image(Image.fromarray(pixels[..., 0] if grey else pixels))


def _encode_jpeg(content: bytes, quality: int = 100) -> bytes:
  """Makes an RGB JPEG file of an image file, as tfds does of some of ImageNet's."""
  from PIL import Image

  buffer = io.BytesIO()
  with Image.open(io.BytesIO(content)) as image:
    image.convert("RGB").save(buffer, "JPEG", quality=quality)
  return buffer.getvalue()


@contextlib.contextmanager
def without_tensorflow() -> Iterator[None]:
  """Replaces what the builders of our data sets need of TensorFlow, if it is missing.

  They open files through it and encode pixels as PNG; that of ImageNet encodes 23
  images anew, which are CMYK or PNG. Python and Pillow do the same.
  """
  if importlib.util.find_spec("tensorflow") is not None:
    yield
    return
  from tensorflow_datasets.core import utils
  from tensorflow_datasets.core.features import image_feature
  from tensorflow_datasets.core.utils import lazy_imports_utils

  lazy = vars(lazy_imports_utils.tensorflow)
  encoder = image_feature._ImageEncoder
  with (
    mock.patch.dict(lazy, {"_module": _TENSORFLOW}),
    mock.patch.object(encoder, "_encode_image", _encode_image),
    mock.patch.object(utils, "jpeg_cmyk_to_rgb", _encode_jpeg),
    mock.patch.object(utils, "png_to_jpeg", _encode_jpeg),
  ):
    yield
