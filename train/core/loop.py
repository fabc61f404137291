"""One training run from start to summary, or several compared: the host's part.

The host sees a run as chunks of compiled steps, each with a record; where steps are
slow a chunk is dispatched in pieces, so that progress is seen and a run can be stopped.
The host logs, evaluates and saves between them; nothing that it does changes a number
of the training.
"""

import contextlib
import json
import math
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from eoi_jax.layouts import named_leaves
from train.core import config as config_lib
from train.core import figures, mesh, summaries
from train.core.checkpoints import Checkpoints
from train.core.console import Progress, UserError, logger, paint, table
from train.core.metrics import MetricsWriter, check_mirrors, open_mirrors, with_spread
from train.core.optimizers import count_moved, learning_rate
from train.core.plan import Feed, Plan, like_start, make_plan, seeds_of, start_state
from train.core.saved import restore_saved, saved_config
from train.core.start import sparsity_settings
from train.core.state import Recipe, TrainState, copy, take_seed
from train.core.steps import Sums, count_weights, evaluate, train_chunk, zero_sums
from train.core.unread import warn_of_unread
from train.core.workdir import append_record, claim_workdir, replace_text
from train.models.blocks import named_layouts

_SECONDS = 2.0  # of a dispatch, where steps are slow


class Result(NamedTuple):
  """What a finished run leaves in memory."""

  state: TrainState  # the last state; with `config.seeds`, of all of them
  summary: dict[str, Any]  # what `summary.json` holds
  curves: figures.Curves  # records, summary and a kernel's support, for figures


def train_or_compare(config: Any, workdir: str | Path) -> dict[str, dict[str, Any]]:
  """Trains what a config asks for, and prints and saves the outcome.

  If `config.compare` names a field, the network is trained once for each of its
  values; each run has a directory of its own in `workdir` and is what it would be
  alone. `summary.json` and `figure.png` of `workdir` then show all of them.

  The config is checked, all of it, before anything is compiled; unfinished runs in
  `workdir` continue. Returns the summary of each run by name.

  Raises:
    UserError: see `train_and_evaluate`.
  """
  workdir = Path(workdir)
  config_lib.validate(config)
  runs = [(*run, make_plan(run[-1])) for run in _runs(config, workdir)]
  if mesh.is_primary():
    warn_of_unread(one for _, _, one, _ in runs)
  claim: Any = contextlib.nullcontext()
  if config.compare.field:
    claim = mesh.primary_context(claim_workdir, workdir, config)
  with claim:
    results = {
      name: train_and_evaluate(one, place, name=name, plan=plan)
      for name, place, one, plan in runs
    }
    if config.compare.field:
      by_value = {place.name: results[name].summary for name, place, *_ in runs}
      curves = {name: result.curves for name, result in results.items()}
      _write_outcome(workdir, config, {"runs": by_value}, curves)
  by_name = {name: result.summary for name, result in results.items()}
  if mesh.is_primary():
    head, _, rest = summaries.summary_table(by_name).partition("\n")
    print(f"\n{paint(head, 'bold', sys.stdout)}\n{rest}")
    print(f"\n  figure: {workdir / 'figure.png'}")
  return by_name


def _write_outcome(workdir: Path, config: Any, summary: Any, curves: Any) -> None:
  if mesh.is_primary():
    replace_text(workdir / "summary.json", json.dumps(summary, indent=2) + "\n")
    figure = figures.draw_runs(curves, summaries.title(config))
    figure.savefig(workdir / "figure.png", dpi=150)


def _runs(config: Any, workdir: Path) -> list[tuple[str, Path, Any]]:
  """Name, directory and config of each run that a config asks for."""
  field, runs = config.compare.field, config_lib.expand(config)
  if not field:
    return [(f"{config.sparsity.start} start", workdir, config)]
  return [(config_lib.label(field, x), workdir / x, one) for x, one in runs.items()]


def train_and_evaluate(
  config: Any, workdir: str | Path, *, name: str | None = None, plan: Plan | None = None
) -> Result:
  """Trains one network, or continues where an earlier call was stopped.

  Leaves in `workdir`: `config.json`, `environment.jsonl`, `start.json`,
  `metrics.jsonl`, `checkpoints/`, `summary.json`, `figure.png`. With several processes,
  all of them call this with the same arguments, and `workdir` is one that all can
  reach.

  Args:
    config: a config that compares nothing (`train_or_compare` does).
    workdir: the directory of this run.
    name: what to call the run in progress and figures; its start by default.
    plan: the plan of `config`, if the caller has made it.

  Returns:
    The result; parameters are the same to the last bit, interrupted or not.

  Raises:
    UserError: see `make_plan`; if `workdir` belongs to another config or process; if
      a number is no longer finite, or a file cannot be written.
    SystemExit: after a SIGTERM, when the state is saved.
  """
  workdir, name = Path(workdir), name or f"{config.sparsity.start} start"
  plan = plan or make_plan(config)
  check_mirrors(config)
  with (
    mesh.primary_context(claim_workdir, workdir, config),
    Checkpoints(
      workdir / "checkpoints", keep=config.keep_checkpoints, keep_best=config.keep_best
    ) as checkpoints,
  ):
    state, at_start = _restore_or_start(plan, workdir, checkpoints, name)
    newest, primary = checkpoints.newest, mesh.is_primary()
    mirrors = open_mirrors(config, workdir, newest) if primary else []
    with MetricsWriter(
      workdir / "metrics.jsonl", newest, primary=primary, mirrors=mirrors
    ) as metrics:
      run = _Run(plan, Feed(plan, int(state.step)), metrics, checkpoints, name)
      state, seconds = _train(run, state)
      summary = at_start.summary | seconds | _test(run, state)
      if plan.recipe.dynamic.method != "static":
        first = take_seed(state, 0)
        summary |= summaries.count_live(first.params, first.masks, plan.recipe.model)
    curves = figures.Curves(metrics.records, summary, at_start.support)
    _write_outcome(workdir, config, summary, {name: curves})
  return Result(state, summary, curves)


def evaluate_saved(
  config: Any, workdir: str | Path, which: str
) -> list[dict[str, Any]]:
  """Evaluates a checkpoint, of a finished run or of one that is being trained.

  Nothing is trained, and no file of the run changes: the records, one for each run that
  the config compares and for each split, are appended to `evaluations.jsonl` of the
  run, printed and returned.

  Raises:
    UserError: if there is no such run or checkpoint, or the run is of another config in
      fields that an evaluation depends on.
  """
  config_lib.validate(config)
  records, rows = [], [("", "step", "split", "loss", "accuracy")]
  for name, place, one in _runs(config, Path(workdir)):
    plan = make_plan(saved_config(place, one))
    state, feed = restore_saved(plan, place, which), Feed(plan, None)
    for split in feed.splits:
      values = _evaluate(plan, feed, state, split)
      record = {"step": int(state.step), "split": split, "checkpoint": which}
      record |= with_spread(values, several=bool(plan.config.seeds))
      shown = (f"{record['loss']:.4f}", f"{record['accuracy']:.2%}")
      rows.append((name, f"{record['step']:,}", split, *shown))
      records.append(record)
      if mesh.is_primary():
        append_record(place / "evaluations.jsonl", record)
  if mesh.is_primary():
    print(table(rows))
  return records


def _restore_or_start(
  plan: Plan, workdir: Path, checkpoints: Checkpoints, name: str
) -> tuple[TrainState, summaries.AtStart]:
  """Reads the newest state and what was known at step 0, or computes the start."""
  placement, path = plan.recipe.placement, workdir / "start.json"
  state: Any = None
  if checkpoints.found():
    state = checkpoints.restore(mesh.place_like(like_start(plan), placement))
  at_start: Any = None if state is None else summaries.read_start(path)
  if not mesh.agree(at_start is not None):
    first = start_state(plan)
    mesh.check_equal_masks(named_leaves(first.masks))
    scale = sparsity_settings(plan.config).scale
    at_start = summaries.describe_start(
      plan.config, take_seed(first, 0), scale, plan.recipe
    )
    if mesh.is_primary():
      replace_text(path, summaries.start_json(at_start))
    if state is None:
      state = mesh.put_state(first, placement)
  logger.info("%s:\n%s", paint(name, "bold", sys.stderr), at_start.table)
  if checkpoints.newest is not None:
    logger.info("continuing from the checkpoint of step %d", checkpoints.newest)
  assert state is not None
  return state, at_start


class _Run(NamedTuple):
  """What stays the same while a training run proceeds."""

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
  nothing = _Covered(zero_sums(state.key.shape))
  if step < recipe.num_steps:  # compile, by a chunk of no step
    begin = time.perf_counter()
    count, data = jax.device_put(np.int32(0)), run.feed.nothing()
    sums = mesh.put_whole(nothing.sums, recipe.placement)
    state, *_ = train_chunk(state, data, count, sums, recipe=recipe)
    jax.block_until_ready(state)
    compile_seconds = time.perf_counter() - begin
  untrained: TrainState | None = None
  if not run.metrics.records:
    if step < recipe.num_steps:
      # Users wait for the first step: the state before it is evaluated after it.
      untrained = copy(state)
    else:
      run.metrics.write(_evaluation(run, state, step))
  progress = Progress(run.name, step, recipe.num_steps, config.num_epochs)
  first, last = config.profile or (0, 0)
  covered, most, trace = nothing, 1, contextlib.ExitStack()
  with progress, trace, mesh.Preemption() as preemption:
    while step < recipe.num_steps:
      left = _count(run, step)
      count = min(left, most)
      if step < last and first <= step + count:  # profile these steps and their chunks
        place = run.metrics.path.with_name("profile")
        trace.callback(logger.info, "wrote a trace to %s", place)
        trace.enter_context(jax.profiler.trace(place))
        first = recipe.num_steps + 1  # once
      state, covered, record = _dispatch(run, state, step, count, covered)
      if step + count >= last:
        trace.close()
      check_finite(record, state, config, run.checkpoints.newest)
      if untrained is not None:
        progress.update(record)
        with progress.paused():
          run.metrics.write(_evaluation(run, untrained, int(untrained.step)))
        untrained = None
      step, most = record["step"], max(1, int(_SECONDS * record["steps_per_second"]))
      if jax.process_count() > 1:  # they dispatch whole chunks together
        most = recipe.num_steps
      leave = preemption.reached(step) and step < recipe.num_steps
      if count < left and not leave:
        progress.update(record)
        continue
      run.metrics.write(record)
      covered = nothing
      if _due(config.eval_every, step, recipe):
        run.metrics.write(_evaluation(run, state, step))
        progress.update(run.metrics.records[-1])
      progress.update(record)
      if leave or _due(config.checkpoint_every, step, recipe):
        found = run.metrics.last("validation") or {}  # no "monitor": it is the test set
        evaluated = found.get("step") == step
        run.checkpoints.save(state, found["accuracy"] if evaluated else None)
      if leave:
        break
    run.checkpoints.wait()
    if preemption.noticed:  # also while the last step was evaluated and saved
      logger.warning(
        "stopped by SIGTERM after step %d, which is saved; the same command continues.",
        step,
      )
      raise SystemExit(mesh.EXIT_STATUS)
  times = {"train_seconds": run.seconds, "compile_seconds": compile_seconds}
  return state, times


def _due(every: int, step: int, recipe: Recipe) -> bool:
  """Whether `step` ends the training or an epoch whose number `every` divides."""
  epoch, rest = divmod(step, recipe.steps_per_epoch)
  return step == recipe.num_steps or (rest == 0 and epoch % every == 0)


def _count(run: _Run, step: int) -> int:
  """Steps of the next chunk; they end after 1 and as `steps_per_dispatch` says."""
  size, length = run.plan.config.steps_per_dispatch, run.plan.recipe.steps_per_epoch
  done = step % length
  return min(size - done % size, length - done) if step else 1


class _Covered(NamedTuple):
  """What the next record covers so far; its sums are on the host."""

  sums: Sums
  steps: int = 0
  seconds: float = 0.0


def _dispatch(
  run: _Run, state: TrainState, step: int, count: int, covered: _Covered
) -> tuple[TrainState, _Covered, dict[str, Any]]:
  """Does `count` steps; returns the state, what a record covers, and the record."""
  recipe = run.plan.recipe
  begin = time.perf_counter()
  data, number = run.feed.next(count), jax.device_put(np.int32(count))
  sums = mesh.put_whole(covered.sums, recipe.placement)
  state, sums, norms = train_chunk(state, data, number, sums, recipe=recipe)
  sums, norms = jax.device_get((sums, norms))  # waits for the device
  elapsed = covered.seconds + time.perf_counter() - begin
  covered = _Covered(sums, covered.steps + count, elapsed)
  values = _means(sums) | {f"{name}_norm": x for name, x in norms._asdict().items()}
  values |= jax.device_get(count_moved(state))
  step += count
  record = run.record(
    step,
    "train",
    values,
    learning_rate=float(learning_rate(recipe.optimizer, recipe.num_steps, step - 1)),
    steps_per_second=covered.steps / elapsed,
    seconds=run.seconds + elapsed,
  )
  return state, covered, record


def _evaluation(run: _Run, state: TrainState, step: int) -> dict[str, Any]:
  """Returns the record of the held-out split; of the test set if none is held out."""
  live = check_weights(state) // len(seeds_of(run.plan.config))
  if state.averages is not None:
    check_weights(state.evaluated)
  held_out = "validation" in run.feed.splits
  name, split = ("validation",) * 2 if held_out else ("monitor", "test")
  return run.record(
    step, name, _evaluate(run.plan, run.feed, state, split), live_weights=live
  )


def _test(run: _Run, state: TrainState) -> dict[str, Any]:
  """Writes the record of the test set; returns its part of the summary."""
  values = _evaluate(run.plan, run.feed, state, "test")
  run.metrics.write(run.record(int(state.step), "test", values))
  found = with_spread(values, several=bool(run.plan.config.seeds))
  found |= {f"{name}_seeds": each for name, each in found.pop("seeds", {}).items()}
  return {f"test_{name}": value for name, value in found.items()}


def _evaluate(plan: Plan, feed: Feed, state: TrainState, split: str) -> dict[str, Any]:
  """Returns mean loss and accuracy over a split, of each seed.

  With running means of the parameters they are those of the means; those of the
  parameters themselves are `raw_loss` and `raw_accuracy`.
  """
  named = {"": state.evaluated}
  if state.averages is not None:
    named["raw_"] = state
  parts = [
    [evaluate(one, data, size, recipe=plan.recipe) for one in named.values()]
    for data, size in feed.evaluated(split)
  ]
  values = {}
  for prefix, *sums in zip(named, *jax.device_get(parts), strict=True):
    total = jax.tree.map(lambda *each: sum(each), *sums)
    values |= {prefix + name: x for name, x in _means(total).items()}
  return values


def _means(sums: Sums) -> dict[str, Any]:
  return {"loss": sums.loss / sums.count, "accuracy": sums.correct / sums.count}


_FINITE = ("loss", "grad_norm", "update_norm", "param_norm")
_SHOWN = 6  # leaves in a message


def check_finite(
  record: dict[str, Any], state: TrainState, config: Any, last_step: int | None
) -> None:
  """Stops the run at the first nan or inf in the loss or in a norm of a record.

  Raises:
    UserError: with step, seeds, norms of the worst leaves of `state`, and `last_step`,
      that of the newest checkpoint, if there is one.
  """
  wrong = [name for name in _FINITE if not math.isfinite(record[name])]
  if not wrong:
    return
  seeds = ""
  if config.seeds:
    lists = [record["seeds"][name] for name in wrong]
    numbers = zip(config.seeds, *lists, strict=True)
    bad = [str(seed) for seed, *row in numbers if not all(map(math.isfinite, row))]
    seeds = f" for seed {', '.join(bad)}"
  kept = "there is no checkpoint yet"
  if last_step is not None:
    kept = f"the last good checkpoint is of step {last_step}"
  leaves = named_leaves(state.params).items()
  norms = [(float(jnp.linalg.norm(leaf.reshape(-1))), name) for name, leaf in leaves]
  norms.sort(key=lambda pair: (math.isfinite(pair[0]), -pair[0]))  # the worst first
  shown = ", ".join(f"{name} {norm:.3g}" for norm, name in norms[:_SHOWN])
  raise UserError(
    f"the {wrong[0].replace('_', ' ')} is {record[wrong[0]]} after step "
    f"{record['step']} (epoch {record['epoch']:.1f}){seeds}; norms: {shown}; {kept}; "
    f"lower `optimizer.learning_rate` (now {config.optimizer.learning_rate}) and "
    "choose another --workdir."
  )


def check_weights(state: TrainState) -> int:
  """Makes sure that every dead weight is exactly zero.

  Returns the number of live weights of masks and blocks, of all seeds together.

  Raises:
    RuntimeError: naming the leaves; it is a defect of the program.
  """
  live, revived = map(int, jax.device_get(count_weights(state)))
  if revived:
    masks = named_leaves(state.masks)
    found = {
      name: np.count_nonzero(np.asarray(leaf)[~np.asarray(masks[name])])
      for name, leaf in named_leaves(state.params).items()
      if masks.get(name) is not None
    }
    wrong = ", ".join(f"{number} of {name}" for name, number in found.items() if number)
    raise RuntimeError(f"dead weights are not zero at step {state.step}: {wrong}.")
  blocks = named_layouts(state.layouts).values()
  return live + sum(layout.num_weights for layout in blocks)
