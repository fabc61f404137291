"""Checkpoints: run the same command again, and it goes on."""

import logging
import shutil
import zlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from train.errors import UserError
from train.mesh import agree, is_primary

_log = logging.getLogger("train")


class Checkpoints:
  """Checkpoints of one run, newest last, written in the background.

  Each carries a checksum of every array; one that is damaged or was cut short is left
  out in favour of the newest whole one. Use as a context manager: leaving it waits
  for the last write.
  """

  def __init__(self, directory: Path, *, keep: int, keep_best: int = 0):
    """Opens a directory, which may be new.

    Args:
      directory: of the checkpoints alone.
      keep: how many of the newest to keep, at least 1.
      keep_best: how many of the highest accuracy to keep besides.
    """
    policy = preservation_policy
    rules: list[Any] = [policy.LatestN(keep)]
    if keep_best:
      rules.append(policy.BestN(get_metric_fn=lambda m: m["accuracy"], n=keep_best))
    options = ocp.CheckpointManagerOptions(
      preservation_policy=policy.AnyPreservationPolicy(rules),
      create=True,
      cleanup_tmp_directories=True,
    )
    self._directory = directory.resolve()
    self._manager = ocp.CheckpointManager(self._directory, options=options)
    self.newest: int | None = None

  def __enter__(self) -> "Checkpoints":
    return self

  def __exit__(self, kind: Any, *args) -> None:
    try:
      self._manager.close()
    except Exception as error:
      if kind is None:
        raise self._lost(error) from error
      _log.warning("%s", self._lost(error))  # what has ended the run matters more

  def save(self, state: Any, accuracy: float) -> None:
    """Saves a state under its step; the caller may donate it at once.

    Raises:
      UserError: if this checkpoint, or the one before, cannot be written.
    """
    step = int(state.step)
    if step in self._manager.all_steps():
      return
    copy = _copy(_plain(state))
    args = ocp.args.Composite(
      state=ocp.args.StandardSave(copy), seal=ocp.args.JsonSave(_seal(copy))
    )
    try:
      self._manager.save(step, args=args, metrics={"accuracy": accuracy})
    except Exception as error:  # Orbax and TensorStore have many
      raise self._lost(error) from error
    self.newest = step

  def wait(self) -> None:
    """Waits for the last write.

    Raises:
      UserError: if it failed.
    """
    try:
      self._manager.wait_until_finished()
    except Exception as error:
      raise self._lost(error) from error

  def _lost(self, error: Exception) -> UserError:
    found = [path.name for path in self._directory.iterdir() if path.name.isdigit()]
    whole = max(map(int, found), default=None)
    last = "there is none yet" if whole is None else f"the last is of step {whole}"
    reason = " ".join(str(error).split())[:300]
    return UserError(
      f"cannot write a checkpoint in {self._directory} ({last}): {reason}; make room "
      "and run the same command again."
    )

  def restore(self, like: Any) -> Any | None:
    """Returns the newest whole state, shaped and placed as `like`, or None."""
    for step in sorted(self._manager.all_steps(), reverse=True):
      state = self._try(step, _plain(like))
      if agree(state is not None):
        self.newest = step
        return _with_keys(state, like)
      _log.warning("the checkpoint of step %d is damaged; it is removed", step)
      self._remove(step)
    return None

  def _try(self, step: int, like: Any) -> Any | None:
    args = ocp.args.Composite(
      state=ocp.args.StandardRestore(like), seal=ocp.args.JsonRestore()
    )
    try:
      found = self._manager.restore(step, args=args)
    except Exception as error:  # of many kinds, as the damage is
      _log.debug("checkpoint of step %d: %s", step, error)
      return None
    ours = _seal(found["state"])
    whole = all(found["seal"].get(name, value) == value for name, value in ours.items())
    return found["state"] if whole else None

  def _remove(self, step: int) -> None:
    if is_primary():
      shutil.rmtree(self._directory / str(step), ignore_errors=True)
    agree(True)  # nobody looks before it is gone
    self._manager.reload()


@jax.jit
def _copy(tree: Any) -> Any:
  return jax.tree.map(jnp.copy, tree)


def _is_key(leaf: Any) -> bool:
  return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _plain(state: Any) -> Any:
  """Keys are not arrays to a file: keep their bits."""
  return jax.tree.map(
    lambda leaf: jax.random.key_data(leaf) if _is_key(leaf) else leaf, state
  )


def _with_keys(plain: Any, like: Any) -> Any:
  def unwrap(leaf, bits):
    if not _is_key(leaf):
      return bits
    return jax.random.wrap_key_data(bits, impl=jax.random.key_impl(leaf))

  return jax.tree.map(unwrap, like, plain)


def _seal(tree: Any) -> dict[str, int]:
  """Returns the CRC-32 of each array that this process has whole, by its name."""
  return {
    jax.tree_util.keystr(path): zlib.crc32(np.asarray(leaf).tobytes())
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    if leaf.is_fully_addressable or leaf.is_fully_replicated
  }
