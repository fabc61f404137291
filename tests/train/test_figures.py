"""Figures of finished runs: of one seed a curve, of several the mean and a band."""

import numpy as np
import pytest

from train.core.figures import Curves, draw_runs, save
from train.core.summaries import Support
from train.reproduce import draw

LOSSES = [[2.0, 1.0], [2.2, 1.2], [2.1, 0.8]]  # of three seeds, after each epoch
ACCURACIES = [[0.5, 0.9], [0.6, 0.8], [0.4, 0.85]]


def record(split, epoch, value, column, several):
  found = {"split": split, "epoch": epoch, value: float(np.mean(column))}
  return found | ({"seeds": {value: list(column)}} if several else {})


def run(several):
  records = []
  for epoch in (1, 2):
    losses, accuracies = ([row[epoch - 1] for row in x] for x in (LOSSES, ACCURACIES))
    records.append(record("train", epoch, "loss", losses, several))
    records.append(record("validation", epoch, "accuracy", accuracies, several))
  summary: dict = {"test_accuracy": 0.85, "chance": 0.1}
  if several:
    summary["test_accuracy_seeds"] = [0.9, 0.8, 0.85]
  support = Support("kernel", np.eye(4, dtype=bool), np.eye(4, dtype=bool), 0.25)
  return Curves(records, summary, support)


@pytest.mark.parametrize("several", [False, True])
def test_seeds_are_a_band_about_their_mean(several):
  figure = draw_runs({"eoi": run(several)}, "title")
  accuracy, loss, _ = figure.axes
  for axes, factor, table in ((accuracy, 100, ACCURACIES), (loss, 1, LOSSES)):
    curve = axes.lines[0].get_ydata()
    np.testing.assert_allclose(curve, factor * np.mean(table, axis=0))
    assert len(axes.collections) == several
    if several:
      (path,) = axes.collections[0].get_paths()
      found = {tuple(vertex) for vertex in path.vertices.round(6)}
      for epoch, column in enumerate(np.transpose(table), 1):
        assert {(epoch, factor * column.min()), (epoch, factor * column.max())} <= found
  label = accuracy.get_legend_handles_labels()[1][0]
  spread = f" \N{PLUS-MINUS SIGN} {5:.1f}%" if several else ""
  assert label == f"eoi: test 85.0%{spread}"


def test_bands_of_a_logarithmic_axis_alone_are_cut():
  curve = {"epoch": [1.0, 2.0], "mean": [0.4, 0.5], "std": [0.3, 0.1]}
  figure = draw.draw_curves({"eoi": {"loss": curve, "accuracy": curve, "runs": 3}})
  for axes, lowest in zip(figure.axes, (0.2, 10), strict=True):
    (path,) = axes.collections[0].get_paths()
    assert path.vertices[:, 1].min() == pytest.approx(lowest)


def test_many_runs_have_their_legend_outside(tmp_path):
  runs = {f"scheme {n}": run(several=False) for n in range(16)}
  figure = draw_runs(runs)
  assert figure.axes[0].get_legend() is None and len(figure.legends) == 1
  styles = {(x.get_color(), x.get_linestyle()) for x in figure.axes[1].lines}
  assert len(styles) == 16
  save(figure, tmp_path / "a")
  assert (tmp_path / "a.png").stat().st_size > 10_000
