"""Appendix I, static masks beside SET and RigL, from base and EOI starts.

ResNet-20 and ResNet-32 on CIFAR-10 with a tenth of the weights in ERK layers. The
recipe is that of `table2_cifar10.py`, which says what it follows; masks
move every 100 steps until 3/4 of the training, at first .3 of their weights.

Command: python -m train.sweep --config configs/sweeps/appendix_i_dynamic.py:cpu
Variants: `:cpu` trains ResNet-20 from 2 seeds for 3 epochs at batch 32 (4218 steps);
its rate starts at .05 and falls by a cosine, so that what grows late can still be
trained; `--config.dynamic.every=400` moves masks after as many images as in the paper.
`:smoke` trains static masks and RigL from EOI for 2 epochs of 512 images.
Cost: 75 minutes of 2 CPU cores for `:cpu` with `--workers=2` (12 minutes a run; half of
them were measured); all of it is for an accelerator.
"""

from configs import cifar10_dynamic
from configs.sweeps import table2_cifar10

VARIANTS = table2_cifar10.VARIANTS
MOVES = {  # beside the variants of table 2
  "cpu": cifar10_dynamic.CPU | {"seeds": (0, 1)},
  "smoke": {"dynamic.every": 5},
}
METHODS = ("static", "set", "rigl")


def get_config(variant: str = ""):
  config = table2_cifar10.get_config(variant)
  config.model.depth = 20
  config.sparsity.distribution = "erk"
  config.update_from_flattened_dict(MOVES.get(variant, {}))
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
