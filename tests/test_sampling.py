"""The compiled sampler: one prefix of the sequence, whatever shares the program."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from eoi_jax import (
  Rotations,
  blocks,
  eoi_init,
  initializers,
  orthogonality_error,
  sample_rotations,
  signal,
  sparse_orthogonal,
)
from eoi_jax.givens import _tuning as tuning
from eoi_jax.givens import orthogonal, rotated_identity
from tests.cases import few

SHAPE, DENSITY = (24, 40), 0.2
sample = functools.partial(sparse_orthogonal, shape=SHAPE, density=DENSITY)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_the_matrix_is_the_longest_prefix_that_fits(seed):
  key, budget = jax.random.key(seed), round(DENSITY * 24 * 40)
  rotations = sample_rotations(key, 40, 140)
  lines = np.eye(24, 40, dtype=bool)
  length = 0
  for i, j in zip(np.asarray(rotations.i), np.asarray(rotations.j), strict=True):
    lines[:, i] = lines[:, j] = lines[:, i] | lines[:, j]
    if lines.sum() > budget:
      break
    length += 1
  assert 0 < length < 140
  want = rotated_identity(SHAPE, Rotations(*(field[:length] for field in rotations)))
  got = sample(key)
  np.testing.assert_array_equal(got != 0, want != 0)
  chex.assert_trees_all_close(got, want, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
  "options",
  [
    {},
    {"shape": (90, 33), "density": 0.9},
    {"density": 0.05, "cover": True},
    {"shape": (100, 2501), "density": 0.01},  # a block of many bytes
    {"schedule": "matching"},
    {"schedule": "matching", "shape": (33, 90), "density": 0.4},
    {"schedule": "matching", "density": 0.05, "cover": True},
  ],
)
def test_accelerators_get_the_same_matrices(options, monkeypatch):
  keys = jax.random.split(jax.random.key(0), 3)
  draw = functools.partial(sample, **options)
  pieces = jax.vmap(draw)(keys)
  jax.clear_caches()
  monkeypatch.setattr(tuning, "in_cache", lambda: False)
  whole = jax.vmap(draw)(keys)
  jax.clear_caches()
  np.testing.assert_array_equal(whole != 0, pieces != 0)
  chex.assert_trees_all_close(whole, pieces, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(150, 700), (700, 150)])
def test_blocks_that_do_not_divide_the_rows(shape):
  q = sparse_orthogonal(jax.random.key(1), shape, 0.05)
  assert orthogonality_error(q) < 5e-6
  budget = round(0.05 * 150 * 700)
  assert budget - 150 < np.count_nonzero(q) <= budget


def test_a_language_models_head_is_planned_at_once():
  head = functools.partial(sparse_orthogonal, shape=(4096, 50000), density=0.05)
  chex.assert_shape(jax.eval_shape(head, jax.random.key(0)), (4096, 50000))


@pytest.mark.slow
def test_nested_vmap_is_one_batch():
  keys = jax.random.split(jax.random.key(3), (2, 3))
  nested = jax.vmap(jax.vmap(sample))(keys)
  flat = jax.vmap(sample)(keys.reshape(-1))
  np.testing.assert_array_equal(nested.reshape(flat.shape), flat)


@pytest.mark.slow
def test_traced_budgets_are_kept():
  budgets = jnp.array([32, 100, 300, 600])
  draw = functools.partial(
    orthogonal.sample_to_budget, shape=(32, 32), dtype=jnp.float32, max_budget=600
  )
  keys = jax.random.split(jax.random.key(4), 4)
  batch = jax.vmap(lambda key, budget: draw(key, budget=budget))(keys, budgets)
  counts = np.count_nonzero(batch, axis=(1, 2))
  assert (counts <= budgets).all() and (counts > budgets - 32).all()
  assert max(map(float, map(orthogonality_error, batch))) < 5e-6


@pytest.mark.slow
def test_many_shapes_share_a_program():
  shapes = [SHAPE, (40, 24), (48, 48), (3, 64), (1, 16), (5, 5)]
  budgets = [192, 192, 500, 40, 5, 5]
  keys = jax.random.split(jax.random.key(6), len(shapes))
  many = list(orthogonal.sample_many(keys, shapes, budgets))
  for shape, budget, matrix in zip(shapes, budgets, many, strict=True):
    chex.assert_shape(matrix, shape)
    assert orthogonality_error(matrix) < 5e-6
    assert budget - min(shape) < np.count_nonzero(matrix) <= budget
  np.testing.assert_allclose(many[0], sample(keys[0]), atol=1e-6)


LAYOUT = blocks.block_layout(jax.random.key(0), (8, 12), 0.5, block_size=2)
DRAWS = {
  "sparse": sample,
  "dense": lambda key: initializers.dense_orthogonal()(key, (6, 4)),
  "delta": lambda key: initializers.delta_orthogonal()(key, (3, 6, 4)),
  "conv": lambda key: initializers.conv_orthogonal()(key, (3, 6, 4)),
  "sao": lambda key: initializers.sao_orthogonal(key, (8, 8), 4),
  "layout": lambda key: blocks.block_layout(key, (16, 16), 0.5, block_size=2).inputs,
  "blocks": lambda key: blocks.block_orthogonal(key, LAYOUT),
  "gradient": lambda key: signal.gradient_norms(key, jnp.dot, jnp.eye(4), jnp.eye(4)),
}


@pytest.mark.parametrize("name", few([*DRAWS], 4))
def test_rbg_keys_do_not_depend_on_the_batch(name):
  keys = jax.random.split(jax.random.key(7, impl="rbg"), 3)
  alone = jax.jit(DRAWS[name])(keys[2])
  batch = jax.jit(jax.vmap(DRAWS[name]))(keys)
  chex.assert_trees_all_close(jax.tree.map(lambda x: x[2], batch), alone, atol=1e-6)


class Stream:
  """A callable that hands out keys, as streams of NNX do."""

  def __call__(self):
    return jax.random.key(0)


@pytest.mark.parametrize(
  "key, word",
  [
    (0, "0"),
    (np.zeros(2), "float64"),
    (jax.random.split(jax.random.key(0)), "(2,)"),
    (Stream(), "pass `rngs.params()`"),
  ],
)
def test_what_is_no_key_is_refused(value_error, key, word):
  with value_error("`key` must be a PRNG key", word):
    sample(key)


def test_a_zero_dimensional_angle_is_a_number():
  got = sample(jax.random.key(0), angle=jnp.float32(0.5))
  np.testing.assert_array_equal(got, sample(jax.random.key(0), angle=0.5))


def test_float8_is_refused(value_error):
  with value_error("`dtype` must have at least 16 bits", "float8_e4m3fn"):
    sample(jax.random.key(0), dtype=jnp.float8_e4m3fn)


PATTERN = np.random.default_rng(0).random(SHAPE) < 0.5
KERNEL = (3, 3, 4, 6)
PER_DEVICE = {
  "iid": sample,
  "pattern": functools.partial(sample, pattern=PATTERN | np.eye(*SHAPE, dtype=bool)),
  "rotations": lambda key: rotated_identity(SHAPE, sample_rotations(key, 40, 50)),
  "all": lambda key: eoi_init(0.3, taps="all")(key, KERNEL),
  "polyphase": lambda key: eoi_init(0.3, taps="polyphase", strides=2)(key, KERNEL),
}


@pytest.mark.slow
@pytest.mark.parametrize(
  ("axis_type", "draw"),
  [(AxisType.Auto, draw) for draw in PER_DEVICE] + [(AxisType.Explicit, "iid")],
)
def test_a_key_for_each_device_of_a_shard_map(axis_type, draw):
  mesh, draw = jax.make_mesh((1,), ("x",), axis_types=(axis_type,)), PER_DEVICE[draw]
  spec = PartitionSpec("x")
  mapped = jax.shard_map(
    lambda keys: draw(keys[0])[None], mesh=mesh, in_specs=spec, out_specs=spec
  )
  keys = jax.random.split(jax.random.key(8), 1)
  with jax.set_mesh(mesh):
    got = jax.jit(mapped)(jax.device_put(keys, jax.NamedSharding(mesh, spec)))
  chex.assert_trees_all_close(np.asarray(got[0]), np.asarray(draw(keys[0])), atol=1e-6)
