"""Training speed: dense against masked, one seed against five, against eager torch.

python -m benchmarks.train [--networks mlp7,mlp1000,resnet32,vgg16,cnn100,cnn1000]
  [--repeats 9] [--output benchmarks/results/train]

The competitors of a network take turns in one process, a chunk of steps each; medians,
compile time apart. Memory is what the compiled program holds at its peak. Images are
random: no time depends on them. Torch, if it is installed, runs the same network in a
plain loop, dense and channels last, with as many threads as there are cores. Seconds of
all cores together stand beside the wall clock: on a shared machine compare those.
Writes OUTPUT.json and OUTPUT.md.
"""

from __future__ import annotations

import abc
import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.hardware import hardware
from configs import (
  cifar10_cnn100,
  cifar10_cnn1000,
  cifar10_resnet32,
  cifar10_vgg16,
  mnist_mlp7,
  mnist_mlp1000,
)
from train.core.plan import Plan, check_plan, start_state
from train.core.state import take_seed
from train.core.steps import train_chunk, zero_sums
from train.data.datasets import Split

NUM_SEEDS = 5


class Network(NamedTuple):
  """What is trained, and for how many steps at a time.

  Attributes:
    config: module with `get_config`.
    fields: changes of its fields.
    steps: in a chunk.
    seeds: whether to train five seeds at once, too.
  """

  config: Any
  fields: dict[str, Any]
  steps: int
  seeds: bool = False


NETWORKS = {
  "mlp7": Network(mnist_mlp7, {}, 200, seeds=True),
  "mlp1000": Network(mnist_mlp1000, {}, 8),
  "resnet32": Network(cifar10_resnet32, {"batch_size": 128}, 4),
  "vgg16": Network(cifar10_vgg16, {"batch_size": 128}, 4),
  "cnn100": Network(cifar10_cnn100, {}, 4),
  "cnn1000": Network(cifar10_cnn1000, {"batch_size": 2}, 1),
}


class Timed(abc.ABC):
  """Something that does steps; `times` has wall and processor seconds of each."""

  def __init__(self, steps: int):
    """Takes no time yet."""
    self.steps, self.times = steps, []

  @abc.abstractmethod
  def run(self) -> None:
    """Does the steps."""

  def __call__(self) -> None:
    """Does the steps, and takes the time."""
    wall, processor = time.perf_counter(), time.process_time()
    self.run()
    spent = (time.perf_counter() - wall, time.process_time() - processor)
    self.times.append([seconds / self.steps for seconds in spent])


class Competitor(Timed):
  """A compiled chunk of steps and the state that it goes on with."""

  def __init__(self, plan: Plan, state: Any, steps: int):
    """Compiles the chunk, and takes note of time and memory."""
    size = plan.recipe.steps_per_epoch * plan.recipe.batch_size
    rng, spec = np.random.default_rng(0), plan.recipe.spec
    images = rng.integers(0, 256, (size, *spec.shape), np.uint8)
    labels = rng.integers(0, spec.num_classes, size, np.int32)
    self.data = jax.device_put(Split(images, labels))
    super().__init__(steps)
    self.count, self.state = jax.device_put(np.int32(steps)), state
    begin = time.perf_counter()
    self.sums = jax.device_put(zero_sums(state.key.shape))
    args = (state, self.data, self.count, self.sums)
    lowered = train_chunk.lower(*args, recipe=plan.recipe)
    self.program = lowered.compile()
    self.compile_seconds = time.perf_counter() - begin
    memory = self.program.memory_analysis()
    used = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    self.bytes = used + memory.output_size_in_bytes - memory.alias_size_in_bytes
    self.run()

  def run(self) -> None:
    """Runs one chunk."""
    state = self.state._replace(step=jnp.zeros((), jnp.int32))
    self.state, *_ = self.program(state, self.data, self.count, self.sums)
    jax.block_until_ready(self.state)


def make_plan(network: Network, **fields: Any) -> Plan:
  """Returns the plan of a network on as many random images as a chunk takes."""
  config = network.config.get_config()
  alone = {"compare.field": "", "compare.choices": (), "sparsity.start": "eoi"}
  with config.ignore_type():
    config.update_from_flattened_dict(alone | network.fields | fields)
  recipe = check_plan(config)
  steps = network.steps
  return Plan(config, None, recipe._replace(steps_per_epoch=steps, num_steps=10**6))


def without_masks(state: Any) -> Any:
  """Returns the state of the dense network: nothing is masked anywhere."""
  none = jax.tree.map(lambda _: None, state.params)
  return state._replace(opt_state=state.opt_state._replace(masks=none))


def competitors(network: Network) -> dict[str, Any]:
  """Returns what takes turns: name to a callable with `times`."""
  plan = make_plan(network)
  state = start_state(plan)
  copy = jax.tree.map(jnp.copy, state)
  found = {
    "dense": Competitor(plan, without_masks(copy), network.steps),
    "masked": Competitor(plan, state, network.steps),
  }
  if network.seeds:
    several = make_plan(network, seeds=tuple(range(NUM_SEEDS)))
    states = start_state(several)
    assert int(take_seed(states, 0).step) == 0
    found[f"masked, {NUM_SEEDS} seeds at once"] = Competitor(
      several, states, network.steps
    )
  if (loop := torch_loop(plan, network.steps)) is not None:
    found["torch, dense"] = loop
  return found


def torch_loop(plan: Plan, steps: int) -> Any | None:
  """Returns the network in an eager torch loop; None without torch."""
  # Its threads would spin after each step, and take the cores from the others' turns.
  os.environ.setdefault("OMP_WAIT_POLICY", "passive")
  try:
    import torch  # pyright: ignore[reportMissingImports]

    from benchmarks import torch_networks
  except ImportError:
    return None
  torch.set_num_threads(os.cpu_count() or 1)
  config, (height, width, channels) = plan.config, plan.recipe.spec.shape
  name, shape = config.model.name, (channels, height, width)
  if name == "cifar_resnet":
    blocks = (config.model.depth - 2) // 6
    model = torch_networks.ResNet((blocks,) * 3, 16, 10, False)
  elif name.startswith("vgg16_"):
    model = torch_networks.VGG(name[-1].upper())
  else:
    model = torch_networks.chain(name, config.model.depth, config.model.width, shape)
    for weight in model.parameters():
      if weight.ndim > 1:
        torch.nn.init.orthogonal_(weight, config.sparsity.scale)
  return _TorchLoop(model, config, (config.batch_size, *shape), steps)


class _TorchLoop(Timed):
  """A plain training loop of torch, its images channels last."""

  def __init__(self, model: Any, config: Any, shape: tuple[int, ...], steps: int):
    import torch  # pyright: ignore[reportMissingImports]

    settings = config.optimizer
    self.optimizer = torch.optim.SGD(
      model.parameters(),
      lr=settings.learning_rate,
      momentum=settings.momentum,
      nesterov=settings.nesterov,
      weight_decay=settings.weight_decay,
    )
    super().__init__(steps)
    layout = {"memory_format": torch.channels_last}
    self.model, self.inputs = model.to(**layout), torch.randn(shape).to(**layout)
    self.labels = torch.randint(0, 10, shape[:1])
    self.loss = torch.nn.CrossEntropyLoss()
    self.run()

  def run(self) -> None:
    """Does the steps of a chunk, all on the same images."""
    for _ in range(self.steps):
      self.optimizer.zero_grad()
      self.loss(self.model(self.inputs), self.labels).backward()
      self.optimizer.step()


def measure(turns: dict[str, Timed], repeats: int) -> dict[str, dict]:
  """Runs all competitors in turn; returns a row for each, ratios to the first."""
  for _ in range(repeats):
    for competitor in turns.values():
      competitor()
  table: dict[str, dict] = {}
  for name, competitor in turns.items():
    wall, processor = zip(*competitor.times, strict=True)
    row = {"seconds": statistics.median(wall), "cpu": statistics.median(processor)}
    if isinstance(competitor, Competitor):
      row |= {"compile": competitor.compile_seconds, "bytes": competitor.bytes}
    table[name] = row
  reference = next(iter(table.values()))["seconds"]
  for row in table.values():
    row["ratio"] = row["seconds"] / reference
    if torch_row := table.get("torch, dense"):
      row["over_torch"] = row["seconds"] / torch_row["seconds"]
  return table


def markdown(results: dict) -> str:
  """Formats all rows as one table."""
  lines = [
    f"# Training speed\n\n`{results['command']}`\n\n{results['hardware']}; median of "
    f"{results['repeats']}, in turn, compile time apart.\n",
    "| network | program | a step, ms | of all cores, ms | over dense | over torch "
    "| compile, s | memory, MiB |",
    "|" + " --- |" * 8,
  ]
  for network, table in results["tables"].items():
    for name, row in table.items():
      compiled = f"{row['compile']:.2f}" if "compile" in row else ""
      memory = f"{row['bytes'] / 2**20:,.0f}" if "bytes" in row else ""
      torch = f"{row['over_torch']:.2f}" if "over_torch" in row else ""
      lines.append(
        f"| {network} | {name} | {1e3 * row['seconds']:.2f} | {1e3 * row['cpu']:.2f} "
        f"| {row['ratio']:.3f} | {torch} | {compiled} | {memory} |"
      )
  return "\n".join(lines) + "\n"


def main() -> None:
  """Measures the networks and writes the results."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--networks", default=",".join(NETWORKS))
  parser.add_argument("--repeats", type=int, default=9)
  parser.add_argument("--output", type=Path, default=Path("benchmarks/results/train"))
  args = parser.parse_args()
  tables = {}
  for name in args.networks.split(","):
    if name not in NETWORKS:
      parser.error(f"--networks must be of {', '.join(NETWORKS)}, got {name!r}")
    fields = NETWORKS[name].fields
    title = name + "".join(f", {k.replace('_', ' ')} {v}" for k, v in fields.items())
    tables[title] = measure(competitors(NETWORKS[name]), args.repeats)
    print(
      title, {k: f"{v['seconds']:.4g}" for k, v in tables[title].items()}, flush=True
    )
  results = {
    "command": " ".join(["python -m benchmarks.train", *sys.argv[1:]]),
    "hardware": hardware(),
    "repeats": args.repeats,
    "tables": tables,
  }
  args.output.parent.mkdir(parents=True, exist_ok=True)
  args.output.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")
  args.output.with_suffix(".md").write_text(markdown(results))
  print(markdown(results))


if __name__ == "__main__":
  main()
