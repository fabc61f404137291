import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import eoi_jax
from train import paper
from train.core.console import UserError
from train.reproduce import draw, numbers
from train.sweeps import tables

ROOT = Path(__file__).parents[2]


def saved(figure, path):
  figure.savefig(path)
  return path.stat().st_size > 5_000


@pytest.mark.slow
def test_density_is_counted_and_agrees_with_the_recurrence(tmp_path):
  data = numbers.density(num_seeds=3, sizes=(64,))
  (curve,) = data["curves"]
  expected = np.array(curve["expected"])
  assert curve["rotations"][0] == 0 and expected[0] == pytest.approx(1 / 64)
  np.testing.assert_allclose(curve["mean"], expected, atol=0.05)
  assert (np.array(curve["min"]) < curve["max"])[5:].any()
  np.testing.assert_allclose(
    expected[-1], eoi_jax.expected_density(64, curve["rotations"][-1]), rtol=1e-6
  )
  assert saved(draw.draw_density(data), tmp_path / "a.png")


@pytest.mark.slow
def test_delta_kernel(tmp_path):
  data = numbers.delta_kernel(channels=8, density=0.2)
  kernel, mask = np.array(data["kernel"]), np.array(data["mask"])
  assert mask.sum() == round(0.2 * kernel.size) and not kernel[~mask].any()
  kernel[1, 1] = 0
  assert not kernel.any() and data["gram_error"] < 5e-6
  assert saved(draw.draw_delta(data), tmp_path / "a.png")


@pytest.mark.slow
@pytest.mark.usefixtures("module_promotion")
def test_angles(tmp_path, monkeypatch):
  """On the digits, which stand in for a data set that is missing."""
  monkeypatch.setattr(numbers, "ANGLES", {"1 degree": 1.0})
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "nothing"))
  data = numbers.angles(num_seeds=2, num_epochs=2)
  assert data["data"] == "digits"
  small = np.array(data["kernels"]["1 degree"])
  assert np.abs(np.diag(small)).min() > 0.9
  assert np.abs(small - np.diag(np.diag(small))).max() < 0.2
  for losses in data["loss"].values():
    losses = np.array(losses)
    assert losses.shape == (2, len(data["epoch"])) and data["epoch"][-1] < 2
    assert (losses[:, -1] < losses[:, 0]).all()
  assert saved(draw.draw_angles(data), tmp_path / "a.png")


@pytest.mark.slow
def test_time(tmp_path):
  data = numbers.init_time(sizes=(16, 32), densities=(0.2,), repeats=2)
  assert set(data["curves"]) == {"EOI, density 0.2", "dense, QR"}
  assert all(t > 0 for times in data["curves"].values() for t in times)
  assert saved(draw.draw_time(data), tmp_path / "a.png")


@pytest.mark.slow
@pytest.mark.usefixtures("module_promotion")
def test_spectrum(tmp_path):
  data = numbers.spectrum(
    activations=["linear", "tanh"],
    distributions=["uniform"],
    starts=["eoi", "base"],
    densities=[0.1],
    num_seeds=2,
  )
  names = [(c["activation"], c["start"]) for c in data["curves"]]
  assert names == [(a, s) for a in ("linear", "tanh") for s in ("eoi", "base")]
  eoi, base, tanh_eoi, _ = data["curves"]
  assert eoi["min"][0] == pytest.approx(1, abs=1e-5)
  assert eoi["max"][0] == pytest.approx(1, abs=1e-5)
  assert base["max"][0] < 0.01
  assert tanh_eoi["mean"][0] == pytest.approx(0.365, abs=0.03)  # as published
  assert saved(draw.draw_spectrum(data), tmp_path / "a.png")


@pytest.mark.slow
@pytest.mark.usefixtures("module_promotion")
def test_spectrum_of_scores_looks_at_examples(tfds_data_dir):
  if not (tfds_data_dir / "mnist").is_dir():
    pytest.skip(f"mnist is not in TFDS_DATA_DIR={tfds_data_dir}")
  scheme: dict = dict(activations=["tanh"], distributions=["snip"], starts=["eoi"])
  (curve,) = numbers.spectrum(**scheme, densities=[0.1], num_seeds=1)["curves"]
  assert curve["mean"][0] == pytest.approx(0.365, abs=0.05) and curve["density"] == [
    0.1
  ]


@pytest.mark.parametrize("field", ["activations", "distributions", "starts"])
def test_spectrum_names_what_it_knows(field):
  names: dict = dict(activations=["tanh"], distributions=["erk"], starts=["eoi"])
  with pytest.raises(UserError, match=f"`{field}` must be among .*, got 'nope'"):
    numbers.spectrum(**names | {field: ["nope"], "densities": [], "num_seeds": 1})


def _write_run(directory, *, seed, density, start, accuracy):
  directory.mkdir(parents=True)
  config = {"seed": seed, "sparsity": {"density": density, "start": start}}
  (directory / "config.json").write_text(json.dumps(config))
  summary = {"test_accuracy": accuracy, "density": density}
  (directory / "summary.json").write_text(json.dumps(summary))
  lines = [
    {"epoch": 1.0, "split": "train", "loss": 2.0 + seed},
    {"epoch": 1.0, "split": "validation", "accuracy": accuracy},
    {"epoch": 2.0, "split": "train", "loss": 1.0 + seed},
  ]
  text = "".join(json.dumps(line) + "\n" for line in lines)
  (directory / "metrics.jsonl").write_text(text)


@pytest.fixture
def finished(tmp_path):
  number = 0
  for start, bonus in (("eoi", 0.1), ("base", 0.0)):
    for density in (0.05, 0.1):
      for seed in (0, 1):
        settings = {"seed": seed, "density": density, "start": start}
        accuracy = 0.7 + density + bonus + 0.02 * seed
        _write_run(tmp_path / f"runs/{number}", accuracy=accuracy, **settings)
        number += 1
  (tmp_path / "runs/unfinished").mkdir()
  (tmp_path / "runs/unfinished/metrics.jsonl").write_text("")
  return tmp_path / "runs"


@pytest.mark.slow
def test_finished_runs_are_grouped_by_what_differs(finished, tmp_path):
  data = tables.accuracy_over_density([str(finished)])
  assert list(data) == ["eoi", "base"]
  assert data["eoi"]["density"] == [0.05, 0.1] and data["eoi"]["runs"] == [2, 2]
  np.testing.assert_allclose(data["base"]["mean"], [0.76, 0.81])
  np.testing.assert_allclose(data["base"]["std"], 0.02 / 2**0.5)
  curves = tables.curves([str(finished)])
  assert list(curves) == ["0.05, eoi", "0.1, eoi", "0.05, base", "0.1, base"]
  loss = curves["0.1, eoi"]["loss"]
  assert loss["epoch"] == [1.0, 2.0] and loss["mean"] == [2.5, 1.5]
  for name in ("curves", "accuracy"):
    path = paper.make(name, tmp_path / "out", [str(finished)])
    assert path.stat().st_size > 5_000
    assert path.with_suffix(".pdf").read_bytes().startswith(b"%PDF")
    assert json.loads(path.with_suffix(".json").read_text())


@pytest.mark.slow
def test_the_command(tmp_path):
  done = subprocess.run(
    [sys.executable, "-m", "train.paper", "delta", f"--out={tmp_path}"],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=True,
  )
  assert done.stdout == f"figure: {tmp_path}/delta.png\n"
  assert {path.name for path in tmp_path.iterdir()} == {
    f"delta.{suffix}" for suffix in ("json", "pdf", "png")
  }


@pytest.mark.parametrize(
  ("name", "arguments", "words"),
  [
    ("nope", [], "density, spectrum"),
    ("curves", [], "needs directories"),
    ("delta", ["x"], "takes no directories"),
    ("curves", ["/nowhere"], "no finished run in /nowhere"),
  ],
)
def test_mistakes(name, arguments, words, tmp_path):
  with pytest.raises(UserError, match=words):
    paper.make(name, tmp_path, arguments)


def test_a_place_that_cannot_be_written_is_told_before_the_work(tmp_path, monkeypatch):
  (tmp_path / "file").touch()
  monkeypatch.setitem(paper.FIGURES, "delta", paper.Figure(pytest.fail, pytest.fail))
  with pytest.raises(OSError, match="file"):
    paper.make("delta", tmp_path / "file", [])
