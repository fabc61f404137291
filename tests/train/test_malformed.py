"""A hundred malformed commands: one line each, and nothing is compiled."""

import jax
import pytest
from absl import flags

from train import run
from train.core import command

QUICK = "--config=configs/quickstart.py"
ALONE = [QUICK, "--config.compare.field=", "--config.compare.choices=()"]

FILES = [
  [],
  ["--config"],
  ["--config="],
  ["--config=configs/nope.py"],
  ["--config=configs"],
  ["--config=README.md"],
  ["--config=train/core/loop.py"],
  ["--config=/dev/null"],
  [QUICK + ":nope"],
  [QUICK + ":smoke:smoke"],
  ["--config=configs/default.py:smoke"],
  ["--confg=configs/quickstart.py"],
  [QUICK, "--wrkdir=x"],
  [QUICK, "more"],
  [QUICK, "--quiet=perhaps"],
  [QUICK, "--num_processes=two"],
  [QUICK, "--process_id=1"],
  [QUICK, "--coordinator=localhost"],
  [QUICK, "--coordinator=localhost:1", "--num_processes=2", "--process_id=5"],
  [QUICK, "--distributed", "--process_id=0"],
  # A depth must be 6 n + 2.
  [*ALONE, "--config.model.name=cifar_resnet", "--config.model.depth=51"],
]
UNKNOWN = [
  "nope=1",
  "seeed=1",
  "model=mlp",
  "model.dept=3",
  "model.depth.more=3",
  "sparsity.densty=.1",
  "sparsity.density.value=.1",
  "optimizer.lr=.1",
  "optimiser.learning_rate=.1",
  "data=mnist",
  "data.path=/tmp",
  "compare.fields=seed",
  "compare.choices[9]=eoi",
]
TYPES = [
  "seed=one",
  "seed=1.5",
  "seed=",
  "seeds=1",
  "seeds=one",
  "seeds=(1,1)",
  "seeds=(1,-1)",
  "seeds=(1.5,)",
  "seeds=('a',)",
  "seeds=((1,2),)",
  "num_epochs=many",
  "num_epochs=1.5",
  "batch_size=64.5",
  "steps_per_dispatch=None",
  "eval_every=[]",
  "keep_best=best",
  "tensorboard=perhaps",
  "dry_run=perhaps",
  "placement=3",
  "data.name=3",
  "data.validation=some",
  "data.augment=2",
  "data.limit=1.5",
  "model.name=3",
  "model.depth=deep",
  "model.width=3.5",
  "model.remat=maybe",
  "sparsity.density=dense",
  "sparsity.density=(.1,.2)",
  "sparsity.scale=large",
  "sparsity.bias_std=x",
  "sparsity.ai_steps=2.5",
  "optimizer.learning_rate=fast",
  "optimizer.momentum=x",
  "optimizer.nesterov=2",
]
VALUES = [
  "seed=-1",
  "seed=4294967296",
  "num_epochs=0",
  "num_epochs=-3",
  "batch_size=0",
  "batch_size=1000000",
  "steps_per_dispatch=0",
  "eval_every=0",
  "checkpoint_every=-1",
  "keep_checkpoints=0",
  "keep_best=-1",
  "placement=halved",
  "data.name=nope",
  "data.name=imagenet21k",
  "data.validation=1",
  "data.validation=-.1",
  "data.validation=.9999",
  "data.augment=blur",
  "data.repeats=0",
  "data.mixup=-1",
  "data.cutmix=inf",
  "data.limit=-1",
  "data.limit=10",
  "model.name=transformer",
  "model.depth=1",
  "model.width=0",
  "model.activation=swish",
  "model.dtype=float8",
  "model.drop_path=1",
  "model.drop_path=.1",  # of an MLP
  "model.options=heads=8",  # likewise
  "sparsity.start=magic",
  "sparsity.distribution=lottery",
  "sparsity.density=0",
  "sparsity.density=-.1",
  "sparsity.density=1.1",
  "sparsity.density=nan",
  "sparsity.density=1e-9",
  "sparsity.density=.01",  # below the floor of 1/64
  "sparsity.scale=0",
  "sparsity.scale=inf",
  "sparsity.scale=critical",  # with a bias_std of its own
  "sparsity.q_star=0",
  "sparsity.bias_std=-1",
  "sparsity.reference=he_normal",
  "sparsity.ai_method=lbfgs",
  "sparsity.ai_steps=-1",
  "sparsity.floors=ignore",
  "sparsity.grasp_examples=1",
  "sparsity.synflow_rounds=0",
  "optimizer.name=sdg",
  "optimizer.loss=hinge",
  "optimizer.learning_rate=-1",
  "optimizer.learning_rate=nan",
  "optimizer.momentum=1",
  "optimizer.weight_decay=-1",
  "optimizer.schedule=linear",
  "compare.field=sparsity.start",  # without choices
]
COMMANDS = [
  *FILES,
  *([*ALONE, f"--config.{change}"] for change in UNKNOWN + TYPES + VALUES),
]


def test_there_are_more_than_a_hundred():
  assert len(COMMANDS) == len(set(map(tuple, COMMANDS))) > 100


# ml_collections loads configs that way; harmless before Python 3.15.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
@pytest.mark.parametrize("arguments", COMMANDS, ids=lambda a: " ".join(a[-1:]) or "no")
def test_one_line_and_no_compilation(
  arguments, tmp_path, monkeypatch, capsys, standard_promotion
):
  def compiled(*args, **kwargs):
    raise AssertionError("compiled")

  monkeypatch.setattr(jax._src.compiler, "backend_compile_and_load", compiled)
  monkeypatch.setattr(run, "log_to_stderr", lambda **_: None)
  workdir = tmp_path / "new"
  with pytest.raises(SystemExit) as stop:
    rest = command.parse(["run", *arguments, f"--workdir={workdir}"])
    run.main(rest)
  flags.FLAGS.unparse_flags()
  assert stop.value.code == 2
  out, err = capsys.readouterr()
  (line,) = err.splitlines()
  assert line.startswith("error: ") and len(line) > 20 and not out
  assert not workdir.exists()
