"""The official builders, on small archives in the official formats."""

import gzip
import io
import tarfile

import numpy as np
import pytest

tfds = pytest.importorskip("tensorflow_datasets")
from tensorflow_datasets.image_classification import mnist  # noqa: E402

from train.core.console import UserError  # noqa: E402
from train.data.datasets import DATASETS  # noqa: E402
from train.data.load import load_dataset  # noqa: E402
from train.prepare import prepare  # noqa: E402

SIZES = {"train": 40, "test": 20}


def examples(name, size):
  """Images whose labels, and places in the archive, can be told from their pixels."""
  shape = DATASETS[name].shape
  images = np.random.default_rng(size).integers(0, 256, (size, *shape), dtype=np.uint8)
  return images, (np.arange(size) % DATASETS[name].num_classes).astype(np.uint8)


def cifar_archive(folder, number, prefix, files, extra):
  path = folder / f"cifar-{number}-binary.tar.gz"
  content = dict(extra)
  for file, (images, labels) in files.items():
    coarse = [bytes([label // 5]) if number == 100 else b"" for label in labels]
    content[file] = b"".join(
      first + bytes([label]) + image.transpose(2, 0, 1).tobytes()
      for first, label, image in zip(coarse, labels, images, strict=True)
    )
  with tarfile.open(path, "w:gz") as archive:
    for file, data in content.items():
      info = tarfile.TarInfo(f"{prefix}/{file}")
      info.size = len(data)
      archive.addfile(info, io.BytesIO(data))
  return path


def lines(prefix, count):
  return "".join(f"{prefix}{i}\n" for i in range(count)).encode()


def cifar100(folder):
  files = {f"{s}.bin": examples("cifar100", size) for s, size in SIZES.items()}
  names = {
    "coarse_label_names.txt": lines("c", 20),
    "fine_label_names.txt": lines("f", 100),
  }
  path = cifar_archive(folder, 100, "cifar-100-binary", files, names)
  return lambda url: path


def cifar10(folder):
  images, labels = examples("cifar10", SIZES["train"])
  parts = [(images[i::5], labels[i::5]) for i in range(5)]
  files = {f"data_batch_{i + 1}.bin": part for i, part in enumerate(parts)}
  files["test_batch.bin"] = examples("cifar10", SIZES["test"])
  names = {"batches.meta.txt": lines("n", 10)}
  path = cifar_archive(folder, 10, "cifar-10-batches-bin", files, names)
  return lambda url: path


def mnist_like(name):
  def write(folder):
    for split, start in (("train", "train"), ("test", "t10k")):
      images, labels = examples(name, SIZES[split])
      header = np.array([2051, len(images), 28, 28], ">i4").tobytes()
      (folder / f"{start}-images-idx3-ubyte.gz").write_bytes(
        gzip.compress(header + images.tobytes())
      )
      header = np.array([2049, len(labels)], ">i4").tobytes()
      (folder / f"{start}-labels-idx1-ubyte.gz").write_bytes(
        gzip.compress(header + labels.tobytes())
      )
    return lambda urls: {
      key: folder / url.rpartition("/")[2] for key, url in urls.items()
    }

  return write


ARCHIVES = {
  "cifar10": cifar10,
  "cifar100": cifar100,
  "mnist": mnist_like("mnist"),
  "fashion_mnist": mnist_like("fashion_mnist"),
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_the_official_builder_runs_without_tensorflow(name, tmp_path, monkeypatch):
  local = ARCHIVES[name](tmp_path)
  monkeypatch.setattr(mnist, "_TRAIN_EXAMPLES", SIZES["train"])
  monkeypatch.setattr(mnist, "_TEST_EXAMPLES", SIZES["test"])
  monkeypatch.setattr(
    tfds.download.DownloadManager,
    "download_and_extract",
    lambda manager, urls: manager.extract(local(urls)),
  )
  place = prepare(name, str(tmp_path / "data"))
  assert place.startswith(str(tmp_path / "data" / name))
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "data"))
  dataset = load_dataset(name, validation=0.0)
  for split, read in (("train", dataset.train), ("test", dataset.test)):
    images, labels = examples(name, SIZES[split])
    wanted = {i.tobytes(): label for i, label in zip(images, labels, strict=True)}
    assert read.images.shape == images.shape
    found = {i.tobytes(): label for i, label in zip(*read, strict=True)}
    assert found == wanted


def test_a_data_set_that_nobody_has(tmp_path):
  with pytest.raises(UserError, match=r"--dataset must be one .*, got tfds:nope"):
    prepare("tfds:nope", str(tmp_path))
