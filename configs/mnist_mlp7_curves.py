"""The paper's loss curves: MLP-7 on MNIST by activation.

784-100x6-10 with a tenth of the weights. As in the paper: SGD with Nesterov momentum
.9, rate .01 divided by 10 at 1/2 and 3/4, weight decay 1e-4, batch 128, 100 epochs;
also with density .05 (`--config.sparsity.density=0.05`) and from the other starts
(`--config.sparsity.start=base`). Follows the released settings: orthogonal kernels
behind base, AI and scores, 10000 steps of AI.

Command: python -m train.run --config configs/mnist_mlp7_curves.py
Variants: `:smoke` trains for one epoch.

Cost: an estimate for 2 CPU cores, 40 s for each activation, and compilation.
"""

from configs import default

VARIANTS = {
  "smoke": {"num_epochs": 1},
}


def get_config(variant: str = ""):
  config = default.get_config()
  config.num_epochs = 100
  config.checkpoint_every = 10
  config.data.name = "mnist"
  config.compare.field = "model.activation"
  config.compare.choices = ("linear", "tanh", "hard_tanh", "relu")
  config.update_from_flattened_dict(default.choose(variant, VARIANTS))
  return config
