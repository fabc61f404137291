"""Static masks beside SET and RigL, from base and EOI starts: appendix I of the paper.

ResNet-20 (`--config.model.depth=32` for the other one) on CIFAR-10 with a tenth of its
weights in ERK layers; ReLU, SGD with Nesterov momentum .9, rate .1 divided by 10 at 1/2
and 3/4, weight decay 1e-4, batch 128, 200 epochs. Masks move every 100 steps until 3/4
of the training, at first .3 of their weights. EOI needs the "raise" of layers below
their floor; every other start has the same total. Centre mode and reference follow the
released settings, as in `cifar10_resnet32.py`.

Command: python -m train.run --config configs/cifar10_dynamic.py
Variants: `:smoke` trains for 2 epochs of 1024 images. `:cpu` trains for 3 epochs at
batch 32 (4218 steps); its rate starts at .05 and falls by a cosine, so that what grows
late can still be trained. `:isometry` compares RigL from EOI without and with ten steps
towards isometry after each move, `:cpu_isometry` likewise at the length of `:cpu`.
`:methods` compares RigL, RigL with constant fan-in (SRigL) and, from a dense start,
gradual magnitude pruning to the same density; `:cpu_methods` likewise.

Cost of `:cpu`: 12 minutes of a CPU core for each of the six (.16 s a step, measured).

For comparison: at density .1 a CIFAR-10 ResNet reaches 91.5 % with static ERK masks and
92.9 % with RigL, at .05 89.0 % and 91.8 % (public RigL thread, no. 8).
"""

from configs import default

STARTS, METHODS = ("base", "eoi"), ("static", "set", "rigl")
CHOICES = tuple(f"{method}+{start}" for start in STARTS for method in METHODS)

CPU = {
  "num_epochs": 3,
  "batch_size": 32,
  "steps_per_dispatch": 100,
  "data.limit": 0,
  "optimizer.learning_rate": 0.05,
  "optimizer.schedule": "cosine",
}
ISOMETRY = {
  "dynamic.method": "rigl",
  "compare.field": "dynamic.isometry_steps",
  "compare.choices": (0, 10),
}
MORE = {
  "dynamic.method": "rigl",
  "sparsity.start": "base",
  "dynamic.density": 0.1,
  "compare.field": "dynamic.method+sparsity.start+sparsity.density",
  "compare.choices": ("rigl+base+0.1", "srigl+base+0.1", "gmp+base+1.0"),
}
VARIANTS = {
  "cpu": CPU,
  "isometry": ISOMETRY,
  "cpu_isometry": CPU | ISOMETRY,
  "methods": MORE,
  "cpu_methods": CPU | MORE,
  "smoke": {
    "num_epochs": 2,
    "batch_size": 64,
    "data.limit": 1024,
    "dynamic.every": 5,
  },
}


def get_config(variant: str = ""):
  config = default.get_config()
  config.num_epochs = 200
  config.data.name = "cifar10"
  config.data.augment = "crop_flip"
  config.model.name = "cifar_resnet"
  config.model.depth = 20
  config.model.activation = "relu"
  config.sparsity.distribution = "erk"
  config.sparsity.center = "more"
  config.sparsity.reference = "conv_orthogonal"
  config.optimizer.learning_rate = 0.1
  config.compare.field = "dynamic.method+sparsity.start"
  config.compare.choices = CHOICES
  config.update_from_flattened_dict(default.choose(variant, VARIANTS))
  return config
