"""A run never loses what it had computed, and says what stopped it."""

import gc
import itertools
import logging
import math
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np
import pytest

from tests.train.small import assert_identical, numbers, small, stop_after, train_until
from train.core import loop
from train.core.checkpoints import Checkpoints
from train.core.console import UserError
from train.core.loop import train_and_evaluate
from train.core.metrics import MetricsWriter, open_mirrors, with_spread
from train.core.plan import make_plan
from train.core.state import TrainState
from train.core.workdir import claim_workdir, is_claimed

pytestmark = pytest.mark.usefixtures("module_promotion")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  """An undisturbed run: 3 epochs of 20 steps."""
  return train_and_evaluate(small(), tmp_path_factory.mktemp("finished"))


@pytest.mark.slow
def test_kill_9_changes_nothing(tmp_path):
  fields = {"num_epochs": 12, "steps_per_dispatch": 2, "seeds": (0, 1)}
  fields |= {"optimizer.accumulate": 2, "optimizer.ema": 0.9}
  fields |= {"dynamic.method": "gmp", "dynamic.every": 5, "dynamic.density": 0.05}
  alone = train_and_evaluate(small(**fields), tmp_path / "alone")
  file, workdir = tmp_path / "long.py", tmp_path / "killed"
  file.write_text(
    "from tests.train.small import small\n\n\n"
    f"def get_config():\n  return small(**{fields})\n"
  )
  command = [sys.executable, "-m", "train.run", f"--config={file}", "--quiet"]
  metrics = workdir / "metrics.jsonl"
  for first, last in ((5, 60), (61, 100)):  # of 132 lines
    moment = random.randint(first, last)
    with subprocess.Popen(
      [*command, f"--workdir={workdir}"], cwd=Path(__file__).parents[2]
    ) as process:
      while process.poll() is None:
        if metrics.exists() and metrics.read_bytes().count(b"\n") >= moment:
          process.kill()
        time.sleep(0.005)
    assert process.returncode == -signal.SIGKILL
  resumed = train_and_evaluate(small(**fields), workdir)
  assert_identical(resumed.state, alone.state)
  assert numbers(resumed.curves.records) == numbers(alone.curves.records)


def terminate():
  os.kill(os.getpid(), signal.SIGTERM)


def terminate_while_saving(step, monkeypatch):
  """Sends a SIGTERM when the dispatch that ends at a step was asked for signals."""
  save = Checkpoints.save

  def saving(checkpoints, state, accuracy):
    if int(state.step) == step:
      terminate()
    save(checkpoints, state, accuracy)

  monkeypatch.setattr(Checkpoints, "save", saving)


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["28", "60", "saving 60", "waiting 60"])
def test_sigterm_saves_and_the_same_command_goes_on(
  finished, tmp_path, monkeypatch, moment
):
  before, step = signal.getsignal(signal.SIGTERM), int(moment.split()[-1])
  with monkeypatch.context() as patch:
    if moment == "saving 60":
      terminate_while_saving(step, patch)
    elif moment == "waiting 60":  # for the last write
      wait = Checkpoints.wait
      patch.setattr(Checkpoints, "wait", lambda self: terminate() or wait(self))
    else:
      stop_after(step, terminate, patch)
    with pytest.raises(SystemExit) as stop:
      train_and_evaluate(small(), tmp_path)
  assert stop.value.code == 143
  assert signal.getsignal(signal.SIGTERM) == before
  assert f"{step}" in os.listdir(tmp_path / "checkpoints")
  assert not (tmp_path / "summary.json").exists()
  resumed = train_and_evaluate(small(), tmp_path)
  assert_identical(resumed.state, finished.state)
  assert numbers(resumed.curves.records) == numbers(finished.curves.records)


@pytest.mark.slow
def test_slow_steps_are_dispatched_alone_and_change_no_number(
  finished, tmp_path, monkeypatch
):
  counts, train_chunk = [], loop.train_chunk

  def counted(state, data, count, *args, **options):
    counts.append(int(count))
    return train_chunk(state, data, count, *args, **options)

  monkeypatch.setattr(loop, "train_chunk", counted)
  monkeypatch.setattr(loop, "_SECONDS", 0.0)
  with monkeypatch.context() as patch:  # within the chunk that ends at step 28
    stop_after(27, terminate, patch)
    with pytest.raises(SystemExit):
      train_and_evaluate(small(), tmp_path)
  assert counts == [0] + 27 * [1]
  resumed = train_and_evaluate(small(), tmp_path)
  assert_identical(resumed.state, finished.state)
  found, wanted = (numbers(run.curves.records) for run in (resumed, finished))
  steps = [record["step"] for record in found if record["split"] == "train"]
  assert steps[:6] == [1, 8, 16, 20, 27, 28]
  parts = (27, 28)  # records of the chunk that was stopped
  assert [r for r in found if r["step"] not in parts] == [
    r for r in wanted if r["step"] not in parts
  ]


def interrupted(workdir, monkeypatch, step=48):
  train_until(step, small(), workdir, monkeypatch)
  return workdir / "checkpoints" / "40"


def cut_short(path: Path) -> None:
  for file in path.rglob("*"):
    if file.is_file():
      file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip_a_bit(path: Path) -> None:
  files = [p for p in (path / "state").rglob("*") if p.is_file() and "/d/" in str(p)]
  largest = max(files, key=lambda file: file.stat().st_size)
  content = bytearray(largest.read_bytes())
  content[len(content) // 2] ^= 1
  largest.write_bytes(content)


def lose_a_file(path: Path) -> None:
  (path / "state" / "_METADATA").unlink()
  (path / "state" / "manifest.ocdbt").unlink()


# Orbax leaves the other reads of a checkpoint behind when one of them fails.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("damage", [cut_short, flip_a_bit, lose_a_file])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(
  finished, tmp_path, monkeypatch, damage, caplog
):
  damage(interrupted(tmp_path, monkeypatch))
  with caplog.at_level(logging.WARNING, logger="train"):
    resumed = train_and_evaluate(small(), tmp_path)
  gc.collect()
  assert "the checkpoint of step 40 is damaged" in caplog.text
  assert (tmp_path / "damaged" / "40" / "state").is_dir()
  assert_identical(resumed.state, finished.state)
  assert numbers(resumed.curves.records) == numbers(finished.curves.records)


@pytest.mark.slow
def test_a_half_written_checkpoint_is_not_read(finished, tmp_path, monkeypatch):
  whole = interrupted(tmp_path, monkeypatch)
  whole.rename(whole.with_name("60.orbax-checkpoint-tmp-1"))
  resumed = train_and_evaluate(small(), tmp_path)
  assert_identical(resumed.state, finished.state)


def state_of(step):
  return TrainState(
    jnp.int32(step),
    {"w": jnp.full((4,), step, jnp.bfloat16)},
    {},
    {},
    jax.random.key(0),
    {},
  )


def test_the_newest_and_the_best_are_kept(tmp_path):
  accuracies = enumerate((0.1, 0.9, 0.2, 0.3, 0.4), 1)
  for part in (3, 2):  # interrupted after step 3: the best stays known
    with Checkpoints(tmp_path / "all", keep=2, keep_best=1) as checkpoints:
      for step, accuracy in itertools.islice(accuracies, part):
        checkpoints.save(state_of(step), accuracy)
  assert sorted(os.listdir(tmp_path / "all")) == ["2", "4", "5"]
  with Checkpoints(tmp_path / "all", keep=2) as checkpoints:
    found = checkpoints.restore(state_of(0))
  assert int(found.step) == 5 and found.params["w"].dtype == jnp.bfloat16
  assert jnp.issubdtype(found.key.dtype, jax.dtypes.prng_key)
  with Checkpoints(tmp_path / "all", read_only=True) as checkpoints:
    for which, step in (("best", 2), ("last", 5), ("4", 4)):
      assert int(checkpoints.restore_one(which, state_of(0)).step) == step
    with pytest.raises(UserError, match="one of last, best, 2, 4, 5, got '3'"):
      checkpoints.restore_one("3", state_of(0))


def test_what_was_not_evaluated_is_never_the_best(tmp_path):
  with Checkpoints(tmp_path / "all", keep=9) as checkpoints:
    for step, accuracy in ((1, 0.2), (2, None), (3, None)):
      checkpoints.save(state_of(step), accuracy)
  shutil.copytree(tmp_path / "all", tmp_path / "none")
  # Continued, as after a kill: what is not to be kept goes.
  with Checkpoints(tmp_path / "all", keep=1, keep_best=1) as checkpoints:
    for which in ("best", None):
      assert int(checkpoints.restore_one(which, state_of(0)).step) == 1
    checkpoints.save(state_of(4), None)
  assert sorted(os.listdir(tmp_path / "all")) == ["1", "4"]
  shutil.rmtree(tmp_path / "none" / "1")
  with (
    Checkpoints(tmp_path / "none", read_only=True) as checkpoints,
    pytest.raises(UserError, match="of last, 2, 3, got 'best': no held-out accuracy"),
  ):
    assert int(checkpoints.restore_one(None, state_of(0)).step) == 3
    checkpoints.restore_one("best", state_of(0))


@pytest.mark.slow
def test_a_full_disk_leaves_the_last_checkpoint_whole(tmp_path):
  large = state_of(2)._replace(
    params={"w": jax.random.normal(jax.random.key(0), 10**6)}
  )
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  like = state_of(0)._replace(params={"w": jnp.zeros(10**6)})
  words = r"cannot write a checkpoint .*last is of step 1"

  def fill(checkpoints):
    checkpoints.save(large._replace(step=jnp.int32(1)), 0.0)
    checkpoints.wait()
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
      checkpoints.save(large, 0.0)
      checkpoints.wait()
    finally:
      resource.setrlimit(resource.RLIMIT_FSIZE, limits)

  with (
    pytest.raises(UserError, match=words),
    Checkpoints(tmp_path / "all", keep=2) as checkpoints,
  ):
    fill(checkpoints)
  with Checkpoints(tmp_path / "all", keep=2) as checkpoints:
    found = checkpoints.restore(like)
  assert int(found.step) == 1
  np.testing.assert_array_equal(found.params["w"], large.params["w"])


def test_metrics_on_a_full_disk_are_an_error(tmp_path):
  words = r"cannot write .*metrics\.jsonl: No space left"
  with MetricsWriter(tmp_path / "metrics.jsonl", None) as metrics:
    place = metrics._file.fileno()
    good, full = os.dup(place), os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, place)
    with pytest.raises(UserError, match=words):
      metrics.write({"step": 1})
    os.dup2(good, place)
    os.close(good)
    os.close(full)


def test_two_runs_in_one_workdir_are_refused(tmp_path):
  with claim_workdir(tmp_path, small()):
    assert is_claimed(tmp_path)
    with pytest.raises(UserError, match=rf"in use by process {os.getpid()} "):
      train_and_evaluate(small(), tmp_path)
  assert not is_claimed(tmp_path)
  with claim_workdir(tmp_path, small()):
    pass


@pytest.mark.slow
def test_a_diverging_run_names_step_seed_and_leaves(tmp_path):
  words = r"loss is nan after step \d+ .* for seed 0, 7; norms: .*kernel nan.* no check"
  fields = {"optimizer.learning_rate": 1e10, "seeds": (0, 7)}
  with pytest.raises(UserError, match=words):
    train_and_evaluate(small(**fields), tmp_path)


def test_only_the_seed_that_diverged_is_named():
  record = {name: math.nan for name in ("loss", "grad_norm", "update_norm")}
  record |= {"param_norm": 1.0, "step": 3, "epoch": 0.5}
  record["seeds"] = {name: [1.0, math.inf] for name in record}
  config = small(seeds=(4, 5))
  with pytest.raises(UserError, match=r"for seed 5; norms: w 4.*checkpoint is of s"):
    loop.check_finite(record, state_of(2), config, 2)


@pytest.mark.slow
def test_a_dead_weight_that_moves_is_a_defect(finished):
  state = finished.state
  params = jax.tree.map(lambda leaf: leaf + 1, state.params)
  with pytest.raises(RuntimeError, match=r"not zero at step 60: \d+ of hidden/dense/k"):
    loop.check_weights(state._replace(params=params))
  live = sum(int(mask.sum()) for mask in jax.tree.leaves(state.masks))
  assert loop.check_weights(state) == live


@pytest.mark.slow
def test_in_steady_state_nothing_compiles_and_nothing_is_transferred(
  tmp_path, monkeypatch
):
  compiled, guarded, train_chunk = [], [], loop.train_chunk

  def listen(event, duration, **kwargs):
    del duration, kwargs
    if event.endswith("backend_compile_duration"):
      compiled.append(len(guarded))

  def guard(*args, recipe):
    with jax.transfer_guard("disallow"):
      guarded.append(True)
      return train_chunk(*args, recipe=recipe)

  monkeypatch.setattr(loop, "train_chunk", guard)
  monkeypatch.setattr(loop, "_SECONDS", 1e9)
  jax.monitoring.register_event_duration_secs_listener(listen)
  try:
    train_and_evaluate(small(**{"model.width": 48}), tmp_path)
  finally:
    jax.monitoring.unregister_event_duration_listener(listen)
  # Compilation, the first step, 3 epochs that end after 8, 16 and 20 steps.
  assert len(guarded) == 1 + 1 + 3 * 3
  assert compiled and max(compiled) <= 5  # with the first epoch, its end included


def test_norms_and_rates_are_logged(finished):
  records = [r for r in finished.curves.records if r["split"] == "train"]
  for record in records:
    assert record["grad_norm"] > 0 and record["steps_per_second"] > 0
    assert 0 < record["update_norm"] < record["param_norm"]
  norm = math.sqrt(
    sum(float((x**2).sum()) for x in jax.tree.leaves(finished.state.params))
  )
  assert records[-1]["param_norm"] == pytest.approx(norm, rel=1e-5)


def test_event_files_hold_the_metrics(tmp_path):
  pytest.importorskip("tensorboardX", reason="tensorboardX is not installed")
  config = small(tensorboard=True)
  mirrors = open_mirrors(config, tmp_path, None)
  with MetricsWriter(tmp_path / "metrics.jsonl", None, mirrors=mirrors) as metrics:
    values = with_spread({"loss": [1.0, 3.0]}, several=True)
    assert values["loss"] == 2 and values["loss_std"] == pytest.approx(math.sqrt(2))
    metrics.write({"step": 5, "split": "train", **values})
  (file,) = (tmp_path / "tensorboard").iterdir()
  content = file.read_bytes()
  assert b"train/loss" in content and b"train/loss_std" in content


@pytest.mark.slow
def test_a_dry_run_leaves_nothing(tmp_path, monkeypatch):
  from train.analysis import dry_run

  monkeypatch.chdir(tmp_path)
  text = dry_run.dry_run(small(seeds=(1, 2)))
  assert not list(tmp_path.iterdir())
  for words in ("hidden/dense/kernel", "60, 20 an epoch", "MiB a device", "of a step"):
    assert words in text
  state = dry_run.measure(make_plan(small())).state_bytes
  weights = 4 * (64 * 64 + 64) + 64 * 10 + 10
  kernels = weights - 4 * 64 - 10
  assert state == pytest.approx(2 * 4 * weights + kernels, abs=64)
