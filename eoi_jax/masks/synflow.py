"""SynFlow: scores of the flow through a network without data, and masks in rounds."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from eoi_jax import _checks
from eoi_jax.layouts.layout import Kernel
from eoi_jax.layouts.trees import Layouts, fill_tree, find_kernels
from eoi_jax.masks._positive import positive_network
from eoi_jax.masks._topk import top_masks
from eoi_jax.masks.saliency import _cast, _check_tops, _finish, _precision, _weights
from eoi_jax.masks.trees import is_traced


def synflow_scores(
  apply_fn: Callable[[Any, Any], Any],
  params: Any,
  input_shape: Sequence[int] | Any,
  *,
  layouts: Layouts | None = None,
  dtype: Any = jnp.float32,
) -> Any:
  """SynFlow, one step: `|w dR/dw|`, R = sum of the logits of the positive network.

  Parameters, and floating arrays that `apply_fn` closes over (batch statistics), are
  replaced by absolute values, the input is all ones, and the network is linear: what
  is done about activations, normalization, softmax and tokens, whatever framework
  wrote them, is this:

    - activations (of `jax.nn`, saturating functions, `x * sigmoid(x)` and its like) are
      the identity; functions of another form are evaluated as they stand;
    - normalization by statistics of the array itself (layer, group and RMS norm) is its
      scale and offset alone;
    - softmax is its logits divided by their number, so that attention is
      `(q k^T) v / n` and query and key have a part in the flow;
    - a lookup of tokens in an embedding, or of an expert by its index, gives the mean
      row; what is chosen by tokens is every choice at once.

  Args:
    apply_fn: `(params, inputs) -> logits`, in evaluation mode, for example
      `lambda p, x: model.apply({"params": p, "batch_stats": stats}, x, train=False)`;
      of a tuple the first entry is taken.
    params: tree of arrays.
    input_shape: shape of the inputs, with a batch of one; or what `apply_fn` takes, a
      tree of shapes, arrays or shape-dtype structs. Integers are tokens; values do not
      matter.
    layouts: which leaves are kernels, and how; None = `kernel_layouts(params)`.
    dtype: dtype of the arithmetic, float32 or float64. Either way intermediate arrays
      carry exponents of their own, so that depth does not over- or underflow.

  Returns:
    Tree like `params`: scores of the shape of each kernel, at least 0, None = dense.
    Where R is not between 2**-64 and 2**64, all scores are divided by one power of two
    that brings it near 1; their order is the same.

  Raises:
    ValueError: if `params` has no kernel or one in doubt, the logits do not depend on
      the inputs, a score is not finite, or all scores of a kernel are zero.

  Example:
    >>> params = {"kernel": jnp.array([[1.0, -2.0], [0.5, 0.1]])}
    >>> apply_fn = lambda p, x: jnp.tanh(x @ p["kernel"])
    >>> synflow_scores(apply_fn, params, (1, 2))["kernel"].round(3).tolist()[0]
    [1.0, 2.0]

  Reference: Tanaka et al., 2020, arXiv:2006.05467.
  """
  kernels = find_kernels(params, layouts)
  score = _flow(apply_fn, params, kernels, input_shape, dtype)
  with _precision(dtype, params):

    @jax.jit
    def scaled(params):
      scores, exponent = score(_weights(params, kernels), params)
      scale = jnp.exp2(jnp.where(jnp.abs(exponent) <= 64, exponent, 0))
      return {name: s * scale for name, s in scores.items()}

    scores = scaled(_cast(params, dtype))
  return _finish("synflow_scores", params, kernels, scores)


def synflow_masks(
  apply_fn: Callable[[Any, Any], Any],
  params: Any,
  input_shape: Sequence[int] | Any,
  density: float,
  *,
  num_rounds: int = 100,
  layouts: Layouts | None = None,
  dtype: Any = jnp.float32,
) -> Any:
  """SynFlow: prunes the lowest scores in rounds, and scores what is left again.

  After round e = 0, 1, ... of `num_rounds`, `N - int((1 - density**((e + 1) /
  num_rounds)) * N)` weights are left; after the last, exactly `round(density * N)`.

  Args:
    apply_fn: as in `synflow_scores`.
    params: tree of arrays.
    input_shape: as in `synflow_scores`.
    density: fraction of trained weights over all kernels together, in `(0, 1]`.
    num_rounds: number of rounds, at least 1.
    layouts: as in `synflow_scores`.
    dtype: as in `synflow_scores`.

  Returns:
    Tree like `params`: bool leaves, True = trained; None where a leaf is dense. Ties
    go to the lowest index, as in `global_masks`.

  Raises:
    ValueError: if `density` is not in `(0, 1]`, no path from an input to an output is
      left before the last round, or as in `synflow_scores`.

  Example:
    >>> params = {"kernel": jnp.array([[1.0, -2.0], [0.5, 0.1]])}
    >>> apply_fn = lambda p, x: x @ p["kernel"]
    >>> synflow_masks(apply_fn, params, (1, 2), 0.5)["kernel"].tolist()
    [[True, True], [False, False]]

  Reference: Tanaka et al., 2020, arXiv:2006.05467.
  """
  density = _checks.density(density)
  num_rounds = _checks.integer("num_rounds", num_rounds, 1)
  kernels = find_kernels(params, layouts)
  score = _flow(apply_fn, params, kernels, input_shape, dtype)
  total = sum(kernel.leaf.size for kernel in kernels.values())
  steps = [density ** (step / num_rounds) for step in range(1, num_rounds)]
  counts = [total - int((1 - part) * total) for part in steps]
  counts = [n for n in counts if n < total] + [round(density * total)]

  @jax.jit
  def prune(params):
    weights = _weights(params, kernels)

    def prune_round(masks, count):
      alive = {n: jnp.where(m, weights[n], 0) for n, m in masks.items()}
      scores, _ = score(alive, params)
      tops = {name: jnp.max(s) for name, s in scores.items()}
      ranked = {n: jnp.where(masks[n], s, -1) for n, s in scores.items()}
      return top_masks(ranked, count), tops

    masks = {name: jnp.isfinite(w) | True for name, w in weights.items()}
    return jax.lax.scan(prune_round, masks, jnp.asarray(counts, jnp.int32))

  with _precision(dtype, params):
    masks, tops = prune(_cast(params, dtype))
  if not is_traced(tops):
    tops = {name: np.asarray(top) for name, top in tops.items()}
    _check_tops("synflow_masks", {name: top[0] for name, top in tops.items()})
    if not np.all(sum(tops.values())):
      raise ValueError(
        f"`density` must leave a path from an input to an output, got {density} for "
        f"{total} weights; take a higher one, or more rounds than {num_rounds}."
      )
  return fill_tree(params, masks)


def _flow(apply_fn, params, kernels: dict[str, Kernel], input_shape, dtype) -> Callable:
  """`(weights, params) -> (scores, exponent)`: scores are `scores * 2**exponent`."""
  network = positive_network(apply_fn, params, input_shape, dtype=dtype)

  def score(weights, params):
    weights = {name: jnp.abs(w) for name, w in weights.items()}
    positive = jax.tree.map(jnp.abs, params)

    def total(weights):
      return network(fill_tree(positive, weights, keep=True))

    gradient, exponent = jax.grad(total, has_aux=True)(weights)
    return {name: jnp.abs(w * gradient[name]) for name, w in weights.items()}, exponent

  return score
