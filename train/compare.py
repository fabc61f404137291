"""One config, one or several runs: the door that `train.run` opens."""

import json
from pathlib import Path
from typing import Any

from train import config as config_lib
from train import figures, mesh, summaries
from train.loop import train_and_evaluate
from train.plan import make_plan
from train.workdir import claim_workdir, replace_text


def run(config: Any, workdir: str | Path) -> dict[str, dict[str, Any]]:
  """Trains what a config asks for, and prints and saves the outcome.

  If `config.compare` names a field, the network is trained once for each of its
  values; each run has a directory of its own in `workdir` and is what it would be
  alone. `summary.json` and `figure.png` of `workdir` then show all of them.

  Args:
    config: a config; it is checked here, all of it, before anything is compiled.
    workdir: directory of the results; unfinished runs in it go on.

  Returns:
    The summary of each run by name.

  Raises:
    UserError: see `train_and_evaluate`.
  """
  workdir = Path(workdir)
  config_lib.validate(config)
  runs = config_lib.expand(config)
  for one in runs.values():
    make_plan(one)
  if not config.compare.field:
    name = f"{config.sparsity.start} start"
    by_name = {name: train_and_evaluate(config, workdir).summary}
  else:
    with mesh.primary_context(claim_workdir, workdir, config):
      by_name = _compare(config, runs, workdir)
  if mesh.is_primary():
    print(f"\n{summaries.summary_table(by_name)}\n\n  figure: {workdir / 'figure.png'}")
  return by_name


def _compare(config: Any, runs: dict[str, Any], workdir: Path) -> dict[str, Any]:
  """Trains all runs; returns summaries by the label of each."""
  results = {}
  for value, one in runs.items():
    name = config_lib.label(config.compare.field, value)
    results[name] = train_and_evaluate(one, workdir / value, name=name)
  by_name = {name: result.summary for name, result in results.items()}
  if mesh.is_primary():
    by_value = dict(zip(runs, by_name.values(), strict=True))
    text = json.dumps({"runs": by_value}, indent=2) + "\n"
    replace_text(workdir / "summary.json", text)
    curves = {name: result.curves for name, result in results.items()}
    figures.plot_runs(workdir / "figure.png", curves, summaries.title(config))
  return by_name
