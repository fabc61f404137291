"""Table 1, the 1000-layer CNN on CIFAR-10: no shortcuts, no normalization.

997 circular 3 x 3 convolutions of 128 channels and a dense layer, tanh at its critical
line; one weight in eight is trained. As in the paper: SGD with Nesterov momentum .9,
rate 1e-4 divided by 10 at 1/2 and 3/4, weight decay 1e-4, batch 128, 100 epochs; AI
takes 1000 steps; the dense network is delta-orthogonal. Follows the released settings
of `cifar10_cnn1000.py`, and their further rows: uniform density with first and last
layer dense from EOI and from its structured form, EIS, and ERK from EIS.

Command: python -m train.sweep --config configs/sweeps/table1_cnn1000.py:cpu
Variants: `:cpu` keeps the depth and cuts the width to 16, the batch to 32 and the
training set to 3200 images, 2 epochs at a constant rate of 1e-3, four schemes, one
seed; `:smoke` trains two schemes of 18 layers of 32 channels on 1000 images.
After `:cpu` the base start and EOI are both at chance: it shows that this depth runs,
not the order of the table.
Cost: 6 minutes a run on one CPU core (1 s a step, measured); all of it is for an
accelerator.
"""

from configs import cifar10_cnn1000, default
from configs.sweeps import SPARSE, schemes

FURTHER = ("uniform_skip-eoi", "uniform_skip-eis", "erk-eis")
VARIANTS = {
  "cpu": {
    "seeds": (),
    "num_epochs": 2,
    "batch_size": 32,
    "steps_per_dispatch": 20,
    "data.limit": 3200,
    "model.width": 16,
    "optimizer.learning_rate": 1e-3,
    "optimizer.schedule": "constant",
  },
  "smoke": {"seeds": (), **cifar10_cnn1000.VARIANTS["smoke"]},
}


def get_config(variant: str = ""):
  config = cifar10_cnn1000.get_config()
  config.seeds = (0, 1, 2, 3, 4)
  config.steps_per_dispatch = 50
  config.checkpoint_every = 5
  config.keep_checkpoints, config.keep_best = 1, 0
  config.update_from_flattened_dict(default.choose(variant, VARIANTS))
  return config


def get_axes(variant: str = ""):
  dense = "delta_orthogonal"
  if variant == "cpu":
    return {"scheme": schemes("erk-base", "erk-ai", "erk-eoi", "dense", dense=dense)}
  if variant == "smoke":
    return {"scheme": schemes("erk-base", "erk-eoi")}
  return {"scheme": schemes(*SPARSE, *FURTHER, "dense", dense=dense)}
