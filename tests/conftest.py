"""Strict JAX for every test, and the fixtures that several files share."""

import contextlib
import os
import pathlib

import documents
import jax
import pytest

# Programs that tests start in processes of their own; doctests would import them here.
collect_ignore = ["programs"]

# Implicit promotion hides mistakes in a library that promises exact zeros and dtypes.
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
# Most of the time goes into compiling: do it fast rather than well, here and in the
# processes that tests start.
jax.config.update("jax_disable_most_optimizations", True)
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
# XLA's older generator of code for CPUs takes half the time of the newer one then.
flags = f"{documents.OLDER_CODE} {os.environ.get('XLA_FLAGS', '')}"
os.environ["XLA_FLAGS"] = flags.strip()  # a blank would be the name of a file
# Each run starts from an empty cache of compiled programs, which its workers share.
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)

GOLDEN = pathlib.Path(__file__).parent / "golden"


@pytest.fixture(scope="session", autouse=True)
def shared_compilation_cache(tmp_path_factory):
  """A new cache of compiled programs, for this run and the processes it starts."""
  base = tmp_path_factory.getbasetemp()
  if "PYTEST_XDIST_WORKER" in os.environ:
    base = base.parent  # all workers share it
  jax.config.update("jax_compilation_cache_dir", str(base / "compiled"))
  with pytest.MonkeyPatch.context() as patch:
    patch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    patch.setenv("XDG_CACHE_HOME", str(base / "cache"))
    yield


@pytest.fixture(scope="module", autouse=True)
def forget_programs():
  """Frees the compiled programs of a file, which add up to gigabytes."""
  yield
  jax.clear_caches()


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
