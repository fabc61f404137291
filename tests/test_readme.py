"""Every example and every command of README.md works."""

import pathlib
import re
import shlex
import subprocess
import sys

import pytest

from train import paper
from train.core import command

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
SHELL = "".join(text for language, text in BLOCKS if language == "bash")
LINES = SHELL.replace("\\\n", " ").splitlines()
COMMANDS = [words for line in LINES if (words := shlex.split(line, comments=True))]
KNOWN = (
  "gcloud compute",
  "make",
  "pip install",
  "python -m train.paper",
  "python -m train.preflight",
  "python -m train.prepare",
  "python -m train.report",
  "python -m train.run",
  "python -m train.sweep",
  "sbatch",
)


def _without_prefix(words):
  """Drops assignments and the folder of the virtual environment: `make test`."""
  words = [w for w in words if not re.match(r"[A-Z_]+=", w)]
  return [words[0].removeprefix(".venv/bin/"), *words[1:]]


def _commands(start):
  """Parameters: what follows `start` in the commands that begin with it."""
  words = start.split()
  found = [
    c[len(words) :] for c in map(_without_prefix, COMMANDS) if c[: len(words)] == words
  ]
  assert found, start
  return pytest.mark.parametrize("arguments", found, ids=" ".join)


def _run(*command):
  output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
  result = subprocess.run(command, cwd=ROOT, **output)
  assert result.returncode == 0, result.stdout
  return result.stdout


def test_no_block_goes_unchecked():
  assert {language for language, _ in BLOCKS} == {"python", "bash", "bibtex"}
  for words in COMMANDS:
    assert " ".join(_without_prefix(words)).startswith(KNOWN), words


def test_python_examples_run_in_order(standard_promotion):
  namespace = {}
  for number, (language, text) in enumerate(BLOCKS):
    if language == "python":
      exec(compile(text, f"README.md, block {number}", "exec"), namespace)
  assert namespace


@_commands("make")
def test_make_targets_exist(arguments):
  assert "nothing to be done" not in _run("make", "--dry-run", *arguments).lower()


@_commands("pip install")
def test_packages_and_extras_exist(arguments):
  """Installs nothing: pip looks at the checkout and at what is there already."""
  dry = ("--dry-run", "--no-deps", "--no-index", "--no-build-isolation")
  arguments = [a for a in arguments if a != "-e"]  # needs a package more to build
  output = _run(sys.executable, "-m", "pip", "install", *dry, *arguments)
  assert "does not provide the extra" not in output, output


@_commands("python -m train.prepare")
def test_prepare_takes_these_flags(arguments):
  _run(sys.executable, "-m", "train.prepare", *arguments, "--only_check_args")


@_commands("python -m train.run")
def test_training_commands_run(arguments, tmp_path, request):
  """Runs the smoke variant of the config with the flags that the README gives.

  What is for larger machines is parsed only.
  """
  if "cifar10" in " ".join(arguments):
    _run(sys.executable, "-m", "train.run", *arguments, "--only_check_args")
    return
  if "mnist" in " ".join(arguments):
    request.getfixturevalue("tfds_data_dir")
  smoke = [re.sub(r"^(configs/\w+\.py)$", r"\1:smoke", a) for a in arguments]
  workdir = tmp_path / "workdir"
  output = _run(sys.executable, "-m", "train.run", *smoke, "--workdir", str(workdir))
  assert "test accuracy" in output.lower(), output
  assert list(workdir.rglob("*.png"))


@_commands("python -m train.sweep")
def test_sweep_commands_expand(arguments, tmp_path):
  status = [*arguments, "--status", "--workdir", str(tmp_path)]
  assert "todo" in _run(sys.executable, "-m", "train.sweep", *status)


@_commands("python -m train.report")
def test_reports_are_of_sweeps_above(arguments):
  sweeps = [w[3:] for w in map(_without_prefix, COMMANDS) if w[2:3] == ["train.sweep"]]
  assert arguments[0] in [str(command.default_workdir(words)) for words in sweeps]


@_commands("python -m train.preflight")
def test_preflight_commands_run(arguments, tmp_path):
  output = _run(
    *(sys.executable, "-m", "train.preflight", *arguments, "--samples=2"),
    *("--config.model.depth=4", "--workdir", str(tmp_path)),
  )
  assert "singular values" in output and (tmp_path / "preflight.png").exists()


def test_every_figure_is_named():
  """That each is drawn is the matter of tests/train/test_paper.py."""
  named = [c[3] for c in map(_without_prefix, COMMANDS) if c[2:3] == ["train.paper"]]
  assert named == list(paper.FIGURES)


@pytest.mark.parametrize("path", re.findall(r"\]\((?!https?:)([^)#]+)\)", README))
def test_links_into_the_checkout(path):
  assert (ROOT / path).is_file()
