"""What stops a run before it goes on for nothing: numbers that no run may have."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from eoi_jax._kernels import named_leaves
from train.errors import UserError
from train.state import TrainState
from train.steps import count_weights

_WATCHED = ("loss", "grad_norm", "update_norm", "param_norm")
_SHOWN = 6  # leaves in a message


def check_finite(
  record: dict[str, Any], state: TrainState, config: Any, last_step: int | None
) -> None:
  """Stops at the first nan or inf in loss or norms.

  Args:
    record: of the last chunk, with its numbers of each seed if there are several.
    state: after that chunk.
    config: of the run.
    last_step: of the newest checkpoint, None without any.

  Raises:
    UserError: with step, seeds, norms of the worst leaves and the last good
      checkpoint.
  """
  wrong = [name for name in _WATCHED if not math.isfinite(record[name])]
  if not wrong:
    return
  seeds = ""
  if config.seeds:
    lists = [record["seeds"][name] for name in wrong]
    numbers = zip(config.seeds, *lists, strict=True)
    bad = [str(seed) for seed, *row in numbers if not all(map(math.isfinite, row))]
    seeds = f" for seed {', '.join(bad)}"
  kept = "there is no checkpoint yet"
  if last_step is not None:
    kept = f"the last good checkpoint is of step {last_step}"
  raise UserError(
    f"the {wrong[0].replace('_', ' ')} is {record[wrong[0]]} after step "
    f"{record['step']} (epoch {record['epoch']:.1f}){seeds}; norms: "
    f"{_leaf_norms(state)}; {kept}; lower `optimizer.learning_rate` (now "
    f"{config.optimizer.learning_rate}) and choose another --workdir."
  )


def _leaf_norms(state: TrainState) -> str:
  """Norms of the leaves that are not finite, or else of the largest."""
  norms = {
    name: float(jnp.linalg.norm(leaf.reshape(-1)))
    for name, leaf in named_leaves(state.params).items()
  }
  ordered = sorted(norms, key=lambda name: (math.isfinite(norms[name]), -norms[name]))
  return ", ".join(f"{name} {norms[name]:.3g}" for name in ordered[:_SHOWN])


def check_weights(state: TrainState) -> int:
  """Makes sure that every dead weight is exactly zero.

  Returns:
    The number of live weights, of all seeds together.

  Raises:
    RuntimeError: naming the leaves; it is a defect of the program.
  """
  count = jax.device_get(count_weights(state))
  if count.revived:
    masks = named_leaves(state.masks)
    found = {
      name: np.count_nonzero(np.asarray(leaf)[~np.asarray(masks[name])])
      for name, leaf in named_leaves(state.params).items()
      if masks.get(name) is not None
    }
    wrong = ", ".join(f"{number} of {name}" for name, number in found.items() if number)
    raise RuntimeError(f"dead weights are not zero at step {state.step}: {wrong}.")
  return int(count.live)
