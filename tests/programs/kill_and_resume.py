"""Kills a training at random moments and compares its end with an undisturbed one.

python tests/programs/kill_and_resume.py KILLS [SEED]

Runs the trainer on scikit-learn's digits, KILLS times until `kill -9` and then to its
end, as many times as it takes; every number of the last checkpoint and every line of
the metrics, times left out, must be those of a run that nobody disturbed. It has two
seeds, accumulates gradients, averages parameters and prunes gradually.
"""

import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp

ROOT = Path(__file__).parents[2]
COMMAND = [
  sys.executable,
  "-m",
  "train.run",
  "--config=configs/quickstart.py",
  "--config.compare.field=",
  "--config.compare.choices=()",
  "--config.model.depth=5",
  "--config.num_epochs=12",
  "--config.steps_per_dispatch=2",
  "--config.checkpoint_every=1",
  "--config.seeds=(0, 1)",
  "--config.optimizer.accumulate=2",
  "--config.optimizer.ema=0.9",
  "--config.dynamic.method=gmp",
  "--config.dynamic.every=5",
  "--config.dynamic.density=0.05",
  "--quiet",
]
TIMES = ("seconds", "steps_per_second")
KILLS_A_RUN = 5


def main(kills: int, seed: int) -> None:
  """Raises AssertionError unless all ends are equal to the last bit."""
  moments, done = random.Random(seed), 0
  with tempfile.TemporaryDirectory() as place:
    alone = Path(place) / "alone"
    process = start(alone)
    wait_for_training(process, alone)
    begin = time.monotonic()
    finish(process)
    seconds = time.monotonic() - begin
    for number in range(5 * kills):
      if done == kills:
        break
      workdir = Path(place) / f"disturbed{number}"
      for _ in range(min(KILLS_A_RUN, kills - done)):
        if kill(workdir, moments.uniform(0, seconds)):
          done += 1
        else:  # compiled programs are kept: later runs are faster
          seconds /= 2
      finish(start(workdir))
      compare(alone, workdir)
      print(f"{done} kills: bit-identical", flush=True)


def start(workdir: Path) -> subprocess.Popen:
  """Starts the trainer in a process of its own."""
  return subprocess.Popen(
    [*COMMAND, f"--workdir={workdir}"],
    cwd=ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def wait_for_training(process: subprocess.Popen, workdir: Path) -> None:
  """Waits until the process writes metrics, or has ended."""
  metrics, began = workdir / "metrics.jsonl", time.time()
  while process.poll() is None:
    if metrics.exists() and metrics.stat().st_mtime > began:
      return
    time.sleep(0.01)


def kill(workdir: Path, delay: float) -> int:
  """Kills a run `delay` seconds after it goes on; returns 1, or 0 if it had ended."""
  process = start(workdir)
  wait_for_training(process, workdir)
  time.sleep(delay)
  if process.poll() is not None:
    return 0
  process.send_signal(signal.SIGKILL)
  process.wait()
  return 1


def finish(process: subprocess.Popen) -> None:
  """Waits for the end of a run, which must be a good one."""
  output, _ = process.communicate(timeout=300)
  assert process.returncode == 0, output


def compare(alone: Path, disturbed: Path) -> None:
  """Compares two workdirs."""
  ours, theirs = (numbers(path) for path in (alone, disturbed))
  assert ours == theirs, (ours[-1], theirs[-1])
  trees = [arrays(path) for path in (alone, disturbed)]
  assert trees[0].keys() == trees[1].keys() and trees[0]
  for name, leaf in trees[0].items():
    np.testing.assert_array_equal(leaf, trees[1][name], err_msg=name)


def numbers(workdir: Path) -> list[dict]:
  """Reads the metrics without the times."""
  lines = (workdir / "metrics.jsonl").read_text().splitlines()
  return [
    {name: value for name, value in json.loads(line).items() if name not in TIMES}
    for line in lines
  ]


def arrays(workdir: Path) -> dict[str, np.ndarray]:
  """Reads the last checkpoint."""
  steps = [int(p.name) for p in (workdir / "checkpoints").iterdir()]
  path = workdir / "checkpoints" / str(max(steps)) / "state"
  with ocp.StandardCheckpointer() as checkpointer:
    tree = checkpointer.restore(path.resolve())
  flat: dict[str, np.ndarray] = {}

  def walk(name, node):
    if isinstance(node, dict):
      for key, value in node.items():
        walk(f"{name}/{key}", value)
    elif isinstance(node, list | tuple):
      for index, value in enumerate(node):
        walk(f"{name}/{index}", value)
    elif node is not None:
      flat[name] = np.asarray(node)

  walk("", tree)
  return flat


if __name__ == "__main__":
  main(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0)
