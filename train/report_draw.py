"""Drawings of sweeps: points with error bars, curves over epochs."""

from typing import Any

import numpy as np

from train import paper_draw
from train.figures import COLORS, QUIET
from train.tables import Table

_MARKERS = ("o", "s", "^", "D", "v", "P")


def draw_points(table: Table) -> Any:
  """Draws test accuracy: a line for each row, a colour for each column.

  Marks are means with a standard deviation, dots the seeds.
  """
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  rows, columns = table.rows, table.columns
  height = 1.3 + len(rows) * max(0.26, 0.13 * len(columns)) + 0.1 * len(columns)
  figure = Figure(figsize=(6.4, height), layout="constrained")
  FigureCanvasAgg(figure)
  axes = figure.subplots()
  for number, column in enumerate(columns):
    offset = (number - (len(columns) - 1) / 2) * min(0.22, 0.8 / len(columns))
    _draw_column(axes, table, column, number, offset)
  _draw_chance(axes, table)
  axes.set_yticks(range(len(rows)), rows)
  axes.set(xlabel="test accuracy (%)", ylim=(len(rows) - 0.5, -0.5))
  axes.spines[["top", "right"]].set_visible(False)
  axes.grid(color="#E6E6E6", linewidth=0.6)
  axes.set_axisbelow(True)
  axes.set_title(table.title, fontsize=9)
  figure.legend(loc="outside lower center", ncols=3, fontsize=8, frameon=False)
  return figure


def _draw_chance(axes, table: Table) -> None:
  """Draws where chance is, unless all have left it far behind."""
  found = [run for entry in table.entries.values() for run in entry.runs]
  chance = max(run.summary["chance"] for run in found)
  if min(min(run.accuracies) for run in found) < 3 * chance:
    style = {"color": QUIET, "linewidth": 1, "linestyle": (0, (1, 2)), "zorder": 0}
    axes.axvline(100 * chance, label="chance", **style)


def _draw_column(axes, table: Table, column, number: int, offset: float) -> None:
  color = COLORS[number % len(COLORS)]
  places, means, deviations = [], [], []
  for place, row in enumerate(table.rows):
    values = 100 * np.array(table.entries[*column, row].accuracies)
    if not len(values):
      continue
    places.append(place + offset)
    means.append(values.mean())
    deviations.append(values.std(ddof=1) if len(values) > 1 else 0.0)
    if len(values) > 1:
      dots = np.full(len(values), place + offset)
      axes.plot(values, dots, ".", color=color, alpha=0.5, markersize=3, zorder=1)
  axes.errorbar(
    means,
    places,
    xerr=deviations,
    fmt=_MARKERS[number % len(_MARKERS)],
    color=color,
    markersize=5,
    capsize=2,
    linewidth=1.2,
    label=table.column_name(column),
  )


def draw_curves(curves: dict[str, Any], title: str) -> Any:
  """Draws training loss and held-out accuracy of one column, a curve for each row."""
  figure = paper_draw.draw_curves(curves)
  figure.suptitle(title, fontsize=10)
  return figure
