"""Writes a small set in the format of ImageNet's archives, of patterns made here.

python -m train.imagenet_sample DIR
python -m train.prepare --dataset=imagenet --partial --manual_dir=DIR --data_dir=DATA
TFDS_DATA_DIR=DATA python -m train.run --config configs/imagenet_resnet50.py:smoke

Nothing is learned from it about a network: it shows that everything works.
"""

import io
import sys
import tarfile
from pathlib import Path

import numpy as np
from absl import app

from train.data.imagenet import (
  TRAIN,
  VALIDATION,
  validation_ids,
  validation_name,
  wordnet_ids,
)


def write_archives(
  folder: str | Path, *, train: int = 12, validation: int = 16
) -> list[str]:
  """Writes both archives into `folder`, which is made; returns the classes, sorted.

  These are the classes of the first `validation` images of the official set; each has
  `train` training images.
  """
  folder = Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  truth = validation_ids()[:validation]
  classes = sorted(set(truth))
  with tarfile.open(folder / TRAIN, "w") as archive:
    for wnid in classes:
      files = {f"{wnid}_{number}.JPEG": jpeg(wnid, number) for number in range(train)}
      add(archive, f"{wnid}.tar", tar(files))
  with tarfile.open(folder / VALIDATION, "w") as archive:
    for number, wnid in enumerate(truth, 1):
      add(archive, validation_name(number), jpeg(wnid, train + number))
  return classes


def jpeg(wnid: str, number: int) -> bytes:
  """Returns a JPEG file: the pattern of a class, with noise, of some random size."""
  from PIL import Image

  rng = np.random.default_rng(wordnet_ids().index(wnid))
  pattern = rng.integers(0, 256, (4, 4, 3))
  rng = np.random.default_rng((int(wnid[1:]), number))
  noisy = np.clip(pattern + rng.normal(0, 20, pattern.shape), 0, 255)
  size = rng.integers(150, 300, 2).tolist()
  image = Image.fromarray(noisy.astype(np.uint8)).resize(size)
  buffer = io.BytesIO()
  image.save(buffer, "JPEG")
  return buffer.getvalue()


def tar(files: dict[str, bytes]) -> bytes:
  """Returns a tar file that holds the given files."""
  buffer = io.BytesIO()
  with tarfile.open(fileobj=buffer, mode="w") as archive:
    for name, content in files.items():
      add(archive, name, content)
  return buffer.getvalue()


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
  """Appends a file to an open archive."""
  info = tarfile.TarInfo(name)
  info.size = len(content)
  archive.addfile(info, io.BytesIO(content))


def main(argv: list[str]) -> None:
  """Writes the archives into the directory that the command line names."""
  if len(argv) != 2:
    sys.exit("usage: python -m train.imagenet_sample DIR")
  classes = write_archives(argv[1])
  print(f"archives of {len(classes)} classes are in {argv[1]}")


if __name__ == "__main__":
  app.run(main)
