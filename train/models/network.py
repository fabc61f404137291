"""What a training needs to know of a network besides its forward pass."""

import functools
from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

import eoi_jax


class Network(nn.Module):
  """A Linen module whose kernels are read off its layers.

  Attributes:
    others: table of `eoi_jax.kernel_layouts` for parameters that are no layer's.
    image_shape: of the images by which the layers are read; what axes mean does not
      depend on it, as a rule.
  """

  others: ClassVar[Mapping[str, Any]] = {}
  image_shape = (32, 32, 3)

  @staticmethod
  def may_be_sparse(name: str) -> bool:
    """Whether the kernel called `name` may become sparse."""
    del name
    return True

  @property
  def kernels(self) -> eoi_jax.Layouts:
    """Layouts of all kernels, those that stay dense, too."""
    return _layouts(self)  # pyright: ignore[reportArgumentType]

  @property
  def layouts(self) -> eoi_jax.Layouts:
    """Layouts of the kernels that may become sparse."""
    kernels = self.kernels
    dense = [n for n, x in kernels.items() if x and not self.may_be_sparse(n)]
    return kernels.replace(dict.fromkeys(dense))


@functools.lru_cache(maxsize=64)
def _layouts(model: Network) -> eoi_jax.Layouts:
  images = jax.ShapeDtypeStruct((1, *model.image_shape), jnp.float32)
  return eoi_jax.linen_layouts(model, images, table=model.others)
