"""Workdirs and checkpoints: run the same command again, and it goes on."""

import json
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from train import config as config_lib
from train.errors import UserError


def claim_workdir(workdir: Path, config: Any) -> None:
  """Makes `workdir` the home of this config, and notes what runs in it.

  Writes `config.json` once and adds a line to `environment.jsonl` at every start: git
  commit, versions, device.

  Raises:
    UserError: if the directory holds a run of another config or cannot be written.
  """
  path = workdir / "config.json"
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    if path.exists():
      refuse_another_config(path, config)
    else:
      replace_text(path, config_lib.to_json(config))
    with open(workdir / "environment.jsonl", "a", encoding="utf-8") as file:
      file.write(json.dumps(environment()) + "\n")
  except OSError as error:
    raise UserError(f"cannot write to workdir {workdir}: {error.strerror}.") from error


def refuse_another_config(path: Path, config: Any) -> None:
  """Raises a UserError, with the differences, if a `config.json` is not of `config`."""
  try:
    saved = json.loads(path.read_text(encoding="utf-8"))
  except ValueError as error:
    raise UserError(f"{path} is not a JSON file; choose another --workdir.") from error
  if found := config_lib.differences(config, saved):
    raise UserError(
      f"workdir {path.parent} holds a run of another config "
      f"({'; '.join(found)}); choose another --workdir."
    )


def replace_text(path: Path, text: str) -> None:
  """Writes a file so that a reader, or a crash, sees all of it or none."""
  part = path.with_name(path.name + ".part")
  part.write_text(text, encoding="utf-8")
  part.replace(path)


def environment() -> dict[str, str]:
  """Returns what the result may depend on besides the config."""
  device = jax.devices()[0]
  return {
    "git_commit": git_commit(),
    "python": platform.python_version(),
    "jax": jax.__version__,
    "device": f"{jax.device_count()} x {device.device_kind}",
    "machine": platform.machine(),
    "command": " ".join(sys.argv),
  }


def git_commit() -> str:
  """Returns the checkout's commit, with `-dirty` if files differ, or `unknown`."""
  try:
    return subprocess.run(
      ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
      cwd=Path(__file__).parent,
      capture_output=True,
      check=True,
      text=True,
    ).stdout.strip()
  except (OSError, subprocess.CalledProcessError):
    return "unknown"


class Checkpoints:
  """Checkpoints of one run, newest last, written in the background.

  Use as a context manager: leaving it waits for the last write.
  """

  def __init__(self, directory: Path, keep: int):
    options = ocp.CheckpointManagerOptions(
      max_to_keep=keep, create=True, cleanup_tmp_directories=True
    )
    self._manager = ocp.CheckpointManager(directory.resolve(), options=options)

  def __enter__(self) -> "Checkpoints":
    return self

  def __exit__(self, *args) -> None:
    self._manager.close()

  def save(self, state: Any) -> None:
    """Saves a state under its step; the caller may donate it at once."""
    step = int(state.step)
    if step in self._manager.all_steps():
      return
    copy = jax.tree.map(jnp.copy, _plain(state))
    self._manager.save(step, args=ocp.args.StandardSave(copy))

  def restore(self, like: Any) -> Any | None:
    """Returns the newest state, shaped and placed as `like`, or None."""
    step = self._manager.latest_step()
    if step is None:
      return None
    args = ocp.args.StandardRestore(_plain(like))
    plain: Any = self._manager.restore(step, args=args)
    impl = jax.random.key_impl(like.key)
    return plain._replace(key=jax.random.wrap_key_data(plain.key, impl=impl))


def _plain(state: Any) -> Any:
  """Keys are not arrays to a file: keep their bits."""
  return state._replace(key=jax.random.key_data(state.key))
