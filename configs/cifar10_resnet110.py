"""The paper's ResNet-110 on CIFAR-10 with a tenth of its weights.

The recipe is that of `cifar10_resnet32.py`; also with density .05. Follows the released
settings as there; they train EOI at a rate of .01, too
(`--config.optimizer.learning_rate=0.01`).

Command: python -m train.run --config configs/cifar10_resnet110.py
Variants: `:smoke` trains for 2 epochs of 128 images.

Cost: an estimate for 2 CPU cores, 56 hours; `:smoke` 85 s of CPU time (measured on
cores shared with many jobs), most of it compilation.
"""

from configs import cifar10_resnet32, default

VARIANTS = {
  "smoke": {"num_epochs": 2, "batch_size": 16, "data.limit": 128},
}


def get_config(variant: str = ""):
  config = cifar10_resnet32.get_config()
  config.model.depth = 110
  config.update_from_flattened_dict(default.choose(variant, VARIANTS))
  return config
