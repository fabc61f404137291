"""Masks that change under every optimizer: counts to the weight, exact zeros."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from eoi_jax import current_masks, random_masks
from eoi_jax.optim import drop_schedule, dynamic_sparsity
from tests.cases import few
from tests.optimizers import (
  COMBINATIONS,
  EXCEPTIONS,
  EXTRA_ARGS,
  OPTIMIZERS,
  STATIC_ONLY,
  build,
)

STEPS, EVERY = 150, 5
INPUTS = jax.random.normal(jax.random.key(1), (16, 8))
TARGETS = jax.random.normal(jax.random.key(2), (16, 8))


def loss(params):
  """A dense layer with a bias and batch normalization, and one without."""
  hidden = params["hidden"]
  x = INPUTS @ hidden["kernel"] + hidden["bias"][None]
  x = (x - x.mean(0)[None]) / jnp.sqrt(x.var(0) + 1e-3)[None]
  x = jnp.tanh(hidden["scale"][None] * x)
  return jnp.mean((x @ params["out"]["kernel"] - TARGETS) ** 2)


def make_start():
  keys = jax.random.split(jax.random.key(0), 2)
  hidden = {"bias": jnp.full(8, 0.1), "scale": jnp.ones(8), "unused": None}
  params = {
    "hidden": hidden | {"kernel": 0.4 * jax.random.normal(keys[0], (8, 8))},
    "out": {"kernel": 0.4 * jax.random.normal(keys[1], (8, 8))},
  }
  masks = random_masks(jax.random.key(3), params, 0.3)
  return params, masks


PARAMS, MASKS = make_start()


def train(tx, params, extra):
  """All steps in one scan; after each: live counts, and whether the dead are zero."""
  tx = optax.with_extra_args_support(tx)

  def step(carry, _):
    params, state = carry
    value, updates = jax.value_and_grad(loss)(params)
    more = {} if extra is None else extra(loss, value, updates)
    updates, state = tx.update(updates, state, params, **more)
    params = optax.apply_updates(params, updates)
    masks = [current_masks(state)[layer]["kernel"] for layer in ("hidden", "out")]
    kernels = [params[layer]["kernel"] for layer in ("hidden", "out")]
    counts = jnp.stack([mask.sum() for mask in masks])
    zeros = [jnp.all(m | (k == 0)) for m, k in zip(masks, kernels, strict=True)]
    return (params, state), (counts, jnp.stack(zeros).all())

  @jax.jit
  def run(params):
    return jax.lax.scan(step, (params, tx.init(params)), length=STEPS)

  return run(params)


SCHEDULE = drop_schedule(0.4, num_steps=STEPS + 1, every=EVERY, until=1.0)


def check(inner, extra=None, *, leave_out_none=False):
  params, masks = PARAMS, MASKS
  if leave_out_none:
    params, masks = ({**t, "hidden": dict(t["hidden"])} for t in (params, masks))
    del params["hidden"]["unused"], masks["hidden"]["unused"]
  tx = dynamic_sparsity(inner, masks, schedule=SCHEDULE)
  (params, state), (counts, zeros) = train(tx, params, extra)
  before = [int(mask.sum()) for mask in jax.tree.leaves(masks)]
  np.testing.assert_array_equal(counts, np.tile(before, (STEPS, 1)))
  assert zeros.all()
  chex.assert_tree_all_finite(params)
  assert int(state.num_updates) == STEPS
  assert sum(int(count.sum()) for count in jax.tree.leaves(state.num_grown)) > 10
  for layer in ("hidden", "out"):
    start, now = masks[layer]["kernel"], current_masks(state)[layer]["kernel"]
    grown = np.asarray(params[layer]["kernel"])[np.asarray(now & ~start)]
    # Weights off the start's mask are there, and have left zero: they are trained.
    assert grown.size and np.mean(grown != 0) > 0.5


ADAMW_FIRST = sorted(
  set(OPTIMIZERS) - {*EXCEPTIONS, *STATIC_ONLY}, key=lambda n: (n != "optax.adamw", n)
)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:optax")
@pytest.mark.filterwarnings("ignore:`.*` is deprecated:DeprecationWarning")
@pytest.mark.parametrize("name", few(ADAMW_FIRST))
def test_every_optimizer_of_optax(name, standard_promotion):
  # GaLore itself refuses a tree with None in it.
  none = name == "optax.contrib.galore"
  check(build(name), EXTRA_ARGS.get(name), leave_out_none=none)


USED = ("MultiSteps", "multi_transform", "inject_hyperparams", "masked", "noise last")


@pytest.mark.slow
@pytest.mark.parametrize("name", few(USED))
def test_combinations(name, standard_promotion):
  check(COMBINATIONS[name]())
