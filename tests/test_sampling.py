"""The compiled sampler: pieces in cache, whole arrays elsewhere, the same matrices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eoi_jax import orthogonality_error, sparse_orthogonal
from eoi_jax.givens import _sampler as sampling


@pytest.fixture
def on_accelerator(monkeypatch):
  """Takes the path of accelerators: whole arrays, `lax.scan` over all levels."""
  sampling._sampler.cache_clear()
  jax.clear_caches()
  monkeypatch.setattr(sampling, "_in_cache", lambda: False)
  yield
  sampling._sampler.cache_clear()
  jax.clear_caches()


def _scan_lengths(jaxpr) -> list[int]:
  lengths = []
  for eqn in jaxpr.eqns:
    if eqn.primitive.name == "scan":
      lengths.append(eqn.params["length"])
    for param in jax.tree.leaves(
      list(eqn.params.values()), is_leaf=lambda p: hasattr(p, "eqns")
    ):
      inner = getattr(param, "jaxpr", param)
      if hasattr(inner, "eqns"):
        lengths += _scan_lengths(inner)
  return lengths


def test_accelerators_get_the_same_matrices(on_accelerator):
  sample = functools.partial(sparse_orthogonal, shape=(96, 130), density=0.15)
  whole = sample(jax.random.key(0))
  sampling._sampler.cache_clear()
  jax.clear_caches()
  sampling._in_cache = lambda: True  # undone by the fixture
  pieces = sample(jax.random.key(0))
  np.testing.assert_array_equal(whole != 0, pieces != 0)
  np.testing.assert_allclose(whole, pieces, atol=1e-6)


@pytest.mark.parametrize("schedule", ["iid", "matching"])
def test_depth_of_4096_is_a_short_scan(on_accelerator, schedule):
  sample = functools.partial(
    sparse_orthogonal, shape=(4096, 4096), density=0.1, schedule=schedule
  )
  lengths = _scan_lengths(jax.make_jaxpr(sample)(jax.random.key(0)).jaxpr)
  assert lengths and max(lengths) <= 64


@pytest.mark.parametrize("shape", [(150, 700), (700, 150)])
def test_blocks_that_do_not_divide_the_rows(shape):
  q = sparse_orthogonal(jax.random.key(1), shape, 0.05)
  assert orthogonality_error(q) < 5e-6
  budget = round(0.05 * 150 * 700)
  assert budget - 150 < np.count_nonzero(q) <= budget


def test_groups_that_do_not_divide_the_batch():
  keys = jax.random.split(jax.random.key(2), 7)
  sample = functools.partial(sparse_orthogonal, shape=(128, 128), density=0.1)
  assert sampling._CACHE_SIZE // 128**2 == 4  # two groups, of which the last overlaps
  batch = jax.vmap(sample)(keys)
  for key, matrix in zip(keys, batch, strict=True):
    alone = sample(key)
    np.testing.assert_array_equal(matrix != 0, alone != 0)
    np.testing.assert_allclose(matrix, alone, atol=1e-6)


def test_nested_vmap_is_one_batch():
  keys = jax.random.split(jax.random.key(3), (2, 3))
  sample = functools.partial(sparse_orthogonal, shape=(16, 16), density=0.3)
  nested = jax.vmap(jax.vmap(sample))(keys)
  flat = jax.vmap(sample)(keys.reshape(-1))
  np.testing.assert_array_equal(nested.reshape(flat.shape), flat)


def test_traced_budgets_are_kept():
  budgets = jnp.array([32, 100, 300, 600])
  sample = functools.partial(
    sampling.sample_to_budget, shape=(32, 32), dtype=jnp.float32, max_budget=600
  )
  keys = jax.random.split(jax.random.key(4), 4)
  batch = jax.vmap(lambda key, budget: sample(key, budget=budget))(keys, budgets)
  counts = np.count_nonzero(batch, axis=(1, 2))
  assert (counts <= budgets).all() and (counts > budgets - 32).all()
  assert max(map(float, map(orthogonality_error, batch))) < 5e-6


def test_old_style_keys_are_taken():
  new = sparse_orthogonal(jax.random.key(5), (16, 16), 0.3)
  old = sparse_orthogonal(jax.random.key_data(jax.random.key(5)), (16, 16), 0.3)
  np.testing.assert_array_equal(old, new)
