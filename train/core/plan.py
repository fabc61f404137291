"""What a training run will be: a checked config, its data and its first state."""

import functools
import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import FrozenConfigDict

from train.core import mesh
from train.core.config import refuse, validate
from train.core.console import UserError
from train.core.optimizers import MOVING, create_schedule, with_constant_rate
from train.core.start import (
  OF_DATA,
  create_network,
  create_train_state,
  pruning_of,
  sparsity_settings,
)
from train.core.state import Recipe, TrainState, map_seeds, stack_seeds
from train.data.datasets import DATASETS, STREAMED, Dataset, DatasetSpec, Split, Stream
from train.data.images import PADDING, Augmentation
from train.data.load import hold_out, load_dataset
from train.data.streams import StreamOptions


class Plan(NamedTuple):
  """A checked config with its data, ready to train."""

  config: Any
  dataset: Any  # the splits, in host memory or streamed; None where shapes are enough
  recipe: Recipe  # the static part of the compiled program


def seeds_of(config: Any) -> tuple[int, ...]:
  """Returns the seeds that a config trains at once: `seeds`, or `seed` alone."""
  return tuple(config.seeds) or (config.seed,)


def data_spec(config: Any) -> DatasetSpec:
  """Returns what is known of a config's data set; one of your own is read for it.

  Raises:
    UserError: if `data.mean` and `data.std` are not one number for each channel.
  """
  spec = DATASETS.get(config.data.name) or _dataset(config).spec
  if not len(config.data.mean):
    return spec
  if len(config.data.mean) != spec.shape[-1]:
    rule = f"hold one number for each of the {spec.shape[-1]} channels"
    refuse(config, "data.mean", rule)
  return spec._replace(mean=tuple(config.data.mean), std=tuple(config.data.std))


def check_plan(config: Any) -> Recipe:
  """Checks a config and its network, without compiling, or reading data of the table.

  Returns:
    The recipe; its numbers of steps are set by `make_plan`, which reads the data.

  Raises:
    UserError: if a field is wrong, the devices cannot share a batch equally, or a
      kernel cannot have its density.
  """
  validate(config)
  sparsity = sparsity_settings(config)
  name, parts = config.data.name, config.optimizer.accumulate
  streamed = name in STREAMED
  if streamed and config.seeds:
    rule = f"be empty for {name!r}, whose examples are read as they are used"
    refuse(config, "seeds", rule)
  if streamed and sparsity.distribution in OF_DATA:
    rule = f"not score examples of {name!r}, which are read as they are used"
    refuse(config, "sparsity.distribution", rule)
  if config.batch_size % (jax.device_count() * parts):
    times = f" times `optimizer.accumulate` = {parts}" if parts > 1 else ""
    rule = f"be a multiple of the {jax.device_count()} devices{times}"
    refuse(config, "batch_size", rule)
  spec = data_spec(config)
  height, width, _ = spec.shape
  if config.data.augment == "crop_flip" and min(height, width) <= PADDING:
    raise UserError(
      f"`data.augment` = 'crop_flip' needs images of more than {PADDING} pixels a "
      f"side, got {height} x {width}."
    )
  try:
    recipe = Recipe(
      model=create_network(config, spec),
      spec=spec,
      optimizer=FrozenConfigDict(config.optimizer),
      batch_size=config.batch_size,
      steps_per_epoch=0,
      num_steps=1,
      augmentation=_augmentation(config.data),
      streamed=streamed,
      placement=mesh.create_placement(config.placement),
      dynamic=FrozenConfigDict(config.dynamic),
    )
    if recipe.dynamic.method == "gmp":
      recipe = recipe._replace(pruning=pruning_of(sparsity, recipe))
    if not sparsity.needs_masks:
      # A schedule has to fit the length of the training, which is not known yet.
      trial = recipe._replace(optimizer=with_constant_rate(recipe.optimizer))
      jax.eval_shape(
        lambda: create_train_state(jax.random.key(0), sparsity=sparsity, recipe=trial)
      )
  except ValueError as error:
    raise UserError(str(error)) from error
  return recipe


def _augmentation(data: Any) -> Augmentation:
  return Augmentation(**{field: data[field] for field in Augmentation._fields})


def make_plan(config: Any) -> Plan:
  """Checks a config against the network and the data set, without compiling.

  Raises:
    UserError: see `check_plan`; or if the data set is missing, the batch larger than
      the training set, nobody held out, or the training over before masks change.
  """
  recipe = check_plan(config)
  dataset = _dataset(config)
  size = dataset.sizes["train"]
  examples = f"the {size} training examples of {config.data.name!r}"
  if dataset.sizes.get("validation") == 0:
    refuse(config, "data.validation", f"be 0 or hold out one of {examples} at least")
  if config.batch_size > size:
    refuse(config, "batch_size", f"be at most {examples}")
  # Pixels of a table's data set are those of its spec, and may still be read.
  if recipe.augmentation.resized and config.data.name not in DATASETS:
    train = dataset.train
    low, high = float(train.images.min()), float(train.images.max())
    if low < 0 or high > recipe.spec.white:  # they would be clipped
      raise UserError(
        f"`data.augment` = {config.data.augment!r} needs pixels in [0, "
        f"{recipe.spec.white:g}], got [{low:g}, {high:g}]."
      )
  steps_per_epoch = size // config.batch_size
  num_steps = steps_per_epoch * config.num_epochs
  create_schedule(recipe.optimizer, num_steps)  # raises where options do not fit
  if config.profile and config.profile[1] > num_steps:
    refuse(config, "profile", f"name steps in [1, {num_steps}]")
  dynamic, last = recipe.dynamic, round(recipe.dynamic.until * num_steps)
  if dynamic.method in MOVING and dynamic.every >= last:
    until = f"`dynamic.until` = {dynamic.until} of {num_steps}"
    never = f"or no mask ever changes by {dynamic.method!r}"
    refuse(config, "dynamic.every", f"be below {last} steps, {until}, {never}")
  recipe = recipe._replace(steps_per_epoch=steps_per_epoch, num_steps=num_steps)
  return Plan(config, dataset, recipe)


def plan_start(config: Any) -> Plan:
  """Returns a plan that is enough for `start_state`: data are read for scores alone.

  Raises:
    UserError: see `make_plan`.
  """
  if config.sparsity.distribution in OF_DATA:
    return make_plan(config)
  return Plan(config, None, check_plan(config))


_in_memory = functools.lru_cache(maxsize=1)(load_dataset)  # runs share it


def _dataset(config: Any) -> Dataset:
  name, validation, limit = (config.data[x] for x in ("name", "validation", "limit"))
  if name in STREAMED:
    options = StreamOptions(
      batch_size=config.batch_size,
      seed=config.seed,
      process_index=jax.process_index(),
      process_count=jax.process_count(),
      limit=limit,
      augmentation=_augmentation(config.data),
    )
    return load_dataset(name, validation=validation, stream=options)
  dataset = _in_memory(name, validation=validation)
  if not limit:
    return dataset

  @functools.cache
  def read(split):
    found, size = dataset.read(split), dataset.sizes[split]
    if name in DATASETS or limit >= size:  # in random order
      return jax.tree.map(lambda array: array[:limit], found)
    return hold_out(found, limit / size)[1]  # the same share of each class

  sizes = {name: min(size, limit) for name, size in dataset.sizes.items()}
  return Dataset(dataset.spec, sizes, read)


def start_state(plan: Plan) -> TrainState:
  """Returns the state at step 0, a function of the config alone.

  All seeds are one vmapped program, unless scores of the data choose the masks: those
  are taken seed by seed.

  Raises:
    UserError: if a kernel cannot have its density, or its mask no such start.
  """
  keys = [jax.random.key(seed) for seed in seeds_of(plan.config)]
  sparsity = sparsity_settings(plan.config)
  data = plan.dataset.train if sparsity.distribution in OF_DATA else None
  settings: dict[str, Any] = {"sparsity": sparsity, "recipe": plan.recipe}
  start = functools.partial(create_train_state, data=data, **settings)
  try:
    if len(keys) == 1:
      return start(keys[0])
    if sparsity.needs_masks:
      return stack_seeds([start(key) for key in keys])
    return map_seeds(start, jnp.stack(keys))
  except ValueError as error:
    raise UserError(str(error)) from error


def like_start(plan: Plan) -> TrainState:
  """Returns shapes and types of the state at step 0, without computing it.

  Masks from scores have the shapes of random ones, except of the starts that leave some
  kernels dense: those are computed.
  """
  sparsity = sparsity_settings(plan.config)
  if sparsity.needs_masks:
    if sparsity.start not in ("eoi", "eoi_in_mask", "base", "ai"):
      return jax.eval_shape(lambda state: state, start_state(plan))
    of_shapes = {"start": "base", "distribution": "uniform", "constant_fan_in": False}
    sparsity = sparsity._replace(**of_shapes)
  start = functools.partial(create_train_state, sparsity=sparsity, recipe=plan.recipe)
  keys = jnp.stack([jax.random.key(seed) for seed in seeds_of(plan.config)])
  if len(keys) == 1:
    return jax.eval_shape(start, keys[0])
  return jax.eval_shape(functools.partial(map_seeds, start), keys)


class Feed:
  """The examples of a plan, for chunks and evaluations.

  Splits in memory are put on every device at once, as uint8; those for evaluation get
  the same length, so that they share a program. Of a stream the host brings the batches
  of each chunk; every process brings its own part.

  Attributes:
    splits: what may be evaluated: validation, if examples are held out, and test.
  """

  def __init__(self, plan: Plan, step: int | None):
    """Opens the splits; training begins with the batch of `step`, if there is any."""
    self._dataset, self._placement = plan.dataset, plan.recipe.placement
    self.splits = [x for x in ("validation", "test") if x in plan.dataset.sizes]
    self._on_devices: dict[str, Any] = {}
    self._length = plan.config.steps_per_dispatch
    self._batches: Iterator[Split] | None = None
    if step is not None and plan.recipe.streamed:
      self._batches = plan.dataset.train.batches(step)
    local = plan.config.batch_size // jax.process_count()
    self._size = local if plan.recipe.streamed else plan.dataset.sizes["train"]

  def next(self, count: int) -> Split:
    """Returns what `train_chunk` takes as `data` for the next `count` steps."""
    if self._batches is None:
      return self._train
    return self._join(list(itertools.islice(self._batches, count)))

  def nothing(self) -> Split:
    """Returns black images of the same shapes, for a chunk of no step."""
    if self._batches is None:
      return mesh.put_whole(self._black, self._placement)
    return self._join([])

  @functools.cached_property
  def _train(self) -> Split:
    return mesh.put_whole(self._dataset.train, self._placement)

  @property
  def _black(self) -> Split:
    spec, size = self._dataset.spec, self._size
    return Split(np.zeros((size, *spec.shape), spec.dtype), np.zeros(size, np.int32))

  def _join(self, batches: list[Split]) -> Split:
    """Stacks batches along a new axis, always of the length of a whole chunk."""
    if missing := self._length - len(batches):
      batches = batches + [self._black] * missing
    stacked = Split(*(np.stack(parts) for parts in zip(*batches, strict=True)))
    return mesh.put_parts(stacked, self._placement, axis=1)

  def evaluated(self, name: str) -> Iterator[tuple[Split, jax.Array]]:
    """Yields the split `name`, whole or in batches, and how many examples it has."""
    split = getattr(self._dataset, name)
    if isinstance(split, Stream):
      for batch in split.batches(0):
        size = np.int32(len(batch.labels) * jax.process_count())
        placed = mesh.put_parts(batch, self._placement, axis=0)
        yield placed, mesh.put_whole(size, self._placement)
      return
    if name not in self._on_devices:
      longest = max(self._dataset.sizes[other] for other in self.splits)
      rows = np.minimum(np.arange(longest), len(split.labels) - 1)
      padded = Split(*(array[rows] for array in split))
      sized = padded, np.int32(len(split.labels))
      self._on_devices[name] = mesh.put_whole(sized, self._placement)
    yield self._on_devices[name]
