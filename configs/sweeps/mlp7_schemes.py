"""MLP-7 on MNIST: 16 sparse schemes and the dense network.

784-100x6-10 with tanh from five distributions of the density with three starts each,
from SAO, whose layers that are not square stay dense, and dense. As in the paper: SGD
with Nesterov momentum .9, rate .01 divided by 10 at 1/2 and 3/4, weight decay 1e-4,
batch 128, 100 epochs, 5 seeds. The starts follow the released settings, as in
`mnist_mlp7_curves.py`.

Command: python -m train.sweep --config configs/sweeps/mlp7_schemes.py:cpu
Variants: `:cpu` has 3 seeds and 10 epochs, and so a rate of .1; `:smoke` trains two
schemes from two seeds for 2 epochs of 2000 images.
Cost: an estimate for 2 CPU cores, 15 minutes for `:cpu` (36 s of CPU time a cell,
measured) and 5 hours for all; `:smoke` a minute.
"""

from configs import default, mnist_mlp7_curves
from configs.sweeps import SPARSE, schemes

VARIANTS = {
  "cpu": {"seeds": (0, 1, 2), "num_epochs": 10, "optimizer.learning_rate": 0.1},
  "smoke": {"seeds": (0, 1), "num_epochs": 2, "data.limit": 2000},
}


def get_config(variant: str = ""):
  config = mnist_mlp7_curves.get_config()
  config.seeds = (0, 1, 2, 3, 4)
  config.compare.field, config.compare.choices = "", ()
  config.update_from_flattened_dict(default.choose(variant, VARIANTS))
  return config


def get_axes(variant: str = ""):
  names = ("erk-base", "erk-eoi") if variant == "smoke" else (*SPARSE, "dense")
  return {"sparsity.density": (0.05, 0.1), "scheme": schemes(*names)}
