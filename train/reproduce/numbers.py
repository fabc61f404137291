"""The numbers behind the paper's figures, computed here and now."""

import functools
import math
import time
from typing import Any

import jax
import numpy as np

import eoi_jax


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
