"""Code blocks of Markdown pages: Python to run, commands to check."""

import importlib.metadata
import os
import pathlib
import re
import shlex
import subprocess
import tomllib
from typing import NamedTuple

import jax
import pytest

ROOT = pathlib.Path(__file__).parents[1]
# Packages that a page may use and a test environment may lack.
OPTIONAL = ("equinox", "haiku")
# Later versions do not know the flag, and end the process.
OLDER_CODE = (
  "--xla_cpu_use_fusion_emitters=false" if jax.__version_info__ < (0, 11) else ""
)
_FENCE = re.compile(r"^```(\S*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Page(NamedTuple):
  """A Markdown page: its path in the checkout and its text."""

  name: str
  text: str

  @property
  def blocks(self) -> list[tuple[str, str]]:
    """Language and text of every fenced block."""
    return _FENCE.findall(self.text)

  @property
  def python(self) -> str:
    """All Python blocks, in order, at the lines where they stand in the page."""
    lines = [""] * (self.text.count("\n") + 1)
    for match in _FENCE.finditer(self.text):
      if match[1] == "python":
        first = self.text.count("\n", 0, match.start(2))
        for number, line in enumerate(match[2].splitlines()):
          lines[first + number] = line
    return "\n".join(lines)

  @property
  def commands(self) -> list[list[str]]:
    """Words of every shell command, without assignments and `.venv/bin/`."""
    shell = "".join(text for language, text in self.blocks if language == "bash")
    lines = shell.replace("\\\n", " ").splitlines()
    found = [words for line in lines if (words := shlex.split(line, comments=True))]
    return [_without_prefix(words) for words in found]

  @property
  def needs(self) -> list[str]:
    """Optional packages that the page imports."""
    imported = re.findall(r"^import (\w+)", self.python, re.MULTILINE)
    return [name for name in OPTIONAL if name in imported]

  def run_python(self) -> None:
    """Runs the Python blocks in order, in one namespace, as a user's JAX would."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
      exec(compile(self.python, self.name, "exec"), {"__name__": "page"})


def read(path: pathlib.Path) -> Page:
  """Reads a page of the checkout."""
  return Page(path.relative_to(ROOT).as_posix(), path.read_text())


def unknown_extras(requirements: list[str]) -> list[str]:
  """Extras in the arguments of `pip install` that their package does not have."""
  project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
  unknown = []
  for requirement in requirements:
    if match := re.fullmatch(r"([\w.-]+)\[([\w,]+)\]", requirement):
      extras = project["optional-dependencies"]
      if match[1] != ".":
        extras = importlib.metadata.metadata(match[1]).get_all("Provides-Extra")
      unknown += [name for name in match[2].split(",") if name not in extras]
  return unknown


def _without_prefix(words):
  words = [w for w in words if not re.match(r"[A-Z_]+=", w)]
  return [words[0].removeprefix(".venv/bin/"), *words[1:]]


def commands(known: list[list[str]], start: str):
  """Parameters for a test: what follows `start` in the commands that begin with it."""
  words = start.split()
  found = [c[len(words) :] for c in known if c[: len(words)] == words]
  assert found, start
  return pytest.mark.parametrize("arguments", found, ids=" ".join)


def as_for_users() -> dict[str, str]:
  """Variables of a process that compiles as for users, not as fast as tests do."""
  flags = os.environ["XLA_FLAGS"].replace(OLDER_CODE, "").strip()
  return {"JAX_DISABLE_MOST_OPTIMIZATIONS": "0", "XLA_FLAGS": flags}


def run(*words: str, optimized: bool = False) -> str:
  """Output of a command in the checkout, which must succeed.

  Args:
    *words: the command.
    optimized: compile as for users; it pays where the command computes for long.
  """
  output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
  env = {**os.environ, **(as_for_users() if optimized else {})}
  result = subprocess.run(words, cwd=ROOT, env=env, **output)
  assert result.returncode == 0, result.stdout
  return result.stdout
