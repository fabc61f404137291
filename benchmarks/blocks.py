"""Time and memory of block-sparse layers and networks beside dense and sparse ones.

python -m benchmarks.blocks [--parts layer,mlp,deit,inference,memory]
  [--sizes 1024,2048,4096,8192] [--batches 32,128,512,1024] [--blocks 16,32,64,128]
  [--densities .03125,.0625,.125,.25] [--repeats 15]
  [--output benchmarks/results/blocks]

Layers of N x N: forward, and forward + backward for inputs and weights. `mlp` is a
training step of 8 layers of width 2048 with AdamW at batch 256, `deit` one of the 12
MLP blocks of DeiT-S at batch 8, `inference` the MLP at batch 1, all at density .125.

Every row is measured in one process, the competitors in turn, so that a noisy machine
hits all of them; medians, compile time apart. Memory is measured: the peak of a process
of its own that takes three steps, less what it holds without arrays. BCOO and BCSR of
`jax.experimental.sparse` and torch CSR run forward only, up to N = 2048. Writes
OUTPUT.json, OUTPUT.md, OUTPUT.png.
"""

from __future__ import annotations

import argparse
import ctypes
import functools
import itertools
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.hardware import hardware
from eoi_jax import blocks as blocks_lib
from eoi_jax import static_sparsity

SPARSE_LIMIT = 2048  # seconds a product beyond
DENSITY = 0.125
# (widths of the layers, rows of a batch) of the networks.
NETWORKS = {
  "mlp": ((2048,) * 9, 256),
  "deit": ((384,) + (1536, 384) * 12, 8 * 197),
  "inference": ((2048,) * 9, 1),
}
DENSE = ("dense", "masked dense", "masked dense, compact")


def block_kinds(sizes) -> list[str]:
  """The kinds of networks of blocks."""
  return [f"blocks of {size}" for size in sizes]


def measure(candidates: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
  """Median seconds of each function, called in turn after a call that compiles."""
  times = {name: [] for name in candidates}
  for function in candidates.values():
    jax.block_until_ready(function())
  for _ in range(repeats):
    for name, function in candidates.items():
      begin = time.perf_counter()
      jax.block_until_ready(function())
      times[name].append(time.perf_counter() - begin)
  return {name: statistics.median(values) for name, values in times.items()}


def layer(size: int, batch: int, density: float, sizes, repeats: int) -> dict:
  """Times one N x N layer.

  Returns:
    "forward" and "both" -> competitor -> seconds; "density": what the blocks meet.
  """
  keys = jax.random.split(jax.random.key(0), 4)
  x = jax.random.normal(keys[0], (batch, size))
  ct = jax.random.normal(keys[1], (batch, size))
  dense = jax.random.normal(keys[2], (size, size)) / math.sqrt(size)
  mask = jax.random.uniform(keys[3], (size, size)) < density
  met = {}

  products = {
    "dense": (jnp.matmul, dense),
    "masked dense": (lambda x, w: x @ jnp.where(mask, w, 0), dense),
  }
  for block_size in sizes:
    if block_size <= density * size:
      layout = blocks_lib.block_layout(
        keys[3], (size, size), density, block_size=block_size
      )
      multiply = functools.partial(blocks_lib.block_matmul, layout=layout)
      blocks = blocks_lib.block_orthogonal(keys[2], layout)
      products[f"blocks of {block_size}"] = (multiply, blocks)
      met[f"blocks of {block_size}"] = layout.density

  def both(product, x, weights):
    y, pull = jax.vjp(product, x, weights)
    return y, pull(ct)

  forward, backward = {}, {}
  for name, (product, weights) in products.items():
    forward[name] = functools.partial(jax.jit(product), x, weights)
    run = jax.jit(functools.partial(both, product))
    backward[name] = functools.partial(run, x, weights)
  if size <= SPARSE_LIMIT:
    forward |= _sparse_products(x, np.asarray(jnp.where(mask, dense, 0)))
  return {
    "forward": measure(forward, repeats),
    "both": measure(backward, repeats),
    "density": met,
  }


def _sparse_products(x, matrix: np.ndarray) -> dict[str, Callable]:
  """Products with unstructured sparse matrices, by JAX and torch."""
  from jax.experimental import sparse

  bcoo = sparse.BCOO.fromdense(matrix)
  bcsr = sparse.BCSR.fromdense(matrix.T)
  products = {
    "BCOO": functools.partial(jax.jit(lambda x, w: x @ w), x, bcoo),
    "BCSR": functools.partial(jax.jit(lambda x, w: (w @ x.T).T), x, bcsr),
  }
  try:
    import torch  # pyright: ignore[reportMissingImports]
  except ImportError:
    return products
  inputs = torch.tensor(np.asarray(x))
  weights = torch.tensor(matrix)
  csr = weights.T.contiguous().to_sparse_csr()

  def call(product):
    with torch.inference_mode():
      product()

  return products | {
    "torch dense": functools.partial(call, lambda: inputs @ weights),
    "torch CSR": functools.partial(call, lambda: csr @ inputs.T),
  }


def make_network(kind: str, name: str) -> tuple[Callable, Any, Callable]:
  """A network, "dense", "masked dense", "masked dense, compact" or "blocks of B".

  Returns:
    `apply(weights, x)`, its weights, and `wrap(tx)`, which masks where it must.
  """
  widths, _ = NETWORKS[name]
  shapes = list(itertools.pairwise(widths))
  keys = jax.random.split(jax.random.key(1), len(shapes))
  activation = jax.nn.gelu if name == "deit" else jnp.tanh
  wrap = lambda tx: tx  # noqa: E731
  if kind.startswith("blocks"):
    layouts = [
      blocks_lib.block_layout(key, shape, DENSITY, block_size=int(kind.split()[-1]))
      for key, shape in zip(keys, shapes, strict=True)
    ]
    weights = [
      blocks_lib.block_orthogonal(key, layout)
      for key, layout in zip(keys, layouts, strict=True)
    ]
    multiply = blocks_lib.block_matmul
    products = [functools.partial(multiply, layout=layout) for layout in layouts]
  else:
    init = jax.nn.initializers.lecun_normal()
    weights = [init(key, shape) for key, shape in zip(keys, shapes, strict=True)]
    products = [jnp.matmul] * len(shapes)
    if kind.startswith("masked"):
      masks = [
        jax.random.uniform(k, s) < DENSITY for k, s in zip(keys, shapes, strict=True)
      ]
      weights = [jnp.where(m, w, 0) for m, w in zip(masks, weights, strict=True)]
      compact = kind.endswith("compact")
      wrap = lambda tx: static_sparsity(tx, masks, compact=compact)  # noqa: E731

  def apply(weights, x):
    skip = x
    for number, (product, weight) in enumerate(zip(products, weights, strict=True)):
      x = product(x, weight)
      if name != "deit" or number % 2 == 0:
        x = activation(x)
      else:
        x = skip = skip + x
    return x

  return apply, weights, wrap


def training(kind: str, name: str) -> tuple[Callable[[], Any], int]:
  """A function that takes one AdamW step, and bytes of parameters and state."""
  apply, weights, wrap = make_network(kind, name)
  tx = wrap(optax.adamw(1e-4))
  widths, batch = NETWORKS[name]
  x = jax.random.normal(jax.random.key(2), (batch, widths[0]))
  labels = jax.random.randint(jax.random.key(3), (batch,), 0, widths[-1])

  @functools.partial(jax.jit, donate_argnums=(0, 1))
  def step(weights, state):
    def loss(weights):
      logits = apply(weights, x)
      return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    value, updates = jax.value_and_grad(loss)(weights)
    updates, state = tx.update(updates, state, weights)
    return optax.apply_updates(weights, updates), state, value

  carry = [weights, jax.jit(tx.init)(weights)]
  size = sum(leaf.nbytes for leaf in jax.tree.leaves(carry))

  def run():
    carry[0], carry[1], value = step(*carry)
    return value

  return run, size


def network(name: str, sizes, repeats: int) -> dict:
  """Times one network with each kind of layers; "seconds" and, if trained, "bytes"."""
  if name != "inference":
    runs, bytes_ = {}, {}
    for kind in (*DENSE, *block_kinds(sizes)):
      runs[kind], bytes_[kind] = training(kind, name)
    return {"seconds": measure(runs, repeats), "bytes": bytes_}
  runs = {}
  x = jax.random.normal(jax.random.key(2), (1, NETWORKS[name][0][0]))
  for kind in ("dense", *block_kinds(sizes)):
    apply, weights, _ = make_network(kind, name)
    runs[kind] = functools.partial(jax.jit(apply), weights, x)
  return {"seconds": measure(runs, 4 * repeats)}


def peak_memory(kind: str) -> int:
  """Peak bytes that three training steps of the MLP add to this process (Linux)."""
  status = Path("/proc/self/status")

  def held(field: str) -> int:
    line = next(x for x in status.read_text().splitlines() if x.startswith(field))
    return 1024 * int(line.split()[1])

  run, _ = training(kind, "mlp")
  jax.block_until_ready(run())  # compiles
  Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
  for _ in range(3):
    jax.block_until_ready(run())
  peak = held("VmHWM")
  for array in jax.live_arrays():
    array.delete()
  left = []
  for _ in range(30):  # buffers are freed some time after
    ctypes.CDLL(None).malloc_trim(0)  # gives freed memory back
    left.append(held("VmRSS"))
    time.sleep(0.1)
  return peak - min(left)


def memory(sizes) -> dict[str, int]:
  """Peak memory of each kind of MLP, each in a process of its own."""
  # The allocator returns large arrays at once only while its threshold is fixed.
  fixed = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(2**16)}
  return {
    kind: int(
      subprocess.run(
        [sys.executable, "-m", "benchmarks.blocks", "--peak-of", kind],
        check=True,
        capture_output=True,
        env=fixed,
        text=True,
      ).stdout.split()[-1]
    )
    for kind in (*DENSE, *block_kinds(sizes))
  }


def markdown(results: dict) -> str:
  """Formats all rows as tables."""
  lines = [
    "# Block-sparse layers\n",
    f"`{results['command']}`\n",
    f"{results['hardware']}; median of {results['repeats']}, compile time apart; "
    "speed-ups over the dense layer.\n",
  ]
  names = list(
    dict.fromkeys(
      name
      for row in results["layer"]
      for name in [*row["forward"], *row["both"]]
      if name != "dense"
    )
  )
  for part, title in [("forward", "forward"), ("both", "forward + backward")]:
    used = [n for n in names if any(n in row[part] for row in results["layer"])]
    if used:
      lines += [
        f"\n## One layer, {title}\n",
        f"| N | batch | density | dense, ms | {' | '.join(used)} |",
        "| --- " * (4 + len(used)) + "|",
      ]
    for row in results["layer"] if used else []:
      dense = row[part]["dense"]
      cells = [f"{dense / row[part][n]:.2f}" if n in row[part] else "" for n in used]
      lines.append(
        f"| {row['size']} | {row['batch']} | {row['wanted']:g} | {1e3 * dense:.2f} | "
        f"{' | '.join(cells)} |"
      )
  titles = {
    "mlp": "Training step, MLP 8 x 2048, AdamW, batch 256",
    "deit": "Training step, 12 MLP blocks of DeiT-S, AdamW, batch 8",
    "inference": "Inference, MLP 8 x 2048, batch 1",
  }
  for name, title in titles.items():
    if name not in results:
      continue
    table = results[name]
    lines += [
      f"\n## {title}\n",
      "| layers | milliseconds | times faster | parameters and state, MB |",
      "| --- | --- | --- | --- |",
    ]
    for kind, seconds in table["seconds"].items():
      size = f"{table['bytes'][kind] / 1e6:.1f}" if "bytes" in table else ""
      ratio = table["seconds"]["dense"] / seconds
      lines.append(f"| {kind} | {1e3 * seconds:.2f} | {ratio:.2f} | {size} |")
  if "memory" in results:
    lines += [
      "\n## Peak memory of that MLP's training\n",
      "| layers | MB | of dense |",
      "| --- | --- | --- |",
    ]
    for kind, size in results["memory"].items():
      part = size / results["memory"]["dense"]
      lines.append(f"| {kind} | {size / 1e6:.0f} | {part:.2f} |")
  return "\n".join(lines) + "\n"


def plot(results: dict, path: Path) -> None:
  """Draws the speed-up over the density, one line a block size, for one N and batch."""
  import matplotlib

  matplotlib.use("Agg")
  import matplotlib.pyplot as plt

  cases = {(row["size"], row["batch"]) for row in results["layer"]}
  size, batch = min(cases, key=lambda case: (abs(case[0] - 2048), abs(case[1] - 128)))
  rows = [r for r in results["layer"] if (r["size"], r["batch"]) == (size, batch)]
  colours = ["#D55E00", "#E69F00", "#0072B2", "#009E73", "#CC79A7", "#999999"]
  figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained", sharey=True)
  parts = [("forward", "forward"), ("both", "forward + backward")]
  for axis, (part, title) in zip(axes, parts, strict=True):
    names = sorted(
      {n for row in rows for n in row["density"]}, key=lambda n: int(n[10:])
    )
    names += [n for n in ("masked dense", "BCSR") if n in rows[0][part]]
    for name, colour in zip(names, colours, strict=False):
      points = sorted(
        (row["density"].get(name, row["wanted"]), row[part]["dense"] / row[part][name])
        for row in rows
        if name in row[part]
      )
      axis.plot(*zip(*points, strict=True), "o-", color=colour, label=name)
    ticks = sorted({row["wanted"] for row in rows})
    axis.plot(ticks, [1 / tick for tick in ticks], ":", color="#000000", label="limit")
    axis.set(xscale="log", yscale="log", xlabel="density", title=title)
    axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.set_xticks([], minor=True)
    axis.axhline(1, color="#000000", linewidth=0.5)
    axis.grid(True, which="major", alpha=0.3)
  axes[0].set_ylabel(f"times faster than dense, N = {size}, batch {batch}")
  axes[0].legend(frameon=False, fontsize=8)
  figure.savefig(path, dpi=150)
  plt.close(figure)


def main() -> None:
  """Runs the parts and writes the results."""
  parser = argparse.ArgumentParser(description=__doc__)
  numbers = lambda kind: lambda text: [kind(part) for part in text.split(",")]  # noqa: E731
  parser.add_argument("--parts", default="layer,mlp,deit,inference,memory")
  parser.add_argument("--sizes", type=numbers(int), default="1024,2048,4096,8192")
  parser.add_argument("--batches", type=numbers(int), default="32,128,512,1024")
  parser.add_argument("--blocks", type=numbers(int), default="16,32,64,128")
  parser.add_argument(
    "--densities", type=numbers(float), default=".03125,.0625,.125,.25"
  )
  parser.add_argument("--repeats", type=int, default=15)
  parser.add_argument("--output", type=Path, default=Path("benchmarks/results/blocks"))
  parser.add_argument("--peak-of", help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.peak_of:
    print(peak_memory(args.peak_of))
    return
  parts = args.parts.split(",")
  results = {
    "command": " ".join(["python -m benchmarks.blocks", *sys.argv[1:]]),
    "hardware": hardware(),
    "repeats": args.repeats,
    "layer": [],
  }
  wide = [size for size in args.blocks if size >= 64]
  for size in args.sizes if "layer" in parts else []:
    for batch in args.batches:
      for density in args.densities:
        repeats = max(3, args.repeats // (1 + size * batch // 2**21))
        row = {"size": size, "batch": batch, "wanted": density}
        row |= layer(size, batch, density, args.blocks, repeats)
        results["layer"].append(row)
        for part in ("forward", "both"):
          speed = {n: f"{row[part]['dense'] / s:.2f}" for n, s in row[part].items()}
          print(size, batch, density, part, speed, flush=True)
  for name in NETWORKS:
    if name in parts:
      results[name] = network(name, wide, args.repeats)
      print(name, results[name], flush=True)
  if "memory" in parts:
    results["memory"] = memory(wide)
  args.output.parent.mkdir(parents=True, exist_ok=True)
  args.output.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")
  args.output.with_suffix(".md").write_text(markdown(results))
  if results["layer"]:
    plot(results, args.output.with_suffix(".png"))
  print(markdown(results))


if __name__ == "__main__":
  main()
