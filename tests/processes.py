"""Programs of `tests/programs`, each a process with devices of its own."""

import os
import subprocess
import sys
from pathlib import Path

_ROOT = Path(__file__).parents[1]


def start(name: str, *args: int) -> subprocess.Popen:
  """Starts a program on the packages of this checkout."""
  return subprocess.Popen(
    [sys.executable, str(_ROOT / "tests" / "programs" / name), *map(str, args)],
    cwd=_ROOT,
    env={**os.environ, "PYTHONPATH": str(_ROOT)},
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def finish(process: subprocess.Popen) -> str:
  """Waits for a program that must succeed; returns what it printed."""
  try:
    output, _ = process.communicate(timeout=300)
  finally:
    process.kill()
  assert process.returncode == 0, output
  return output
