"""The paper's ResNet-32 on CIFAR-10 with a tenth of its weights.

As in the paper: ReLU, SGD with Nesterov momentum .9, rate .1 divided by 10 at 1/2 and
3/4, weight decay 1e-4, batch 128, 200 epochs, a tenth of the training set held out,
images cropped and flipped at random; also with density .05
(`--config.sparsity.density=0.05`), and at .1 with tanh, leaky_relu and selu
(`--config.model.activation=tanh`). Follows the released settings: EOI in its "more"
mode; base, AI and scores from conv-orthogonal kernels; 10000 steps of AI.

Command: python -m train.run --config configs/cifar10_resnet32.py
Variants: `:smoke` trains for 2 epochs of 1024 images.

Cost: an estimate for 2 CPU cores, 5 minutes an epoch and 16 hours in all; `:smoke`
80 s on cores shared with few jobs, 11 s of it training (measured).
For comparison: static ERK masks of a CIFAR-10 ResNet reach 91.5 % at density .1 and
89.0 % at .05 (public RigL thread, no. 8).
"""

from configs import default

VARIANTS = {
  "smoke": {"num_epochs": 2, "batch_size": 64, "data.limit": 1024},
}


def get_config(variant: str = ""):
  config = default.get_config()
  config.num_epochs = 200
  config.data.name = "cifar10"
  config.data.augment = "crop_flip"
  config.model.name = "cifar_resnet"
  config.model.depth = 32
  config.model.activation = "relu"
  config.sparsity.center = "more"
  config.sparsity.reference = "conv_orthogonal"
  config.optimizer.learning_rate = 0.1
  config.update_from_flattened_dict(default.choose(variant, VARIANTS))
  return config
