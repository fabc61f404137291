"""Every field with its meaning; other configs start from here and change lines.

Not a recipe by itself: see `quickstart.py`, `mnist_mlp7.py`.
"""

from ml_collections import ConfigDict, FieldReference


def get_config(variant: str = "") -> ConfigDict:
  """Returns the fields with plain values; `variant` is empty here."""
  choose(variant, {})
  config = ConfigDict()
  config.seed = 0  # everything random is a function of it
  config.seeds = ()  # such as (0, 1, 2): these instead, all in one program
  config.num_epochs = 10
  config.batch_size = 128
  config.steps_per_dispatch = 500  # compiled steps between two looks by the host
  config.eval_every = 1  # epochs
  config.checkpoint_every = 1  # epochs; the end is always kept
  config.keep_checkpoints = 2  # the newest
  config.keep_best = 1  # and those of the highest held-out accuracy
  config.placement = "replicated"  # parameters on several devices: replicated, sharded
  config.tensorboard = False  # event files besides metrics.jsonl; needs tensorboardX
  config.dry_run = False  # say what would be done, after one step, and stop

  config.data = ConfigDict()
  # digits, mnist, fashion_mnist, cifar10, cifar100, tiny_imagenet, imagenet
  config.data.name = "mnist"
  config.data.augment = False  # reflect-pad by 4, random crop, random flip
  config.data.validation = 0.1  # held out of the training set
  config.data.limit = 0  # examples of each split to keep, for a quick look; 0 is all

  config.model = ConfigDict()
  # mlp, cnn, cifar_resnet, vgg16_c, vgg16_d, resnet50, efficientnet_b0, deit3_s or _b
  config.model.name = "mlp"
  config.model.depth = 7  # layers of mlp, cnn, cifar_resnet, first and last included
  config.model.width = 100  # of mlp and cnn
  # linear, tanh, hard_tanh, relu, leaky_relu, selu, silu, gelu
  config.model.activation = "tanh"
  config.model.dtype = "float32"  # of the computation: float32, bfloat16
  config.model.remat = False  # mlp, cnn, deit3: less memory for more time

  config.sparsity = ConfigDict()
  # How the weights start: eoi, eoi_in_mask, eoi_structured, base, ai, sao, or dense:
  # orthogonal, delta_orthogonal, conv_orthogonal
  config.sparsity.start = "eoi"
  # Where the density goes: uniform, erk, snip, grasp, synflow; dense is 1 everywhere
  config.sparsity.distribution = "uniform"
  config.sparsity.density = 0.1  # of all kernels together; 1 is dense
  # Gain of the kernels, sigma_w; "critical" sets it and bias_std for the activation.
  config.sparsity.scale = FieldReference(1.0, field_type=object)
  config.sparsity.q_star = 0.0259  # variance of the pre-activations if critical
  config.sparsity.bias_std = 0.0  # deviation of the initial biases, sigma_b
  config.sparsity.reference = "orthogonal"  # dense start of base and of the scores
  config.sparsity.ai_method = "sgd"  # sgd, as published, or adam
  config.sparsity.ai_steps = 10_000  # 200 are enough for adam
  # Layers with too few weights for EOI: raise them, others pay, or error
  config.sparsity.floors = "raise"
  config.sparsity.angle = 0.0  # of EOI's rotations in degrees; 0: uniformly random
  config.sparsity.grasp_examples = 25  # of each class, in two halves
  config.sparsity.synflow_rounds = 100

  config.optimizer = ConfigDict()
  config.optimizer.name = "sgd"  # sgd, adam, adamw
  config.optimizer.learning_rate = 0.01
  config.optimizer.momentum = 0.9  # b1 of Adam
  config.optimizer.nesterov = True
  config.optimizer.weight_decay = 1e-4
  config.optimizer.schedule = "step"  # constant, step (/10 at 1/2 and 3/4), cosine
  config.optimizer.warmup = 0.0  # part of the training in which the rate rises
  config.optimizer.label_smoothing = 0.0
  config.optimizer.clip_norm = 0.0  # largest norm of the gradient; 0 is any

  config.dynamic = ConfigDict()
  config.dynamic.method = "static"  # whether masks move: static, set, rigl
  config.dynamic.fraction = 0.3  # of the live weights, at first; falls as a cosine
  config.dynamic.every = 100  # steps
  config.dynamic.until = 0.75  # part of the training after which masks stay
  config.dynamic.scope = "layer"  # counts of each layer are kept; global: the total
  config.dynamic.mean_decay = (
    0.0  # of the mean of gradients that RigL looks at; 0: no mean
  )
  config.dynamic.skip_step = False  # leave out the step where masks move, as published
  config.dynamic.isometry_steps = 0  # towards isometry of the kernels, after each move
  config.dynamic.isometry_scale = 0.0  # the gain to reach; 0: each kernel keeps its own

  # Trains once for each of `choices` of `field`, then draws all curves in one figure.
  config.compare = ConfigDict()
  config.compare.field = ""  # such as "sparsity.start"
  config.compare.choices = ()
  return config


def choose(variant: str, variants: dict[str, dict]) -> dict:
  """Returns the changes that `--config=FILE:variant` stands for.

  Args:
    variant: the text after the colon; empty means no change.
    variants: name to changes, as `ConfigDict.update_from_flattened_dict` takes them.

  Returns:
    The changes, empty for no variant.

  Raises:
    ValueError: if there is no such variant.
  """
  if variant and variant not in variants:
    known = ", ".join(variants) or "none"
    raise ValueError(f"unknown variant {variant!r}; known variants: {known}.")
  return variants.get(variant, {})
