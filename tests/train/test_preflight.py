import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from configs import default
from train.analysis.preflight import as_json, as_text, metered
from train.data import own as own_data
from train.models import cifar_resnet
from train.preflight import preflight

pytestmark = pytest.mark.usefixtures("module_promotion")  # of schedules, by optax

ROOT = Path(__file__).parents[2]


def small(**fields):
  config = default.get_config()
  config.data.name = "digits"
  config.model.width = 32
  config.model.depth = 5
  config.sparsity.density = 0.25
  config.update_from_flattened_dict(fields)
  return config


@pytest.fixture(scope="module")
def linear(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("linear")
  config = small(**{"model.activation": "linear"})
  return preflight(config, workdir, num_samples=3), workdir


@pytest.mark.slow
def test_an_isometric_network_is_seen_as_one(linear):
  inspection, _ = linear
  np.testing.assert_allclose(inspection.values, 1, atol=1e-5)
  assert inspection.values.shape == (3, 10)
  assert inspection.theory["chi_1"] == pytest.approx(1)
  assert inspection.slopes == (1, 1)
  obstacles = {row.layer.name: row.obstacles for row in inspection.rows}
  assert obstacles == {
    "input/kernel": ["narrows 64 to 32"],
    "hidden/dense/kernel": [],
    "output/kernel": ["narrows 32 to 10"],
  }


@pytest.mark.slow
def test_gains_over_depth(linear):
  inspection, _ = linear
  rows = {row.layer.name: row for row in inspection.rows}
  hidden = rows["hidden/dense/kernel"]
  np.testing.assert_allclose(hidden.gains, [1, 1, 1], rtol=1e-5)
  np.testing.assert_allclose(hidden.gradient_gains, [1, 1, 1], rtol=1e-5)
  assert 0 < rows["input/kernel"].gains[0] < 1  # 64 pixels on 32 units
  assert rows["output/kernel"].gradient_gains == [pytest.approx(1)]


def test_totals_are_those_of_the_network(linear):
  inspection, _ = linear
  weights = 64 * 32 + 3 * 32 * 32 + 32 * 10
  biases = 4 * 32 + 10
  assert inspection.totals["parameters"] == weights + biases
  assert inspection.totals["parameters_live"] == weights // 4 + biases
  assert inspection.totals["forward_flops_dense"] == 2 * weights
  assert inspection.totals["forward_flops_sparse"] == weights // 2
  assert inspection.totals["bytes_dense"] == 4 * (weights + biases)
  sparse = 4 * (weights // 4 + biases) + weights // 8
  assert inspection.totals["bytes_sparse"] == sparse
  assert inspection.totals["effective_density"] <= 0.25
  assert [row.layer.floor for row in inspection.rows] == [1 / 64, 1 / 32, 1 / 32]


def test_the_report_is_left_in_three_forms(linear):
  inspection, workdir = linear
  content = json.loads((workdir / "preflight.json").read_text())
  assert [layer["name"] for layer in content["layers"]] == [
    row.layer.name for row in inspection.rows
  ]
  assert content["spectrum"]["mean"] == pytest.approx(1)
  assert (workdir / "preflight.png").stat().st_size > 10_000
  assert (workdir / "batch.png").stat().st_size > 10_000
  assert (workdir / "preflight.pdf").read_bytes().startswith(b"%PDF")
  text = as_text(inspection)
  for words in ("3 of 32x32", "narrows 64 to 32", "forward flops", "chi 1"):
    assert words in text


@pytest.mark.slow
def test_what_hinders_a_network_is_named(tmp_path):
  config = small(
    **{"model.name": "cnn", "model.activation": "relu", "sparsity.start": "base"}
  )
  inspection = preflight(config, tmp_path, num_samples=2)
  for row in inspection.rows:
    assert len(row.gains) == len(row.gradient_gains) == row.layer.count
    assert min(*row.gains, *row.gradient_gains) > 0
  text = as_text(inspection)
  assert "input1/kernel: not orthogonal" in text and "stride 2 drops pixels" in text
  assert "slopes run from 0 to 1" in text
  assert inspection.theory["chi_1"] == pytest.approx(0.5)
  # 8 x 8 images, then strides 2 and 2.
  first, second = (row.flops for row in inspection.rows[:2])
  assert first == 2 * 64 * 9 * 32 and second == 2 * 16 * 9 * 32 * 32
  assert "null" not in as_json(inspection)


def test_calls_of_a_residual_network():
  model = cifar_resnet(depth=8, num_classes=10)
  shapes = jax.eval_shape(
    lambda: model.init(jax.random.key(0), np.zeros((1, 32, 32, 3), np.float32))
  )
  calls, *_ = metered(model, shapes, (32, 32, 3))
  assert next(iter(calls)) == "stem/kernel" and list(calls)[-1] == "output/kernel"
  shortcut = calls["stage2_first/conv_shortcut/kernel"]
  assert shortcut.stride == 2
  assert (shortcut.positions_in, shortcut.positions_out) == (32 * 32, 16 * 16)
  assert calls["output/kernel"].positions_out == 1


@pytest.mark.slow
def test_meters_of_a_residual_network_are_those_of_its_kernels():
  model, shape = cifar_resnet(depth=14, num_classes=10), (8, 8, 3)
  variables = jax.eval_shape(
    lambda: model.init(jax.random.key(0), np.zeros((1, *shape), np.float32))
  )
  calls, _, meters = metered(model, variables, shape)
  assert set(meters) == set(calls)
  assert meters["stage2_rest/conv1/kernel"].shape[0] == 1
  assert meters["stem/kernel"].ndim == 1


ATTENTION = """
import flax.linen as nn

class Net(nn.Module):
  num_classes: int
  others = {"mix": "io"}

  @nn.compact
  def __call__(self, images):
    x = images.reshape(len(images), 8, -1)
    x = nn.MultiHeadDotProductAttention(num_heads=2, qkv_features=12)(x, x)
    x = x.mean(1) @ self.param("mix", nn.initializers.lecun_normal(), (16, 16))
    return nn.Dense(self.num_classes)(inputs=x)

class Bare(nn.Module):
  num_classes: int
  others = {"mix": "io"}

  @nn.compact
  def __call__(self, images):
    x = images.reshape(len(images), -1)
    return x @ self.param("mix", nn.initializers.ones, (x.shape[1], self.num_classes))
"""


def two_channels():
  images = np.linspace(0, 1, 40 * 8 * 8 * 2).reshape(40, 8, 8, 2)
  split = images, np.arange(40) % 4
  return {"num_classes": 4, "train": split, "test": split}


@pytest.fixture
def own(tmp_path, monkeypatch):
  """A config of one's own network, on images of two channels."""
  (tmp_path / "net_to_measure.py").write_text(ATTENTION)
  monkeypatch.syspath_prepend(tmp_path)
  monkeypatch.setattr(own_data, "find", lambda field, name: two_channels)
  names = {"data.name": "own:two_channels", "model.name": "net_to_measure:Net"}
  return small(**names, batch_size=8)


@pytest.mark.slow
def test_a_kernel_without_a_meter_is_a_row_without_its_numbers(own, tmp_path):
  inspection = preflight(own, tmp_path, num_samples=2)
  rows = {row.layer.name.removesuffix("/kernel"): row for row in inspection.rows}
  assert list(rows)[-2:] == ["Dense_0", "mix"]
  (query,) = [row for name, row in rows.items() if name.endswith("query")]
  (out,) = [row for name, row in rows.items() if name.endswith("out")]
  assert query.flops == out.flops == 2 * 8 * 16 * 12  # of 8 tokens
  assert len(query.gains) == len(out.gains) == 1
  mix = rows["mix"]
  assert mix.flops is None and not mix.gains and len(mix.gradient_norms) == 1
  (line,) = [s for s in as_text(inspection).splitlines() if s.startswith("  mix")]
  assert line.split()[-3:-1] == ["-", "-"]
  assert inspection.slopes is None and "slopes" not in as_text(inspection)
  assert json.loads((tmp_path / "preflight.json").read_text())["slopes"] is None
  own.model.name = "net_to_measure:Bare"  # has no meter at all
  inspection = preflight(own, tmp_path, num_samples=2)
  assert inspection.totals["forward_flops_dense"] == 0


@pytest.mark.slow
def test_totals_are_of_kernels_that_stay_dense_too(tmp_path):
  changes = {"model.name": "vit4", "model.depth": 2, "sparsity.density": 0.125}
  inspection = preflight(small(**changes), tmp_path, num_samples=1)
  mlp, tokens = 2 * 2 * 4 * 32 * 32, 1 + 4
  attention = 2 * 4 * 32 * 32
  ends = 16 * 32 + 32 * 10
  totals = inspection.totals
  assert totals["kernel_density"] == (mlp / 8 + attention + ends) / (
    mlp + attention + ends
  )
  around = 2 * (attention * tokens + 16 * 32 * 4 + 32 * 10)
  assert totals["forward_flops_dense"] == 2 * mlp * tokens + around
  assert totals["forward_flops_sparse"] == 2 * mlp * tokens // 8 + around


@pytest.mark.slow
def test_the_command(tmp_path):
  done = subprocess.run(
    [
      *(sys.executable, "-m", "train.preflight", "--config=configs/quickstart.py"),
      *("--samples=2", "--config.model.depth=4", f"--workdir={tmp_path}"),
    ],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=True,
  )
  assert "singular values of the Jacobian" in done.stdout
  assert done.stderr == ""
  assert (tmp_path / "preflight.json").exists()


def test_a_density_below_the_floor_is_one_line(tmp_path, value_error):
  with value_error("hidden/dense/kernel", "[0.03125, 1]"):
    preflight(small(**{"sparsity.density": 0.01}), tmp_path)
