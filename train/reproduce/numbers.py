"""The numbers behind the paper's figures, computed here and now."""

import functools
import itertools
import math
import time
from typing import Any

import jax
import numpy as np

import eoi_jax
from train.core import mesh
from train.core.config import changed, default_config
from train.core.console import UserError
from train.core.plan import Feed, Plan, make_plan, plan_start, start_state
from train.core.steps import train_chunk, zero_sums
from train.models import ACTIVATIONS

DISTRIBUTIONS = ("uniform", "erk", "snip", "grasp", "synflow")  # of `spectrum`
STARTS = ("eoi", "ai", "base")
NUM_SAMPLES = 64
ANGLES = {"1 degree": 1.0, "80 degrees": 80.0, "uniform": 0.0}  # `sparsity.angle`
_POINTS = 20  # of the curve of `angles`, an epoch


def density(*, num_seeds: int, sizes: tuple[int, ...] = (64, 256, 1024)) -> dict:
  """Density over the number of rotations: by the recurrence, and counted."""
  curves = []
  for size in sizes:
    steps = np.unique(np.linspace(0, 4 * size * math.log(size) / 5, 60).astype(int))
    measured = [_count(seed, size, steps) for seed in range(num_seeds)]
    curves.append(
      {
        "size": size,
        "rotations": steps.tolist(),
        "expected": np.asarray(eoi_jax.expected_density(size, steps)).tolist(),
        "mean": np.mean(measured, axis=0).tolist(),
        "min": np.min(measured, axis=0).tolist(),
        "max": np.max(measured, axis=0).tolist(),
      }
    )
  return {"curves": curves, "seeds": num_seeds}


def _count(seed: int, size: int, steps: np.ndarray) -> np.ndarray:
  """Density of one sampled sequence of rotations after each of `steps`."""
  key = jax.random.fold_in(jax.random.key(seed), size)
  rotations = eoi_jax.sample_rotations(key, size, int(steps[-1]))
  i, j = np.asarray(rotations.i), np.asarray(rotations.j)
  support, counts = np.eye(size, dtype=bool), [size]
  for a, b in zip(i.tolist(), j.tolist(), strict=True):
    counts.append(counts[-1] + int(np.count_nonzero(support[a] ^ support[b])))
    support[a] = support[b] = support[a] | support[b]
  return np.array(counts)[steps] / size**2


def init_time(
  *,
  sizes: tuple[int, ...] = (128, 256, 512, 1024, 2048),
  densities: tuple[float, ...] = (0.05, 0.1, 0.3),
  repeats: int = 7,
) -> dict[str, Any]:
  """Seconds to sample a square matrix, compiled before: the fastest of some runs."""
  samplers: dict[str, Any] = {
    f"EOI, density {d:g}": functools.partial(eoi_jax.sparse_orthogonal, density=d)
    for d in densities
  }
  samplers["dense, QR"] = jax.nn.initializers.orthogonal()
  curves = {
    name: [_seconds(sample, size, repeats) for size in sizes]
    for name, sample in samplers.items()
  }
  device = jax.devices()[0].device_kind
  return {"sizes": list(sizes), "curves": curves, "device": device}


def _seconds(sample, size: int, repeats: int) -> float:
  function = jax.jit(lambda key: sample(key, (size, size)))
  keys = jax.random.split(jax.random.key(0), repeats + 1)
  jax.block_until_ready(function(keys[-1]))
  times = []
  for key in keys[:-1]:
    begin = time.perf_counter()
    jax.block_until_ready(function(key))
    times.append(time.perf_counter() - begin)
  return min(times)


def delta_kernel(*, channels: int = 24, density: float = 0.1) -> dict[str, Any]:
  """A 3 x 3 delta-orthogonal kernel and its mask."""
  shape = (3, 3, channels, channels)
  kernel = eoi_jax.eoi_init(density)(jax.random.key(0), shape)
  masks = eoi_jax.kernel_masks(jax.random.key(1), {"kernel": kernel}, density)
  return {
    "kernel": np.asarray(kernel).tolist(),
    "mask": np.asarray(masks["kernel"]).tolist(),
    "density": density,
    "gram_error": float(eoi_jax.gram_errors({"kernel": kernel})["kernel"][0]),
  }


def spectrum(
  *,
  activations: list[str],
  distributions: list[str],
  starts: list[str],
  densities: list[float],
  num_seeds: int,
  ai_method: str = "sgd",
  ai_steps: int = 1000,
) -> dict[str, Any]:
  """The numbers of Figure 3: singular values of MLP-7's Jacobian for every scheme.

  They are taken at Gaussian inputs.

  Args:
    activations: names in `ACTIVATIONS`.
    distributions: names in `DISTRIBUTIONS`; SNIP and GraSP need MNIST.
    starts: names in `STARTS`.
    densities: of the whole network, in `(0, 1]`.
    num_seeds: networks of each scheme.
    ai_method: "sgd", as published, or "adam".
    ai_steps: iterations of AI. Published: 10000; the mean singular value of a linear
      network at .05 is .79, .80 and .80 after 1000, 1500 and 10000 (5 to 10 seeds, of
      deviation .05), since steps of .1 end in a cycle around a minimum.

  Returns:
    Numbers that JSON can hold: a curve for each scheme, of mean, largest and smallest
    singular value, each the mean over seeds, with the deviation of the first.

  Raises:
    UserError: if a name is unknown, a density is too low, or MNIST is missing.
  """
  for argument, names, known in (
    ("activations", activations, ACTIVATIONS),
    ("distributions", distributions, DISTRIBUTIONS),
    ("starts", starts, STARTS),
  ):
    for name in names:
      if name not in known:
        raise UserError(f"`{argument}` must be among {', '.join(known)}, got {name!r}.")
  common = {"sparsity.ai_method": ai_method, "sparsity.ai_steps": ai_steps}
  curves = []
  for names in itertools.product(activations, distributions, starts):
    scheme = dict(zip(("activation", "distribution", "start"), names, strict=True))
    fields = common | {
      "model.activation": scheme["activation"],
      "sparsity.distribution": scheme["distribution"],
      "sparsity.start": scheme["start"],
    }
    points = [_summary(fields | {"sparsity.density": d}, num_seeds) for d in densities]
    values = {key: [point[key] for point in points] for key in points[0]}
    curves.append(scheme | {"density": densities} | values)
  return {
    "curves": curves,
    "seeds": num_seeds,
    "samples": NUM_SAMPLES,
    "ai": f"{ai_method}, {ai_steps} steps",
  }


def _summary(fields: dict[str, Any], num_seeds: int) -> dict[str, float]:
  """Mean, largest and smallest singular value, and the deviation of the mean."""
  summaries = []
  for seed in range(num_seeds):  # by itself: all densities share a program
    plan = plan_start(changed(default_config(), fields | {"seed": seed}))
    shape = (NUM_SAMPLES, *plan.recipe.spec.shape)
    inputs = jax.random.normal(jax.random.key(0), shape)
    params, function = start_state(plan).params, _apply_function(plan.recipe.model)
    values = eoi_jax.jacobian_singular_values(function, params, inputs)
    summaries.append(eoi_jax.signal.spectrum_summary(values)[:3])
  mean, top, bottom = np.mean(summaries, axis=0).tolist()
  deviation = float(np.array(summaries)[:, 0].std(ddof=min(1, num_seeds - 1)))
  return {"mean": mean, "max": top, "min": bottom, "deviation": deviation}


@functools.cache
def _apply_function(model: Any) -> Any:
  """One function for each network, so that it is compiled once."""
  return lambda params, inputs: model.apply({"params": params}, inputs)


def angles(
  *, num_seeds: int, density: float = 0.1, num_epochs: int = 3, data: str = "mnist"
) -> dict[str, Any]:
  """The numbers of appendix G: MLP-7 from rotations by three laws of the angle.

  Rotations by 1 degree leave a kernel near the identity, with tiny weights off it; the
  first kernel, `(784, 100)`, sees little but the first 100 pixels. As in the paper it
  starts slower: on MNIST, density .1, the training loss after one epoch is .46
  (deviation .01 over 3 seeds) against .38 (.01) of 80 degrees and .39 (.01) of any
  angle; after three it is .26, .22 and .22.

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
