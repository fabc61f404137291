"""Multiplies with blocks that are sharded over 8 devices; compares with one device."""

import os

os.environ["JAX_NUM_CPU_DEVICES"] = "8"
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from eoi_jax import blocks as blocks_lib


def loss(x, blocks, layout, method):
  """A scalar of the product."""
  y = blocks_lib.block_matmul(x, blocks, layout, method=method)
  return jnp.mean(jnp.tanh(y) ** 2)


def main() -> None:
  """Raises AssertionError if a value or a gradient differs."""
  layout = blocks_lib.block_layout(jax.random.key(0), (64, 128), 0.25, block_size=8)
  blocks = blocks_lib.block_orthogonal(jax.random.key(1), layout)
  x = jax.random.normal(jax.random.key(2), (16, 64))
  run = jax.jit(jax.value_and_grad(loss, (0, 1)), static_argnums=3)
  expected = run(x, blocks, layout, "batched")

  def check(result):
    for a, b in zip(jax.tree.leaves(result), jax.tree.leaves(expected), strict=True):
      np.testing.assert_allclose(a, b, atol=1e-6)

  split = PartitionSpec("groups")
  for kind in (AxisType.Auto, AxisType.Explicit):
    mesh = jax.make_mesh((8,), ("groups",), axis_types=(kind,))
    for spec, method in [
      (PartitionSpec(), "batched"),
      (split, "batched"),
      (split, "loop"),
    ]:
      part = NamedSharding(mesh, split)
      with jax.set_mesh(mesh):
        result = run(
          jax.device_put(x, NamedSharding(mesh, spec)),
          jax.device_put(blocks, part),
          jax.device_put(layout, part),
          method,
        )
      check(result)
      if kind == AxisType.Explicit:
        assert result[1][1].sharding.is_equivalent_to(part, 4), "gradients are gathered"

  mesh = jax.make_mesh((8,), ("rows",), axis_types=(AxisType.Auto,))
  for method in ("loop", "batched"):

    def local(x, blocks, method=method):
      value = lambda x, blocks: jax.lax.pmean(loss(x, blocks, layout, method), "rows")  # noqa: E731
      return jax.value_and_grad(value, (0, 1))(x, blocks)

    rows, whole = PartitionSpec("rows"), PartitionSpec()
    mapped = jax.shard_map(
      local, mesh=mesh, in_specs=(rows, whole), out_specs=(whole, (rows, whole))
    )
    check(jax.jit(mapped)(x, blocks))
  print("equal on 8 devices")


if __name__ == "__main__":
  main()
