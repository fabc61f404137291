"""Finished runs, read back and grouped: what differs between them but the seed."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from train.config import flatten
from train.errors import UserError
from train.metrics import read_metrics

SEEDS = ("seed", "seeds")  # fields in which repetitions of a run differ


class Run(NamedTuple):
  """What a finished run has left.

  Attributes:
    config: flat dictionary of its fields.
    summary: contents of `summary.json`.
    records: lines of `metrics.jsonl`.
  """

  config: dict[str, Any]
  summary: dict[str, Any]
  records: list[dict[str, Any]]

  @property
  def accuracies(self) -> list[float]:
    """Test accuracy of each seed of the run."""
    return self.summary.get("test_accuracy_seeds") or [self.summary["test_accuracy"]]


def read_run(directory: Path) -> Run | None:
  """Reads a run, None if it is not finished."""
  paths = [directory / name for name in ("config.json", "summary.json")]
  if not all(path.exists() for path in (*paths, directory / "metrics.jsonl")):
    return None
  config, summary = (json.loads(path.read_text(encoding="utf-8")) for path in paths)
  return Run(flatten(config), summary, read_metrics(directory / "metrics.jsonl"))


def read_runs(directories: list[str]) -> list[Run]:
  """Reads all finished runs in some directories, however deep.

  Raises:
    UserError: if there is none.
  """
  found = []
  for directory in directories:
    for path in sorted(Path(directory).rglob("metrics.jsonl")):
      if (run := read_run(path.parent)) is not None:
        found.append(run)
  if not found:
    raise UserError(f"no finished run in {', '.join(directories)}.")
  return found


def group(runs: list[Run], *, apart: tuple[str, ...] = SEEDS) -> dict[str, list[Run]]:
  """Groups runs that differ in the fields `apart` only.

  Returns:
    Dict from what tells a group from the others, "eoi, erk", to its runs.
  """
  fields = {name for run in runs for name in run.config} - set(apart)
  odd = [
    name
    for name in sorted(fields)
    if len({json.dumps(run.config.get(name)) for run in runs}) > 1
  ]
  groups: dict[str, list[Run]] = {}
  for run in runs:
    words = [f"{run.config.get(name)}" for name in odd]
    groups.setdefault(", ".join(words) or run.config["sparsity.start"], []).append(run)
  return groups


def curves(directories: list[str]) -> dict[str, Any]:
  """Training loss and held-out accuracy over epochs: mean and deviation over seeds."""
  groups = group(read_runs(directories))
  return {name: curves_of(runs) for name, runs in groups.items()}


def curves_of(runs: list[Run]) -> dict[str, Any]:
  """Curves of runs that differ in their seeds only; see `curves`."""
  return {
    "loss": _over_epochs(runs, ("train",), "loss"),
    "accuracy": _over_epochs(runs, ("validation", "monitor"), "accuracy"),
    "runs": sum(len(run.accuracies) for run in runs),
  }


def _over_epochs(runs: list[Run], splits: tuple[str, ...], value: str) -> dict:
  columns: list[dict[float, float]] = []  # one for each seed
  for run in runs:
    records = [r for r in run.records if r["split"] in splits]
    seeds = {r["epoch"]: r.get("seeds", {}).get(value) or [r[value]] for r in records}
    for number in range(len(run.accuracies)):
      columns.append({epoch: values[number] for epoch, values in seeds.items()})
  epochs = sorted(set.intersection(*(set(column) for column in columns)))
  table = np.array([[column[epoch] for epoch in epochs] for column in columns])
  return {"epoch": epochs, **_mean_and_deviation(table)}


def accuracy_over_density(directories: list[str]) -> dict[str, Any]:
  """Test accuracy over density: mean and deviation over seeds."""
  result = {}
  runs = read_runs(directories)
  for name, group_runs in group(runs, apart=(*SEEDS, "sparsity.density")).items():
    by_density: dict[float, list[float]] = {}
    for run in group_runs:
      density = run.config["sparsity.density"]
      by_density.setdefault(density, []).extend(run.accuracies)
    points = [_mean_and_deviation(np.array(v)) for _, v in sorted(by_density.items())]
    result[name] = {
      "density": sorted(by_density),
      "mean": [point["mean"] for point in points],
      "std": [point["std"] for point in points],
      "runs": [len(by_density[density]) for density in sorted(by_density)],
    }
  return result


def _mean_and_deviation(table: np.ndarray) -> dict[str, Any]:
  deviation = table.std(axis=0, ddof=1) if len(table) > 1 else 0 * table[0]
  return {"mean": table.mean(axis=0).tolist(), "std": np.asarray(deviation).tolist()}
