"""Initialization time of a kernel, of convolutions, a thousand kernels, a ResNet-50's.

python -m benchmarks.init [--sizes 128,512,1024,2048,4096,8192] [--densities .05,.1,.3]
  [--repeats 9] [--output benchmarks/results/init]

Every table row is measured in one process, the competitors in turn, so that a noisy
machine hits all of them; medians, compile time apart. Writes OUTPUT.json, OUTPUT.md,
OUTPUT.png. The published algorithm (rotate, copy, count, in a Python loop) runs in
NumPy, once a row and up to N = 1024.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.hardware import hardware
from eoi_jax import eoi_init, sparse_orthogonal

NUM_LAYERS, LAYER_SIZE, LAYER_DENSITY = 998, 128, 0.125
PAUSE = 0.1  # s; threads of OpenBLAS (QR) hold their cores for up to 30 ms more
LOOP_LIMIT = 1024  # the published loop takes minutes beyond
# (window, in, out, how many) of the 54 kernels of a ResNet-50.
RESNET50 = [(7, 3, 64, 1), (1, 2048, 1000, 1)] + [
  kernel
  for width, blocks, before in [
    (64, 3, 64),
    (128, 4, 256),
    (256, 6, 512),
    (512, 3, 1024),
  ]
  for kernel in [
    (1, before, width, 1),
    (1, 4 * width, width, blocks - 1),
    (3, width, width, blocks),
    (1, width, 4 * width, blocks),
    (1, before, 4 * width, 1),
  ]
]


def published_loop(seed: int, size: int, density: float) -> np.ndarray:
  """Rotates two columns of a copy and counts all nonzeros, until the density is met."""
  rng = np.random.default_rng(seed)
  matrix = np.eye(size, dtype=np.float32)
  while np.count_nonzero(matrix) < density * size * size:
    i, j = rng.choice(size, 2, replace=False)
    angle = rng.uniform(0, 2 * math.pi)
    rotated = matrix.copy()
    rotated[:, i] = math.cos(angle) * matrix[:, i] + math.sin(angle) * matrix[:, j]
    rotated[:, j] = math.cos(angle) * matrix[:, j] - math.sin(angle) * matrix[:, i]
    matrix = rotated
  return matrix


def measure(candidates: dict[str, Callable], repeats: int) -> dict[str, dict]:
  """Times jitted `f(key)` in turn.

  Returns:
    For each name: seconds (median), first_call (with compilation), memory (bytes the
    program allocates, result included, over those of the result), ratio to the first.
  """
  keys = list(jax.random.split(jax.random.key(0), repeats + 1))
  table, times = {}, {name: [] for name in candidates}
  for name, function in candidates.items():
    begin = time.perf_counter()
    jax.block_until_ready(function(keys[-1]))
    table[name] = {"first_call": time.perf_counter() - begin}
    stats = function.lower(keys[-1]).compile().memory_analysis()
    used = stats.output_size_in_bytes + stats.temp_size_in_bytes
    table[name]["memory"] = used / stats.output_size_in_bytes
  for key in keys[:-1]:
    for name, function in candidates.items():
      time.sleep(PAUSE)
      begin = time.perf_counter()
      jax.block_until_ready(function(key))
      times[name].append(time.perf_counter() - begin)
  reference = statistics.median(times[next(iter(candidates))])
  for name, row in table.items():
    row["seconds"] = statistics.median(times[name])
    row["ratio"] = reference / row["seconds"]
  return table


def one_kernel(size: int, density: float, repeats: int) -> dict[str, dict]:
  """Times one square kernel against the dense orthogonal initializer."""
  shape = (size, size)
  dense = jax.nn.initializers.orthogonal()
  table = measure(
    {"jax orthogonal": jax.jit(lambda key: dense(key, shape))}
    | {
      schedule: jax.jit(
        functools.partial(
          sparse_orthogonal, shape=shape, density=density, schedule=schedule
        )
      )
      for schedule in ("iid", "matching")
    },
    repeats,
  )
  reference = table["jax orthogonal"]["seconds"]
  if (seconds := _torch_seconds(size, repeats)) is not None:
    table["torch orthogonal_"] = {"seconds": seconds, "ratio": reference / seconds}
  if size <= LOOP_LIMIT:
    begin = time.perf_counter()
    published_loop(0, size, density)
    seconds = time.perf_counter() - begin
    table["published loop"] = {"seconds": seconds, "ratio": reference / seconds}
  return table


def _torch_seconds(size: int, repeats: int) -> float | None:
  """Median time of torch's initializer, None where torch is missing."""
  try:
    import torch  # pyright: ignore[reportMissingImports]
  except ImportError:
    return None
  weight, times = torch.empty(size, size), []
  for _ in range(repeats + 1):
    begin = time.perf_counter()
    torch.nn.init.orthogonal_(weight)
    times.append(time.perf_counter() - begin)
  return statistics.median(times[1:])


def many_layers(repeats: int) -> dict[str, dict]:
  """Times 998 kernels of 128 x 128, those of the 1000-layer MLP."""
  shape = (LAYER_SIZE, LAYER_SIZE)

  def stack(init):
    return jax.jit(lambda key: jax.vmap(init)(jax.random.split(key, NUM_LAYERS)))

  dense = jax.nn.initializers.orthogonal()

  def one_by_one(key):  # batched QR is slower on a CPU, and can hang there
    return jax.lax.map(lambda k: dense(k, shape), jax.random.split(key, NUM_LAYERS))

  return measure(
    {"jax orthogonal": jax.jit(one_by_one)}
    | {
      schedule: stack(
        functools.partial(
          sparse_orthogonal, shape=shape, density=LAYER_DENSITY, schedule=schedule
        )
      )
      for schedule in ("iid", "matching")
    },
    repeats,
  )


def resnet50(density: float, repeats: int) -> dict[str, dict]:
  """Times the 54 kernels of a ResNet-50."""

  def network(init, batch=jax.vmap):
    def sample(key):
      kernels = []
      for place, (window, before, after, number) in enumerate(RESNET50):
        shape = (window, window, before, after)
        keys = jax.random.split(jax.random.fold_in(key, place), number)
        kernels.append(batch(lambda key, shape=shape: init(key, shape))(keys))
      return kernels

    return jax.jit(sample)

  return measure(
    {
      "jax delta_orthogonal": network(_dense_delta, batch=_one_by_one),
      "iid": network(eoi_init(density)),
      "matching": network(eoi_init(density, schedule="matching")),
    },
    repeats,
  )


def one_convolution(channels: int, density: float, repeats: int) -> dict[str, dict]:
  """Times one 3 x 3 kernel, at the centre tap and on all taps."""
  shape = (3, 3, channels, channels)
  inits = {
    "jax delta_orthogonal": jax.nn.initializers.delta_orthogonal(),
    "centre": eoi_init(density),
    'centre, "more"': eoi_init(density, center="more"),
    "all taps": eoi_init(density, taps="all"),
  }
  draw = lambda init: jax.jit(lambda key: init(key, shape))  # noqa: E731
  return measure({name: draw(init) for name, init in inits.items()}, repeats)


def _one_by_one(init):
  return lambda keys: jax.lax.map(init, keys)


def _dense_delta(key, shape):
  """Dense delta-orthogonal kernel, `in` larger than `out` included."""
  kernel = jnp.zeros(shape)
  matrix = jax.nn.initializers.orthogonal()(key, shape[2:])
  return kernel.at[(shape[0] - 1) // 2, (shape[1] - 1) // 2].set(matrix)


def markdown(results: dict) -> str:
  """Formats all rows as one table."""
  lines = [
    f"# Initialization time\n\n`{results['command']}`\n\n{results['hardware']}; median "
    f"of {results['repeats']}, compile time apart; memory: what the program allocates, "
    "result included, over the result.\n",
    "| kernels | initializer | milliseconds | times faster | memory | first call, s |",
    "| --- | --- | --- | --- | --- | --- |",
  ]
  for title, table in results["tables"].items():
    for name, row in table.items():
      memory = f"{row['memory']:.2f}" if "memory" in row else ""
      first = f"{row['first_call']:.2f}" if "first_call" in row else ""
      lines.append(
        f"| {title} | {name} | {1e3 * row['seconds']:.2f} | {row['ratio']:.1f} "
        f"| {memory} | {first} |"
      )
  return "\n".join(lines) + "\n"


def plot(results: dict, path: Path) -> None:
  """Draws time against N (at the middle density) and against density (at 1024)."""
  import matplotlib

  matplotlib.use("Agg")
  import matplotlib.pyplot as plt

  rows = [(row["size"], row["density"], row["table"]) for row in results["one_kernel"]]
  densities = sorted({density for _, density, _ in rows})
  sizes = sorted({size for size, _, _ in rows})
  density = densities[len(densities) // 2]
  size = 1024 if 1024 in sizes else sizes[-1]
  names = ["jax orthogonal", "torch orthogonal_", "published loop", "iid", "matching"]
  colours = ["#000000", "#999999", "#D55E00", "#0072B2", "#009E73"]
  figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained", sharey=True)
  for axis, pick, place, label, title in [
    (axes[0], 1, 0, "N", f"N x N, density {density:g}"),
    (axes[1], 0, 1, "density", f"N = {size}"),
  ]:
    wanted = density if pick == 1 else size
    for name, colour in zip(names, colours, strict=True):
      points = [
        (r[place], r[2][name]["seconds"])
        for r in rows
        if r[pick] == wanted and name in r[2]
      ]
      if points:
        axis.plot(*zip(*sorted(points), strict=True), "o-", color=colour, label=name)
    axis.set(xscale="log", yscale="log", xlabel=label, title=title)
    ticks = sorted({row[place] for row in rows if row[pick] == wanted})
    axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.set_xticks([], minor=True)
    axis.grid(True, which="major", alpha=0.3)
  axes[0].set_ylabel("seconds")
  axes[0].legend(frameon=False)
  figure.savefig(path, dpi=150)
  plt.close(figure)


def main() -> None:
  """Runs all rows and writes the results."""
  parser = argparse.ArgumentParser(description=__doc__)
  numbers = lambda kind: lambda text: [kind(part) for part in text.split(",")]  # noqa: E731
  parser.add_argument(
    "--sizes", type=numbers(int), default="128,512,1024,2048,4096,8192"
  )
  parser.add_argument("--densities", type=numbers(float), default=".05,.1,.3")
  parser.add_argument("--repeats", type=int, default=9)
  parser.add_argument("--output", type=Path, default=Path("benchmarks/results/init"))
  args = parser.parse_args()
  rows = []
  middle = args.densities[len(args.densities) // 2]
  for size in args.sizes:
    # The dense factorization of 8192 x 8192 takes a quarter of a minute.
    for density in args.densities if size <= 4096 else [middle]:
      repeats = max(3, args.repeats // (1 + size // 2048))
      table = one_kernel(size, density, repeats)
      rows.append({"size": size, "density": density, "table": table})
      print(
        size, density, {k: f"{v['seconds']:.4g}" for k, v in table.items()}, flush=True
      )
  tables = {
    f"{r['size']} x {r['size']}, density {r['density']:g}": r["table"] for r in rows
  }
  tables[f"{NUM_LAYERS} of 128 x 128, density {LAYER_DENSITY}"] = many_layers(
    args.repeats
  )
  for channels in (64, 128, 256, 512):
    title = f"3 x 3, {channels} -> {channels}, density 0.1"
    tables[title] = one_convolution(channels, 0.1, args.repeats)
  tables["ResNet-50, density 0.1"] = resnet50(0.1, 3)
  results = {
    "command": " ".join(["python -m benchmarks.init", *sys.argv[1:]]),
    "hardware": hardware(),
    "repeats": args.repeats,
    "one_kernel": rows,
    "tables": tables,
  }
  args.output.parent.mkdir(parents=True, exist_ok=True)
  args.output.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")
  args.output.with_suffix(".md").write_text(markdown(results))
  plot(results, args.output.with_suffix(".png"))
  print(markdown(results))


if __name__ == "__main__":
  main()
