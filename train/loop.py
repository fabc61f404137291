"""One training from start to summary: the host's part.

The host sees a run as chunks of compiled steps. It logs, evaluates and saves between
them; nothing that it does changes a number of the training.
"""

import json
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from eoi_jax._kernels import named_leaves
from train import figures, mesh, summaries
from train.checkpoints import Checkpoints
from train.dynamic import count_grown
from train.feed import Feed, evaluate_split
from train.gains import gains
from train.metrics import MetricsWriter, check_tensorboard, with_spread
from train.optimizers import create_schedule
from train.plan import Plan, make_plan, seeds_of, start_state
from train.preemption import EXIT_STATUS, Preemption
from train.progress import Progress, logger
from train.seeds import take_seed
from train.state import Recipe, TrainState
from train.steps import Norms, Sums, train_chunk
from train.watch import check_finite, check_weights
from train.workdir import claim_workdir, replace_text


class Result(NamedTuple):
  """What a finished run leaves in memory.

  Attributes:
    state: the last state; with `config.seeds`, of all of them.
    summary: what `summary.json` holds.
    curves: records, summary and a kernel's support, for figures.
  """

  state: TrainState
  summary: dict[str, Any]
  curves: figures.Curves


def train_and_evaluate(
  config: Any, workdir: str | Path, *, name: str | None = None
) -> Result:
  """Trains one network, or goes on where an earlier call was stopped.

  Leaves in `workdir`: `config.json`, `environment.jsonl`, `metrics.jsonl`,
  `checkpoints/`, `summary.json`, `figure.png`. With several processes, all of them
  call this with the same arguments, and `workdir` is one that all can reach.

  Args:
    config: a config that compares nothing (`train.compare` does).
    workdir: the directory of this run.
    name: what to call the run in progress and figures; its start by default.

  Returns:
    The result; parameters are the same to the last bit, interrupted or not.

  Raises:
    UserError: see `make_plan`; if `workdir` belongs to another config or process; if
      a number is no longer finite, or a file cannot be written.
    SystemExit: after a SIGTERM, when the state is saved.
  """
  workdir, name = Path(workdir), name or f"{config.sparsity.start} start"
  plan = make_plan(config)
  if config.tensorboard:
    check_tensorboard()
  with mesh.primary_context(claim_workdir, workdir, config):
    state = start_state(plan)
    mesh.check_equal_masks(named_leaves(state.masks))
    summary, support = _describe(plan, state, name)
    state = mesh.put_state(state, plan.recipe.placement)
    directory, best = workdir / "checkpoints", config.keep_best
    keep = config.keep_checkpoints
    with Checkpoints(directory, keep=keep, keep_best=best) as checkpoints:
      restored = checkpoints.restore(state)
      resume_step = None if restored is None else int(restored.step)
      if resume_step is not None:
        logger.info("going on from the checkpoint of step %d", resume_step)
      with MetricsWriter(
        workdir / "metrics.jsonl",
        resume_step,
        primary=mesh.is_primary(),
        tensorboard=config.tensorboard,
      ) as metrics:
        state = state if restored is None else restored
        run = _Run(plan, Feed(plan, int(state.step)), metrics, checkpoints, name)
        state, seconds = _train(run, state)
        summary |= seconds | _test(run, state)
      checkpoints.wait()
    curves = figures.Curves(metrics.records, summary, support)
    if mesh.is_primary():
      replace_text(workdir / "summary.json", json.dumps(summary, indent=2) + "\n")
      title = summaries.title(config)
      figures.plot_runs(workdir / "figure.png", {name: curves}, title)
  return Result(state, summary, curves)


def _describe(plan: Plan, state: TrainState, name: str) -> tuple[dict[str, Any], Any]:
  """Logs the layers of the first seed; returns the summary so far, and a support."""
  first, scale = take_seed(state, 0), gains(plan.config).scale
  layers = summaries.describe(first.params, first.masks, scale, plan.recipe.model)
  logger.info("%s:\n%s", name, summaries.layer_table(layers))
  support = summaries.pick_support(first.params, first.masks, layers)
  return summaries.summarize(plan.config, first.params, layers), support


class _Run(NamedTuple):
  """What stays the same while a training goes on."""

  plan: Plan
  feed: Feed
  metrics: MetricsWriter
  checkpoints: Checkpoints
  name: str

  def record(self, step: int, split: str, values: dict[str, Any], **rest: Any) -> dict:
    """Returns a record: numbers of each seed, and others that all share."""
    return {
      "step": step,
      "epoch": step / self.plan.recipe.steps_per_epoch,
      "split": split,
      **with_spread(values, several=bool(self.plan.config.seeds)),
      **rest,
    }

  @property
  def seconds(self) -> float:
    """Training time so far, without compilation."""
    last = self.metrics.last("train")
    return 0.0 if last is None else last["seconds"]


def _train(run: _Run, state: TrainState) -> tuple[TrainState, dict[str, float]]:
  """Runs all remaining steps; returns the last state and the times."""
  config, recipe = run.plan.config, run.plan.recipe
  step, compile_seconds = int(state.step), 0.0
  if step < recipe.num_steps:
    state, compile_seconds = _compile(run, state)
  if not run.metrics.records:
    run.metrics.write(_evaluation(run, state, step))
  progress = Progress(run.name, step, recipe.num_steps, config.num_epochs)
  with progress, Preemption() as preemption:
    while step < recipe.num_steps:
      state, record = _chunk(run, state, step)
      check_finite(record, state, config, run.checkpoints.newest)
      run.metrics.write(record)
      step = record["step"]
      if _due(config.eval_every, step, recipe):
        run.metrics.write(_evaluation(run, state, step))
        progress.update(run.metrics.records[-1])
      progress.update(record)
      leave = preemption.reached(step) and step < recipe.num_steps
      if leave or _due(config.checkpoint_every, step, recipe):
        run.checkpoints.save(state, _accuracy(run.metrics))
      if leave:
        _leave(run, step)
  times = {"train_seconds": run.seconds, "compile_seconds": compile_seconds}
  return state, times


def _compile(run: _Run, state: TrainState) -> tuple[TrainState, float]:
  """Runs no step; returns the state and the seconds that it takes to be ready."""
  begin = time.perf_counter()
  count = jax.device_put(np.int32(0))
  state, *_ = train_chunk(state, run.feed.nothing(), count, recipe=run.plan.recipe)
  jax.block_until_ready(state)
  return state, time.perf_counter() - begin


def _leave(run: _Run, step: int) -> None:
  run.checkpoints.wait()
  logger.warning(
    "stopped by SIGTERM after step %d, which is saved; the same command goes on.", step
  )
  raise SystemExit(EXIT_STATUS)


def _accuracy(metrics: MetricsWriter) -> float:
  """The newest accuracy on held-out data."""
  found = metrics.last("validation") or metrics.last("monitor") or {}
  return found.get("accuracy", 0.0)


def _due(every: int, step: int, recipe: Recipe) -> bool:
  """Whether `step` ends the training or an epoch whose number `every` divides."""
  epoch, rest = divmod(step, recipe.steps_per_epoch)
  return step == recipe.num_steps or (rest == 0 and epoch % every == 0)


def _chunk(
  run: _Run, state: TrainState, step: int
) -> tuple[TrainState, dict[str, Any]]:
  """Dispatches one chunk, up to the end of the epoch; returns state and record."""
  recipe = run.plan.recipe
  left = recipe.steps_per_epoch - step % recipe.steps_per_epoch
  count = min(run.plan.config.steps_per_dispatch, left)
  begin = time.perf_counter()
  data, number = run.feed.next(count), jax.device_put(np.int32(count))
  state, sums, norms = train_chunk(state, data, number, recipe=recipe)
  values = _means(sums) | _norms(norms)  # waits for the device
  values |= jax.device_get(count_grown(state.opt_state))
  elapsed = time.perf_counter() - begin
  step += count
  rate = create_schedule(recipe.optimizer, recipe.num_steps)(step - 1)
  record = run.record(
    step,
    "train",
    values,
    learning_rate=float(np.asarray(rate)),
    steps_per_second=count / elapsed,
    seconds=run.seconds + elapsed,
  )
  return state, record


def _evaluation(run: _Run, state: TrainState, step: int) -> dict[str, Any]:
  """Returns the record of the held-out split; of the test set if none is held out."""
  live = check_weights(state) // len(seeds_of(run.plan.config))
  held_out = run.plan.dataset.validation is not None
  name, split = ("validation",) * 2 if held_out else ("monitor", "test")
  sums = evaluate_split(run.feed, state, split, recipe=run.plan.recipe)
  return run.record(step, name, _means(sums), live_weights=live)


def _test(run: _Run, state: TrainState) -> dict[str, Any]:
  """Writes the record of the test set; returns its part of the summary."""
  sums = evaluate_split(run.feed, state, "test", recipe=run.plan.recipe)
  record = run.record(int(state.step), "test", _means(sums))
  run.metrics.write(record)
  found = {
    f"test_{name}": record[name]
    for name in ("loss", "accuracy", "loss_std", "accuracy_std")
    if name in record
  }
  for name, values in record.get("seeds", {}).items():
    found[f"test_{name}_seeds"] = values
  return found


def _means(sums: Sums) -> dict[str, Any]:
  loss, correct, count = jax.device_get(sums)
  return {"loss": loss / count, "accuracy": correct / count}


def _norms(norms: Norms) -> dict[str, Any]:
  grads, updates, params = jax.device_get(norms)
  return {"grad_norm": grads, "update_norm": updates, "param_norm": params}
