"""The records of a run: `metrics.jsonl`, and what else shows them."""

import contextlib
import importlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from train.core.console import UserError
from train.core.workdir import read_records, replace_text


def with_spread(values: dict[str, Any], *, several: bool) -> dict[str, Any]:
  """Returns numbers of one seed as they are, those of several with their spread.

  `values` are numbers, or arrays of one number for each seed. Of `several` seeds the
  record has the mean of each, `NAME_std`, the standard deviation (of n - 1 degrees of
  freedom, 0 for a single one), and `seeds`: name to the list of all.
  """
  arrays = {k: np.atleast_1d(np.asarray(v, np.float64)) for k, v in values.items()}
  record: dict[str, Any] = {k: float(array.mean()) for k, array in arrays.items()}
  if several:
    for name, array in arrays.items():
      record[f"{name}_std"] = float(array.std(ddof=1)) if len(array) > 1 else 0.0
    record["seeds"] = {k: array.tolist() for k, array in arrays.items()}
  return record


class Mirror(NamedTuple):
  """What shows records besides `metrics.jsonl`."""

  write: Callable[[int, dict[str, float]], None]  # takes a step and its numbers
  close: Callable[[], None]


class MetricsWriter(contextlib.ExitStack):
  """Appends records to `metrics.jsonl` and keeps them in memory.

  Attributes:
    path: the file.
    records: all records, oldest first: dictionaries with `step`, `epoch`, `split`
      (train, validation, monitor, test), `loss`, `accuracy`. Those of train also have
      `learning_rate`, `steps_per_second`, `seconds` (the training time so far without
      compilation), and of the last step `grad_norm`, `update_norm` and `param_norm`;
      where masks move, `grown_weights` so far. Those of validation and monitor have
      `live_weights`. With several seeds, see `with_spread`.
  """

  def __init__(
    self,
    path: Path,
    resume_step: int | None,
    *,
    primary: bool = True,
    mirrors: Sequence[Mirror] = (),
  ):
    """Opens the file, which need not exist; `resume_step` None starts from nothing.

    Records after that step, which will come again, go. Processes that are not `primary`
    only keep the records; `mirrors` get them, too, and are closed in the end.
    """
    super().__init__()
    limit = -1 if resume_step is None else resume_step
    self.records = [
      r for r in read_records(path) if r["step"] <= limit and r["split"] != "test"
    ]
    self.path, self._file, self._mirrors = path, None, mirrors
    for mirror in mirrors:
      self.callback(mirror.close)
    if primary:
      replace_text(path, "".join(json.dumps(r) + "\n" for r in self.records))
      self._file = self.enter_context(open(path, "a", encoding="utf-8"))  # noqa: SIM115

  def write(self, record: dict[str, Any]) -> None:
    """Appends one record; it survives the death of the process from here on.

    Raises:
      UserError: if the file cannot be written.
    """
    self.records.append(record)
    if self._file is None:
      return
    try:
      self._file.write(json.dumps(record) + "\n")
      self._file.flush()
    except OSError as error:
      raise UserError(
        f"cannot write {self.path}: {error.strerror}; make room and run the same "
        "command again."
      ) from error
    for mirror in self._mirrors:
      split = record["split"]
      rest = {n: v for n, v in record.items() if n not in ("step", "split", "seeds")}
      mirror.write(record["step"], {f"{split}/{name}": x for name, x in rest.items()})

  def last(self, split: str) -> dict[str, Any] | None:
    """Returns the newest record of a split, or None."""
    return next((r for r in reversed(self.records) if r["split"] == split), None)


def _tensorboard(workdir: Path, config: Any, resume_step: int | None) -> Mirror:
  """Event files in `tensorboard/` of the workdir."""
  del config
  import tensorboardX

  purge = None if resume_step is None else resume_step + 1
  events = tensorboardX.SummaryWriter(str(workdir / "tensorboard"), purge_step=purge)

  def write(step, numbers):
    for name, value in numbers.items():
      events.add_scalar(name, value, step)
    events.flush()

  return Mirror(write, events.close)


def _wandb(workdir: Path, config: Any, resume_step: int | None) -> Mirror:
  """A run of Weights & Biases; the same one for all starts of a workdir.

  WANDB_PROJECT, WANDB_ENTITY, WANDB_MODE=offline and the like count as usual.
  """
  del resume_step
  import wandb  # pyright: ignore[reportMissingImports]

  path = workdir / "wandb_id"
  if not path.exists():
    replace_text(path, os.urandom(8).hex())
  try:
    run = wandb.init(
      project=os.environ.get("WANDB_PROJECT", "eoi_jax"),
      id=path.read_text(encoding="utf-8"),
      name=str(workdir),
      dir=str(workdir),
      config=config.to_dict(),
      resume="allow",
    )
  except wandb.Error as error:
    raise UserError(
      f"`wandb` = True: {error}; log in with `wandb login`, or set WANDB_MODE=offline."
    ) from error
  run.define_metric("*", step_metric="step")  # records may come again
  return Mirror(lambda step, numbers: run.log({"step": step} | numbers), run.finish)


# Field, which is the name of the extra, too; the package; what opens it.
_MIRRORS = {"tensorboard": ("tensorboardX", _tensorboard), "wandb": ("wandb", _wandb)}


def check_mirrors(config: Any) -> None:
  """Raises a UserError unless the packages that a config asks for are there."""
  for field, (package, _) in _MIRRORS.items():
    try:
      if config[field]:
        importlib.import_module(package)
    except ImportError as error:
      raise UserError(
        f"`{field}` = True needs {package}: run `pip install {package}`."
      ) from error


def open_mirrors(config: Any, workdir: Path, resume_step: int | None) -> list[Mirror]:
  """Opens what a config asks for besides `metrics.jsonl`, for `MetricsWriter`.

  Raises:
    UserError: if Weights & Biases refuses.
  """
  asked = [opens for field, (_, opens) in _MIRRORS.items() if config[field]]
  return [opens(workdir, config, resume_step) for opens in asked]
