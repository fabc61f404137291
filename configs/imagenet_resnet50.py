"""ResNet-50 on ImageNet with a tenth of its weights: ERK from EOI, and from base.

The paper compares these two starts at this density, on ImageNet; its schedule is not
known to us. Batch, rate, epochs and warm-up are those of Goyal et al., 2017
(arXiv:1706.02677, section 5.1): SGD with Nesterov momentum .9, batch 256, rate .1 that
rises in the first 5 of 90 epochs, weight decay 1e-4, random resized crops and flips,
the centre of the official validation images as test set; it mixes no images, repeats
none and drops no branch. Here the rate is divided by 10
at 1/2 and 3/4, as in the paper's other recipes; layers compute in bfloat16; 1 % of the
training images are held out. Centre mode "more" and conv-orthogonal reference follow
the released settings of the CIFAR networks; those of this one are not known to us.

The data set is prepared once from the two official archives in a directory of yours:

  python -m train.prepare --dataset=imagenet --manual_dir=DIR

Command: python -m train.run --config configs/imagenet_resnet50.py
Variants: `:smoke` trains from EOI alone for 2 epochs of 12 images, in float32. Without
ImageNet, `train/imagenet_sample.py` says how to make a small set in its format.

Cost: an estimate, 31 PFLOP an epoch (25 GFLOP an image) and 2800 in all for each start:
work for an accelerator, and for some 2000 images a second from the host's cores. Not
run. `:smoke` 157 s of CPU time (measured on 2 cores shared with many jobs, where it
took 9 minutes).
"""

from configs import default

VARIANTS = {
  "smoke": {
    "num_epochs": 2,
    "batch_size": 4,
    "steps_per_dispatch": 4,
    "data.limit": 12,
    "model.dtype": "float32",
    "optimizer.learning_rate": 0.01,
    "optimizer.schedule": "constant",
    "optimizer.warmup": 0.0,
    "compare.field": "",
    "compare.choices": (),
  },
}


def get_config(variant: str = ""):
  config = default.get_config()
  config.num_epochs = 90
  config.batch_size = 256
  config.steps_per_dispatch = 10  # each chunk of images waits in memory
  config.data.name = "imagenet"
  config.data.validation = 0.01
  config.data.augment = "random_resized_crop"
  config.model.name = "resnet50"
  config.model.activation = "relu"
  config.model.dtype = "bfloat16"
  config.sparsity.distribution = "erk"
  config.sparsity.center = "more"
  config.sparsity.reference = "conv_orthogonal"
  config.optimizer.learning_rate = 0.1
  config.optimizer.warmup = 5 / 90
  config.compare.field = "sparsity.start"
  config.compare.choices = ("eoi", "base")
  config.update_from_flattened_dict(default.choose(variant, VARIANTS))
  return config
