"""Block-sparse layers of Linen and NNX stand where the dense ones stand."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from eoi_jax import blocks as blocks_lib
from eoi_jax.blocks import linen as linen_blocks
from eoi_jax.blocks import nnx as nnx_blocks


def normal(*shape):
  return jax.random.normal(jax.random.key(1), shape)


@pytest.mark.slow
def test_linen_equals_dense_with_the_dense_view():
  x = normal(3, 5, 32)
  layout = blocks_lib.block_layout(jax.random.key(2), (32, 48), 0.25, block_size=8)
  layer = linen_blocks.BlockDense(
    48, density=0.25, block_size=8, bias_init=nn.initializers.normal()
  )
  params = layer.init(jax.random.key(0), x, layout)["params"]
  kernel = blocks_lib.blocks_to_dense(params["blocks"], layout)
  dense = {"params": {"kernel": kernel, "bias": params["bias"]}}
  y = layer.apply({"params": params}, x, layout)
  chex.assert_trees_all_close(y, nn.Dense(48).apply(dense, x), atol=1e-5)
  with pytest.raises(ValueError, match="layout"):
    layer.apply({"params": params}, x[..., :16], layout)


@pytest.mark.slow
def test_layers_of_a_scan_keep_layouts_of_their_own_as_variables():
  class Layer(nn.Module):
    @nn.compact
    def __call__(self, x, _):
      return linen_blocks.BlockDense(64, 0.25, 8, seed=None)(x), None

  scan = nn.scan(
    Layer,
    variable_axes={"params": 0, "layouts": 0},
    split_rngs={"params": True},
    length=3,
  )
  x = jnp.eye(64)
  variables = scan().init(jax.random.key(0), x, None)
  layout = variables["layouts"]["BlockDense_0"]["layout"]
  masks = np.asarray(blocks_lib.block_mask(layout))
  assert masks.shape == (3, 64, 64) and (masks[0] != masks[1]).any()
  y, _ = scan().apply(variables, x, None)
  blocks = variables["params"]["BlockDense_0"]["blocks"]
  dense = blocks_lib.blocks_to_dense(blocks, layout)
  chex.assert_trees_all_close(y, dense[0] @ dense[1] @ dense[2], atol=1e-5)


@pytest.mark.slow
def test_linen_layouts_follow_seed_and_path():
  class Net(nn.Module):
    seed: int

    @nn.compact
    def __call__(self, x):
      for _ in range(2):
        x = linen_blocks.BlockDense(64, 0.25, 8, self.seed, use_bias=False)(x)
      return x

  x = jnp.eye(64)
  variables = Net(0).init(jax.random.key(0), x)
  chex.assert_trees_all_close(
    Net(0).apply(variables, x) @ Net(0).apply(variables, x).T, jnp.eye(64), atol=1e-5
  )
  step = jax.jit(lambda v, seed: Net(seed).apply(v, x), static_argnums=1)
  chex.assert_trees_all_close(step(variables, 0), Net(0).apply(variables, x), atol=1e-6)
  assert not np.allclose(step(variables, 0), step(variables, 1))
  views = []
  for name in ("BlockDense_0", "BlockDense_1"):
    layout = linen_blocks._layout(0, name, (64, 64), 0.25, 8)
    views.append(np.asarray(blocks_lib.block_mask(layout)))
  assert (views[0] != views[1]).any()


@pytest.mark.slow
def test_linen_attention_projections_and_pointwise_convolution():
  x = normal(2, 6, 32)
  query = linen_blocks.BlockDense((4, 8), density=0.5, block_size=8)
  heads, variables = query.init_with_output(jax.random.key(0), x)
  chex.assert_shape(heads, (2, 6, 4, 8))
  chex.assert_shape(variables["params"]["bias"], (4, 8))
  out = linen_blocks.BlockDense(32, density=0.5, block_size=8, axis=(-2, -1))
  y, _ = out.init_with_output(jax.random.key(0), heads)
  chex.assert_shape(y, (2, 6, 32))
  # Isometries: lengths are kept.
  lengths = jnp.linalg.norm(x, axis=-1)
  chex.assert_trees_all_close(jnp.linalg.norm(y, axis=-1), lengths, rtol=1e-5)
  with pytest.raises(ValueError, match="axis"):
    linen_blocks.BlockDense(32, axis=(1, 2)).init(jax.random.key(0), heads)
  images = normal(2, 4, 4, 32)
  layer = linen_blocks.BlockDense(16, density=0.5, block_size=8)
  y, variables = layer.init_with_output(jax.random.key(0), images)
  layout = linen_blocks._layout(0, "", (32, 16), 0.5, 8)
  kernel = blocks_lib.blocks_to_dense(variables["params"]["blocks"], layout)
  conv = nn.Conv(16, (1, 1), use_bias=False)
  expected = conv.apply({"params": {"kernel": kernel[None, None]}}, images)
  chex.assert_trees_all_close(y, expected, atol=1e-5)


@pytest.mark.slow
def test_linen_dtypes():
  layer = linen_blocks.BlockDense(16, 0.5, 8, dtype=jnp.bfloat16)
  y, variables = layer.init_with_output(jax.random.key(0), normal(2, 16))
  assert y.dtype == jnp.bfloat16
  chex.assert_type(jax.tree.leaves(variables), jnp.float32)


@pytest.mark.slow
def test_linen_scan_with_a_layout_for_each_layer():
  class Layer(nn.Module):
    @nn.compact
    def __call__(self, x, layout):
      return jnp.tanh(linen_blocks.BlockDense(32, name="dense")(x, layout)), None

  layouts = blocks_lib.block_layout(jax.random.key(3), (3, 32, 32), 0.25, block_size=8)
  stack = nn.scan(
    Layer, variable_axes={"params": 0}, split_rngs={"params": True}, in_axes=0, length=3
  )()
  x = normal(4, 32)
  (y, _), variables = stack.init_with_output(jax.random.key(0), x, layouts)
  blocks = variables["params"]["dense"]["blocks"]
  assert (blocks_lib.block_gram_error(blocks, layouts) < 5e-6).all()
  for kernel in blocks_lib.blocks_to_dense(blocks, layouts):
    x = jnp.tanh(x @ kernel)
  chex.assert_trees_all_close(y, x, atol=1e-5)


@pytest.mark.slow
def test_nnx_equals_linear_with_the_dense_view():
  layer = nnx_blocks.BlockDense(32, 48, density=0.25, block_size=8, rngs=nnx.Rngs(0))
  linear = nnx.Linear(32, 48, rngs=nnx.Rngs(1))
  assert layer.layout.density == 0.25
  linear.kernel[...] = blocks_lib.blocks_to_dense(layer.blocks[...], layer.layout)
  x = normal(3, 5, 32)
  chex.assert_trees_all_close(layer(x), linear(x), atol=1e-5)
  half = nnx_blocks.BlockDense(
    32, 48, use_bias=False, dtype=jnp.bfloat16, block_size=4, rngs=nnx.Rngs(0)
  )
  assert half(x).dtype == jnp.bfloat16


def test_nnx_trains_and_leaves_the_tables_alone():
  layer = nnx_blocks.BlockDense(16, 16, density=0.25, block_size=4, rngs=nnx.Rngs(0))
  tx = nnx.Optimizer(layer, optax.sgd(0.1), wrt=nnx.Param)
  x, before = normal(8, 16), nnx.state(layer, nnx_blocks.BlockTable)
  before = jax.tree.map(jnp.copy, before)

  @nnx.jit
  def step(layer, tx):
    value, updates = nnx.value_and_grad(lambda m: jnp.mean((m(x) - 2 * x) ** 2))(layer)
    tx.update(layer, updates)
    return value

  losses = [step(layer, tx) for _ in range(20)]
  assert losses[-1] < losses[0]
  chex.assert_trees_all_equal(nnx.state(layer, nnx_blocks.BlockTable), before)


@pytest.mark.slow
def test_nnx_stacks_have_a_layout_each():
  @nnx.split_rngs(splits=3)
  @nnx.vmap
  def make(rngs):
    return nnx_blocks.BlockDense(32, 32, density=0.25, block_size=4, rngs=rngs)

  layers = make(nnx.Rngs(0))
  tables = np.asarray(layers.inputs[...])
  assert (tables[0] != tables[1]).any()
  x = normal(2, 32)

  @nnx.scan(in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
  def run(layer, x):
    return layer(x)

  expected = x
  for kernel in blocks_lib.blocks_to_dense(layers.blocks[...], layers.layout):
    expected = expected @ kernel
  chex.assert_trees_all_close(run(layers, x), expected, atol=1e-5)
