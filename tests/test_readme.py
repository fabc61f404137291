"""README.md is short, its example runs, its commands and links exist."""

import re
import subprocess

import documents
import pytest

ROOT = documents.ROOT
README = documents.read(ROOT / "README.md")


def _commands(start):
  """Parameters: what follows `start` in the commands that begin with it."""
  words = start.split()
  found = [c[len(words) :] for c in README.commands if c[: len(words)] == words]
  assert found, start
  return pytest.mark.parametrize("arguments", found, ids=" ".join)


def _run(*command):
  output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
  result = subprocess.run(command, cwd=ROOT, **output)
  assert result.returncode == 0, result.stdout
  return result.stdout


def test_it_is_short():
  assert README.text.count("\n") <= 130


def test_no_block_goes_unchecked():
  assert {language for language, _ in README.blocks} == {"python", "bash", "bibtex"}
  for words in README.commands:
    assert words[0] == "make" or words[:2] == ["pip", "install"], words


def test_python_examples_run_in_order():
  README.run_python()


@_commands("make")
def test_make_targets_exist(arguments):
  assert "nothing to be done" not in _run("make", "--dry-run", *arguments).lower()


@_commands("pip install")
def test_extras_exist(arguments):
  assert not documents.unknown_extras(arguments)


@pytest.mark.parametrize("path", re.findall(r"\]\((?!https?:)([^)#]+)\)", README.text))
def test_links_into_the_checkout(path):
  assert (ROOT / path).is_file()
