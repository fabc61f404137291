"""Trains a network.

python -m train.run --config=configs/quickstart.py
python -m train.run --config=configs/mnist_mlp7.py --config.sparsity.density=0.05

A config is a small file of fields; --fields prints what each means, and
--config.FIELD=VALUE replaces one:

  --config.seeds="(0, 1, 2)"  several seeds in one program
  --config.dry_run            print what would be done, its time and memory, and stop
  --config.placement=sharded  split the parameters over the devices
  --config.eval_only          evaluate the last checkpoint of the workdir, or the one
                              that --checkpoint=best or a step names

Run the same command again after an interruption, and it continues. On several machines
run it on all of them: with --distributed on a TPU pod slice or under Slurm, elsewhere
with --coordinator=HOST:PORT --num_processes=N --process_id=I.

Exit status: 0 done, 2 a mistake in the command or of the machine, in one line; 130
stopped by Ctrl-C; 143 stopped by SIGTERM, after saving; 1 a defect of the program.
"""

from absl import app, flags

from train.core import mesh
from train.core.command import CONFIG, WORKDIR, parse
from train.core.console import log_to_stderr, logger, program
from train.core.loop import evaluate_saved, train_or_compare

_QUIET = flags.DEFINE_bool("quiet", False, "Show warnings and the result only.")
_CHECKPOINT = flags.DEFINE_string(
  "checkpoint", "last", "last, best or a step: what --config.eval_only evaluates."
)
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


@program
def main(_: list[str]) -> None:
  """Trains what the flags ask for."""
  log_to_stderr(quiet=_QUIET.value)
  process = _COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value
  mesh.join(*process, detect=_DISTRIBUTED.value)
  if not mesh.is_primary():
    logger.setLevel("WARNING")
  config, workdir = CONFIG.value, WORKDIR.value
  if config.get("dry_run"):
    from train.analysis.dry_run import dry_run

    print(dry_run(config))
  elif config.get("eval_only"):
    evaluate_saved(config, workdir, _CHECKPOINT.value)
  else:
    train_or_compare(config, workdir)


if __name__ == "__main__":
  app.run(main, flags_parser=parse)
