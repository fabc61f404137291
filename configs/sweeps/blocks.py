"""Block EOI beside unstructured EOI, base and dense: do blocks learn as well?

An eighth of the weights of MLP-7 on MNIST and of a 5-layer MLP on CIFAR-10, both of
width 1024, and of the MLP blocks of a ViT of width 512 and 4 x 4 patches on CIFAR-10.
Blocks store and multiply what lives; the other sparse rows have masks.

Command: python -m train.sweep --config configs/sweeps/blocks.py:cpu
Variants: `:cpu` trains 3 seeds of the MLPs for 666 steps, 3 epochs of 28,445 examples,
and one seed of a ViT of width 128 and 4 blocks for 444 steps, in which those of 16 are
the largest that fit (`--only='*ViT/*16'`); `:smoke` two rows of the MLP-7, narrow.
Cost: an estimate for 2 CPU cores, an hour for `:cpu`; all of it is for an accelerator.
"""

from configs import default, mnist_mlp7

MLP = {"model.width": 1024}
VIT = {
  "data.name": "cifar10",
  "data.augment": "crop_flip",
  "model.name": "vit4",
  "model.depth": 6,
  "model.width": 512,
  "model.activation": "gelu",
  "optimizer.name": "adamw",
  "optimizer.learning_rate": 1e-3,
  "optimizer.weight_decay": 0.05,
  "optimizer.schedule": "cosine",
  "optimizer.warmup": 0.1,
}
NETWORKS = {
  "MNIST, MLP-7": MLP,
  "CIFAR-10, MLP-5": MLP
  | {"data.name": "cifar10", "model.depth": 5, "optimizer.learning_rate": 0.03},
  "CIFAR-10, ViT": VIT,
}
DENSE = {"sparsity.start": "orthogonal", "sparsity.distribution": "dense"}
ROWS = {
  "block EOI, 16": {"model.blocks": 16},
  "block EOI, 32": {"model.blocks": 32},
  "block EOI, 64": {"model.blocks": 64},
  "EOI": {},
  "base": {"sparsity.start": "base"},
  "dense": DENSE | {"sparsity.density": 1.0},
}
SMALL_VIT = VIT | {
  "model.depth": 4,
  "model.width": 128,
  "num_epochs": 1,
  "seeds": (),
  "batch_size": 64,
}
VARIANTS = {
  "cpu": {"num_epochs": 3, "seeds": (0, 1, 2), "data.limit": 28_445},
  "smoke": {"num_epochs": 1, "seeds": (), "data.limit": 2_845, "model.width": 128},
}


def get_config(variant: str = ""):
  config = mnist_mlp7.get_config()
  config.num_epochs, config.seeds = 100, (0, 1, 2, 3, 4)
  config.checkpoint_every, config.keep_checkpoints, config.keep_best = 10, 1, 0
  config.sparsity.density = 0.125
  config.update_from_flattened_dict(default.choose(variant, VARIANTS))
  return config


def get_axes(variant: str = ""):
  if variant == "smoke":
    rows = {name: ROWS[name] for name in ("block EOI, 16", "EOI")}
    return {"network": {"MNIST, MLP-7": {}}, "scheme": rows}
  small = {"CIFAR-10, ViT": SMALL_VIT} if variant == "cpu" else {}
  return {"network": NETWORKS | small, "scheme": ROWS}
