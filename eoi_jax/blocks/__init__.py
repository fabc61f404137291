"""Block-sparse orthogonal kernels whose products cost what they weigh.

`block_layout` chooses which blocks of a kernel exist, `block_orthogonal` samples them,
`block_matmul` multiplies with them. Layers: `eoi_jax.blocks.linen`,
`eoi_jax.blocks.nnx` (they import Flax).
"""

from eoi_jax.blocks.layout import (
  BlockLayout,
  block_layout,
  block_mask,
  blocks_to_dense,
  dense_to_blocks,
)
from eoi_jax.blocks.orthogonal import block_gram_error, block_orthogonal
from eoi_jax.blocks.product import block_matmul

__all__ = [
  "BlockLayout",
  "block_gram_error",
  "block_layout",
  "block_mask",
  "block_matmul",
  "block_orthogonal",
  "blocks_to_dense",
  "dense_to_blocks",
]
