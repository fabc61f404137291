"""Samples sharded matrices and compares each device's part with one device's matrix.

python tests/programs/sharded_init.py DEVICES [PROCESSES PROCESS PORT]
"""

import os
import sys

devices, *cluster = (int(arg) for arg in sys.argv[1:])
os.environ["JAX_NUM_CPU_DEVICES"] = str(devices)
os.environ["JAX_PLATFORMS"] = "cpu"

import jax  # noqa: E402
import numpy as np  # noqa: E402
from jax.sharding import AxisType, NamedSharding, PartitionSpec  # noqa: E402

from eoi_jax import eoi_init, sparse_orthogonal  # noqa: E402

COLLECTIVES = ("all-gather", "all-reduce", "all-to-all", "collective-permute")


def main() -> None:
  """Raises AssertionError if a part is wrong."""
  if cluster:
    number, index, port = cluster
    jax.distributed.initialize(f"localhost:{port}", number, index)
  mesh = jax.make_mesh((jax.device_count(),), ("x",), axis_types=(AxisType.Auto,))
  for shape, spec in [
    ((128, 128), ("x", None)),
    ((128, 128), (None, "x")),
    ((128, 64), ("x", None)),
    ((64, 128), (None, "x")),
  ]:
    sample = lambda key, shape=shape: sparse_orthogonal(key, shape, 0.1)  # noqa: E731
    sharding = NamedSharding(mesh, PartitionSpec(*spec))
    sharded = jax.jit(sample, out_shardings=sharding)
    with jax.default_device(jax.local_devices()[0]):
      whole = np.asarray(jax.jit(sample)(jax.random.key(0)))
    matrix = sharded(jax.random.key(0))
    assert len(matrix.addressable_shards) == devices
    for shard in matrix.addressable_shards:
      part = np.asarray(shard.data)
      assert part.size == matrix.size // jax.device_count()
      np.testing.assert_array_equal(part != 0, whole[shard.index] != 0)
      np.testing.assert_allclose(part, whole[shard.index], atol=1e-6)
    text = sharded.lower(jax.random.key(0)).compile().as_text()
    # Rows never interact, nor do columns: nothing is exchanged.
    assert not any(f" {name}(" in text for name in COLLECTIVES), shape
  if not cluster:
    explicit_mesh()
  print("equal on", jax.device_count(), "devices")


def explicit_mesh() -> None:
  """Asks for the sharding as part of the type."""
  shape = (jax.device_count(),)
  mesh = jax.make_mesh(shape, ("x",), axis_types=(AxisType.Explicit,))
  whole = np.asarray(eoi_init(0.1)(jax.random.key(0), (128, 128)))
  with jax.set_mesh(mesh):
    for spec in (PartitionSpec("x", None), PartitionSpec(None, "x")):
      init = jax.jit(eoi_init(0.1), static_argnums=(1, 2, 3))
      kernel = init(jax.random.key(0), (128, 128), np.dtype("float32"), spec)
      assert jax.typeof(kernel).sharding.spec == spec
      np.testing.assert_allclose(np.asarray(kernel), whole, atol=1e-6)


if __name__ == "__main__":
  main()
