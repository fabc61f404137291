import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
from PIL import Image, ImageEnhance, ImageOps

from configs import default
from tests.train.small import assert_identical, small, train_until
from train.core.loop import train_and_evaluate
from train.core.plan import make_plan, start_state
from train.core.steps import epoch_order, prepare, train_chunk, zero_sums
from train.data import images as pixels
from train.data.datasets import Split
from train.data.images import Augmentation, crop_and_flip, mix
from train.models import MODELS, ViT

SIZE, PADDING = 12, 4  # at size 8 some crops equal mirrors of others


@pytest.fixture(scope="module")
def images():
  random = np.random.default_rng(0)
  return random.integers(0, 256, (512, SIZE, SIZE, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def augmented(images):
  return np.asarray(jax.jit(crop_and_flip)(jax.random.key(3), jnp.asarray(images)))


def placements(image, result):
  """All `(top, left, flip)` that make `result` of `image`, by numpy's own padding."""
  wide = np.pad(image, ((PADDING, PADDING), (PADDING, PADDING), (0, 0)), "reflect")
  return [
    (top, left, flip)
    for top in range(2 * PADDING + 1)
    for left in range(2 * PADDING + 1)
    for flip in (False, True)
    if np.array_equal(
      wide[top : top + SIZE, left : left + SIZE][:, :: -1 if flip else 1], result
    )
  ]


@pytest.mark.slow
def test_each_image_is_a_crop_of_the_reflected_image_or_its_mirror(images, augmented):
  assert augmented.dtype == np.uint8 and augmented.shape == images.shape
  found = [placements(*pair) for pair in zip(images, augmented, strict=True)]
  assert all(len(places) == 1 for places in found)
  tops, lefts, flips = np.array([places[0] for places in found]).T
  for shifts in (tops, lefts):  # 512 draws of 9 places: 56.9 +- 7.1 each
    counts = np.bincount(shifts, minlength=9)
    assert counts.min() > 25 and counts.max() < 92
  assert 200 < flips.sum() < 312  # 256 +- 11
  for one, other in ((tops, lefts), (tops, flips), (lefts, flips)):
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.2


@pytest.mark.slow
def test_a_key_gives_the_same_images_and_another_key_others(images, augmented):
  again = crop_and_flip(jax.random.key(3), jnp.asarray(images))
  np.testing.assert_array_equal(again, augmented)
  other = crop_and_flip(jax.random.key(4), jnp.asarray(images))
  assert (np.asarray(other) != augmented).any((1, 2, 3)).mean() > 0.9


def test_without_padding_only_flips_are_left(images):
  key = jax.random.key(0)
  result = np.asarray(crop_and_flip(key, jnp.asarray(images), padding=0))
  same = (result == images).all((1, 2, 3))
  mirrored = (result == images[:, :, ::-1]).all((1, 2, 3))
  assert (same ^ mirrored).all() and 200 < same.sum() < 312


def test_padding_must_be_smaller_than_the_image(images, value_error):
  with value_error("`padding`", "[0, 11]", "12 x 12", "got 12"):
    crop_and_flip(jax.random.key(0), jnp.asarray(images), padding=12)


def pil(image, method):
  return np.asarray(method(Image.fromarray(image)), np.float32)


def gaussian(image):
  """By scipy, with edges repeated."""
  options = {"mode": "nearest", "radius": (6, 6, 0)}
  return scipy.ndimage.gaussian_filter(np.float64(image), (1.7, 1.7, 0), **options)


@pytest.mark.slow
def test_the_three_of_3_augment_are_those_of_pillow_and_scipy(images):
  some = images[:4]
  floats = jnp.asarray(some, jnp.float32)
  for image, grey, solar, blurred in zip(
    some,
    np.asarray(jax.vmap(pixels.grey)(floats)),
    np.asarray(pixels.solarize(floats)),
    np.asarray(jax.vmap(pixels.blur)(floats, jnp.full(4, 1.7))),
    strict=True,
  ):
    luma = pil(image, lambda i: i.convert("L").convert("RGB"))
    np.testing.assert_allclose(grey, luma, atol=1)  # Pillow rounds
    np.testing.assert_array_equal(solar, pil(image, ImageOps.solarize))
    np.testing.assert_allclose(blurred, gaussian(image), atol=1e-3)


@pytest.mark.slow
def test_3_augment_chooses_one_of_three_for_each_image(images, monkeypatch):
  monkeypatch.setattr(pixels, "_JITTER", 0.0)
  floats, key = jnp.asarray(images, jnp.float32), jax.random.key(0)
  result = np.asarray(pixels.three_augment(key, floats))
  grey = np.isclose(result, jax.vmap(pixels.grey)(floats), atol=1e-3).all((1, 2, 3))
  solar = np.isclose(result, pixels.solarize(floats), atol=1e-3).all((1, 2, 3))
  # The noise of sharp pixels is blurred, and colours stay apart; 171 +- 11 of each.
  assert not (grey & solar).any()
  assert 115 < grey.sum() < 227 and 115 < solar.sum() < 227
  smooth = result[~grey & ~solar]
  assert 115 < len(smooth) < 227 and np.ptp(smooth, -1).max() > 20
  deviations = smooth.std((1, 2, 3))
  assert deviations.min() < 12 and deviations.max() > 60  # sigma from .1 to 2


def test_colours_change_as_in_pillow_in_any_order(images):
  enhance = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
  orders = list(itertools.permutations(range(3)))
  factors = np.random.default_rng(0).uniform(0.7, 1.3, (6, 3)).astype(np.float32)
  result = jax.vmap(pixels.jitter)(
    jnp.asarray(images[:6], jnp.float32), jnp.array(orders), jnp.asarray(factors)
  )
  for found, image, order, each in zip(result, images, orders, factors, strict=False):
    expected = Image.fromarray(image)
    for which, factor in zip(order, each, strict=True):
      expected = enhance[which](expected).enhance(factor)
    np.testing.assert_allclose(found, np.asarray(expected, np.float32), atol=3.5)


@pytest.mark.slow
def test_factors_and_places_in_the_order_are_random(monkeypatch):
  even = jnp.full((512, 2, 2, 3), 100.0)  # brightness alone changes it
  monkeypatch.setattr(pixels, "solarize", lambda images, white: images)
  factors = np.asarray(pixels.three_augment(jax.random.key(0), even)) / 100
  assert 0.7 <= factors.min() < 0.71 and 1.29 < factors.max() <= 1.301
  np.testing.assert_allclose(factors.mean(), 1, atol=0.03)  # standard error .008


@pytest.mark.slow
@pytest.mark.parametrize("method", ["linear", "cubic"])
def test_a_resized_crop_is_that_of_pillow(method, images):
  # Pillow cuts values off between its two passes: these stay away from the ends.
  coarse = 64 + images[:64, ::3, ::3].repeat(8, 1).repeat(8, 2) // 2
  crop = functools.partial(pixels.random_resized_crop, method=method)
  result = np.asarray(jax.jit(crop)(jax.random.key(2), jnp.asarray(coarse)))
  size, filters = coarse.shape[1], Image.Resampling
  resampling = {"linear": filters.BILINEAR, "cubic": filters.BICUBIC}[method]
  areas, flips = [], []
  # Boxes are told by a ramp of places that goes the same way.
  rows, columns = np.meshgrid(*2 * [np.arange(size, dtype=np.float32)], indexing="ij")
  ramp = np.broadcast_to(np.stack([rows, columns], -1), (64, size, size, 2))
  places = np.asarray(jax.jit(crop)(jax.random.key(2), jnp.asarray(ramp)))
  for image, found, place in zip(coarse, result, places, strict=True):
    half = size // 2  # inside, places rise by the part that the crop is
    steps = place[half + 1, half + 1] - place[half, half]
    high, wide = np.round(np.abs(steps) * size)
    middle = (place[half, half] + place[half - 1, half - 1]) / 2 + 0.5
    top, left = np.round(middle - np.array([high, wide]) / 2)
    box = (left, top, left + wide, top + high)
    expected = pil(image, lambda i, box=box: i.resize((size, size), resampling, box))
    flip = steps[1] < 0
    np.testing.assert_allclose(found, expected[:, :: -1 if flip else 1], atol=1.5)
    areas.append(high * wide / size**2)
    flips.append(flip)
  assert 0.07 < min(areas) < 0.15 and max(areas) > 0.85 and 16 < sum(flips) < 48


@pytest.mark.slow
@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.0, 1.0), (0.8, 1.0)])
def test_labels_are_mixed_as_pixels_are(mixup, cutmix):
  settings = Augmentation(mixup=mixup, cutmix=cutmix)
  # Image n is n everywhere, and label n: a pixel tells its share of both.
  count = 6
  values = jnp.arange(count, dtype=jnp.float32)[:, None, None, None]
  images = jnp.broadcast_to(values, (count, 16, 12, 3))
  shares, parts, cuts = jax.nn.one_hot(jnp.arange(count), count), [], 0
  keys = jax.random.split(jax.random.key(0), 100)
  mixing = jax.jit(jax.vmap(lambda key: mix(key, images, shares, settings)))
  for mixed, targets in zip(*map(np.asarray, mixing(keys)), strict=True):
    part = targets[0, 0]
    expected = part * np.eye(count) + (1 - part) * np.eye(count)[::-1]
    np.testing.assert_allclose(targets, expected, atol=1e-6)
    np.testing.assert_allclose(targets.sum(-1), 1, atol=1e-6)
    # The mean of the pixels is that of the labels; all examples are mixed alike.
    np.testing.assert_allclose(
      mixed.mean((1, 2, 3)), targets @ np.arange(count), atol=1e-4
    )
    pasted = mixed[0, :, :, 0] == count - 1
    if np.isin(mixed[0], (0, count - 1)).all():
      assert pasted.sum() == pasted.any(1).sum() * pasted.any(0).sum()  # a rectangle
      np.testing.assert_allclose(part, 1 - pasted.mean(), rtol=1e-6)
      cuts += 1
    else:
      np.testing.assert_allclose(mixed[0], mixed[0, 0, 0, 0])
    parts.append(part)
  assert (cuts == 0) if not cutmix else (cuts == 100 or 25 < cuts < 75)
  assert (cuts == 100) == (not mixup)
  assert min(parts) < 0.4 and max(parts) > 0.85


def digits_plan(augment):
  config = default.get_config()
  config.data.name, config.data.augment, config.data.limit = "digits", augment, 96
  config.model.width, config.model.depth, config.batch_size = 16, 2, 32
  config.sparsity.start, config.sparsity.distribution = "orthogonal", "dense"
  return make_plan(config)


def run(plan, *counts, data=None):
  state = start_state(plan)
  data = jax.device_put(plan.dataset.train if data is None else data)
  for count in counts:
    state, *_ = train_chunk(
      state, data, jnp.int32(count), zero_sums(), recipe=plan.recipe
    )
  return np.asarray(state.params["output"]["kernel"])


@pytest.mark.usefixtures("standard_promotion")  # of the schedule, by optax
@pytest.mark.slow
def test_steps_are_a_function_of_their_number_and_not_of_interruptions():
  plan = digits_plan("crop_flip")
  whole, split = run(plan, 3), run(plan, 1, 2)
  np.testing.assert_array_equal(whole, split)


@pytest.mark.slow
@pytest.mark.usefixtures("standard_promotion")
def test_augmentation_is_off_unless_the_config_asks_for_it():
  assert default.get_config().data.augment == "none"
  plain, augmented = digits_plan("none"), digits_plan("crop_flip")
  assert plain.recipe.augmentation.augment == "none"
  assert not np.array_equal(run(plain, 1), run(augmented, 1))
  # An image of one grey is its own crop and mirror: nothing else may change.
  grey = plain.dataset.train
  levels = np.arange(len(grey.labels), dtype=np.uint8)[:, None, None, None] % 17
  grey = Split(np.broadcast_to(levels, grey.images.shape), grey.labels)
  np.testing.assert_array_equal(run(plain, 2, data=grey), run(augmented, 2, data=grey))


@pytest.mark.slow
def test_an_epoch_of_repeats_is_the_first_part_of_a_permutation():
  plan = digits_plan("crop_flip")
  settings = plan.recipe.augmentation._replace(repeats=3)
  recipe = plan.recipe._replace(augmentation=settings)
  state = start_state(plan)
  order = np.asarray(epoch_order(state, 96, recipe=plan.recipe))
  repeated = np.asarray(epoch_order(state, 96, recipe=recipe))
  np.testing.assert_array_equal(repeated, np.repeat(order[:32], 3))


@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.slow
def test_the_copies_of_an_image_differ():
  plan = digits_plan("three_augment")
  batch = Split(*(np.repeat(a[:8], 3, axis=0) for a in plan.dataset.train))
  inputs, shares = prepare(jax.random.key(0), batch, recipe=plan.recipe)
  copies = np.asarray(inputs).reshape(8, 3, -1)
  assert (copies[:, 0] != copies[:, 1]).any(-1).all()
  np.testing.assert_array_equal(np.asarray(shares).argmax(-1), batch.labels)


EVERYTHING = {
  "num_epochs": 2,
  "batch_size": 60,
  "data.limit": 300,
  "data.augment": "three_augment",
  "data.repeats": 3,
  "data.mixup": 0.8,
  "data.cutmix": 1.0,
  "model.name": "deit3_s",
  "model.drop_path": 0.2,
  "optimizer.loss": "binary_cross_entropy",
}


@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.slow
def test_a_run_with_all_of_it_goes_on_to_the_last_bit(tmp_path, monkeypatch):
  make = functools.partial(ViT, width=16, num_heads=2, depth=2, patch_size=4)
  entry = MODELS["deit3_s"]._replace(make=make)
  monkeypatch.setitem(MODELS, "deit3_s", entry)
  config, two = small(**EVERYTHING), small(**EVERYTHING, steps_per_dispatch=2)
  whole = train_and_evaluate(config, tmp_path / "whole")
  assert whole.state.step == 10  # an epoch is as long as without repeats
  train_until(7, two, tmp_path / "parts", monkeypatch)
  parts = train_and_evaluate(two, tmp_path / "parts")
  assert_identical(parts.state, whole.state)
