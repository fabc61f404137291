"""Schedules, optimizers and the loss, against their definitions."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import FrozenConfigDict

from tests.train.small import small
from train.core import optimizers
from train.core.config import default_config
from train.core.console import UserError
from train.core.optimizers import (
  OPTIMIZERS,
  SCHEDULES,
  check_optimizer,
  create_optimizer,
  create_schedule,
  describe_optimizer,
)
from train.core.plan import check_plan
from train.core.state import Averages, TrainState
from train.core.steps import Sums, _gradient, example_losses

SGD = FrozenConfigDict(
  default_config().optimizer.to_dict()
  | {"learning_rate": 0.1, "weight_decay": 0.0, "schedule": "constant"}
)


def changed(settings, **changes):
  return FrozenConfigDict({**settings, **changes})


pytestmark = pytest.mark.usefixtures("standard_promotion")  # optax's schedules


def rates(steps, num_steps=100, **changes):
  schedule = create_schedule(changed(SGD, **changes), num_steps)
  return [float(jnp.asarray(schedule(jnp.int32(step)))) for step in steps]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["constant", "step", "cosine"])
def test_a_warm_up_rises_linearly_to_the_schedule(name):
  whole = rates(range(100), schedule=name)
  warm = rates(range(100), schedule=name, warmup=0.1)
  factors = [(step + 1) / 10 for step in range(10)] + [1.0] * 90
  np.testing.assert_allclose(warm, np.multiply(whole, factors), rtol=1e-5)
  assert rates(range(100), schedule=name, warmup=0.01) == whole  # a single step


SCHEDULE_OPTIONS = {
  "linear": "end_value=0.01",
  "exponential": "decay_rate=0.1",
  "piecewise_constant": "boundaries_and_scales={40: 0.1}",
  "piecewise_interpolate": "interpolate_type='linear', boundaries_and_scales={40: 0.1}",
  "polynomial": "end_value=0.01, power=2",
  "warmup_exponential": "decay_rate=0.1",
  "sgdr": "cosine_kwargs=[{'decay_steps': 50}, {'decay_steps': 50}]",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_schedules_by_name_have_the_rate_as_their_highest(name):
  options = {"schedule": name, "schedule_options": SCHEDULE_OPTIONS.get(name, "")}
  if name.startswith("warmup"):
    options["warmup"] = 0.1
  found = rates(range(100), **options)
  np.testing.assert_allclose(max(found), 0.1, rtol=1e-5)
  assert min(found) >= 0 and (name == "constant") == (len(set(found)) == 1)


def test_a_schedule_that_warms_up_itself_gets_the_length():
  found = rates(range(100), schedule="warmup_cosine", warmup=0.1)
  schedule = optax.warmup_cosine_decay_schedule(0.0, 0.1, 10, 100)
  np.testing.assert_allclose(
    found, [float(jnp.asarray(schedule(n))) for n in range(100)], rtol=1e-6
  )


@pytest.mark.parametrize(
  ("changes", "words"),
  [
    ({"schedule": "linear"}, "must give end_value, which linear_schedule needs"),
    ({"schedule": "warmup_cosine"}, "must give warmup_steps"),
    ({"schedule": "cosine", "schedule_options": "alpha"}, "decay_steps, alpha, expon"),
    ({"schedule": "cosine", "schedule_options": "alpha=x"}, "got 'alpha=x'"),
    ({"schedule": "cosine", "schedule_options": "beta=1"}, "arguments of cosine_decay"),
    ({"schedule": "cosine", "schedule_options": "init_value=1"}, "r.learning_rate` se"),
    ({"schedule": "cosine", "schedule_options": "decay_steps=-1"}, "over 100 steps wi"),
  ],
)
def test_options_that_do_not_fit_a_schedule(changes, words):
  with pytest.raises(UserError, match=words) as error:
    rates([0], **changes)
  assert "\n" not in str(error.value)


PARAMS = {"w": jnp.array([[1.0, -2.0], [3.0, 0.0]]), "b": jnp.array([0.5])}
MASKS = {"w": jnp.array([[True, True], [True, False]]), "b": None}
GRADS = {"w": jnp.array([[0.3, 0.4], [0.0, 7.0]]), "b": jnp.array([1.2])}


def two_updates(settings):
  """Parameters after two equal gradients, and how they changed each time."""
  tx = create_optimizer(settings, 10, MASKS)
  params, state, changes = PARAMS, tx.init(PARAMS), []
  for _ in range(2):
    updates, state = tx.update(GRADS, state, params)
    params = optax.apply_updates(params, updates)
    changes.append(jax.device_get(updates))
  return jax.device_get(params), changes


def test_sgd_is_nesterovs_with_decay_in_the_gradient():
  _, changes = two_updates(changed(SGD, weight_decay=0.01))
  value, trace = 1.0, 0.0
  for change in changes:
    grad = 0.3 + 0.01 * value
    trace = grad + 0.9 * trace
    step = -0.1 * (grad + 0.9 * trace)
    np.testing.assert_allclose(change["w"][0, 0], step, rtol=1e-5)
    value += step


def test_adamw_decays_apart_from_the_gradient():
  settings = changed(SGD, name="adamw", nesterov=False)
  plain, decayed = (
    two_updates(changed(settings, weight_decay=decay))[1][0] for decay in (0.0, 0.5)
  )
  np.testing.assert_allclose(plain["w"][0], [-0.1, -0.1], rtol=1e-5)  # signs
  np.testing.assert_allclose(
    decayed["w"] - plain["w"], -0.1 * 0.5 * PARAMS["w"], atol=1e-6
  )


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_clipping_scales_the_gradient_of_live_weights(name):
  settings = changed(SGD, name=name, momentum=0.0, nesterov=False, learning_rate=1.0)
  params, (first, _) = two_updates(changed(settings, clip_norm=0.65))
  assert params["w"][1, 1] == 0
  if name == "sgd":  # the norm of the live gradient is 1.3; 7 does not count
    np.testing.assert_allclose(first["w"][0], [-0.15, -0.2], rtol=1e-5)
    np.testing.assert_allclose(first["b"], [-0.6], rtol=1e-5)
  _, loose = two_updates(changed(settings, clip_norm=1.5))
  _, free = two_updates(settings)
  jax.tree.map(np.testing.assert_array_equal, loose, free)


@pytest.mark.slow
def test_the_losses_are_those_of_optax():
  logits = jax.random.normal(jax.random.key(0), (6, 5))
  labels = jnp.array([0, 1, 2, 3, 4, 0])
  shares = jax.nn.one_hot(labels, 5)
  plain = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
  np.testing.assert_allclose(example_losses(logits, shares), plain, rtol=1e-5)
  expected = optax.softmax_cross_entropy(logits, optax.smooth_labels(shares, 0.1))
  found = example_losses(logits, shares, smoothing=0.1)
  np.testing.assert_allclose(found, expected, rtol=1e-5)
  # Of a mixed image both labels are a yes, whatever their shares.
  mixed, yes = 0.9 * shares + 0.1 * shares[::-1], shares + shares[::-1]
  for smoothing in (0.0, 0.1):
    targets = optax.smooth_labels(jnp.minimum(yes, 1), smoothing)
    expected = optax.sigmoid_binary_cross_entropy(logits, targets).mean(-1)
    options = {"loss": "binary_cross_entropy", "smoothing": smoothing}
    found = example_losses(logits, mixed, **options)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


# Those that gradients, parameters, the loss and a schedule do not suffice for.
REFUSED = ("dpsgd", "lbfgs", "optimistic_adam", "rprop", "sm3", "sophia")


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_every_optimizer_of_optax_works_or_says_what_it_misses(name, monkeypatch):
  monkeypatch.setattr(optimizers, "MAIN", ())  # known to work: try them here
  check_optimizer.cache_clear()
  settings = changed(SGD, name=name)
  if name in REFUSED:
    with pytest.raises(UserError, match=rf"optimizer\.(name|options).*{name}"):
      check_optimizer(settings)
  else:
    check_optimizer(settings)


@pytest.mark.parametrize(
  ("options", "words"),
  [
    ("b1=0.8", "must not give b1, which `optimizer.momentum` sets"),
    ("weight_decay=0", "which `optimizer.weight_decay` sets"),
    ("b3=0.8", r"arguments of lion \(b2, mu_dtype, mask\)"),
    ("0.8", "got '0.8'"),
    ("b2=", "got 'b2='"),
    ("b2='high'", "optimizer.options` = .*got 'lion'"),
  ],
)
def test_options_that_do_not_fit_an_optimizer(options, words):
  with pytest.raises(UserError, match=words) as error:
    check_optimizer(changed(SGD, name="lion", options=options))
  assert "\n" not in str(error.value)


def test_options_reach_optax():
  settings = changed(SGD, name="lion", weight_decay=0.1, options="b2=0.5")
  live = {"w": jnp.where(MASKS["w"], GRADS["w"], 0), "b": GRADS["b"]}
  tx = optax.lion(0.1, b1=0.9, b2=0.5, weight_decay=0.1)
  params, state = PARAMS, tx.init(PARAMS)
  for _ in range(2):
    updates, state = tx.update(live, state, params)
    params = optax.apply_updates(params, updates)
  chex.assert_trees_all_close(two_updates(settings)[0], params, rtol=1e-6)
  words = "lion(constant 0.1, b1=0.9, weight_decay=0.1, b2=0.5)"
  assert describe_optimizer(settings) == words


@pytest.mark.slow
@pytest.mark.parametrize("name", ["muon", "lamb"])
def test_layers_of_a_stack_are_layers(name):
  """Muon orthogonalizes each, LAMB has a ratio for each: as if they were apart."""
  model = check_plan(small()).model
  shapes = {"hidden": {"dense": {"kernel": (3, 8, 4), "bias": (3, 4)}}}
  shapes |= {end: {"kernel": (8, 4), "bias": (4,)} for end in ("input", "output")}
  is_shape = lambda node: isinstance(node, tuple)  # noqa: E731
  params, grads = (
    jax.tree.map(
      lambda shape: jax.random.normal(jax.random.key(seed), shape),  # noqa: B023
      shapes,
      is_leaf=is_shape,
    )
    for seed in range(2)
  )
  masks = jax.tree.map(lambda _: None, shapes, is_leaf=is_shape)
  settings = changed(SGD, name=name, weight_decay=0.1)
  tx = create_optimizer(settings, 10, masks, model=model)
  together = jax.jit(tx.update)(grads, tx.init(params), params)[0]
  apart = lambda tree, n: jax.tree.map(lambda leaf: leaf[n], tree["hidden"])  # noqa: E731
  for n in range(3):
    alone, own = apart(params, n), jax.tree.map(lambda _: None, apart(params, n))
    tx = create_optimizer(settings, 10, own)
    updates = jax.jit(tx.update)(apart(grads, n), tx.init(alone), alone)[0]
    chex.assert_trees_all_close(apart(together, n), updates, atol=1e-5)


@pytest.mark.slow
def test_micro_batches_add_up_and_statistics_advance_with_each():
  x = jax.random.normal(jax.random.key(0), (8, 3))

  def loss_fn(params, stats, examples, part):
    del part
    (x,) = examples
    losses = jnp.square(x @ params).sum(-1)
    sums = Sums(losses.sum(), jnp.int32(0), jnp.int32(len(x)))
    return sums.loss / 8, (sums, 0.5 * stats + x.mean(0))

  params, stats = jax.random.normal(jax.random.key(1), (3, 4)), jnp.ones(3)
  recipe = check_plan(small())
  found = {}
  for count in (1, 4):
    optimizer = changed(recipe.optimizer, accumulate=count)
    state = TrainState(jnp.int32(0), params, None, stats, jax.random.key(0), {})
    of_count = recipe._replace(optimizer=optimizer)
    found[count] = jax.jit(
      lambda state, x: _gradient(loss_fn, state, (x,), of_count)  # noqa: B023
    )(state, x)
  chex.assert_trees_all_close(found[4][:2], found[1][:2], rtol=1e-5)
  for n in range(4):  # examples 0 and 4, then 1 and 5, ...
    stats = 0.5 * stats + x[n::4].mean(0)
  np.testing.assert_allclose(found[4][2], stats, rtol=1e-5)


def test_running_means_are_not_debiased_and_dead_weights_are_zero_in_them():
  start = Averages(PARAMS, {"mean": jnp.ones(2)})
  new = start.update(
    {"w": PARAMS["w"] + 1, "b": -PARAMS["b"]}, {"mean": 3 * jnp.ones(2)}, MASKS, 0.75
  )
  np.testing.assert_allclose(new.params["w"], [[1.25, -1.75], [3.25, 0]])
  np.testing.assert_allclose(new.params["b"], [0.25])
  np.testing.assert_allclose(new.batch_stats["mean"], [1.5, 1.5])


def test_a_batch_that_micro_batches_do_not_divide():
  with pytest.raises(UserError, match=r"batch_size.*accumulate` = 3, got 64"):
    check_plan(small(**{"optimizer.accumulate": 3}))
