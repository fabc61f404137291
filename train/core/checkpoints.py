"""Checkpoints: run the same command again, and it continues.

Orbax is imported in the background, while the start of a run is compiled.
"""

import contextlib
import functools
import json
import shutil
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from train.core.console import UserError, logger
from train.core.mesh import agree, is_primary
from train.core.state import copy


class Checkpoints:
  """Checkpoints of one run, newest last, written in the background.

  Each carries a checksum of every array; one that is damaged or was cut short is left
  out in favour of the newest whole one. Use as a context manager: leaving it waits
  for the last write.

  Attributes:
    newest: step of the newest checkpoint that was restored or saved, None before.
  """

  def __init__(
    self, directory: Path, *, keep: int = 1, keep_best: int = 0, read_only: bool = False
  ):
    """Opens a directory, which may be new.

    Args:
      directory: of the checkpoints alone.
      keep: how many of the newest to keep, at least 1.
      keep_best: how many of the highest accuracy to keep besides.
      read_only: whether nothing is saved or removed, while another process may do so.
    """
    self._directory, self._keep = directory.resolve(), (keep, keep_best)
    self._read_only = read_only
    self.newest: int | None = None
    threading.Thread(target=_orbax, daemon=True).start()

  @functools.cached_property
  def _manager(self) -> Any:
    ocp, policy = _orbax()
    self._check_metrics()
    if self._read_only:
      level = logging.get_verbosity()
      logging.set_verbosity(logging.ERROR)  # Orbax warns that it is read-only
      try:
        options = ocp.CheckpointManagerOptions(read_only=True)
        return ocp.CheckpointManager(self._directory, options=options)
      finally:
        logging.set_verbosity(level)
    newest, best = self._keep
    rules: list[Any] = [policy.LatestN(newest)]
    if best:
      rules.append(policy.BestN(get_metric_fn=_accuracy, n=best))
    options = ocp.CheckpointManagerOptions(
      preservation_policy=policy.AnyPreservationPolicy(rules),
      best_fn=_accuracy,  # without it no metrics are written
      create=True,
      cleanup_tmp_directories=True,
    )
    return ocp.CheckpointManager(self._directory, options=options)

  def _check_metrics(self) -> None:
    """Sets checkpoints with damaged metrics aside: with them Orbax opens none."""
    for path in self._directory.glob("*/metrics/metrics"):
      step = path.parts[-3]
      try:
        json.loads(path.read_text(encoding="utf-8"))
      except FileNotFoundError:  # another process has removed it
        continue
      except ValueError as error:
        if self._read_only:
          raise UserError(f"the checkpoint {path.parents[1]} is damaged.") from error
        self._set_aside(int(step))
    agree(True)  # nobody opens the others before it is gone

  def __enter__(self) -> "Checkpoints":
    return self

  def __exit__(self, kind: Any, *args) -> None:
    if "_manager" not in vars(self):  # nothing was read or written
      return
    try:
      with self._writing():
        self._manager.close()
    except UserError as error:
      if kind is None:
        raise
      logger.warning("%s", error)  # what has ended the run matters more

  def save(self, state: Any, accuracy: float | None) -> None:
    """Saves a state under its step; the caller may donate it at once.

    `accuracy` is that of this very state on held-out examples, None if not evaluated.

    Raises:
      UserError: if this checkpoint, or the one before, cannot be written.
    """
    step, (ocp, _) = int(state.step), _orbax()
    if step in self._manager.all_steps():
      return
    saved = copy(_plain(state))
    args = ocp.args.Composite(
      state=ocp.args.StandardSave(saved), seal=ocp.args.JsonSave(_seal(saved))
    )
    metrics = {"accuracy": _UNKNOWN if accuracy is None else accuracy}
    with self._writing():
      self._manager.save(step, args=args, metrics=metrics)
    self.newest = step

  def wait(self) -> None:
    """Waits for the last write; raises a UserError if it failed."""
    with self._writing():
      self._manager.wait_until_finished()

  @contextlib.contextmanager
  def _writing(self) -> Iterator[None]:
    try:
      yield
    except Exception as error:  # Orbax and TensorStore have many
      steps = self._steps()
      last = f"the last is of step {steps[-1]}" if steps else "there is none yet"
      reason = " ".join(str(error).split())[:300]
      raise UserError(
        f"cannot write a checkpoint in {self._directory} ({last}): {reason}; make room "
        "and run the same command again."
      ) from error

  def found(self) -> bool:
    """Whether there may be a checkpoint to restore."""
    return agree(bool(self._steps()))

  def _steps(self) -> list[int]:
    """Steps of the checkpoints on the disk, before any is opened."""
    paths = self._directory.iterdir() if self._directory.is_dir() else []
    return sorted(int(path.name) for path in paths if path.name.isdigit())

  def restore(self, like: Any) -> Any | None:
    """Returns the newest whole state, or None; `like` may be shapes and shardings."""
    for step in sorted(self._manager.all_steps(), reverse=True):
      if (state := self._try(step, like)) is not None:
        return state
      self._set_aside(step)
      agree(True)  # nobody looks before it is gone
      self._manager.reload()
    return None

  def restore_one(self, which: str | None, like: Any) -> Any:
    """Returns the state of one checkpoint.

    Args:
      which: "last", "best", by held-out accuracy, or a step; None: the best, or the
        last if no held-out accuracy is known.
      like: a state, or shapes, types and shardings of one.

    Raises:
      UserError: if there is no such checkpoint, or it is damaged.
    """
    steps = sorted(self._manager.all_steps()) if self.found() else []
    if not steps:
      raise UserError(f"there is no checkpoint in {self._directory}.")
    best = max(steps, key=lambda step: (_accuracy(self._manager.metrics(step)), step))
    known = {"last": steps[-1]}
    if _accuracy(self._manager.metrics(best)) != _UNKNOWN:
      known["best"] = best
    known |= {str(step): step for step in steps}
    which = which or ("best" if "best" in known else "last")
    if which not in known:
      shown, why = ", ".join(known), ""
      if which == "best":
        why = ": no held-out accuracy is known, as with `data.validation` = 0"
      raise UserError(f"--checkpoint must be one of {shown}, got {which!r}{why}.")
    if (state := self._try(known[which], like)) is None:
      raise UserError(
        f"the checkpoint of step {known[which]} in {self._directory} is damaged, or of "
        f"another config; there are: {', '.join(map(str, steps))}."
      )
    return state

  def _try(self, step: int, like: Any) -> Any | None:
    """Returns the state of a checkpoint that is whole for all processes, or None."""
    ocp, _ = _orbax()
    args = ocp.args.Composite(
      state=ocp.args.StandardRestore(_plain_like(like)), seal=ocp.args.JsonRestore()
    )
    state, whole = None, False
    try:
      found = self._manager.restore(step, args=args)
      seal, state = found["seal"], found["state"]
      whole = all(seal.get(name, crc) == crc for name, crc in _seal(state).items())
    except Exception as error:  # of many kinds, as the damage is
      logger.debug("checkpoint of step %d: %s", step, error)
    if not agree(whole):
      return None
    self.newest = step
    return jax.tree.map(
      lambda leaf, bits: jax.random.wrap_key_data(bits) if _is_key(leaf) else bits,
      *(like, state),
    )

  def _set_aside(self, step: int) -> None:
    """Moves what cannot be restored, perhaps by this version alone, out of the way."""
    place = self._directory.with_name("damaged") / str(step)
    logger.warning(
      "the checkpoint of step %d is damaged, or of another version; it is moved to %s",
      *(step, place),
    )
    if is_primary():
      place.parent.mkdir(exist_ok=True)
      shutil.rmtree(place, ignore_errors=True)
      (self._directory / str(step)).rename(place)


_UNKNOWN = -1.0  # of a state that was not evaluated


def _accuracy(metrics: Any) -> float:
  return metrics["accuracy"] if metrics else _UNKNOWN


@functools.cache
def _orbax() -> tuple[Any, Any]:
  import orbax.checkpoint as ocp
  from orbax.checkpoint.checkpoint_managers import preservation_policy

  return ocp, preservation_policy


def _plain(state: Any) -> Any:
  """Keys are not arrays to a file: keep their bits."""
  return jax.tree.map(
    lambda leaf: jax.random.key_data(leaf) if _is_key(leaf) else leaf, state
  )


def _plain_like(state: Any) -> Any:
  """What `_plain` gives, as shapes, types and shardings."""
  return jax.tree.map(
    lambda x, leaf: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=leaf.sharding),
    *(jax.eval_shape(_plain, state), state),
  )


def _is_key(leaf: Any) -> bool:
  return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _seal(tree: Any) -> dict[str, int]:
  """Returns the CRC-32 of each array that this process has whole, by its name."""
  return {
    jax.tree_util.keystr(path): zlib.crc32(np.asarray(leaf).tobytes())
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    if leaf.is_fully_addressable or leaf.is_fully_replicated
  }
