"""Which live weights matter: paths from input to output, components of a kernel."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from eoi_jax import _kernels as kernels_lib
from eoi_jax._kernels import LeafPredicate
from eoi_jax.masks import trees as masks_lib
from eoi_jax.masks._active import is_floating
from eoi_jax.masks._positive import positive_network


class Components(NamedTuple):
  """Connected components of a kernel: blocks of units that only meet each other.

  Attributes:
    count: number of components with at least one weight.
    inputs: int32 `[in]`, component of each input unit, from 0; -1 for a dead unit.
    outputs: int32 `[out]`, likewise for output units.
  """

  count: int
  inputs: np.ndarray
  outputs: np.ndarray


def connected_components(kernel: Any) -> Components:
  """Connected components of the bipartite graph of a kernel's weights.

  A weight joins its input and its output unit; of a convolution, a nonzero at any
  tap does. Component 0 has the most units.

  Args:
    kernel: array `(in, out)` or `(*window, in, out)` of weights or of a mask; what is
      not zero is a weight.

  Returns:
    The `Components`.

  Raises:
    ValueError: if `kernel` has rank below 2.

  Example:
    >>> connected_components(jnp.eye(3, 4)).count
    3
  """
  from scipy.sparse import coo_array, csgraph

  if np.ndim(kernel) < 2:
    raise ValueError(
      f"`kernel` must be (in, out) or (*window, in, out), got shape {np.shape(kernel)}."
    )
  edges = np.asarray(kernel) != 0
  edges = edges.any(axis=tuple(range(edges.ndim - 2)))
  size_in, size_out = edges.shape
  i, j = np.nonzero(edges)
  size = size_in + size_out
  graph = coo_array((np.ones(len(i), np.int8), (i, j + size_in)), (size, size))
  _, labels = csgraph.connected_components(graph, directed=False)
  alive = np.concatenate([edges.any(axis=1), edges.any(axis=0)])
  found, labels, counts = np.unique(
    labels[alive], return_inverse=True, return_counts=True
  )
  rank = np.empty(len(found), np.int32)
  rank[np.argsort(-counts, kind="stable")] = np.arange(len(found))
  result = np.full(size, -1, np.int32)
  result[alive] = rank[labels]
  return Components(len(found), result[:size_in], result[size_in:])


def effective_masks(
  apply_fn: Callable[[Any, jax.Array], jax.Array],
  params: Any,
  masks: Any,
  input_shape: tuple[int, ...],
  *,
  is_kernel: LeafPredicate = kernels_lib.is_kernel,
  is_stacked: LeafPredicate = kernels_lib.never_stacked,
) -> Any:
  """The live weights that lie on a path of live weights from an input to an output.

  A weight out of a unit that nothing reaches, or into a unit that reaches nothing,
  trains in vain. The density that is left is the effective density:
  `count_masks(effective_masks(...))`.

  Only the masks count, not the values: a trainable zero carries a path, a bias does
  not. Reachability is read off the program of the network in zeros and ones, at any
  depth and with any activation, pooling or normalization; see `eoi_jax.positive`.

  Args:
    apply_fn: `(params, inputs) -> outputs`, as for evaluation.
    params: tree of arrays; only shapes, dtypes and names matter.
    masks: tree like `params`: bool leaves, True = trained; None = dense leaf.
    input_shape: shape of the inputs, with a batch of one.
    is_kernel: `(name, leaf) -> bool`, which leaves are kernels.
    is_stacked: `(name, leaf) -> bool`, which kernels have a leading axis of layers.

  Returns:
    Tree like `params`: bool for every kernel, dense ones too; None for other leaves.

  Raises:
    ValueError: if masks do not fit the parameters, or the outputs do not depend on the
      inputs.

  Example:
    >>> first = jnp.array([[True, False], [False, False]])  # unit 1 receives nothing
    >>> effective = effective_masks(
    ...   lambda params, x: jnp.tanh(x @ params[0]) @ params[1],
    ...   [jnp.ones((2, 2)), jnp.ones((2, 1))], [first, None], (1, 2)
    ... )
    >>> effective[0].tolist(), effective[1].tolist()
    ([[True, False], [False, False]], [[True], [False]])

  Reference: Vysogorets and Kempe, 2023, arXiv:2107.02306.
  """
  kernels = kernels_lib.find_kernels(params, is_kernel=is_kernel, is_stacked=is_stacked)
  ones = {
    name: jnp.ones(jnp.shape(leaf), jnp.float32)
    for name, leaf in kernels_lib.named_leaves(params).items()
    if not kernels_lib.is_leaf(leaf) and is_floating(leaf)
  }
  for name, mask in masks_lib.check_masks(params, masks).items():
    if mask is not None:
      ones[name] = jnp.asarray(mask).astype(jnp.float32)
  network = positive_network(
    apply_fn, params, input_shape, dtype=jnp.float32, reach=True
  )

  def total(weights):
    tree = kernels_lib.fill_tree(params, ones | weights, keep=True)
    return network.apply(tree)[0]

  weights = {name: ones[name] for name in kernels}
  slopes = jax.jit(jax.grad(total))(weights)
  effective = {name: (s != 0) & (weights[name] != 0) for name, s in slopes.items()}
  return kernels_lib.fill_tree(params, effective)


def effective_density(effective: Any) -> float:
  """Fraction of the weights of all kernels that lie on a path.

  Args:
    effective: result of `effective_masks`.

  Returns:
    A float in `[0, 1]`.

  Example:
    >>> effective_density([jnp.array([[True, False]]), None])
    0.5
  """
  counts = masks_lib.count_masks(effective).values()
  return math.fsum(c.live for c in counts) / max(1, sum(c.total for c in counts))
