"""What a training would be: its layers, steps, memory and time, after one step."""

import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from train import config as config_lib
from train import mesh
from train.feed import Feed
from train.inspect import describe as describe_layers
from train.plan import Plan, make_plan, seeds_of
from train.seeds import stack_seeds
from train.state import TrainState, create_train_state, sparsity_settings
from train.steps import train_chunk
from train.summaries import table

_SECONDS = 2.0  # for which to time steps


class Cost(NamedTuple):
  """What a compiled training takes, on each device.

  Attributes:
    compile_seconds: until it can begin.
    step_seconds: for one step.
    state_bytes: parameters, masks, optimizer and statistics.
    data_bytes: of the examples.
    temporary_bytes: activations, gradients and the like; None if unknown.
  """

  compile_seconds: float
  step_seconds: float
  state_bytes: int
  data_bytes: int
  temporary_bytes: int | None


def describe(config: Any) -> str:
  """Returns the plan of a config as text, after one step of it.

  Args:
    config: a config; one that compares several starts is measured once, since they
      share a program.

  Raises:
    UserError: see `make_plan`.
  """
  config_lib.validate(config)
  runs = config_lib.expand(config)
  plans = [make_plan(one) for one in runs.values()]
  plan = plans[0]
  layers = describe_layers(config)
  return "\n".join([layers, "", table(_rows(plan, measure(plan), len(runs)))])


def _rows(plan: Plan, cost: Cost, num_runs: int) -> list[tuple[str, ...]]:
  config, recipe = plan.config, plan.recipe
  seeds, devices = len(seeds_of(config)), jax.device_count()
  total = cost.step_seconds * recipe.num_steps
  kind = jax.devices()[0].device_kind
  rows = [
    ("devices", f"{devices} x {kind}, {jax.process_count()} processes"),
    ("runs, one after another", f"{num_runs}"),
    ("seeds in each, at once", f"{seeds}"),
    ("steps of each", f"{recipe.num_steps:,}, {recipe.steps_per_epoch:,} an epoch"),
    ("batch", f"{recipe.batch_size}, {recipe.batch_size // devices} a device"),
    ("state", _megabytes(cost.state_bytes)),
    ("examples", _megabytes(cost.data_bytes)),
    ("activations and the like", _megabytes(cost.temporary_bytes)),
    ("compile time", f"{cost.compile_seconds:.1f} s"),
    ("time of a step", f"{cost.step_seconds:.4f} s"),
    ("training time of all runs", _duration(num_runs * total)),
  ]
  return rows


def measure(plan: Plan) -> Cost:
  """Compiles the chunk of a plan and does one step, from weights that are all zero."""
  state = mesh.put_state(_zero_state(plan), plan.recipe.placement)
  feed = Feed(plan, 0)
  begin = time.perf_counter()
  zero = jax.device_put(np.int32(0))
  lowered = train_chunk.lower(state, feed.nothing(), zero, recipe=plan.recipe)
  program = lowered.compile()
  memory = program.memory_analysis()
  compiled = time.perf_counter() - begin
  state_bytes, data_bytes = _bytes(state), _bytes(feed.nothing())
  state, _ = _time_steps(program, state, feed, 1)
  state, seconds = _time_steps(program, state, feed, 1)
  most = min(plan.config.steps_per_dispatch, plan.recipe.steps_per_epoch - 2)
  count = min(most, int(_SECONDS / seconds))
  if count > 1:  # a chunk has a cost of its own
    state, seconds = _time_steps(program, state, feed, count)
  temporary = None if memory is None else memory.temp_size_in_bytes
  return Cost(compiled, seconds, state_bytes, data_bytes, temporary)


def _time_steps(
  program: Any, state: TrainState, feed: Feed, count: int
) -> tuple[TrainState, float]:
  """Runs a compiled chunk; returns the state and the seconds of one step."""
  data, number = feed.next(count), jax.device_put(np.int32(count))
  begin = time.perf_counter()
  state, *_ = jax.block_until_ready(program(state, data, number))
  return state, (time.perf_counter() - begin) / count


def _zero_state(plan: Plan) -> TrainState:
  """Returns a state of the right shapes, without the work of a start."""
  sparsity = sparsity_settings(plan.config)
  sparsity = sparsity._replace(start="base", distribution="uniform")
  state = jax.eval_shape(
    lambda: create_train_state(
      jax.random.key(0), sparsity=sparsity, recipe=plan.recipe
    )._replace(key=None)
  )
  state = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), state)
  states = [state._replace(key=jax.random.key(s)) for s in seeds_of(plan.config)]
  return states[0] if len(states) == 1 else stack_seeds(states)


def _bytes(tree: Any) -> int:
  """Bytes on the first device of this process."""
  leaves = [_bits(leaf) for leaf in jax.tree.leaves(tree)]
  return sum(leaf.addressable_shards[0].data.nbytes for leaf in leaves)


def _bits(leaf: jax.Array) -> jax.Array:
  is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
  return jax.random.key_data(leaf) if is_key else leaf


def _megabytes(count: int | None) -> str:
  return "unknown" if count is None else f"{count / 2**20:,.1f} MiB a device"


def _duration(seconds: float) -> str:
  minutes, rest = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f"{hours}:{minutes:02}:{rest:02} (h:min:s), evaluation left out"
