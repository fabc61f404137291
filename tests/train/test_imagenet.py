"""ImageNet from small archives in the official format, to batches."""

import collections
import io
import itertools
import math
import tarfile

import numpy as np
import pytest

pytest.importorskip("grain", reason="ImageNet needs grain: pip install '.[imagenet]'")
tfds = pytest.importorskip("tensorflow_datasets")
from PIL import Image  # noqa: E402
from tensorflow_datasets.datasets.imagenet2012 import (  # noqa: E402
  imagenet2012_dataset_builder as official,
)

from configs import imagenet_deit3_s  # noqa: E402
from train.core.console import UserError  # noqa: E402
from train.core.loop import train_and_evaluate  # noqa: E402
from train.core.plan import check_plan  # noqa: E402
from train.data import imagenet  # noqa: E402
from train.data.imagenet import (  # noqa: E402
  TRAIN,
  VALIDATION,
  Sizes,
  centre,
  centre_box,
  check_archives,
  random_box,
  random_crop,
  validation_ids,
  validation_name,
  wordnet_ids,
)
from train.data.images import Augmentation  # noqa: E402
from train.data.load import load_dataset  # noqa: E402
from train.data.streams import StreamOptions  # noqa: E402
from train.imagenet_sample import add, tar, write_archives  # noqa: E402
from train.prepare import prepare  # noqa: E402

NUM_TRAIN, NUM_TEST = 7, 5  # of each class, of all
CLASSES = sorted(set(validation_ids()[:NUM_TEST]))


def color(wnid, number=0):
  """A color that tells the class, and the image by its blue."""
  label = CLASSES.index(wnid)
  return np.array([50 * label + 20, 250 - 50 * label, 30 * number + 10], np.uint8)


def encode(rgb, size=(40, 30), mode="RGB", form="JPEG"):
  pixels = np.broadcast_to(rgb, (size[1], size[0], 3))
  buffer = io.BytesIO()
  Image.fromarray(pixels).convert(mode).save(buffer, form, quality=95)
  return buffer.getvalue()


def archives():
  """Names of both archives to names of files to content."""
  train = {
    wnid: {
      f"{wnid}_{number}.JPEG": encode(color(wnid, number))
      for number in range(NUM_TRAIN)
    }
    for wnid in CLASSES
  }
  truth = validation_ids()[:NUM_TEST]
  test = {
    validation_name(number): encode(color(wnid), (30, 50))
    for number, wnid in enumerate(truth, 1)
  }
  return {TRAIN: train, VALIDATION: test}


def write(folder, files):
  folder.mkdir(parents=True, exist_ok=True)
  with tarfile.open(folder / TRAIN, "w") as archive:
    for wnid, images in files[TRAIN].items():
      add(archive, f"{wnid}.tar", tar(images))
  with tarfile.open(folder / VALIDATION, "w") as archive:
    for name, image in files[VALIDATION].items():
      add(archive, name, image)
  return str(folder)


@pytest.fixture(scope="module")
def small_set(tmp_path_factory):
  """A folder for TFDS_DATA_DIR that holds a small data set in the true format."""
  folder = tmp_path_factory.mktemp("imagenet")
  manual_dir = write(folder / "manual", archives())
  prepare("imagenet", str(folder), manual_dir, partial=True)
  return str(folder)


@pytest.fixture
def open_set(small_set, monkeypatch):
  monkeypatch.setenv("TFDS_DATA_DIR", small_set)

  def open_(batch_size=8, validation=0.2, **options):
    options = {"augmentation": Augmentation("random_resized_crop"), **options}
    stream = StreamOptions(batch_size, **options)
    return load_dataset("imagenet", validation=validation, stream=stream)

  return open_


def batches(stream, begin=0, count=None):
  return list(itertools.islice(stream.batches(begin), count))


def identities(batch):
  """Label and number of each image, told from its color; its label must be right."""
  found = []
  for image, label in zip(batch.images, batch.labels.tolist(), strict=True):
    if label < 0:
      assert (image == 0).all()
      continue
    blue = float(image[..., 2].mean())
    number = round((blue - 10) / 30)
    expected = np.broadcast_to(color(wordnet_ids()[label], number), image.shape)
    np.testing.assert_allclose(image.astype(int), expected.astype(int), atol=6)
    found.append((label, number))
  return found


def every_identity(many):
  return list(itertools.chain.from_iterable(map(identities, many)))


@pytest.mark.slow
def test_every_image_is_read_once_with_its_label(open_set):
  dataset = open_set(batch_size=28)
  sizes = (dataset.train.size, dataset.validation.size, dataset.test.size)
  assert sizes == (28, 7, NUM_TEST)
  (train,) = batches(dataset.train, 0, 1)
  assert train.images.shape == (28, 224, 224, 3) and train.images.dtype == np.uint8
  assert train.labels.dtype == np.int32
  (held_out,), (test,) = batches(dataset.validation), batches(dataset.test)
  assert test.labels.tolist().count(-1) == 28 - NUM_TEST
  every = identities(train) + identities(held_out)
  expected = [
    (wordnet_ids().index(wnid), number)
    for wnid in CLASSES
    for number in range(NUM_TRAIN)
  ]
  assert sorted(every) == expected
  truth = [(wordnet_ids().index(wnid), 0) for wnid in validation_ids()[:NUM_TEST]]
  assert sorted(identities(test)) == sorted(truth)


def test_the_held_out_images_do_not_depend_on_the_seed(open_set):
  first, second = (open_set(seed=seed) for seed in (0, 1))
  for mine, other in zip(
    batches(first.validation), batches(second.validation), strict=True
  ):
    assert (mine.images == other.images).all() and (mine.labels == other.labels).all()
  assert open_set(validation=0.0).validation is None
  assert open_set(validation=0.0).train.size == 35


@pytest.mark.slow
def test_batches_are_a_function_of_seed_and_step(open_set):
  whole = batches(open_set(seed=3).train, 0, 5)
  for begin in (1, 4):  # three batches an epoch: the second, and one of the next epoch
    again = batches(open_set(seed=3).train, begin, 5 - begin)
    for mine, other in zip(again, whole[begin:], strict=True):
      assert (mine.images == other.images).all()
      assert (mine.labels == other.labels).all()
  another = batches(open_set(seed=4).train, 0, 1)[0]
  assert identities(another) != identities(whole[0])
  epochs = [every_identity(whole[:3]), every_identity(whole[3:])]
  assert len(set(epochs[0])) == 24  # no image twice in an epoch
  assert epochs[0][: len(epochs[1])] != epochs[1]  # another order


@pytest.mark.slow
def test_processes_share_every_batch(open_set):
  whole = batches(open_set(seed=5).train, 0, 4)
  parts = [
    batches(open_set(seed=5, process_index=n, process_count=2).train, 0, 4)
    for n in range(2)
  ]
  for batch, *mine in zip(whole, *parts, strict=True):
    assert (np.concatenate([b.images for b in mine]) == batch.images).all()
    assert (np.concatenate([b.labels for b in mine]) == batch.labels).all()
  tests = [
    batches(open_set(4, process_index=n, process_count=2).test) for n in range(2)
  ]
  assert [len(part) for part in tests] == [2, 2]
  seen = every_identity(itertools.chain(*tests))
  assert len(set(seen)) == len(seen) == NUM_TEST


@pytest.mark.slow
def test_copies_of_an_image_are_neighbours_and_differ(open_set, monkeypatch):
  def crop(example, rng, cubic):  # whose random number is its pixels
    assert cubic
    pixels = np.full((1, 1, 3), rng.integers(256), np.uint8)
    return pixels, np.int32(example["label"])

  monkeypatch.setattr(imagenet, "random_crop", crop)
  settings = Augmentation("three_augment", repeats=3)
  options = {"batch_size": 7, "seed": 1, "augmentation": settings}
  train = open_set(**options).train
  whole = batches(train, 0, 8)  # 28 images: four batches an epoch
  single = open_set(**options | {"augmentation": settings._replace(repeats=1)}).train
  for epoch, seen in ((whole[:4], 0), (whole[4:], 4)):
    labels = np.concatenate([batch.labels for batch in epoch])
    order = np.concatenate([batch.labels for batch in batches(single, seen, 4)])
    np.testing.assert_array_equal(labels, np.repeat(order, 3)[:28])
  draws = np.concatenate([batch.images[:, 0, 0, 0] for batch in whole])
  assert len(set(draws.tolist())) > 40  # 56 draws of 256 values: 50 +- 2 of them
  again = batches(train, 3, 2) + [
    batch
    for n in range(7)
    for batch in batches(
      open_set(**options, process_index=n, process_count=7).train, 5, 1
    )
  ]
  for mine, other in zip(again[:2], whole[3:5], strict=True):
    assert (mine.images == other.images).all()
  assert [batch.images[0, 0, 0, 0] for batch in again[2:]] == draws[35:42].tolist()


@pytest.mark.slow
def test_without_random_crops_a_stream_gives_centres(open_set):
  (batch,) = batches(open_set(batch_size=28, augmentation=Augmentation()).train, 0, 1)
  identities(batch)
  assert (batch.images.std((1, 2)) < 2).all()


def test_a_limit_keeps_the_first_examples(open_set):
  dataset = open_set(batch_size=4, limit=4)
  sizes = (dataset.train.size, dataset.validation.size, dataset.test.size)
  assert sizes == (4, 4, 4)
  first, second = (identities(b) for b in batches(dataset.train, 0, 2))
  assert sorted(first) == sorted(second)


def test_crops_have_the_areas_and_ratios_of_the_recipe():
  rng, width, height = np.random.default_rng(0), 500, 375
  boxes = np.array([random_box(rng, width, height) for _ in range(4000)])
  left, top, right, bottom = boxes.T
  assert left.min() >= 0 and top.min() >= 0
  assert right.max() <= width and bottom.max() <= height
  area = (right - left) * (bottom - top) / (width * height)
  ratio = (right - left) / (bottom - top)
  assert 0.078 < area.min() < 0.1 and area.max() > 0.95
  assert 0.74 < ratio.min() < 0.76 and 1.32 < ratio.max() < 1.35
  small = area < 0.4  # always inside of the image: no draw is repeated
  # Uniform on [.08, .4]; standard error of the mean .0021.
  np.testing.assert_allclose(area[small].mean(), 0.24, atol=0.008)
  # Symmetric in the logarithm; standard error .0037.
  np.testing.assert_allclose(np.log(ratio[small]).mean(), 0, atol=0.015)
  room = left[small] / (width - (right - left)[small])
  np.testing.assert_allclose(room.mean(), 0.5, atol=0.03)  # standard error .0065


@pytest.mark.parametrize("size", [(2000, 10), (10, 2000)])
def test_an_image_too_narrow_for_a_crop_is_cut_in_the_middle(size):
  left, top, right, bottom = random_box(np.random.default_rng(0), *size)
  assert math.isclose(max(right - left, bottom - top), 10 * 4 / 3)
  assert min(right - left, bottom - top) == 10
  assert math.isclose(left + right, size[0]) and math.isclose(top + bottom, size[1])


def test_the_centre_is_224_of_256_pixels():
  assert centre_box(256, 512) == (16, 144, 240, 368)
  ramp = np.zeros((256, 300, 3), np.uint8)
  ramp[..., 0] = np.arange(256)[:, None]
  ramp[..., 1] = np.minimum(np.arange(300), 255)[None]
  image, label = centre({"image": png(ramp), "label": 3})
  assert label == 3 and label.dtype == np.int32
  assert (image == ramp[16:240, 38:262]).all()  # nothing to resize


def png(pixels):
  buffer = io.BytesIO()
  Image.fromarray(pixels).save(buffer, "PNG")
  return buffer.getvalue()


def test_half_of_the_training_images_are_mirrored():
  ramp = np.zeros((64, 64, 3), np.uint8)
  ramp[..., 0] = 4 * np.arange(64)[None]
  example, rng = {"image": png(ramp), "label": 0}, np.random.default_rng(0)
  signs = collections.Counter()
  for _ in range(200):
    image, _ = random_crop(example, rng)
    assert image.shape == (224, 224, 3) and image.dtype == np.uint8
    signs[int(image[0, -1, 0]) > int(image[0, 0, 0])] += 1
  assert 70 < signs[True] < 130  # 100 +- 7


def test_odd_files_become_rgb(tmp_path, monkeypatch):
  files = archives()
  wnids = ("n01739381", "n02105855")  # of a CMYK and the PNG image of the official set
  rgb = np.array([200, 60, 30], np.uint8)
  odd = {wnids[0]: f"{wnids[0]}_1309.JPEG", wnids[1]: f"{wnids[1]}_2933.JPEG"}
  assert odd[wnids[0]] in official.CMYK_IMAGES and odd[wnids[1]] in official.PNG_IMAGES
  files[TRAIN] = {
    wnids[0]: {odd[wnids[0]]: encode(rgb, mode="CMYK")},
    wnids[1]: {odd[wnids[1]]: encode(rgb, form="PNG")},
    CLASSES[0]: {f"{CLASSES[0]}_0.JPEG": encode(rgb, mode="L")},
  }
  manual_dir = write(tmp_path / "manual", files)
  prepare("imagenet", str(tmp_path), manual_dir, partial=True)
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
  dataset = load_dataset("imagenet", validation=0.0, stream=StreamOptions(3))
  (batch,) = batches(dataset.train, 0, 1)
  for image, label in zip(batch.images, batch.labels.tolist(), strict=True):
    grey = wordnet_ids()[label] == CLASSES[0] and CLASSES[0] not in wnids
    if not grey:
      np.testing.assert_allclose(image.mean((0, 1)), rgb, atol=8)
    else:
      assert np.ptp(image.mean((0, 1))) == 0


@pytest.mark.parametrize(
  ("change", "words"),
  [
    (lambda f: f[TRAIN].pop(CLASSES[0]), (TRAIN, "5 classes, has 4")),
    (lambda f: f[TRAIN][CLASSES[0]].popitem(), (TRAIN, "35 images, has 34")),
    (lambda f: f[VALIDATION].popitem(), (VALIDATION, "5 images, has 4")),
    (
      lambda f: f[VALIDATION].update(
        {validation_name(9): f[VALIDATION].pop(validation_name(2))}
      ),
      (f"must have {validation_name(2)}", f"has {validation_name(3)}"),
    ),
    (lambda f: f[TRAIN].update(n00000001={}), (TRAIN, "has n00000001.tar")),
    (
      lambda f: f[TRAIN][CLASSES[0]].update({f"{CLASSES[1]}_9.JPEG": b""}),
      (f"{CLASSES[0]}.tar must hold", f"has {CLASSES[1]}_9.JPEG"),
    ),
  ],
)
def test_broken_archives_are_named_in_one_line(change, words, tmp_path):
  files = archives()
  change(files)
  folder = write(tmp_path, files)
  with pytest.raises(UserError) as error:
    check_archives(folder, Sizes(len(CLASSES), NUM_TRAIN * len(CLASSES), NUM_TEST))
  message = str(error.value)
  assert "\n" not in message
  for word in words:
    assert word in message


def test_the_counts_are_those_of_the_official_archives(tmp_path):
  assert Sizes() == (1000, 1281167, 50000)
  assert len(set(wordnet_ids())) == 1000 and len(validation_ids()) == 50000
  manual_dir = write(tmp_path / "manual", archives())
  with pytest.raises(UserError, match="must have 1000 classes, has 5"):
    prepare("imagenet", str(tmp_path), manual_dir)
  assert not (tmp_path / "imagenet2012").exists()
  (tmp_path / "manual" / VALIDATION).write_bytes(b"no tar file" * 100)
  with pytest.raises(UserError, match="no whole tar file"):
    prepare("imagenet", str(tmp_path), manual_dir, partial=True)


def test_a_missing_set_names_command_and_archives(tmp_path, monkeypatch):
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
  with pytest.raises(UserError) as unprepared:
    load_dataset("imagenet", stream=StreamOptions(4))
  with pytest.raises(UserError) as unbrought:
    prepare("imagenet", str(tmp_path), str(tmp_path))
  for error in (unprepared, unbrought):
    message = str(error.value)
    assert "--dataset=imagenet --manual_dir=DIR" in message and "\n" not in message
    assert TRAIN in message and VALIDATION in message and str(tmp_path) in message
  with pytest.raises(UserError, match="--partial is for imagenet, got mnist"):
    prepare("mnist", str(tmp_path), partial=True)


def test_streamed_data_sets_and_no_others_take_options():
  with pytest.raises(ValueError, match="`stream` is needed for data set 'imagenet'"):
    load_dataset("imagenet")
  with pytest.raises(ValueError, match="`stream` must be None for data set 'digits'"):
    load_dataset("digits", stream=StreamOptions(4))


@pytest.mark.usefixtures("standard_promotion")  # of the schedule, by optax
@pytest.mark.slow
def test_a_recipe_trains_on_the_sample_set(tmp_path, monkeypatch):
  classes = write_archives(tmp_path / "manual", train=2)
  assert len(classes) == 16
  manual_dir = str(tmp_path / "manual")
  prepare("imagenet", str(tmp_path), manual_dir, partial=True)
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
  config = imagenet_deit3_s.get_config("smoke")
  # A small dense network instead compiles soon.
  config.model.name, config.model.depth, config.model.width = "mlp", 2, 8
  config.model.drop_path = 0.0
  config.sparsity.start, config.sparsity.distribution = "orthogonal", "dense"
  config.optimizer.learning_rate, config.num_epochs = 0.02, 6
  result = train_and_evaluate(config, tmp_path / "run")
  losses = [r["loss"] for r in result.curves.records if r["split"] == "train"]
  assert losses[-1] < losses[0]
  assert result.summary["chance"] == 1 / 1000


@pytest.mark.usefixtures("standard_promotion")  # of LAMB, by optax
@pytest.mark.parametrize("distribution", ["snip", "grasp"])
def test_a_stream_has_no_scores(distribution):
  config = imagenet_deit3_s.get_config("smoke")
  config.sparsity.distribution = distribution
  with pytest.raises(UserError, match=f"must not score .* got '{distribution}'"):
    check_plan(config)
