"""Guided patterns: exactly orthogonal, nothing outside, as full as can be."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eoi_jax import orthogonality_error, sparse_orthogonal
from eoi_jax.givens import pattern_fill
from tests.cases import few


def _blocks(size, block):
  return np.kron(np.eye(size // block), np.ones((block, block))) > 0


def _band(size, width):
  index = np.arange(size)
  return np.abs(index[:, None] - index) <= width


def _random(rows, cols, density):
  rng = np.random.default_rng(0)
  pattern = rng.random((rows, cols)) < density
  side = np.arange(min(rows, cols))
  pattern[side, side] = True
  return pattern


def _n_of_m(size):
  rng = np.random.default_rng(1)
  order = rng.random((size, size // 4, 4)).argsort(axis=-1)
  pattern = (order < 2).reshape(size, size)
  return pattern | np.eye(size, dtype=bool)


# Pattern and the least share of it that rotations must fill.
PATTERNS = {
  "blocks": (_blocks(64, 16), 0.95),
  "full": (np.ones((64, 64), bool), 0.95),
  "band": (_band(64, 6), 0.4),
  "random": (_random(64, 64, 0.3), 0.08),
  "2:4": (_n_of_m(64), 0.06),
  "wide": (_random(40, 64, 0.4), 0.1),
  "tall": (_random(64, 40, 0.4), 0.1),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", few(PATTERNS))
def test_inside_the_pattern_orthogonal_and_filled(name):
  pattern, least = PATTERNS[name]
  for seed in range(3):
    key = jax.random.key(seed)
    q = sparse_orthogonal(key, pattern.shape, 1.0, pattern=pattern)
    assert orthogonality_error(q) < 5e-6
    assert not (np.asarray(q != 0) & ~pattern).any()
    fill = float(pattern_fill(q, pattern))
    assert fill == pytest.approx(np.count_nonzero(q) / pattern.sum(), rel=1e-6)
    assert fill >= least
    # Rotations did happen: a matching alone has min(shape) nonzeros.
    assert np.count_nonzero(q) > 1.5 * min(pattern.shape)


@pytest.mark.slow
def test_the_budget_holds():
  pattern = _blocks(64, 16)
  q = sparse_orthogonal(jax.random.key(0), (64, 64), 0.1, pattern=pattern)
  assert round(0.1 * 64**2) - 64 < np.count_nonzero(q) <= round(0.1 * 64**2)


@pytest.mark.slow
def test_keys_matter_and_vmap_works():
  pattern = _blocks(64, 16)
  keys = jax.random.split(jax.random.key(0), 2)
  sample = lambda key: sparse_orthogonal(key, (64, 64), 1.0, pattern=pattern)  # noqa: E731
  batch = jax.vmap(sample)(keys)
  assert (batch[0] != batch[1]).any()
  np.testing.assert_allclose(batch[1], sample(keys[1]), atol=1e-6)


def test_a_pattern_without_a_perfect_matching_is_refused():
  pattern = _blocks(8, 4)
  pattern[[3, 5]] = False
  with pytest.raises(ValueError, match=r"`pattern` .*perfect matching.* row 3, 5"):
    sparse_orthogonal(jax.random.key(0), (8, 8), 1.0, pattern=pattern)
  with pytest.raises(ValueError, match="for column 0"):
    sparse_orthogonal(
      jax.random.key(0), (4, 2), 1.0, pattern=_random(4, 2, 0.0) & False
    )


@pytest.mark.parametrize("pattern", [np.ones((3, 4), bool), np.ones((4, 4))])
def test_wrong_patterns_are_refused(pattern):
  with pytest.raises(
    ValueError, match=r"`pattern` must be a bool array of shape \(4, 4\)"
  ):
    sparse_orthogonal(jax.random.key(0), (4, 4), 1.0, pattern=pattern)
  for wrong in (pattern, "x"):
    with pytest.raises(ValueError, match=r"`pattern` must be a bool array of shape"):
      pattern_fill(jnp.eye(4), wrong)


def test_a_traced_pattern_is_refused():
  with pytest.raises(ValueError, match="`pattern` must be a concrete array"):
    jax.jit(lambda p: sparse_orthogonal(jax.random.key(0), (2, 2), 1.0, pattern=p))(
      jnp.ones((2, 2), bool)
    )
