"""Makes the table and the figures of sweeps, or of any finished runs.

python -m train.report workdirs/mlp7_schemes-cpu

Each directory gets `table.md`, `table.csv`, `figure.png` and `curves-COLUMN.png`, or
`curves.png` where there is one column, with a PDF beside each figure. A cell counts as
soon as it is finished.
"""

import json
import re
from pathlib import Path
from typing import Any

from absl import app
from absl import logging as absl_logging

from train import report_draw, runs, tables
from train.command import exit_with
from train.errors import UserError
from train.tables import Table
from train.workdir import replace_text


def make(directory: Path) -> str:
  """Writes table and figures of a directory; returns the table and where they are.

  Raises:
    UserError: if there is no run in it.
  """
  table = tables.read_table(directory)
  text = tables.markdown(table)
  replace_text(directory / "table.md", text)
  replace_text(directory / "table.csv", tables.csv_text(table))
  if any(entry.runs for entry in table.entries.values()):
    _save(report_draw.draw_points(table), directory / "figure")
    for column in table.columns:
      _save_curves(table, column, directory)
  lines = [f"  table: {directory / 'table.md'}", *_environments(directory)]
  return f"\n{text}\n" + "\n".join(lines)


def _environments(directory: Path) -> list[str]:
  """What the runs were made with, once for each kind of it."""
  found = {}
  for path in sorted(directory.rglob("environment.jsonl")):
    for line in path.read_text(encoding="utf-8").splitlines():
      place = json.loads(line)
      text = f"commit {place['git_commit']}, {place['device']}, jax {place['jax']}"
      found[f"  runs of: {text}, Python {place['python']}"] = None
  return list(found)


def _save_curves(table: Table, column: tuple[str, ...], directory: Path) -> None:
  found = {row: table.entries[*column, row].runs for row in table.rows}
  curves = {row: runs.curves_of(entry) for row, entry in found.items() if entry}
  title, stem = table.title, "curves"
  if column:
    title = table.column_name(column)
    stem += "-" + re.sub(r"[^\w.]+", "_", title)
  if curves:
    _save(report_draw.draw_curves(curves, title), directory / stem)


def _save(figure: Any, path: Path) -> None:
  for suffix in ("pdf", "png"):
    figure.savefig(path.with_name(f"{path.name}.{suffix}"), dpi=200)


def main(argv: list[str]) -> None:
  """Makes the tables of the directories that the command line names."""
  absl_logging.set_verbosity(absl_logging.WARNING)
  try:
    if len(argv) < 2:
      raise UserError("name a directory of runs, such as workdirs/mlp7_schemes-cpu.")
    for directory in argv[1:]:
      print(make(Path(directory)))
  except UserError as error:
    exit_with(error)


if __name__ == "__main__":
  app.run(main)
