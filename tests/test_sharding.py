"""Sharded initialization equals that of one device, without communication."""

import socket

import pytest

from tests.processes import finish, start

PROGRAM = "sharded_init.py"


@pytest.mark.slow
def test_eight_devices():
  assert "equal on 8 devices" in finish(start(PROGRAM, 8))


@pytest.mark.slow
def test_two_processes_of_two_devices():
  with socket.socket() as free:
    free.bind(("localhost", 0))
    port = free.getsockname()[1]
  both = [start(PROGRAM, 2, 2, index, port) for index in range(2)]
  assert all("equal on 4 devices" in finish(process) for process in both)
