"""The numbers behind the paper's figures, computed here and now."""

import functools
import math
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import eoi_jax
from train.command import load_config
from train.data import DATASETS, load_dataset
from train.loop import make_plan, start_state
from train.steps import normalize

NUM_SAMPLES = 64
_MLP7 = str(Path(__file__).parents[1] / "configs/mnist_mlp7.py")


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
  support = np.eye(size, dtype=bool)
  counts = [size]
  total = size
  for a, b in zip(i.tolist(), j.tolist(), strict=True):
    total += int(np.count_nonzero(support[a] ^ support[b]))
    support[a] = support[b] = support[a] | support[b]
    counts.append(total)
  return np.array(counts)[steps] / size**2


def spectrum(
  *,
  activations: list[str],
  distributions: list[str],
  starts: list[str],
  densities: list[float],
  num_seeds: int,
) -> dict[str, Any]:
  """Singular values of MLP-7's Jacobian at Gaussian inputs, for every scheme."""
  inputs = jax.random.normal(jax.random.key(0), (NUM_SAMPLES, 28, 28, 1))
  curves = []
  for activation in activations:
    for distribution in distributions:
      for start in starts:
        curve: dict[str, Any] = {
          "activation": activation,
          "distribution": distribution,
          "start": start,
          "density": densities,
        }
        points = [
          _spectrum_point(activation, distribution, start, d, inputs, num_seeds)
          for d in densities
        ]
        curve |= {k: [point[k] for point in points] for k in ("mean", "max", "min")}
        curves.append(curve)
  return {"curves": curves, "seeds": num_seeds, "samples": NUM_SAMPLES}


def _spectrum_point(activation, distribution, start, density, inputs, num_seeds):
  summaries = []
  for seed in range(num_seeds):
    config = load_config(_MLP7)
    config.update_from_flattened_dict(
      {
        "seed": seed,
        "model.activation": activation,
        "sparsity.distribution": distribution,
        "sparsity.start": start,
        "sparsity.density": density,
      }
    )
    plan = make_plan(config)
    params = start_state(plan).params
    apply_fn = _apply_function(plan.recipe.model)
    values = eoi_jax.jacobian_singular_values(apply_fn, params, inputs)
    summaries.append(eoi_jax.spectrum_summary(values)[:3])
  mean, top, bottom = np.mean(summaries, axis=0).tolist()
  return {"mean": mean, "max": top, "min": bottom}


@functools.cache
def _apply_function(model):
  """One function for equal models, so that it is compiled once."""
  return lambda params, inputs: model.apply({"params": params}, inputs)


def init_time(
  *,
  sizes: tuple[int, ...] = (128, 256, 512, 1024, 2048),
  densities: tuple[float, ...] = (0.05, 0.1, 0.3),
  repeats: int = 7,
) -> dict[str, Any]:
  """Seconds to sample a square matrix, compiled before: the fastest of some runs."""
  curves = {
    f"EOI, density {d:g}": [
      _seconds(functools.partial(_sample, density=d, size=size), repeats)
      for size in sizes
    ]
    for d in densities
  }
  curves["dense, QR"] = [
    _seconds(functools.partial(_dense, size=size), repeats) for size in sizes
  ]
  device = jax.devices()[0].device_kind
  return {"sizes": list(sizes), "curves": curves, "device": device}


def _sample(key, *, density, size):
  return eoi_jax.sparse_orthogonal(key, (size, size), density)


def _dense(key, *, size):
  return jax.nn.initializers.orthogonal()(key, (size, size))


def _seconds(function, repeats: int) -> float:
  function = jax.jit(function)
  keys = jax.random.split(jax.random.key(0), repeats + 1)
  jax.block_until_ready(function(keys[-1]))
  times = []
  for key in keys[:-1]:
    begin = time.perf_counter()
    jax.block_until_ready(function(key))
    times.append(time.perf_counter() - begin)
  return min(times)


ANGLES = {"1 degree": math.pi / 180, "80 degrees": 80 * math.pi / 180, "uniform": None}


def angles(
  *, num_seeds: int, depth: int = 20, density: float = 0.125, num_epochs: int = 20
) -> dict[str, Any]:
  """Kernels from rotations by three laws of the angle, and how they train.

  A tanh net of 64 units on the digits, batches of 64, gradient descent with momentum.
  """
  result: dict[str, Any] = {"kernels": {}, "loss": {}}
  data = load_dataset("digits").train
  inputs = normalize(jnp.asarray(data.images), DATASETS["digits"])
  inputs = inputs.reshape(len(inputs), -1)
  labels = jnp.asarray(data.labels)
  for name, angle in ANGLES.items():
    init = eoi_jax.eoi_init(density, scale=1.0247, angle=angle)
    result["kernels"][name] = np.asarray(init(jax.random.key(0), (64, 64))).tolist()
    keys = jax.random.split(jax.random.key(1), num_seeds)
    train = functools.partial(_train, init, depth, inputs, labels, num_epochs)
    result["loss"][name] = np.asarray(jax.jit(jax.vmap(train))(keys)).tolist()
  return result | {"depth": depth, "density": density, "seeds": num_seeds}


def _train(init, depth, inputs, labels, num_epochs, key):
  """Mean loss of every epoch of one training."""
  key_start, key_output, key_masks, key = jax.random.split(key, 4)
  kernels = jax.vmap(lambda k: init(k, (64, 64)))(jax.random.split(key_start, depth))
  params = {"hidden": kernels, "output": init(key_output, (64, 10))}
  masks = eoi_jax.kernel_masks(
    key_masks,
    params,
    0.125,
    is_kernel=lambda name, leaf: True,
    is_stacked=lambda name, leaf: name == "hidden",
  )
  tx = eoi_jax.static_sparsity(optax.sgd(0.01, 0.9), masks)
  return _epochs(tx, params, key, inputs, labels, num_epochs)


def _epochs(tx, params, key, inputs, labels, num_epochs):
  def loss_fn(params, rows):
    x, _ = jax.lax.scan(
      lambda x, w: (jnp.tanh(x @ w), None), inputs[rows], params["hidden"]
    )
    logits = x @ params["output"]
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels[rows])
    return losses.mean()

  def step(carry, rows):
    params, state = carry
    loss, grads = jax.value_and_grad(loss_fn)(params, rows)
    updates, state = tx.update(grads, state, params)
    return (optax.apply_updates(params, updates), state), loss

  def epoch(carry, key):
    order = jax.random.permutation(key, len(labels))
    carry, losses = jax.lax.scan(
      step, carry, order[: len(labels) // 64 * 64].reshape(-1, 64)
    )
    return carry, losses.mean()

  keys = jax.random.split(key, num_epochs)
  return jax.lax.scan(epoch, (params, tx.init(params)), keys)[1]


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
