"""Tables and figures of finished runs: mean, spread, n, and what is best."""

import json

import pytest

from train.core.console import UserError
from train.sweeps import tables
from train.sweeps.report import write_report

SCHEMES = ("base", "eoi", "dense")


def write_run(folder, *, accuracies, density, seeds=(), scheme="eoi", **fields):
  folder.mkdir(parents=True)
  mean = sum(accuracies) / len(accuracies)
  sparsity = {"start": scheme, "density": density}
  config = {"seed": 0, "seeds": seeds, "num_epochs": 2, "sparsity": sparsity} | fields
  summary = {"test_accuracy": mean, "density": density, "chance": 0.1}
  summary["train_seconds"] = 3.0
  records = []
  for epoch in (1.0, 2.0):
    record = {"epoch": epoch, "step": epoch, "loss": 1 / epoch, "accuracy": mean}
    if seeds:
      losses = [(seed + 1) / epoch for seed in range(len(seeds))]
      record["seeds"] = {"loss": losses, "accuracy": list(accuracies)}
    records += [{**record, "split": split} for split in ("train", "validation")]
  if seeds:
    summary["test_accuracy_seeds"] = list(accuracies)
  (folder / "config.json").write_text(json.dumps(config))
  (folder / "summary.json").write_text(json.dumps(summary))
  text = "".join(json.dumps(record) + "\n" for record in records)
  (folder / "metrics.jsonl").write_text(text)


@pytest.fixture
def workdir(tmp_path):
  """Three schemes at two densities, three seeds: in one run, in three, one failed."""
  write_run(tmp_path / "a", accuracies=(0.7, 0.8, 0.9), seeds=(0, 1, 2), density=0.05)
  for seed, accuracy in enumerate((0.5, 0.6, 0.7)):
    folder = tmp_path / f"b/{seed}"
    write_run(folder, accuracies=(accuracy,), density=0.05, seed=3 + seed)
  write_run(tmp_path / "c", accuracies=(0.9, 0.95, 1), seeds=(0, 1, 2), density=1.0)
  write_run(tmp_path / "d", accuracies=(0.1, 0.1, 0.1), seeds=(0, 1, 2), density=0.1)
  write_run(tmp_path / "e", accuracies=(0.1, 0.2, 0.3), seeds=(0, 1, 2), density=0.1)
  places = [("0.05", "eoi", "a"), ("0.05", "dense", "c"), ("0.1", "dense", "c")]
  places += [("0.05", "base", f"b/{seed}") for seed in range(3)]
  places += [("0.1", "base", "d"), ("0.1", "eoi", "e"), ("0.1", "ai", "f")]
  places += [("0.05", "ai", "g")]
  (tmp_path / "f").mkdir()
  (tmp_path / "f" / "failed.json").write_text('{"error": "the loss is nan."}')
  cells = [{"labels": {"density": d, "scheme": s}, "path": p} for d, s, p in places]
  axes = {"density": ["0.05", "0.1"], "scheme": ["base", "ai", "eoi", "dense"]}
  sweep = {"title": "Nets", "axes": axes, "cells": cells}
  (tmp_path / tables.SWEEP).write_text(json.dumps(sweep))
  return tmp_path


def test_the_table(workdir):
  text = tables.markdown(tables.read_table(workdir))
  legend = (
    "Test accuracy in %: mean ± standard deviation over seeds, n = 3. Bold: the best "
    "mean of a column among networks of its density. Epochs: 2."
  )
  assert text.splitlines() == [
    "**Nets**",
    "",
    "| scheme | density 0.05 | density 0.1 |",
    "| --- | --- | --- |",
    "| base | 60.00 ± 10.00 | 10.00 ± 0.00 |",
    "| ai | todo | failed |",
    "| eoi | **80.00 ± 10.00** | **20.00 ± 10.00** |",
    "| dense | 95.00 ± 5.00 (density 1) | 95.00 ± 5.00 (density 1) |",
    "",
    legend,
    "",
    "Failed:",
    "",
    "- 0.1, ai: the loss is nan.",
  ]


def test_the_csv(workdir):
  lines = tables.csv_text(tables.read_table(workdir)).splitlines()
  assert lines[0] == (
    "density,scheme,status,n,mean,std,accuracies,density of kernels,epochs,note,"
    "train_seconds"
  )
  assert len(lines) == 9
  found = "0.700000 0.800000 0.900000"
  assert f"0.05,eoi,done,3,0.800000,0.100000,{found},0.050000,2,,3.0" in lines
  (base,) = [line for line in lines if line.startswith("0.05,base")]
  assert base.endswith("0.500000 0.600000 0.700000,0.050000,2,,9.0")
  assert "0.1,ai,failed,0,,,,,,the loss is nan.," in lines


def test_unequal_numbers_of_seeds_are_told(workdir):
  (workdir / "b" / "2" / "summary.json").unlink()
  text = tables.markdown(tables.read_table(workdir))
  assert "| base | 55.00 ± 7.07 (n = 2, stopped) |" in text
  assert "| 10.00 ± 0.00 (n = 3) |" in text


@pytest.mark.slow
def test_files_and_figures(workdir):
  shown = write_report(workdir)
  assert (workdir / "table.md").read_text() in shown
  assert (workdir / "table.csv").exists()
  for name in ("figure", "curves-density_0.05", "curves-density_0.1"):
    assert (workdir / f"{name}.png").stat().st_size > 10_000
    assert (workdir / f"{name}.pdf").read_bytes().startswith(b"%PDF")
  write_report(workdir / "b")
  assert (workdir / "b" / "curves.png").stat().st_size > 10_000  # one column alone


def test_curves_take_every_seed(workdir):
  loss = tables.curves_of([tables.read_run(workdir / "a")])["loss"]
  assert loss == {"epoch": [1.0, 2.0], "mean": [2.0, 1.0], "std": [1.0, 0.5]}
  data = tables.accuracy_over_density([str(workdir / "a"), str(workdir / "b")])
  (curve,) = data.values()
  assert curve["runs"] == [6] and curve["mean"] == [pytest.approx(0.7)]


def test_each_seed_of_a_group_counts_once(tmp_path):
  def count():
    (curve,) = tables.curves([str(tmp_path)]).values()
    return curve["runs"]

  write_run(tmp_path / "a", accuracies=(0.7, 0.8), seeds=(0, 1), density=0.1)
  write_run(tmp_path / "b", accuracies=(0.9,), seed=2, density=0.1)
  assert count() == 3
  write_run(tmp_path / "c", accuracies=(0.9,), seed=2, density=0.1, wandb=True)
  assert count() == 3  # a repetition; wandb changes no number
  write_run(tmp_path / "d", accuracies=(0.75,), seed=1, density=0.1)
  words = r"`seed` must differ .* got 1 in both .*/a and .*/d"
  with pytest.raises(UserError, match=words):
    count()


def test_accuracy_stands_over_the_density_at_the_end(tmp_path):
  def write(name, **fields):
    write_run(tmp_path / name, accuracies=(0.9,), **fields)
    wanted = json.loads((tmp_path / name / "config.json").read_text())
    wanted["sparsity"]["density"] = float(name.split()[-1])
    (tmp_path / name / "config.json").write_text(json.dumps(wanted))

  for seed, density in enumerate((0.15, 0.17)):  # random support
    fields = {"seed": seed, "dynamic": {"method": "static", "density": 0.1}}
    write(f"eis {seed} 0.2", density=density, scheme="eoi_structured", **fields)
  for density in (0.1, 0.2):  # nobody asks for it
    fields = {"dynamic": {"method": "static", "density": 0.1}}
    write(f"dense {density}", density=1.0, scheme="orthogonal", **fields)
  for density in (0.05, 0.1):
    fields = {"dynamic": {"method": "gmp", "density": density}}
    write(f"pruned {density} 0.5", density=density, **fields)
  data = tables.accuracy_over_density([str(tmp_path)])
  found = {name: (curve["density"], curve["runs"]) for name, curve in data.items()}
  assert found == {
    "static, orthogonal": ([1.0], [1]),
    "static, eoi_structured": ([pytest.approx(0.16)], [2]),
    "gmp, eoi": ([0.05, 0.1], [1, 1]),
  }


def test_reports_of_plain_runs(workdir, tmp_path_factory):
  text = tables.markdown(tables.read_table(workdir / "b"))
  assert "| run | test accuracy |" in text and "| eoi | 60.00 ± 10.00 |" in text
  with pytest.raises(UserError, match="no finished run"):
    tables.read_table(tmp_path_factory.mktemp("empty"))


@pytest.mark.parametrize("name", [tables.SWEEP, "a/summary.json", "f/failed.json"])
@pytest.mark.parametrize("text", ["{", "[1]"])
def test_a_damaged_file_is_named(name, text, workdir):
  (workdir / name).write_text(text)
  with pytest.raises(
    UserError, match=f"{name} (cannot be read|must hold a JSON object)"
  ):
    tables.read_table(workdir)


def test_a_table_that_cannot_be_written_leaves_nothing(workdir):
  (workdir / "table.md").mkdir()
  with pytest.raises(IsADirectoryError):
    write_report(workdir)
  assert not list(workdir.glob("*.part"))
