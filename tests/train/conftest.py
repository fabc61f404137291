"""What the tests of the trainer share."""

import os

import jax
import pytest


@pytest.fixture(scope="module")
def module_promotion():
  """Standard dtype promotion for trainings that a module's tests share.

  Optax's schedules and Adam mix integer and float arrays themselves.
  """
  with jax.numpy_dtype_promotion("standard"):
    yield


@pytest.fixture(scope="session", autouse=True)
def shared_compilation_cache(tmp_path_factory):
  """A new cache of compiled programs for the processes that tests start."""
  base = tmp_path_factory.getbasetemp()
  if "PYTEST_XDIST_WORKER" in os.environ:
    base = base.parent  # all workers share it
  with pytest.MonkeyPatch.context() as patch:
    patch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    patch.setenv("XDG_CACHE_HOME", str(base / "cache"))
    yield
