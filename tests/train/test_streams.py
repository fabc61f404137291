"""Order, parts and padding of streams, on examples that are numbers."""

import itertools

import numpy as np
import pytest

pytest.importorskip("grain", reason="streams need grain: pip install -e '.[imagenet]'")
from train.core.console import UserError
from train.data.datasets import Split
from train.data.streams import StreamOptions, evaluation_stream, take, training_stream


class Numbers:
  """Example `n` is black but for its number, which is its label too."""

  def __getitem__(self, place):
    return np.full((2, 1, 1), place % 256, np.uint8), np.int32(place)


def labels(stream, begin, count=None):
  batches = itertools.islice(stream.batches(begin), count)
  return [batch.labels.tolist() for batch in batches]


def test_an_epoch_is_its_whole_batches():
  stream = training_stream(Numbers(), 10, StreamOptions(4))
  assert stream.size == 10
  # Epochs begin at 0, 10 and 20; two examples of each are left over.
  expected = [[0, 1, 2, 3], [4, 5, 6, 7], [10, 11, 12, 13], [14, 15, 16, 17]]
  assert labels(stream, 0, 5) == [*expected, [20, 21, 22, 23]]
  batch = next(stream.batches(0))
  assert isinstance(batch, Split)
  assert batch.images.shape == (4, 2, 1, 1) and batch.images.dtype == np.uint8
  assert batch.labels.dtype == np.int32
  assert (batch.images[:, 0, 0, 0] == batch.labels).all()


@pytest.mark.parametrize("size", [8, 9, 11])
def test_a_stream_goes_on_at_any_batch(size):
  stream = training_stream(Numbers(), size, StreamOptions(4))
  whole = labels(stream, 0, 9)
  for begin in (1, 2, 5):
    assert labels(stream, begin, 9 - begin) == whole[begin:]
  assert labels(stream, 10**6, 1) == [[10**6 // 2 * size + n for n in range(4)]]


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 3])
def test_the_parts_of_the_processes_are_the_batches_of_one(count):
  options = StreamOptions(6)
  for make, extra in ((training_stream, ()), (evaluation_stream, ((2, 1, 1),))):
    whole = labels(make(Numbers(), 14, *extra, options), 0, 3)
    parts = [
      labels(
        make(
          Numbers(),
          14,
          *extra,
          options._replace(process_index=index, process_count=count),
        ),
        0,
        3,
      )
      for index in range(count)
    ]
    assert [list(itertools.chain(*rows)) for rows in zip(*parts, strict=True)] == whole


def test_an_evaluation_sees_each_example_once_and_marks_padding():
  stream = evaluation_stream(Numbers(), 6, (2, 1, 1), StreamOptions(4))
  assert labels(stream, 0) == [[0, 1, 2, 3], [4, 5, -1, -1]]
  *_, last = stream.batches(0)
  assert (last.images[2:] == 0).all() and last.images.shape == (4, 2, 1, 1)
  assert labels(evaluation_stream(Numbers(), 0, (2, 1, 1), StreamOptions(4)), 0) == []


def test_the_first_examples_of_a_stream_or_of_arrays():
  stream = evaluation_stream(Numbers(), 10, (2, 1, 1), StreamOptions(4))
  arrays = Split(np.zeros((10, 2, 1, 1), np.uint8), np.arange(10, dtype=np.int32))
  for data in (stream, arrays):
    assert take(data, 6).labels.tolist() == [0, 1, 2, 3, 4, 5]
    found = take(data, 99)
    assert found.images.shape[0] == 10 and found.labels.tolist() == list(range(10))


def test_batches_must_fit_the_data_and_the_processes():
  with pytest.raises(UserError, match=r"`batch_size` must be at most the 3 .*, got 4"):
    training_stream(Numbers(), 3, StreamOptions(4))
  with pytest.raises(UserError, match=r"multiple of the 3 processes, got 4"):
    training_stream(Numbers(), 9, StreamOptions(4, process_count=3))
