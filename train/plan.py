"""What a training will be: a checked config, its data, and its state at step 0."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from train import config as config_lib
from train import mesh
from train.data import load_dataset
from train.datasets import DATASETS, STREAMED, Dataset, Stream
from train.dynamic import dynamic_settings
from train.errors import UserError
from train.gains import gains
from train.models import create_model
from train.schemes import create_masks
from train.seeds import map_seeds, stack_seeds
from train.state import (
  Recipe,
  TrainState,
  create_train_state,
  optimizer_settings,
  sparsity_settings,
)
from train.streams import StreamOptions


class Plan(NamedTuple):
  """A checked config with its data, ready to train.

  Attributes:
    config: the config.
    dataset: the splits, in host memory or streamed.
    recipe: the static part of the compiled program.
  """

  config: Any
  dataset: Dataset
  recipe: Recipe


def seeds_of(config: Any) -> tuple[int, ...]:
  """Returns the seeds that a config trains at once: `seeds`, or `seed` alone."""
  return tuple(config.seeds) or (config.seed,)


def check_plan(config: Any) -> Recipe:
  """Checks a config and its network, without reading data or compiling.

  Returns:
    The recipe, but for the number of steps, which only the data tell.

  Raises:
    UserError: if a field is wrong, the devices cannot share a batch, or a kernel
      cannot have its density.
  """
  config_lib.validate(config)
  spec = DATASETS[config.data.name]
  sparsity = sparsity_settings(config)
  streamed = config.data.name in STREAMED
  if streamed and config.seeds:
    raise UserError(
      f"`seeds` must be empty for {config.data.name!r}, whose examples are read as "
      f"they are used, got {tuple(config.seeds)}."
    )
  if streamed and sparsity.distribution in ("snip", "grasp"):
    raise UserError(
      f"`sparsity.distribution` must not score examples of {config.data.name!r}, which "
      f"are read as they are used, got {sparsity.distribution!r}."
    )
  if config.batch_size % jax.device_count():
    raise UserError(
      f"`batch_size` must be a multiple of the {jax.device_count()} devices, got "
      f"{config.batch_size}."
    )
  try:
    recipe = Recipe(
      model=create_model(config, spec.num_classes, bias_std=gains(config).bias_std),
      spec=spec,
      optimizer=optimizer_settings(config),
      batch_size=config.batch_size,
      steps_per_epoch=0,
      num_steps=1,
      augment=config.data.augment,
      streamed=streamed,
      placement=mesh.create_placement(config.placement),
      dynamic=dynamic_settings(config),
    )
    if not sparsity.needs_masks:
      jax.eval_shape(
        lambda: create_train_state(jax.random.key(0), sparsity=sparsity, recipe=recipe)
      )
  except ValueError as error:
    raise UserError(str(error)) from error
  return recipe


def make_plan(config: Any) -> Plan:
  """Checks a config against the network and the data set, without compiling.

  Raises:
    UserError: see `check_plan`; or if the data set is missing, or the batch larger
      than the training set.
  """
  recipe = check_plan(config)
  dataset = _dataset(config)
  size = _size(dataset.train)
  if config.batch_size > size:
    raise UserError(
      f"`batch_size` must be at most the {size} training examples of "
      f"{config.data.name!r}, got {config.batch_size}."
    )
  steps_per_epoch = size // config.batch_size
  num_steps = steps_per_epoch * config.num_epochs
  recipe = recipe._replace(steps_per_epoch=steps_per_epoch, num_steps=num_steps)
  return Plan(config, dataset, recipe)


_in_memory = functools.lru_cache(maxsize=1)(load_dataset)  # runs share it


def _dataset(config: Any) -> Dataset:
  if config.data.name in STREAMED:
    options = StreamOptions(
      batch_size=config.batch_size,
      seed=config.seed,
      process_index=jax.process_index(),
      process_count=jax.process_count(),
      limit=config.data.limit,
    )
    name, held_out = config.data.name, config.data.validation
    return load_dataset(name, validation=held_out, stream=options)
  dataset = _in_memory(config.data.name, validation=config.data.validation)
  if not config.data.limit:
    return dataset
  return map_splits(lambda array: array[: config.data.limit], dataset)


def map_splits(function: Any, dataset: Dataset) -> Dataset:
  """Applies a function to the images and the labels of every split in memory."""
  splits = (dataset.train, dataset.validation, dataset.test)
  return Dataset(dataset.spec, *jax.tree.map(function, splits))


def _size(split: Any) -> int:
  return split.size if isinstance(split, Stream) else len(split.labels)


def start_state(plan: Plan) -> TrainState:
  """Returns the state at step 0, a function of the config alone.

  All seeds are one vmapped program, unless scores of the data choose the masks: those
  are taken seed by seed.

  Raises:
    UserError: if a kernel cannot have its density, or its mask no such start.
  """
  keys = [jax.random.key(seed) for seed in seeds_of(plan.config)]
  sparsity = sparsity_settings(plan.config)
  settings: dict[str, Any] = {"sparsity": sparsity, "recipe": plan.recipe}

  def start(key):
    masks = None
    if sparsity.needs_masks:
      masks = create_masks(key, data=plan.dataset.train, **settings)
    return create_train_state(key, masks=masks, **settings)

  try:
    if len(keys) == 1:
      return start(keys[0])
    if sparsity.needs_masks:
      return stack_seeds([start(key) for key in keys])
    return map_seeds(start, jnp.stack(keys))
  except ValueError as error:
    raise UserError(str(error)) from error
