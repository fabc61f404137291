"""SynFlow: scores of the flow through a network without data, and masks in rounds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from eoi_jax import _checks as checks
from eoi_jax import _kernels as kernels_lib
from eoi_jax._kernels import Kernel, LeafPredicate
from eoi_jax.masks import _scoring as scoring
from eoi_jax.masks._positive import Positive, positive_network
from eoi_jax.masks._scoring import ApplyFn


def synflow_scores(
  apply_fn: ApplyFn,
  params: Any,
  input_shape: Sequence[int],
  *,
  is_kernel: LeafPredicate = kernels_lib.is_kernel,
  dtype: Any = jnp.float64,
) -> Any:
  """SynFlow, one step: `|w dR/dw|`, R = sum of the logits of the positive network.

  Parameters, and floating arrays that `apply_fn` closes over (batch statistics), are
  replaced by absolute values, the input is all ones, and activations are linear: tanh
  and its like are taken as the identity, whatever framework wrote them. See
  `eoi_jax.positive`.

  Args:
    apply_fn: `(params, inputs) -> logits`, in evaluation mode, for example
      `lambda p, x: model.apply({"params": p, "batch_stats": stats}, x, train=False)`.
    params: tree of arrays.
    input_shape: shape of the inputs, with a batch of one.
    is_kernel: `(name, leaf) -> bool`, which leaves are kernels.
    dtype: dtype of the arithmetic, float64 or float32. Either way intermediate arrays
      carry exponents of their own, so that depth does not over- or underflow.

  Returns:
    Tree like `params`: scores of the shape of each kernel, at least 0, None = dense.
    Where R is not between 2**-64 and 2**64, all scores are divided by one power of two
    that brings it near 1; their order is the same.

  Raises:
    ValueError: if `params` has no kernel, the logits do not depend on the inputs, or a
      score is not finite.

  Example:
    >>> params = {"kernel": jnp.array([[1.0, -2.0], [0.5, 0.0]])}
    >>> apply_fn = lambda p, x: jnp.tanh(x @ p["kernel"])
    >>> synflow_scores(apply_fn, params, (1, 2))["kernel"].tolist()
    [[1.0, 2.0], [0.5, 0.0]]

  Reference: Tanaka et al., 2020, arXiv:2006.05467.
  """
  kernels = scoring.find_kernels(params, is_kernel)
  network = positive_network(apply_fn, params, input_shape, dtype=dtype)
  with scoring.working_precision(dtype):
    weights, score = _flow(network, params, kernels)
    scores, exponent = jax.jit(score)(weights)
    if abs(float(exponent)) <= 64:
      scale = jnp.exp2(exponent)
      scores = jax.tree.map(lambda s: s * scale, scores)
  return scoring.finish(params, scores, "synflow_scores")


def synflow_masks(
  apply_fn: ApplyFn,
  params: Any,
  input_shape: Sequence[int],
  density: float,
  *,
  num_rounds: int = 100,
  is_kernel: LeafPredicate = kernels_lib.is_kernel,
  dtype: Any = jnp.float64,
) -> Any:
  """SynFlow: prunes the lowest scores in rounds, and scores what is left again.

  After round e = 0, 1, ... of `num_rounds`, `N - int((1 - density**((e + 1) /
  num_rounds)) * N)` weights are left; after the last, exactly `round(density * N)`.

  Args:
    apply_fn: as in `synflow_scores`.
    params: tree of arrays.
    input_shape: shape of the inputs, with a batch of one.
    density: fraction of trained weights over all kernels together, in `(0, 1]`.
    num_rounds: number of rounds, at least 1.
    is_kernel: `(name, leaf) -> bool`, which leaves are kernels.
    dtype: as in `synflow_scores`.

  Returns:
    Tree like `params`: bool leaves, True = trained; None where a leaf is dense. Ties
    go to the lowest index, as in `global_masks`.

  Raises:
    ValueError: if `density` is not in `(0, 1]`, or as in `synflow_scores`.

  Example:
    >>> params = {"kernel": jnp.array([[1.0, -2.0], [0.5, 0.1]])}
    >>> apply_fn = lambda p, x: x @ p["kernel"]
    >>> synflow_masks(apply_fn, params, (1, 2), 0.5)["kernel"].tolist()
    [[True, True], [False, False]]

  Reference: Tanaka et al., 2020, arXiv:2006.05467.
  """
  density = checks.density(density)
  num_rounds = checks.integer("num_rounds", num_rounds, 1)
  kernels = scoring.find_kernels(params, is_kernel)
  network = positive_network(apply_fn, params, input_shape, dtype=dtype)
  total = sum(kernel.size for kernel in kernels.values())
  with scoring.working_precision(dtype):
    weights, score = _flow(network, params, kernels)
    score, prune = jax.jit(score), jax.jit(_prune, donate_argnums=0)
    masks = {name: np.ones(w.shape, bool) for name, w in weights.items()}
    for count in _kept_counts(total, density, num_rounds):
      if count == total:
        continue
      scores, _ = score(weights)
      scores = {name: np.asarray(s) for name, s in scores.items()}
      masks = scoring.mark_highest(scores, count, masks)
      weights = prune(weights, masks)
    scoring.check_finite(score(weights)[0], "synflow_masks")
  return kernels_lib.fill_tree(params, jax.tree.map(jnp.asarray, masks))


def _flow(network: Positive, params: Any, kernels: dict[str, Kernel]):
  """Absolute kernels, and `weights -> (scores, exponent)`."""
  positive = jax.tree.map(jnp.abs, params)
  weights, positive = scoring.split(positive, kernels, network.dtype)

  def total(weights):
    return network.apply(kernels_lib.fill_tree(positive, weights, keep=True))

  def score(weights):
    gradient, exponent = jax.grad(total, has_aux=True)(weights)
    return jax.tree.map(lambda w, g: jnp.abs(w * g), weights, gradient), exponent

  return weights, score


def _prune(weights, masks):
  return jax.tree.map(lambda w, m: jnp.where(m, w, jnp.zeros_like(w)), weights, masks)


def _kept_counts(num_weights: int, density: float, num_rounds: int) -> Iterator[int]:
  """Weights left after each round of SynFlow."""
  for step in range(1, num_rounds):
    yield num_weights - int((1 - density ** (step / num_rounds)) * num_weights)
  yield round(density * num_weights)
