"""What a training needs to know of a network besides its forward pass."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer

import eoi_jax
from train.models.blocks import NO_BLOCKS, Blocks, zero_blocks


class Network(nn.Module, kw_only=True):
  """A Linen module whose kernels are read off its layers.

  Attributes:
    others: table of `eoi_jax.kernel_layouts` for parameters that are no layer's.
    image_shape: of the images by which the layers are read; what axes mean does not
      depend on it, as a rule.
    blocks: which of its dense layers have blocks, of a network that makes them by
      `dense`.
  """

  others: ClassVar[Mapping[str, Any]] = {}
  image_shape = (32, 32, 3)
  blocks: Blocks = NO_BLOCKS

  def dense(self, path: str, **options: Any) -> Callable[..., nn.Module]:
    """Returns what makes the dense layer `path`: `nn.Dense`, or one with blocks.

    The path names its modules from the network on, joined by "/"; options are those of
    `nn.Dense`, its features and name left out.
    """
    density = dict(self.blocks.densities).get(path)
    if density is None:
      return functools.partial(nn.Dense, **options)
    from eoi_jax.blocks.linen import BlockDense

    options |= {"density": density, "block_size": self.blocks.size, "seed": None}
    return functools.partial(BlockDense, **options | {"kernel_init": zero_blocks})

  @property
  def without_blocks(self) -> "Network":
    """The network with kernels in place of blocks: that of `dense_view`."""
    return self.clone(blocks=NO_BLOCKS) if self.blocks.size else self

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


class Classifier(Network, kw_only=True):
  """A network of the trainer."""

  num_classes: int  # number of logits
  activation: str = "relu"  # a name in `ACTIVATIONS`; not applied to the logits
  kernel_init: Initializer = nn.initializers.he_normal()
  bias_init: Initializer = nn.initializers.zeros_init()  # of offsets, too
  dtype: str = "float32"  # of the computation; parameters are float32

  @property
  def options(self) -> dict[str, Any]:
    """What dense layers and convolutions have in common."""
    initializers = {"kernel_init": self.kernel_init, "bias_init": self.bias_init}
    return {"dtype": jnp.dtype(self.dtype), **initializers}

  def logits(self, x: jax.Array) -> jax.Array:
    """Applies the last layer, a dense one called `output`."""
    dense = self.dense("output", **self.options)
    return dense(self.num_classes, name="output")(x).astype(jnp.float32)


@functools.lru_cache(maxsize=64)
def _layouts(model: Network) -> eoi_jax.Layouts:
  images = jax.ShapeDtypeStruct((1, *model.image_shape), jnp.float32)
  return eoi_jax.linen_layouts(model, images, table=model.others)
