"""Scores that say which weights to keep, and the masks of the best of them.

One polarity for all of them: the higher a score, the sooner its weight is kept.
Scores are trees like `params`, with None where a leaf is dense; `global_masks` makes
masks of them.

Networks compute in their own types; `dtype=jnp.float64` casts parameters and inputs
and enables 64-bit types for the one call. Scores come back in float32 at least. All
functions work under `jax.jit`; checks of values are skipped where values are traced.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from eoi_jax import _checks, _keys
from eoi_jax.layouts.layout import Kernel
from eoi_jax.layouts.trees import (
  Layouts,
  fill_tree,
  find_kernels,
  named_leaves,
  present_leaves,
)
from eoi_jax.masks._topk import mark_highest, top_masks
from eoi_jax.masks.trees import is_traced, place_like

# Added to the sum that GraSP's scores are divided by, as published.
_GRASP_EPSILON = 1e-10


def snip_scores(
  apply_fn: Callable[[Any, Any], Any],
  params: Any,
  batch: tuple[Any, Any],
  *,
  layouts: Layouts | None = None,
  loss: Callable[[Any, Any], jax.Array] | None = None,
  dtype: Any = None,
) -> Any:
  """SNIP: `|w dL/dw|`, divided by its sum over all kernels.

  L is the mean cross-entropy of the logits over the batch, or a loss of your own.

  Networks with batch normalization are scored in training mode. In Linen, drop the new
  statistics: `lambda p, x: model.apply({"params": p, "batch_stats": stats}, x,
  train=True, mutable=["batch_stats"])[0]`. In NNX, merge a new module for each call:

      graphdef, params, rest = nnx.split(module, nnx.Param, ...)

      def apply_fn(params, inputs):
        return nnx.merge(graphdef, params, rest, copy=True)(inputs)

  Args:
    apply_fn: `(params, inputs) -> logits`, `[batch, ..., classes]`; of a tuple the
      first entry is taken.
    params: tree of arrays.
    batch: `(inputs, labels)`. Inputs are what `apply_fn` takes: an array, or a tree of
      them. Labels are integers `[batch, ...]` in `[0, classes)`, or probabilities
      `[batch, ..., classes]`; with a `loss`, what that takes.
    layouts: which leaves are kernels, and how; None = `kernel_layouts(params)`.
    loss: `(logits, labels) -> scalar`; None = mean softmax cross-entropy.
    dtype: None = the network's own types; float32 or float64 = parameters and inputs
      are cast to it. A network with types of its own may not take that.

  Returns:
    Tree like `params`: scores of the shape of each kernel, in `[0, 1]`, None = dense.

  Raises:
    ValueError: if `params` has no kernel or one in doubt, labels do not fit or are out
      of range, a score is not finite, or all scores of a kernel are zero.

  Example:
    >>> params = {"kernel": jnp.array([[1.0, -2.0], [0.5, 0.0]])}
    >>> batch = jnp.ones((4, 2)), jnp.array([0, 1, 1, 1])
    >>> scores = snip_scores(lambda p, x: x @ p["kernel"], params, batch)
    >>> bool(jnp.isclose(scores["kernel"].sum(), 1.0))
    True

  Reference: Lee et al., 2019, arXiv:1810.02340.
  """
  kernels = find_kernels(params, layouts)
  loss_fn = _loss(apply_fn, params, [batch], loss)

  @jax.jit
  def score(params, batch):
    weights = _weights(params, kernels)
    gradient = jax.grad(loss_fn)(weights, params, batch)
    products = _multiply(weights, gradient)
    return _normalize({name: jnp.abs(s) for name, s in products.items()})

  with _precision(dtype, (params, batch)):
    scores = score(*_cast((params, batch), dtype))
  return _finish("snip_scores", params, kernels, scores)


def grasp_scores(
  apply_fn: Callable[[Any, Any], Any],
  params: Any,
  batches: Sequence[tuple[Any, Any]] | tuple[Any, Any],
  *,
  temperature: float = 200.0,
  layouts: Layouts | None = None,
  loss: Callable[[Any, Any], jax.Array] | None = None,
  dtype: Any = None,
) -> Any:
  """GraSP: `w * (H g)`, divided by the absolute value of its sum plus 1e-10.

  L is the mean cross-entropy of `logits / temperature`; g is the sum over the batches
  of the gradients of L, H that of its Hessians. A weight with a high score keeps the
  gradient flowing: `global_masks` keeps the highest. The published score is the
  negative of this one, and its highest are pruned.

  H g is the gradient of the gradient's product with g, in reverse mode twice: functions
  with a `custom_vjp` (flash attention) will do if JAX can differentiate their backward
  pass.

  Args:
    apply_fn: as in `snip_scores`.
    params: tree of arrays.
    batches: one `(inputs, labels)` or a sequence of them, such as the two halves of
      the published setting. A pair is one batch unless both its entries are pairs.
    temperature: divisor of the logits, positive.
    layouts: as in `snip_scores`.
    loss: as in `snip_scores`; it takes `logits / temperature`.
    dtype: as in `snip_scores`.

  Returns:
    Tree like `params`: scores of the shape of each kernel, of any sign, None = dense.

  Raises:
    ValueError: if there is no batch, `temperature` is not positive, or as in
      `snip_scores`.

  Example:
    >>> params = {"kernel": jnp.array([[1.0, -2.0], [0.5, 0.0]])}
    >>> batch = jnp.ones((4, 2)), jnp.array([0, 1, 1, 1])
    >>> apply_fn = lambda p, x: x @ p["kernel"]
    >>> scores = grasp_scores(apply_fn, params, [batch], temperature=1.0)
    >>> bool(jnp.isclose(jnp.abs(scores["kernel"].sum()), 1.0))
    True

  Reference: Wang et al., 2020, arXiv:2002.07376.
  """
  temperature = _checks.positive("temperature", temperature)
  batches = list(batches)
  pairs = (isinstance(part, tuple | list) and len(part) == 2 for part in batches)
  if len(batches) == 2 and not all(pairs):
    batches = [(batches[0], batches[1])]
  if not batches:
    raise ValueError("`batches` must hold at least one (inputs, labels), got none.")
  kernels = find_kernels(params, layouts)
  gradient_fn = jax.grad(_loss(apply_fn, params, batches, loss, temperature))
  gradient_jit = jax.jit(lambda p, batch: gradient_fn(_weights(p, kernels), p, batch))

  @jax.jit
  def curvature(params, g, batch):
    def slope(weights):
      products = _multiply(gradient_fn(weights, params, batch), g)
      return sum(jnp.sum(product) for product in products.values())

    return jax.grad(slope)(_weights(params, kernels))

  with _precision(dtype, (params, batches)):
    params_cast, batches = _cast((params, batches), dtype)
    weights = _weights(params_cast, kernels)
    g = h = jax.tree.map(jnp.zeros_like, weights)
    for batch in batches:
      g = optax.tree.add(g, gradient_jit(params_cast, batch))
    for batch in batches:
      h = optax.tree.add(h, curvature(params_cast, g, batch))
    scores = _normalize(_multiply(weights, h), _GRASP_EPSILON)
  return _finish("grasp_scores", params, kernels, scores)


def magnitude_scores(params: Any, *, layouts: Layouts | None = None) -> Any:
  """Magnitude: `|w|`, a baseline that needs no data.

  Args:
    params: tree of arrays.
    layouts: as in `snip_scores`.

  Returns:
    Tree like `params`: scores of the shape of each kernel, at least 0, None = dense.

  Raises:
    ValueError: if `params` has no kernel or one in doubt, a weight is not finite, or
      all weights of a kernel are zero.

  Example:
    >>> magnitude_scores([jnp.array([[-2.0, 1.0]])])[0].tolist()
    [[2.0, 1.0]]
  """
  kernels = find_kernels(params, layouts)
  scores = {name: jnp.abs(kernel.leaf) for name, kernel in kernels.items()}
  return _finish("magnitude_scores", params, kernels, scores)


def random_scores(
  key: jax.Array, params: Any, *, layouts: Layouts | None = None
) -> Any:
  """Uniform numbers, a baseline: `global_masks` of them is a random mask.

  Args:
    key: a PRNG key; it is consumed. The scores of a leaf depend on the key, its name
      and its shape alone.
    params: tree of arrays or shape-dtype structs.
    layouts: which leaves are kernels, and how; None = `kernel_layouts(params)`.

  Returns:
    Tree like `params`: float32 scores in `[0, 1)`, None = dense.

  Raises:
    ValueError: if `params` has no kernel or one in doubt.

  Example:
    >>> random_scores(jax.random.key(0), [jnp.ones((2, 3))])[0].shape
    (2, 3)
  """
  data = _keys.key_data(key)
  scores = {}
  for name, kernel in find_kernels(params, layouts).items():
    first = _keys.as_key(_keys.layer_keys(data, [kernel])[0])
    scores[name] = jax.random.uniform(first, kernel.leaf.shape, jnp.float32)
  return fill_tree(params, scores)


def global_masks(scores: Any, density: float) -> Any:
  """Marks the highest scores of all kernels together, exactly `round(density * N)`.

  Of equal scores the first is kept: leaves in the order of `jax.tree.leaves`, and the
  elements of a leaf in row-major order. So it is with scores of zero, which are kept
  if fewer scores than the count are above.

  Args:
    scores: tree of arrays of scores, None = dense leaf. Higher is kept. Under tracing
      they are compared in their own type; inside `shard_map`, each device's alone.
    density: fraction of trained weights over all kernels together, in `(0, 1]`.

  Returns:
    Tree like `scores`: bool leaves, True = trained, sharded as the scores are; None
    where a leaf is dense.

  Raises:
    ValueError: if `density` is not in `(0, 1]`, there is no score, one is nan, or all
      are zero.

  Example:
    >>> global_masks({"a": jnp.array([[3.0, 1.0]]), "b": jnp.array([[2.0, 2.0]])}, 0.5)
    {'a': Array([[ True, False]], dtype=bool), 'b': Array([[ True, False]], dtype=bool)}
  """
  density = _checks.density(density)
  leaves = present_leaves(scores)
  if not leaves:
    raise ValueError("`scores` must have at least one leaf that is not None.")
  count = round(density * sum(np.size(leaf) for leaf in leaves.values()))
  if is_traced(leaves):
    return fill_tree(scores, top_masks(leaves, count))
  masks = mark_highest("scores", leaves, count)
  return fill_tree(scores, place_like(masks, leaves))


@contextlib.contextmanager
def _precision(dtype: Any, values: Any) -> Iterator[None]:
  """Enables float64 if asked for; networks may then mix it with float32 arrays."""
  if dtype is not None and not jnp.issubdtype(dtype, jnp.floating):
    raise ValueError(f"`dtype` must be None or a floating dtype, got {dtype!r}.")
  wide = dtype is not None and jnp.dtype(dtype) == jnp.float64
  if not wide or jax.dtypes.canonicalize_dtype(jnp.float64) == jnp.float64:
    yield
    return
  if is_traced(values):
    raise ValueError(
      "`dtype` must not be float64 under `jax.jit` unless 64-bit types are enabled."
    )
  with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
    yield


def _cast(tree: Any, dtype: Any) -> Any:
  """Floating leaves of a tree in `dtype`, others as they are; None = all."""

  def cast_leaf(leaf):
    floating = jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
    return jnp.asarray(leaf, dtype) if floating else leaf

  return tree if dtype is None else jax.tree.map(cast_leaf, tree)


def _weights(params: Any, kernels: dict[str, Kernel]) -> dict[str, jax.Array]:
  leaves = named_leaves(params)
  weights = {name: leaves[name] for name in kernels}
  for name, weight in weights.items():
    if not jnp.issubdtype(weight.dtype, jnp.floating):
      raise ValueError(f"kernel {name!r} must be real floating, got {weight.dtype}.")
  return weights


def _first(outputs: Any) -> Any:
  """The logits of a network that returns them, or a tuple that they lead."""
  return outputs[0] if isinstance(outputs, tuple) else outputs


def _loss(apply_fn, params, batches, loss, temperature=1.0):
  """The loss as a function of the kernels, all parameters and a batch."""
  _checks.function("apply_fn", apply_fn)
  for batch in batches:
    if not isinstance(batch, tuple | list) or len(batch) != 2:
      raise ValueError(f"a batch must be (inputs, labels), got {type(batch)}.")
  if loss is not None:
    _checks.function("loss", loss)
  else:
    for inputs, labels in batches:
      logits = _first(jax.eval_shape(apply_fn, params, inputs))
      _check_labels(logits, (jnp if is_traced(labels) else np).asarray(labels))

  def loss_fn(weights, params, batch):
    inputs, labels = batch
    logits = _first(apply_fn(fill_tree(params, weights, keep=True), inputs))
    if temperature != 1.0:
      logits = jax.tree.map(lambda x: x / temperature, logits)
    if loss is not None:
      value = loss(logits, labels)
      shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", bool)
      if shape != () or not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"`loss` must return a scalar of floating dtype, got {value}.")
      return value
    labels = jnp.asarray(labels)
    logits = logits.astype(_checks.compute_dtype(logits.dtype))
    if jnp.issubdtype(labels.dtype, jnp.integer):
      labels = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    labels = labels.astype(logits.dtype)
    return optax.softmax_cross_entropy(logits, labels).mean()

  return loss_fn


def _check_labels(logits: Any, labels: jax.Array | np.ndarray) -> None:
  """Raises ValueError unless labels are classes, or probabilities, of the logits."""
  if not isinstance(logits, jax.ShapeDtypeStruct):
    raise ValueError(
      "`apply_fn` must return logits or a tuple that they lead, got "
      f"{type(logits).__name__}; pass a `loss` for other outputs."
    )
  *front, classes = logits.shape
  integers = jnp.issubdtype(labels.dtype, jnp.integer)
  floats = jnp.issubdtype(labels.dtype, jnp.floating)
  shape = tuple(front) if integers else logits.shape
  if labels.shape != shape or not (integers or floats):
    raise ValueError(
      f"`labels` must be integers of shape {tuple(front)} or probabilities of shape "
      f"{logits.shape}, got {labels.dtype} of shape {labels.shape}; pass a `loss` for "
      "others."
    )
  if not labels.size or not isinstance(labels, np.ndarray):
    return
  if integers:
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
      raise ValueError(
        f"`labels` must be in [0, {classes}), got {low if low < 0 else high}; pass a "
        "`loss` that leaves out what is not to count."
      )
  else:
    sums = np.abs(labels.astype(np.float64)).sum(axis=-1)
    for total in sums[np.abs(sums - 1) > 0.05][:1]:
      raise ValueError(
        "`labels` of floating dtype must be probabilities, of sum 1, got absolute "
        f"values of sum {total:.3g}; pass a `loss` for others."
      )


def _multiply(left: dict, right: dict) -> dict:
  """Products by name, in float32 at least."""

  def multiply(a, b):
    dtype = _checks.compute_dtype(a.dtype)
    return a.astype(dtype) * b.astype(dtype)

  return {name: multiply(left[name], right[name]) for name in left}


def _normalize(scores: dict[str, jax.Array], epsilon: float = 0.0) -> dict:
  """Divides by the absolute value of the sum over all kernels, plus `epsilon`."""
  wide = max((s.dtype for s in scores.values()), key=lambda dtype: dtype.itemsize)
  total = jnp.abs(sum(jnp.sum(s, dtype=wide) for s in scores.values())) + epsilon
  total = jnp.where(total > 0, total, jnp.ones_like(total))
  return {name: s / total.astype(s.dtype) for name, s in scores.items()}


def _finish(
  function: str, params: Any, kernels: dict[str, Kernel], scores: dict
) -> Any:
  """Tree of checked scores in float32, or the kernel's dtype if that is wider."""
  for name, kernel in kernels.items():
    dtype = _checks.compute_dtype(kernel.leaf.dtype)
    scores[name] = scores[name].astype(dtype)
  tops = {name: jnp.max(jnp.abs(score)) for name, score in scores.items()}
  if not is_traced(tops):
    _check_tops(function, tops)
  return fill_tree(params, scores)


def _check_tops(function: str, tops: dict[str, Any]) -> None:
  """Raises ValueError where the largest score of a leaf is zero or not finite."""
  for name, top in tops.items():
    if not np.isfinite(top):
      raise ValueError(
        f"`{function}` must find finite scores, got nan or inf for {name!r}: check "
        "`params` and the inputs."
      )
  empty = [name for name, top in tops.items() if top == 0]
  if empty:
    more = f" and {len(empty) - 8} more" if len(empty) > 8 else ""
    raise ValueError(
      f"`{function}` must find a nonzero score for every kernel, got zeros only "
      f"for {', '.join(map(repr, empty[:8]))}{more}: their weights are zero or have no "
      "effect. Change `params` or the inputs, or keep them dense (None in `layouts`)."
    )
