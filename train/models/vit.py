"""Vision transformers of DeiT III (Touvron et al., 2022, arXiv:2204.07118)."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer

from train.models.activations import ACTIVATIONS
from train.models.network import Classifier
from train.models.norms import LayerNorm
from train.models.stacks import stack

_SMALL = nn.initializers.truncated_normal(0.02)


class _Scale(nn.Module):
  """Layer scale: one factor a channel."""

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    scale = self.param("scale", nn.initializers.constant(1e-4), (x.shape[-1],))
    return x * scale.astype(x.dtype)[None, None]


class _Attention(nn.Module):
  """Self-attention of `[batch, tokens, width]` among the tokens."""

  num_heads: int
  dense: Callable[..., nn.Module]

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    batch, tokens, width = x.shape
    qkv = self.dense(3 * width, name="qkv")(x)
    qkv = qkv.reshape((batch, tokens, 3, self.num_heads, width // self.num_heads))
    query, key, value = (qkv[:, :, n] for n in range(3))
    logits = jnp.einsum("bqhd,bkhd->bhqk", query, key).astype(jnp.float32)
    scale = (width // self.num_heads) ** -0.5
    weights = nn.softmax(scale * logits).astype(x.dtype)
    y = jnp.einsum("bhqk,bkhd->bqhd", weights, value).reshape(x.shape)
    return self.dense(width, name="projection")(y)


class _MLP(nn.Module):
  """The block that may be sparse: four times as wide inside."""

  dense1: Callable[..., nn.Module]
  dense2: Callable[..., nn.Module]
  activation: Callable[[jax.Array], jax.Array]

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    y = self.activation(self.dense1(4 * x.shape[-1], name="dense1")(x))
    return self.dense2(x.shape[-1], name="dense2")(y)


class _Block(nn.Module):
  """Attention and MLP, each normalized before and scaled after, or dropped."""

  num_heads: int
  dense: Callable[..., nn.Module]
  norm: Callable[..., nn.Module]
  mlp: Callable[..., nn.Module]
  drop: Callable[..., nn.Module]

  @nn.compact
  def __call__(self, x: jax.Array, _: None) -> tuple[jax.Array, None]:
    y = self.norm(name="norm1")(x)
    y = _Attention(self.num_heads, self.dense, name="attention")(y)
    x = x + self.drop(name="drop1")(_Scale(name="scale1")(y))
    y = self.mlp(name="mlp")(self.norm(name="norm2")(x))
    return x + self.drop(name="drop2")(_Scale(name="scale2")(y)), None


class ViT(Classifier, kw_only=True):
  """A vision transformer with layer scale, in which only MLP blocks become sparse.

  `width=384, num_heads=6` is ViT-S, `768, 12` is ViT-B. Positions are learned for
  patches alone, not for the class token.
  """

  width: int  # channels of a token
  num_heads: int  # attention heads; they divide `width`
  depth: int = 12  # number of blocks, one stack of parameters
  patch_size: int = 16  # height and width of a patch in pixels
  activation: str = "gelu"  # inside of the MLP blocks
  kernel_init: Initializer = _SMALL  # of the MLP blocks; others are Gaussian, 0.02
  # Chance that a block's branch is left out of an example in training, the same in all
  # blocks; what stays is divided by `1 - drop_path`. It takes the key "dropout" (Huang
  # et al., 2016, arXiv:1603.09382).
  drop_path: float = 0.0
  remat: bool = False  # whether the backward pass computes the inside of blocks again

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    """Maps `[batch, height, width, channels]` to `[batch, num_classes]` logits."""
    dtype, width = jnp.dtype(self.dtype), self.width
    dense = functools.partial(nn.Dense, **self.options | {"kernel_init": _SMALL})
    inside = [self.dense(f"blocks/mlp/dense{n}", **self.options) for n in (1, 2)]
    mlp = functools.partial(_MLP, *inside, ACTIVATIONS[self.activation])
    norm = functools.partial(LayerNorm, epsilon=1e-6)
    drop = functools.partial(  # of an example all tokens and channels, or none
      nn.Dropout, self.drop_path, broadcast_dims=(1, 2), deterministic=not train
    )
    x = dense(width, name="patches")(self._patches(x))
    positions = self.param("positions", _SMALL, (1, x.shape[1], width))
    token = self.param("class_token", _SMALL, (1, 1, width)).astype(dtype)
    token = jnp.broadcast_to(token, (x.shape[0], 1, width))
    x = jnp.concatenate([token, x + positions.astype(dtype)], axis=1)
    blocks = stack(_Block, self.depth, remat=self.remat)
    x, _ = blocks(self.num_heads, dense, norm, mlp, drop, name="blocks")(x, None)
    x = norm(name="norm")(x[:, 0])
    return dense(self.num_classes, name="output")(x).astype(jnp.float32)

  def _patches(self, x: jax.Array) -> jax.Array:
    """Cuts images into `[batch, patches, pixels and channels of a patch]`."""
    size = self.patch_size
    batch, height, width, channels = x.shape
    if height % size or width % size:
      raise ValueError(
        f"height and width of the images must be multiples of {size}, "
        f"got {height} x {width}."
      )
    rows, cols = height // size, width // size
    x = x.reshape((batch, rows, size, cols, size, channels)).swapaxes(2, 3)
    return x.reshape((batch, rows * cols, -1))

  others: ClassVar[Mapping[str, Any]] = {"positions": None, "class_token": None}

  @staticmethod
  def may_be_sparse(name: str) -> bool:
    """Whether the kernel called `name` may become sparse: those of MLP blocks."""
    return "/mlp/" in name
