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


class Feed:
  """The examples of a plan, for chunks and evaluations.

  Splits in memory are put on every device at once, as uint8. Of a stream the host
  brings the batches of each chunk; every process brings its own part.
  """

  def __init__(self, plan: Plan, step: int):
    """Opens the splits; training begins with the batch of `step`."""
    self._placement = plan.recipe.placement
    self._splits: dict[str, Any] = {
      name: self._open(split)
      for name in ("train", "validation", "test")
      if (split := getattr(plan.dataset, name)) is not None
    }
    self._length = plan.config.steps_per_dispatch
    self._batches: Iterator[Split] | None = None
    if isinstance(self._splits["train"], Stream):
      self._batches = self._splits["train"].batches(step)
      shape = (plan.config.batch_size // jax.process_count(), *plan.recipe.spec.shape)
      self._empty = Split(np.zeros(shape, np.uint8), np.zeros(shape[0], np.int32))

  def _open(self, split: Split | Stream) -> Split | Stream:
    if isinstance(split, Stream):
      return split
    return mesh.put_whole(split, self._placement)

  def next(self, count: int) -> Split:
    """Returns what `train_chunk` takes as `data` for the next `count` steps."""
    if self._batches is None:
      return self._splits["train"]
    return self._join([next(self._batches) for _ in range(count)])

  def nothing(self) -> Split:
    """Returns data of the same shapes, for a chunk of no step."""
    if self._batches is None:
      return self._splits["train"]
    return self._join([])

  def _join(self, batches: list[Split]) -> Split:
    """Stacks batches along a new axis, always of the length of a whole chunk."""
    batches = batches + [self._empty] * (self._length - len(batches))
    stacked = Split(*(np.stack(parts) for parts in zip(*batches, strict=True)))
    return mesh.put_parts(stacked, self._placement, axis=1)

  def split(self, name: str) -> Iterator[Split]:
    """Yields a split on the devices: whole, or in batches."""
    split: Any = self._splits[name]
    if not isinstance(split, Stream):
      yield split
      return
    for batch in split.batches(0):
      yield mesh.put_parts(batch, self._placement, axis=0)


def evaluate_split(feed: Feed, state: TrainState, name: str, *, recipe: Recipe) -> Sums:
  """Sums loss and hits over the split `name` ("train", "validation" or "test")."""
  parts = [evaluate(state, data, recipe=recipe) for data in feed.split(name)]
  return jax.tree.map(lambda *values: sum(values), *parts)
