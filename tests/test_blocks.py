"""Block layouts and orthogonal blocks: Gram = identity, counts exact, matchings."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eoi_jax import blocks as blocks_lib
from tests.cases import few

# (in, out), density, block size: square, wide, tall, even and not, both sides uneven
# with groups of the same sizes, a classifier, all blocks, one group.
CASES = [
  ((64, 64), 0.25, 8),
  ((32, 96), 0.5, 8),
  ((96, 32), 0.25, 8),
  ((50, 50), 0.3, 8),
  ((50, 53), 0.3, 8),
  ((53, 50), 0.3, 8),
  ((31, 100), 0.2, 4),
  ((100, 31), 0.9, 16),
  ((70, 10), 0.2, 16),
  ((24, 24), 1.0, 8),
  ((9, 7), 1.0, 16),
  ((40, 40), 0.05, 40),
]
NUM_KEYS = 25


@functools.cache
def sample(shape, density, block_size):
  """`NUM_KEYS` layouts and blocks as stacks, by one compilation."""
  layout = blocks_lib.block_layout(
    jax.random.key(0), (NUM_KEYS, *shape), density, block_size=block_size
  )
  return layout, blocks_lib.block_orthogonal(jax.random.key(1), layout)


@pytest.mark.slow
@pytest.mark.parametrize("case", few(CASES, 2))
def test_hundreds_of_kernels_are_orthogonal(case):
  layout, blocks = sample(*case)
  chex.assert_shape(blocks, layout.blocks_shape)
  matrices = np.asarray(blocks_lib.blocks_to_dense(blocks, layout), np.float64)
  chex.assert_shape(matrices, (NUM_KEYS, *case[0]))
  if case[0][0] > case[0][1]:
    matrices = matrices.swapaxes(1, 2)
  gram = matrices @ matrices.swapaxes(1, 2)
  assert np.abs(gram - np.eye(min(case[0]))).max() < 5e-6


@pytest.mark.parametrize("case", few(CASES, 2))
def test_blocks_are_disjoint_matchings(case):
  layout, _ = sample(*case)
  inputs, outputs = np.asarray(layout.inputs), np.asarray(layout.outputs)
  groups = np.arange(layout.num_groups)
  for layer in range(NUM_KEYS):
    for c in range(layout.num_matchings):
      np.testing.assert_array_equal(inputs[layer, outputs[layer, :, c], c], groups)
      np.testing.assert_array_equal(outputs[layer, inputs[layer, :, c], c], groups)
    for h in groups:  # no block twice
      assert len(set(inputs[layer, h])) == layout.num_matchings


@pytest.mark.slow
@pytest.mark.parametrize("case", few(CASES, 2))
def test_counts_are_those_of_the_mask(case):
  (rows, cols), density, block_size = case
  layout, blocks = sample(*case)
  mask = np.asarray(blocks_lib.block_mask(layout))
  assert mask.dtype == bool
  assert mask.sum() == layout.num_weights
  assert layout.density == pytest.approx(mask.mean())
  outside = np.asarray(blocks_lib.blocks_to_dense(blocks, layout))[~mask]
  assert (outside == 0).all()
  groups, r = layout.num_groups, layout.num_matchings
  assert abs(r / groups - density) <= 0.5 / groups + 1e-9
  if groups * block_size == min(rows, cols):
    assert min(layout.block_shape) == block_size
  if rows % groups == 0 and cols % groups == 0:
    assert layout.num_weights == NUM_KEYS * r * rows * cols // groups
    # Fan-in and fan-out are constant.
    assert set(mask.sum(1).ravel()) == {r * rows // groups}
    assert set(mask.sum(2).ravel()) == {r * cols // groups}
  assert mask.any(1).all() and mask.any(2).all()  # no unit is dead


@pytest.mark.slow
@pytest.mark.parametrize("case", few(CASES, 2))
def test_dense_view_and_back(case):
  layout, blocks = sample(*case)
  matrix = blocks_lib.blocks_to_dense(blocks, layout)
  chex.assert_trees_all_equal(blocks_lib.dense_to_blocks(matrix, layout), blocks)
  full = jax.random.normal(jax.random.key(2), matrix.shape)
  kept = blocks_lib.blocks_to_dense(blocks_lib.dense_to_blocks(full, layout), layout)
  expected = jnp.where(blocks_lib.block_mask(layout), full, 0)
  chex.assert_trees_all_equal(kept, expected)


@pytest.mark.slow
def test_functions_of_the_key_alone_and_in_a_stack():
  make = functools.partial(blocks_lib.block_layout, density=0.25, block_size=8)
  stack = make(jax.random.key(3), (3, 64, 64))
  keys = jax.random.split(jax.random.key(3), 3)
  alone = [make(key, (64, 64)) for key in keys]
  chex.assert_trees_all_equal(stack, jax.tree.map(lambda *t: jnp.stack(t), *alone))
  assert not np.array_equal(alone[0].inputs, alone[1].inputs)
  draw = jax.jit(lambda key: make(key, (64, 64)))
  chex.assert_trees_all_equal(draw(keys[0]), alone[0])
  blocks = blocks_lib.block_orthogonal(jax.random.key(4), stack)
  first = jax.random.split(jax.random.key(4), 3)[0]
  single = blocks_lib.block_orthogonal(first, alone[0])
  chex.assert_trees_all_close(blocks[0], single, atol=1e-6)
  vmapped = jax.vmap(blocks_lib.block_orthogonal)(
    jax.random.split(jax.random.key(4), 3), stack
  )
  chex.assert_trees_all_close(vmapped, blocks, atol=1e-6)


@pytest.mark.slow
def test_scale_dtype_and_gram_error():
  layout = blocks_lib.block_layout(jax.random.key(0), (32, 64), 0.25, block_size=8)
  key = jax.random.key(1)
  plain = blocks_lib.block_orthogonal(key, layout)
  doubled = blocks_lib.block_orthogonal(key, layout, scale=2.0)
  chex.assert_trees_all_close(doubled, 2 * plain)
  assert blocks_lib.block_gram_error(plain, layout) < 5e-6
  assert blocks_lib.block_gram_error(doubled, layout, scale=2.0) < 2e-5
  assert blocks_lib.block_gram_error(doubled, layout) == pytest.approx(3, abs=1e-4)
  half = blocks_lib.block_orthogonal(key, layout, jnp.bfloat16)
  chex.assert_trees_all_equal(half, plain.astype(jnp.bfloat16))


@pytest.mark.slow
def test_float64(x64):
  layout = blocks_lib.block_layout(jax.random.key(0), (33, 64), 0.25, block_size=8)
  assert layout.inputs.dtype == jnp.int32
  blocks = blocks_lib.block_orthogonal(jax.random.key(1), layout, jnp.float64)
  assert blocks_lib.block_gram_error(blocks, layout) < 1e-13


def test_auto_block_size_meets_the_density():
  make = functools.partial(blocks_lib.block_layout, jax.random.key(0))
  for size, expected in [(2048, 128), (1024, 64), (512, 32)]:
    layout = make((size, size), 0.125, block_size="auto")
    assert layout.block_shape == (expected, expected)
    assert layout.density == 0.125
  assert make((1024, 1024), 0.05).density == pytest.approx(0.05, rel=0.05)


def test_errors(value_error):
  make = functools.partial(blocks_lib.block_layout, jax.random.key(0))
  with value_error("density", "0.1", "0.05"):
    make((10, 20), 0.05, block_size=8)
  with value_error("density", "1.5"):
    make((16, 16), 1.5, block_size=8)
  with value_error("key"):
    blocks_lib.block_layout(0, (16, 16), 0.5)
  with value_error("shape", "(16,)"):
    make((16,), 0.5, block_size=8)
  with value_error("block_size", "0"):
    make((16, 16), 0.5, block_size=0)
  layout = make((16, 32), 0.5, block_size=4)
  with value_error("blocks", "(4, 2, 4, 8)", "(4, 2, 4, 4)"):
    blocks_lib.blocks_to_dense(jnp.zeros((4, 2, 4, 4)), layout)
  with value_error("matrix", "(16, 32)", "(32, 16)"):
    blocks_lib.dense_to_blocks(jnp.zeros((32, 16)), layout)
  with value_error("scale"):
    blocks_lib.block_orthogonal(jax.random.key(0), layout, scale=np.nan)
  x = jnp.ones((4, 4))
  for call in (
    lambda: blocks_lib.block_matmul(x, x, None),
    lambda: blocks_lib.block_orthogonal(jax.random.key(0), None),
    lambda: blocks_lib.dense_to_blocks(x, None),
    lambda: blocks_lib.block_mask(None),
  ):
    with value_error("`layout`", "`block_layout`", "None"):
      call()


def test_shardings_that_are_part_of_types():
  layout = blocks_lib.block_layout(jax.random.key(0), (16, 32), 0.5, block_size=4)
  key, x = jax.random.key(1), jnp.ones((3, 16))

  def functions(layout, put):
    blocks = put(blocks_lib.block_orthogonal(key, layout))
    dense = blocks_lib.blocks_to_dense(blocks, layout)
    return {
      "blocks": blocks,
      "dense": dense,
      "back": blocks_lib.dense_to_blocks(put(dense), layout),
      "product": blocks_lib.block_matmul(put(x), blocks, layout),
      "error": blocks_lib.block_gram_error(blocks, layout),
    }

  for types in ("Explicit",), ("Explicit", "Auto"):
    kinds = tuple(jax.sharding.AxisType[name] for name in types)
    mesh = jax.make_mesh((1,) * len(types), ("x", "y")[: len(types)], axis_types=kinds)
    split = jax.NamedSharding(mesh, jax.P("x"))
    put = functools.partial(jax.device_put, device=split)
    found = functions(put(layout), put)
    assert found["back"].sharding.is_equivalent_to(split, 4)
    chex.assert_trees_all_close(found, functions(layout, lambda a: a), atol=1e-6)
