"""One device, eight, and two processes of two: the same losses and masks."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import chex
import jax
import numpy as np
import pytest

from eoi_jax import apply_masks
from train.core import mesh
from train.core.checkpoints import Checkpoints
from train.core.command import load_config
from train.core.console import UserError
from train.core.loop import train_and_evaluate

ROOT = Path(__file__).parents[2]
CONFIG = """
from tests.train.small import small

def get_config():
  fields = {"model.depth": 4, "model.width": 128}  # large enough to be split
  return small(steps_per_dispatch=1, **fields, **{"optimizer.ema": 0.9})
"""

pytestmark = pytest.mark.usefixtures("module_promotion")


@pytest.fixture(scope="module")
def file(tmp_path_factory):
  path = tmp_path_factory.mktemp("configs") / "wide.py"
  path.write_text(CONFIG)
  return path


def start(file, workdir, devices, *flags):
  command = [sys.executable, "-m", "train.run", f"--config={file}", "--quiet"]
  return subprocess.Popen(
    [*command, f"--workdir={workdir}", *flags],
    cwd=ROOT,
    env=os.environ | {"JAX_NUM_CPU_DEVICES": str(devices), "JAX_PLATFORMS": "cpu"},
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def finish(*processes):
  try:
    outputs = [process.communicate(timeout=600)[0] for process in processes]
  finally:
    for process in processes:
      process.kill()
  assert [process.returncode for process in processes] == [0] * len(processes), outputs
  return outputs


def losses(workdir):
  lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
  return [line["loss"] for line in lines if line["split"] == "train"]


@pytest.fixture(scope="module")
def one_device(file, tmp_path_factory):
  """The losses of one process with one device, and its last state."""
  workdir = tmp_path_factory.mktemp("one")
  result = train_and_evaluate(load_config(str(file)), workdir)
  assert len(losses(workdir)) == 60
  return losses(workdir), result.state


def assert_same(workdir, one_device):
  """Compares the last checkpoint, read on one device wherever it was written."""
  expected, wanted = one_device
  chex.assert_trees_all_close(losses(workdir), expected, atol=1e-5, rtol=1e-7)
  with Checkpoints(workdir / "checkpoints", keep=9) as checkpoints:
    state = checkpoints.restore(wanted)
  assert int(state.step) == 60
  for mask in jax.tree.leaves(state.masks):
    assert mask.dtype == bool and 0 < mask.sum() < mask.size
  chex.assert_trees_all_equal(state.masks, wanted.masks)
  averages = apply_masks(state.averages.params, state.masks)
  chex.assert_trees_all_equal(averages, state.averages.params)  # dead ones are zero


@pytest.mark.slow
def test_eight_devices_with_parameters_in_parts(file, one_device, tmp_path):
  flags = "--config.placement=sharded", "--config.optimizer.accumulate=2"
  (output,) = finish(start(file, tmp_path, 8, *flags))
  assert "test accuracy" in output
  assert_same(tmp_path, one_device)


@pytest.mark.slow
def test_two_processes_of_two_devices_and_one_of_eight_goes_on(
  file, one_device, tmp_path
):
  with socket.socket() as free:
    free.bind(("localhost", 0))
    port = free.getsockname()[1]
  flags = [f"--coordinator=localhost:{port}", "--num_processes=2"]
  both = [start(file, tmp_path, 2, *flags, f"--process_id={n}") for n in range(2)]
  first, second = finish(*both)
  assert "test accuracy" in first and "test accuracy" not in second
  environment = json.loads((tmp_path / "environment.jsonl").read_text())
  assert environment["processes"] == "2" and environment["device"].startswith("4 x")
  assert_same(tmp_path, one_device)
  # As if all had been stopped after step 40: another slice takes the run over.
  shutil.rmtree(tmp_path / "checkpoints" / "60")
  finish(start(file, tmp_path, 8, "--config.placement=sharded"))
  environments = (tmp_path / "environment.jsonl").read_text().splitlines()
  assert [json.loads(x)["device"][:3] for x in environments] == ["4 x", "8 x"]
  assert_same(tmp_path, one_device)


@pytest.mark.parametrize(
  ("arguments", "detect", "words"),
  [
    (("localhost:1", None, None), False, "come together"),
    (("localhost", 2, 0), False, "HOST:PORT, got 'localhost'"),
    (("localhost:1", 2, 2), False, r"must be in \[0, 1\]"),
    (("localhost:1", 2, 0), True, "--distributed takes no"),
  ],
)
def test_contradicting_flags_are_refused(arguments, detect, words):
  with pytest.raises(UserError, match=words):
    mesh.join(*arguments, detect=detect)


def test_masks_that_differ_between_processes_are_named(monkeypatch):
  monkeypatch.setattr(mesh.jax, "process_count", lambda: 2)

  def gather(hashes):
    other = hashes.copy()
    other[1] ^= 1
    return np.stack([hashes, other])

  monkeypatch.setattr(mesh.multihost_utils, "process_allgather", gather)
  same = {"a": np.eye(3) > 0, "b": None}
  with pytest.raises(UserError, match=r"the masks of c differ between processes"):
    mesh.check_equal_masks(same | {"c": np.eye(4) > 0, "d": np.eye(5) > 0})
