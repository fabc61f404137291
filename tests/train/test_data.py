import contextlib
import threading
import types

import chex
import numpy as np
import pytest

from train.core.console import UserError
from train.data import load
from train.data.datasets import DATASETS, Split, in_background, read_split
from train.data.load import hold_out, load_dataset

SIZES = {"mnist": (54000, 6000, 10000), "cifar10": (45000, 5000, 10000)}


def rows(split):
  return {image.tobytes() for image in split.images}


def check_shapes(dataset, sizes):
  splits = (dataset.train, dataset.validation, dataset.test)
  assert tuple(len(split.labels) for split in splits) == sizes
  for split in splits:
    assert split.images.shape == (len(split.labels), *dataset.spec.shape)
    assert split.images.dtype == np.uint8 and split.labels.dtype == np.int32
    assert set(split.labels.tolist()) == set(range(dataset.spec.num_classes))


def test_digits_are_split_without_overlap():
  dataset = load_dataset("digits", validation=0.1)
  check_shapes(dataset, (1295, 143, 359))
  parts = [rows(s) for s in (dataset.train, dataset.validation, dataset.test)]
  # The 1797 images are all different, so the splits must be too.
  assert sum(map(len, parts)) == len(set.union(*parts)) == 1797


def test_constants_of_digits_are_those_of_its_pixels():
  dataset, spec = load_dataset("digits", validation=0.0), DATASETS["digits"]
  assert dataset.validation is None
  images = np.concatenate([dataset.train.images, dataset.test.images]) / spec.white
  assert images.max() == 1
  np.testing.assert_allclose(images.mean(), spec.mean[0], atol=5e-5)
  np.testing.assert_allclose(images.std(), spec.std[0], atol=5e-5)


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.25, 0.999])
def test_hold_out_takes_its_share_of_every_class(fraction):
  labels = np.repeat(np.arange(3, dtype=np.int32), (10, 20, 40))
  split = Split(np.arange(70, dtype=np.uint8)[:, None, None, None], labels)
  rest, held = hold_out(split, fraction)
  assert len(held.labels) == int(70 * fraction)
  for label, size in enumerate((10, 20, 40)):
    assert abs((held.labels == label).sum() - size * fraction) < 1
  both = np.concatenate([rest.images.ravel(), held.images.ravel()])
  assert sorted(both.tolist()) == list(range(70))
  assert (split.labels[held.images.ravel()] == held.labels).all()


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.slow
def test_tfds_data_sets_are_whole(name, tfds_data_dir):
  if not (tfds_data_dir / name).is_dir():
    pytest.skip(f"{name} is not in TFDS_DATA_DIR={tfds_data_dir}")
  check_shapes(load_dataset(name, validation=0.1), SIZES[name])


def test_a_set_that_is_being_read_has_its_sizes(monkeypatch):
  begun, done, split = threading.Event(), threading.Event(), np.arange(70) % 10
  images = np.arange(70, dtype=np.uint8)[:, None, None, None]

  def read(builder, name):
    begun.set()
    assert done.wait(10)
    return Split(images, split) if name == "train" else Split(images[:9], split[:9])

  splits = {
    name: types.SimpleNamespace(num_examples=size)
    for name, size in (("train", 70), ("test", 9))
  }
  builder = types.SimpleNamespace(info=types.SimpleNamespace(splits=splits))
  monkeypatch.setattr(load, "prepared", lambda name: contextlib.nullcontext(builder))
  monkeypatch.setattr(load, "read_split", read)
  dataset = load_dataset("mnist", validation=0.1)
  assert begun.wait(10)
  assert dataset.sizes == {"train": 63, "validation": 7, "test": 9}
  done.set()
  for name, size in dataset.sizes.items():
    assert len(dataset.read(name).labels) == size
  assert dataset.train is dataset.train


def test_a_set_that_cannot_be_read_says_so_where_it_is_used(monkeypatch):
  def read(split):
    if split == "train":
      raise UserError("data set 'mnist' cannot be read: cut short")
    return split

  wait = in_background(read, ("train", "test"))
  for _ in range(2):
    with pytest.raises(UserError, match="cut short"):
      wait("train")
  assert wait("test") == "test"


def test_a_missing_data_set_names_the_command(tmp_path, monkeypatch):
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
  with pytest.raises(UserError) as error:
    load_dataset("mnist")
  message = str(error.value)
  assert "python -m train.prepare --dataset=mnist" in message
  assert str(tmp_path) in message and "\n" not in message


def test_an_unknown_data_set_lists_the_known_ones():
  with pytest.raises(UserError, match=r"digits, mnist, .*, got 'no_set'"):
    load_dataset("no_set")


def test_decoded_images_are_kept_until_the_files_change(tmp_path, monkeypatch):
  file, place, decoded = tmp_path / "train.array_record", tmp_path / "cache", []
  file.write_text("one")
  expected = Split(
    np.arange(12, dtype=np.uint8).reshape(3, 2, 2, 1), np.int32([2, 0, 1])
  )

  class Source(list):
    def __getitems__(self, rows):
      decoded.append(len(rows))
      return [self[row] for row in rows]

  builder = types.SimpleNamespace(
    info=types.SimpleNamespace(
      full_name="shapes/1.0.0",
      splits={"train": types.SimpleNamespace(filepaths=[file])},
      features={"image": types.SimpleNamespace(shape=(2, 2, 1), np_dtype=np.uint8)},
    ),
    as_data_source=lambda split: Source(
      {"image": i, "label": n} for i, n in zip(*expected, strict=True)
    ),
  )
  monkeypatch.setenv("EOI_JAX_CACHE", str(place))

  def times():
    """How often three readings decode."""
    decoded.clear()
    for _ in range(3):
      found = read_split(builder, "train")
      chex.assert_trees_all_equal(found, expected)
      chex.assert_trees_all_equal_dtypes(found, expected)
    return len(decoded)

  assert times() == 1
  (kept,) = (place / "data").iterdir()
  kept.write_bytes(kept.read_bytes()[:-40])  # by a full disk, say
  assert times() == 1
  file.write_text("another")
  assert times() == 1
  monkeypatch.setenv("EOI_JAX_CACHE", "off")
  assert times() == 3
