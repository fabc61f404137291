"""Scores that say which weights to keep, and the masks of the best of them.

One polarity for all of them: the higher a score, the sooner its weight is kept.
Scores are trees like `params`, with None where a leaf is dense; `global_masks` makes
masks of them.

The arithmetic is done in float64 by default, without 64-bit types being enabled for
the rest of the program; the scores come back in float32 at least.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from eoi_jax import _checks as checks
from eoi_jax import _kernels as kernels_lib
from eoi_jax._kernels import LeafPredicate
from eoi_jax.masks import _scoring as scoring
from eoi_jax.masks._scoring import ApplyFn
from eoi_jax.masks._topk import top_mask

Batch = tuple[Any, Any]

# Added to the sum that GraSP's scores are divided by, as published.
GRASP_EPSILON = 1e-10


def snip_scores(
  apply_fn: ApplyFn,
  params: Any,
  batch: Batch,
  *,
  is_kernel: LeafPredicate = kernels_lib.is_kernel,
  dtype: Any = jnp.float64,
) -> Any:
  """SNIP: `|w dL/dw|`, divided by its sum over all kernels.

  L is the mean cross-entropy of the logits over the batch.

  Args:
    apply_fn: `(params, inputs) -> logits`, `[batch, ..., classes]`. Networks with batch
      normalization are scored in training mode, for example by
      `lambda p, x: model.apply({"params": p, "batch_stats": stats}, x, train=True,
      mutable=["batch_stats"])[0]`.
    params: tree of arrays.
    batch: `(inputs, labels)`; labels are integers of shape `[batch, ...]`.
    is_kernel: `(name, leaf) -> bool`, which leaves are kernels.
    dtype: dtype of the arithmetic, float64 or float32. A network with a dtype of its
      own computes in that.

  Returns:
    Tree like `params`: scores of the shape of each kernel, in `[0, 1]`, None = dense.

  Raises:
    ValueError: if `params` has no kernel, labels do not fit, or a score is not finite.

  Example:
    >>> params = {"kernel": jnp.array([[1.0, -2.0], [0.5, 0.0]])}
    >>> batch = jnp.ones((4, 2)), jnp.array([0, 1, 1, 1])
    >>> scores = snip_scores(lambda p, x: x @ p["kernel"], params, batch)
    >>> bool(jnp.isclose(scores["kernel"].sum(), 1.0))
    True

  Reference: Lee et al., 2019, arXiv:1810.02340.
  """
  kernels = scoring.find_kernels(params, is_kernel)
  with scoring.working_precision(dtype):
    weights, rest = scoring.split(params, kernels, dtype)
    batch = _cast_batch(batch, dtype)

    @jax.jit
    def score(weights, batch):
      gradient = jax.grad(_loss(apply_fn, rest))(weights, batch)
      scores = jax.tree.map(lambda w, g: jnp.abs(w * g), weights, gradient)
      return _normalize(scores)

    scores = score(weights, batch)
  return scoring.finish(params, scores, "snip_scores")


def grasp_scores(
  apply_fn: ApplyFn,
  params: Any,
  batches: Sequence[Batch] | Batch,
  *,
  temperature: float = 200.0,
  is_kernel: LeafPredicate = kernels_lib.is_kernel,
  dtype: Any = jnp.float64,
) -> Any:
  """GraSP: `w * (H g)`, divided by the absolute value of its sum plus 1e-10.

  L is the mean cross-entropy of `logits / temperature`; g is the sum over the batches
  of the gradients of L, H that of its Hessians. A weight with a high score keeps the
  gradient flowing: `global_masks` keeps the highest. The published score is the
  negative of this one, and its highest are pruned.

  Args:
    apply_fn: as in `snip_scores`.
    params: tree of arrays.
    batches: one `(inputs, labels)` or a sequence of them, such as the two halves of
      the published setting.
    temperature: divisor of the logits, positive.
    is_kernel: `(name, leaf) -> bool`, which leaves are kernels.
    dtype: as in `snip_scores`.

  Returns:
    Tree like `params`: scores of the shape of each kernel, of any sign, None = dense.

  Raises:
    ValueError: if `params` has no kernel, there is no batch, labels do not fit,
      `temperature` is not positive, or a score is not finite.

  Example:
    >>> params = {"kernel": jnp.array([[1.0, -2.0], [0.5, 0.0]])}
    >>> batch = jnp.ones((4, 2)), jnp.array([0, 1, 1, 1])
    >>> apply_fn = lambda p, x: x @ p["kernel"]
    >>> scores = grasp_scores(apply_fn, params, [batch], temperature=1.0)
    >>> bool(jnp.isclose(jnp.abs(scores["kernel"].sum()), 1.0))
    True

  Reference: Wang et al., 2020, arXiv:2002.07376.
  """
  temperature = checks.positive("temperature", temperature)
  parts = _as_batches(batches)
  kernels = scoring.find_kernels(params, is_kernel)
  with scoring.working_precision(dtype):
    weights, rest = scoring.split(params, kernels, dtype)
    parts = [_cast_batch(batch, dtype) for batch in parts]
    gradient_fn = jax.grad(_loss(apply_fn, rest, temperature))

    def add(left, right):
      return jax.tree.map(jnp.add, left, right)

    gradient = jax.jit(gradient_fn)

    @jax.jit
    def curvature(weights, g, batch):
      return jax.jvp(lambda w: gradient_fn(w, batch), (weights,), (g,))[1]

    g = h = jax.tree.map(jnp.zeros_like, weights)
    for batch in parts:
      g = add(g, gradient(weights, batch))
    for batch in parts:
      h = add(h, curvature(weights, g, batch))
    scores = _normalize(jax.tree.map(jnp.multiply, weights, h), GRASP_EPSILON)
  return scoring.finish(params, scores, "grasp_scores")


def magnitude_scores(
  params: Any, *, is_kernel: LeafPredicate = kernels_lib.is_kernel
) -> Any:
  """Magnitude: `|w|`, a baseline that needs no data.

  Args:
    params: tree of arrays.
    is_kernel: `(name, leaf) -> bool`, which leaves are kernels.

  Returns:
    Tree like `params`: scores of the shape of each kernel, at least 0, None = dense.

  Raises:
    ValueError: if `params` has no kernel.

  Example:
    >>> magnitude_scores([jnp.array([[-2.0, 1.0]])])[0].tolist()
    [[2.0, 1.0]]
  """
  kernels = scoring.find_kernels(params, is_kernel)
  return kernels_lib.fill_tree(params, {n: abs(k.leaf) for n, k in kernels.items()})


def random_scores(
  key: jax.Array, params: Any, *, is_kernel: LeafPredicate = kernels_lib.is_kernel
) -> Any:
  """Uniform numbers, a baseline: `global_masks` of them is a random mask.

  Args:
    key: a PRNG key; it is consumed. The scores of a leaf depend on the key, its name
      and its shape alone.
    params: tree of arrays or shape-dtype structs.
    is_kernel: `(name, leaf) -> bool`, which leaves are kernels.

  Returns:
    Tree like `params`: float32 scores in `[0, 1)`, None = dense.

  Raises:
    ValueError: if `params` has no kernel.

  Example:
    >>> random_scores(jax.random.key(0), [jnp.ones((2, 3))])[0].shape
    (2, 3)
  """
  kernels = scoring.find_kernels(params, is_kernel)
  scores = {
    name: jax.random.uniform(
      kernels_lib.kernel_keys(key, kernel)[0], kernel.leaf.shape, jnp.float32
    )
    for name, kernel in kernels.items()
  }
  return kernels_lib.fill_tree(params, scores)


def global_masks(scores: Any, density: float) -> Any:
  """Marks the highest scores of all kernels together, exactly `round(density * N)`.

  Args:
    scores: tree of arrays of scores, None = dense leaf. Higher is kept.
    density: fraction of trained weights over all kernels together, in `(0, 1]`.

  Returns:
    Tree like `scores`: bool leaves, True = trained; None where a leaf is dense. Of
    equal scores the first is kept: leaves in the order of `jax.tree.leaves`, and the
    elements of a leaf in row-major order.

  Raises:
    ValueError: if `density` is not in `(0, 1]`, there is no score, or one is nan.

  Example:
    >>> global_masks({"a": jnp.array([[3.0, 1.0]]), "b": jnp.array([[2.0, 2.0]])}, 0.5)
    {'a': Array([[ True, False]], dtype=bool), 'b': Array([[ True, False]], dtype=bool)}
  """
  density = checks.density(density)
  leaves = {
    name: leaf
    for name, leaf in kernels_lib.named_leaves(scores).items()
    if not kernels_lib.is_leaf(leaf)
  }
  if not leaves:
    raise ValueError("`scores` must have at least one leaf that is not None.")
  if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves.values()):
    return kernels_lib.fill_tree(scores, _traced_masks(leaves, density))
  for name, leaf in leaves.items():
    if np.isnan(np.asarray(leaf)).any():
      raise ValueError(f"`scores` must not be nan, got nan in {name!r}.")
  arrays = {name: np.asarray(leaf, np.float64) for name, leaf in leaves.items()}
  count = round(density * sum(a.size for a in arrays.values()))
  masks = scoring.mark_highest(arrays, count)
  return kernels_lib.fill_tree(scores, jax.tree.map(jnp.asarray, masks))


def _traced_masks(leaves, density):
  """The masks of `global_masks` where the scores are traced."""
  flat = jnp.concatenate([leaf.reshape(-1) for leaf in leaves.values()])
  ends = np.cumsum([leaf.size for leaf in leaves.values()])[:-1]
  pieces = jnp.split(top_mask(flat, round(density * flat.size)), ends)
  return {
    name: piece.reshape(leaf.shape)
    for (name, leaf), piece in zip(leaves.items(), pieces, strict=True)
  }


def _as_batches(batches):
  """A list of batches from one or several."""
  batches = list(batches)
  if len(batches) == 2 and not isinstance(batches[0], tuple | list):
    batches = [tuple(batches)]
  if not batches:
    raise ValueError("`batches` must hold at least one (inputs, labels), got none.")
  return batches


def _cast_batch(batch, dtype):
  inputs, labels = batch
  labels = jnp.asarray(labels)
  if not jnp.issubdtype(labels.dtype, jnp.integer):
    raise ValueError(f"`labels` must be integers, got {labels.dtype}.")
  return scoring.cast(inputs, dtype), labels


def _loss(apply_fn, params, temperature=1.0):
  """Mean cross-entropy as a function of the kernels and a batch."""

  def loss(weights, batch):
    inputs, labels = batch
    logits = apply_fn(kernels_lib.fill_tree(params, weights, keep=True), inputs)
    if logits.shape[:-1] != labels.shape:
      raise ValueError(
        f"`labels` must have the shape {logits.shape[:-1]} of the logits without their "
        f"classes, got {labels.shape}."
      )
    logs = jax.nn.log_softmax(logits / temperature)
    return -jnp.take_along_axis(logs, labels[..., None], axis=-1).mean()

  return loss


def _normalize(scores, epsilon=0.0):
  """Divides by the absolute value of the sum over all kernels, plus `epsilon`."""
  total = jnp.abs(sum(jnp.sum(s) for s in scores.values())) + epsilon
  total = jnp.where(total > 0, total, jnp.ones_like(total))
  return jax.tree.map(lambda s: s / total, scores)
