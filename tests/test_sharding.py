"""Sharded initialization equals that of one device, without communication."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parent / "programs" / "sharded_init.py"


def _start(*args: int) -> subprocess.Popen:
  return subprocess.Popen(
    [sys.executable, str(PROGRAM), *map(str, args)],
    cwd=PROGRAM.parents[2],
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def _finish(process: subprocess.Popen) -> str:
  try:
    output, _ = process.communicate(timeout=300)
  finally:
    process.kill()
  assert process.returncode == 0, output
  return output


@pytest.mark.slow
def test_eight_devices():
  assert "equal on 8 devices" in _finish(_start(8))


@pytest.mark.slow
def test_two_processes_of_two_devices():
  with socket.socket() as free:
    free.bind(("localhost", 0))
    port = free.getsockname()[1]
  both = [_start(2, 2, index, port) for index in range(2)]
  assert all("equal on 4 devices" in _finish(process) for process in both)
