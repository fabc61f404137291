"""`static_sparsity`: no optimizer moves a dead weight, all of them move live ones."""

import functools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from eoi_jax import apply_masks, rigl, static_sparsity
from eoi_jax.optim import evolve_masks
from tests.cases import few
from tests.optimizers import (
  COMBINATIONS,
  EXCEPTIONS,
  EXTRA_ARGS,
  OPTIMIZERS,
  OPTIONS,
  build,
)

STEPS = 100
INPUTS = jax.random.normal(jax.random.key(1), (16, 8))
TARGETS = jax.random.normal(jax.random.key(2), (16, 4))


def loss(params):
  x = INPUTS @ params["hidden"]["kernel"] + params["hidden"]["bias"][None]
  return jnp.mean((jnp.tanh(x) @ params["out"]["kernel"] - TARGETS) ** 2)


def make_start():
  """Parameters, and masks with about a third alive; the bias is dense."""
  keys = jax.random.split(jax.random.key(0), 4)
  masks = {
    "hidden": {"kernel": jax.random.bernoulli(keys[0], 0.3, (8, 8)), "bias": None},
    "out": {"kernel": jax.random.bernoulli(keys[1], 0.4, (8, 4))},
  }
  params = {
    "hidden": {
      "kernel": 0.4 * jax.random.normal(keys[2], (8, 8)),
      "bias": jnp.full(8, 0.1),
    },
    "out": {"kernel": 0.4 * jax.random.normal(keys[3], (8, 4))},
  }
  return apply_masks(params, masks), masks


PARAMS, MASKS = make_start()


def train(tx, *, params=PARAMS, loss=loss, spoil=None, extra=None, steps=STEPS):
  """`steps` updates in one compiled scan; `spoil` edits the gradients first."""
  tx = optax.with_extra_args_support(tx)

  def step(carry, _):
    params, state = carry
    value, updates = jax.value_and_grad(loss)(params)
    if spoil is not None:
      updates = spoil(updates)
    more = {} if extra is None else extra(loss, value, updates)
    updates, state = tx.update(updates, state, params, **more)
    return (optax.apply_updates(params, updates), state), updates

  @jax.jit
  def run(params):
    return jax.lax.scan(step, (params, tx.init(params)), length=steps)

  (params, state), updates = run(params)
  return params, state, updates


def dead_of(tree, masks=MASKS):
  """All dead entries of a tree like the parameters, in one array."""
  dead = [
    np.asarray(leaf, np.float32)[~np.asarray(mask)]
    for mask, leaf in (
      (masks["hidden"]["kernel"], tree["hidden"]["kernel"]),
      (masks["out"]["kernel"], tree["out"]["kernel"]),
    )
  ]
  return np.concatenate(dead)


def assert_dead_are_zero(params):
  """Bit for bit: not a tiny number, and not minus zero."""
  dead = dead_of(params)
  assert dead.size > 40
  chex.assert_trees_all_equal(dead.view(np.uint32), np.zeros(dead.size, np.uint32))


def assert_live_moved(params, start=PARAMS, masks=MASKS):
  def check(mask, leaf, before):
    moved = np.asarray(leaf) != np.asarray(before)
    live = np.ones(moved.shape, bool) if mask is None else np.asarray(mask)
    assert moved[live].mean() > 0.9, moved
    assert np.isfinite(np.asarray(leaf)).all()

  jax.tree.map(check, masks, params, start, is_leaf=lambda x: x is None)


def test_the_introspection_finds_the_optimizers():
  known = {f"optax.{n}" for n in ("sgd", "adamw", "lion", "lbfgs", "polyak_sgd")}
  assert known | {"optax.contrib.muon", "optax.contrib.sophia"} <= set(OPTIMIZERS)
  # An exception or an option for something that is gone would hide a typing error.
  optional = set(EXCEPTIONS) | set(OPTIONS) | set(EXTRA_ARGS)
  assert {n for n in optional if n not in OPTIMIZERS} <= {"optax.contrib.dpsgd"}


ADAMW_FIRST = sorted(
  set(OPTIMIZERS) - set(EXCEPTIONS), key=lambda n: (n != "optax.adamw", n)
)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:optax")
@pytest.mark.filterwarnings("ignore:`.*` is deprecated:DeprecationWarning")
@pytest.mark.parametrize("name", few(ADAMW_FIRST))
def test_every_optimizer_of_optax(name, standard_promotion):
  tx = static_sparsity(build(name), MASKS)
  params, _, updates = train(tx, extra=EXTRA_ARGS.get(name))
  assert_dead_are_zero(params)
  # In every one of the hundred steps, not in the last alone.
  for step in range(STEPS):
    now = jax.tree.map(lambda leaf, step=step: np.asarray(leaf)[step], updates)
    chex.assert_trees_all_equal(dead_of(now), 0)
  assert_live_moved(params)


@pytest.mark.slow
@pytest.mark.parametrize("name", few(sorted(COMBINATIONS), 2))
def test_combinations(name, standard_promotion):
  params, _, _ = train(static_sparsity(COMBINATIONS[name](), MASKS))
  assert_dead_are_zero(params)
  assert_live_moved(params)


@pytest.mark.slow
@pytest.mark.parametrize(
  "where", few(["MultiSteps", "chain", "multi_transform", "inject"])
)
def test_it_may_stand_inside_another_transform(where, standard_promotion):
  inner = static_sparsity(optax.adamw(0.01, weight_decay=0.1), MASKS)
  if where == "MultiSteps":
    tx = optax.MultiSteps(inner, every_k_schedule=4).gradient_transformation()
  elif where == "chain":
    tx = optax.chain(optax.clip_by_global_norm(1.0), inner)
  elif where == "inject":
    tx = optax.inject_hyperparams(
      lambda rate: static_sparsity(optax.adamw(rate), MASKS)
    )(rate=optax.linear_schedule(0.02, 0.0, STEPS))
  else:
    of_hidden = static_sparsity(
      optax.sgd(0.1), {"hidden": MASKS["hidden"], "out": {"kernel": None}}
    )
    # multi_transform hides the leaves of the other groups: one mask tree for all.
    tx = optax.chain(of_hidden, static_sparsity(optax.identity(), MASKS))
  params, _, _ = train(tx)
  assert_dead_are_zero(params)
  assert_live_moved(params)


@pytest.mark.slow
@pytest.mark.parametrize("bad", few([np.nan, np.inf, -np.inf]))
def test_dead_gradients_that_are_not_finite_do_no_harm(bad, standard_promotion):
  def spoil(updates):
    def one(mask, leaf):
      return leaf if mask is None else jnp.where(mask, leaf, bad)

    return jax.tree.map(one, MASKS, updates, is_leaf=lambda x: x is None)

  tx = static_sparsity(
    optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(0.01)), MASKS
  )
  params, state, _ = train(tx, spoil=spoil)
  clean, _, _ = train(tx)
  chex.assert_trees_all_equal(params, clean)
  assert_dead_are_zero(params)
  chex.assert_tree_all_finite(state)


@pytest.mark.slow
def test_norms_and_moments_see_live_weights_only():
  huge = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 100.0), PARAMS)
  tx = static_sparsity(optax.clip_by_global_norm(1.0), MASKS)
  updates, _ = tx.update(huge, tx.init(PARAMS), PARAMS)
  assert float(optax.tree.norm(updates)) == pytest.approx(1, rel=1e-5)
  tx = static_sparsity(optax.trace(0.9), MASKS)
  _, state = tx.update(huge, tx.init(PARAMS), PARAMS)
  moments = [x for x in jax.tree.leaves(state) if x.shape == (8, 8) and x.dtype != bool]
  assert moments
  for moment in moments:
    chex.assert_trees_all_equal(moment != 0, MASKS["hidden"]["kernel"])


def test_it_equals_the_inner_transform_on_live_weights():
  tx = static_sparsity(optax.sgd(0.1, momentum=0.9), MASKS)
  params, _, _ = train(tx)

  def masked_loss(params):
    return loss(apply_masks(params, MASKS))

  want, _, _ = train(optax.sgd(0.1, momentum=0.9), loss=masked_loss)
  jax.tree.map(
    lambda got, want: chex.assert_trees_all_close(got, want, rtol=1e-5, atol=1e-7),
    params,
    want,
  )


def test_without_a_mask_it_is_the_inner_transform():
  dense = jax.tree.map(lambda _: None, PARAMS)
  params, _, _ = train(static_sparsity(optax.sgd(0.1, momentum=0.9), dense))
  want, _, _ = train(optax.sgd(0.1, momentum=0.9))
  chex.assert_trees_all_equal(params, want)


def test_one_update_with_and_without_jit():
  tx = static_sparsity(optax.sgd(0.1, momentum=0.9), MASKS)
  state = tx.init(PARAMS)
  updates = jax.grad(loss)(PARAMS)
  plain, _ = tx.update(updates, state, PARAMS)
  compiled, _ = jax.jit(tx.update)(updates, state, PARAMS)
  chex.assert_trees_all_equal(dead_of(plain), 0)
  for left, right in zip(
    jax.tree.leaves(plain), jax.tree.leaves(compiled), strict=True
  ):
    chex.assert_trees_all_equal(left == 0, right == 0)
    chex.assert_trees_all_close(left, right, rtol=1e-6)


def test_update_without_params():
  tx = static_sparsity(optax.sgd(0.1), MASKS)
  updates, _ = tx.update(jax.grad(loss)(PARAMS), tx.init(PARAMS))
  chex.assert_trees_all_equal(dead_of(updates), 0)
  assert (np.asarray(updates["hidden"]["bias"]) != 0).all()


def test_a_dead_weight_that_is_not_zero_at_the_start_is_brought_to_zero():
  start = jax.tree.map(jnp.ones_like, PARAMS)
  tx = static_sparsity(optax.sgd(0.1, momentum=0.9), MASKS)
  assert_dead_are_zero(train(tx, params=start, steps=1)[0])
  # The optimizer never sees them: the run is that of the masked start.
  params, _, _ = train(tx, params=start)
  assert_dead_are_zero(params)


def test_masks_may_be_arguments_of_a_compiled_function():
  @jax.jit
  def one_step(params, masks):
    tx = static_sparsity(optax.sgd(0.1), masks)
    updates, _ = tx.update(jax.grad(loss)(params), tx.init(params), params)
    return optax.apply_updates(params, updates)

  assert_dead_are_zero(one_step(PARAMS, MASKS))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_low_precision_parameters_keep_their_dtype(dtype):
  params = jax.tree.map(lambda leaf: leaf.astype(dtype), PARAMS)
  tx = static_sparsity(optax.sgd(0.1), MASKS)
  updates, _ = tx.update(params, tx.init(params), params)
  assert {leaf.dtype for leaf in jax.tree.leaves(updates)} == {jnp.dtype(dtype)}
  chex.assert_trees_all_equal(dead_of(updates), 0)


class Pair(NamedTuple):
  kernel: object
  bias: object


@jax.tree_util.register_pytree_with_keys_class
class Custom:
  """A pytree of the caller's own."""

  def __init__(self, kernel, bias):
    self.kernel, self.bias = kernel, bias

  def tree_flatten_with_keys(self):
    names = ("kernel", "bias")
    return [(jax.tree_util.GetAttrKey(n), getattr(self, n)) for n in names], None

  @classmethod
  def tree_unflatten(cls, _, children):
    return cls(*children)


CONTAINERS = {
  "list": lambda kernel, bias: [kernel, bias],
  "tuple": lambda kernel, bias: (kernel, bias),
  "namedtuple": Pair,
  "custom": Custom,
  "nested": lambda kernel, bias: {"a": [{"kernel": kernel}, (bias, [])], "b": ()},
}


@pytest.mark.parametrize("kind", few(sorted(CONTAINERS), 2))
def test_any_pytree(kind, standard_promotion):
  make = CONTAINERS[kind]
  mask = MASKS["hidden"]["kernel"]
  params = make(PARAMS["hidden"]["kernel"], PARAMS["hidden"]["bias"])
  masks = make(mask, None)

  def square(params):
    return sum(jnp.sum((leaf - 1) ** 2) for leaf in jax.tree.leaves(params))

  tx = static_sparsity(optax.adamw(0.01, weight_decay=0.1), masks)
  got, _, _ = train(tx, params=params, loss=square, steps=10)
  assert jax.tree.structure(got) == jax.tree.structure(params)
  kernel, bias = jax.tree.leaves(got)
  chex.assert_trees_all_equal(np.asarray(kernel)[~np.asarray(mask)], 0)
  moved = np.asarray(kernel) != np.asarray(PARAMS["hidden"]["kernel"])
  assert moved[np.asarray(mask)].all()
  assert (np.asarray(bias) != 0.1).all()


def test_extra_args_reach_the_inner_transform():
  seen = {}

  def update(updates, state, params=None, **extra_args):
    del params
    seen.update(extra_args)
    return updates, state

  inner = optax.GradientTransformationExtraArgs(lambda params: (), update)
  tx = static_sparsity(inner, MASKS)
  assert isinstance(tx, optax.GradientTransformationExtraArgs)
  tx.update(PARAMS, tx.init(PARAMS), PARAMS, value=3.0, note="here")
  assert seen == {"value": 3.0, "note": "here"}


def test_extra_args_are_ignored_by_an_inner_without_them():
  tx = static_sparsity(optax.sgd(0.1), MASKS)
  updates, _ = tx.update(PARAMS, tx.init(PARAMS), PARAMS, value=3.0)
  chex.assert_trees_all_equal(dead_of(updates), 0)


def test_the_state_is_a_pytree_of_arrays_that_round_trips():
  tx = static_sparsity(optax.sgd(0.1, momentum=0.9), MASKS)
  state = tx.init(PARAMS)
  leaves, treedef = jax.tree.flatten(state)
  assert all(isinstance(leaf, jax.Array) for leaf in leaves)
  again = jax.tree.unflatten(treedef, [jnp.asarray(np.asarray(x)) for x in leaves])
  updates = jax.grad(loss)(PARAMS)
  one, _ = tx.update(updates, state, PARAMS)
  two, _ = tx.update(updates, again, PARAMS)
  chex.assert_trees_all_equal(one, two)


def wrong_masks():
  kernel = MASKS["hidden"]["kernel"]
  return {
    "missing": ({"hidden": MASKS["hidden"]}, ("masks", "out")),
    "extra": ({**MASKS, "more": {"kernel": kernel}}, ("masks", "more")),
    "shape": ({**MASKS, "out": {"kernel": kernel}}, ("out/kernel", "(8, 4)", "(8, 8)")),
    "dtype": (
      {**MASKS, "out": {"kernel": MASKS["out"]["kernel"].astype(jnp.float32)}},
      ("out/kernel", "bool", "float32"),
    ),
    "not a tree": ([kernel], ("masks",)),
  }


@pytest.mark.parametrize("case", sorted(wrong_masks()))
def test_masks_of_another_structure(value_error, case):
  masks, words = wrong_masks()[case]
  with value_error(*words):
    static_sparsity(optax.sgd(0.1), masks).init(PARAMS)


TRANSFORMS = {
  "static": static_sparsity,
  "compact": functools.partial(static_sparsity, compact=True),
  "rigl": functools.partial(rigl, num_steps=10),
}
WRONG = {  # of the tree [kernel (2, 3), bias]
  "row": ([jnp.ones(3), jnp.ones(3)], "(2, 3) for '0', got (3,)"),
  "transposed": ([jnp.ones((3, 2)), jnp.ones(3)], "(2, 3) for '0', got (3, 2)"),
  "none": ([None, jnp.ones(3)], "(2, 3) for '0', got NoneType"),
  "short": ([jnp.ones((2, 3))], "leaf '1' is missing"),
  "tuple": ((jnp.ones((2, 3)), jnp.ones(3)), "containers"),
}


@pytest.mark.parametrize("case", WRONG)
@pytest.mark.parametrize("name", TRANSFORMS)
def test_updates_and_parameters_must_fit_the_masks(value_error, name, case):
  params = [jnp.ones((2, 3)), jnp.ones(3)]
  masks, (wrong, words) = [params[0] > 0, None], WRONG[case]
  tx = TRANSFORMS[name](optax.sgd(0.1), masks)
  state = tx.init(params)
  with value_error("`updates` must", words):
    tx.update(wrong, state, params)
  with value_error("`params` must", words):
    tx.update(params, state, wrong)
  if case in ("row", "none"):
    with value_error("`updates` must", words):
      evolve_masks(None, params, wrong, masks, 0.5)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_dead_weights_that_are_not_finite_are_refused(value_error, name):
  masks = {"w": jnp.array([True, False])}
  tx = TRANSFORMS[name](optax.sgd(0.1), masks)
  params = {"w": jnp.array([1.0, -jnp.inf])}
  with value_error("`params` must be finite off the masks", "-inf in 'w'"):
    tx.init(params)
  tx.init({"w": params["w"][::-1]})  # a live one is seen in the loss
  jax.jit(tx.init)(apply_masks(params, masks))


def test_gradients_of_each_example_may_be_summed_by_the_inner_transform():
  inner = optax.stateless(lambda updates, _: jax.tree.map(lambda x: x.sum(0), updates))
  tx = static_sparsity(inner, jnp.array([True, False]))
  updates, _ = tx.update(jnp.ones((5, 2)), tx.init(jnp.ones(2)), jnp.zeros(2))
  assert updates.tolist() == [5.0, 0.0]


def test_an_inner_that_is_no_transform(value_error):
  with value_error("inner"):
    static_sparsity(0.1, MASKS)
