"""Masks that move in a training: recorded, resumed, the same for every seed."""

import jax
import numpy as np
import pytest

from configs import cifar10_dynamic
from tests.train.small import (
  assert_identical,
  interrupt,
  numbers,
  small,
  stop_after,
)
from train.core import config as config_lib
from train.core.console import UserError
from train.core.loop import train_and_evaluate
from train.core.plan import make_plan, start_state
from train.core.state import take_seed

pytestmark = [pytest.mark.usefixtures("module_promotion"), pytest.mark.slow]

MOVING = {"dynamic.method": "set", "dynamic.every": 3, "dynamic.fraction": 0.5}


@pytest.fixture(scope="module")
def config():
  return small(seeds=(0, 5), **MOVING)


@pytest.fixture(scope="module")
def result(config, tmp_path_factory):
  return train_and_evaluate(config, tmp_path_factory.mktemp("whole"))


def test_masks_move_and_counts_stay(config, result):
  start = start_state(make_plan(config))
  for seed in range(2):
    before, after = (take_seed(s, seed).masks for s in (start, result.state))
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
      assert (old != new).any()
      axes = tuple(range(old.ndim - 2, old.ndim))  # each layer of a stack by itself
      np.testing.assert_array_equal(old.sum(axes), new.sum(axes))


def test_records_count_the_grown_weights(result):
  records = [r for r in result.curves.records if r["split"] == "train"]
  grown = np.array([r["seeds"]["grown_weights"] for r in records])
  assert grown.shape[1] == 2 and (grown[0] > 0).all()
  assert (np.diff(grown, axis=0) >= 0).all()
  # Three quarters of 60 steps: the last move is that of step 42.
  late = np.array([r["step"] >= 44 for r in records])
  assert (grown[late] == grown[-1]).all() and (grown[0] < grown[-1]).all()
  watched = [r for r in result.curves.records if r["split"] == "validation"]
  assert len({r["live_weights"] for r in watched}) == 1


def test_a_stopped_run_ends_as_if_never_stopped(config, result, tmp_path, monkeypatch):
  with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
    stop_after(28, interrupt, patch)
    train_and_evaluate(config, tmp_path)
  again = train_and_evaluate(config, tmp_path)
  assert_identical(again.state, result.state)
  assert numbers(again.curves.records) == numbers(result.curves.records)


def test_every_option_reaches_the_program(tmp_path):
  options = {
    "dynamic.method": "rigl",
    "dynamic.every": 4,
    "dynamic.scope": "global",
    "dynamic.mean_decay": 0.9,
    "dynamic.skip_step": True,
    "dynamic.isometry_steps": 2,
    "num_epochs": 1,
  }
  config = small(**options)
  result = train_and_evaluate(config, tmp_path)
  start = start_state(make_plan(config))
  total = lambda state: sum(int(m.sum()) for m in jax.tree.leaves(state.masks))  # noqa: E731
  assert total(result.state) == total(start)
  moved = [
    int((old.sum((-2, -1)) != new.sum((-2, -1))).sum())
    for old, new in zip(
      jax.tree.leaves(start.masks), jax.tree.leaves(result.state.masks), strict=True
    )
  ]
  assert sum(moved) > 0
  assert result.curves.records[-1]["split"] == "test"


def test_the_comparison_of_appendix_i():
  runs = config_lib.expand(cifar10_dynamic.get_config())
  found = {(r.sparsity.start, r.dynamic.method) for r in runs.values()}
  starts, methods = ("base", "eoi"), ("static", "set", "rigl")
  assert found == {(start, method) for start in starts for method in methods}
  for variant in cifar10_dynamic.VARIANTS:
    config_lib.validate(cifar10_dynamic.get_config(variant))


@pytest.mark.parametrize(
  ("field", "value"),
  [
    ("method", "magnitude"),
    ("fraction", 1.5),
    ("every", 0),
    ("scope", "network"),
    ("mean_decay", 1),
  ],
)
def test_wrong_fields(field, value):
  config = small(**{f"dynamic.{field}": value})
  with pytest.raises(UserError, match=f"dynamic.{field}"):
    config_lib.validate(config)
