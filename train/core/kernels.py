"""What a network says of its kernels, in the form that `eoi_jax` takes.

The one place that knows how: everything else in `train` calls `with_layouts` and
`find_kernels`.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

import eoi_jax


def with_layouts(
  function: Callable[..., Any], model: Any, *, copies: Any = None
) -> Callable[..., Any]:
  """Tells a function of `eoi_jax` which leaves are kernels, and how to read them.

  Args:
    function: takes `layouts=`, as every function that looks at kernels does.
    model: a network of `train.models`.
    copies: dict of the parameters of several such networks, if `function` is called
      with it instead of those of one.

  Returns:
    The function with these keywords filled in.
  """
  layouts = model.layouts
  if copies is not None:
    table = {f"*/{name}": layout for name, layout in layouts.items()}
    layouts = eoi_jax.kernel_layouts(copies, table)
  return functools.partial(function, layouts=layouts)


class Kernel(NamedTuple):
  """A kernel leaf: `count` kernels of one shape, all sparse or all dense.

  Attributes:
    leaf: the array, or its shape and type.
    shape: `(*window, in, out)` of one kernel.
    count: number of kernels in the leaf.
  """

  leaf: Any
  shape: tuple[int, ...]
  count: int

  @property
  def size(self) -> int:
    """Number of weights of one kernel."""
    return math.prod(self.shape)

  @property
  def floor(self) -> float:
    """Lowest density with an orthogonal start."""
    return min(self.shape[-2:]) / self.size


def find_kernels(params: Any, model: Any) -> dict[str, Kernel]:
  """Returns all kernels of a network by name, those that stay dense, too."""
  bound = eoi_jax.layouts.find_kernels(params, model.layouts)
  found = {}
  for name, leaf in named_leaves(params).items():
    if name in bound:
      kernel = bound[name]
      found[name] = Kernel(leaf, kernel.layer_shape, kernel.num_layers)
    elif name.rpartition("/")[2] == "kernel" and len(leaf.shape) >= 2:
      stacked = hasattr(model, "is_stacked") and model.is_stacked(name, leaf)
      shape = tuple(leaf.shape[1:] if stacked else leaf.shape)
      found[name] = Kernel(leaf, shape, leaf.shape[0] if stacked else 1)
  return found


def named_leaves(tree: Any) -> dict[str, Any]:
  """Returns the leaves of a tree by name, "hidden/dense/kernel"; None is a leaf."""
  leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: x is None)
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): leaf
    for path, leaf in leaves
  }
