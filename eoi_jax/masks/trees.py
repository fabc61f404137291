"""Masks as data: trees of bools like the parameters, True = trained, None = dense."""

import contextlib
import numbers
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from eoi_jax import _keys
from eoi_jax.layouts.layout import Kernel
from eoi_jax.layouts.trees import (
  Layouts,
  fill_tree,
  find_kernels,
  is_leaf,
  match_leaves,
  named_leaves,
  present_leaves,
)


def kernel_masks(
  key: jax.Array, params: Any, density: Any, *, layouts: Layouts | None = None
) -> Any:
  """Support of each kernel plus random trainable zeros up to the exact budget.

  Args:
    key: a PRNG key; it is consumed. The mask of a leaf depends on the key, the leaf
      and its name alone.
    params: tree of arrays.
    density: fraction of trained weights of each kernel, in `(0, 1]`: a float, or a
      tree like `params` of floats, None = dense leaf. In a stacked leaf every layer
      has that density; an array `[layers]` gives each its own.
    layouts: how leaves are read; None = by shape (`kernel_layouts`).

  Returns:
    Tree like `params`: bool leaves with exactly `round(density * size)` True entries a
    layer (True = trained), which cover all nonzeros; None where a leaf is dense.

  Raises:
    ValueError: if the structures differ, a density is not in `(0, 1]`, a leaf is in
      doubt, or a kernel has more nonzeros than its budget (under tracing, which hides
      the values, the mask then covers a part of them).

  Example:
    >>> masks = kernel_masks(jax.random.key(0), {"kernel": jnp.eye(4)}, 0.5)
    >>> int(masks["kernel"].sum()), bool(masks["kernel"].diagonal().all())
    (8, True)
  """
  return _exact_masks(key, params, density, layouts, use_support=True)


def random_masks(
  key: jax.Array, params: Any, density: Any, *, layouts: Layouts | None = None
) -> Any:
  """Uniformly random masks of exact density, whatever the values of the kernels.

  Args:
    key: a PRNG key; it is consumed.
    params: tree of arrays or shape-dtype structs.
    density: as in `kernel_masks`.
    layouts: how leaves are read; None = by shape (`kernel_layouts`).

  Returns:
    Tree like `params`: bool leaves with exactly `round(density * size)` True entries a
    layer (True = trained); None where a leaf is dense.

  Raises:
    ValueError: if the structures differ, a density is not in `(0, 1]`, or a leaf is in
      doubt.
  """
  return _exact_masks(key, params, density, layouts, use_support=False)


def _exact_masks(key, params, density, layouts, *, use_support: bool) -> Any:
  data, found = _keys.key_data(key), kernel_counts(params, density, layouts)
  if not found:
    return fill_tree(params, {})
  kernels = [kernel for kernel, _ in found.values()]
  keys = _keys.layer_keys(data, kernels)
  masks, first = {}, 0
  for name, (kernel, counts) in found.items():
    support = np.zeros((kernel.num_layers, *kernel.layer_shape), bool)
    if use_support:
      support = kernel.to_layers(on_host(kernel.leaf) != 0)
    nonzeros = counts if is_traced(support) else _count_rows(support)
    for layer in np.flatnonzero(nonzeros > counts):
      raise ValueError(
        f"kernel {name!r} must have at most round(density * size) = {counts[layer]} "
        f"nonzeros per layer, got {nonzeros[layer]}; sparsify it first, or use "
        "`random_masks`."
      )
    last = first + kernel.num_layers
    masks[name] = kernel.from_layers(fill(keys[first:last], support, counts))
    first = last
  leaves = {name: kernel.leaf for name, (kernel, _) in found.items()}
  return fill_tree(params, place_like(masks, leaves))


def given_kernels(
  params: Any, values: Any, layouts: Layouts | None, argument: str
) -> dict[str, tuple[Kernel, Any]]:
  """`(kernel, value)` of each kernel, by name, that a tree of values gives one.

  Values are one number for all kernels; or a tree like `params`, None = dense leaf:
  such leaves need no layout. Errors call them `argument`.
  """
  if isinstance(values, numbers.Number | str) or (
    hasattr(values, "dtype") and not values.ndim
  ):
    return {n: (kernel, values) for n, kernel in find_kernels(params, layouts).items()}
  given = match_leaves(params, values, argument)
  given = {n: value for n, value in given.items() if not is_leaf(value)}
  if not given:
    return {}
  leaves = named_leaves(params)
  named = fill_tree(params, {name: leaves[name] for name in given})
  flat = [name for name in given if np.ndim(leaves[name]) < 2]
  kernels = {} if flat else find_kernels(named, layouts)
  for name in flat or [name for name in given if name not in kernels]:
    raise ValueError(f"`{argument}` must be None for {name!r}, which is no kernel.")
  return {name: (kernels[name], given[name]) for name in kernels}


def kernel_counts(
  params: Any, density: Any, layouts: Layouts | None
) -> dict[str, tuple[Kernel, np.ndarray]]:
  """`(kernel, round(density * size))` by name, counts int64 `[num_layers]`.

  Densities are those of `kernel_masks`, checked.
  """
  counts = {}
  found = given_kernels(params, density, layouts, "density")
  for name, (kernel, value) in found.items():
    if is_traced(value):
      raise ValueError(
        "`density` must be known outside of `jax.jit`, got a traced value for "
        f"{name!r}."
      )
    values = np.full((), np.nan)
    with contextlib.suppress(TypeError, ValueError):
      array = np.asarray(value)
      if array.dtype.kind not in "USb":  # text and bools are no numbers
        values = array.astype(np.float64)
    if values.shape not in ((), (kernel.num_layers,), kernel.stack_shape):
      raise ValueError(
        f"`density` of {name!r} must be a number or have shape "
        f"({kernel.num_layers},), got shape {values.shape}."
      )
    if not np.all((values > 0) & (values <= 1)):
      raise ValueError(f"`density` must be in (0, 1], got {value!r} for {name!r}.")
    values = np.broadcast_to(values.ravel(), kernel.num_layers)
    rounded = [round(d * kernel.layer_size) for d in values.tolist()]
    counts[name] = (kernel, np.array(rounded, np.int64))
  return counts


def live_counts(kernel: Kernel, mask: Any) -> np.ndarray:
  """Trained weights of each layer of a concrete mask, int64 `[num_layers]`."""
  return _count_rows(kernel.to_layers(np.asarray(mask)))


def _count_rows(layers: np.ndarray) -> np.ndarray:
  return np.count_nonzero(layers.reshape(len(layers), -1), axis=1)


def is_traced(*trees: Any) -> bool:
  """Whether a leaf of the trees is a traced array."""
  return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(trees))


def is_concrete(array: Any) -> bool:
  """Whether it is a JAX array of known values."""
  return isinstance(array, jax.Array) and not isinstance(array, jax.core.Tracer)


def on_host(array: Any) -> Any:
  """A NumPy array; None and a traced array as they are."""
  known = array is not None and not isinstance(array, jax.core.Tracer)
  return np.asarray(array) if known else array


def _known(argument: str, name: str, leaf: Any) -> np.ndarray:
  if is_traced(leaf):
    raise ValueError(
      f"`{argument}` must be concrete arrays, got a traced one for {name!r}; call this "
      "outside of `jax.jit`."
    )
  return np.asarray(leaf)


def _known_masks(masks: Any) -> dict[str, np.ndarray]:
  """Masks by name, without dense leaves; ValueError if one is no mask or empty."""
  found = {}
  for name, leaf in present_leaves(masks).items():
    mask = found[name] = _known("masks", name, leaf)
    if mask.dtype != np.bool_ or not mask.size:
      raise ValueError(
        "`masks` must be bool arrays (True = trained) that are not empty, got "
        f"{mask.dtype} of shape {mask.shape} for {name!r}."
      )
  return found


def mask_densities(masks: Any, *, layouts: Layouts | None = None) -> Any:
  """Densities of masks: what `sparsify` and `allocate` take in their place.

  Args:
    masks: tree of bool leaves, True = trained; None = dense leaf.
    layouts: which leaves are stacks of layers, each with a density of its own; None
      gives every leaf one density.

  Returns:
    Tree like `masks`: a float for each mask, a float64 array `[layers]` for a stacked
    one, in `(0, 1]`: a layer without any trained weight counts as one with one.

  Raises:
    ValueError: if a leaf is no mask, or empty, or traced.

  Example:
    >>> mask_densities([jnp.eye(4, dtype=bool), None])
    [0.25, None]
  """
  found, densities = _known_masks(masks), {}
  kernels = {} if layouts is None else find_kernels(masks, layouts)
  for name, mask in found.items():
    if name in kernels and kernels[name].stack_shape:
      counts = np.maximum(live_counts(kernels[name], mask), 1)
      densities[name] = counts / kernels[name].layer_size
    else:
      densities[name] = max(int(np.count_nonzero(mask)), 1) / mask.size
  return fill_tree(masks, densities)


def fill(keys: Any, support: Any, counts: np.ndarray) -> Any:
  """Adds random True entries to each of the masks `support` `[n, ...]` up to its count.

  Runs on the host, where it takes time for the entries added, not for all, and no
  compilation; under tracing by way of a callback, with the same result. Keys are key
  data, uint32 `[n, 2]`. Gives a NumPy array unless an argument is traced.
  """
  if is_traced(keys, support):
    shape = jax.ShapeDtypeStruct(support.shape, jnp.bool_)
    return jax.pure_callback(
      _fill, shape, keys, support, counts.astype(np.int32), vmap_method="broadcast_all"
    )
  return _fill(keys, support, counts)


def _fill(keys, support, counts) -> np.ndarray:
  """`fill` of NumPy arrays, with any leading axes."""
  keys, counts = np.asarray(keys), np.asarray(counts)
  filled = np.array(support)  # a copy
  masks = filled.reshape(counts.size, -1)
  rows = zip(masks, keys.reshape(-1, 2).tolist(), counts.ravel().tolist(), strict=True)
  for mask, (first, second), count in rows:
    bits = np.random.Philox(key=(first << 32) | second)
    live = int(np.count_nonzero(mask))
    if live > count:  # traced values, which could not be refused
      mask[np.flatnonzero(mask)[count:]] = False
    elif count - live <= (mask.size - live) // 2:
      _mark(mask, count, bits)
    else:  # the few that stay dead are quicker to draw
      dead = mask.copy()
      _mark(dead, mask.size - count + live, bits)
      mask |= ~dead
  return filled


def _mark(mask: np.ndarray, count: int, bits: np.random.Philox) -> None:
  """Sets uniformly random entries of a flat mask until `count` are True.

  Draws as many cells as are missing, again and again: what falls on a marked cell is
  drawn anew, so that every set of unmarked cells is equally likely.
  """
  while (missing := count - int(np.count_nonzero(mask))) > 0:
    # 53 bits of each word: one cell is not likelier than another by more than 2**-21.
    cells = (bits.random_raw(missing) >> np.uint64(11)) * 2.0**-53 * mask.size
    mask[cells.astype(np.int64)] = True


def place_like(values: dict[str, Any], leaves: dict[str, Any]) -> dict[str, Any]:
  """Host arrays as JAX arrays, sharded as their leaves are; traced ones as they are."""
  host = {n: v for n, v in values.items() if not isinstance(v, jax.core.Tracer)}
  shardings = {
    name: leaves[name].sharding if is_concrete(leaves[name]) else None for name in host
  }
  return values | jax.device_put(host, shardings)


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
  leaves = named_leaves(params)
  masked = {
    name: jnp.where(mask, leaves[name], jnp.zeros((), leaves[name].dtype))
    for name, mask in check_masks(params, masks).items()
  }
  return fill_tree(params, masked, keep=True)


def check_masks(params: Any, masks: Any) -> dict[str, Any]:
  """Masks by the names of `params`, without dense leaves, checked to fit them.

  Leaves of `params` that are left out (None, masked nodes) need no mask.

  Raises:
    ValueError: if structures, shapes or dtypes do not fit; the leaf is named.
  """
  found = match_leaves(params, masks, "masks")
  by_name: dict[str, Any] = {}
  for name, leaf in present_leaves(params).items():
    mask = found[name]
    if is_leaf(mask):
      continue
    if jnp.shape(mask) != jnp.shape(leaf):
      raise ValueError(
        f"`masks` must have the shapes of `params`: {name!r} has shape "
        f"{jnp.shape(leaf)}, its mask {jnp.shape(mask)}."
      )
    dtype = jnp.result_type(mask)
    if dtype != jnp.bool_:
      raise ValueError(
        f"`masks` must be bool (True = trained), got {dtype} for {name!r}; cast it "
        "with `.astype(bool)`."
      )
    by_name[name] = mask
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

  Raises:
    ValueError: if a leaf is no mask, or empty, or traced.

  Example:
    >>> count_masks({"w": jnp.array([[True, False]]), "b": None})
    {'w': MaskCount(live=1, total=2)}
  """
  return {
    name: MaskCount(int(np.count_nonzero(mask)), mask.size)
    for name, mask in _known_masks(masks).items()
  }


class DeadUnits(NamedTuple):
  """Units of a kernel that no weight reaches.

  Attributes:
    inputs: number of input units (features or channels) without a weight.
    outputs: number of output units without a weight.
  """

  inputs: int
  outputs: int


def dead_units(tree: Any, *, layouts: Layouts | None = None) -> dict[str, DeadUnits]:
  """Counts the inputs and outputs that no weight of their kernel reaches.

  Args:
    tree: a kernel, or a tree of kernels or of masks: a weight counts if it is not zero
      (True). Of a mask, trainable zeros count; of parameters they do not.
    layouts: how leaves are read; None = by shape (`kernel_layouts`).

  Returns:
    Dict from the name of each kernel ("" for a bare array) to its `DeadUnits`, summed
    over the layers of a stacked one and the groups of a grouped one.

  Example:
    >>> dead_units({"kernel": jnp.eye(4, 3)})
    {'kernel': DeadUnits(inputs=1, outputs=0)}
  """
  counts = {}
  for name, kernel in find_kernels(tree, layouts).items():
    used = kernel.to_blocks(_known("tree", name, kernel.leaf)) != 0
    used = used.any(axis=tuple(range(1, used.ndim - 2)))  # over the window
    dead = (np.count_nonzero(~used.any(axis=axis)) for axis in (2, 1))
    counts[name] = DeadUnits(*map(int, dead))
  return counts
