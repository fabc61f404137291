"""The paper's 1000-layer CNN on CIFAR-10: tanh, no normalization, no shortcuts.

997 circular 3 x 3 convolutions of 128 channels, two of them of stride 2, and a dense
layer: 998 layers with weights. One weight in eight is trained. As in the paper: the
critical line of tanh (sigma_w^2 = 1.05, sigma_b^2 = 2.01e-5), SGD with Nesterov
momentum .9, rate 1e-4 divided by 10 at 1/2 and 3/4, weight decay 1e-4, batch 128, 100
epochs, images cropped and flipped at random. Follows the released settings: EOI in its
plain mode; base, AI and scores from conv-orthogonal kernels; 1000 steps of AI.

Command: python -m train.run --config configs/cifar10_cnn1000.py
Variants: `:smoke` trains 18 layers of 32 channels on 1000 images.

Cost: an estimate, 7 TFLOP a step and 2500 an epoch: work for an accelerator. Its
activations take 1.9 GB (as compiled for batch 128; 15 GB without `model.remat`).
`:smoke` 90 s on 2 CPU cores shared with other jobs, 16 s of it training (measured).
Paper: EOI reaches about 78 %, approximate isometry stays below 40 %.
"""

from configs import default

VARIANTS = {
  "smoke": {
    "num_epochs": 4,
    "batch_size": 50,
    "data.limit": 1000,
    "model.depth": 18,
    "model.width": 32,
    "optimizer.learning_rate": 1e-3,
  },
}


def get_config(variant: str = ""):
  config = default.get_config()
  config.num_epochs = 100
  config.data.name = "cifar10"
  config.data.augment = "crop_flip"
  config.model.name = "cnn"
  config.model.depth = 998
  config.model.width = 128
  config.model.remat = True
  config.sparsity.density = 0.125
  config.sparsity.scale = 1.0247
  config.sparsity.bias_std = 0.00448
  config.sparsity.reference = "conv_orthogonal"
  config.sparsity.ai_steps = 1000
  config.optimizer.learning_rate = 1e-4
  config.update_from_flattened_dict(default.choose(variant, VARIANTS))
  return config
