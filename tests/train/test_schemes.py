"""Every scheme by config alone: where the density goes, and how the weights start."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eoi_jax
from configs import default, mnist_schemes, quickstart
from eoi_jax.layouts import named_leaves
from tests.cases import few
from train.core import config as config_lib
from train.core import loop
from train.core.console import UserError
from train.core.plan import check_plan, make_plan, start_state
from train.core.start import balanced_rows, create_train_state, sparsity_settings

pytestmark = pytest.mark.usefixtures("module_promotion")


def small(**fields):
  """A net of 3 layers and 4,736 weights in its kernels, on digits."""
  config = quickstart.get_config()
  changes = {
    "num_epochs": 1,
    "model.depth": 4,
    "model.width": 32,
    "compare.field": "",
    "compare.choices": (),
    "sparsity.density": 0.25,
    "sparsity.synflow_rounds": 10,
    "sparsity.ai_method": "adam",
    "sparsity.ai_steps": 50,
  }
  with config.ignore_type():
    config.update_from_flattened_dict(changes | fields)
  return config


def start(distribution, start):
  fields = {"sparsity.distribution": distribution, "sparsity.start": start}
  return start_state(make_plan(small(**fields)))


def counts(state):
  return {n: c.live for n, c in eoi_jax.count_masks(state.masks).items()}


def kernels(state):
  leaves = {
    "hidden": state.params["hidden"]["dense"]["kernel"],
    "input": state.params["input"]["kernel"],
    "output": state.params["output"]["kernel"],
  }
  return {name: np.asarray(leaf) for name, leaf in leaves.items()}


def gram_errors(state):
  layouts = eoi_jax.kernel_layouts(state.params, {"hidden/*/kernel": "sio"})
  errors = eoi_jax.gram_errors(state.params, scale=1.0247, layouts=layouts)
  return {name.split("/")[0]: float(e.max()) for name, e in errors.items()}


TOTAL = 64 * 32 + 2 * 32 * 32 + 32 * 10


@pytest.mark.parametrize("distribution", ["erk", "snip", "grasp", "synflow"])
@pytest.mark.slow
def test_distributions_have_the_exact_total_and_eoi_keeps_it(distribution):
  base, eoi = start(distribution, "base"), start(distribution, "eoi")
  assert sum(counts(base).values()) == round(0.25 * TOTAL)
  assert len(set(np.array(list(counts(base).values())) / [2048, 2048, 320])) > 1
  assert counts(eoi) == counts(base)
  assert max(gram_errors(eoi).values()) < 1e-5
  if distribution != "erk":
    again = start(distribution, "base")
    chex.assert_trees_all_equal(base.masks, again.masks)


@pytest.mark.slow
def test_ai_starts_on_the_masks_that_were_scored():
  base, ai = start("snip", "base"), start("snip", "ai")
  chex.assert_trees_all_equal(base.masks, ai.masks)

  def distance(state):
    errors = []
    for layer in kernels(state)["hidden"]:
      errors.append(np.linalg.norm(layer @ layer.T - 1.05 * np.eye(32)))
    return np.mean(errors)

  assert distance(ai) < 0.5 * distance(base)


@pytest.mark.slow
def test_eoi_in_a_random_mask_is_exact():
  state = start("uniform", "eoi_in_mask")
  assert max(gram_errors(state).values()) < 1e-5
  assert sum(counts(state).values()) == round(0.25 * TOTAL)


@pytest.mark.slow
def test_small_angles_stay_near_the_identity():
  state = start_state(make_plan(small(**{"sparsity.angle": 1.0})))
  hidden = kernels(state)["hidden"] / 1.0247
  assert np.abs(np.diagonal(hidden, axis1=1, axis2=2)).min() > 0.98
  assert 0 < np.abs(hidden - hidden * np.eye(32)).max() < 0.1
  assert max(gram_errors(state).values()) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(
  ("distribution", "name", "live"),
  [
    ("uniform", "sao", {"hidden/dense/kernel": 2 * 32 * 8}),
    ("dense", "orthogonal", {}),
  ],
)
def test_schemes_with_dense_layers(distribution, name, live):
  state = start(distribution, name)
  assert counts(state) == live
  assert max(gram_errors(state).values()) < 1e-5


@pytest.mark.slow
def test_masks_that_allow_no_start_are_reported():
  fields = {"sparsity.distribution": "snip", "sparsity.start": "sao"}
  with pytest.raises(UserError, match=r"hidden/dense/kernel.*must be one of"):
    start_state(make_plan(small(**fields)))
  fields = {"sparsity.start": "eoi_structured"}  # has no form for dense layers
  with pytest.raises(UserError, match="'eoi_structured' must leave some kernel"):
    start_state(make_plan(small(**fields)))
  # A random mask leaves units without a partner: an error, or what the config says.
  fields = {"sparsity.start": "eoi_in_mask", "sparsity.density": 0.05}
  with pytest.raises(UserError, match="no exact isometry on this mask"):
    start_state(make_plan(small(**fields)))
  state = start_state(make_plan(small(**fields, **{"sparsity.fallback": "partial"})))
  assert counts(state)


def test_what_replaces_an_isometry_is_as_the_config_says():
  fields = {"start": "eoi_in_mask", "fallback": "ai", "ai_method": "adam"}
  fields |= {"ai_steps": 7, "reference": "conv_orthogonal"}
  config = small(**{f"sparsity.{name}": value for name, value in fields.items()})
  assert sparsity_settings(config).options == {
    "fallback": "ai",
    "reference": "conv_orthogonal",
    "method": "adam",
    "num_steps": 7,
  }


def test_balanced_rows_take_turns():
  labels = jnp.array([0, 1, 2, 2, 1, 0, 0, 1, 2, 0])
  rows = balanced_rows(jax.random.key(0), labels, 2)
  assert len(set(rows.tolist())) == 6
  assert np.asarray(labels)[rows].tolist() == [0, 1, 2, 0, 1, 2]
  assert len(balanced_rows(jax.random.key(0), labels, 100)) == 9


def convolutions(**fields):
  """Parameters and masks of a CNN of 5 layers of 16 channels, by name of the kernel."""
  config = default.get_config()
  cnn = {"data.name": "cifar10", "model.name": "cnn", "model.width": 16}
  sparse = {"model.depth": 5, "sparsity.density": 0.2, "sparsity.ai_steps": 5}
  with config.ignore_type():
    config.update_from_flattened_dict(cnn | sparse | fields)
  recipe, sparsity = check_plan(config), sparsity_settings(config)
  state = create_train_state(jax.random.key(0), sparsity=sparsity, recipe=recipe)
  return named_leaves(state.params), named_leaves(state.masks)


@pytest.mark.slow
@pytest.mark.parametrize(
  ("fields", "center"),
  [
    ({}, 0.2),
    ({"sparsity.center": "more"}, 0.2**0.5),
    ({"sparsity.center": "more", "sparsity.density": 0.02}, 0.02 * 9),
  ],
)
def test_nonzeros_at_the_centre_follow_the_mode(fields, center):
  params, masks = convolutions(**fields)
  nonzero = np.asarray(params["input1/kernel"]) != 0
  wanted = round(center * 256)
  assert wanted - 16 < nonzero[1, 1].sum() == nonzero.sum() <= wanted
  density = fields.get("sparsity.density", 0.2)
  assert masks["input1/kernel"].sum() == round(density * nonzero.size)


@pytest.mark.slow
def test_all_taps_take_part_in_an_isometry():
  params, masks = convolutions(**{"sparsity.taps": "all", "model.width": 32})
  kernel = np.asarray(params["hidden/conv/kernel"])[0]
  taps = (kernel != 0).sum((2, 3))
  assert taps.min() > 0
  assert masks["input1/kernel"].sum() == round(0.2 * kernel.size)
  values = np.linalg.svd(np.fft.fft2(kernel, (8, 8), (0, 1)), compute_uv=False)
  np.testing.assert_allclose(values, 1.0, atol=1e-5)


@pytest.mark.slow
def test_base_and_ai_begin_with_the_reference():
  fields = {"sparsity.reference": "conv_orthogonal", "sparsity.distribution": "erk"}
  for name, zero in (("conv_orthogonal", False), ("delta_orthogonal", True)):
    fields["sparsity.reference"] = name
    for start in ("base", "ai"):
      params, masks = convolutions(**fields, **{"sparsity.start": start})
      kernel, mask = (np.array(tree["input1/kernel"]) for tree in (params, masks))
      kernel[1, 1] = mask[1, 1] = 0
      assert mask.any() and (kernel[mask] == 0).all() == zero
      assert (kernel[~mask] == 0).all()


@pytest.mark.slow
@pytest.mark.parametrize("start", few(["eoi", "eoi_structured", "base"]))
def test_uniform_with_dense_ends(start):
  fields = {"sparsity.distribution": "uniform_skip", "sparsity.start": start}
  _, masks = convolutions(**fields)
  for name in ("input0/kernel", "output/kernel"):
    assert masks[name] is None or masks[name].all()
  for name in ("input1/kernel", "hidden/conv/kernel"):
    count = round(0.2 * 256) * 9 if start == "eoi_structured" else round(0.2 * 9 * 256)
    assert count - 9 * 16 < masks[name].sum() <= count
    assert start == "eoi_structured" or masks[name].sum() == count


def test_a_network_of_ends_alone_is_refused():
  config = small(**{"sparsity.distribution": "uniform_skip", "model.depth": 2})
  with pytest.raises(UserError, match=r"uniform_skip.*input/kernel"):
    check_plan(config)


@pytest.mark.slow
def test_the_default_of_pytorch_is_dense_and_uniform_by_fan_in():
  fields = {"sparsity.distribution": "dense", "sparsity.start": "fan_in_uniform"}
  params, masks = convolutions(**fields)
  assert all(mask is None for mask in masks.values())
  for name, fan_in in (("input1/kernel", 144), ("hidden/conv/kernel", 144)):
    kernel = np.abs(np.asarray(params[name])) * fan_in**0.5
    assert 0.98 < kernel.max() <= 1 + 1e-6
    assert abs(kernel.mean() - 0.5) < 0.03


@pytest.mark.slow
def test_two_fields_are_compared_together(tmp_path, capsys):
  config = small(
    **{
      "compare.field": "sparsity.distribution+sparsity.start",
      "compare.choices": ("snip+eoi", "uniform+sao"),
      "sparsity.distribution": "snip",
      "num_epochs": 8,
      "optimizer.learning_rate": 0.05,
    }
  )
  summaries = loop.train_or_compare(config, tmp_path)
  assert list(summaries) == ["snip eoi", "uniform sao"]
  assert summaries["snip eoi"]["test_accuracy"] > 0.3
  assert (tmp_path / "snip+eoi" / "summary.json").is_file()
  assert "uniform sao" in capsys.readouterr().out


def test_the_schemes_of_the_paper():
  runs = config_lib.expand(mnist_schemes.get_config())
  assert len(runs) == 17
  pairs = {(r.sparsity.distribution, r.sparsity.start) for r in runs.values()}
  assert len(pairs) == 17
  assert all(not r.compare.field for r in runs.values())


@pytest.mark.slow
@pytest.mark.parametrize(
  ("choices", "words"),
  [
    (("uniform+eoi", "erk"), "2 values joined"),
    (("uniform+eoi", "erk+magic"), "`sparsity.start` must be one of .*'magic'"),
    (("erk+eoi",), "is 'uniform.eoi', but this config compares"),
    (("uniform+eoi", "erl+eoi"), "uniform, uniform_skip, erk, dense, snip"),
  ],
)
def test_malformed_pairs_are_refused(choices, words):
  config = small(
    **{
      "compare.field": "sparsity.distribution+sparsity.start",
      "compare.choices": choices,
    }
  )
  with pytest.raises(UserError, match=words):
    config_lib.validate(config)
