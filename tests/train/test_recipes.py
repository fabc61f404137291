"""Every shipped config loads, is checked, and says how to run it."""

import importlib
import pathlib

import pytest

from configs import default
from train.analysis.dry_run import list_kernels
from train.core import config as config_lib
from train.core.plan import make_plan

FOLDER = pathlib.Path(default.__file__).parent
NAMES = sorted(
  path.stem for path in FOLDER.glob("*.py") if path.stem not in ("__init__", "default")
)


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
        assert row.floor is None or row.live / row.parameters >= row.floor - 1e-9


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


def test_without_validation_a_limit_keeps_none():
  config = default.get_config()
  config.data.name, config.data.validation, config.data.limit = "digits", 0.0, 200
  assert make_plan(config).dataset.validation is None
