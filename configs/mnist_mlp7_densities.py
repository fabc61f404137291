"""The paper's MLP-7 with tanh on MNIST by density, from .03 to 1.

The recipe is that of `mnist_mlp7_curves.py`, which says what it follows. In the paper
this goes with the singular values of the logits' Jacobian at the start: under EOI they
are the same at every density, about .36 on average for tanh (.823 at most, .046 at
least, at density .05).

Command: python -m train.run --config configs/mnist_mlp7_densities.py
Variants: `:smoke` trains each density for one epoch.

Cost: an estimate for 2 CPU cores, 40 s for each density, and compilation.
"""

from configs import default, mnist_mlp7_curves

VARIANTS = {
  "smoke": {"num_epochs": 1},
}


def get_config(variant: str = ""):
  config = mnist_mlp7_curves.get_config()
  config.compare.field = "sparsity.density"
  config.compare.choices = (0.03, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
  config.update_from_flattened_dict(default.choose(variant, VARIANTS))
  return config
