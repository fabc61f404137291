"""Block-sparse layer for Flax Linen; importing this module imports Flax."""

import functools
import math
import zlib
from collections.abc import Callable, Sequence
from typing import Any, Literal, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.linen.dtypes import promote_dtype

from eoi_jax.blocks.layout import BlockLayout, block_layout
from eoi_jax.blocks.orthogonal import block_orthogonal
from eoi_jax.blocks.product import block_matmul

__all__ = ["BlockDense"]


class BlockDense(nn.Module):
  """A linear layer with a block-sparse kernel; it stands where `nn.Dense` stands.

  On images `[..., height, width, channels]` it is a 1 x 1 convolution. With several
  `axis` or `features` it stands where `nn.DenseGeneral` stands: `features=(heads, dim)`
  projects to the query of an attention, `axis=(-2, -1)` back from its heads.

  Parameters: `blocks` `[G, r, bi, bo]` and `bias`. With a `seed` the layout is no
  variable but a function of the seed and of the path of the module, so layers of one
  network differ. With `seed=None` it is a variable: `layout` in the collection
  "layouts", drawn by the key of the parameters. Save it with them, and scan it by
  `variable_axes={"params": 0, "layouts": 0}`: all layers of `nn.scan` have one path.

  Attributes:
    features: output features, an int or several.
    density: fraction of the weights that exist, as in `block_layout`.
    block_size: units of a group, or "auto", as in `block_layout`.
    seed: of the layout; None makes the layout a variable.
    axis: input axes, the last ones of the input.
    use_bias: whether to add a bias.
    dtype: of the computation; None infers it from inputs and parameters.
    param_dtype: of the parameters.
    precision: as in `block_matmul`.
    kernel_init: `(key, layout, dtype) -> blocks`.
    bias_init: a JAX initializer.

  Example:
    >>> layer = BlockDense(128, density=0.25, block_size=8)
    >>> params = layer.init(jax.random.key(0), jnp.ones((1, 64)))["params"]
    >>> jax.tree.map(jnp.shape, params)
    {'bias': (128,), 'blocks': (8, 2, 8, 16)}
  """

  features: int | Sequence[int]
  density: float = 0.125
  block_size: int | Literal["auto"] = "auto"
  seed: int | None = 0
  axis: int | Sequence[int] = -1
  use_bias: bool = True
  dtype: Any = None
  param_dtype: Any = jnp.float32
  precision: Any = None
  kernel_init: Callable = block_orthogonal
  bias_init: Callable = nn.initializers.zeros_init()

  @nn.compact
  def __call__(self, inputs: jax.Array, layout: BlockLayout | None = None) -> jax.Array:
    """Applies the layer.

    Args:
      inputs: `[..., in]`, or with as many last axes as `axis` has.
      layout: layout to use in place of the layer's own.

    Returns:
      `[..., *features]`.
    """
    num_axes = 1 if isinstance(self.axis, int) else len(self.axis)
    axes = (self.axis,) if isinstance(self.axis, int) else tuple(self.axis)
    last = tuple(range(inputs.ndim - num_axes, inputs.ndim))
    if tuple(axis % inputs.ndim for axis in axes) != last:
      raise ValueError(f"`axis` must name the last axes in order, got {self.axis}.")
    features = self.features
    features = (features,) if isinstance(features, int) else tuple(features)
    rest = inputs.shape[: inputs.ndim - num_axes]
    shape = (math.prod(inputs.shape[len(rest) :]), math.prod(features))
    options = (shape, self.density, self.block_size)
    if layout is None and self.seed is None:
      draw = lambda: _draw(self.make_rng("params"), *options)  # noqa: E731
      layout = cast(BlockLayout, self.variable("layouts", "layout", draw).value)
    elif layout is None:
      layout = _layout(self.seed, "/".join(self.path), *options)
    elif layout.shape != shape:
      raise ValueError(f"`layout` must be of shape {shape}, got {layout.shape}.")
    blocks = self.param("blocks", self.kernel_init, layout, self.param_dtype)
    bias = None
    if self.use_bias:
      bias = self.param("bias", self.bias_init, features, self.param_dtype)
    x, blocks, bias = promote_dtype(
      inputs.reshape(*rest, shape[0]), blocks, bias, dtype=self.dtype
    )
    y = block_matmul(x, blocks, layout, precision=self.precision)
    y = y.reshape(*rest, *features)
    if bias is not None:
      y += bias.reshape((1,) * len(rest) + features)
    return y


def _draw(key: jax.Array, shape, density: float, block_size) -> BlockLayout:
  return block_layout(key, shape, density, block_size=block_size)


@functools.lru_cache(maxsize=1024)
def _layout(seed: int, path: str, shape, density: float, block_size) -> BlockLayout:
  """Layout of a seed and a path, as constants of the program that is being traced."""
  with jax.ensure_compile_time_eval():
    key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(path.encode()))
    return jax.tree.map(np.asarray, _draw(key, shape, density, block_size))
