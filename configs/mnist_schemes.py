"""The 16 sparse schemes of the paper and the dense network: MLP-7 on MNIST.

Five distributions of the density (uniform, ERK, SNIP, GraSP, SynFlow), each with three
starts (base, AI, EOI), then SAO, whose layers that are not square stay dense, and the
dense network. Tanh, density .1, three epochs at a learning rate of .1. The starts
follow the released settings of MLP-7, as `mnist_mlp7_curves.py` does.

Command: python -m train.run --config configs/mnist_schemes.py
Hardware: 2 CPU cores, shared with other jobs while measured.
Time: 4 minutes; training itself 1 to 3 s a scheme.
Result: test accuracy in %, one seed:

             base     AI    EOI
  uniform    46.9   95.9   95.4
  ERK        94.8   95.9   95.8
  SNIP       95.5   96.2   95.6
  GraSP      94.9   95.9   95.6
  SynFlow    94.2   94.8   95.6
  SAO        96.7, with .65 of the weights
  dense      96.8

Variant: `:smoke`, one epoch and 200 steps of Adam for AI.
"""

from configs import default

DISTRIBUTIONS = ("uniform", "erk", "snip", "grasp", "synflow")
STARTS = ("base", "ai", "eoi")
SCHEMES = (
  *(f"{distribution}+{start}" for distribution in DISTRIBUTIONS for start in STARTS),
  "uniform+sao",  # its density where a layer is square, dense elsewhere
  "dense+orthogonal",
)

VARIANTS = {
  "smoke": {"num_epochs": 1, "sparsity.ai_method": "adam", "sparsity.ai_steps": 200},
}


def get_config(variant: str = ""):
  config = default.get_config()
  config.num_epochs = 3
  config.data.name = "mnist"
  config.optimizer.learning_rate = 0.1
  config.compare.field = "sparsity.distribution+sparsity.start"
  config.compare.choices = SCHEMES
  config.update_from_flattened_dict(default.choose(variant, VARIANTS))
  return config
