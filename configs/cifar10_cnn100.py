"""A CNN of 100 layers on CIFAR-10 that a CPU can train: the deep CNN, cut down.

Circular 3 x 3 convolutions of 32 channels, two of them of stride 2, and a dense layer;
tanh, no normalization, no shortcuts; one weight in eight is trained, by ERK. Its own
recipe, not the paper's: rate 1e-3 that falls by a cosine, batch 64, one epoch without
augmentation. Follows the released settings of `cifar10_cnn1000.py` otherwise: critical
line of tanh, plain centre mode, conv-orthogonal kernels behind base and AI, 1000 steps
of AI.

Command: python -m train.run --config configs/cifar10_cnn100.py
Variants: `:smoke` trains 18 layers of 16 channels on 640 images.

Cost: an estimate for one CPU core, 700 steps in 15 minutes.
"""

from configs import default

VARIANTS = {
  "smoke": {
    "num_epochs": 2,
    "steps_per_dispatch": 10,
    "data.limit": 640,
    "model.depth": 18,
    "model.width": 16,
  },
}


def get_config(variant: str = ""):
  config = default.get_config()
  config.num_epochs = 1
  config.batch_size = 64
  config.steps_per_dispatch = 50
  config.data.name = "cifar10"
  config.model.name = "cnn"
  config.model.depth = 100
  config.model.width = 32
  config.sparsity.distribution = "erk"
  config.sparsity.density = 0.125
  config.sparsity.scale = 1.0247
  config.sparsity.bias_std = 0.00448
  config.sparsity.reference = "conv_orthogonal"
  config.sparsity.ai_steps = 1000
  config.optimizer.learning_rate = 1e-3
  config.optimizer.schedule = "cosine"
  config.update_from_flattened_dict(default.choose(variant, VARIANTS))
  return config
