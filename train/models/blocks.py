"""Dense layers of a network whose kernels are block-sparse (`model.blocks`)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from eoi_jax.blocks import BlockLayout, block_mask, blocks_to_dense


class Blocks(NamedTuple):
  """Which dense layers of a network have blocks; hashable, a part of the network."""

  size: int = 0  # units of a group of inputs or outputs on the smaller side
  # paths of layers, "hidden/dense", each with the fraction of the weights of its kernel
  # that exists
  densities: tuple[tuple[str, float], ...] = ()


NO_BLOCKS = Blocks()


def zero_blocks(key: jax.Array, layout: BlockLayout, dtype: Any) -> jax.Array:
  """An initializer of blocks that get their start later."""
  del key
  return jnp.zeros(layout.blocks_shape, dtype)


def named_layouts(layouts: Any) -> dict[str, BlockLayout]:
  """The layouts of a network by path of their layer."""
  flat: Any = flatten_dict(layouts)
  return {"/".join(path[:-1]): layout for path, layout in flat.items()}


def dense_view(params: Any, masks: Any, layouts: Any) -> tuple[Any, Any]:
  """Returns parameters and masks of the same network without blocks.

  `params` has `layer/blocks` in place of some `layer/kernel`, `layouts` `layer/layout`
  of each of these. A weight outside of the blocks is 0, and its mask is False.
  """
  leaves: Any = flatten_dict(params)
  flags: Any = flatten_dict(masks)
  for layer, layout in named_layouts(layouts).items():
    path = tuple(layer.split("/"))
    blocks, kernel = (*path, "blocks"), (*path, "kernel")
    del flags[blocks]
    leaves[kernel] = blocks_to_dense(leaves.pop(blocks), layout)
    flags[kernel] = block_mask(layout)
  return unflatten_dict(leaves), unflatten_dict(flags)
