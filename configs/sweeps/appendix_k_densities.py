"""Appendix K, ResNet-56 on CIFAR-10 over a range of densities.

The recipe is that of `table2_deep_resnets.py`, which says what it follows, with its
rates and dense networks. `figure.png` shows accuracy by scheme;
`python -m train.paper accuracy WORKDIR` draws it over the density.

Command: python -m train.sweep --config configs/sweeps/appendix_k_densities.py:cpu
Variants: `:cpu` trains ResNet-20 instead, from ERK masks at three densities on 4096
images, one seed; `:smoke` two schemes of it for 2 epochs of 512 images.
Cost: an estimate for 2 CPU cores, 10 minutes for `:cpu` with `--workers=2`; all of it
is for an accelerator.
"""

from configs.sweeps import schemes, table2_cifar10, table2_deep_resnets

VARIANTS = table2_cifar10.VARIANTS
CPU = {"data.limit": 4096, "seeds": ()}  # beside that of table 2


def get_config(variant: str = ""):
  config = table2_cifar10.get_config(variant)
  config.model.depth = 20 if variant else 56
  if variant == "cpu":
    config.update_from_flattened_dict(CPU)
  return config


def get_axes(variant: str = ""):
  if variant == "smoke":
    densities, rows = (0.1,), schemes("erk-base", "erk-eoi")
  elif variant == "cpu":
    densities, rows = (0.05, 0.1, 0.3), schemes(*table2_cifar10.ERK)
  else:
    names = (*table2_cifar10.ERK, "synflow-base", "synflow-ai", "synflow-eoi")
    densities, rows = (0.05, 0.1, 0.2, 0.3, 0.5), table2_deep_resnets.rows(*names)
  return {"sparsity.density": densities, "scheme": rows}
