"""What the tests of the trainer share."""

import jax
import pytest


@pytest.fixture(scope="module")
def module_promotion():
  """Standard dtype promotion for trainings that a module's tests share.

  Optax's schedules and Adam mix integer and float arrays themselves.
  """
  with jax.numpy_dtype_promotion("standard"):
    yield
