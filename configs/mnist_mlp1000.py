"""The paper's 1000-layer MLP on MNIST: tanh, no normalization, no shortcuts.

784-128, 998 times 128-128, 128-10; one weight in eight is trained. As in the paper:
the critical line of tanh (sigma_w^2 = 1.05, sigma_b^2 = 2.01e-5), SGD with Nesterov
momentum .9, rate 1e-4 divided by 10 at 1/2 and 3/4, weight decay 1e-4, batch 128, 100
epochs. Follows the released settings: base and AI from orthogonal kernels, 1000 steps
of AI, SAO of degree 16.

Command: python -m train.run --config configs/mnist_mlp1000.py
      or python -m train.run --config configs/mnist_mlp1000.py:epoch
Variants: `:epoch` stops after the first epoch, `:smoke` after 50 steps from eoi alone.

Cost: measured on 2 CPU cores shared with many jobs. An epoch from one start takes 4
minutes, `:epoch` 10 minutes for both starts, start and evaluation included (172 s of
CPU time); `:smoke` 75 s. Not measured: 100 epochs, some 7 hours for each start.
Paper: EOI at this density learns about as well as the dense network.
Result after `:epoch`: test accuracy 79.2 % from eoi, 10.3 % from base, which stays at
chance (n = 1, seed 0; benchmarks/results/mnist_mlp1000_epoch.png).
"""

from configs import default

_ALONE = {"compare.field": "", "compare.choices": ()}
VARIANTS = {
  "epoch": {
    "num_epochs": 1,
    "optimizer.schedule": "constant",
    "compare.choices": ("eoi", "base"),
  },
  "smoke": {
    "num_epochs": 1,
    "data.limit": 6400,
    "optimizer.schedule": "constant",
    **_ALONE,
  },
}


def get_config(variant: str = ""):
  config = default.get_config()
  config.num_epochs = 100
  config.steps_per_dispatch = 50
  config.data.name = "mnist"
  config.model.depth = 1000
  config.model.width = 128
  config.sparsity.density = 0.125
  config.sparsity.scale = 1.0247
  config.sparsity.bias_std = 0.00448
  config.sparsity.ai_steps = 1000
  config.optimizer.learning_rate = 1e-4
  config.compare.field = "sparsity.start"
  config.compare.choices = ("eoi", "base", "ai", "sao")
  config.update_from_flattened_dict(default.choose(variant, VARIANTS))
  return config
