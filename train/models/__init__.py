"""Networks by name; parameters are plain pytrees (Flax Linen)."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
from jax.nn.initializers import Initializer

from train.core.own import is_own
from train.data.datasets import DatasetSpec
from train.models import own
from train.models.activations import ACTIVATIONS
from train.models.blocks import NO_BLOCKS, Blocks
from train.models.cnn import CNN
from train.models.efficientnet import EfficientNet
from train.models.mlp import MLP
from train.models.network import Network
from train.models.resnet import ResNet, cifar_resnet, resnet50
from train.models.vgg import VGG
from train.models.vit import ViT

__all__ = [
  "ACTIVATIONS",
  "CNN",
  "DTYPES",
  "MLP",
  "MODELS",
  "VGG",
  "Blocks",
  "EfficientNet",
  "Model",
  "Network",
  "ResNet",
  "ViT",
  "cifar_resnet",
  "create_model",
  "resnet50",
  "title_and_fields",
]

DTYPES = ("float32", "bfloat16")


class Model(NamedTuple):
  """How to build a network, and what to call it."""

  make: Callable[..., Network]
  fields: tuple[str, ...]  # the fields of `config.model` that it takes
  title: str  # its name in figures


_DEEP = ("depth", "width", "activation", "dtype", "remat")
_FIXED = ("activation", "dtype")
_OF_VIT = (*_FIXED, "drop_path", "remat", "blocks")

MODELS = {
  "mlp": Model(MLP, (*_DEEP, "blocks"), "MLP"),
  "cnn": Model(CNN, _DEEP, "CNN"),
  "cifar_resnet": Model(cifar_resnet, ("depth", *_FIXED), "ResNet"),
  "vgg16_c": Model(functools.partial(VGG, "C"), (*_FIXED, "blocks"), "VGG-16 (C)"),
  "vgg16_d": Model(functools.partial(VGG, "D"), (*_FIXED, "blocks"), "VGG-16 (D)"),
  "resnet50": Model(resnet50, _FIXED, "ResNet-50"),
  "efficientnet_b0": Model(EfficientNet, _FIXED, "EfficientNet-B0"),
  "deit3_s": Model(
    functools.partial(ViT, width=384, num_heads=6), _OF_VIT, "DeiT III S"
  ),
  "deit3_b": Model(
    functools.partial(ViT, width=768, num_heads=12), _OF_VIT, "DeiT III B"
  ),
  "vit4": Model(
    functools.partial(ViT, patch_size=4, width=128, num_heads=4),
    ("depth", "width", *_OF_VIT),
    "ViT of 4 x 4 patches",
  ),
}


@functools.cache
def bias_initializer(std: float) -> Initializer:
  """Returns zeros, or Gaussians of deviation `std`; equal arguments, equal object."""
  return nn.initializers.normal(std) if std else nn.initializers.zeros_init()


def title_and_fields(name: str) -> tuple[str, tuple[str, ...]]:
  """Returns what to call a network, and the fields of `config.model` that it takes."""
  if is_own(name):
    return name.rpartition(":")[2], own.model_fields(name)
  return MODELS[name].title, MODELS[name].fields


def create_model(
  config: Any, spec: DatasetSpec, *, bias_std: float, blocks: Blocks = NO_BLOCKS
) -> Network:
  """Builds the network of `config.model`, which knows its `layouts`.

  Models compare equal when their settings do, so that two runs which differ in their
  start only share one compiled program. `bias_std` is the deviation of the initial
  biases; `train.core.start.create_network` chooses the blocks.

  Raises:
    ValueError: if the network does not exist in that depth, drops no branch, or takes
      no options.
  """
  given = {
    "num_classes": spec.num_classes,
    "kernel_init": bias_initializer(0.0),  # every such kernel gets its start later
    "bias_init": bias_initializer(float(bias_std)),
  }
  name, drop_path = config.model.name, config.model.drop_path
  if drop_path and "drop_path" not in title_and_fields(name)[1]:
    raise ValueError(
      f"`model.drop_path` must be 0 for {name!r}, which drops no branch, got "
      f"{drop_path}."
    )
  if config.model.options and not is_own(name):
    raise ValueError(
      f"`model.options` must be empty for {name!r}, which is no network of your own, "
      f"got {config.model.options!r}."
    )
  if is_own(name):
    return own.create(config, spec, given, bias_std=bias_std)
  entry, values = MODELS[name], config.model.to_dict() | {"blocks": blocks}
  return entry.make(**given, **{field: values[field] for field in entry.fields})
