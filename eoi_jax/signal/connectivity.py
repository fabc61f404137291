"""Which live weights matter: paths from input to output, collapse, components."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from eoi_jax.layouts.trees import (
  Layouts,
  fill_tree,
  find_kernels,
  is_leaf,
  match_leaves,
  present_leaves,
)
from eoi_jax.masks._positive import distinct, positive_network
from eoi_jax.masks.trees import check_masks, count_masks, live_counts


def effective_masks(
  apply_fn: Callable[[Any, Any], Any],
  params: Any,
  masks: Any,
  input_shape: Sequence[int] | Any,
  *,
  layouts: Layouts | None = None,
) -> Any:
  """The live weights that lie on a path of live weights from an input to an output.

  A weight out of a unit that nothing reaches, or into a unit that reaches nothing, has
  no effect. Only the masks count, not the values: a trainable zero carries a path, a
  bias does not. Reachability is read off the program of the network in zeros and ones,
  at any depth and with any activation, pooling or normalization.

  Args:
    apply_fn: `(params, inputs) -> outputs`, as for evaluation; of a tuple the first
      entry is taken.
    params: tree of arrays or shape-dtype structs; values do not matter.
    masks: tree like `params`: bool leaves, True = trained; None = dense leaf.
    input_shape: shape of the inputs, with a batch of one; or what `apply_fn` takes, a
      tree of shapes, arrays or shape-dtype structs. Integers are tokens.
    layouts: which leaves are kernels, and how; None = `kernel_layouts(params)`.

  Returns:
    Tree like `params`: bool for every kernel, dense ones too; None for other leaves.

  Raises:
    ValueError: if `params` has no kernel or one in doubt, masks do not fit the
      parameters, or the outputs do not depend on the inputs.

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
  kernels = find_kernels(params, layouts)
  effective, _ = _reach(apply_fn, params, masks, input_shape, kernels)
  return fill_tree(params, effective)


def _reach(apply_fn, params, masks, input_shape, kernels):
  """Effective mask of each kernel, and whether any input reaches any output."""
  ones = {  # but for differences: `1 - gate` is a path
    name: distinct(jnp.shape(leaf), jnp.float32)
    for name, leaf in present_leaves(params).items()
    if jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
  }
  for name, mask in check_masks(params, masks).items():
    ones[name] *= jnp.asarray(mask).astype(jnp.float32)
  network = positive_network(
    apply_fn, params, input_shape, dtype=jnp.float32, reach=True
  )

  @jax.jit
  def slopes(ones):
    def total(weights):
      return network(fill_tree(params, ones | weights, keep=True))[0]

    weights = {name: ones[name] for name in kernels}
    reached, slopes = jax.value_and_grad(total)(weights)
    return {n: (s != 0) & (weights[n] != 0) for n, s in slopes.items()}, reached != 0

  return slopes(ones)


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
  counts = count_masks(effective).values()
  return math.fsum(c.live for c in counts) / max(1, sum(c.total for c in counts))


class Collapse(NamedTuple):
  """Layers that a mask has put out of use, by name; all empty if none.

  A layer of a stacked leaf is called `name[layer]`.

  Attributes:
    empty: layers without a trained weight.
    cut: layers with weights, none of which lies on a path from input to output.
    disconnected: whether no path leads from any input to any output, through weights
      or past them (skip connections).
    message: one line that says all that, or "" if nothing has collapsed.
  """

  empty: tuple[str, ...]
  cut: tuple[str, ...]
  disconnected: bool
  message: str


def find_collapse(
  apply_fn: Callable[[Any, Any], Any],
  params: Any,
  masks: Any,
  input_shape: Sequence[int] | Any,
  *,
  layouts: Layouts | None = None,
) -> Collapse:
  """Finds the layers that a mask has put out of use.

  A global mask can leave a layer without a weight, or with weights none of which lies
  on a path from an input to an output. Such a network trains its biases at best.

  Args:
    apply_fn: as in `effective_masks`.
    params: as there.
    masks: as there, with concrete leaves.
    input_shape: as there.
    layouts: as there.

  Returns:
    A `Collapse`; its `message` is "" if every layer is in use.

  Raises:
    ValueError: as in `effective_masks`.

  Example:
    >>> params = {"a": {"kernel": jnp.ones((2, 2))}, "b": {"kernel": jnp.ones((2, 2))}}
    >>> apply_fn = lambda p, x: jnp.tanh(x @ p["a"]["kernel"]) @ p["b"]["kernel"]
    >>> to_unit_0 = jnp.array([[True, False], [True, False]])
    >>> masks = {"a": {"kernel": to_unit_0}, "b": {"kernel": to_unit_0}}
    >>> find_collapse(apply_fn, params, masks, (1, 2)).message
    ''
    >>> from_unit_1 = jnp.array([[False, False], [True, False]])
    >>> masks = {"a": {"kernel": to_unit_0}, "b": {"kernel": from_unit_1}}
    >>> find_collapse(apply_fn, params, masks, (1, 2)).message
    'no path from input to output; no weight on a path: a/kernel, b/kernel'
  """
  kernels = find_kernels(params, layouts)
  effective, connected = _reach(apply_fn, params, masks, input_shape, kernels)
  trained = match_leaves(params, masks, "masks")
  empty, cut = [], []
  for name, kernel in kernels.items():
    mask = trained[name]  # None where all weights are trained
    alive = np.ones(kernel.num_layers) if is_leaf(mask) else live_counts(kernel, mask)
    for layer in np.flatnonzero(live_counts(kernel, effective[name]) == 0):
      label = f"{name}[{layer}]" if kernel.stack_shape else name
      (cut if alive[layer] else empty).append(label)
  disconnected = not bool(connected)
  parts = ["no path from input to output"] if disconnected else []
  for rule, names in (("no weight", empty), ("no weight on a path", cut)):
    if names:
      more = f" and {len(names) - 8} more" if len(names) > 8 else ""
      parts.append(f"{rule}: {', '.join(names[:8])}{more}")
  return Collapse(tuple(empty), tuple(cut), disconnected, "; ".join(parts))


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
  tap does.

  Args:
    kernel: array `(in, out)` or `(*window, in, out)` of weights or of a mask; what is
      not zero is a weight.

  Returns:
    The `Components`; component 0 has the most units.

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
