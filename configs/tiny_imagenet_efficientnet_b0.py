"""The paper's EfficientNet-B0 on Tiny ImageNet with a tenth of its weights.

As in the paper: SGD with Nesterov momentum .9, rate .01 divided by 10 at 1/2 and 3/4,
weight decay 1e-3, batch 128, 120 epochs; a tenth of the training set is held out, and
the official validation images are the test set. The images enter at 64 x 64 pixels, as
they are: the paper names no augmentation here (`--config.data.augment=crop_flip` crops
and flips). Follows the released settings: EOI in its "more" mode; base, AI and scores
from conv-orthogonal kernels; 10000 steps of AI. Depthwise kernels stay dense here.

The data set is prepared once from the official archive in a directory of yours:

  python -m train.prepare --dataset=tiny_imagenet --manual_dir=DIR

Command: python -m train.run --config configs/tiny_imagenet_efficientnet_b0.py
Variants: `:smoke` trains for 2 epochs of 64 images.

Cost: the whole recipe is for an accelerator and was not run; `:smoke` 190 s of CPU
time, nearly all of it compilation (measured on 2 cores shared with many jobs, where it
took 8 minutes).
"""

from configs import default

VARIANTS = {
  "smoke": {"num_epochs": 2, "batch_size": 16, "data.limit": 64},
}


def get_config(variant: str = ""):
  config = default.get_config()
  config.num_epochs = 120
  config.data.name = "tiny_imagenet"
  config.model.name = "efficientnet_b0"
  config.model.activation = "silu"
  config.sparsity.center = "more"
  config.sparsity.reference = "conv_orthogonal"
  config.optimizer.learning_rate = 0.01
  config.optimizer.weight_decay = 1e-3
  config.update_from_flattened_dict(default.choose(variant, VARIANTS))
  return config
