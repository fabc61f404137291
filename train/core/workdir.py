"""The directory of a run: whose it is."""

import contextlib
import fcntl
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from train.core import config as config_lib
from train.core.console import UserError

_LOCK = "lock"


@contextlib.contextmanager
def claim_workdir(workdir: Path, config: Any) -> Iterator[None]:
  """Makes `workdir` the home of this config and of this process, while it is entered.

  Writes `config.json` once and adds a line to `environment.jsonl` at every start: git
  commit, versions, devices. The operating system gives the directory back when the
  process ends, whatever ends it.

  Raises:
    UserError: if the directory holds a run of another config, is in use by another
      process, or cannot be written.
  """
  path = workdir / "config.json"
  with writing(workdir):
    workdir.mkdir(parents=True, exist_ok=True)
    lock = open(workdir / _LOCK, "a+", encoding="utf-8")  # noqa: SIM115
  with lock:
    _hold(lock, workdir)
    with writing(workdir):
      if path.exists():
        refuse_another_config(path, config)
      else:
        replace_text(path, config_lib.to_json(config))
      append_record(workdir / "environment.jsonl", environment())
    yield


@contextlib.contextmanager
def writing(workdir: Path) -> Iterator[None]:
  """Turns an error of the disk into a UserError that names the workdir."""
  try:
    yield
  except OSError as error:
    raise UserError(f"cannot write to workdir {workdir}: {error.strerror}.") from error


def _hold(lock: Any, workdir: Path) -> None:
  """Locks a file until it is closed, with the number of this process in it."""
  try:
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError as error:
    lock.seek(0)
    raise UserError(
      f"workdir {workdir} is in use by process {lock.read().strip() or 'unknown'}; "
      "wait for it, or choose another --workdir."
    ) from error
  lock.truncate(0)
  lock.write(f"{os.getpid()} on {platform.node()}\n")
  lock.flush()


def is_claimed(workdir: Path) -> bool:
  """Whether a process is at work in `workdir`."""
  try:
    with open(workdir / _LOCK, encoding="utf-8") as lock:
      fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
  except OSError as error:
    return isinstance(error, BlockingIOError)
  return False


def refuse_another_config(path: Path, config: Any) -> None:
  """Raises a UserError if the config saved in `path` differs; it names the fields."""
  if found := config_lib.differences(config, read_json(path)):
    raise UserError(
      f"workdir {path.parent} holds a run of another config "
      f"({'; '.join(found)}); choose another --workdir."
    )


def read_json(path: Path) -> dict[str, Any]:
  """Reads a file that holds a JSON object.

  Raises:
    UserError: if there is no such file, or it holds anything else.
  """
  try:
    found = json.loads(path.read_text(encoding="utf-8"))
  except (OSError, ValueError) as error:
    raise UserError(f"{path} cannot be read: {error}.") from error
  if not isinstance(found, dict):
    raise UserError(f"{path} must hold a JSON object, got {found!r:.40}.")
  return found


def append_record(path: Path, record: dict[str, Any]) -> None:
  """Adds a JSON object to a file of them, one a line."""
  with open(path, "a", encoding="utf-8") as file:
    file.write(json.dumps(record) + "\n")


def read_records(path: Path) -> list[dict[str, Any]]:
  """Reads a file of JSON objects, one a line; a line cut short by a crash ends it."""
  records = []
  if path.exists():
    for line in path.read_text(encoding="utf-8").splitlines():
      try:
        records.append(dict(json.loads(line)))
      except (ValueError, TypeError):
        break
  return records


def replace_text(path: Path, text: str) -> None:
  """Writes a file so that a reader, or a crash, sees all of it or none."""
  part = path.with_name(f"{path.name}.{os.getpid()}.part")
  try:
    part.write_text(text, encoding="utf-8")
    part.replace(path)
  finally:
    part.unlink(missing_ok=True)


def environment() -> dict[str, str]:
  """Returns what the result may depend on besides the config."""
  device = jax.devices()[0]
  return {
    "git_commit": git_commit(),
    "python": platform.python_version(),
    "jax": jax.__version__,
    "device": f"{jax.device_count()} x {device.device_kind}",
    "processes": str(jax.process_count()),
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
