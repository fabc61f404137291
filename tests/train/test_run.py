import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from absl import flags

from configs import mnist_mlp7, quickstart
from train.core import command, console, loop
from train.core.command import parse
from train.core.config import flatten
from train.core.console import program

ROOT = Path(__file__).parents[2]
QUICKSTART = "--config=configs/quickstart.py"


def run(*arguments):
  return subprocess.run(
    [sys.executable, "-m", "train.run", *arguments],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=120,
    check=False,
  )


@pytest.mark.slow
@pytest.mark.parametrize(
  ("arguments", "words"),
  [
    (["--config=configs/nope.py"], "'configs/nope.py' does not exist"),
    ([QUICKSTART, "--config.sparsity.density=0"], "`sparsity.density`"),
    ([QUICKSTART, "--config.sparsity.density=0.01"], "[0.01562, 1]"),
  ],
)
def test_a_mistake_ends_the_program_with_one_line(arguments, words, tmp_path):
  done = run(*arguments, f"--workdir={tmp_path / 'new'}")
  assert done.returncode == 2 and done.stdout == ""
  (line,) = done.stderr.splitlines()
  assert line.startswith("error: ") and words in line
  assert not (tmp_path / "new").exists()


# ml_collections loads configs that way; harmless before Python 3.15.
@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
@pytest.mark.parametrize(
  ("arguments", "words"),
  [
    ([], "--config is missing"),
    ([QUICKSTART + ":nope"], "known variants: smoke"),
    ([QUICKSTART, "--config.nope=1"], "unknown config field `nope`; known: seed"),
    ([QUICKSTART, "--config.model.dept=3"], "did you mean `model.depth`?"),
    ([QUICKSTART, "--config.model.dept", "3"], "did you mean `model.depth`?"),
    ([QUICKSTART, "--noconfig.optimizer.nestrov"], "`optimizer.nesterov`?"),
    ([QUICKSTART, "--config.seed=1.5"], "`seed` must be an integer in [0, "),
    ([QUICKSTART, "--config.seed"], "`seed` must be an integer in [0, "),
    ([QUICKSTART, "--config.model.remat=maybe"], "`model.remat` must be True or False"),
    ([QUICKSTART, "more"], "unexpected argument 'more'"),
  ],
)
def test_mistakes_in_flags_are_one_line(arguments, words, capsys):
  with pytest.raises(SystemExit) as stop:
    parse(["run", *arguments])
  assert stop.value.code == 2
  (line,) = capsys.readouterr().err.splitlines()
  assert line.startswith("error: ") and words in line


@pytest.mark.parametrize(
  ("words", "field", "value"),
  [
    (["--config.model.remat"], "model.remat", True),
    (["--noconfig.optimizer.nesterov"], "optimizer.nesterov", False),
    (["--config.optimizer.nesterov=0"], "optimizer.nesterov", False),
    (["--config.sparsity.scale=critical"], "sparsity.scale", "critical"),
    (["--config.sparsity.scale", "2"], "sparsity.scale", 2.0),
    (["--config.seeds=(1, 2)"], "seeds", (1, 2)),
    (["--config.model.options=heads=8"], "model.options", "heads=8"),
    (["--config.compare.field="], "compare.field", ""),
  ],
)
def test_words_of_the_command_line_have_the_types_of_their_fields(words, field, value):
  parse(["run", QUICKSTART, *words])
  assert flatten(command.CONFIG.value)[field] == value
  flags.FLAGS.unparse_flags()


@pytest.mark.parametrize(
  ("error", "words"),
  [
    (
      OSError(28, "No space left on device", "a/table.md"),
      "cannot use a/table.md: No space left",
    ),
    (MemoryError("Unable to allocate 4 TiB"), "not enough memory: MemoryError: Unable"),
    (RuntimeError("RESOURCE_EXHAUSTED: Out of memory"), "not enough memory"),
  ],
)
def test_a_lack_of_the_machine_is_one_line(error, words, capsys):
  def main(argv):
    raise error

  with pytest.raises(SystemExit) as stop:
    program(main)([])
  assert stop.value.code == 2
  (line,) = capsys.readouterr().err.splitlines()
  assert line.startswith("error: ") and re.search(words, line)


def test_colours_are_for_terminals(monkeypatch):
  monkeypatch.setenv("TERM", "xterm")
  monkeypatch.delenv("NO_COLOR", raising=False)
  terminal, file = (SimpleNamespace(isatty=lambda x=x: x) for x in (True, False))
  assert console.paint("text", "bold", terminal) == "\033[1mtext\033[0m"
  assert console.paint("text", "bold", file) == "text"
  monkeypatch.setenv("NO_COLOR", "1")
  assert console.paint("text", "bold", terminal) == "text"


def test_lines_of_progress_say_how_long_it_will_take(monkeypatch, caplog):
  now = iter((0.0, 30.0, 80.0, 83.0, 150.0))
  monkeypatch.setattr(console.time, "monotonic", lambda: next(now))
  record = {"step": 60, "epoch": 3.0, "split": "train", "loss": 1, "accuracy": 0.5}
  record["steps_per_second"] = 9
  with caplog.at_level("INFO", "train"):
    progress = console.Progress("run", 20, 1060, 53)
    with progress.paused():  # 50 seconds that steps do not take, nor another line
      pass
    progress.update(record)
    assert not caplog.text
    progress.update(record)
  assert "step   60/1060" in caplog.text and "0:41:40 left" in caplog.text


@pytest.mark.slow
def test_quickstart_compares_two_starts(tmp_path, capsys, caplog, standard_promotion):
  config = quickstart.get_config("smoke")
  config.model.depth, config.sparsity.q_star = 5, 0.03
  loop.train_or_compare(config, tmp_path)
  assert "`sparsity.q_star` = 0.03 changes nothing here" in caplog.text
  output = capsys.readouterr().out
  for words in (
    "eoi start",
    "base start",
    "test accuracy",
    "density of kernels that may be sparse",
    "parameters live",
    "figure",
  ):
    assert words in output
  runs = json.loads((tmp_path / "summary.json").read_text())["runs"]
  assert list(runs) == ["eoi", "base"]
  assert runs["eoi"]["orthogonality_error"] < 5e-6
  assert runs["base"]["orthogonality_error"] > 0.1
  assert runs["eoi"]["parameters_live"] == runs["base"]["parameters_live"]
  for path in (tmp_path, tmp_path / "eoi", tmp_path / "base"):
    assert (path / "figure.png").stat().st_size > 10_000
    assert (path / "config.json").exists()


@pytest.mark.slow
def test_mlp7_learns_real_mnist(tfds_data_dir, tmp_path, standard_promotion):
  if not (tfds_data_dir / "mnist").is_dir():
    pytest.skip(f"mnist is not in TFDS_DATA_DIR={tfds_data_dir}")
  config = mnist_mlp7.get_config()
  config.num_epochs = 2
  (summary,) = loop.train_or_compare(config, tmp_path).values()
  assert summary["test_accuracy"] > 0.93
  assert summary["parameters_total"] == 130010
  assert summary["density"] == pytest.approx(0.1, abs=1e-4)


@pytest.mark.slow
def test_ctrl_c_ends_at_once_whatever_threads_do():
  code = """
import threading, time
from train.core.console import program
def main(argv):
  threading.Thread(target=time.sleep, args=(60,)).start()
  raise KeyboardInterrupt
program(main)([])
"""
  command = [sys.executable, "-c", code]
  options: dict = {"capture_output": True, "text": True, "check": False}
  done = subprocess.run(command, cwd=ROOT, timeout=30, **options)
  assert done.returncode == 130 and "the same command continues a run" in done.stdout
