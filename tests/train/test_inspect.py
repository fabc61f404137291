"""The table of layers agrees with the networks and with what a run then has."""

import re
from types import SimpleNamespace

import jax
import numpy as np
import pytest

import eoi_jax
from configs import default
from eoi_jax.layouts import named_leaves
from tests.cases import few
from tests.train.small import small
from train.analysis import dry_run
from train.core import summaries
from train.core.console import UserError
from train.core.plan import check_plan, make_plan, start_state
from train.core.start import create_train_state, sparsity_settings


def config_of(**fields):
  config = default.get_config()
  with config.ignore_type():
    config.update_from_flattened_dict({f.replace("__", "."): fields[f] for f in fields})
  return config


def test_the_table_of_the_papers_mlp():
  layers = dry_run.list_kernels(config_of(sparsity__density=0.1))
  assert [(row.name, row.shape, row.count) for row in layers.rows] == [
    ("hidden/dense/kernel", (100, 100), 5),
    ("input/kernel", (784, 100), 1),
    ("output/kernel", (100, 10), 1),
  ]
  assert [row.live for row in layers.rows] == [5000, 7840, 100]
  np.testing.assert_allclose(
    [row.floor for row in layers.rows], [1 / 100, 1 / 784, 1 / 100]
  )
  assert (layers.total, layers.live) == (130010, 12940)
  text = dry_run.layers_text(config_of())
  assert "130,010" in text and "129,400" in text and "12,940" in text


@pytest.mark.slow
@pytest.mark.parametrize("distribution", ["uniform", "erk"])
def test_live_weights_are_those_of_a_start(distribution):
  config = config_of(
    data__name="digits",
    model__depth=5,
    model__width=12,
    sparsity__density=0.3,
    sparsity__distribution=distribution,
    sparsity__start="base",
  )
  masks = start_state(make_plan(config)).masks
  found = {
    name: int(m.sum()) for name, m in named_leaves(masks).items() if m is not None
  }
  layers = dry_run.list_kernels(config)
  assert {row.name: row.live for row in layers.rows} == found
  assert layers.live == sum(found.values())


@pytest.mark.parametrize("start", few(["orthogonal", "eoi_structured", "sao"]))
def test_what_starts_make_dense_is_counted_whole(start):
  config = cnn(batch_size=8, sparsity__start=start, sparsity__density=0.25)
  recipe, sparsity = check_plan(config), sparsity_settings(config)
  state = create_train_state(jax.random.key(0), sparsity=sparsity, recipe=recipe)
  found = summaries.list_layers(state.params, state.masks, 1.0, recipe.model, "center")
  rows = {row.name: row for row in dry_run.list_kernels(config).rows}
  for layer in found:
    row = rows[layer.name]
    assert (layer.density == 1) == (row.floor is None)
    short = 9 * 16 if row.at_most else 1  # EOI falls short by less than a side
    assert row.at_most == (start == "eoi_structured" and layer.density < 1)
    assert 0 <= row.live - layer.live < short
  text = dry_run.layers_text(config)
  assert ("at most" in text) == (start == "eoi_structured")
  assert ("density 0.25" in text) == (start != "orthogonal")


def test_the_title_of_a_dense_start_has_no_density():
  config = config_of(sparsity__start="orthogonal", sparsity__density=0.125)
  assert summaries.title(config) == (
    "7-layer tanh MLP on mnist, width 100, orthogonal start"
  )
  config.compare.field = "sparsity.start"
  assert summaries.title(config).endswith("density 0.125")


def cnn(**fields):
  """A CNN of 5 layers: 3 x 3 convolutions of 16 channels, one of them stacked."""
  changes = {"model__name": "cnn", "model__depth": 5, "model__width": 16}
  return config_of(data__name="cifar10", **changes | fields)


@pytest.mark.parametrize(
  ("fields", "center", "others"),
  [
    ({"start": "eoi"}, 26, 0),  # .1 of 16 x 16
    ({"start": "eoi", "center": "more"}, 81, 0),  # sqrt(.1)
    ({"start": "eoi", "taps": "all"}, 230 // 9, 230 - 230 // 9),
    ({"start": "base", "reference": "delta_orthogonal"}, 230 // 9, 0),
    ({"start": "base", "reference": "conv_orthogonal"}, 230 // 9, 230 - 230 // 9),
    ({"start": "eoi_structured"}, 230 // 9, 0),
    ({"start": "delta_orthogonal"}, 256, 0),
    ({"start": "fan_in_uniform"}, 256, 8 * 256),
  ],
)
def test_taps_are_told_apart_as_a_start_then_has_them(fields, center, others):
  config = cnn(**{f"sparsity__{name}": value for name, value in fields.items()})
  row = {r.name: r for r in dry_run.list_kernels(config).rows}["input1/kernel"]
  assert abs(row.taps[0].nonzeros - center) <= 1
  assert abs(row.taps[1].nonzeros - others) <= 1
  assert [part.size for part in row.taps] == [256, 8 * 256]
  assert "centre tap" in dry_run.layers_text(config)


@pytest.mark.slow
def test_a_run_counts_the_taps_that_were_expected():
  config = cnn(sparsity__center="more", batch_size=8)
  recipe, sparsity = check_plan(config), sparsity_settings(config)
  state = create_train_state(jax.random.key(0), sparsity=sparsity, recipe=recipe)
  found = summaries.describe_start(config, state, 1.0, recipe)
  rows = [row.taps for row in dry_run.list_kernels(config).rows if row.taps]
  for part, index in (("center_tap", 0), ("other_taps", 1)):
    sums = np.sum([taps[index] for taps in rows], axis=0)
    np.testing.assert_allclose(found.summary[part]["density"], sums[1] / sums[0], 0.15)
    assert 0 <= sums[2] - found.summary[part]["nonzeros"] < 16 * len(rows)
  assert "all convolutions" in found.table


def test_the_support_of_merged_heads_is_that_of_their_matrix():
  params = {"query": {"kernel": jax.numpy.ones((16, 4, 8))}}
  layouts = eoi_jax.kernel_layouts(params, {"query/kernel": "ioo"})
  masks = eoi_jax.random_masks(jax.random.key(0), params, 0.25, layouts=layouts)
  model = SimpleNamespace(layouts=layouts)
  model.without_blocks = model
  state = SimpleNamespace(params=params, masks=masks, layouts={})
  recipe = SimpleNamespace(model=model, spec=SimpleNamespace(num_classes=10))
  support = summaries.describe_start(config_of(), state, 1.0, recipe).support
  np.testing.assert_array_equal(support.live, masks["query"]["kernel"].reshape(16, 32))
  assert support.density == 0.25


def test_networks_without_convolutions_have_no_taps():
  assert all(row.taps is None for row in dry_run.list_kernels(config_of()).rows)
  assert "tap" not in dry_run.layers_text(config_of())


@pytest.mark.slow
def test_what_stays_dense_or_goes_by_score_is_said():
  layers = dry_run.list_kernels(
    config_of(model__name="efficientnet_b0", data__name="cifar10")
  )
  dense = [row for row in layers.rows if row.floor is None]
  assert sum(row.count for row in dense) == 16
  assert all("depthwise" in row.name and row.live == row.size for row in dense)
  layers = dry_run.list_kernels(config_of(sparsity__distribution="snip"))
  assert all(row.live is None for row in layers.rows)
  assert layers.live == 12940 and "by score" in dry_run.layers_table(layers)


def test_densities_below_the_floor_are_named():
  config = config_of(sparsity__density=0.005)
  assert "hidden/dense/kernel" in dry_run.layers_text(config).splitlines()[-1]
  assert "Below" not in dry_run.layers_text(config_of())


def test_a_dry_run_adds_up_runs_of_several_programs(monkeypatch):
  measured = []

  def measure(plan):
    measured.append(plan.recipe.num_steps)
    width = plan.recipe.model.width
    return dry_run.Cost(1.0, 1.0, width * 2**20, 2**20, None)

  monkeypatch.setattr(dry_run, "measure", measure)
  changes = {"num_epochs": 3, "compare.field": "num_epochs+model.width+sparsity.start"}
  changes["compare.choices"] = ("3+64+eoi", "3+64+base", "6+64+eoi", "3+32+eoi")
  text = dry_run.dry_run(small(**changes | {"model.width": 64}))
  assert measured == [60, 120, 60]
  rows = dict(
    re.split(r"  +", line.strip(), maxsplit=1) for line in text.splitlines()[-12:]
  )
  assert rows["runs, one after another"] == "4"
  assert rows["steps of each"] == "60, 20 an epoch; 120, 20 an epoch"
  assert rows["state"] == "64.0 MiB a device"
  assert rows["training time of all runs"].startswith("0:05:00 ")


def test_networks_that_do_not_exist_are_refused():
  config = config_of(model__name="cifar_resnet", data__name="cifar10", model__depth=33)
  with pytest.raises(UserError, match=r"6 n \+ 2"):
    dry_run.list_kernels(config)
