"""Trains with changing masks on 8 devices and on one; compares the masks.

Parameters sharded by columns do the same arithmetic on each part: all is equal to the
last bit. A batch shared out adds up in another order; in float64 that decides nothing.
"""

import os

os.environ["JAX_NUM_CPU_DEVICES"] = "8"
os.environ["JAX_PLATFORMS"] = "cpu"

import jax

jax.config.update("jax_enable_x64", True)

import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402
from jax.sharding import AxisType, NamedSharding, PartitionSpec  # noqa: E402

from eoi_jax import current_masks, random_masks, rigl, set_evolution  # noqa: E402

STEPS, EVERY = 120, 5
INPUTS = jax.random.normal(jax.random.key(1), (32, 16), jnp.float64)
TARGETS = jax.random.normal(jax.random.key(2), (32, 8), jnp.float64)


def loss(params, inputs):
  hidden = jnp.tanh(inputs @ params["a"]["kernel"] + params["a"]["bias"])
  return jnp.mean((hidden @ params["b"]["kernel"] - TARGETS) ** 2)


def make_start():
  keys = jax.random.split(jax.random.key(0), 2)
  params = {
    "a": {"kernel": 0.3 * jax.random.normal(keys[0], (16, 24)), "bias": jnp.zeros(24)},
    "b": {"kernel": 0.3 * jax.random.normal(keys[1], (24, 8))},
  }
  return params, random_masks(jax.random.key(3), params, 0.3)


def train(tx, params, inputs):
  def step(carry, _):
    params, state = carry
    updates = jax.grad(loss)(params, inputs)
    moves, state = tx.update(updates, state, params)
    return (optax.apply_updates(params, moves), state), None

  @jax.jit
  def run(params, inputs):
    return jax.lax.scan(step, (params, tx.init(params)), length=STEPS)[0]

  return run(params, inputs)


def explicit_axes(params, masks) -> None:
  """Parameters with shardings in their types: the masks of one device."""
  tx = rigl(optax.adamw(0.01), masks, num_steps=STEPS, every=1, until=1.0)
  updates = jax.tree.map(jnp.cos, params)
  _, want = jax.jit(tx.update)(updates, tx.init(params), params)
  mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Explicit,))

  def put(x):
    spec = PartitionSpec(None, "x") if x.ndim > 1 else PartitionSpec()
    return jax.device_put(x, NamedSharding(mesh, spec))

  params, updates = (jax.tree.map(put, tree) for tree in (params, updates))
  with jax.set_mesh(mesh):
    _, state = jax.jit(tx.update)(updates, tx.init(params), params)
  for layer in ("a", "b"):
    got = state.masks[layer]["kernel"]
    assert got.sharding == params[layer]["kernel"].sharding
    assert np.array_equal(np.asarray(got), np.asarray(want.masks[layer]["kernel"]))


def devices_of_their_own(params, masks) -> None:
  """A network on each device, inside `shard_map`."""
  mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
  tx = rigl(optax.adamw(0.01), masks, num_steps=STEPS, every=2, until=1.0)
  many = jax.tree.map(lambda x: jnp.stack([x * (1 + i / 8) for i in range(8)]), params)

  def train(stack):
    params = jax.tree.map(lambda x: x[0], stack)

    def step(carry, _):
      params, state = carry
      moves, state = tx.update(jax.tree.map(jnp.cos, params), state, params)
      return (optax.apply_updates(params, moves), state), None

    carry = jax.lax.scan(step, (params, tx.init(params)), length=4)[0]
    return jax.tree.map(lambda x: x[None], carry[1].masks)

  spec = PartitionSpec("x")
  got = jax.jit(jax.shard_map(train, mesh=mesh, in_specs=spec, out_specs=spec))(many)
  for layer in ("a", "b"):
    counts = np.asarray(got[layer]["kernel"]).sum(axis=(1, 2))
    assert (counts == int(masks[layer]["kernel"].sum())).all()


def main() -> None:
  """Raises AssertionError where masks differ."""
  params, masks = make_start()
  options = {"num_steps": STEPS, "every": EVERY, "until": 1.0}
  inner = optax.adamw(0.01)
  mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
  rows, columns = PartitionSpec("x"), PartitionSpec(None, "x")
  whole = PartitionSpec()
  for tx in (
    rigl(inner, masks, **options),
    set_evolution(inner, masks, key=jax.random.key(4), **options),
  ):
    alone = train(tx, params, INPUTS)
    assert sum(int(n.sum()) for n in jax.tree.leaves(alone[1].num_grown)) > 100
    for spec, input_spec in ((whole, rows), (columns, whole)):
      put = lambda x, spec=spec: jax.device_put(  # noqa: E731
        x, NamedSharding(mesh, spec if x.ndim > 1 else whole)
      )
      inputs = jax.device_put(INPUTS, NamedSharding(mesh, input_spec))
      shared = train(tx, jax.tree.map(put, params), inputs)
      same = jax.tree.map(
        lambda a, b: np.array_equal(np.asarray(a), np.asarray(b)),
        current_masks(alone[1]),
        current_masks(shared[1]),
      )
      assert all(jax.tree.leaves(same)), (spec, input_spec, same)
      assert len(shared[0]["a"]["kernel"].sharding.device_set) == 8
  explicit_axes(params, masks)
  devices_of_their_own(params, masks)
  print("equal on", jax.device_count(), "devices")


if __name__ == "__main__":
  main()
