"""Which leaves of a tree are kernels, and how a tree is read kernel by kernel.

The library knows pytrees, not modules. A leaf is a kernel when `is_kernel(name, leaf)`
says so; a kernel that stands for several layers, `(layers, ...)`, when
`is_stacked(name, leaf)` says so. `name` is the path of the leaf, joined by "/".
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

LeafPredicate = Callable[[str, Any], bool]

KERNEL_NAMES = ("kernel", "weight", "w")
# Names that wrap the array itself (NNX variables, say) and say nothing of its role.
_WRAPPER_NAMES = ("value", "raw_value")


class Kernel(NamedTuple):
  """One kernel leaf of a tree.

  Attributes:
    name: path of the leaf, joined by "/".
    leaf: array (or shape-dtype struct) of shape `(in, out)`, `(*window, in, out)`, or
      with a leading axis of layers if `stacked`.
    stacked: whether the leading axis counts layers.
  """

  name: str
  leaf: Any
  stacked: bool

  @property
  def shape(self) -> tuple[int, ...]:
    """Shape of one layer's kernel."""
    return tuple(self.leaf.shape[1:] if self.stacked else self.leaf.shape)

  @property
  def num_layers(self) -> int:
    """Number of layers that the leaf holds."""
    return self.leaf.shape[0] if self.stacked else 1

  @property
  def size(self) -> int:
    """Number of weights of one layer's kernel."""
    return math.prod(self.shape)


def is_kernel(name: str, leaf: Any) -> bool:
  """The default predicate: rank at least 2, and named kernel, weight or w.

  Leaves of a tree without names (a list of arrays, say) count by their rank alone.

  Args:
    name: path of the leaf, joined by "/".
    leaf: the leaf, with a `shape`.

  Returns:
    Whether the leaf is a kernel.
  """
  if len(getattr(leaf, "shape", ())) < 2:
    return False
  words = [word for word in name.split("/") if word and not word.isdigit()]
  words = [word for word in words if word not in _WRAPPER_NAMES]
  return not words or words[-1] in KERNEL_NAMES


def never_stacked(name: str, leaf: Any) -> bool:
  """The default of `is_stacked`: no leaf holds several layers."""
  del name, leaf
  return False


def is_leaf(node: Any) -> bool:
  """None and optax's masked nodes stand where a leaf is left out."""
  return node is None or isinstance(node, optax.MaskedNode)


def named_leaves(tree: Any) -> dict[str, Any]:
  """Leaves of a tree by name, in order, with None where a leaf is left out."""
  leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_leaf)
  return {_join(path): leaf for path, leaf in leaves}


def _join(path) -> str:
  return jax.tree_util.keystr(path, simple=True, separator="/")


def find_kernels(
  params: Any,
  *,
  is_kernel: LeafPredicate = is_kernel,
  is_stacked: LeafPredicate = never_stacked,
) -> dict[str, Kernel]:
  """Kernels of a tree by name, in the order of its leaves.

  Args:
    params: tree of arrays or shape-dtype structs.
    is_kernel: `(name, leaf) -> bool`, which leaves are kernels.
    is_stacked: `(name, leaf) -> bool`, which kernels have a leading axis of layers.

  Returns:
    Dict from name to `Kernel`.

  Raises:
    ValueError: if a kernel has no input or output axis or no element.
  """
  found = {}
  for name, leaf in named_leaves(params).items():
    if is_leaf(leaf) or not is_kernel(name, leaf):
      continue
    kernel = Kernel(name, leaf, bool(is_stacked(name, leaf)))
    if len(kernel.shape) < 2 or math.prod(leaf.shape) == 0:
      raise ValueError(
        f"kernel {name!r} must have an input and an output axis of at least one "
        f"element per layer, got shape {tuple(leaf.shape)}"
        f"{' with a leading axis of layers' if kernel.stacked else ''}."
      )
    found[name] = kernel
  return found


def fill_tree(params: Any, values: dict[str, Any], *, keep: bool = False) -> Any:
  """Tree like `params` with `values` at the named leaves.

  Args:
    params: the tree that gives the structure.
    values: new leaves by name.
    keep: whether other leaves keep their value; None replaces them otherwise.

  Returns:
    A tree of the structure of `params`.
  """
  paths, treedef = jax.tree_util.tree_flatten_with_path(params, is_leaf=is_leaf)
  leaves = [values.get(_join(path), leaf if keep else None) for path, leaf in paths]
  return jax.tree.unflatten(treedef, leaves)


def match_leaves(params: Any, other: Any, argument: str) -> dict[str, Any]:
  """Leaves of `other` by name, checked to have the structure of `params`.

  Args:
    params: the tree that gives the structure.
    other: tree of the same structure, None where a leaf has no counterpart.
    argument: name of `other` for the error.

  Returns:
    Dict from the names of `params` to leaves of `other`.

  Raises:
    ValueError: if the structures differ; the first odd leaf is named.
  """
  expected, found = named_leaves(params), named_leaves(other)
  for name in expected:
    if name not in found:
      raise ValueError(
        f"`{argument}` must have the structure of `params`: leaf {name!r} is missing."
      )
  for name in found:
    if name not in expected:
      raise ValueError(
        f"`{argument}` must have the structure of `params`: leaf {name!r} is not in "
        "`params`."
      )
  return found


def kernel_densities(
  kernels: dict[str, Kernel], params: Any, density: Any, argument: str = "density"
) -> dict[str, np.ndarray]:
  """Density of every layer of every kernel from one number or a tree.

  Args:
    kernels: the kernels of `params`.
    params: the tree that gives the structure.
    density: a float for all kernels, or a tree like `params` of floats (or arrays
      `[layers]` for stacked kernels), None = dense leaf.
    argument: name of `density` for the errors.

  Returns:
    Dict from name to float64 array `[num_layers]`; kernels that stay dense are absent.

  Raises:
    ValueError: if the structure differs from that of `params`, or a density is not a
      number in `(0, 1]`.
  """
  if isinstance(density, int | float | np.number):
    given = dict.fromkeys(kernels, density)
  else:
    given = match_leaves(params, density, argument)
    for name, value in given.items():
      if value is not None and name not in kernels:
        raise ValueError(f"`{argument}` must be None for {name!r}, which is no kernel.")
  result = {}
  for name, kernel in kernels.items():
    if given[name] is None:
      continue
    values = np.asarray(given[name], np.float64)
    if values.shape not in ((), (kernel.num_layers,)):
      raise ValueError(
        f"`{argument}` of {name!r} must be a number or have shape "
        f"({kernel.num_layers},), got shape {values.shape}."
      )
    if not np.all((values > 0) & (values <= 1)):
      raise ValueError(
        f"`{argument}` must be in (0, 1], got {given[name]} for {name!r}."
      )
    result[name] = np.broadcast_to(values, (kernel.num_layers,))
  return result


def kernel_keys(key: jax.Array, kernel: Kernel) -> jax.Array:
  """One PRNG key for each layer of a kernel, `[num_layers]`.

  They depend on `key`, the name and the layer alone, not on the rest of the tree.
  """
  key = jax.random.fold_in(key, zlib.crc32(kernel.name.encode()))
  return jax.vmap(lambda layer: jax.random.fold_in(key, layer))(
    jnp.arange(kernel.num_layers, dtype=jnp.uint32)
  )


def as_layers(kernel: Kernel, leaf: jax.Array) -> jax.Array:
  """Views a leaf as `(num_layers, *shape)`."""
  return leaf.reshape(kernel.num_layers, *kernel.shape)
