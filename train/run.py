"""Trains a network.

python -m train.run --config=configs/quickstart.py
python -m train.run --config=configs/mnist_mlp7.py --config.sparsity.density=0.05

A config is a small file of fields; configs/default.py explains each, and
--config.FIELD=VALUE replaces one:

  --config.seeds="(0, 1, 2)"  several seeds in one program
  --config.dry_run            tell what would be done, its time and memory, and stop
  --config.placement=sharded  split the parameters over the devices

Run the same command again after an interruption, and it goes on. On several machines
run it on all of them: with --distributed on a TPU pod slice or under Slurm, elsewhere
with --coordinator=HOST:PORT --num_processes=N --process_id=I.

Exit status: 0 done, 2 a mistake in the command or of the machine, in one line; 130
stopped by Ctrl-C; 143 stopped by SIGTERM, after saving; 1 a defect of the program.
"""

import logging
import sys

from absl import app, flags

from train import cluster, compare, dry_run
from train.command import (
  CONFIG,
  WORKDIR,
  default_workdir,
  exit_with,
  log_to_stderr,
  parse,
)
from train.errors import UserError
from train.mesh import is_primary
from train.progress import logger

_QUIET = flags.DEFINE_bool("quiet", False, "Show warnings and the result only.")
_DISTRIBUTED = flags.DEFINE_bool(
  "distributed", False, "Find the other processes by the environment (TPU, Slurm, MPI)."
)
_COORDINATOR = flags.DEFINE_string(
  "coordinator", None, "HOST:PORT of process 0, if the environment does not tell."
)
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "With --coordinator.")
_PROCESS_ID = flags.DEFINE_integer(
  "process_id", None, "Number of this process from 0, with --coordinator."
)


def main(argv: list[str]) -> None:
  """Trains what the flags ask for."""
  del argv
  workdir = WORKDIR.value or default_workdir(sys.argv[1:])
  log_to_stderr(quiet=_QUIET.value)
  try:
    cluster.join(
      _COORDINATOR.value,
      _NUM_PROCESSES.value,
      _PROCESS_ID.value,
      detect=_DISTRIBUTED.value,
    )
    if not is_primary():
      logger.setLevel(logging.WARNING)
    if CONFIG.value.get("dry_run"):
      print(dry_run.describe(CONFIG.value))
    else:
      compare.run(CONFIG.value, workdir)
  except UserError as error:
    exit_with(error)
  except KeyboardInterrupt:
    print("\nstopped; the same command goes on from the last checkpoint.")
    sys.exit(130)


if __name__ == "__main__":
  app.run(main, flags_parser=parse)
