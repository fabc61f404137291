"""The product with blocks equals the dense one, derivatives of every order included."""

import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eoi_jax import blocks as blocks_lib
from eoi_jax.blocks import block_matmul, blocks_to_dense
from tests.cases import few
from tests.processes import finish, start

METHODS = ("loop", "batched")
ATOL = {"float32": 2e-5, "bfloat16": 0.05, "float64": 1e-12}


def make(shape, density=0.5, block_size=8, dtype=jnp.float32):
  layout = blocks_lib.block_layout(
    jax.random.key(0), shape, density, block_size=block_size
  )
  return layout, blocks_lib.block_orthogonal(jax.random.key(1), layout, dtype)


def normal(shape, dtype=jnp.float32, seed=2):
  return jax.random.normal(jax.random.key(seed), shape, dtype)


def losses(layout, method):
  """A loss of the product and the same loss of the dense product."""

  def loss(x, blocks):
    return (jnp.tanh(block_matmul(x, blocks, layout, method=method)) ** 2).sum()

  def dense_loss(x, blocks):
    return (jnp.tanh(x @ blocks_to_dense(blocks, layout)) ** 2).sum()

  return loss, dense_loss


class Product(chex.TestCase):
  @chex.variants(with_jit=True, without_jit=True)
  def test_equals_the_dense_product(self):
    for shape in [(48, 32), (30, 45)]:
      layout, blocks = make(shape)
      for rest in [(), (2, 3)]:
        x = normal((*rest, shape[0]))
        y = self.variant(block_matmul)(x, blocks, layout)
        chex.assert_shape(y, (*rest, shape[1]))
        expected = x @ blocks_to_dense(blocks, layout)
        chex.assert_trees_all_close(y, expected, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", few(["float32", "bfloat16", "float64"]))
def test_dtypes(method, dtype):
  with jax.enable_x64(dtype == "float64"):
    layout, blocks = make((32, 48), dtype=dtype)
    x = normal((6, 32), dtype)
    y, pull = jax.vjp(lambda x, b: block_matmul(x, b, layout, method=method), x, blocks)
    wide = jnp.dtype("float64" if dtype == "float64" else "float32")
    expected = x.astype(wide) @ blocks_to_dense(blocks, layout).astype(wide)
    chex.assert_trees_all_close(y.astype(wide), expected, atol=ATOL[dtype])
    assert [a.dtype for a in (y, *pull(y))] == [jnp.dtype(dtype)] * 3


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", few([(30, 45), (32, 32)]))
def test_derivatives_of_every_order(method, shape):
  layout, blocks = make(shape)
  x = normal((2, 3, shape[0]))
  loss, dense_loss = losses(layout, method)
  tangents = (normal(x.shape, seed=5), normal(blocks.shape, seed=6))
  # Padding has no effect: tangents there change nothing.
  directions = (
    tangents[0],
    blocks_lib.dense_to_blocks(blocks_to_dense(tangents[1], layout), layout),
  )

  def measures(f):
    grads = jax.grad(f, (0, 1))
    return {
      "value, gradients": jax.value_and_grad(f, (0, 1))(x, blocks),
      "jvp": jax.jvp(f, (x, blocks), tangents)[1],
      "forward over reverse": jax.jvp(grads, (x, blocks), directions)[1],
      "reverse over reverse": jax.grad(
        lambda b: sum(
          jnp.vdot(g, d) for g, d in zip(grads(x, b), directions, strict=True)
        )
      )(blocks),
      "per example": jax.vmap(jax.grad(f, 1), (0, None))(x, blocks),
      "ensemble": jax.vmap(jax.grad(f), (None, 0))(x, jnp.stack([blocks, 2 * blocks])),
      "remat": jax.grad(jax.checkpoint(f), (0, 1))(x, blocks),
    }

  chex.assert_trees_all_close(
    jax.jit(lambda: measures(loss))(),
    jax.jit(lambda: measures(dense_loss))(),
    atol=1e-4,
    rtol=1e-4,
  )


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_jacobian_forward_and_reverse(method):
  layout, blocks = make((16, 24), block_size=4)
  x = normal((16,))
  f = lambda x: block_matmul(x, blocks, layout, method=method)  # noqa: E731
  expected = blocks_to_dense(blocks, layout).T
  chex.assert_trees_all_close(jax.jacfwd(f)(x), expected, atol=1e-6)
  chex.assert_trees_all_close(jax.jacrev(f)(x), expected, atol=1e-6)


def test_backward_gathers_and_never_scatters():
  layout, blocks = make((64, 64), 0.25)
  x = normal((4, 64))
  for method in METHODS:
    loss, _ = losses(layout, method)
    text = jax.jit(jax.grad(loss, (0, 1))).lower(x, blocks).as_text()
    assert "stablehlo.dot_general" in text
    assert not re.search(r"stablehlo\.\"?scatter", text)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_stacks(method):
  layout, blocks = make((3, 32, 40))
  x = normal((3, 5, 32))
  y = block_matmul(x, blocks, layout, method=method)
  dense = blocks_to_dense(blocks, layout)
  expected = jnp.einsum("lni,lio->lno", x, dense)
  chex.assert_trees_all_close(y, expected, atol=1e-5)
  vmapped = jax.vmap(block_matmul)(x, blocks, layout)
  chex.assert_trees_all_close(vmapped, expected, atol=1e-5)


@pytest.mark.slow
def test_scan_over_layers():
  layout, blocks = make((4, 32, 32))
  x = normal((5, 32))

  @jax.checkpoint
  def layer(x, params):
    return jnp.tanh(block_matmul(x, *params)), None

  def loss(blocks):
    return jax.lax.scan(layer, x, (blocks, layout))[0].sum()

  def dense_loss(blocks):
    out = x
    for kernel in blocks_to_dense(blocks, layout):
      out = jnp.tanh(out @ kernel)
    return out.sum()

  chex.assert_trees_all_close(
    jax.value_and_grad(loss)(blocks), jax.value_and_grad(dense_loss)(blocks), atol=2e-5
  )


def test_one_program_serves_all_layouts_of_a_shape():
  chex.clear_trace_counter()
  run = jax.jit(chex.assert_max_traces(lambda *args: block_matmul(*args), n=1))
  x = normal((4, 32))
  for seed in range(3):
    layout = blocks_lib.block_layout(jax.random.key(seed), (32, 32), 0.25, block_size=8)
    blocks = normal(layout.blocks_shape)
    expected = x @ blocks_to_dense(blocks, layout)
    chex.assert_trees_all_close(run(x, blocks, layout), expected, atol=2e-5)


@pytest.mark.slow
def test_many_blocks_of_a_group():
  layout, blocks = make((64, 64), 0.75, block_size=2)
  assert layout.num_matchings == 24
  x = normal((4, 64))
  loss, dense_loss = losses(layout, "loop")
  chex.assert_trees_all_close(
    jax.grad(loss, (0, 1))(x, blocks),
    jax.grad(dense_loss, (0, 1))(x, blocks),
    atol=1e-5,
  )


@pytest.mark.slow
def test_padding_is_inert():
  layout, blocks = make((30, 45))
  pads = blocks_lib.dense_to_blocks(jnp.ones((30, 45)), layout) == 0
  assert pads.any()
  x = normal((4, 30))
  loss, _ = losses(layout, "loop")
  assert (jax.grad(loss, 1)(x, blocks)[pads] == 0).all()
  noisy = jnp.where(pads, 7.0, blocks)
  chex.assert_trees_all_equal(
    block_matmul(x, noisy, layout), block_matmul(x, blocks, layout)
  )


def test_an_empty_batch():
  layout = blocks_lib.block_layout(jax.random.key(0), (30, 22), 0.5, block_size=4)
  blocks = blocks_lib.block_orthogonal(jax.random.key(1), layout)
  chex.assert_shape(block_matmul(jnp.zeros((0, 30)), blocks, layout), (0, 22))


def test_errors(value_error):
  layout, blocks = make((32, 48))
  with value_error("method", "fast"):
    block_matmul(jnp.ones((2, 32)), blocks, layout, method="fast")
  with value_error("x", "(..., 32)", "(2, 48)"):
    block_matmul(jnp.ones((2, 48)), blocks, layout)
  with value_error("blocks", "(4, 2, 8, 12)"):
    block_matmul(jnp.ones((2, 32)), blocks[:2], layout)
  with value_error("floating", "int32"):
    block_matmul(jnp.ones((2, 32), int), blocks.astype(int), layout)
  stacked, many = make((3, 32, 48))
  with value_error("(3, ..., 32)", "(2, 32)"):
    block_matmul(jnp.ones((2, 32)), many, stacked)
  assert np.isfinite(blocks).all()


@pytest.mark.slow
def test_eight_devices():
  assert "equal on 8 devices" in finish(start("sharded_blocks.py"))
