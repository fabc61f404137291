"""What a training needs to know of a network besides its forward pass."""

from typing import Any

import flax.linen as nn

from eoi_jax import _kernels as kernels


def is_rest(name: str, leaf: Any) -> bool:
  """Whether the parameter `name` belongs to a stack called `..._rest`.

  So are those called that hold the equal blocks of a stage, all but the first.
  """
  del leaf
  return name.partition("/")[0].endswith("_rest")


class Network(nn.Module):
  """A Linen module that says which leaves are kernels and which are stacks."""

  @staticmethod
  def is_kernel(name: str, leaf: Any) -> bool:
    """Whether the parameter called `name` may become sparse."""
    return kernels.is_kernel(name, leaf)

  @staticmethod
  def is_stacked(name: str, leaf: Any) -> bool:
    """Whether the parameter called `name` has a leading axis of layers."""
    return kernels.never_stacked(name, leaf)
