"""Networks whose dense layers have blocks: start, counts, training."""

import functools

import chex
import jax
import numpy as np
import pytest

import eoi_jax
from configs import default
from eoi_jax.layouts import named_leaves
from tests.train.small import assert_identical, numbers, small, train_until
from train.analysis import dry_run, preflight
from train.core import summaries
from train.core.console import UserError
from train.core.loop import train_and_evaluate
from train.core.plan import check_plan, make_plan, start_state
from train.core.start import create_train_state, sparsity_settings
from train.models.blocks import dense_view

pytestmark = pytest.mark.usefixtures("module_promotion")

BLOCKS = {"model.width": 32, "model.blocks": 16, "sparsity.density": 0.25}
SIZES = {"mlp": 3 * 32 * 32 + 64 * 32, "vit4": 2 * 2 * 4 * 32 * 32}
VIT = {"model.name": "vit4", "model.depth": 2, "model.activation": "gelu"}


def config_of(**fields):
  config = default.get_config()
  fields = {"data.name": "digits", "model.depth": 5} | BLOCKS | fields
  with config.ignore_type():
    config.update_from_flattened_dict(fields)
  return config


def start(config):
  recipe = check_plan(config)
  options = {"sparsity": sparsity_settings(config), "recipe": recipe}
  state = jax.jit(functools.partial(create_train_state, **options))(jax.random.key(0))
  return recipe, state


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mlp", "vit4"])
def test_a_network_is_that_of_its_dense_view(name):
  config = config_of(**(VIT if name == "vit4" else {}), **{"sparsity.scale": 1.5})
  recipe, state = start(config)
  model = recipe.model
  params, masks = dense_view(state.params, state.masks, state.layouts)
  images = jax.random.normal(jax.random.key(1), (3, 8, 8, 1))
  logits = model.apply(state.variables, images)
  dense = model.without_blocks.apply({"params": params}, images)
  chex.assert_trees_all_close(logits, dense, atol=1e-5)
  names = [n for n in named_leaves(state.params) if n.endswith("/blocks")]
  assert len(names) == 2
  errors = eoi_jax.gram_errors(params, scale=1.5, layouts=model.without_blocks.layouts)
  assert (
    max(float(np.max(error)) for error in errors.values() if error is not None) < 1e-5
  )
  stored = sum(named_leaves(state.params)[n].size for n in names)
  assert stored == SIZES[name] / 4  # exactly a quarter
  flags = named_leaves(masks)
  live = sum(int(flags[n.removesuffix("blocks") + "kernel"].sum()) for n in names)
  assert live == stored


@pytest.mark.slow
def test_counts_before_and_at_the_start_are_what_exists():
  config = config_of(**{"model.width": 36, "sparsity.distribution": "erk"})
  recipe, state = start(config)
  layers = dry_run.list_kernels(config)
  found = summaries.describe_start(config, state, 1.0, recipe).summary
  assert found["densities"] == pytest.approx(
    {row.name: row.live / row.size for row in layers.rows}, abs=0.01
  )
  others = layers.total - sum(row.size for row in layers.rows)
  assert found["parameters_live"] == pytest.approx(layers.live + others, rel=0.02)
  stored = sum(leaf.size for leaf in jax.tree.leaves(state.params))
  assert found["parameters_live"] <= found["parameters_total"] == stored
  assert layers.live == pytest.approx(0.25 * sum(r.size for r in layers.rows), rel=0.1)
  assert found["orthogonality_error"] < 1e-5


@pytest.mark.slow
def test_blocks_of_a_layer_come_nearest_to_the_total():
  def parts(density):
    config = config_of(**{"model.blocks": 8, "sparsity.density": density})
    found = dict(check_plan(config).model.blocks.densities)
    return [found.get(name) for name in ("hidden/dense", "input", "output")]

  # Steps of a quarter of 3072, 2048 and, down from a third, 320 weights.
  assert parts(0.25) == [0.25, 0.25, 0.25]
  assert parts(0.3) == [0.25, 0.5, 0.25]
  assert parts(0.4) == [0.5, 0.25, 1 / 3]
  assert parts(0.5) == [0.5, 0.5, 0.5]
  assert parts(0.05) == [0.05, 0.05, None]  # smaller blocks; too narrow for any


@pytest.mark.parametrize(
  ("fields", "words"),
  [
    ({"model.name": "cnn"}, "`model.name` must be one of mlp, .*got 'cnn'"),
    ({"sparsity.start": "ai"}, "`sparsity.start` must be one of eoi"),
    ({"sparsity.distribution": "snip"}, "`sparsity.distribution` must be one of unif"),
    ({"dynamic.method": "rigl"}, "`dynamic.method` must be one of static"),
    ({"sparsity.angle": 30.0}, "`sparsity.angle` must be one of 0"),
    ({"model.blocks": 64}, "`model.blocks` must be at most"),
    ({"sparsity.distribution": "dense"}, "`model.blocks` must be at most"),
  ],
)
def test_what_makes_no_sense_with_blocks_is_refused(fields, words):
  with pytest.raises(UserError, match=words):
    check_plan(config_of(**fields))


@pytest.mark.slow
def test_the_preflight_measures_the_kernels_that_blocks_stand_for():
  found = preflight.measure(make_plan(config_of()), num_samples=2)
  rows = {row.layer.name: row for row in found.rows}
  assert list(rows) == ["input/kernel", "hidden/dense/kernel", "output/kernel"]
  assert rows["hidden/dense/kernel"].layer.live == 3 * 32 * 8
  assert len(rows["hidden/dense/kernel"].gains) == 3
  assert rows["hidden/dense/kernel"].dead_inputs == 0
  assert found.totals["kernel_density"] == pytest.approx(0.25, abs=0.01)


@pytest.mark.slow
def test_training_goes_on_where_it_was_stopped_for_every_seed(tmp_path, monkeypatch):
  fields = BLOCKS | {"model.remat": True}
  alone = train_and_evaluate(small(**fields), tmp_path / "alone")
  config = small(seeds=(0, 5), **fields)
  whole = train_and_evaluate(config, tmp_path / "whole")
  train_until(28, config, tmp_path / "cut", monkeypatch)
  resumed = train_and_evaluate(config, tmp_path / "cut")
  assert_identical(resumed.state, whole.state)
  assert numbers(resumed.curves.records) == numbers(whole.curves.records)
  assert whole.summary["test_accuracy_seeds"][0] == alone.summary["test_accuracy"]
  first = alone.curves.records[0]
  assert first["live_weights"] == SIZES["mlp"] // 4 + 320 // 4
  assert alone.summary["test_accuracy"] > 0.4
  layouts = [
    jax.tree.leaves(start_state(make_plan(small(seed=seed, **fields))).layouts)
    for seed in (0, 5)
  ]
  assert any((a != b).any() for a, b in zip(*layouts, strict=True))
