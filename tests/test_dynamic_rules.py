"""Masks after a change equal those of the published rules."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eoi_jax import kernel_layouts
from eoi_jax.optim import drop_schedule, evolve_masks


def published(drop, grow, live, fraction):
  """RigL's update of one layer, as published: sort, keep, lift, sort, grow."""
  drop, grow, live = (np.asarray(a).reshape(-1) for a in (drop, grow, live))
  num_drop = int(np.float32(fraction) * np.float32(live.sum()))
  num_keep = int(live.sum()) - num_drop
  order = np.argsort(-np.where(live, drop, -np.inf), kind="stable")
  kept = np.zeros(live.size, bool)
  kept[order[:num_keep]] = True
  order = np.argsort(-np.where(kept, -np.inf, grow), kind="stable")
  kept[order[:num_drop]] = True
  return kept


T, F = True, False
# weights, gradients, masks, fraction -> masks
CASES = {
  "drop the smallest, grow the largest gradient": (
    ([3, 1, 2, 0, 0, 0], [9, 0, 9, 1, 3, 2], [T, T, T, F, F, F], 0.34),
    [T, F, T, F, T, F],
  ),
  "signs do not matter": (
    ([-3, -1, 2, 0, 0, 0], [0, 0, 0, 1, -3, 2], [T, T, T, F, F, F], 0.34),
    [T, F, T, F, T, F],
  ),
  "a weight just dropped may come back": (
    ([3, 1, 2, 0, 0, 0], [0, 9, 0, 1, 3, 2], [T, T, T, F, F, F], 0.34),
    [T, T, T, F, F, F],
  ),
  "of equal weights the lowest index stays": (
    ([1, 1, 1, 1, 0, 0], [0, 0, 0, 0, 5, 6], [T, T, T, T, F, F], 0.5),
    [T, T, F, F, T, T],
  ),
  "of equal gradients the lowest index is grown": (
    ([4, 3, 1, 2, 0, 0, 0], [0, 0, 0, 0, 5, 5, 5], [T, T, T, T, F, F, F], 0.5),
    [T, T, F, F, T, T, F],
  ),
  "the count is rounded down": (
    ([4, 3, 2, 1, 0, 0], [0, 0, 0, 0, 5, 6], [T, T, T, T, F, F], 0.49),
    [T, T, T, F, F, T],
  ),
  "nothing": (
    ([4, 3, 2, 1, 0, 0], [0, 0, 0, 0, 5, 6], [T, T, T, T, F, F], 0.0),
    [T, T, T, T, F, F],
  ),
  "everything": (
    ([4, 3, 0, 0, 0], [1, 2, 3, 4, 5], [T, T, F, F, F], 1.0),
    [F, F, F, T, T],
  ),
  "trainable zeros go first": (
    ([0, 3, 2, 0, 0], [0, 0, 0, 1, 2], [T, T, T, F, F], 0.34),
    [F, T, T, F, T],
  ),
  "a gradient that is not a number is grown last": (
    ([3, 1, 0, 0, 0], [0, 0, np.nan, -np.inf, 1], [T, T, F, F, F], 1.0),
    [F, F, F, T, T],
  ),
  "a full mask": (
    ([3, 1, 2, 4], [1, 2, 3, 4], [T, T, T, T], 0.5),
    [T, T, T, T],
  ),
  "an empty mask": (
    ([3, 1, 2, 4], [1, 2, 3, 4], [F, F, F, F], 0.5),
    [F, F, F, F],
  ),
}


def as_arrays(case):
  weights, updates, live, fraction = case
  return jnp.float32(weights), jnp.float32(updates), jnp.array(live), fraction


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(CASES))
def test_rigl_by_hand(name):
  case, want = CASES[name]
  assert evolve_masks(None, *as_arrays(case)).tolist() == want


@pytest.mark.slow
@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.3, 0.77, 1.0])
@pytest.mark.parametrize("ties", [False, True])
def test_rigl_equals_the_published_rule(fraction, ties):
  keys = jax.random.split(jax.random.key(4), 3)
  weights, updates = (jax.random.normal(k, (20, 30)) for k in keys[:2])
  if ties:
    weights, updates = jnp.round(weights), jnp.round(updates)
  live = jax.random.bernoulli(keys[2], 0.3, (20, 30))
  got = jax.jit(functools.partial(evolve_masks, None))(weights, updates, live, fraction)
  want = published(jnp.abs(weights), jnp.abs(updates), live, fraction)
  np.testing.assert_array_equal(got.reshape(-1), want)


@pytest.mark.slow
def test_set_grows_at_random_and_evenly():
  weights, live = jnp.arange(1.0, 31.0), jnp.arange(30) < 10
  keys = jax.random.split(jax.random.key(0), 600)
  evolve = functools.partial(evolve_masks, grow="random", regrow=False)
  args = (weights, jnp.zeros(30), live, 0.5)
  new = np.asarray(jax.jit(jax.vmap(lambda key: evolve(key, *args)))(keys))
  assert (new[:, :5] == 0).all() and new[:, 5:10].all()
  assert (new.sum(axis=1) == 10).all()
  # Each of 20 candidates is grown in a quarter of the cases: 150 +- 10.6.
  np.testing.assert_allclose(new[:, 10:].sum(axis=0), 150, atol=5 * 10.6)


def test_without_regrowth_there_may_be_too_few_candidates():
  case = as_arrays(([4, 3, 2, 1, 0], [0, 0, 9, 9, 1], [T, T, T, T, F], 0.5))
  assert evolve_masks(None, *case, regrow=False).tolist() == [T, T, T, F, T]


def test_rules_of_ones_own():
  case = as_arrays(([4, 3, 2, 1, 0, 0], [0, 0, 9, 9, 1, 2], [T, T, T, T, F, F], 0.5))
  largest = lambda key, weights, updates: -jnp.abs(weights)  # noqa: E731
  product = lambda key, weights, updates: -updates  # noqa: E731
  got = evolve_masks(None, *case, drop=largest, grow=product)
  assert got.tolist() == [T, T, T, T, F, F]  # the two that were dropped come back
  got = evolve_masks(None, *case, drop=largest, grow=product, regrow=False)
  assert got.tolist() == [F, F, T, T, T, T]


@pytest.mark.slow
def test_layers_of_a_stack_are_layers_of_their_own():
  keys = jax.random.split(jax.random.key(5), 3)
  weights, updates = (jax.random.normal(k, (4, 6, 8)) for k in keys[:2])
  live = jax.random.bernoulli(keys[2], jnp.array([0.1, 0.3, 0.5, 0.9])[:, None, None])
  live = jnp.broadcast_to(live, weights.shape) & (weights < 1)
  tree = {"other": updates[0], "stack": weights}
  more = {"other": weights[0], "stack": updates}
  masks = {"other": live[0], "stack": live}
  layouts = kernel_layouts(tree, {"stack": "sio", "other": "io"})
  got = evolve_masks(None, tree, more, masks, 0.4, layouts=layouts)
  for layer in range(4):
    alone = evolve_masks(None, weights[layer], updates[layer], live[layer], 0.4)
    np.testing.assert_array_equal(got["stack"][layer], alone)
    assert alone.sum() == live[layer].sum()


@pytest.mark.slow
def test_a_leaf_draws_the_same_in_any_tree():
  weights, live = jnp.ones((8, 8)), jnp.eye(8, dtype=bool)
  evolve = functools.partial(evolve_masks, jax.random.key(0), grow="random")
  alone = evolve({"b": weights}, {"b": weights}, {"b": live}, 0.5)["b"]
  both = {"a": weights, "b": weights}
  beside = evolve(both, both, {"a": live, "b": live}, 0.5)
  np.testing.assert_array_equal(alone, beside["b"])
  assert (beside["a"] != beside["b"]).any()


@pytest.mark.slow
def test_global_scope_keeps_the_total_and_one_weight_a_layer():
  tree = {
    "big": jnp.float32([8, 7, 6, 5, 0, 0]),
    "small": jnp.float32([2, 1, 0.5, 0]),
    "dense": jnp.ones(3),
  }
  updates = {
    "big": jnp.float32([0, 0, 0, 0, 9, 8]),
    "small": jnp.float32([0, 0, 0, 1]),
    "dense": jnp.ones(3),
  }
  masks = {
    "big": jnp.array([T, T, T, T, F, F]),
    "small": jnp.array([T, T, T, F]),
    "dense": None,
  }
  got = evolve_masks(None, tree, updates, masks, 0.43, scope="global")
  # 3 of 7: the two smallest of all, then 5 since 2 is the best of its layer.
  assert got["big"].tolist() == [T, T, T, F, T, T]
  assert got["small"].tolist() == [T, F, F, T]
  assert got["dense"] is None


def test_the_schedule_is_that_of_rigl():
  schedule = drop_schedule(0.3, num_steps=1000, every=50, until=0.8)
  got = np.asarray(jax.vmap(schedule)(jnp.arange(1, 1001)))
  steps = np.arange(1, 1001)
  want = 0.15 * (1 + np.cos(np.pi * steps / 800))
  want = np.where((steps % 50 == 0) & (steps < 800), want, 0)
  np.testing.assert_allclose(got, want, atol=1e-6)
  np.testing.assert_array_equal(got == 0, want == 0)


BAD = {
  "scope": ({"scope": "network"}, ("scope", "layer", "network")),
  "drop": ({"drop": "smallest"}, ("drop", "magnitude", "smallest")),
  "grow": ({"grow": 3}, ("grow", "gradient", "3")),
  "unhashable grow": ({"grow": []}, ("grow", "gradient", "[]")),
  "key": ({"grow": "random"}, ("key", "random")),
  "regrow": ({"regrow": "yes"}, ("regrow", "yes")),
}


@pytest.mark.parametrize("case", sorted(BAD))
def test_bad_options(value_error, case):
  options, words = BAD[case]
  x = jnp.ones(3)
  with value_error(*words):
    evolve_masks(None, x, x, jnp.ones(3, bool), 0.5, **options)


@pytest.mark.parametrize(
  "options",
  [{"fraction": 1.5}, {"num_steps": 0}, {"every": 0}, {"until": -1}, {"until": "x"}],
)
def test_bad_schedules(value_error, options):
  with value_error(*options):
    drop_schedule(**({"fraction": 0.3, "num_steps": 10} | options))


@pytest.mark.parametrize("fraction", [-1, 2, jnp.nan, "0.5", None, True, jnp.ones(2)])
def test_bad_fractions(value_error, fraction):
  x = jnp.ones(3)
  with value_error("`fraction` must be in [0, 1]"):
    evolve_masks(None, x, x, jnp.ones(3, bool), fraction)
