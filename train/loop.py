"""One training from start to summary: the host's part.

The host sees a run as chunks of compiled steps. It logs, evaluates and saves between
them; nothing that it does changes a number of the training.
"""

import functools
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from train import config as config_lib
from train import figures, summaries
from train.checkpoints import Checkpoints, claim_workdir, replace_text
from train.data import DATASETS, Dataset, load_dataset
from train.errors import UserError
from train.gains import gains
from train.metrics import MetricsWriter
from train.models import create_model
from train.optimizers import create_schedule
from train.progress import Progress, logger
from train.schemes import create_masks
from train.state import (
  Recipe,
  TrainState,
  create_train_state,
  optimizer_settings,
  sparsity_settings,
)
from train.steps import Sums, evaluate, train_chunk


class Plan(NamedTuple):
  """A checked config with its data, ready to train.

  Attributes:
    config: the config.
    dataset: the splits, in host memory until the training begins.
    recipe: the static part of the compiled program.
  """

  config: Any
  dataset: Dataset
  recipe: Recipe


class Result(NamedTuple):
  """What a finished run leaves in memory.

  Attributes:
    state: the last state.
    summary: what `summary.json` holds.
    curves: records, summary and a kernel's support, for figures.
  """

  state: TrainState
  summary: dict[str, Any]
  curves: figures.Curves


_load_dataset = functools.lru_cache(maxsize=1)(load_dataset)  # runs share it


def make_plan(config: Any) -> Plan:
  """Checks a config against the data set and the network, without compiling.

  Raises:
    UserError: if a field is wrong, the data set is missing, the batch larger than the
      training set, or a kernel cannot have its density.
  """
  config_lib.validate(config)
  spec = DATASETS[config.data.name]
  sparsity = sparsity_settings(config)
  try:
    model = create_model(config, spec.num_classes, bias_std=gains(config).bias_std)
    recipe = Recipe(model, spec, optimizer_settings(config), config.batch_size, 0, 1)
    recipe = recipe._replace(augment=config.data.augment)
    if not sparsity.needs_masks:
      jax.eval_shape(
        lambda: create_train_state(jax.random.key(0), sparsity=sparsity, recipe=recipe)
      )
  except ValueError as error:
    raise UserError(str(error)) from error
  dataset = _load_dataset(config.data.name, validation=config.data.validation)
  if config.data.limit:
    dataset = _map_splits(lambda array: array[: config.data.limit], dataset)
  size = len(dataset.train.labels)
  if config.batch_size > size:
    raise UserError(
      f"`batch_size` must be at most the {size} training examples of "
      f"{config.data.name!r}, got {config.batch_size}."
    )
  steps_per_epoch = size // config.batch_size
  num_steps = steps_per_epoch * config.num_epochs
  recipe = recipe._replace(steps_per_epoch=steps_per_epoch, num_steps=num_steps)
  return Plan(config, dataset, recipe)


def _map_splits(function: Callable[[Any], Any], dataset: Dataset) -> Dataset:
  """Applies a function to the images and the labels of every split."""
  splits = (dataset.train, dataset.validation, dataset.test)
  return Dataset(dataset.spec, *jax.tree.map(function, splits))


def start_state(plan: Plan) -> TrainState:
  """Returns the state at step 0, a function of the config alone.

  Raises:
    UserError: if a kernel cannot have its density, or its mask no such start.
  """
  key, masks = jax.random.key(plan.config.seed), None
  sparsity = sparsity_settings(plan.config)
  settings: dict[str, Any] = {"sparsity": sparsity, "recipe": plan.recipe}
  try:
    if sparsity.needs_masks:
      masks = create_masks(key, data=plan.dataset.train, **settings)
    return create_train_state(key, masks=masks, **settings)
  except ValueError as error:
    raise UserError(str(error)) from error


def train_and_evaluate(
  config: Any, workdir: str | Path, *, name: str | None = None
) -> Result:
  """Trains one network, or goes on where an earlier call was stopped.

  Leaves in `workdir`: `config.json`, `environment.jsonl`, `metrics.jsonl`,
  `checkpoints/`, `summary.json`, `figure.png`.

  Args:
    config: a config that compares nothing (`train.compare` does).
    workdir: the directory of this run.
    name: what to call the run in progress and figures; its start by default.

  Returns:
    The result; parameters are the same to the last bit, interrupted or not.

  Raises:
    UserError: see `make_plan`; if `workdir` belongs to another config; or if the
      loss is no longer finite.
  """
  workdir, name = Path(workdir), name or f"{config.sparsity.start} start"
  plan = make_plan(config)
  claim_workdir(workdir, config)
  state = start_state(plan)
  plan = plan._replace(dataset=_map_splits(jax.device_put, plan.dataset))
  layers = summaries.describe(
    state.params, state.masks, gains(config).scale, plan.recipe.model
  )
  support = summaries.pick_support(state.params, state.masks, layers)
  summary = summaries.summarize(config, state.params, layers)
  logger.info("%s:\n%s", name, summaries.layer_table(layers))
  with Checkpoints(workdir / "checkpoints", config.keep_checkpoints) as checkpoints:
    restored = checkpoints.restore(state)
    resume_step = None if restored is None else int(restored.step)
    with MetricsWriter(workdir / "metrics.jsonl", resume_step) as metrics:
      state = state if restored is None else restored
      if resume_step is not None:
        logger.info("going on from the checkpoint of step %d", resume_step)
      state, seconds = _train(plan, state, metrics, checkpoints, name)
      summary |= seconds | _test(plan, state, metrics)
  curves = figures.Curves(metrics.records, summary, support)
  replace_text(workdir / "summary.json", json.dumps(summary, indent=2) + "\n")
  figures.plot_runs(workdir / "figure.png", {name: curves}, summaries.title(config))
  return Result(state, summary, curves)


def _train(
  plan: Plan,
  state: TrainState,
  metrics: MetricsWriter,
  checkpoints: Checkpoints,
  name: str,
) -> tuple[TrainState, dict[str, float]]:
  """Runs all remaining steps; returns the last state and the times."""
  config, recipe = plan.config, plan.recipe
  step, compile_seconds = int(state.step), 0.0
  if step < recipe.num_steps:
    begin = time.perf_counter()
    state, _ = train_chunk(  # compiles
      state, plan.dataset.train, jnp.int32(0), recipe=recipe
    )
    jax.block_until_ready(state)
    compile_seconds = time.perf_counter() - begin
  if not metrics.records:
    metrics.write(_evaluation(plan, state, step))
  with Progress(name, step, recipe.num_steps, config.num_epochs) as progress:
    while step < recipe.num_steps:
      state, record = _chunk(plan, state, step, _seconds(metrics))
      _check_finite(record, config)
      metrics.write(record)
      step = record["step"]
      if _due(config.eval_every, step, recipe):
        metrics.write(_evaluation(plan, state, step))
        progress.update(metrics.records[-1])
      progress.update(record)
      if _due(config.checkpoint_every, step, recipe):
        checkpoints.save(state)
  times = {"train_seconds": _seconds(metrics), "compile_seconds": compile_seconds}
  return state, times


def _seconds(metrics: MetricsWriter) -> float:
  last = metrics.last("train")
  return 0.0 if last is None else last["seconds"]


def _due(every: int, step: int, recipe: Recipe) -> bool:
  """Whether `step` ends the training or an epoch whose number `every` divides."""
  epoch, rest = divmod(step, recipe.steps_per_epoch)
  return step == recipe.num_steps or (rest == 0 and epoch % every == 0)


def _chunk(
  plan: Plan, state: TrainState, step: int, seconds: float
) -> tuple[TrainState, dict[str, Any]]:
  """Dispatches one chunk, up to the end of the epoch; returns state and record."""
  recipe = plan.recipe
  left = recipe.steps_per_epoch - step % recipe.steps_per_epoch
  count = min(plan.config.steps_per_dispatch, left)
  begin = time.perf_counter()
  data = plan.dataset.train
  state, sums = train_chunk(state, data, jnp.int32(count), recipe=recipe)
  means = _means(sums)  # waits for the device
  elapsed = time.perf_counter() - begin
  step += count
  schedule = create_schedule(recipe.optimizer, recipe.num_steps)
  return state, {
    "step": step,
    "epoch": step / recipe.steps_per_epoch,
    "split": "train",
    **means,
    "learning_rate": float(jnp.asarray(schedule(step - 1))),
    "steps_per_second": count / elapsed,
    "seconds": seconds + elapsed,
  }


def _evaluation(plan: Plan, state: TrainState, step: int) -> dict[str, Any]:
  """Returns the record of the held-out split; of the test set if none is held out."""
  held_out, name = plan.dataset.validation, "validation"
  if held_out is None:
    held_out, name = plan.dataset.test, "monitor"
  sums = evaluate(state.params, state.batch_stats, held_out, recipe=plan.recipe)
  epoch = step / plan.recipe.steps_per_epoch
  return {"step": step, "epoch": epoch, "split": name, **_means(sums)}


def _check_finite(record: dict[str, Any], config: Any) -> None:
  if not math.isfinite(record["loss"]):
    raise UserError(
      f"the loss is {record['loss']} after step {record['step']} (epoch "
      f"{record['epoch']:.1f}); lower `optimizer.learning_rate` (now "
      f"{config.optimizer.learning_rate}) and choose another --workdir."
    )


def _test(plan: Plan, state: TrainState, metrics: MetricsWriter) -> dict[str, float]:
  test = plan.dataset.test
  means = _means(evaluate(state.params, state.batch_stats, test, recipe=plan.recipe))
  epochs = float(plan.config.num_epochs)
  metrics.write({"step": int(state.step), "epoch": epochs, "split": "test", **means})
  return {f"test_{name}": value for name, value in means.items()}


def _means(sums: Sums) -> dict[str, float]:
  count = int(sums.count)
  return {"loss": float(sums.loss) / count, "accuracy": int(sums.correct) / count}
