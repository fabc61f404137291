"""Strict JAX for every test, and the fixtures that several files share."""

import contextlib
import os
import pathlib

import jax
import pytest

# Programs that tests start in processes of their own; doctests would import them here.
collect_ignore = ["programs"]

# Implicit promotion hides mistakes in a library that promises exact zeros and dtypes.
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
# A cache left by an earlier run must not decide what this run compiles.
jax.config.update("jax_enable_compilation_cache", "EOI_TEST_CACHE" in os.environ)

GOLDEN = pathlib.Path(__file__).parent / "golden"


@pytest.fixture(scope="session")
def golden():
  """The folder of recorded arrays (torch layout, float64 definitions)."""
  return GOLDEN


@pytest.fixture
def x64():
  """Runs the test with 64-bit types."""
  with jax.enable_x64(True):
    yield


@pytest.fixture
def standard_promotion():
  """Standard dtype promotion: optax's Adam family promotes float with int itself."""
  with jax.numpy_dtype_promotion("standard"):
    yield


@pytest.fixture
def value_error():
  """A context manager: expects a one-line ValueError that contains all `words`."""

  @contextlib.contextmanager
  def expect(*words):
    with pytest.raises(ValueError) as info:
      yield
    message = str(info.value)
    assert message and "\n" not in message, message
    for word in words:
      assert word in message, f"{word!r} is missing in: {message}"

  return expect


@pytest.fixture(scope="session")
def tfds_data_dir():
  """The folder of prepared data sets; skips where the machine has none."""
  folder = os.environ.get("TFDS_DATA_DIR")
  if not folder:
    pytest.skip("TFDS_DATA_DIR is not set: no prepared data sets to read")
  path = pathlib.Path(folder).expanduser()
  if not path.is_dir():
    pytest.skip(f"TFDS_DATA_DIR={folder} is not a folder")
  return path.resolve()
