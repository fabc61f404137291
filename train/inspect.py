"""Prints the layers of a config's network, without data, weights or training.

python -m train.inspect --config=configs/cifar10_resnet32.py

Flags are those of `train.run`. `train.preflight` measures the network at its start.
"""

from absl import app

from train.analysis.dry_run import layers_text
from train.core.command import CONFIG, parse
from train.core.console import program, warnings_only


@program
def main(_: list[str]) -> None:
  """Prints the layers of the config that the flags name."""
  warnings_only()
  print(layers_text(CONFIG.value))


if __name__ == "__main__":
  app.run(main, flags_parser=parse)
