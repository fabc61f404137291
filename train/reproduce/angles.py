"""The numbers of appendix G: kernels from rotations by three laws of the angle.

Rotations by 1 degree leave a kernel near the identity, with tiny weights off it; the
first kernel, `(784, 100)`, sees little but the first 100 pixels. As in the paper it
starts slower: on MNIST, density .1, the training loss after one epoch is .46 (deviation
.01 over 3 seeds) against .38 (.01) of 80 degrees and .39 (.01) of any angle; after
three it is .26, .22 and .22.
"""

import itertools
from typing import Any

import jax
import numpy as np

from train.core import mesh
from train.core.config import changed, default_config
from train.core.console import UserError
from train.core.plan import Feed, Plan, make_plan, start_state
from train.core.steps import train_chunk, zero_sums

ANGLES = {"1 degree": 1.0, "80 degrees": 80.0, "uniform": 0.0}  # `sparsity.angle`
_POINTS = 20  # of the curve, an epoch


def angles(
  *, num_seeds: int, density: float = 0.1, num_epochs: int = 3, data: str = "mnist"
) -> dict[str, Any]:
  """Trains MLP-7 from starts whose rotations have one angle, another, or any.

  The recipe is that of `train.run` by default, but for the rate, which stays at that of
  the first half. The bundled digits, in batches of 64, stand in for data that is
  missing.

  Returns:
    Numbers that JSON can hold: a hidden kernel of each law, and the training loss of
    each seed over epochs.
  """
  fields = {
    "seeds": tuple(range(num_seeds)),
    "num_epochs": num_epochs,
    "data.name": data,
    "data.validation": 0.0,
    "sparsity.density": density,
    "optimizer.schedule": "constant",
  }
  config = changed(default_config(), fields)
  try:
    make_plan(config)
  except UserError:
    data = "digits"
    config = changed(config, {"data.name": data, "batch_size": 64})
  result: dict[str, Any] = {"kernels": {}, "loss": {}}
  for name, angle in ANGLES.items():
    plan = make_plan(changed(config, {"sparsity.angle": angle}))
    hidden, result["epoch"], result["loss"][name] = _train(plan)
    result["kernels"][name] = hidden.tolist()
  known = {"density": density, "seeds": num_seeds, "data": data, "network": "MLP-7"}
  return result | known


def _train(plan: Plan) -> tuple[np.ndarray, list[float], list[list[float]]]:
  """A hidden kernel at the start; epochs, and losses of each seed between them."""
  recipe, state, feed = plan.recipe, start_state(plan), Feed(plan, 0)
  hidden = np.asarray(state.params["hidden"]["dense"]["kernel"][0, 0])
  state = mesh.put_state(state, recipe.placement)
  zero = mesh.put_whole(zero_sums(state.key.shape), recipe.placement)
  length, epochs, losses = recipe.steps_per_epoch, [], []
  ends = np.linspace(0, length, _POINTS + 1).astype(int)
  for epoch in range(plan.config.num_epochs):
    for begin, end in itertools.pairwise(ends.tolist()):
      data, count = feed.next(end - begin), jax.device_put(np.int32(end - begin))
      state, sums, _ = train_chunk(state, data, count, zero, recipe=recipe)
      epochs.append(epoch + (begin + end) / 2 / length)
      losses.append(np.asarray(sums.loss / sums.count))
  return hidden, epochs, np.stack(losses, 1).tolist()
