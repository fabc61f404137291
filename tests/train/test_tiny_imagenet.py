import io
import zipfile

import numpy as np
import pytest

tfds = pytest.importorskip("tensorflow_datasets")
from PIL import Image  # noqa: E402

from configs import tiny_imagenet_efficientnet_b0  # noqa: E402
from train.core.console import UserError  # noqa: E402
from train.core.loop import train_and_evaluate  # noqa: E402
from train.data.load import load_dataset  # noqa: E402
from train.data.tiny_imagenet import ARCHIVE, Sizes  # noqa: E402
from train.prepare import prepare  # noqa: E402

ROOT = "tiny-imagenet-200"
WNIDS = ("n02124075", "n01443537", "n04067472")  # the archive's list is not sorted
SIZES = Sizes(num_classes=3, train=10, validation=2)


def color(label, number):
  return np.array([40 * label + 20, 10 * number + 5, 128], np.uint8)


def jpeg(rgb, mode="RGB", size=(64, 64)):
  pixels = np.broadcast_to(rgb, (size[1], size[0], 3))
  buffer = io.BytesIO()
  Image.fromarray(pixels).convert(mode).save(buffer, "JPEG", quality=95)
  return buffer.getvalue()


def official_files():
  """The files of a small archive in the layout of the official one."""
  files = {"wnids.txt": "\n".join(WNIDS) + "\n", "words.txt": "n00001740\tentity\n"}
  order, annotations = sorted(WNIDS), []
  for label, wnid in enumerate(order):
    for number in range(SIZES.train):
      mode = "L" if number == 0 else "RGB"  # some official images are grey
      name = f"train/{wnid}/images/{wnid}_{number}.JPEG"
      files[name] = jpeg(color(label, number), mode)
    files[f"train/{wnid}/{wnid}_boxes.txt"] = f"{wnid}_0.JPEG\t0\t0\t63\t63\n"
  for number in range(SIZES.num_classes * SIZES.validation):
    label = number % SIZES.num_classes
    files[f"val/images/val_{number}.JPEG"] = jpeg(color(label, number))
    annotations.append(f"val_{number}.JPEG\t{order[label]}\t0\t0\t63\t63\n")
  files["val/val_annotations.txt"] = "".join(annotations)
  files["test/images/test_0.JPEG"] = jpeg(color(0, 0))
  return files


def write(folder, files):
  with zipfile.ZipFile(folder / ARCHIVE, "w") as archive:
    for name, content in files.items():
      archive.writestr(f"{ROOT}/{name}", content)
  return str(folder)


@pytest.fixture(scope="module")
def small_set(tmp_path_factory):
  """A folder for TFDS_DATA_DIR that holds a small data set in the true format."""
  folder = tmp_path_factory.mktemp("tiny_imagenet")
  manual_dir = write(folder, official_files())
  place = prepare("tiny_imagenet", str(folder), manual_dir, sizes=SIZES)
  assert place.startswith(str(folder / "tiny_imagenet"))
  return str(folder)


def test_the_archive_is_read_back_as_splits(small_set, monkeypatch):
  monkeypatch.setenv("TFDS_DATA_DIR", small_set)
  dataset = load_dataset("tiny_imagenet", validation=0.2)
  sizes = {"train": 24, "validation": 6, "test": 6}
  seen = {}
  for name, size in sizes.items():
    split = getattr(dataset, name)
    assert split.images.shape == (size, 64, 64, 3) and split.images.dtype == np.uint8
    assert split.labels.dtype == np.int32
    assert np.bincount(split.labels).tolist() == [size // 3] * 3
    seen[name] = split
  train = [
    np.concatenate(pair) for pair in zip(seen["train"], seen["validation"], strict=True)
  ]
  grey = 0
  for images, labels in (train, seen["test"]):
    for image, label in zip(images, labels, strict=True):
      if (image[..., 0] == image[..., 2]).all():
        grey += 1
        continue
      number = round((int(image[0, 0, 1]) - 5) / 10)
      np.testing.assert_allclose(
        image, np.broadcast_to(color(label, number), image.shape), atol=4
      )
  assert grey == 3
  builder = tfds.builder("tiny_imagenet", data_dir=small_set)
  assert builder.info.features["label"].names == sorted(WNIDS)


def test_any_prepared_set_is_read_by_its_name(small_set, monkeypatch):
  monkeypatch.setenv("TFDS_DATA_DIR", small_set)
  ours = load_dataset("tiny_imagenet", validation=0.2)
  found = load_dataset("tfds:tiny_imagenet", validation=0.2)
  for split in ("train", "validation", "test"):
    for a, b in zip(getattr(ours, split), getattr(found, split), strict=True):
      np.testing.assert_array_equal(a, b)
  assert found.spec[:3] == ours.spec[:3]
  pixels = load_dataset("tfds:tiny_imagenet", validation=0.0).train.images / 255
  np.testing.assert_allclose(found.spec.mean, pixels.mean((0, 1, 2)), rtol=1e-5)
  np.testing.assert_allclose(found.spec.std, pixels.std((0, 1, 2)), rtol=1e-5)
  with pytest.raises(UserError, match=r"'tfds:kmnist' is not in .*=tfds:kmnist"):
    load_dataset("tfds:kmnist")


def broken(change):
  files = official_files()
  change(files)
  return files


@pytest.mark.parametrize(
  ("change", "words"),
  [
    (lambda f: f.pop("val/val_annotations.txt"), ("has no", "val_annotations.txt")),
    (lambda f: f.pop("val/images/val_3.JPEG"), ("has no", "val_3.JPEG")),
    (lambda f: f.update({"wnids.txt": WNIDS[0]}), ("3 classes, has 1",)),
    (
      lambda f: f.pop(f"train/{WNIDS[0]}/images/{WNIDS[0]}_4.JPEG"),
      ("10 training images", WNIDS[0], "has 9"),
    ),
    (
      lambda f: f.update(
        {f"train/{WNIDS[1]}/images/{WNIDS[1]}_4.JPEG": jpeg(color(0, 0), size=(32, 64))}
      ),
      (f"{WNIDS[1]}_4.JPEG", "64 x 64", "32 x 64"),
    ),
  ],
)
def test_a_broken_archive_is_named_in_one_line(change, words, tmp_path):
  manual_dir = write(tmp_path, broken(change))
  with pytest.raises(UserError) as error:
    prepare("tiny_imagenet", str(tmp_path / "data"), manual_dir, sizes=SIZES)
  message = str(error.value)
  assert "\n" not in message
  for word in words:
    assert word in message


def test_the_counts_are_those_of_the_official_archive(tmp_path):
  assert Sizes() == (200, 500, 50)
  with pytest.raises(UserError, match="must have 200 classes, has 3"):
    prepare("tiny_imagenet", str(tmp_path / "data"), write(tmp_path, official_files()))


@pytest.mark.parametrize("given", [True, False])
def test_without_the_archive_the_error_says_where_to_put_it(given, tmp_path):
  manual_dir = str(tmp_path) if given else None
  with pytest.raises(UserError) as error:
    prepare("tiny_imagenet", str(tmp_path), manual_dir)
  message = str(error.value)
  assert ARCHIVE in message and "--manual_dir=DIR" in message and "\n" not in message
  assert (str(tmp_path) in message) == given


def test_an_unprepared_set_names_command_and_archive(tmp_path, monkeypatch):
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
  with pytest.raises(UserError) as error:
    load_dataset("tiny_imagenet")
  message = str(error.value)
  assert "--dataset=tiny_imagenet --manual_dir=DIR" in message and ARCHIVE in message
  assert str(tmp_path) in message and "\n" not in message


@pytest.mark.usefixtures("standard_promotion")  # of the schedule, by optax
@pytest.mark.slow
def test_its_recipe_trains_on_a_set_of_that_format(small_set, tmp_path, monkeypatch):
  monkeypatch.setenv("TFDS_DATA_DIR", small_set)
  config = tiny_imagenet_efficientnet_b0.get_config("smoke")
  assert config.model.name == "efficientnet_b0"
  # A small dense network instead compiles soon, and learns a few colors soon.
  config.model.name, config.model.depth, config.model.width = "mlp", 2, 16
  config.sparsity.start, config.sparsity.distribution = "orthogonal", "dense"
  config.batch_size, config.num_epochs, config.optimizer.learning_rate = 8, 12, 0.05
  config.eval_every = config.checkpoint_every = 12
  result = train_and_evaluate(config, tmp_path)
  losses = [r["loss"] for r in result.curves.records if r["split"] == "train"]
  assert losses[-1] < 0.7 * losses[0]
