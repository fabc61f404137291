"""`dynamic_sparsity`: weights, moments and state around a change of the masks."""

import functools

import chex
import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import eoi_jax
from eoi_jax import kernel_layouts
from eoi_jax.optim import (
  current_masks,
  dynamic_sparsity,
  restore_isometry,
  rigl,
  set_evolution,
  static_sparsity,
)
from tests.cases import few
from tests.processes import finish, start

# optax's Adam promotes float with int itself.
pytestmark = pytest.mark.usefixtures("standard_promotion")

# Many small programs: compiled for their number, not for the time that they run.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

T, F = True, False
PARAMS = {"kernel": jnp.float32([[4, -3, 1], [0, 0, 0]]), "bias": jnp.ones(3)}
MASKS = {"kernel": jnp.array([[T, T, T], [F, F, F]]), "bias": None}
UPDATES = {"kernel": jnp.float32([[0.5, 0.5, 0.5], [1, 3, 2]]), "bias": jnp.ones(3)}
# A third of three: the 1 is dropped, the gradient of 3 is grown.
AFTER = np.array([[T, T, F], [F, T, F]])
CHANGED = np.array([[F, F, T], [F, T, F]])


def grown(counts):
  return sum(int(np.sum(count)) for count in jax.tree.leaves(counts))


def in_step(number, fraction=0.34):
  return lambda count: jnp.where(jnp.asarray(count) == number, fraction, 0)


def steps(tx, num_steps, *, params=PARAMS, updates=UPDATES):
  state = tx.init(params)

  @jit
  def step(params, state):
    moves, state = tx.update(updates, state, params)
    return optax.apply_updates(params, moves), state

  for _ in range(num_steps):
    params, state = step(params, state)
  return params, state


def test_one_change_by_hand():
  tx = dynamic_sparsity(optax.sgd(0.1), MASKS, schedule=in_step(1))
  params, state = steps(tx, 1)
  chex.assert_trees_all_equal(state.masks["kernel"], AFTER)
  want = np.float32([[3.95, -3.05, 0], [0, 0, 0]])
  chex.assert_trees_all_close(params["kernel"], want, rtol=1e-6)
  chex.assert_trees_all_equal(np.asarray(params["kernel"])[CHANGED], 0)
  chex.assert_trees_all_close(params["bias"], 0.9, rtol=1e-6)
  assert grown(state.num_grown) == 1 and int(state.num_updates) == 1
  # The new weight is trained from the next step on, the dropped one no more.
  params, state = steps(tx, 2)
  want = np.float32([[3.9, -3.1, 0], [0, -0.3, 0]])
  chex.assert_trees_all_close(params["kernel"], want, rtol=1e-6)
  chex.assert_trees_all_equal(state.masks["kernel"], AFTER)


def test_the_step_may_be_skipped_as_published():
  tx = dynamic_sparsity(optax.adam(0.1), MASKS, schedule=in_step(2), skip_step=True)
  before, old = steps(tx, 1)
  params, state = steps(tx, 2)
  chex.assert_trees_all_equal(state.masks["kernel"], AFTER)
  kept = np.asarray(MASKS["kernel"]) & ~CHANGED
  chex.assert_trees_all_equal(
    np.asarray(params["kernel"])[kept], np.asarray(before["kernel"])[kept]
  )
  chex.assert_trees_all_equal(params["bias"], before["bias"])
  assert int(optax.tree.get(state, "mu")["kernel"][0, 2]) == 0
  for name in ("mu", "nu"):
    got, was = (np.asarray(optax.tree.get(s, name)["kernel"]) for s in (state, old))
    chex.assert_trees_all_equal(got, np.where(CHANGED, 0, was))
  first, second = (s.inner_state[0].count for s in (old, state))
  assert int(first) == int(second) == 1


def test_the_drop_sees_the_weights_that_the_step_leaves():
  # Before the step the last weight is smallest, after it the first.
  params = {"kernel": jnp.float32([[1.1, 3, 1], [0, 0, 0]]), "bias": jnp.ones(3)}
  updates = {"kernel": jnp.float32([[8, 0, 0], [0, 0, 9]]), "bias": jnp.ones(3)}
  make = functools.partial(dynamic_sparsity, optax.sgd(0.1), MASKS, schedule=in_step(1))
  _, state = steps(make(), 1, params=params, updates=updates)
  assert state.masks["kernel"].tolist() == [[F, T, T], [F, F, T]]
  _, state = steps(make(skip_step=True), 1, params=params, updates=updates)
  assert state.masks["kernel"].tolist() == [[T, T, F], [F, F, T]]


@pytest.mark.slow
def test_growth_may_look_at_the_mean_of_gradients():
  """The last gradient prefers the last weight, the mean of three the one before."""
  turns = jnp.float32([[0, 8, 0], [0, 8, 0], [0, 0, 9]])
  make = functools.partial(dynamic_sparsity, optax.sgd(0.0), MASKS, schedule=in_step(3))
  for mean_decay, want in ((0.0, [F, F, T]), (0.5, [F, F, T]), (0.8, [F, T, F])):
    tx = make(mean_decay=mean_decay)
    state = tx.init(PARAMS)
    for row in turns:
      updates = {"kernel": jnp.stack([jnp.zeros(3), row]), "bias": None}
      _, state = tx.update(updates, state, {**PARAMS, "bias": None})
    assert state.masks["kernel"][1].tolist() == want
  # 8 (.2 * .8^2 + .2 * .8) = 2.304 and .2 * 9
  np.testing.assert_allclose(state.mean["kernel"][1], [0, 2.304, 1.8], rtol=1e-6)
  assert state.mean["bias"] is None and make().init(PARAMS).mean is None


MOMENTS = {
  "sgd": (lambda: optax.sgd(0.1, 0.9), {"trace": 0.0}),
  "adam": (lambda: optax.adam(0.1), {"mu": 0.0, "nu": 0.0}),
  "adagrad": (lambda: optax.adagrad(0.1, 0.25), {"sum_of_squares": 0.25}),
  "rmsprop": (lambda: optax.rmsprop(0.1, initial_scale=0.5), {"nu": 0.5}),
  "schedule_free": (lambda: optax.contrib.schedule_free_sgd(0.1), {"z": 0.0}),
  "chain": (
    lambda: optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(0.1)),
    {"mu": 0.0, "nu": 0.0},
  ),
  "masked": (
    lambda: optax.masked(optax.adam(0.1), {"kernel": True, "bias": False}),
    {"mu": 0.0, "nu": 0.0},
  ),
  "inject": (
    lambda: optax.inject_hyperparams(optax.adam)(learning_rate=0.1),
    {"mu": 0.0, "nu": 0.0},
  ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", few(sorted(MOMENTS)))
def test_moments_start_anew_exactly_where_masks_change(name, standard_promotion):
  make, initial = MOMENTS[name]
  _, never = steps(static_sparsity(make(), MASKS), 3)
  _, state = steps(dynamic_sparsity(make(), MASKS, schedule=in_step(3)), 3)
  chex.assert_trees_all_equal(state.masks["kernel"], AFTER)
  for moment, value in initial.items():
    got, want = (optax.tree.get(s.inner_state, moment) for s in (state, never))
    expected = np.where(CHANGED, np.float32(value), want["kernel"])
    chex.assert_trees_all_equal(got["kernel"], expected)
    assert (np.asarray(want["kernel"])[CHANGED] != value).any()  # it was used
    if name != "masked":
      chex.assert_trees_all_equal(got["bias"], want["bias"])


@pytest.mark.slow
def test_a_history_is_reset_entry_by_entry():
  """L-BFGS, whose state optax cannot map: leaves `[memory, *shape]`, by their name."""
  tx = dynamic_sparsity(optax.scale_by_lbfgs(memory_size=3), MASKS, schedule=in_step(4))
  _, never = steps(tx, 3)
  _, state = steps(tx, 4)
  was = np.asarray(optax.tree.get(never, "diff_params_memory")["kernel"])
  got = np.asarray(optax.tree.get(state, "diff_params_memory")["kernel"])
  live = np.asarray(state.masks["kernel"])
  dropped = np.asarray(MASKS["kernel"]) & ~live
  assert dropped.sum() == 1 and was.shape == (3, 2, 3) and was[:, dropped].any()
  chex.assert_trees_all_equal(got[:, live != MASKS["kernel"]], 0)
  assert got[:, live & ~dropped].any()


def test_without_a_change_it_is_static_sparsity():
  inner = optax.adamw(0.1)
  static, _ = steps(static_sparsity(inner, MASKS), 20)
  dynamic, state = steps(dynamic_sparsity(inner, MASKS, schedule=lambda count: 0.0), 20)
  chex.assert_trees_all_equal(static, dynamic)
  assert grown(state.num_grown) == 0


def test_a_dead_weight_that_is_not_zero_is_brought_to_zero():
  params = {"kernel": jnp.float32([[4, 3, 1], [5, 6, 7]]), "bias": jnp.ones(3)}
  tx = dynamic_sparsity(optax.sgd(0.1), MASKS, schedule=in_step(1))
  got, _ = steps(tx, 1, params=params)
  chex.assert_trees_all_equal(np.asarray(got["kernel"])[~AFTER | CHANGED], 0)


@pytest.mark.slow
@pytest.mark.parametrize("params_dtype", few([jnp.bfloat16, jnp.float16, jnp.float32]))
def test_dropped_weights_are_zero_in_any_precision(params_dtype):
  keys = jax.random.split(jax.random.key(0), 2)
  params, updates = (jax.random.normal(k, (16, 16)) for k in keys)
  live = jax.random.bernoulli(jax.random.key(1), 0.5, (16, 16))
  params, updates = params.astype(params_dtype), updates.astype(jnp.bfloat16)
  tx = dynamic_sparsity(optax.sgd(0.1), live, schedule=in_step(2, 0.5))
  got, state = steps(tx, 2, params=params, updates=updates)
  assert got.dtype == params_dtype and (state.masks != live).any()
  chex.assert_trees_all_equal(np.asarray(got, np.float32)[~state.masks], 0)


def quadratic(params, goal):
  return sum(
    jnp.sum((a - b) ** 2)
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(goal), strict=True)
  )


def problem(key, *, stacked=False):
  shape = (3, 8, 8) if stacked else (8, 8)
  keys = jax.random.split(key, 3)
  tree = lambda k: {  # noqa: E731
    "a": jax.random.normal(k, shape),
    "b": jax.random.normal(jax.random.fold_in(k, 1), (4, 6)),
  }
  masks = jax.tree.map(lambda x: x > 0.3, tree(keys[2]))
  return eoi_jax.apply_masks(tree(keys[0]), masks), masks, tree(keys[1])


def run(tx, params, goal, num_steps=60):
  def step(carry, _):
    params, state = carry
    updates = jax.grad(quadratic)(params, goal)
    moves, state = tx.update(updates, state, params)
    return (optax.apply_updates(params, moves), state), None

  return jax.lax.scan(step, (params, tx.init(params)), length=num_steps)[0]


RECIPES = {
  "rigl of a mean": lambda masks, key, **options: rigl(
    optax.adamw(0.02), masks, num_steps=60, every=7, mean_decay=0.8, **options
  ),
  "rigl": lambda masks, key, **options: rigl(
    optax.adamw(0.02), masks, num_steps=60, every=7, **options
  ),
  "set": lambda masks, key, **options: set_evolution(
    optax.adamw(0.02), masks, key=key, num_steps=60, every=7, **options
  ),
}


@pytest.mark.parametrize("name", few(sorted(RECIPES), 0))
def test_seeds_side_by_side_are_seeds_alone(name):
  def train(key):
    params, masks, goal = problem(key)
    return run(RECIPES[name](masks, key), params, goal)

  keys = jax.random.split(jax.random.key(0), 3)
  together = jit(jax.vmap(train))(keys)
  alone = jit(train)
  for index, key in enumerate(keys):
    params, state = jax.tree.map(lambda leaf, i=index: leaf[i], together)
    want, want_state = alone(key)
    chex.assert_trees_all_equal(state.masks, want_state.masks)
    chex.assert_trees_all_close(params, want, atol=1e-5, rtol=1e-7)
    assert grown(state.num_grown) > 5
  drawn = together[1].masks["a"]
  assert (drawn[0] != drawn[1]).any()


def primitives(jaxpr, stop=()):
  """Names of all primitives of a program, those within `stop` left out."""
  for equation in jaxpr.eqns:
    yield equation.primitive.name
    if equation.primitive.name not in stop:
      for inner in jax.extend.core.jaxprs_in_params(equation.params):
        yield from primitives(inner, stop)


def test_under_vmap_a_step_without_a_change_runs_no_selection():
  """The program branches on whether any member is due, instead of doing both."""
  tx = RECIPES["rigl"](MASKS, None)
  state = jax.vmap(lambda _: tx.init(PARAMS))(jnp.arange(2))
  params, updates = (
    jax.tree.map(lambda x: jnp.stack([x, x]), tree) for tree in (PARAMS, UPDATES)
  )
  jaxpr = jax.make_jaxpr(jax.vmap(tx.update))(updates, state, params).jaxpr
  outside = list(primitives(jaxpr, stop=("cond",)))
  assert "cond" in outside and "while" not in outside and "scan" not in outside
  assert {"while", "scan"} & set(primitives(jaxpr))


@pytest.mark.slow
@pytest.mark.parametrize("name", few(sorted(RECIPES)))
def test_a_run_goes_on_from_saved_arrays(name):
  params, masks, goal = problem(jax.random.key(1))
  tx = RECIPES[name](masks, jax.random.key(2))

  @jit
  def go_on(params, state, num_steps):
    def step(_, carry):
      params, state = carry
      updates = jax.grad(quadratic)(params, goal)
      moves, state = tx.update(updates, state, params)
      return optax.apply_updates(params, moves), state

    return jax.lax.fori_loop(0, num_steps, step, (params, state))

  whole = go_on(params, tx.init(params), 60)
  half = go_on(params, tx.init(params), 31)
  leaves, treedef = jax.tree.flatten(half)
  saved = [np.asarray(leaf) for leaf in leaves]  # no typed key among them
  # A new process builds the transformation anew; masks and key are in the state.
  tx = RECIPES[name](masks, jax.random.key(99))
  again = go_on(*jax.tree.unflatten(treedef, [jnp.asarray(x) for x in saved]), 29)
  chex.assert_trees_all_equal(whole, again)


@pytest.mark.slow
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_stacked_leaves_and_totals(scope):
  params, masks, goal = problem(jax.random.key(3), stacked=True)
  layouts = kernel_layouts(params, {"a": "sio", "b": "io"})
  tx = RECIPES["rigl"](masks, None, scope=scope, layouts=layouts)
  _, state = jit(functools.partial(run, tx))(params, goal)
  before, after = masks["a"].sum((1, 2)), state.masks["a"].sum((1, 2))
  if scope == "layer":
    chex.assert_trees_all_equal(before, after)
    assert state.masks["b"].sum() == masks["b"].sum()
  else:
    total = lambda tree: sum(int(m.sum()) for m in jax.tree.leaves(tree))  # noqa: E731
    assert total(masks) == total(state.masks)
    assert (before != after).any() and (after > 0).all()


@pytest.mark.slow
def test_masks_improve_towards_the_goal():
  """A sparse target is found: RigL ends below static masks, and SET does, too."""
  params, masks, _ = problem(jax.random.key(4))
  wanted = jax.tree.map(lambda m: jnp.roll(m, 3), masks)
  goal = eoi_jax.apply_masks(jax.tree.map(jnp.ones_like, params), wanted)
  inner, options = optax.adam(0.05), {"num_steps": 300, "every": 10}
  transforms = {
    "static": static_sparsity(inner, masks),
    "rigl": rigl(inner, masks, **options),
    "set": set_evolution(inner, masks, key=jax.random.key(0), **options),
  }
  losses = {}
  for name, tx in transforms.items():
    end, _ = jit(functools.partial(run, tx, num_steps=300))(params, goal)
    losses[name] = float(quadratic(end, goal))
  assert losses["rigl"] < 0.2 * losses["static"]
  assert losses["set"] < 0.8 * losses["static"]


def test_masks_are_found_in_any_state():
  for tx in (
    static_sparsity(optax.sgd(0.1), MASKS),
    rigl(optax.sgd(0.1), MASKS, num_steps=10),
    optax.chain(optax.clip(1.0), rigl(optax.sgd(0.1), MASKS, num_steps=10)),
    optax.MultiSteps(rigl(optax.sgd(0.1), MASKS, num_steps=10), 2),
    optax.inject_hyperparams(lambda rate: static_sparsity(optax.sgd(rate), MASKS))(
      rate=0.1
    ),
  ):
    masks = current_masks(tx.init(PARAMS))
    chex.assert_trees_all_equal(masks["kernel"], MASKS["kernel"])
    assert masks["bias"] is None
  other = {"kernel": jnp.array([[T, F, T], [T, F, F]]), "bias": jnp.array([T, F, F])}
  both = optax.chain(
    static_sparsity(optax.identity(), MASKS), static_sparsity(optax.sgd(0.1), other)
  )
  masks = current_masks(both.init(PARAMS))
  assert masks["kernel"].tolist() == [[T, F, T], [F, F, F]]
  assert masks["bias"].tolist() == [T, F, F]
  # It mixes states by arithmetic, which makes integers of masks.
  inner = static_sparsity(optax.sgd(0.1), MASKS)
  sam = optax.contrib.sam(inner, optax.sgd(0.1), sync_period=2)
  _, state = sam.update(PARAMS, sam.init(PARAMS), PARAMS)
  chex.assert_trees_all_equal_dtypes(current_masks(state), MASKS)
  chex.assert_trees_all_equal(current_masks(state), MASKS)


def test_a_state_without_masks(value_error):
  with value_error("opt_state", "static_sparsity"):
    current_masks(optax.adam(0.1).init(PARAMS))


@pytest.mark.slow
def test_it_may_stand_inside_another_transform():
  params, masks, goal = problem(jax.random.key(5))
  tx = optax.chain(
    optax.clip_by_global_norm(1.0),
    optax.MultiSteps(RECIPES["rigl"](masks, None), 2).gradient_transformation(),
  )
  params, state = jit(functools.partial(run, tx))(params, goal)
  masks = current_masks(state)
  assert grown(optax.tree.get(state, "num_grown")) > 5
  for name, mask in masks.items():
    chex.assert_trees_all_equal(np.asarray(params[name])[~mask], 0)


@pytest.mark.slow
def test_isometry_is_restored_within_the_masks():
  delta = jnp.zeros((3, 3, 8, 16)).at[1, 1].set(jnp.eye(8, 16))
  weights = {
    "dense": {"kernel": jnp.eye(32, 48)},
    "conv": {"kernel": delta},
    "bias": jnp.ones(4),
  }
  more = eoi_jax.random_masks(jax.random.key(2), weights, 0.3)
  masks = {
    name: {"kernel": more[name]["kernel"] | (weights[name]["kernel"] != 0)}
    for name in ("dense", "conv")
  } | {"bias": None}
  kernels = lambda f, tree: {  # noqa: E731
    name: {"kernel": f(leaf["kernel"])} if name != "bias" else leaf
    for name, leaf in tree.items()
  }
  trained = kernels(
    lambda x: x + 0.05 * jax.random.normal(jax.random.key(3), x.shape), weights
  )
  updates = kernels(lambda x: jax.random.normal(jax.random.key(4), x.shape), trained)
  make = functools.partial(dynamic_sparsity, optax.sgd(0.0), masks, schedule=in_step(1))
  data = {"params": trained, "updates": updates}
  restore = functools.partial(restore_isometry, scale=1.0)
  with_it, state = steps(make(restore=restore), 1, **data)
  without, plain = steps(make(), 1, **data)
  chex.assert_trees_all_equal(state.masks, plain.masks)
  for name in ("dense", "conv"):
    errors = [frobenius(tree[name]["kernel"]) for tree in (with_it, without)]
    assert errors[0] < 0.25 * errors[1]
    dead = ~np.asarray(state.masks[name]["kernel"])
    chex.assert_trees_all_equal(np.asarray(with_it[name]["kernel"])[dead], 0)
  chex.assert_trees_all_equal(with_it["bias"], 1)


def frobenius(kernel, scale=1.0):
  matrix = np.asarray(kernel, np.float64).reshape(-1, kernel.shape[-1])
  matrix = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
  return np.linalg.norm(matrix @ matrix.T - scale**2 * np.eye(len(matrix)))


@pytest.mark.slow
def test_restoring_at_the_kernels_own_scale():
  kernel = 3 * jax.random.normal(jax.random.key(0), (2, 12, 20)) / 20**0.5
  live = jax.random.bernoulli(jax.random.key(1), 0.5, kernel.shape)
  start = jnp.where(live, kernel, 0)
  layouts = kernel_layouts({"kernel": start}, {"kernel": "sio"})
  got = restore_isometry({"kernel": start}, {"kernel": live}, layouts=layouts)["kernel"]
  for before, after in zip(start, got, strict=True):
    scale = float(jnp.sqrt(jnp.sum(before**2) / 12))
    assert frobenius(after, scale) < 0.2 * frobenius(before, scale)
  chex.assert_trees_all_equal(np.asarray(got)[~live], 0)


@pytest.mark.slow
def test_restoring_leaves_an_isometry_alone_and_survives_zeros():
  kernel = {"kernel": jnp.eye(4, 6)}
  ones = {"kernel": jnp.ones((4, 6), bool)}
  chex.assert_trees_all_equal(restore_isometry(kernel, ones)["kernel"], jnp.eye(4, 6))
  zero = {"kernel": jnp.zeros((4, 6))}
  for scale in (1.0, None):
    got = restore_isometry(zero, ones, scale=scale)["kernel"]
    chex.assert_trees_all_equal(got, 0)


@pytest.mark.slow
def test_eight_devices_change_masks_as_one_does():
  assert "equal on 8 devices" in finish(start("sharded_dynamic.py"))


WRONG = {
  "inner": (lambda: rigl(0.1, MASKS, num_steps=10), ("inner",)),
  "schedule": (
    lambda: dynamic_sparsity(optax.sgd(0.1), MASKS, schedule=0.3),
    ("schedule", "0.3"),
  ),
  "restore": (
    lambda: rigl(optax.sgd(0.1), MASKS, num_steps=9, restore=True),
    ("restore", "True"),
  ),
  "key": (
    lambda: dynamic_sparsity(optax.sgd(0.1), MASKS, schedule=abs, grow="random"),
    ("key",),
  ),
  "masks": (
    lambda: rigl(optax.sgd(0.1), {"kernel": AFTER}, num_steps=9).init(PARAMS),
    ("masks", "bias"),
  ),
  "mean_decay": (
    lambda: rigl(optax.sgd(0.1), MASKS, num_steps=9, mean_decay=1),
    ("mean_decay", "1"),
  ),
  "steps": (lambda: restore_isometry(PARAMS, MASKS, num_steps=-1), ("num_steps",)),
  "scale": (lambda: restore_isometry(PARAMS, MASKS, scale=0.0), ("scale",)),
}


@pytest.mark.parametrize("case", sorted(WRONG))
def test_wrong_arguments(value_error, case):
  function, words = WRONG[case]
  with value_error(*words):
    function()


def test_params_are_needed(value_error):
  tx = rigl(optax.sgd(0.1), MASKS, num_steps=10)
  with value_error("params"):
    tx.update(UPDATES, tx.init(PARAMS))
