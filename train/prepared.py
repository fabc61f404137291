"""Opens data sets that `train.prepare` has made; what is missing names the command."""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

from train.datasets import TFDS_NAMES, prepare_hint
from train.errors import UserError


@contextlib.contextmanager
def prepared(name: str) -> Iterator[Any]:
  """Opens a prepared data set, to read inside of the `with` statement.

  Args:
    name: a key of `DATASETS` that tensorflow-datasets reads.

  Yields:
    Its builder.

  Raises:
    UserError: if tensorflow-datasets or the data set is missing, or if it cannot be
      read: here or in the body.
  """
  try:
    import tensorflow_datasets as tfds
    from absl import logging
  except ImportError as error:
    raise UserError(
      f"data set {name!r} needs tensorflow-datasets: "
      "run `pip install tensorflow-datasets importlib_resources pillow`."
    ) from error
  level = logging.get_verbosity()
  logging.set_verbosity(logging.ERROR)  # tfds warns of missing OpenCV and folders
  place = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
  builder: Any = None
  try:
    builder = tfds.builder(TFDS_NAMES.get(name, name), data_dir=place)
    if not os.path.isdir(builder.data_dir):
      raise tfds.core.DatasetNotFoundError
    yield builder
  except tfds.core.DatasetNotFoundError as error:  # of a manual one: not prepared
    raise UserError(
      f"data set {name!r} is not in {place}; {prepare_hint(name)}, or set "
      "TFDS_DATA_DIR to the directory that holds it."
    ) from error
  except NotImplementedError as error:
    raise UserError(
      f"data set {name!r} in {builder.data_dir} is not in array_record format; move "
      f"it away and {prepare_hint(name)}."
    ) from error
  except (OSError, RuntimeError) as error:
    raise UserError(f"data set {name!r} cannot be read: {error}") from error
  finally:
    logging.set_verbosity(level)
