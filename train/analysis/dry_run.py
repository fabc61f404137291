"""What a config will train, before it does: its layers, steps, memory and time."""

import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from eoi_jax.initializers.eoi import kernel_budget
from eoi_jax.layouts import Kernel, find_kernels, named_leaves
from train.core import config as config_lib
from train.core import mesh
from train.core.console import UserError, duration, table
from train.core.optimizers import describe_optimizer
from train.core.plan import Feed, Plan, data_spec, like_start, make_plan, seeds_of
from train.core.start import (
  SparsitySettings,
  create_network,
  densities,
  sparsity_settings,
)
from train.core.state import TrainState
from train.core.steps import Sums, train_chunk, zero_sums
from train.core.summaries import Layer, Taps, taps_table
from train.core.unread import warn_of_unread
from train.models import title_and_fields


class Layers(NamedTuple):
  """The kernels of a network and what else it has."""

  rows: list[Layer]  # all kernels, in the order of the tree
  total: int  # parameters of the network, biases and the like included
  live: int  # trained weights of all kernels


def list_kernels(config: Any) -> Layers:
  """Lists the kernels of a config's network by shapes alone.

  Raises:
    UserError: if a field is wrong or the network does not exist in that form.
  """
  config_lib.validate(config)
  spec, sparsity = data_spec(config), sparsity_settings(config)
  scored = sparsity.distribution in config_lib.SCORED
  try:
    network = create_network(config, spec)
    model = network.without_blocks
    inputs = jax.ShapeDtypeStruct((1, *spec.shape), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), inputs)["params"]
    uniform = sparsity._replace(distribution="uniform") if scored else sparsity
    wanted = named_leaves(densities(uniform, params, model))
  except ValueError as error:
    raise UserError(str(error)) from error
  blocks = {f"{layer}/kernel": d for layer, d in network.blocks.densities}
  rows = []
  for name, kernel in find_kernels(params, model.kernels).items():
    density, budgets = blocks.get(name, wanted[name]), None
    dense = density is None or _is_made_dense(sparsity.start, kernel.block_shape)
    if dense or not scored:
      budgets = _budgets(sparsity, kernel, 1.0 if dense else density)
    row = Layer(
      name=name,
      shape=kernel.layer_shape,
      count=kernel.num_layers,
      live=None if budgets is None else sum(budgets),
      floor=None if dense else kernel.floor(sparsity.taps) / kernel.layer_size,
      at_most=sparsity.start == "eoi_structured" and not dense,
    )
    if budgets and density is not None and math.prod(row.shape[:-2]) > 1:
      row = row._replace(taps=_expected_taps(sparsity, kernel, budgets))
    rows.append(row)
  by_score = sum(row.size for row in rows if row.live is None)
  live = round(sparsity.density * by_score) + sum(row.live or 0 for row in rows)
  total = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
  return Layers(rows, total, live)


def _is_made_dense(start: str, shape: tuple[int, ...]) -> bool:
  """Whether a start makes blocks of a shape dense, whatever their density."""
  *window, fan_in, fan_out = shape
  if start == "eoi_structured":
    return not window or fan_in <= 3
  if start == "sao":
    narrow = fan_in <= 3 or min(fan_in, fan_out) == 1
    return narrow if window else fan_in != fan_out
  return start in config_lib.DENSE_STARTS


def _budgets(sparsity: SparsitySettings, kernel: Kernel, density: Any) -> list[int]:
  """Returns the trained weights of a leaf's layers; of EIS the most that it reaches."""
  budgets = np.rint(np.full(kernel.num_layers, density, float) * kernel.layer_size)
  if sparsity.start == "eoi_structured":
    groups, num_taps = kernel.groups, math.prod(kernel.layer_shape[:-2])
    shares = (budgets[:, None] + np.arange(groups)) // groups
    budgets = np.rint(shares / num_taps).sum(1) * num_taps
  return budgets.astype(int).tolist()


def _expected_taps(
  sparsity: SparsitySettings, kernel: Kernel, budgets: list[int]
) -> tuple[Taps, Taps]:
  """Returns what a start gives to the taps of a leaf's layers, in expectation.

  Support that is drawn evenly counts by its mean. EOI reaches a nonzero budget but for
  less than `min(in, out)`; AI and EOI in a mask count as nonzero where they may be.
  """
  *window, fan_in, fan_out = kernel.layer_shape
  num_taps, tap = math.prod(window), fan_in * fan_out
  start, size = sparsity.start, kernel.layer_size
  floor = kernel.floor(sparsity.taps) / size
  at_center = start in ("eoi_structured", "sao", "delta_orthogonal", "eoi_in_mask") or (
    start in ("base", "ai") and sparsity.reference == "delta_orthogonal"
  )
  found = []  # live weights and nonzeros at the centre, and of all taps
  for budget in budgets:
    live = inner = budget / num_taps  # of an even support
    nonzeros = inner if at_center else budget
    if start == "eoi" and sparsity.taps == "center":
      inner = nonzeros = kernel.groups * kernel_budget(
        kernel.block_shape, max(budget / size, floor), center=sparsity.center
      )
      spare = size - inner  # cells among which trainable zeros are drawn
      zeros = (budget - inner) * (tap - inner) / spare if spare else 0.0
      live = inner + max(zeros, 0.0)
    found.append((tap, live, inner, size, budget, nonzeros))
  center, whole = np.sum(found, axis=0).reshape(2, 3)
  return Taps(*map(round, center)), Taps(*map(round, whole - center))


def layers_table(layers: Layers) -> str:
  """Returns the layers and their sums as text, one a line."""
  lines = [("kernel", "shape", "layers", "parameters", "density", "floor", "live")]

  def add(name, size, live, at_most, *, shape="", count="", floor=""):
    words, shown = "at most " if at_most else "", ("by score", "by score")
    if live is not None:
      shown = f"{words}{live / size:.4f}", f"{words}{live:,}"
    lines.append((name, shape, count, f"{size:,}", shown[0], floor, shown[1]))

  for row in layers.rows:
    shape = " x ".join(map(str, row.shape))
    floor = "dense" if row.floor is None else f"{row.floor:.4f}"
    options = {"shape": shape, "count": f"{row.count:,}", "floor": floor}
    add(row.name, row.size, row.live, row.at_most, **options)
  count = sum(row.count for row in layers.rows)
  size = sum(row.size for row in layers.rows)
  at_most, others = any(row.at_most for row in layers.rows), layers.total - size
  add("all kernels", size, layers.live, at_most, count=f"{count:,}")
  lines.append(("biases and the like", "", "", f"{others:,}", "", "", f"{others:,}"))
  add("network", layers.total, others + layers.live, at_most)
  return table(lines)


def layers_text(config: Any) -> str:
  """Returns what `train.inspect` prints of a config."""
  layers = list_kernels(config)
  spec = data_spec(config)
  size = " x ".join(map(str, spec.shape))
  density = f"{config.sparsity.distribution} density {config.sparsity.density:g}, "
  if config.sparsity.start in config_lib.DENSE_STARTS:
    density = ""
  lines = [
    f"{title_and_fields(config.model.name)[0]} for {config.data.name}: {size} pixels, "
    f"{spec.num_classes} classes; {density}{config.sparsity.start} start",
    layers_table(layers),
  ]
  if taps := taps_table(layers.rows):
    lines += ["", "Taps of the convolutions at the start, expected:", taps]
  if config.compare.field:
    choices = ", ".join(map(config_lib.choice_name, config.compare.choices))
    lines.append(f"  The config compares {config.compare.field}: {choices}.")
  low = [
    row.name
    for row in layers.rows
    if None not in (row.live, row.floor) and row.density < row.floor * (1 - 1e-9)
  ]
  if low and config.sparsity.start == "eoi":
    lines.append(f"  Below the floor of an orthogonal start: {', '.join(low)}.")
  return "\n".join(lines)


_SECONDS = 2.0  # for which to time steps


class Cost(NamedTuple):
  """What a compiled training takes, on each device."""

  compile_seconds: float  # until it can begin
  step_seconds: float  # for one step
  state_bytes: int  # parameters, masks, optimizer and statistics
  data_bytes: int  # of the examples
  temporary_bytes: int | None  # activations, gradients and the like; None if unknown


def dry_run(config: Any) -> str:
  """Returns the plan of a config as text, after one step of it.

  Of several runs those that share a program are measured once.
  """
  config_lib.validate(config)
  runs = config_lib.expand(config)
  plans = [make_plan(one) for one in runs.values()]
  warn_of_unread(runs.values())
  programs = [_program(plan) for plan in plans]
  by_program = dict(zip(programs, plans, strict=True))
  costs = {program: measure(plan) for program, plan in by_program.items()}
  rows = _rows(plans, [costs[program] for program in programs])
  return "\n".join([layers_text(config), "", table(rows)])


def _program(plan: Plan) -> Any:
  """Returns what decides on the program of a plan: equal ones share it."""
  leaves, structure = jax.tree.flatten(like_start(plan))
  return plan.recipe, structure, tuple(leaves), plan.config.steps_per_dispatch


def _rows(plans: list[Plan], costs: list[Cost]) -> list[tuple[str, ...]]:
  """Returns what all runs have, each different value once, and their sums."""
  devices, kind = jax.device_count(), jax.devices()[0].device_kind

  def each(show: Callable[[Any], str], items: list[Any] = plans) -> str:
    return "; ".join(dict.fromkeys(map(show, items)))

  def steps(plan: Plan) -> str:
    return f"{plan.recipe.num_steps:,}, {plan.recipe.steps_per_epoch:,} an epoch"

  def batch(plan: Plan) -> str:
    count, size = plan.recipe.optimizer.accumulate, plan.recipe.batch_size
    parts = f", in {count} micro-batches" if count > 1 else ""
    return f"{size}, {size // devices} a device{parts}"

  def largest(name: str) -> str:
    sizes = [getattr(cost, name) for cost in costs]
    return "unknown" if None in sizes else f"{max(sizes) / 2**20:,.1f} MiB a device"

  total = sum(
    cost.step_seconds * plan.recipe.num_steps
    for plan, cost in zip(plans, costs, strict=True)
  )
  return [
    ("devices", f"{devices} x {kind}, {jax.process_count()} processes"),
    ("runs, one after another", f"{len(plans)}"),
    ("seeds in each, at once", each(lambda plan: f"{len(seeds_of(plan.config))}")),
    ("steps of each", each(steps)),
    ("batch", each(batch)),
    ("optimizer", each(lambda plan: describe_optimizer(plan.recipe.optimizer))),
    ("state", largest("state_bytes")),
    ("examples", largest("data_bytes")),
    ("activations and the like", largest("temporary_bytes")),
    ("compile time", each(lambda cost: f"{cost.compile_seconds:.1f} s", costs)),
    ("time of a step", each(lambda cost: f"{cost.step_seconds:.4f} s", costs)),
    ("training time of all runs", f"{duration(total)} (h:min:s), evaluation left out"),
  ]


def measure(plan: Plan) -> Cost:
  """Compiles the chunk of a plan and does one step, from weights that are all zero."""
  like, placement = like_start(plan), plan.recipe.placement
  zeros = jax.tree.map(lambda leaf: jax.lax.full(leaf.shape, 0, leaf.dtype), like)
  state = mesh.put_state(zeros, placement)
  feed = Feed(plan, 0)
  begin = time.perf_counter()
  zero = jax.device_put(np.int32(0))
  sums = mesh.put_whole(zero_sums(state.key.shape), placement)
  lowered = train_chunk.lower(state, feed.nothing(), zero, sums, recipe=plan.recipe)
  program = lowered.compile()
  memory = program.memory_analysis()
  compiled = time.perf_counter() - begin
  state_bytes, data_bytes = _bytes(state), _bytes(feed.nothing())
  state, _ = _time_steps(program, state, feed, sums, 1)
  state, seconds = _time_steps(program, state, feed, sums, 1)
  most = min(plan.config.steps_per_dispatch, plan.recipe.steps_per_epoch - 2)
  count = min(most, int(_SECONDS / seconds))
  if count > 1:  # a chunk has a cost of its own
    state, seconds = _time_steps(program, state, feed, sums, count)
  temporary = None if memory is None else memory.temp_size_in_bytes
  return Cost(compiled, seconds, state_bytes, data_bytes, temporary)


def _time_steps(
  program: Any, state: TrainState, feed: Feed, sums: Sums, count: int
) -> tuple[TrainState, float]:
  """Runs a compiled chunk; returns the state and the seconds of one step."""
  data, number = feed.next(count), jax.device_put(np.int32(count))
  begin = time.perf_counter()
  state, *_ = jax.block_until_ready(program(state, data, number, sums))
  return state, (time.perf_counter() - begin) / count


def _bytes(tree: Any) -> int:
  """Bytes on the first device of this process."""
  leaves = jax.tree.leaves(tree)
  return sum(leaf.addressable_shards[0].data.nbytes for leaf in leaves)
