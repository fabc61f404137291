"""Block-sparse layer for Flax NNX; importing this module imports Flax."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn.dtypes import promote_dtype

from eoi_jax.blocks.layout import BlockLayout, block_layout
from eoi_jax.blocks.orthogonal import block_orthogonal
from eoi_jax.blocks.product import block_matmul

__all__ = ["BlockDense", "BlockTable"]


class BlockTable(nnx.Variable):
  """An index table of a layout: saved and stacked with the parameters, not trained."""


class BlockDense(nnx.Module):
  """A linear layer with a block-sparse kernel; it stands where `nnx.Linear` stands.

  On images `[..., height, width, channels]` it is a 1 x 1 convolution. The layout is
  drawn from `rngs` at construction, and its tables are variables, so that layers made
  by `nnx.vmap` have a layout each.

  Args:
    in_features: input features.
    out_features: output features.
    density: fraction of the weights that exist, as in `block_layout`.
    block_size: units of a group, or "auto", as in `block_layout`.
    use_bias: whether to add a bias.
    dtype: of the computation; None infers it from inputs and parameters.
    param_dtype: of the parameters.
    precision: as in `block_matmul`.
    kernel_init: `(key, layout, dtype) -> blocks`.
    bias_init: a JAX initializer.
    layout_key: key of the layout; the next one of `rngs.params` if None.
    rngs: streams of keys; `params` is used.

  Example:
    >>> layer = BlockDense(64, 128, density=0.25, block_size=8, rngs=nnx.Rngs(0))
    >>> layer.blocks.shape, layer(jnp.ones((3, 64))).shape
    ((8, 2, 8, 16), (3, 128))
  """

  def __init__(
    self,
    in_features: int,
    out_features: int,
    *,
    density: float = 0.125,
    block_size: int | Literal["auto"] = "auto",
    use_bias: bool = True,
    dtype: Any = None,
    param_dtype: Any = jnp.float32,
    precision: Any = None,
    kernel_init: Callable = block_orthogonal,
    bias_init: Callable = nnx.initializers.zeros,
    layout_key: jax.Array | None = None,
    rngs: nnx.Rngs,
  ):
    key = rngs.params() if layout_key is None else layout_key
    layout = block_layout(
      key, (in_features, out_features), density, block_size=block_size
    )
    self.in_features = in_features
    self.out_features = out_features
    self.num_groups = layout.num_groups
    self.num_matchings = layout.num_matchings
    self.inputs = BlockTable(layout.inputs)
    self.outputs = BlockTable(layout.outputs)
    self.blocks = nnx.Param(kernel_init(rngs.params(), layout, param_dtype))
    self.bias = nnx.data(None)
    if use_bias:
      bias = bias_init(rngs.params(), (out_features,), param_dtype)
      self.bias = nnx.Param(bias)
    self.dtype = dtype
    self.param_dtype = param_dtype
    self.precision = precision

  @property
  def layout(self) -> BlockLayout:
    """Layout of the blocks."""
    return BlockLayout(
      self.inputs[...],
      self.outputs[...],
      (self.in_features, self.out_features),
      self.num_groups,
      self.num_matchings,
    )

  def __call__(self, inputs: jax.Array) -> jax.Array:
    """Maps `[..., in_features]` to `[..., out_features]`."""
    bias = None if self.bias is None else self.bias[...]
    x, blocks, bias = promote_dtype((inputs, self.blocks[...], bias), dtype=self.dtype)
    y = block_matmul(x, blocks, self.layout, precision=self.precision)
    if bias is not None:
      y += bias.reshape((1,) * (y.ndim - 1) + (-1,))
    return y
