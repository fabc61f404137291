"""The paper's ResNet-56 on CIFAR-10 over a range of densities.

The recipe is that of `cifar10_resnet32.py`, twice as deep, once for each density.
Follows the released settings as there; they train EOI at a rate of .01, too
(`--config.optimizer.learning_rate=0.01`).

Command: python -m train.run --config configs/cifar10_resnet56.py
Variants: `:smoke` trains one density for 2 epochs of 128 images.

Cost: an estimate for 2 CPU cores, 28 hours for each density; `:smoke` less than that of
`cifar10_resnet110.py`, 85 s of CPU time.
"""

from configs import cifar10_resnet32, default

VARIANTS = {
  "smoke": {
    "num_epochs": 2,
    "batch_size": 16,
    "data.limit": 128,
    "compare.field": "",
    "compare.choices": (),
  },
}


def get_config(variant: str = ""):
  config = cifar10_resnet32.get_config()
  config.model.depth = 56
  config.compare.field = "sparsity.density"
  config.compare.choices = (0.05, 0.1, 0.2, 0.3, 0.5)
  config.update_from_flattened_dict(default.choose(variant, VARIANTS))
  return config
