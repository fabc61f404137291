"""Appendix I, static masks beside SET and RigL, from base and EOI starts.

ResNet-20 and ResNet-32 on CIFAR-10 with a tenth of the weights in ERK layers. The
recipe is that of `table2_cifar10.py`; masks move every 100 steps until 3/4 of the
training, at first .3 of their weights.

Command: python -m train.sweep --config configs/sweeps/appendix_i_dynamic.py:cpu
Variants: `:cpu` trains ResNet-20 from one seed on 5120 images, for 4 epochs of batches
of 64 at a rate of .05, and moves masks every 20 steps; `:smoke` static masks and RigL
from EOI for 2 epochs of 512 images.
Cost: an estimate for 2 CPU cores, 15 minutes for `:cpu`; all of it is for an
accelerator.
"""

from configs.sweeps import table2_cifar10

VARIANTS = table2_cifar10.VARIANTS
METHODS = ("static", "set", "rigl")


def get_config(variant: str = ""):
  config = table2_cifar10.get_config(variant)
  config.model.depth = 20
  config.sparsity.distribution = "erk"
  config.data.limit = {"cpu": 5120, "smoke": 512}.get(variant, 0)
  config.dynamic.every = {"cpu": 20, "smoke": 5}.get(variant, 100)
  return config


def get_axes(variant: str = ""):
  depths = (20,) if variant else (20, 32)
  networks = {f"ResNet-{depth}": {"model.depth": depth} for depth in depths}
  pairs = [(start, method) for start in ("base", "eoi") for method in METHODS]
  if variant == "smoke":
    pairs = [("eoi", "static"), ("eoi", "rigl")]
  schemes = {
    f"{start}, {method}": {"sparsity.start": start, "dynamic.method": method}
    for start, method in pairs
  }
  return {"network": networks, "scheme": schemes}
