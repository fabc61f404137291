"""Table 1, the 1000-layer MLP on MNIST: no shortcuts, no normalization.

784-128, 998 times 128-128, 128-10 with tanh at its critical line; one weight in eight
is trained. As in the paper: SGD with Nesterov momentum .9, rate 1e-4 divided by 10 at
1/2 and 3/4, weight decay 1e-4, batch 128, 100 epochs; AI takes 1000 steps. Follows
the released settings of `mnist_mlp1000.py`.

Command: python -m train.sweep --config configs/sweeps/table1_mlp1000.py:cpu
Variants: `:cpu` trains six schemes from one seed for 2 epochs at a constant rate;
`:smoke` two schemes for 20 steps.
Cost: an estimate for 2 CPU cores, 4 minutes for each scheme and 25 for `:cpu` (.25 s a
step, measured); all of it is for an accelerator.
"""

from configs import default, mnist_mlp1000
from configs.sweeps import SPARSE, schemes

CPU = ("uniform-base", "erk-base", "erk-ai", "erk-eoi", "sao", "dense")
VARIANTS = {
  "cpu": {"seeds": (), "num_epochs": 2, "optimizer.schedule": "constant"},
  "smoke": {
    "seeds": (),
    "num_epochs": 1,
    "data.limit": 2560,
    "optimizer.schedule": "constant",
  },
}


def get_config(variant: str = ""):
  config = mnist_mlp1000.get_config()
  config.seeds = (0, 1, 2, 3, 4)
  config.compare.field, config.compare.choices = "", ()
  config.checkpoint_every = 5
  config.keep_checkpoints, config.keep_best = 1, 0
  config.update_from_flattened_dict(default.choose(variant, VARIANTS))
  return config


def get_axes(variant: str = ""):
  names = {"cpu": CPU, "smoke": ("erk-base", "erk-eoi")}.get(variant)
  return {"scheme": schemes(*(names or (*SPARSE, "dense")))}
