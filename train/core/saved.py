"""Finished or interrupted runs: their config, and the state of a checkpoint."""

from pathlib import Path
from typing import Any

from train.core import config as config_lib
from train.core import mesh
from train.core.checkpoints import Checkpoints
from train.core.console import UserError
from train.core.plan import Plan, like_start
from train.core.state import TrainState
from train.core.workdir import read_json

# What a state is, and what it is evaluated on.
_SAME = ("data.name", "data.validation", "data.limit", "data.mean", "data.std")
_SAME += ("model.", "sparsity.", "seed")


def saved_config(workdir: Path, config: Any = None) -> Any:
  """Returns the config of the run in `workdir`.

  Local fields and the batch size are those of `config`, if it is given.

  Raises:
    UserError: if there is no run, or several, or it has another network, start, seed or
      data set than `config`.
  """
  path = workdir / "config.json"
  if not path.exists():
    raise UserError(f"{workdir} holds no run: there is no {path}.")
  saved = config_lib.from_saved(read_json(path))
  if saved.compare.field:
    runs = ", ".join(str(workdir / name) for name in config_lib.expand(saved))
    raise UserError(f"{workdir} holds several runs; name one of them: {runs}.")
  if config is None:
    return saved
  found = config_lib.differences(config, saved.to_dict())
  if other := [line for line in found if line.startswith(_SAME)]:
    raise UserError(
      f"workdir {workdir} holds a run of another config ({'; '.join(other)})."
    )
  ours = config_lib.flatten(config)
  kept = {*config_lib.LOCAL, "batch_size"}
  return config_lib.changed(saved, {name: ours[name] for name in kept})


def restore_saved(plan: Plan, workdir: Path, which: str | None) -> TrainState:
  """Returns the state of a checkpoint, named as in `Checkpoints.restore_one`.

  Another process may go on with the run. The plan, of `saved_config`, needs data only
  if scores choose the masks.
  """
  like = mesh.place_like(like_start(plan), plan.recipe.placement)
  with Checkpoints(workdir / "checkpoints", read_only=True) as checkpoints:
    return checkpoints.restore_one(which, like)
