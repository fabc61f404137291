"""README.md is short, its example runs, its commands and links exist."""

import re

import documents
import pytest
from documents import run

ROOT = documents.ROOT
README = documents.read(ROOT / "README.md")


def test_it_is_short():
  assert README.text.count("\n") <= 130


def test_no_block_goes_unchecked():
  assert {language for language, _ in README.blocks} == {"python", "bash", "bibtex"}
  for words in README.commands:
    assert words[0] == "make" or words[:2] == ["pip", "install"], words


@pytest.mark.slow
def test_python_examples_run_in_order():
  README.run_python()


@documents.commands(README.commands, "make")
def test_make_targets_exist(arguments):
  assert "nothing to be done" not in run("make", "--dry-run", *arguments).lower()


@documents.commands(README.commands, "pip install")
def test_extras_exist(arguments):
  assert not documents.unknown_extras(arguments)


@pytest.mark.parametrize("path", re.findall(r"\]\((?!https?:)([^)#]+)\)", README.text))
def test_links_into_the_checkout(path):
  assert (ROOT / path).is_file()
