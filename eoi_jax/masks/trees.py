"""Masks as data: trees of bools like the parameters, True = trained, None = dense."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from eoi_jax import _kernels as kernels_lib
from eoi_jax._kernels import LeafPredicate
from eoi_jax.masks._topk import top_mask


def kernel_masks(
  key: jax.Array,
  params: Any,
  density: Any,
  *,
  is_kernel: LeafPredicate = kernels_lib.is_kernel,
  is_stacked: LeafPredicate = kernels_lib.never_stacked,
) -> Any:
  """Support of each kernel plus random trainable zeros up to the exact budget.

  Args:
    key: a PRNG key; it is consumed. The mask of a leaf depends on the key, the leaf
      and its name alone.
    params: tree of arrays.
    density: fraction of trained weights of each kernel, in `(0, 1]`: a float, or a
      tree like `params` of floats, None = dense leaf. In a stacked leaf every layer
      has that density; an array `[layers]` gives each its own.
    is_kernel: `(name, leaf) -> bool`, which leaves are kernels.
    is_stacked: `(name, leaf) -> bool`, which kernels have a leading axis of layers.

  Returns:
    Tree like `params`: bool leaves with exactly `round(density * size)` True entries a
    layer (True = trained), which cover all nonzeros; None where a leaf is dense.

  Raises:
    ValueError: if the structures differ, a density is not in `(0, 1]`, or a kernel
      has more nonzeros than its budget (under tracing, which hides the values, the
      mask then covers an arbitrary part of them).

  Example:
    >>> masks = kernel_masks(jax.random.key(0), {"kernel": jnp.eye(4)}, 0.5)
    >>> int(masks["kernel"].sum()), bool(masks["kernel"].diagonal().all())
    (8, True)
  """
  kernels = kernels_lib.find_kernels(params, is_kernel=is_kernel, is_stacked=is_stacked)

  def support(kernel):
    return kernels_lib.as_layers(kernel, kernel.leaf) != 0

  return _exact_masks(key, params, density, kernels, support)


def random_masks(
  key: jax.Array,
  params: Any,
  density: Any,
  *,
  is_kernel: LeafPredicate = kernels_lib.is_kernel,
  is_stacked: LeafPredicate = kernels_lib.never_stacked,
) -> Any:
  """Uniformly random masks of exact density, whatever the values of the kernels.

  Args:
    key: a PRNG key; it is consumed.
    params: tree of arrays or shape-dtype structs.
    density: as in `kernel_masks`.
    is_kernel: `(name, leaf) -> bool`, which leaves are kernels.
    is_stacked: `(name, leaf) -> bool`, which kernels have a leading axis of layers.

  Returns:
    Tree like `params`: bool leaves with exactly `round(density * size)` True entries a
    layer (True = trained); None where a leaf is dense.

  Raises:
    ValueError: if the structures differ or a density is not in `(0, 1]`.
  """
  kernels = kernels_lib.find_kernels(params, is_kernel=is_kernel, is_stacked=is_stacked)

  def nothing(kernel):
    return jnp.zeros((kernel.num_layers, *kernel.shape), bool)

  return _exact_masks(key, params, density, kernels, nothing)


def _exact_masks(key, params: Any, density: Any, kernels, support) -> Any:
  """Masks of exact density that cover `support(kernel)`, `[num_layers, ...]`."""
  densities = kernels_lib.kernel_densities(kernels, params, density)
  masks = {}
  for name, values in densities.items():
    kernel = kernels[name]
    counts, layers = layer_counts(kernel, values), support(kernel)
    _check_support(name, layers, counts)
    mask = fill(kernels_lib.kernel_keys(key, kernel), layers, counts)
    masks[name] = mask.reshape(kernel.leaf.shape)
  return kernels_lib.fill_tree(params, masks)


def layer_counts(kernel: kernels_lib.Kernel, densities: np.ndarray) -> np.ndarray:
  """Trained weights of each layer, `round(density * size)`, int32 `[num_layers]`."""
  return np.array([round(d * kernel.size) for d in densities.tolist()], np.int32)


def live_counts(kernel: kernels_lib.Kernel, mask: Any) -> np.ndarray:
  """Trained weights of each layer of a concrete mask, int32 `[num_layers]`."""
  layers = np.asarray(mask).reshape(kernel.num_layers, -1)
  return np.count_nonzero(layers, axis=1).astype(np.int32)


def mask_densities(
  masks: Any, *, is_stacked: LeafPredicate = kernels_lib.never_stacked
) -> Any:
  """Densities of masks: what `sparsify` and `budgets` take in their place.

  Args:
    masks: tree of bool leaves, True = trained; None = dense leaf.
    is_stacked: `(name, leaf) -> bool`, which leaves have a leading axis of layers.

  Returns:
    Tree like `masks`: a float for each mask, a float64 array `[layers]` for a stacked
    one, in `(0, 1]`: a layer without any trained weight counts as one with one.

  Example:
    >>> mask_densities([jnp.eye(4, dtype=bool), None])
    [0.25, None]
  """
  kernels = kernels_lib.find_kernels(
    masks, is_kernel=lambda name, leaf: True, is_stacked=is_stacked
  )
  densities = {}
  for name, kernel in kernels.items():
    counts = live_counts(kernel, kernel.leaf)
    values = np.maximum(counts, 1) / kernel.size
    densities[name] = values if kernel.stacked else float(values[0])
  return kernels_lib.fill_tree(masks, densities)


def _check_support(name: str, layers: jax.Array, counts: np.ndarray) -> None:
  if isinstance(layers, jax.core.Tracer):
    return
  nonzeros = np.asarray(layers.sum(axis=tuple(range(1, layers.ndim))))
  for layer in np.flatnonzero(nonzeros > counts):
    raise ValueError(
      f"kernel {name!r} must have at most round(density * size) = {counts[layer]} "
      f"nonzeros per layer, got {nonzeros[layer]}; sparsify it first, or use "
      "`random_masks`."
    )


@jax.jit
def fill(keys: jax.Array, layers: jax.Array, counts: jax.Array) -> jax.Array:
  """Adds random True entries to each layer's mask up to its count.

  Args:
    keys: PRNG keys `[n]`.
    layers: bool array `[n, ...]`, entries that the masks cover for certain.
    counts: integers `[n]`, True entries that each mask shall have.

  Returns:
    Bool array like `layers`.
  """

  def fill_one(key, support, count):
    order = jax.random.bits(key, support.shape, jnp.uint32) >> 1
    return top_mask(jnp.where(support, jnp.uint32(2**32 - 1), order), count)

  return jax.vmap(fill_one)(keys, layers, jnp.asarray(counts))


def apply_masks(params: Any, masks: Any) -> Any:
  """Sets every weight off its mask to exact zero.

  Args:
    params: tree of arrays.
    masks: tree like `params`: bool leaves, True = trained; None = dense leaf.

  Returns:
    Tree like `params`; dense leaves are untouched. nan and inf off the mask become
    zero too.

  Raises:
    ValueError: if structures, shapes or dtypes of the masks do not fit.

  Example:
    >>> w = jnp.array([[1.0, jnp.nan]])
    >>> apply_masks([w], [jnp.array([[True, False]])])[0].tolist()
    [[1.0, 0.0]]
  """
  leaves = kernels_lib.named_leaves(params)
  masked = {
    name: jnp.where(mask, leaves[name], jnp.zeros((), leaves[name].dtype))
    for name, mask in check_masks(params, masks).items()
    if mask is not None
  }
  return kernels_lib.fill_tree(params, masked, keep=True)


def check_masks(params: Any, masks: Any) -> dict[str, jax.Array | None]:
  """Masks by name, checked to fit `params`.

  Args:
    params: tree of arrays; leaves left out (None, masked nodes) need no mask.
    masks: tree like `params`: bool leaves, or None = dense leaf.

  Returns:
    Dict from the names of `params` to masks or None.

  Raises:
    ValueError: if structures, shapes or dtypes do not fit; the leaf is named.
  """
  skipped = {
    name
    for name, leaf in kernels_lib.named_leaves(params).items()
    if kernels_lib.is_leaf(leaf)
  }
  by_name = kernels_lib.match_leaves(params, masks, "masks")
  for name, leaf in kernels_lib.named_leaves(params).items():
    mask = by_name[name]
    if name in skipped or mask is None:
      by_name[name] = None
      continue
    shape, dtype = jnp.shape(mask), jnp.asarray(mask).dtype
    if shape != jnp.shape(leaf):
      raise ValueError(
        f"`masks` must have the shapes of `params`: {name!r} has shape "
        f"{jnp.shape(leaf)}, its mask {shape}."
      )
    if dtype != jnp.bool_:
      raise ValueError(
        f"`masks` must be bool (True = trained), got {dtype} for {name!r}; cast it "
        "with `.astype(bool)`."
      )
  return by_name


class MaskCount(NamedTuple):
  """Trained and total weights of a leaf.

  Attributes:
    live: number of True entries.
    total: number of entries.
  """

  live: int
  total: int

  @property
  def density(self) -> float:
    """Fraction of trained weights, in `[0, 1]`."""
    return self.live / self.total


def count_masks(masks: Any) -> dict[str, MaskCount]:
  """Counts the trained weights of every masked leaf.

  Args:
    masks: tree of bool leaves, True = trained; None = dense leaf.

  Returns:
    Dict from the name of each masked leaf to its `MaskCount`.

  Example:
    >>> count_masks({"w": jnp.array([[True, False]]), "b": None})
    {'w': MaskCount(live=1, total=2)}
  """
  counts = {}
  for name, mask in kernels_lib.named_leaves(masks).items():
    if not kernels_lib.is_leaf(mask):
      counts[name] = MaskCount(int(np.count_nonzero(mask)), int(np.size(mask)))
  return counts


class DeadUnits(NamedTuple):
  """Units of a kernel that no weight reaches.

  Attributes:
    inputs: number of input units (features or channels) without a weight.
    outputs: number of output units without a weight.
  """

  inputs: int
  outputs: int


def dead_units(
  tree: Any,
  *,
  is_kernel: LeafPredicate = kernels_lib.is_kernel,
  is_stacked: LeafPredicate = kernels_lib.never_stacked,
) -> dict[str, DeadUnits]:
  """Counts the inputs and outputs that no weight of their kernel reaches.

  Args:
    tree: a kernel, or a tree of kernels or of masks: a weight counts if it is not zero
      (True). Of a mask, trainable zeros count; of parameters they do not.
    is_kernel: `(name, leaf) -> bool`, which leaves are kernels.
    is_stacked: `(name, leaf) -> bool`, which kernels have a leading axis of layers.

  Returns:
    Dict from the name of each kernel ("" for a bare array) to its `DeadUnits`, summed
    over the layers of a stacked one.

  Example:
    >>> dead_units({"kernel": jnp.eye(4, 3)})
    {'kernel': DeadUnits(inputs=1, outputs=0)}
  """
  kernels = kernels_lib.find_kernels(tree, is_kernel=is_kernel, is_stacked=is_stacked)
  counts = {}
  for name, kernel in kernels.items():
    used = np.asarray(kernels_lib.as_layers(kernel, kernel.leaf)) != 0
    used = used.any(axis=tuple(range(1, used.ndim - 2)))  # over the window
    dead = (np.count_nonzero(~used.any(axis=axis)) for axis in (2, 1))
    counts[name] = DeadUnits(*map(int, dead))
  return counts
