"""Lets the image builders of tensorflow-datasets run without TensorFlow."""

import contextlib
import importlib.util
import io
import os
from collections.abc import Iterator
from types import SimpleNamespace
from unittest import mock


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
