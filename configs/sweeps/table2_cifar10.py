"""Table 2 and Figure 4, ResNet-32 and VGG-16 on CIFAR-10.

As in the paper: ReLU, SGD with Nesterov momentum .9, rate .1 divided by 10 at 1/2 and
3/4, weight decay 1e-4, batch 128, 200 epochs, images cropped and flipped at random, a
tenth of the training set held out, 5 seeds. VGG-16 is form C. Follows the released
settings of `cifar10_resnet32.py`; the dense network is conv-orthogonal. The deeper
networks are those of `table2_deep_resnets.py`.

Command: python -m train.sweep --config configs/sweeps/table2_cifar10.py:cpu
Variants: `:cpu` trains ResNet-32 on 4096 images and VGG-16 on 1280, from ERK masks at
density .1, 3 seeds: 4 epochs of batches of 32 at a rate of .05, and 100 steps of Adam
for AI; the test set is cut alike. `:smoke` trains two schemes of ResNet-20 for 2 epochs
of 512 images.
Cost: an estimate for 2 CPU cores, 30 minutes for `:cpu` with `--workers=2`; all of it
is for an accelerator. A step of batch 32 takes .25 s of one core (ResNet-32) or .8 s
(VGG-16).
"""

from configs import cifar10_resnet32, default
from configs.sweeps import DISTRIBUTIONS, STARTS, schemes

NETWORKS = {
  "ResNet-32": {"model.name": "cifar_resnet", "model.depth": 32},
  "VGG-16": {"model.name": "vgg16_c"},
}
ERK = ("erk-base", "erk-ai", "erk-eoi")
VARIANTS = {
  "cpu": {
    "seeds": (0, 1, 2),
    "num_epochs": 4,
    "batch_size": 32,
    "sparsity.ai_method": "adam",
    "sparsity.ai_steps": 100,
    "optimizer.learning_rate": 0.05,
  },
  "smoke": {"seeds": (), "num_epochs": 2, "batch_size": 32, "data.limit": 512},
}


def get_config(variant: str = ""):
  config = cifar10_resnet32.get_config()
  config.seeds = (0, 1, 2, 3, 4)
  config.steps_per_dispatch = 50
  config.checkpoint_every = 5
  config.update_from_flattened_dict(default.choose(variant, VARIANTS))
  return config


def get_axes(variant: str = ""):
  if variant == "smoke":
    network = {"ResNet-20": {"model.depth": 20}}
    return {"network": network, "scheme": schemes("erk-base", "erk-eoi")}
  if variant == "cpu":
    limits = {"ResNet-32": 4096, "VGG-16": 1280}  # steps of VGG-16 take long
    networks = {n: {**NETWORKS[n], "data.limit": limit} for n, limit in limits.items()}
    return {"network": networks, "sparsity.density": (0.1,), "scheme": schemes(*ERK)}
  names = [f"{d}-{start}" for d in DISTRIBUTIONS for start in STARTS]
  return {
    "network": NETWORKS,
    "sparsity.density": (0.05, 0.1),
    "scheme": schemes(*names, "dense", dense="conv_orthogonal"),
  }
