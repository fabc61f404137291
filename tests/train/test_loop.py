import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import FrozenConfigDict

from eoi_jax import apply_masks
from tests.cases import few
from tests.train.small import assert_identical, leaves, numbers, small, train_until
from train.core import config as config_lib
from train.core.console import UserError
from train.core.loop import evaluate_saved, train_and_evaluate
from train.core.optimizers import create_schedule
from train.core.plan import make_plan, start_state
from train.core.steps import epoch_order, evaluate, train_chunk, train_step, zero_sums
from train.data.datasets import Split

pytestmark = pytest.mark.usefixtures("module_promotion")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  """An undisturbed run and its workdir."""
  workdir = tmp_path_factory.mktemp("finished")
  return train_and_evaluate(small(), workdir), workdir


@pytest.mark.slow
def test_dead_weights_are_exactly_zero_and_live_ones_moved(finished):
  state = finished[0].state
  start = start_state(make_plan(small()))
  masks = dict(jax.tree_util.tree_leaves_with_path(state.masks))
  before = dict(jax.tree_util.tree_leaves_with_path(start.params))
  checked = 0
  for path, leaf in jax.tree_util.tree_leaves_with_path(state.params):
    if path not in masks:
      continue
    mask = np.asarray(masks[path])
    assert (np.asarray(leaf)[~mask] == 0).all()
    moved = np.asarray(leaf != before[path])[mask]
    assert moved.mean() > 0.9  # some pixels of digits are always blank
    assert mask.sum() == round(0.125 * mask[..., :, :].size)
    checked += 1
  assert checked == 3


def test_the_workdir_tells_the_whole_run(finished):
  result, workdir = finished
  config = json.loads((workdir / "config.json").read_text())
  assert config["model"]["depth"] == 5
  (environment,) = map(
    json.loads, (workdir / "environment.jsonl").read_text().splitlines()
  )
  assert environment["git_commit"] and environment["jax"] == jax.__version__
  summary = json.loads((workdir / "summary.json").read_text())
  assert summary == result.summary
  assert summary["density"] == 0.125 and summary["orthogonality_error"] < 5e-6
  assert summary["parameters_total"] == 4 * (64 * 64 + 64) + 64 * 10 + 10
  assert summary["parameters_live"] == 4 * (512 + 64) + 80 + 10
  assert set(summary["densities"].values()) == {0.125}
  assert (workdir / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_metrics_are_complete_and_in_order(finished):
  result, workdir = finished
  records = list(map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines()))
  assert records == result.curves.records
  steps = {
    s: [r["step"] for r in records if r["split"] == s] for s in ("train", "test")
  }
  assert steps["train"] == [1, 8, 16, 20, 28, 36, 40, 48, 56, 60]
  assert steps["test"] == [60]
  validation = [r for r in records if r["split"] == "validation"]
  assert [r["epoch"] for r in validation] == [0.0, 1.0, 2.0, 3.0]
  assert validation[-1]["accuracy"] > 0.5 > validation[0]["accuracy"]
  assert validation[-1]["loss"] < validation[0]["loss"]


@pytest.mark.slow
@pytest.mark.parametrize("stop_at", few([28, 8, 60]))
def test_a_killed_run_ends_bit_identical(finished, tmp_path, monkeypatch, stop_at):
  result, _ = finished
  train_until(stop_at, small(), tmp_path, monkeypatch)
  # What a death in the middle of a write leaves behind.
  with open(tmp_path / "metrics.jsonl", "a") as file:
    file.write('{"step": 5')
  resumed = train_and_evaluate(small(), tmp_path)
  assert_identical(resumed.state, result.state)
  assert numbers(resumed.curves.records) == numbers(result.curves.records)


@pytest.mark.slow
def test_a_run_without_its_records_evaluates_where_it_goes_on(tmp_path, monkeypatch):
  train_until(28, small(), tmp_path, monkeypatch)
  (tmp_path / "metrics.jsonl").unlink()
  records = train_and_evaluate(small(), tmp_path).curves.records
  watched = [r["step"] for r in records if r["split"] == "validation"]
  assert watched == [20, 40, 60]  # from the checkpoint of the first epoch
  (tmp_path / "metrics.jsonl").unlink()
  records = train_and_evaluate(small(), tmp_path).curves.records
  assert [(r["step"], r["split"]) for r in records] == [
    (60, "validation"),
    (60, "test"),
  ]


@pytest.mark.slow
def test_a_finished_run_is_not_trained_again(finished):
  result, workdir = finished
  before = (workdir / "metrics.jsonl").read_text()
  again = train_and_evaluate(small(), workdir)
  assert_identical(again.state, result.state)
  assert (workdir / "metrics.jsonl").read_text() == before
  assert again.summary["train_seconds"] == result.summary["train_seconds"]
  assert again.summary["test_accuracy"] == result.summary["test_accuracy"]


@pytest.mark.slow
def test_the_dispatch_changes_no_number(finished, tmp_path):
  result = train_and_evaluate(small(steps_per_dispatch=500), tmp_path)
  assert_identical(result.state, finished[0].state)


@pytest.mark.slow
def test_a_trace_of_some_steps_changes_no_number(finished, tmp_path):
  result = train_and_evaluate(small(profile=(10, 18)), tmp_path)
  assert_identical(result.state, finished[0].state)
  assert numbers(result.curves.records) == numbers(finished[0].curves.records)
  (trace,) = (tmp_path / "profile").rglob("*.xplane.pb")
  # Steps 9 to 20 lie in two chunks, and are traced with the evaluation after them.
  assert trace.read_bytes().count(b"train_chunk") > 0


def test_a_workdir_of_another_config_is_refused(finished):
  _, workdir = finished
  with pytest.raises(UserError, match=r"seed: 0 there, 1 here.*--workdir"):
    train_and_evaluate(small(seed=1), workdir)
  local = small(tensorboard=True, keep_best=3, placement="sharded")
  assert not config_lib.differences(local, json.loads(config_lib.to_json(small())))
  with pytest.raises(UserError, match="cannot write to workdir"):
    train_and_evaluate(small(), workdir / "config.json" / "below")


@pytest.mark.parametrize(
  ("fields", "words"),
  [
    (
      {"sparsity.density": 0.01},
      r"hidden/dense/kernel.*must be in \[0\.0156",
    ),
    ({"batch_size": 1296}, "`batch_size` must be at most the 1295 training examples"),
    ({"data.validation": 0.9999}, "at most the 1 training examples"),
    ({"data.validation": 0.0005}, "hold out one of the 1438 .* got 0.0005"),
    (
      {"dynamic.method": "rigl", "dynamic.every": 45},
      r"`dynamic.every` must be below 45 steps, .* = 0.75 of 60, .* got 45",
    ),
    ({"profile": (60, 61)}, r"`profile` must name steps in \[1, 60\], got \(60, 61\)"),
  ],
)
def test_impossible_plans_are_refused_without_compiling(fields, words, monkeypatch):
  def compiled(*args, **kwargs):
    raise AssertionError("compiled")

  monkeypatch.setattr(jax.stages.Lowered, "compile", compiled)
  monkeypatch.setattr(jax._src.compiler, "backend_compile_and_load", compiled)
  with pytest.raises(UserError, match=words):
    make_plan(small(**fields))


@pytest.mark.slow
def test_a_diverging_run_stops_with_the_step(tmp_path):
  with pytest.raises(UserError, match=r"loss is nan after step \d+ .*learning_rate"):
    train_and_evaluate(small(**{"optimizer.learning_rate": 1e10}), tmp_path)
  assert not (tmp_path / "checkpoints").exists()


def test_each_epoch_has_its_own_order_of_all_examples():
  plan = make_plan(small())
  state = start_state(plan)
  orders = []
  for step in (0, 19, 20):
    state = state._replace(step=jnp.int32(step))
    orders.append(epoch_order(state, 1295, recipe=plan.recipe).tolist())
    assert sorted(orders[-1]) == list(range(1295))
  assert orders[0] == orders[1] != orders[2]


@pytest.mark.slow
def test_a_chunk_is_a_loop_of_steps():
  plan = make_plan(small())
  state = start_state(plan)
  order = epoch_order(state, 1295, recipe=plan.recipe)
  step = jax.jit(train_step, static_argnames="recipe")
  losses, expected = 0.0, state
  for n in range(3):
    rows = order[64 * n : 64 * (n + 1)]
    batch = Split(*(a[rows] for a in plan.dataset.train))
    expected, made = step(expected, batch, recipe=plan.recipe)
    losses += float(made.sums.loss)
  found, sums, norms = train_chunk(
    state, plan.dataset.train, jnp.int32(3), zero_sums(), recipe=plan.recipe
  )
  masked = apply_masks(made.grads, expected.masks)
  for norm, tree in zip(norms, (masked, made.updates, expected.params), strict=True):
    np.testing.assert_allclose(norm, optax.tree.norm(tree), rtol=1e-4)
  assert int(found.step) == 3 and int(sums.count) == 3 * 64
  np.testing.assert_allclose(float(sums.loss), losses, rtol=1e-5)
  for a, b in zip(leaves(found), leaves(expected), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5)  # two programs, float32


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [50, 359, 1000])
def test_evaluation_counts_padding_for_nothing(finished, batch_size):
  plan, state = make_plan(small()), finished[0].state
  data = jax.tree.map(lambda array: np.concatenate([array, array]), plan.dataset.test)
  options = {"recipe": plan.recipe, "batch_size": batch_size}
  sums = evaluate(state, data, jnp.int32(359), **options)
  assert int(sums.count) == 359
  assert int(sums.correct) / 359 == finished[0].summary["test_accuracy"]
  expected = finished[0].summary["test_loss"]
  np.testing.assert_allclose(float(sums.loss) / 359, expected, rtol=1e-5)


@pytest.mark.slow
def test_runs_that_differ_in_start_or_density_share_a_program(finished, tmp_path):
  before = train_chunk._cache_size()
  changes = {"sparsity.start": "base", "sparsity.density": 0.25, "seed": 3}
  train_and_evaluate(small(**changes), tmp_path)
  assert train_chunk._cache_size() == before


def test_schedules_follow_their_definitions():
  settings = small(**{"optimizer.learning_rate": 0.1}).optimizer.to_dict()

  def rates(name):
    schedule = create_schedule(FrozenConfigDict(settings | {"schedule": name}), 100)
    return [float(schedule(step)) for step in (0, 50, 51, 75, 76, 99)]

  np.testing.assert_allclose(rates("constant"), [0.1] * 6, rtol=1e-6)
  np.testing.assert_allclose(rates("cosine")[:2], [0.1, 0.05], rtol=1e-6)
  step = rates("step")
  np.testing.assert_allclose(step[0], 0.1, rtol=1e-6)
  np.testing.assert_allclose([step[2], step[4], step[5]], [0.01, 1e-3, 1e-3], rtol=1e-6)


@pytest.mark.parametrize("optimizer", few(["adam", "adamw"], 0))
def test_every_optimizer_trains(optimizer, tmp_path):
  fields = {"optimizer.name": optimizer, "optimizer.learning_rate": 3e-3}
  result = train_and_evaluate(small(num_epochs=1, **fields), tmp_path)
  assert optax.tree.get(result.state.opt_state, "mu") is not None
  assert result.curves.records[-1]["loss"] < result.curves.records[0]["loss"]


@pytest.mark.slow
def test_without_validation_the_test_set_is_watched(tmp_path):
  config = small(**{"num_epochs": 1, "data.validation": 0.0})
  result = train_and_evaluate(config, tmp_path)
  splits = [r["split"] for r in result.curves.records]
  assert "monitor" in splits and "validation" not in splits
  with pytest.raises(UserError, match="'best': no held-out accuracy is known"):
    evaluate_saved(config, tmp_path, "best")
