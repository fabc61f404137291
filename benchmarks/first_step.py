"""How long users wait: from the command to the first step, cold and warm.

python -m benchmarks.first_step [--configs quickstart,mnist_mlp7,...] [--kernels]
  [--output benchmarks/results/first_step]

Each config is run twice, in new processes and new workdirs: cold, with an empty cache
of compiled programs and decoded images, then warm, with what the first run left there.
Measured are the seconds until the log shows the loss of the first step, and the
programs that XLA compiled until then; the process is then ended. `--kernels`
measures `eoi_jax.sparsify` of a ResNet-50's kernels: the first call of a new process,
cold and warm, and the next call. Configs whose data set is missing are left out with a
line.
Writes OUTPUT.json and OUTPUT.md.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time

from benchmarks.hardware import hardware

CONFIGS = (
  "quickstart",
  "mnist_mlp7",
  "mnist_mlp1000",
  "cifar10_resnet32",
  "cifar10_vgg16",
  "cifar10_cnn100",
)
ROOT = pathlib.Path(__file__).parents[1]
TIMEOUT = 900.0
# Named by jax's own log of compilations, those read from the cache included.
COMPILED = re.compile(r"Finished XLA compilation")
STEP = re.compile(r"step +1/\d+, loss ")
KERNELS = """
import time
import jax, numpy as np
import eoi_jax
from benchmarks.init import RESNET50
shapes = [(k, k, i, o) for k, i, o, n in RESNET50 for _ in range(n)]
params = jax.device_put([{"kernel": np.zeros(s, np.float32)} for s in shapes])
layouts = eoi_jax.kernel_layouts(params, convention="hwio")
for call in range(3):
  start = time.perf_counter()
  key = jax.random.key(call)
  jax.block_until_ready(eoi_jax.sparsify(key, params, 0.1, layouts=layouts))
  print("seconds", time.perf_counter() - start, flush=True)
"""


def environment(cache: pathlib.Path) -> dict[str, str]:
  """Environment of a run whose programs and images are kept under `cache`."""
  kept = {k: v for k, v in os.environ.items() if not k.startswith("JAX_COMPILATION")}
  return kept | {"XDG_CACHE_HOME": str(cache), "JAX_LOG_COMPILES": "1"}


def first_step(config: str, cache: pathlib.Path) -> dict[str, float] | str:
  """Seconds and compiled programs until a run has done a step, or its error."""
  with tempfile.TemporaryDirectory() as folder:
    log = pathlib.Path(folder) / "log"
    command = [sys.executable, "-m", "train.run", "--config", f"configs/{config}.py"]
    command += ["--workdir", f"{folder}/run"]
    start = time.perf_counter()
    with log.open("w") as out:
      process = subprocess.Popen(
        command, cwd=ROOT, env=environment(cache), stdout=out, stderr=out
      )
      seconds = None
      while process.poll() is None and time.perf_counter() - start < TIMEOUT:
        if STEP.search(log.read_text()):
          seconds = time.perf_counter() - start
          break
        time.sleep(0.02)
      process.kill()
      process.wait()
    text = log.read_text()
    if seconds is None:
      return text.strip().splitlines()[-1] if text.strip() else "no output"
    return {"seconds": seconds, "programs": len(COMPILED.findall(text))}


def sparsify_calls(cache: pathlib.Path) -> dict[str, float]:
  """First and next call of `sparsify`, and the programs of the first process."""
  variables = environment(cache) | {
    "JAX_COMPILATION_CACHE_DIR": str(cache / "programs"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
  }
  done = subprocess.run(
    [sys.executable, "-c", KERNELS],
    cwd=ROOT,
    env=variables,
    capture_output=True,
    text=True,
    check=True,
  )
  calls = [float(s) for s in re.findall(r"seconds (\S+)", done.stdout)]
  programs = len(COMPILED.findall(done.stderr))
  return {"seconds": calls[0], "next": min(calls[1:]), "programs": programs}


def main(argv: list[str] | None = None) -> None:
  """Measures and writes the table."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--configs", default=",".join(CONFIGS))
  parser.add_argument("--kernels", action="store_true")
  parser.add_argument("--output", default="benchmarks/results/first_step")
  arguments = parser.parse_args(argv)
  rows = {}
  for config in filter(None, arguments.configs.split(",")):
    with tempfile.TemporaryDirectory() as folder:
      cold = first_step(config, pathlib.Path(folder))
      warm = first_step(config, pathlib.Path(folder))
    if isinstance(cold, str) or isinstance(warm, str):
      print(
        f"{config}: left out: {cold if isinstance(cold, str) else warm}", flush=True
      )
      continue
    rows[config] = {"cold": cold, "warm": warm}
    print(config, json.dumps(rows[config]), flush=True)
  if arguments.kernels:
    with tempfile.TemporaryDirectory() as folder:
      cold, warm = (sparsify_calls(pathlib.Path(folder)) for _ in range(2))
    rows["sparsify, 54 kernels of ResNet-50"] = {"cold": cold, "warm": warm}
    print("sparsify", json.dumps({"cold": cold, "warm": warm}), flush=True)
  output = pathlib.Path(arguments.output)
  output.parent.mkdir(parents=True, exist_ok=True)
  result = {"hardware": hardware(), "command": " ".join(sys.argv), "rows": rows}
  output.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
  lines = [
    "# From command to first step",
    "",
    f"{hardware()}; one run each; `python -m benchmarks.first_step --kernels`.",
    "",
    "| | cold, s | warm, s | programs of the process |",
    "| --- | --- | --- | --- |",
  ]
  for name, row in rows.items():
    cold, warm = (row[kind]["seconds"] for kind in ("cold", "warm"))
    lines.append(f"| {name} | {cold:.1f} | {warm:.1f} | {row['cold']['programs']} |")
  calls = rows.get("sparsify, 54 kernels of ResNet-50")
  if calls:
    lines += ["", f"The next call of `sparsify` takes {calls['cold']['next']:.2f} s."]
  output.with_suffix(".md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
  main()
