"""Downloads a data set and prepares it in the format that the trainer reads.

python -m train.prepare --dataset=mnist [--data_dir=DIR]
python -m train.prepare --dataset=tiny_imagenet --manual_dir=DIR [--data_dir=DIR]
python -m train.prepare --dataset=imagenet --manual_dir=DIR [--data_dir=DIR]

ImageNet takes some hours, and twice the size of its archives on the disk: examples are
shuffled into a fixed order.
"""

import os
import sys
from typing import Any

from absl import app, flags

from train.datasets import DATASETS, MANUAL, TFDS_NAMES, prepare_hint
from train.errors import UserError
from train.imagenet_archives import OFFICIAL, check_archives
from train.plain_tfds import without_tensorflow

_NAMES = [name for name in DATASETS if name != "digits"]
_DATASET = flags.DEFINE_enum("dataset", None, _NAMES, "which data set")
_DATA_DIR = flags.DEFINE_string(
  "data_dir", None, "where to; default: $TFDS_DATA_DIR, else ~/tensorflow_datasets"
)
_MANUAL_DIR = flags.DEFINE_string(
  "manual_dir",
  None,
  "where the archives are that you brought, for " + ", ".join(MANUAL),
)
_PARTIAL = flags.DEFINE_bool(
  "partial", False, "accept archives with a part of the official images, for imagenet"
)


def prepare(
  name: str,
  data_dir: str | None = None,
  manual_dir: str | None = None,
  *,
  partial: bool = False,
  **options: Any,
) -> str:
  """Runs the builder of a data set; needs the network unless it is a manual one.

  Args:
    name: a key of `DATASETS` other than "digits".
    data_dir: where to; by default $TFDS_DATA_DIR, else ~/tensorflow_datasets.
    manual_dir: the directory of the archives, of a data set in `MANUAL`.
    partial: whether archives of ImageNet may hold a part of the official images.
    **options: of the builder.

  Returns:
    The directory of the data set.

  Raises:
    UserError: if an archive is missing or not the official one.
  """
  import tensorflow_datasets as tfds

  data_dir = data_dir or os.environ.get("TFDS_DATA_DIR") or None
  options |= {"data_dir": data_dir, "file_format": "array_record"}
  settings: dict[str, Any] = {}
  if name in MANUAL:
    _check_present(name, manual_dir)
    download_config = tfds.download.DownloadConfig(manual_dir=manual_dir)
    settings["download_config"] = download_config
  if partial and name != "imagenet":
    raise UserError(f"--partial is for imagenet, got {name}.")
  if name == "imagenet" and manual_dir:
    check_archives(manual_dir, None if partial else OFFICIAL)
  if name == "tiny_imagenet":
    from train.tiny_imagenet import TinyImagenet

    builder: Any = TinyImagenet(**options)
  else:
    builder = tfds.builder(TFDS_NAMES.get(name, name), **options)
  with without_tensorflow():
    builder.download_and_prepare(**settings)
  return str(builder.data_dir)


def _check_present(name: str, manual_dir: str | None) -> None:
  """Raises a UserError unless all archives of the data set are in `manual_dir`."""
  for archive in MANUAL[name].archives:
    if not manual_dir or not os.path.isfile(os.path.join(manual_dir, archive)):
      where = f"is not in {manual_dir}" if manual_dir else "is to be brought"
      raise UserError(f"{archive} {where}: {prepare_hint(name)}.")


def main(argv: list[str]) -> None:
  """Prepares what the flags ask for."""
  del argv
  name = _DATASET.value
  try:
    if name is None:
      raise UserError(f"--dataset is missing; known: {', '.join(_NAMES)}")
    place = prepare(name, _DATA_DIR.value, _MANUAL_DIR.value, partial=_PARTIAL.value)
  except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)
  print(f"{name} is in {place}")


if __name__ == "__main__":
  app.run(main)
