"""The paper's VGG-16 on CIFAR-10 with a tenth of its weights.

The recipe is that of `cifar10_resnet32.py`; also with density .05, and at .1 with tanh,
leaky_relu and selu. Form C has three 1 x 1 convolutions, form D none. Follows the
released settings, with form C, as `cifar10_resnet32.py` does.

Command: python -m train.run --config configs/cifar10_vgg16.py
      or python -m train.run --config configs/cifar10_vgg16.py:d
Variants: `:smoke` trains form C for 2 epochs of 256 images.

Cost: an estimate for 2 CPU cores, 30 minutes an epoch and 100 hours in all; `:smoke`
90 s on cores shared with other jobs, 22 s of it training (measured).
"""

from configs import cifar10_resnet32, default

VARIANTS = {
  "d": {"model.name": "vgg16_d"},
  "smoke": {"num_epochs": 2, "batch_size": 32, "data.limit": 256},
}


def get_config(variant: str = ""):
  config = cifar10_resnet32.get_config()
  config.model.name = "vgg16_c"
  config.update_from_flattened_dict(default.choose(variant, VARIANTS))
  return config
