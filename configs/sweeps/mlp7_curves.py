"""MLP-7 on MNIST by activation: loss curves of EOI and its rivals.

784-100x6-10 with linear, tanh, hard tanh and ReLU units. As in the paper: SGD with
Nesterov momentum .9, rate .01 divided by 10 at 1/2 and 3/4, weight decay 1e-4, batch
128, 100 epochs, 5 seeds. The curves are in `curves-*.png` of the workdir; the singular
values at the start are those of `python -m train.paper spectrum`. Follows the released
settings: a dense row from orthogonal and one from the default kernels of PyTorch.

Command: python -m train.sweep --config configs/sweeps/mlp7_curves.py:cpu
Variants: `:cpu` has density .05, 3 seeds and 5 epochs, and so a rate of .1, at which
the dense linear network diverges; `:smoke` trains one activation for 2 epochs of 2000
images.
Cost: 10 minutes of 2 CPU cores for `:cpu` with `--workers=2`, a minute for `:smoke`;
all takes 9 hours, an estimate.
"""

from configs import default, mnist_mlp7_curves
from configs.sweeps import schemes

ACTIVATIONS = ("linear", "tanh", "hard_tanh", "relu")
SCHEMES = ("uniform-base", "uniform-ai", "uniform-eoi", "erk-base", "erk-ai", "erk-eoi")
VARIANTS = {
  "cpu": {"seeds": (0, 1, 2), "num_epochs": 5, "optimizer.learning_rate": 0.1},
  "smoke": {"seeds": (0, 1), "num_epochs": 2, "data.limit": 2000},
}


def get_config(variant: str = ""):
  config = mnist_mlp7_curves.get_config()
  config.seeds = (0, 1, 2, 3, 4)
  config.compare.field, config.compare.choices = "", ()
  config.update_from_flattened_dict(default.choose(variant, VARIANTS))
  return config


def get_axes(variant: str = ""):
  smoke = variant == "smoke"
  names = SCHEMES[3:] if smoke else (*SCHEMES, "dense")
  names += () if variant else ("dense-default",)
  return {
    "model.activation": ("tanh",) if smoke else ACTIVATIONS,
    "sparsity.density": {"cpu": (0.05,), "smoke": (0.1,)}.get(variant, (0.05, 0.1)),
    "scheme": schemes(*names),
  }
