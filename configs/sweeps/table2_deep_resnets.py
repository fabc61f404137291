"""Table 2 and Figure 4, ResNet-56 and ResNet-110 on CIFAR-10.

The recipe is that of `table2_cifar10.py`. Follows the released settings: EOI trains at
rates .1 and .01, all others at .1; one dense network is conv-orthogonal, one has the
default kernels of PyTorch. The released files compute SynFlow in double precision; here
its numbers carry exponents of their own, which do not over- or underflow in either.

Command: python -m train.sweep --config configs/sweeps/table2_deep_resnets.py:cpu
Variants: `:cpu` trains ResNet-56 from ERK masks at density .1 on 1024 images, one seed,
otherwise as there; `:smoke` two schemes of ResNet-20 for 2 epochs of 512 images.
Cost: an estimate for 2 CPU cores, 15 minutes for `:cpu` with `--workers=2`; all of it
is for an accelerator.
"""

from configs.sweeps import DISTRIBUTIONS, STARTS, schemes, table2_cifar10

VARIANTS = table2_cifar10.VARIANTS
CPU = {"data.limit": 1024, "seeds": ()}  # beside that of table 2
NETWORKS = {f"ResNet-{depth}": {"model.depth": depth} for depth in (56, 110)}


def rows(*names: str) -> dict[str, dict]:
  """Returns an axis of schemes: EOI's at two rates, and both dense networks."""
  found = schemes(*names, "dense", "dense-default", dense="conv_orthogonal")
  slow = {"optimizer.learning_rate": 0.01}
  again = {f"{n}, rate .01": found[n] | slow for n in names if n.endswith("-eoi")}
  return found | again


def get_config(variant: str = ""):
  config = table2_cifar10.get_config(variant)
  if variant == "cpu":
    config.update_from_flattened_dict(CPU)
  return config


def get_axes(variant: str = ""):
  if variant == "smoke":
    network = {"ResNet-20": {"model.depth": 20}}
    return {"network": network, "scheme": schemes("erk-base", "erk-eoi")}
  if variant == "cpu":
    network = {"ResNet-56": NETWORKS["ResNet-56"]}
    return {"network": network, "scheme": schemes(*table2_cifar10.ERK)}
  names = [f"{d}-{start}" for d in DISTRIBUTIONS for start in STARTS]
  return {
    "network": NETWORKS,
    "sparsity.density": (0.05, 0.1),
    "scheme": rows(*names),
  }
