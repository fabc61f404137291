import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import default
from train.core.plan import make_plan, start_state
from train.core.steps import train_chunk
from train.data.datasets import Split
from train.data.images import crop_and_flip

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
    state, *_ = train_chunk(state, data, jnp.int32(count), recipe=plan.recipe)
  return np.asarray(state.params["output"]["kernel"])


@pytest.mark.usefixtures("standard_promotion")  # of the schedule, by optax
@pytest.mark.slow
def test_steps_are_a_function_of_their_number_and_not_of_interruptions():
  plan = digits_plan("crop_flip")
  whole, split = run(plan, 3), run(plan, 1, 2)
  np.testing.assert_array_equal(whole, split)


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
