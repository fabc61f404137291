"""How examples get to the devices: once for all, or batch by batch from a stream."""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from train import mesh
from train.datasets import Split, Stream
from train.plan import Plan
from train.state import Recipe, TrainState
from train.steps import Sums, evaluate

_EVALUATED = ("validation", "test")


class Feed:
  """The examples of a plan, for chunks and evaluations.

  Splits in memory are put on every device at once, as uint8; those for evaluation get
  the same length, so that they share a program. Of a stream the host brings the batches
  of each chunk; every process brings its own part.
  """

  def __init__(self, plan: Plan, step: int):
    """Opens the splits; training begins with the batch of `step`."""
    self._placement = plan.recipe.placement
    self._evaluated = {
      name: split
      for name in _EVALUATED
      if (split := getattr(plan.dataset, name)) is not None
    }
    self._on_devices: dict[str, Any] = {}
    self._length = plan.config.steps_per_dispatch
    self._batches: Iterator[Split] | None = None
    train = plan.dataset.train
    if isinstance(train, Stream):
      self._batches = train.batches(step)
      shape = (plan.config.batch_size // jax.process_count(), *plan.recipe.spec.shape)
      self._empty = Split(np.zeros(shape, np.uint8), np.zeros(shape[0], np.int32))
    else:
      self._train = mesh.put_whole(train, self._placement)

  def next(self, count: int) -> Split:
    """Returns what `train_chunk` takes as `data` for the next `count` steps."""
    if self._batches is None:
      return self._train
    return self._join([next(self._batches) for _ in range(count)])

  def nothing(self) -> Split:
    """Returns data of the same shapes, for a chunk of no step."""
    return self._train if self._batches is None else self._join([])

  def _join(self, batches: list[Split]) -> Split:
    """Stacks batches along a new axis, always of the length of a whole chunk."""
    batches = batches + [self._empty] * (self._length - len(batches))
    stacked = Split(*(np.stack(parts) for parts in zip(*batches, strict=True)))
    return mesh.put_parts(stacked, self._placement, axis=1)

  def evaluated(self, name: str) -> Iterator[tuple[Split, jax.Array]]:
    """Yields the split `name`, whole or in batches, and how many examples it has."""
    split = self._evaluated[name]
    if isinstance(split, Stream):
      for batch in split.batches(0):
        size = np.int32(len(batch.labels) * jax.process_count())
        placed = mesh.put_parts(batch, self._placement, axis=0)
        yield placed, mesh.put_whole(size, self._placement)
      return
    if name not in self._on_devices:
      longest = max(len(other.labels) for other in self._evaluated.values())
      sized = _pad(split, longest), np.int32(len(split.labels))
      self._on_devices[name] = mesh.put_whole(sized, self._placement)
    yield self._on_devices[name]


def _pad(split: Split, length: int) -> Split:
  """Repeats the last example of a split up to a length."""
  rows = np.minimum(np.arange(length), len(split.labels) - 1)
  return Split(*(array[rows] for array in split))


def evaluate_split(feed: Feed, state: TrainState, name: str, *, recipe: Recipe) -> Sums:
  """Sums loss and hits over the split `name` ("validation" or "test")."""
  parts = [
    evaluate(state, data, size, recipe=recipe) for data, size in feed.evaluated(name)
  ]
  return jax.tree.map(lambda *values: sum(values), *parts)
