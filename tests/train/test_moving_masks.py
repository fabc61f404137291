"""Masks that move in a training: recorded, resumed, the same for every seed."""

import chex
import jax
import numpy as np
import pytest

from configs import cifar10_dynamic
from eoi_jax import apply_masks
from eoi_jax.layouts import named_leaves
from tests.train.small import assert_identical, numbers, small, train_until
from train.core import config as config_lib
from train.core.console import UserError
from train.core.loop import train_and_evaluate
from train.core.plan import check_plan, like_start, make_plan, start_state
from train.core.state import take_seed

pytestmark = [pytest.mark.usefixtures("module_promotion"), pytest.mark.slow]

MOVING = {
  "dynamic.method": "set",
  "dynamic.every": 3,
  "dynamic.fraction": 0.5,
  "optimizer.accumulate": 2,
  "optimizer.ema": 0.8,
}


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
      chex.assert_trees_all_equal(old.sum(axes), new.sum(axes))


def test_records_count_the_grown_weights(result):
  records = [r for r in result.curves.records if r["split"] == "train"]
  grown = np.array([r["seeds"]["grown_weights"] for r in records])
  assert grown.shape[1] == 2 and (grown[1] > 0).all()
  assert not grown[0].any()  # after the first step nothing has moved
  assert (np.diff(grown, axis=0) >= 0).all()
  # Three quarters of 60 steps: the last move is that of step 42.
  late = np.array([r["step"] >= 44 for r in records])
  assert (grown[late] == grown[-1]).all() and (grown[0] < grown[-1]).all()
  watched = [r for r in result.curves.records if r["split"] == "validation"]
  assert len({r["live_weights"] for r in watched}) == 1


def test_means_of_the_parameters_are_evaluated_and_forget_dropped_weights(result):
  state = result.state
  averages = state.averages.params
  chex.assert_trees_all_equal(apply_masks(averages, state.masks), averages)
  last = [r for r in result.curves.records if r["split"] == "validation"][-1]
  assert last["loss"] != last["raw_loss"] and 0 < last["raw_accuracy"] <= 1
  summary = result.summary
  assert summary["test_raw_loss"] == pytest.approx(
    np.mean(summary["test_raw_loss_seeds"])
  )


def test_a_stopped_run_ends_as_if_never_stopped(config, result, tmp_path, monkeypatch):
  train_until(28, config, tmp_path, monkeypatch)
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


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_gradual_pruning_is_on_schedule_and_exact(tmp_path, scope):
  fields = {
    "steps_per_dispatch": 4,
    "model.depth": 3,
    "model.width": 32,
    "sparsity.start": "fan_in_uniform" if scope == "layer" else "base",
    "sparsity.density": 0.6,
    "dynamic.method": "gmp",
    "dynamic.scope": scope,
    "dynamic.begin": 0.2,
    "dynamic.until": 0.8,
    "dynamic.every": 8,
    "dynamic.density": 0.07,
  }
  result = train_and_evaluate(small(**fields), tmp_path)
  layers = [64 * 32, 32 * 32, 320]
  ends = [(n, round(0.07 * n)) for n in layers]
  if scope == "global":
    begin = sum(round(0.6 * n) for n in layers)
    ends = [(begin, round(0.07 * sum(layers)))]

  def live(step):
    last = 48 if step >= 48 else 12 + 8 * ((step - 12) // 8)  # change of masks
    left = 1.0 if step < 12 else (1 - (last - 12) / 36) ** 3
    return sum(start - round((start - end) * (1 - left)) for start, end in ends)

  records = [r for r in result.curves.records if r["split"] == "train"]
  assert len(records) == 1 + 15 and len({r["live_weights"] for r in records}) > 5
  for record in records:
    assert record["live_weights"] == live(record["step"]), record["step"]
    assert record["density"] == pytest.approx(record["live_weights"] / sum(layers))
  assert result.summary["density"] == live(60) / sum(layers)


@pytest.mark.parametrize("start", ["eoi", "sao"])
def test_constant_fan_in_is_equal_to_the_weight(tmp_path, start):
  fields = {
    "dynamic.method": "srigl",
    "dynamic.every": 4,
    "num_epochs": 1,
    "model.depth": 4,
    "model.width": 32,
    "sparsity.start": start,
    "sparsity.distribution": "erk",
    "sparsity.density": 0.11,
    "sparsity.floors": "lift",
  }
  config = small(**fields)
  result = train_and_evaluate(config, tmp_path)
  before = named_leaves(start_state(make_plan(config)).masks)
  for name, mask in named_leaves(result.state.masks).items():
    if mask is not None:
      fan_in = np.asarray(mask).sum(-2)
      assert (fan_in == fan_in[..., :1]).all() and fan_in.min() > 0, name
      assert fan_in.sum() == before[name].sum() and (mask != before[name]).any()


@pytest.mark.parametrize("start", ["base", "ai", "eoi_in_mask"])
def test_units_start_with_a_constant_fan_in(start):
  fields = {
    "model.depth": 4,
    "model.width": 32,
    "sparsity.start": start,
    "sparsity.density": 0.11,
    "sparsity.ai_steps": 3,
    "sparsity.fallback": "partial",
  }
  config = small(seeds=(0, 5), **fields, **{"dynamic.method": "srigl"})
  config.dynamic.every = 4
  plan = make_plan(config)
  state = start_state(plan)
  chex.assert_trees_all_equal_shapes_and_dtypes(like_start(plan), state)
  masks = named_leaves(state.masks)["hidden/dense/kernel"]
  assert masks.shape == (2, 2, 32, 32)
  assert (masks.sum(-2) == round(0.11 * 32)).all()
  flat = np.asarray(masks).reshape(4, -1)
  assert len(np.unique(flat, axis=0)) == 4 and flat.any(0).mean() > 0.25
  weights = np.asarray(named_leaves(state.params)["hidden/dense/kernel"])
  assert weights.any((-2, -1)).all() and not weights[~np.asarray(masks)].any()


@pytest.mark.parametrize(
  ("fields", "words"),
  [
    ({"method": "srigl", "scope": "global"}, "dynamic.scope.*'layer' for srigl"),
    ({"method": "gmp", "begin": 0.8}, "dynamic.until.*above.*got 0.75"),
    (
      {"method": "gmp", "density": 0.5},
      "dynamic.density.*no more weights.*hidden/dense/k",
    ),
  ],
)
def test_methods_that_cannot_be(fields, words):
  config = small(**{f"dynamic.{name}": value for name, value in fields.items()})
  with pytest.raises(UserError, match=words):
    check_plan(config)


@pytest.mark.parametrize("method", ["set", "rigl", "srigl"])
def test_a_dense_start_has_no_masks_to_move(method):
  config = small(**{"dynamic.method": method, "sparsity.start": "delta_orthogonal"})
  with pytest.raises(UserError, match=f"a sparse one for .*{method}.*got 'delta_ortho"):
    config_lib.validate(config)


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
