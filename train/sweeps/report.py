"""The report of a sweep, or of any finished runs: table and figures, as files."""

import re
from pathlib import Path
from typing import Any

import numpy as np

from train.core.figures import COLORS, MARKERS, QUIET, new_figure, save
from train.core.workdir import read_records, replace_text
from train.reproduce import draw
from train.sweeps.tables import Table, csv_text, curves_of, markdown, read_table


def write_report(directory: Path) -> str:
  """Writes table and figures of a directory; returns the table and where they are.

  Raises:
    UserError: if there is no run in it.
  """
  table = read_table(directory)
  text = markdown(table)
  replace_text(directory / "table.md", text)
  replace_text(directory / "table.csv", csv_text(table))
  if any(entry.runs for entry in table.entries.values()):
    save(draw_points(table), directory / "figure")
    for column in table.columns:
      _save_curves(table, column, directory)
  lines = [f"  table: {directory / 'table.md'}", *_environments(directory)]
  return f"\n{text}\n" + "\n".join(lines)


def _environments(directory: Path) -> list[str]:
  """What the runs were made with, once for each kind of it."""
  paths = sorted(directory.rglob("environment.jsonl"))
  text = "  runs of: commit {git_commit}, {device}, jax {jax}, Python {python}"
  lines = [text.format_map(place) for path in paths for place in read_records(path)]
  return list(dict.fromkeys(lines))


def _save_curves(table: Table, column: tuple[str, ...], directory: Path) -> None:
  found = {row: table.entries[*column, row].runs for row in table.rows}
  curves = {row: curves_of(runs) for row, runs in found.items() if runs}
  if not curves:
    return
  title = table.column_name(column) if column else table.title
  stem = "curves-" + re.sub(r"[^\w.]+", "_", title) if column else "curves"
  figure = draw.draw_curves(curves)
  figure.suptitle(title, fontsize=10)
  save(figure, directory / stem)


def draw_points(table: Table) -> Any:
  """Draws test accuracy: a line for each row, a colour for each column.

  Marks are means with a standard deviation, dots the seeds.
  """
  rows, columns = table.rows, table.columns
  height = 1.3 + len(rows) * max(0.26, 0.13 * len(columns)) + 0.1 * len(columns)
  figure, ((axes,),) = new_figure((6.4, height), 1, 1)
  for number, column in enumerate(columns):
    offset = (number - (len(columns) - 1) / 2) * min(0.22, 0.8 / len(columns))
    _draw_column(axes, table, column, number, offset)
  found = [run for entry in table.entries.values() for run in entry.runs]
  chance = max(run.summary["chance"] for run in found)
  if min(min(run.accuracies) for run in found) < 3 * chance:  # not left far behind
    style = {"color": QUIET, "linewidth": 1, "linestyle": (0, (1, 2)), "zorder": 0}
    axes.axvline(100 * chance, label="chance", **style)
  axes.set_yticks(range(len(rows)), rows)
  axes.set(xlabel="test accuracy (%)", ylim=(len(rows) - 0.5, -0.5))
  axes.set_title(table.title, fontsize=9)
  figure.legend(loc="outside lower center", ncols=3, fontsize=8, frameon=False)
  return figure


def _draw_column(axes, table: Table, column, number: int, offset: float) -> None:
  color = COLORS[number % len(COLORS)]
  found = [table.entries[*column, row] for row in table.rows]
  found = {place + offset: entry for place, entry in enumerate(found) if entry.runs}
  for place, entry in found.items():
    if (count := len(entry.accuracies)) > 1:
      values, style = 100 * np.array(entry.accuracies), {"markersize": 3, "zorder": 1}
      axes.plot(values, [place] * count, ".", color=color, alpha=0.5, **style)
  style = {"fmt": MARKERS[number % len(MARKERS)], "color": color, "ms": 5}
  style |= {"capsize": 2, "linewidth": 1.2, "label": table.column_name(column)}
  means = [100 * entry.mean for entry in found.values()]
  deviations = [100 * entry.std for entry in found.values()]
  axes.errorbar(means, list(found), xerr=deviations, **style)
