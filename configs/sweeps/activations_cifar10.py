"""ResNet-32 and VGG-16 on CIFAR-10 at density .1 by activation.

The recipe is that of `table2_cifar10.py`, which says what it follows, with tanh, leaky
ReLU and SELU.

Command: python -m train.sweep --config configs/sweeps/activations_cifar10.py:cpu
Variants: `:cpu` trains ResNet-32 from ERK masks on 4096 images, one seed, otherwise as
there; `:smoke` ResNet-20 with tanh for 2 epochs of 512 images.
Cost: an estimate for 2 CPU cores, 15 minutes for `:cpu` with `--workers=2`; all of it
is for an accelerator.
"""

from configs.sweeps import schemes, table2_cifar10

VARIANTS = table2_cifar10.VARIANTS
CPU = {"data.limit": 4096, "seeds": ()}  # beside that of table 2
ACTIVATIONS = ("tanh", "leaky_relu", "selu")


def get_config(variant: str = ""):
  config = table2_cifar10.get_config(variant)
  if variant == "cpu":
    config.update_from_flattened_dict(CPU)
  return config


def get_axes(variant: str = ""):
  networks = {n: table2_cifar10.NETWORKS[n] for n in ("ResNet-32", "VGG-16")}
  if variant == "cpu":
    del networks["VGG-16"]
  if variant == "smoke":
    networks = {"ResNet-20": {"model.depth": 20}}
  names = table2_cifar10.ERK if variant else (*table2_cifar10.ERK, "dense")
  return {
    "network": networks,
    "model.activation": ("tanh",) if variant == "smoke" else ACTIVATIONS,
    "scheme": schemes(*names, dense="conv_orthogonal"),
  }
