"""How much the gradients of one batch tell about what RigL should grow.

python -m benchmarks.growth [--steps 300] [--output benchmarks/results/growth]

ResNet-20 on CIFAR-10, density .1 in ERK layers, from the base start: at the start and
after some steps with static masks. Of the dead weights that RigL would grow by the
gradients of so many images, the share that gradients of 4096 other images would grow,
too: mean over the layers that are less than half full, then over draws. Images are seen
in batches of 32, as batch normalization does in training. Writes OUTPUT.json.
"""

from __future__ import annotations

import argparse
import functools
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from configs import cifar10_dynamic
from eoi_jax.layouts import named_leaves
from train.core.plan import Feed, Plan, make_plan, start_state
from train.core.state import Recipe, TrainState
from train.core.steps import train_chunk, zero_sums
from train.data.datasets import Split
from train.data.images import normalize

BATCH, REFERENCE, SIZES, DRAWS = 32, 4096, (32, 128, 512, 2048, 4096), 3
FRACTION = 0.3  # of the live weights, as at RigL's first change


def make() -> Plan:
  """The training whose gradients are looked at."""
  config = cifar10_dynamic.get_config("cpu")
  config.sparsity.start = "base"
  config.compare.field, config.compare.choices = "", ()
  return make_plan(config)


@functools.partial(jax.jit, static_argnames="recipe")
def gradient(state: TrainState, batch: Split, *, recipe: Recipe) -> Any:
  """Dense gradients of one batch."""

  def loss(params):
    logits, _ = recipe.model.apply(
      {"params": params, "batch_stats": state.batch_stats},
      normalize(batch.images, recipe.spec),
      train=True,
      mutable=["batch_stats"],
    )
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels)
    return losses.mean()

  return jax.grad(loss)(state.params)


def gradients(plan: Plan, state: TrainState, rows: np.ndarray) -> dict[str, np.ndarray]:
  """Mean dense gradients of masked leaves by name, over batches of `BATCH` rows."""
  split, total = plan.dataset.train, None
  for part in (parts := rows.reshape(-1, BATCH)):
    batch = Split(split.images[part], split.labels[part])
    new = gradient(state, batch, recipe=plan.recipe)
    total = new if total is None else jax.tree.map(jnp.add, total, new)
  found, masks = named_leaves(total), named_leaves(state.masks)
  return {
    n: np.asarray(found[n]) / len(parts) for n, m in masks.items() if m is not None
  }


def agreement(
  left: Any, right: Any, masks: dict[str, np.ndarray]
) -> tuple[float, float]:
  """Share of the weights grown by one that are grown by the other; and by chance."""
  shares, chances = [], []
  for name, mask in masks.items():
    if mask.mean() > 0.5:
      continue
    count = int(FRACTION * mask.sum())
    top = [set(np.argsort(-np.abs(g[name][~mask]))[:count]) for g in (left, right)]
    shares.append(len(top[0] & top[1]) / count)
    chances.append(count / (~mask).sum())
  return float(np.mean(shares)), float(np.mean(chances))


def measure(plan: Plan, state: TrainState) -> dict[str, Any]:
  """Agreement by number of images: mean and standard deviation over draws."""
  rng = np.random.default_rng(0)
  masks = {
    n: np.asarray(m) for n, m in named_leaves(state.masks).items() if m is not None
  }
  total = len(plan.dataset.train.labels)
  found: dict[str, list[float]] = {str(size): [] for size in SIZES}
  chance = 0.0
  for _ in range(DRAWS):
    rows = rng.permutation(total)
    reference = gradients(plan, state, rows[:REFERENCE])
    for size in SIZES:
      others = gradients(plan, state, rows[REFERENCE : REFERENCE + size])
      share, chance = agreement(others, reference, masks)
      found[str(size)].append(share)
  table = {n: {"mean": np.mean(v), "std": np.std(v, ddof=1)} for n, v in found.items()}
  return {"images": table, "chance": chance, "n": DRAWS}


def main() -> None:
  """Writes and prints the numbers."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--output", default="benchmarks/results/growth")
  parser.add_argument("--steps", type=int, default=300)
  args = parser.parse_args()
  plan = make()
  state = start_state(plan)
  results = {"start": measure(plan, state)}
  count = jax.device_put(np.int32(args.steps))
  state, *_ = train_chunk(
    state, Feed(plan, 0).next(args.steps), count, zero_sums(), recipe=plan.recipe
  )
  results[f"after {args.steps} steps"] = measure(plan, state)
  output = Path(args.output).with_suffix(".json")
  output.parent.mkdir(parents=True, exist_ok=True)
  output.write_text(json.dumps(results, indent=2) + "\n")
  print(json.dumps(results, indent=2))


if __name__ == "__main__":
  main()
