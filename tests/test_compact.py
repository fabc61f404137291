"""`static_sparsity(compact=True)`: the same training with a state of live weights."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from eoi_jax import apply_masks, current_masks, random_masks, static_sparsity
from tests.cases import few

# optax's Adam promotes float with int itself.
pytestmark = pytest.mark.usefixtures("standard_promotion")

INPUTS = jax.random.normal(jax.random.key(1), (32, 24))
TARGETS = jax.random.normal(jax.random.key(2), (32, 16))


def loss(params):
  x = jnp.tanh(INPUTS @ params["a"]["kernel"] + params["a"]["bias"][None])
  return jnp.mean((x @ params["b"]["kernel"] - TARGETS) ** 2)


def make_start():
  keys = jax.random.split(jax.random.key(0), 3)
  params = {
    "a": {"kernel": 0.3 * jax.random.normal(keys[0], (24, 40)), "bias": jnp.ones(40)},
    "b": {"kernel": 0.3 * jax.random.normal(keys[1], (40, 16))},
  }
  masks = random_masks(keys[2], params, 0.1)
  return apply_masks(params, masks), masks


PARAMS, MASKS = make_start()


def step_of(tx):
  # One gradient program for both, so that only the optimizers are compared.
  update = jax.jit(tx.update)

  def step(params, state):
    updates, state = update(slopes(params), state, params)
    return apply(params, updates), state

  return step


slopes = jax.jit(jax.grad(loss))
apply = jax.jit(optax.apply_updates)

ELEMENTWISE = {
  "sgd": lambda: optax.sgd(0.1),
  "momentum": lambda: optax.sgd(0.1, 0.9),
  "nesterov": lambda: optax.sgd(0.1, 0.9, nesterov=True),
  "adam": lambda: optax.adam(0.01),
  "adamw": lambda: optax.adamw(0.01, weight_decay=0.1),
  "rmsprop": lambda: optax.rmsprop(0.01),
  "lion": lambda: optax.lion(0.001),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", few(sorted(ELEMENTWISE), 2))
def test_trajectories_are_those_of_the_dense_state_to_the_last_bit(name):
  inner = ELEMENTWISE[name]()
  txs = [static_sparsity(inner, MASKS, compact=compact) for compact in (False, True)]
  ends = []
  for tx in txs:
    step, params, state = step_of(tx), PARAMS, tx.init(PARAMS)
    for _ in range(300):
      params, state = step(params, state)
    ends.append(params)
  chex.assert_trees_all_equal(*ends)
  assert (np.asarray(ends[1]["a"]["kernel"]) != PARAMS["a"]["kernel"]).any()


def num_bytes(tree):
  return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


@pytest.mark.slow
def test_the_state_shrinks_with_the_density():
  params = {"kernel": jnp.ones((200, 100))}
  masks = random_masks(jax.random.key(0), params, 0.1)
  dense, live = (
    static_sparsity(optax.adamw(0.1), masks, compact=c).init(params)
    for c in (False, True)
  )
  assert num_bytes(live.inner_state) <= 0.11 * num_bytes(dense.inner_state)
  # Positions, and the mask as bits with a count before each word of 32.
  places = [num_bytes(x) for x in live.masks["kernel"][:3]]
  assert places == [4 * 2000, 20_000 // 8, 20_000 // 8]
  assert num_bytes(live) <= 0.165 * num_bytes(dense)


@pytest.mark.slow
def test_what_stands_in_a_place_of_its_own_is_refused(value_error):
  def decay(tree):
    return jax.tree.map(lambda x: x.ndim > 1, tree)

  wide = {"kernel": jnp.ones((128, 160))}
  constants = [optax.constant_schedule(rate) for rate in (0.0, 0.1)]
  late = optax.join_schedules(constants, [2])
  for inner, params, words in (
    (optax.contrib.muon(0.1), PARAMS, "structure"),
    (optax.adafactor(0.1), wide, "shape (128,)"),
    (optax.adamw(0.1, mask=decay), PARAMS, "vector"),
    (optax.chain(optax.centralize(), optax.sgd(0.1)), PARAMS, "vector"),
    (optax.chain(optax.adaptive_grad_clip(0.1), optax.sgd(0.1)), PARAMS, "vector"),
    (optax.noisy_sgd(0.1, key=jax.random.key(0)), PARAMS, "vector"),
    # What moves nothing at first, and what moves little.
    (optax.MultiSteps(optax.adamw(0.1, mask=decay), 3), PARAMS, "vector"),
    (optax.adamw(late, weight_decay=0.1, mask=decay), PARAMS, "vector"),
    (optax.adamw(0.1, weight_decay=1e-5, mask=decay), PARAMS, "vector"),
    (optax.polyak_sgd(), PARAMS, "extra arguments"),
  ):
    masks = random_masks(jax.random.key(3), params, 0.5)
    with value_error("inner", "compact", words):
      static_sparsity(inner, masks, compact=True).init(params)


@pytest.mark.slow
def test_explicit_meshes():
  mesh = jax.make_mesh((1,), ("m",))
  sharding = jax.NamedSharding(mesh, jax.P(None, "m"))
  params = {"w": jax.device_put(PARAMS["b"]["kernel"], sharding)}
  slope = {"w": jax.device_put(jnp.ones((40, 16)), sharding)}
  masks = {"w": MASKS["b"]["kernel"]}
  ends = []
  for compact in (False, True):
    with jax.set_mesh(mesh):
      tx = static_sparsity(optax.adam(0.1), masks, compact=compact)
      moves, _ = jax.jit(tx.update)(slope, tx.init(params), params)
      assert jax.typeof(moves["w"]).sharding == jax.typeof(params["w"]).sharding
    ends.append(np.asarray(moves["w"]))
  np.testing.assert_array_equal(*ends)


@pytest.mark.slow
def test_clipping_by_the_global_norm_is_supported():
  inner = optax.chain(optax.clip_by_global_norm(0.1), optax.adam(0.01))
  ends = []
  for compact in (False, True):
    tx = static_sparsity(inner, MASKS, compact=compact)
    updates, _ = tx.update(slopes(PARAMS), tx.init(PARAMS), PARAMS)
    ends.append(updates)
  chex.assert_trees_all_close(*ends, rtol=1e-5)


@pytest.mark.slow
def test_scan_vmap_donation_and_masks():
  tx = static_sparsity(optax.adam(0.01), MASKS, compact=True)
  chex.assert_trees_all_equal(current_masks(tx.init(PARAMS)), MASKS)
  many = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), PARAMS)
  states = jax.vmap(tx.init)(many)
  masks = current_masks(states)
  chex.assert_trees_all_equal(jax.tree.map(lambda x: x[1], masks), MASKS)

  def step(carry, _):
    params, state = carry
    updates, state = tx.update(jax.grad(loss)(params), state, params)
    return (optax.apply_updates(params, updates), state), None

  @functools.partial(jax.jit, donate_argnums=1)
  def run(params, states):
    return jax.vmap(lambda *c: jax.lax.scan(step, c, length=3)[0])(params, states)

  params, states = run(many, states)
  dead = ~np.asarray(MASKS["a"]["kernel"])
  assert not np.asarray(params["a"]["kernel"])[:, dead].any()
  jax.tree.map(lambda x: x.block_until_ready(), MASKS)  # not deleted


def test_traced_masks_are_refused(value_error):
  def init(masks):
    return static_sparsity(optax.sgd(0.1), masks, compact=True).init(PARAMS)

  with value_error("masks", "concrete"):
    jax.jit(init)(MASKS)


@pytest.mark.slow
def test_a_dead_weight_that_is_not_zero_is_brought_to_zero():
  params = jax.tree.map(lambda x: x + 1.2345, PARAMS)
  updates = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
  tx = static_sparsity(optax.sgd(0.1), MASKS, compact=True)
  moves, _ = tx.update(updates, tx.init(params), params)
  got = optax.apply_updates(params, moves)
  chex.assert_trees_all_equal(got, apply_masks(got, MASKS))
