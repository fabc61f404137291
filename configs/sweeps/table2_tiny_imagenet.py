"""Table 2, EfficientNet-B0 on Tiny ImageNet.

As in the paper: SGD with Nesterov momentum .9, rate .01 divided by 10 at 1/2 and 3/4,
weight decay 1e-3, batch 128, 120 epochs, density .1, 5 seeds. Follows the released
settings, as `configs/tiny_imagenet_efficientnet_b0.py` says. The data set is prepared
once from the official archive: `configs/tiny_imagenet_efficientnet_b0.py` says how.

Command: python -m train.sweep --config configs/sweeps/table2_tiny_imagenet.py:cpu
Variants: `:cpu` trains three schemes from one seed for 2 epochs of 3200 images;
`:smoke` two schemes of 64 images.
Cost: not measured; `:smoke` several minutes, nearly all of it compilation.
"""

from configs import default, tiny_imagenet_efficientnet_b0
from configs.sweeps import DISTRIBUTIONS, STARTS, schemes

VARIANTS = {
  "cpu": {
    "seeds": (),
    "num_epochs": 2,
    "batch_size": 32,
    "steps_per_dispatch": 20,
    "data.limit": 3200,
  },
  "smoke": {"seeds": (), **tiny_imagenet_efficientnet_b0.VARIANTS["smoke"]},
}


def get_config(variant: str = ""):
  config = tiny_imagenet_efficientnet_b0.get_config()
  config.seeds = (0, 1, 2, 3, 4)
  config.checkpoint_every = 5
  config.update_from_flattened_dict(default.choose(variant, VARIANTS))
  return config


def get_axes(variant: str = ""):
  if variant == "smoke":
    return {"scheme": schemes("erk-base", "erk-eoi")}
  if variant == "cpu":
    return {"scheme": schemes("erk-base", "erk-ai", "erk-eoi")}
  names = [f"{d}-{start}" for d in DISTRIBUTIONS for start in STARTS]
  rows = schemes(*names, "dense", dense="conv_orthogonal")
  return {"sparsity.density": (0.1,), "scheme": rows}
