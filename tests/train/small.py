"""A small training of the quickstart's net, and how to compare two."""

import chex
import jax
import numpy as np
import pytest

from configs import quickstart
from train.core import loop

TIMES = ("seconds", "steps_per_second")


def small(**fields):
  """The quickstart's net with few layers: 3 epochs of 20 steps."""
  config = quickstart.get_config()
  changes = {
    "num_epochs": 3,
    "steps_per_dispatch": 8,
    "checkpoint_every": 1,
    "model.depth": 5,
    "optimizer.learning_rate": 0.03,
    "compare.field": "",
    "compare.choices": (),
  }
  with config.ignore_type():
    config.update_from_flattened_dict(changes | fields)
  return config


def leaves(state):
  """All arrays of a state, keys as their bits."""
  state = state._replace(key=jax.random.key_data(state.key))
  return [np.asarray(leaf) for leaf in jax.tree.leaves(state)]


def assert_identical(state, other):
  """Compares two states bit by bit."""
  assert jax.tree.structure(state) == jax.tree.structure(other)
  chex.assert_trees_all_equal(leaves(state), leaves(other), strict=True)


def numbers(records):
  """Records without their times."""
  return [{k: v for k, v in r.items() if k not in TIMES} for r in records]


def stop_after(step, action, monkeypatch):
  """Does something in the middle of a run, after a step."""
  check = loop.check_finite

  def acting(record, *args):
    check(record, *args)
    if record["step"] == step:
      action()

  monkeypatch.setattr(loop, "check_finite", acting)


def train_until(step, config, workdir, monkeypatch):
  """Trains, and stops after a step as by Ctrl-C."""

  def interrupt():
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    stop_after(step, interrupt, patch)
    with pytest.raises(KeyboardInterrupt):
      loop.train_and_evaluate(config, workdir)
