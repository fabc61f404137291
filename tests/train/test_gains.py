import json

import jax.numpy as jnp
import pytest
from absl import flags
from ml_collections.config_flags import config_flags

import eoi_jax
from configs import default
from train.core import config as config_lib
from train.core.console import UserError
from train.core.plan import make_plan, start_state
from train.core.start import sparsity_settings


def gains(config):
  settings = sparsity_settings(config)
  return settings.scale, settings.bias_std


def critical(**fields):
  config = default.get_config()
  config.data.name = "digits"
  config.sparsity.scale = "critical"
  config.update_from_flattened_dict(fields)
  return config


def test_numbers_stand_for_themselves():
  config = default.get_config()
  config.sparsity.scale, config.sparsity.bias_std = 1.5, 0.25
  assert gains(config) == (1.5, 0.25)


@pytest.mark.slow
def test_critical_sets_kernels_and_biases():
  config = critical()
  config_lib.validate(config)
  assert gains(config) == eoi_jax.critical_point(jnp.tanh, config.sparsity.q_star)
  state = start_state(make_plan(config))
  hidden = {"hidden": state.params["hidden"]["dense"]}
  layouts = eoi_jax.kernel_layouts(hidden, {"*/kernel": "sio"})
  errors = eoi_jax.gram_errors(hidden, scale=gains(config)[0], layouts=layouts)
  assert max(errors["hidden/kernel"]) < 5e-6
  biases = state.params["hidden"]["dense"]["bias"]
  assert jnp.std(biases) == pytest.approx(gains(config)[1], rel=0.15)


def test_the_default_variance_is_that_of_the_paper():
  scale, bias_std = gains(critical())
  assert scale**2 == pytest.approx(1.05, abs=1e-4)
  assert bias_std == pytest.approx(0.00448, rel=5e-3)
  assert gains(critical(**{"model.activation": "relu"})) == (
    pytest.approx(2**0.5),
    0.0,
  )


def test_critical_is_compared_with_a_number_and_saved():
  config = critical(**{"compare.field": "sparsity.scale"})
  config.compare.choices = ("critical", 1.0)
  config_lib.validate(config)
  runs = config_lib.expand(config)
  assert [run.sparsity.scale for run in runs.values()] == ["critical", 1.0]
  saved = json.loads(config_lib.to_json(runs["critical"]))
  assert saved["sparsity"]["scale"] == "critical"
  assert not config_lib.differences(runs["critical"], saved)


@pytest.mark.parametrize("text", ["critical", "1.5"])
def test_flags_take_both(text, monkeypatch):
  arguments = ["run", f"--config.sparsity.scale={text}"]
  monkeypatch.setattr("sys.argv", arguments)  # where the overrides are looked up
  values = flags.FlagValues()
  config_flags.DEFINE_config_dict("config", default.get_config(), flag_values=values)
  values(arguments)
  assert str(values.config.sparsity.scale) == text


def test_mistakes(value_error):
  with value_error("`sparsity.scale`", "'critical'", "'large'"):
    config_lib.validate(critical(**{"sparsity.scale": "large"}))
  with pytest.raises(UserError, match=r"`sparsity.bias_std` must be 0"):
    make_plan(critical(**{"sparsity.bias_std": 0.1}))
  with pytest.raises(UserError, match=r"q_star"):
    config_lib.validate(critical(**{"sparsity.q_star": 0.0}))
