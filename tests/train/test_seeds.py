"""Several seeds in one program: each is what it would be alone."""

import chex
import jax
import numpy as np
import pytest

from tests.train.small import assert_identical, numbers, small, train_until
from train.core.console import UserError
from train.core.loop import train_and_evaluate
from train.core.plan import make_plan, start_state
from train.core.state import take_seed

pytestmark = pytest.mark.usefixtures("module_promotion")

SEEDS = (0, 5, 11)


@pytest.fixture(scope="module")
def many(tmp_path_factory):
  return train_and_evaluate(small(seeds=SEEDS), tmp_path_factory.mktemp("many"))


@pytest.mark.parametrize("index", [0, 2])
@pytest.mark.slow
def test_each_seed_is_its_own_run(many, tmp_path, index):
  alone = train_and_evaluate(small(seed=SEEDS[index]), tmp_path)
  state = take_seed(many.state, index)
  assert int(state.step) == int(alone.state.step) == 60
  chex.assert_trees_all_equal(state.masks, alone.state.masks)
  # Another program.
  chex.assert_trees_all_close(state.params, alone.state.params, atol=1e-5, rtol=1e-7)
  for ours, theirs in zip(many.curves.records, alone.curves.records, strict=True):
    assert ours["step"] == theirs["step"]
    assert ours["seeds"]["loss"][index] == pytest.approx(theirs["loss"], abs=1e-4)


@pytest.mark.slow
def test_records_hold_every_seed_their_mean_and_spread(many):
  for record in many.curves.records:
    for name, values in record["seeds"].items():
      assert len(values) == 3
      assert record[name] == pytest.approx(np.mean(values))
      assert record[f"{name}_std"] == pytest.approx(np.std(values, ddof=1))
  summary = many.summary
  assert summary["test_accuracy"] == pytest.approx(
    np.mean(summary["test_accuracy_seeds"])
  )
  assert len(set(summary["test_loss_seeds"])) == 3
  assert summary["parameters_live"] == 4 * (512 + 64) + 80 + 10


@pytest.mark.slow
def test_several_seeds_resume(many, tmp_path, monkeypatch):
  train_until(28, small(seeds=SEEDS), tmp_path, monkeypatch)
  again = train_and_evaluate(small(seeds=SEEDS), tmp_path)
  assert_identical(again.state, many.state)
  assert numbers(again.curves.records) == numbers(many.curves.records)


@pytest.mark.parametrize(
  "fields",
  [
    {"sparsity.distribution": "snip", "sparsity.start": "base"},
    {"sparsity.distribution": "synflow", "sparsity.synflow_rounds": 5},
    {"sparsity.start": "ai", "sparsity.ai_steps": 5},
  ],
)
@pytest.mark.slow
def test_starts_of_several_seeds_are_those_of_one(fields):
  together = start_state(make_plan(small(seeds=(3, 4), **fields)))
  for index, seed in enumerate((3, 4)):
    alone = start_state(make_plan(small(seed=seed, **fields)))
    state = take_seed(together, index)
    assert (jax.random.key_data(state.key) == jax.random.key_data(alone.key)).all()
    chex.assert_trees_all_equal(state.masks, alone.masks)
    chex.assert_trees_all_close(state.params, alone.params, atol=1e-5, rtol=1e-7)


@pytest.mark.parametrize("seeds", [(1, 1), (-1,), ("a",), 3, (True,), (1.0,)])
def test_wrong_seeds_are_named(seeds):
  with pytest.raises(UserError, match=r"`seeds` must be a tuple of different seeds"):
    make_plan(small(seeds=seeds))
