"""Where EOI places the nonzeros of convolutions: ResNet-32 and VGG-16 on CIFAR-10.

Base and AI starts beside four forms of EOI on the same ERK densities: "plain" has the
kernel's own density at the centre tap, "more", the published mode, up to `min(d k,
sqrt(d), 1)` of it for k taps, "all taps" is an isometry over all of them at stride 1,
and "polyphase" one at the strides of each layer. The recipe is that of
`table2_cifar10.py`, which says what it follows.

Command: python -m train.sweep --config configs/sweeps/taps_cifar10.py:cpu
Variants: `:cpu` trains 3 seeds with batches of 32, a rate of .05 that falls by a
cosine, and 100 steps of Adam for AI: ResNet-20 and ResNet-32 for 1111 steps on 35,556
images, and VGG-16 for 177 steps on 5690; one of them at one density with
`--only='VGG-16/density=0.1/*'`; `:smoke` two rows of ResNet-20 for 2 epochs of 512
images.

Cost: an estimate for one CPU core, 75 minutes for ResNet-20 at one density and 35 for
VGG-16; all of it is for an accelerator.
"""

from configs import default
from configs.sweeps import schemes, table2_cifar10

EOI = schemes("erk-eoi")["erk-eoi"]
ROWS = {
  "base": schemes("erk-base")["erk-base"],
  "AI": schemes("erk-ai")["erk-ai"],
  "EOI, plain": EOI | {"sparsity.center": "plain"},
  "EOI, more": EOI | {"sparsity.center": "more"},
  "EOI, all taps": EOI | {"sparsity.taps": "all"},
  "EOI, polyphase": EOI | {"sparsity.taps": "polyphase"},
}
CUT = {
  "ResNet-20": {"model.depth": 20, "data.limit": 35_556},  # 1111 steps
  "ResNet-32": {"model.depth": 32, "data.limit": 35_556},
  "VGG-16": {"model.name": "vgg16_c", "data.limit": 5_690},  # 177 steps
}
SMOKE = ("EOI, more", "EOI, all taps")
VARIANTS = {
  "cpu": table2_cifar10.VARIANTS["cpu"]
  | {"num_epochs": 1, "optimizer.schedule": "cosine"},
  "smoke": table2_cifar10.VARIANTS["smoke"],
}


def get_config(variant: str = ""):
  config = table2_cifar10.get_config()
  config.update_from_flattened_dict(default.choose(variant, VARIANTS))
  return config


def get_axes(variant: str = ""):
  if variant == "smoke":
    network = {"ResNet-20": {"model.depth": 20}}
    return {"network": network, "scheme": {name: ROWS[name] for name in SMOKE}}
  networks = CUT if variant == "cpu" else table2_cifar10.NETWORKS
  return {"network": networks, "sparsity.density": (0.05, 0.1), "scheme": ROWS}
