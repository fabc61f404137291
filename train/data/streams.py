"""Streams of batches: order, parts of processes, and reading ahead with Grain.

A stream is a pure function of its options and the number of a batch: nothing needs to
be saved to go on at any step, and the number of processes changes no batch.
"""

import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from train.core.console import UserError
from train.data.datasets import Split, Stream
from train.data.images import Augmentation

PADDING_LABEL = -1  # of what fills the last batch of an evaluation
_THREADS = 16  # they decode images, and wait for the disk
_READ_AHEAD = 512  # examples


class StreamOptions(NamedTuple):
  """What the batches are a function of, besides the data."""

  batch_size: int  # examples of a batch, over all processes
  seed: int = 0  # of order and augmentation, in `[0, 2**32)`
  process_index: int = 0  # which part of each batch, counted from 0: a contiguous one
  process_count: int = 1  # how many parts; it divides `batch_size`
  limit: int = 0  # examples of each split to keep; 0 is all
  augmentation: Augmentation = Augmentation()  # of training images, on the host


def training_stream(examples: Any, size: int, options: StreamOptions) -> Stream:
  """Returns an endless stream; an epoch is all whole batches of a permutation.

  `examples[size * epoch + n]` is the n-th example in the order of that epoch: an image
  and a label.

  Raises:
    UserError: if the split has no whole batch, or processes cannot share one.
  """
  if options.batch_size > size:
    raise UserError(
      f"`batch_size` must be at most the {size} training examples, got "
      f"{options.batch_size}."
    )
  rest = size % options.batch_size

  def example(place):
    return examples[place + place // (size - rest) * rest]

  return _stream(size, example, sys.maxsize // options.batch_size, options)


def evaluation_stream(
  examples: Any, size: int, shape: tuple[int, ...], options: StreamOptions
) -> Stream:
  """Returns a stream that yields each example once, in order.

  `examples[n]` is an image, of the given shape, and a label, `n` in `[0, size)`.
  """
  padding = np.zeros(shape, np.uint8), np.int32(PADDING_LABEL)

  def example(place):
    return examples[place] if place < size else padding

  return _stream(size, example, -(-size // options.batch_size), options)


def _stream(
  size: int, example: Callable[[int], Any], num_batches: int, options: StreamOptions
) -> Stream:
  """Returns a stream that reads the rows of this process ahead.

  `example(n)` is the image and the label in row n of all the whole batches.
  """
  local_size, rest = divmod(options.batch_size, options.process_count)
  if rest:
    raise UserError(
      f"`batch_size` must be a multiple of the {options.process_count} processes, got "
      f"{options.batch_size}."
    )

  def local(place):
    batch, row = divmod(int(place), local_size)
    rows_before = batch * options.process_count + options.process_index
    return example(rows_before * local_size + row)

  def batches(begin: int = 0) -> Iterator[Split]:
    import grain

    places = grain.MapDataset.range(begin * local_size, num_batches * local_size)
    reading = grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=_READ_AHEAD)
    rows = places.map(local).to_iter_dataset(reading)
    return (Split(*batch) for batch in rows.batch(local_size))

  return Stream(size, batches)


def take(data: Split | Stream, count: int) -> Split:
  """Returns the first `count` examples on the host, of a stream those of this process.

  Fewer if there are fewer.
  """
  if isinstance(data, Split):
    return Split(*(np.asarray(array[:count]) for array in data))
  count, found, have = min(count, data.size), [], 0
  for batch in data.batches(0):
    found.append(batch)
    have += len(batch.labels)
    if have >= count:
      break
  return Split(*(np.concatenate(part)[:count] for part in zip(*found, strict=True)))
