"""States of sparse transformations among optax's own tools, frameworks and callers."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from eoi_jax import (
  apply_masks,
  current_masks,
  random_masks,
  rigl,
  set_evolution,
  static_sparsity,
)
from eoi_jax.optim import evolve_masks, gradual_pruning

# optax's Adam promotes float with int itself.
pytestmark = pytest.mark.usefixtures("standard_promotion")

KEY = jax.random.key(0)
PARAMS = {
  "a": {"kernel": jax.random.normal(KEY, (8, 16)), "bias": jnp.zeros(16)},
  "b": {"kernel": jax.random.normal(KEY, (16, 4))},
}
MASKS = random_masks(KEY, PARAMS, 0.3)
UPDATES = jax.tree.map(lambda x: jax.random.normal(KEY, x.shape), PARAMS)

KINDS = {
  "static": static_sparsity,
  "compact": lambda inner, masks: static_sparsity(inner, masks, compact=True),
  "rigl": lambda inner, masks: rigl(inner, masks, num_steps=20, every=2),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_tools_of_optax(kind):
  tx = KINDS[kind](optax.adam(0.1), MASKS)
  state = tx.init(PARAMS)
  marked = optax.tree_map_params(tx, lambda leaf, like: leaf + 1, state, PARAMS)
  mu = optax.tree.get(marked, "mu")
  assert all(bool((leaf == 1).all()) for leaf in jax.tree.leaves(mu))
  chex.assert_trees_all_equal(marked.masks, state.masks)
  assert int(optax.tree.get(state, "count")) == 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("labels", ["nodes", "leaves"])
def test_a_partition_takes_the_masks_of_the_whole_tree(kind, labels):
  tree = {"a": "x", "b": "y"}
  if labels == "leaves":
    tree = jax.tree.map(lambda x: "x" if x.ndim > 1 else "y", PARAMS)
  make = KINDS[kind]
  groups = {"x": make(optax.adam(0.1), MASKS), "y": make(optax.sgd(0.1, 0.9), MASKS)}
  tx = optax.partition(groups, tree)
  state = tx.init(PARAMS)
  chex.assert_trees_all_equal(current_masks(state), MASKS)
  updates, _ = tx.update(UPDATES, state, PARAMS)
  dead = ~np.asarray(MASKS["a"]["kernel"])
  moved = np.asarray(PARAMS["a"]["kernel"] + updates["a"]["kernel"])
  np.testing.assert_array_equal(moved[dead], 0)


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_init_of_shapes_and_masks_by_a_function(kind):
  tx = KINDS[kind](optax.adam(0.1), lambda params: MASKS)
  state = tx.init(PARAMS)
  shapes = jax.eval_shape(lambda: PARAMS)
  chex.assert_trees_all_equal_shapes_and_dtypes(state, jax.eval_shape(tx.init, shapes))
  chex.assert_trees_all_equal_shapes_and_dtypes(state, tx.init(shapes))


@pytest.mark.slow
def test_donated_states_leave_the_callers_masks_and_key():
  mask, key = jnp.eye(4, dtype=bool), jax.random.key(3)
  params, masks = {"a": jnp.ones((4, 4)), "b": jnp.ones((4, 4))}, {"a": mask, "b": mask}
  for tx in (
    static_sparsity(optax.adam(0.1), masks),
    set_evolution(optax.adam(0.1), masks, key=key, num_steps=10, every=1),
  ):
    update, state = jax.jit(tx.update, donate_argnums=1), tx.init(params)
    for _ in range(2):
      _, state = update(params, state, params)
  assert not mask.is_deleted() and not jax.random.key_data(key).is_deleted()


@pytest.mark.slow
def test_multi_steps_within_and_around():
  for inner in (static_sparsity, KINDS["rigl"]):
    tx = inner(optax.MultiSteps(optax.adam(0.1), 2), MASKS)
    tx.update(UPDATES, tx.init(PARAMS), PARAMS)
  alone = KINDS["rigl"](optax.adam(0.1), MASKS)
  params = params2 = apply_masks(PARAMS, MASKS)
  tx = optax.MultiSteps(alone, 2)
  state, state2 = alone.init(params), tx.init(params)
  for n in range(3):  # twice 2 g and 0 is once g
    halves = UPDATES, jax.tree.map(jnp.zeros_like, UPDATES)
    grads = jax.tree.map(lambda g: 0.5 * (-1) ** n * g, UPDATES)  # noqa: B023
    moves, state = jax.jit(alone.update)(grads, state, params)
    params = optax.apply_updates(params, moves)
    for half in halves:
      half = jax.tree.map(lambda g: (-1) ** n * g, half)  # noqa: B023
      moves, state2 = jax.jit(tx.update)(half, state2, params2)
      params2 = optax.apply_updates(params2, moves)
      masks = current_masks(state2)
      assert masks["a"]["kernel"].dtype == jnp.bool_
      chex.assert_trees_all_equal(apply_masks(params2, masks), params2)
    assert int(state2.inner_opt_state.num_updates) == n + 1
    chex.assert_trees_all_equal(masks, state.masks)
  assert (masks["a"]["kernel"] != MASKS["a"]["kernel"]).any()
  chex.assert_trees_all_close(
    (params2, state2.inner_opt_state), (params, state), atol=1e-5
  )


def test_parameters_for_evaluation_come_from_the_inner_state():
  tx = static_sparsity(optax.contrib.schedule_free_sgd(0.1), MASKS)
  state = tx.init(PARAMS)
  got = optax.contrib.schedule_free_eval_params(state.inner_state, PARAMS)
  chex.assert_trees_all_equal_shapes(got, PARAMS)


def test_bfloat16_gradients_take_float32_weights_to_zero():
  params = jax.tree.map(lambda x: x + 1.2345, PARAMS)
  updates = jax.tree.map(lambda x: x.astype(jnp.bfloat16), UPDATES)
  tx = static_sparsity(optax.sgd(0.1), MASKS)
  moves, _ = tx.update(updates, tx.init(params), params)
  got = optax.apply_updates(params, moves)["a"]["kernel"]
  np.testing.assert_array_equal(got[~MASKS["a"]["kernel"]], 0)


@pytest.mark.slow
def test_any_kind_of_key():
  key = jax.random.key(0, impl="rbg")
  tree = {"a": PARAMS["a"]["kernel"], "b": PARAMS["b"]["kernel"]}
  masks = random_masks(KEY, {"kernel": tree["b"]}, 0.3)["kernel"]
  alone = evolve_masks(key, tree["b"], tree["b"], masks, 0.5, grow="random")
  assert int(alone.sum()) == int(masks.sum())
  tx = set_evolution(optax.sgd(0.1), MASKS, key=key, num_steps=9, every=1)
  tx.update(UPDATES, tx.init(PARAMS), PARAMS)


def test_a_state_of_one_vector_is_refused(value_error):
  with value_error("inner", "optax.flatten"):
    KINDS["rigl"](optax.flatten(optax.adam(0.1)), MASKS).init(PARAMS)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["static", "rigl"])
def test_nnx_takes_masks_as_a_plain_dict(kind):
  class Net(nnx.Module):
    def __init__(self, rngs):
      self.a = nnx.Linear(8, 16, rngs=rngs)
      self.b = nnx.Linear(16, 4, use_bias=False, rngs=rngs)

  net = Net(nnx.Rngs(0))
  optimizer = nnx.Optimizer(net, KINDS[kind](optax.adam(0.1), MASKS), wrt=nnx.Param)

  @nnx.jit
  def step(net, optimizer):
    slopes = nnx.grad(lambda n: jnp.mean(n.b(n.a(jnp.ones((2, 8)))) ** 2))(net)
    optimizer.update(net, slopes)

  step(net, optimizer)
  np.testing.assert_array_equal(net.a.kernel[...][~MASKS["a"]["kernel"]], 0)


@pytest.mark.slow
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_gradual_pruning_meets_its_density_to_the_weight(scope):
  full = jax.tree.map(lambda x: jnp.ones(x.shape, bool) if x.ndim > 1 else None, PARAMS)
  tx = gradual_pruning(
    optax.sgd(0.01), full, 0.13, num_steps=20, every=3, until=0.8, scope=scope
  )

  def step(carry, _):
    params, state = carry
    moves, state = tx.update(UPDATES, state, params)
    counts = jnp.stack([m.sum() for m in jax.tree.leaves(state.masks)])
    return (optax.apply_updates(params, moves), state), counts

  carry = (PARAMS, tx.init(PARAMS))
  (params, state), counts = jax.jit(lambda c: jax.lax.scan(step, c, length=20))(carry)
  totals = np.asarray(counts.sum(axis=1))
  assert (np.diff(totals) <= 0).all() and totals[0] == 192 and len(set(totals)) > 4
  assert totals[-1] == round(0.13 * 192)
  if scope == "layer":
    assert counts[-1].tolist() == [round(0.13 * 128), round(0.13 * 64)]
    at = (6 - 0) / 16  # the cubic, at step 6
    want = round(128 - round((1 - (1 - at) ** 3) * (128 - 17)))
    assert int(counts[5, 0]) == want
  kernel = np.asarray(params["a"]["kernel"])
  np.testing.assert_array_equal(kernel[~np.asarray(state.masks["a"]["kernel"])], 0)


def test_gradual_pruning_cannot_grow(value_error):
  options = {"num_steps": 20, "initial_density": {"a": {"kernel": 0.2}}}
  with value_error("`density`", "at most `initial_density`", "0.3 and 0.2", "a/kernel"):
    density = {"a": {"kernel": 0.3}}
    gradual_pruning(optax.sgd(0.01), MASKS, density, **options)


def counts_of_pruning(params, density, num_steps, *, every=1, **options):
  """Live weights of each leaf after each step, at a learning rate of zero."""
  masks = jax.tree.map(lambda x: jnp.ones(x.shape, bool), params)
  options |= {"num_steps": num_steps, "every": every}
  tx = gradual_pruning(optax.sgd(0.0), masks, density, **options)
  state, counts = tx.init(params), []
  for _ in range(num_steps):
    _, state = tx.update(params, state, params)
    counts.append([int(m.sum()) for m in jax.tree.leaves(state.masks)])
  return counts


@pytest.mark.slow
def test_densities_of_gradual_pruning(value_error):
  weights = {"w": jax.random.normal(KEY, (8, 8))}
  for density in (0.1, jnp.float32(0.1), np.array(0.1), {"w": 0.1}):
    assert counts_of_pruning(weights, density, 4, until=1.0)[-1] == [6]
  for density, words in (
    ({"W": 0.1}, ("'w'", "'W'")),
    ({"w": 0.1, "b": 0.1}, ("'w'", "'b'")),
    (None, ("'w'", "got []")),
    ({}, ("'w'", "got []")),
    ({"w": None}, ("'w'", "got []")),
    ({"w": np.array([0.1, 0.2])}, ("'w'", "(1,)", "(2,)")),
    ("0.1x", ("finite number", "0.1x")),
  ):
    with value_error("`density`", *words):
      counts_of_pruning(weights, density, 4)
  with value_error("`initial_density`", "got ['W']"):
    counts_of_pruning(weights, 0.1, 4, initial_density={"W": 0.1})
  with value_error("`density`", "at most `initial_density`", "0.3 and 0.2"):
    counts_of_pruning(weights, 0.3, 4, initial_density={"w": 0.2})
  # The first density at the first step of the way, and one weight of a layer at least.
  options = {"begin": 0.25, "initial_density": 0.5, "every": 5}
  assert counts_of_pruning(weights, 0.1, 20, **options)[4] == [32]
  two = {"a": weights["w"], "b": weights["w"] * 1e-3}
  assert counts_of_pruning(two, 0.01, 4, scope="global")[-1] == [1, 1]
  assert counts_of_pruning(two, 0.005, 4)[-1] == [1, 1]


def test_the_best_weight_of_a_layer_stays_in_the_global_scope():
  params = {n: jnp.array([[5.0, 4, 3, 2, 1, 0, 0, 0]]) for n in "ab"}
  masks = jax.tree.map(lambda x: x > 0, params)
  slopes = {"a": jnp.arange(8.0)[None] + 10, "b": jnp.arange(8.0)[None]}
  new = evolve_masks(None, params, slopes, masks, 0.9, scope="global")
  assert new["a"][0, 0] and new["b"][0, 0]


def test_the_mean_of_gradients_survives_one_that_is_not_finite():
  inner = optax.apply_if_finite(optax.sgd(0.01), 5)
  tx = rigl(inner, MASKS, num_steps=100, every=5, mean_decay=0.9)
  state = tx.init(PARAMS)
  bad = jax.tree.map(lambda x: x.at[(0,) * x.ndim].set(jnp.nan), UPDATES)
  for slopes in (UPDATES, bad, UPDATES):
    _, state = tx.update(slopes, state, PARAMS)
  chex.assert_tree_all_finite(state.mean)


def test_named_extra_arguments_reach_the_optimizer():
  def update(updates, state, params=None, *, value=1.0):
    return jax.tree.map(lambda u: value * u, updates), state

  inner = optax.GradientTransformationExtraArgs(lambda params: (), update)
  tx = static_sparsity(inner, MASKS)
  state = tx.init(PARAMS)
  once, _ = tx.update(UPDATES, state, PARAMS)
  thrice, _ = tx.update(UPDATES, state, PARAMS, value=3.0, other=1)
  dense = once["a"]["bias"]
  chex.assert_trees_all_close(thrice["a"]["bias"], 3 * dense)


@pytest.mark.slow
def test_constant_fan_in():
  tx = rigl(optax.sgd(0.01), MASKS, num_steps=20, every=2, scope="unit")
  params, state = PARAMS, tx.init(PARAMS)
  update = jax.jit(tx.update)
  for _ in range(4):
    moves, state = update(UPDATES, state, params)
    params = optax.apply_updates(params, moves)
  for layer in ("a", "b"):
    before, after = MASKS[layer]["kernel"], state.masks[layer]["kernel"]
    fan_in = np.asarray(after).sum(axis=0)
    assert fan_in.sum() == int(before.sum()) and np.ptp(fan_in) <= 1
    assert (before != after).any()
