"""Sweeps that run: cells that break, are taken, or are killed and go on."""

import json
import pathlib
import random
import signal
import subprocess
import sys
import time
from unittest import mock

import jax
import pytest

from train.core import figures
from train.core.console import UserError
from train.core.mesh import EXIT_STATUS
from train.core.workdir import claim_workdir
from train.sweeps import grid, running
from train.sweeps.report import write_report

pytestmark = pytest.mark.usefixtures("module_promotion")

ROOT = pathlib.Path(__file__).parents[2]

# Few programs for many runs: the chunks of steps have any length.
TINY = '''"""Tiny nets on the digits."""
from configs import quickstart
from configs.sweeps import schemes


def get_config(variant=""):
  config = quickstart.get_config("smoke")
  config.update_from_flattened_dict({
    "compare.field": "", "compare.choices": (), "model.depth": 2, "model.width": 16,
    "num_epochs": 3, "checkpoint_every": 1, "seeds": (0, 1),
  })
  return config


def get_axes(variant=""):
  alone = {"steps_per_dispatch": 500}
  return {
    "steps_per_dispatch": (4, 500),
    "scheme": {
      **schemes("uniform-base"),
      "dense": {**schemes("dense")["dense"], **alone},
      "too sparse": {"sparsity.density": 0.03, "sparsity.floors": "error", **alone},
    },
  }
'''


@pytest.fixture(scope="module", autouse=True)
def no_figures_of_runs():
  """Drawing each run would take longer than training it."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(figures, "draw_runs", lambda *_: mock.Mock())
    yield


@pytest.fixture(scope="module")
def file(tmp_path_factory):
  path = tmp_path_factory.mktemp("configs") / "tiny.py"
  path.write_text(TINY)
  return str(path)


@pytest.fixture(scope="module")
def loaded(file):
  """A sweep of 8 runs; two are too sparse for EOI and break."""
  return grid.load_sweep(file, one_by_one=True)


def run_all(loaded, workdir):
  running.prepare(loaded, workdir)
  assert not running.run(running.share(loaded.cells, 0, 1), workdir)  # some have failed
  write_report(workdir)


@pytest.fixture(scope="module")
def undisturbed(loaded, tmp_path_factory):
  """The workdir of the sweep, run in one go."""
  workdir = tmp_path_factory.mktemp("sweep")
  run_all(loaded, workdir)
  return workdir


def starts(workdir):
  """How often each run was begun."""
  return {
    str(path.parent.relative_to(workdir)): len(path.read_text().splitlines())
    for path in workdir.rglob("environment.jsonl")
  }


@pytest.mark.slow
def test_what_is_done_is_left_alone(loaded, undisturbed):
  before = starts(undisturbed)
  run_all(loaded, undisturbed)
  assert starts(undisturbed) == before and len(before) == 6
  status = grid.read_status(undisturbed / loaded.cells[0].path)
  assert (status.word, status.epoch) == ("done", 3.0) and 0 < status.accuracy < 1


@pytest.mark.slow
def test_failed_cells_are_tried_again_on_request(loaded, undisturbed):
  (broken, _) = running.share(loaded.cells, 0, 1, "*/too_sparse/*")
  note = undisturbed / broken.path / "failed.json"
  written = note.stat().st_mtime_ns
  assert not running.run([broken], undisturbed)
  assert note.stat().st_mtime_ns == written
  grid.forget_failure(undisturbed / broken.path)
  assert grid.read_status(undisturbed / broken.path).word == "todo"
  assert not running.run([broken], undisturbed)
  assert note.stat().st_mtime_ns > written
  status = grid.read_status(undisturbed / broken.path)
  assert status.word == "failed" and "got 0.03" in status.note


@pytest.mark.slow
def test_a_workdir_of_another_config_is_refused(file, loaded, undisturbed):
  base = loaded.cells[0].config.copy_and_resolve_references()
  base.num_epochs, base.seeds = 4, (0, 1)
  other = grid.load_sweep(file, base, one_by_one=True)
  with pytest.raises(UserError, match="num_epochs: 3 there, 4 here"):
    running.prepare(other, undisturbed)


def test_a_cell_that_another_process_trains_is_left_to_it(loaded, tmp_path):
  cell = loaded.cells[0]
  with claim_workdir(tmp_path / cell.path, cell.config):
    assert grid.read_status(tmp_path / cell.path).word == "running"
    assert running.run([cell], tmp_path)
  record = {"step": 4, "epoch": 1.0, "split": "validation", "accuracy": 0.5}
  (tmp_path / cell.path / "metrics.jsonl").write_text(json.dumps(record) + "\n")
  assert grid.read_status(tmp_path / cell.path) == grid.Status("stopped", 1.0, 0.5)
  assert starts(tmp_path) == {cell.path: 1}


def test_a_worker_leaves_what_failed_before_it(loaded, tmp_path, monkeypatch):
  tried = []

  def fail(config, workdir, *, name):
    tried.append(name)
    raise ValueError("broken")

  monkeypatch.setattr(running, "train_and_evaluate", fail)
  chosen = running.share(loaded.cells, 0, 1)
  for worker in range(2):
    assert not running.run(running.in_turn(chosen, worker, 2), tmp_path)
  assert sorted(tried) == sorted(cell.path for cell in chosen)


def test_shares_make_the_whole(loaded):
  shares = [running.share(loaded.cells, index, 3) for index in range(3)]
  names = [cell.path for share in shares for cell in share]
  assert names == list(dict.fromkeys(cell.path for cell in loaded.cells))
  assert max(map(len, shares)) - min(map(len, shares)) <= 1
  (cell,) = running.share(loaded.cells, 0, 1, "*=4/uniform-base/seed=1")
  assert (cell.config.seed, cell.config.steps_per_dispatch) == (1, 4)


@pytest.mark.parametrize(
  ("arguments", "words"),
  [((2, 2), "--index must be in"), ((0, 1, "*nope"), "no cell is like .*uniform-base")],
)
def test_impossible_shares(loaded, arguments, words):
  with pytest.raises(UserError, match=words):
    running.share(loaded.cells, *arguments)


def test_missing_data_is_no_failure_of_the_cells(loaded, tmp_path, monkeypatch):
  running.check_data(loaded.cells)  # the digits are bundled
  config = loaded.cells[0].config.copy_and_resolve_references()
  config.data.name = "mnist"
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
  with pytest.raises(UserError, match=r"train.prepare --dataset=mnist"):
    running.check_data([loaded.cells[0]._replace(config=config)])


def without_times(path):
  return [line.rpartition(",")[0] for line in path.read_text().splitlines()]


def command(*arguments):
  return [sys.executable, "-m", "train.sweep", "--one_by_one", *arguments]


@pytest.mark.slow
def test_killed_and_started_again_the_table_is_the_same(
  file, loaded, undisturbed, tmp_path
):
  with subprocess.Popen(
    command(f"--config={file}", f"--workdir={tmp_path}"),
    cwd=ROOT,
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
  ) as process:
    while not list(tmp_path.rglob("metrics.jsonl")) and process.poll() is None:
      time.sleep(0.05)
    time.sleep(random.uniform(0, 3))
    process.send_signal(signal.SIGKILL)
  words = [grid.read_status(tmp_path / cell.path).word for cell in loaded.cells]
  assert "todo" in words and "running" not in words
  run_all(loaded, tmp_path)
  assert (tmp_path / "table.md").read_text() == (undisturbed / "table.md").read_text()
  ours, theirs = (without_times(d / "table.csv") for d in (tmp_path, undisturbed))
  assert ours == theirs and len(ours) == 7


@pytest.mark.slow
def test_workers_stop_together_and_go_on_together(file, loaded, undisturbed, tmp_path):
  if len(running.split_cores(1)[0]) < 2:
    pytest.skip("there is one core only")
  line = command(f"--config={file}", f"--workdir={tmp_path}", "--workers=2")
  with subprocess.Popen(
    line, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
  ) as process:
    while not list(tmp_path.rglob("metrics.jsonl")) and process.poll() is None:
      time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    shown = process.communicate()[0]
  assert process.returncode == EXIT_STATUS, shown
  words = [grid.read_status(tmp_path / cell.path).word for cell in loaded.cells]
  assert "todo" in words and "running" not in words
  done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
  assert done.returncode == 1, done.stderr  # the cells that are too sparse
  assert (tmp_path / "table.md").read_text() == (undisturbed / "table.md").read_text()
  began = starts(tmp_path)
  assert len(began) == 6 and sum(began.values()) <= 6 + 2


def test_workers_are_refused_on_an_accelerator(monkeypatch):
  running.check_backend(2)
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  with pytest.raises(UserError, match=r"--workers must be 1 .*\(gpu\), got 2"):
    running.check_backend(2)


def test_workers_share_cores_and_cells(loaded):
  (everything,) = running.split_cores(1)
  parts = running.split_cores(len(everything))
  assert set.union(*parts) == everything and sum(map(len, parts)) == len(everything)
  for count in (0, len(everything) + 1):
    with pytest.raises(UserError, match=f"--workers must be .* got {count}"):
      running.split_cores(count)
  chosen = running.share(loaded.cells, 0, 1)
  first, second = (running.in_turn(chosen, n, 2) for n in (0, 1))
  half = len(chosen) // 2
  assert first == chosen == [*second[half:], *second[:half]]


@pytest.mark.slow
def test_a_smoke_form_trains_on_real_mnist(tfds_data_dir, tmp_path):
  if not (tfds_data_dir / "mnist").is_dir():
    pytest.skip(f"mnist is not in TFDS_DATA_DIR={tfds_data_dir}")
  loaded = grid.load_sweep(str(ROOT / "configs/sweeps/mlp7_schemes.py:smoke"))
  assert running.run(running.share(loaded.cells, 0, 1, "*=0.1/erk-base"), tmp_path)
  running.prepare(loaded, tmp_path)
  shown = write_report(tmp_path)
  (line,) = [x for x in shown.splitlines() if x.startswith("| erk-base |")]
  assert line.startswith("| erk-base | todo | ") and "±" in line
  (summary,) = tmp_path.rglob("summary.json")
  found = json.loads(summary.read_text())
  assert len(found["test_accuracy_seeds"]) == 2
  assert found["density"] == pytest.approx(0.1, abs=1e-4)


@pytest.mark.slow
def test_the_command_shows_the_status(file, undisturbed):
  arguments = (f"--config={file}", f"--workdir={undisturbed}", "--status")
  options = {"cwd": ROOT, "capture_output": True, "text": True, "check": False}
  done = subprocess.run(command(*arguments), **options)
  assert done.returncode == 0 and "6 done, 2 failed" in done.stdout
  assert "steps_per_dispatch=4/uniform-base/seed=1" in done.stdout


@pytest.mark.slow
def test_an_axis_is_no_flag(file):
  arguments = (f"--config={file}", "--config.steps_per_dispatch=7")
  done = subprocess.run(
    command(*arguments), cwd=ROOT, capture_output=True, text=True, check=False
  )
  assert done.returncode == 2
  (line,) = done.stderr.splitlines()
  assert line.startswith("error: `steps_per_dispatch` is an axis of the sweep")
