"""Every shipped config loads, is checked, and says how to run it."""

import importlib
import pathlib

import pytest

from configs import default
from configs.sweeps import appendix_k_densities, table1_cnn1000, table2_deep_resnets
from train.analysis.dry_run import list_kernels
from train.core import config as config_lib
from train.core.plan import make_plan

FOLDER = pathlib.Path(default.__file__).parent
NAMES = sorted(
  path.stem for path in FOLDER.glob("*.py") if path.stem not in ("__init__", "default")
)


@pytest.mark.slow
@pytest.mark.usefixtures("standard_promotion")  # of LAMB, by optax
@pytest.mark.parametrize("name", NAMES)
def test_every_config_and_variant_describes_a_network(name):
  module = importlib.import_module(f"configs.{name}")
  assert f"--config configs/{name}.py" in module.__doc__
  assert "smoke" in module.VARIANTS
  for variant in ("", *module.VARIANTS):
    config = module.get_config(variant)
    config_lib.validate(config)
    assert f":{variant}" in module.__doc__
    layers = list_kernels(config)
    assert 0 < layers.live <= layers.total
    if config.sparsity.start == "eoi":
      for row in layers.rows:
        assert row.floor is None or row.density >= row.floor - 1e-9


CONTEMPORARY = ("cifar_resnet", "vgg16_c", "vgg16_d", "efficientnet_b0", "resnet50")


@pytest.mark.parametrize("name", NAMES)
def test_configs_follow_the_settings_of_their_network(name):
  config = importlib.import_module(f"configs.{name}").get_config()
  network, sparsity = config.model.name, config.sparsity
  convolutional = network == "cnn" or network in CONTEMPORARY
  assert sparsity.center == ("more" if network in CONTEMPORARY else "plain")
  assert sparsity.reference == ("conv_orthogonal" if convolutional else "orthogonal")
  short = network == "cnn" or config.model.depth == 1000
  assert sparsity.ai_steps == (1000 if short else 10_000)
  assert sparsity.taps == "center"


def test_sweeps_hold_the_rows_of_the_settings():
  (rows,) = table1_cnn1000.get_axes().values()
  further = {"uniform_skip-eoi", "uniform_skip-eis", "erk-eis"}
  assert further < set(rows) and len(rows) == 16 + 3 + 1
  assert rows["dense"]["sparsity.start"] == "delta_orthogonal"
  for sweep in (table2_deep_resnets, appendix_k_densities):
    rows = sweep.get_axes()["scheme"]
    rates = {n: r.get("optimizer.learning_rate", 0.1) for n, r in rows.items()}
    slow = {n.removesuffix(", rate .01") for n, rate in rates.items() if rate == 0.01}
    assert slow == {n for n, r in rows.items() if n.endswith("-eoi")}
    assert "synflow-eoi" in slow
    starts = {r["sparsity.start"] for n, r in rows.items() if n.startswith("dense")}
    assert starts == {"conv_orthogonal", "fan_in_uniform"}


@pytest.mark.slow
def test_a_limit_keeps_the_first_examples():
  config = default.get_config()
  config.data.name, config.model.width, config.batch_size = "digits", 16, 32
  whole = make_plan(config).dataset
  config.data.limit = 100
  plan = make_plan(config)
  assert plan.recipe.steps_per_epoch == 3
  for name in ("train", "validation", "test"):
    split, every = getattr(plan.dataset, name), getattr(whole, name)
    assert len(split.labels) == len(split.images) == 100
    assert (split.labels == every.labels[:100]).all()
    assert (split.images == every.images[:100]).all()


@pytest.mark.slow
def test_without_validation_a_limit_keeps_none():
  config = default.get_config()
  config.data.name, config.data.validation, config.data.limit = "digits", 0.0, 200
  assert make_plan(config).dataset.validation is None
