"""How each leaf of a tree of parameters is a batch of matrices, or none.

`Layouts` holds a `Layout` for every leaf. It is read off a Flax module
(`linen_layouts`, `nnx_layouts`), written by hand, or taken from shapes where those
leave no doubt (`kernel_layouts`). What is in doubt is an error, never a guess.
"""

from eoi_jax.layouts.layout import Kernel, Layout
from eoi_jax.layouts.linen import linen_layouts
from eoi_jax.layouts.nnx import nnx_layouts
from eoi_jax.layouts.trees import (
  Layouts,
  fill_tree,
  find_kernels,
  kernel_layouts,
  named_leaves,
)

__all__ = [
  "Kernel",
  "Layout",
  "Layouts",
  "fill_tree",
  "find_kernels",
  "kernel_layouts",
  "linen_layouts",
  "named_leaves",
  "nnx_layouts",
]
