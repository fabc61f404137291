"""Approximate isometry (AI): weights on a given mask, moved towards orthogonality.

    minimize over C = W * mask   sum over layers ||C C^T - scale^2 I||_F

with `C` the kernel as a matrix, on the smaller Gram side. Layers are independent: they
are optimized side by side, equal shapes in one compiled loop.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from eoi_jax import _checks as checks

# Iterations and step size of each method.
METHODS = {"sgd": (10_000, 0.1), "adam": (200, 0.25)}
# Numbers of an array that a CPU keeps in its cache beside a few more.
_CACHE_SIZE = 2**15


class IsometryResult(NamedTuple):
  """What the optimization leaves.

  Attributes:
    kernels: optimized kernels, zero off their masks, shape of the input.
    errors: `||C C^T - scale^2 I||_F` before every step and at the end, float32
      `[num_steps + 1, n]`; without `curve` the first and the last, `[2, n]`.
  """

  kernels: jax.Array
  errors: jax.Array


def approximate_isometry(
  kernels: jax.Array,
  masks: jax.Array,
  *,
  scale: float = 1.0,
  method: str = "sgd",
  num_steps: int | None = None,
  step_size: float | None = None,
  curve: bool = False,
) -> IsometryResult:
  """Makes a stack of masked kernels approximately isometric.

  "sgd" is the published method: plain gradient descent on the norm (not squared), from
  the masked kernels as they are. "adam" starts from rows scaled to unit norm, takes
  Adam's steps on the square, of size `step_size` relative to the final weights and
  decaying by a cosine: it ends lower in a fifth of the steps.

  Args:
    kernels: float array `[n, *window, in, out]`, a stack of equal shapes; their values
      are the start.
    masks: bool array likewise, True = trained.
    scale: gain `sigma_w` to reach, positive.
    method: "sgd" or "adam".
    num_steps: iterations; 10000 for "sgd", 200 for "adam" by default.
    step_size: learning rate; 0.1 for "sgd", 0.25 for "adam" by default.
    curve: whether to return the errors of all steps.

  Returns:
    `IsometryResult`. A kernel that would not end nearer than it started is kept. The
    same kernels give the same result in any stack, to rounding.

  Raises:
    ValueError: if shapes or dtypes do not fit, or an option is out of range.

  Example:
    >>> start = jax.nn.initializers.orthogonal()(jax.random.key(0), (16, 16))
    >>> masks = jax.random.bernoulli(jax.random.key(1), 0.5, (1, 16, 16))
    >>> result = approximate_isometry(start[None], masks, num_steps=100)
    >>> bool(result.errors[-1, 0] < result.errors[0, 0])
    True

  Reference: Nowak et al., 2024, arXiv:2406.01755; Lee et al., 2020, arXiv:1906.06307.
  """
  checks.one_of("method", method, METHODS)
  kernels, masks = jnp.asarray(kernels), jnp.asarray(masks)
  fits = kernels.ndim > 2 and kernels.shape == masks.shape and kernels.size
  floating = jnp.issubdtype(kernels.dtype, jnp.floating)
  if not fits or not floating or masks.dtype != jnp.bool_:
    raise ValueError(
      "floating `kernels` and bool `masks` must have one shape [n, *window, in, out], "
      f"not empty, got {kernels.dtype}{kernels.shape} and {masks.dtype}{masks.shape}."
    )
  scale = checks.positive("scale", scale)
  steps, size = METHODS[method]
  num_steps = checks.integer("num_steps", steps if num_steps is None else num_steps, 0)
  step_size = checks.positive("step_size", size if step_size is None else step_size)
  with jax.numpy_dtype_promotion("standard"):  # optax promotes its counter
    return _run(kernels, masks, scale, step_size, num_steps, method, curve)


@functools.partial(jax.jit, static_argnames=("num_steps", "method", "curve"))
def _run(kernels, masks, scale, step_size, num_steps: int, method: str, curve: bool):
  dtype = checks.compute_dtype(kernels.dtype)
  scale, step_size = jnp.asarray(scale, dtype), jnp.asarray(step_size, dtype)
  weights, live = to_matrices(kernels.astype(dtype)), to_matrices(masks)
  weights = jnp.where(live, weights, jnp.zeros((), dtype))

  def run_one(pair):
    weights, live = pair
    return _descend(weights, live, scale, step_size, num_steps, method, curve)

  # On a CPU the layers that fit into its cache together; elsewhere all at once.
  group = weights.shape[0]
  if jax.default_backend() == "cpu":
    group = max(1, min(group, _CACHE_SIZE // math.prod(weights.shape[1:])))
  if group == 1:
    weights, errors = jax.lax.map(run_one, (weights, live))
  else:
    weights, errors = jax.lax.map(run_one, (weights, live), batch_size=group)
  weights = from_matrices(weights, kernels.shape).astype(kernels.dtype)
  return IsometryResult(weights, errors.T)


def _descend(weights, live, scale, step_size, num_steps: int, method: str, curve: bool):
  """Optimizes one matrix; returns it, and its errors `[num_steps + 1]` or `[2]`."""
  if method == "adam":
    start, size = _unit_rows(weights, live, scale)
    tx = optax.adam(optax.cosine_decay_schedule(1.0, max(num_steps, 1)))
  else:
    start, size, tx = weights, jnp.ones_like(scale), optax.sgd(1.0)

  def step(carry, _):
    weights, state = carry
    gradient, norm = gram_gradient(weights, live, scale)
    if method == "sgd":  # of ||R||_F, which is 2 R C / ||R||_F, zero where the norm is
      tiny = jnp.finfo(weights.dtype).tiny
      gradient *= jnp.where(norm > 0, 2 / jnp.maximum(norm, tiny), 0)
    updates, state = tx.update(gradient, state)
    return (weights + step_size * size * updates, state), norm if curve else None

  first = gram_residual(weights, scale)[1]
  (moved, _), norms = jax.lax.scan(step, (start, tx.init(start)), length=num_steps)
  last = gram_residual(moved, scale)[1]
  # Steps on a norm overshoot where the start is exact already.
  weights = jnp.where(last < first, moved, weights)
  ends = jnp.stack([first, jnp.minimum(last, first)])
  return weights, ends if norms is None else jnp.concatenate([norms, ends[1:]])


def _unit_rows(weights, live, scale) -> tuple[jax.Array, jax.Array]:
  """Rows scaled to norm `scale`, and the size of a final weight."""
  norms = jnp.sqrt(jnp.sum(jnp.square(weights), axis=1, keepdims=True))
  weights = jnp.where(norms > 0, scale * weights / jnp.where(norms > 0, norms, 1), 0)
  count = jnp.maximum(jnp.sum(live), 1).astype(weights.dtype)
  return weights, scale * jnp.sqrt(weights.shape[0] / count)


def to_matrices(kernels: jax.Array) -> jax.Array:
  """Views a stack `[n, *window, in, out]` as matrices, rows on the smaller side."""
  matrices = kernels.reshape(len(kernels), -1, kernels.shape[-1])
  is_wide = matrices.shape[1] <= matrices.shape[2]
  return matrices if is_wide else jnp.swapaxes(matrices, 1, 2)


def from_matrices(matrices: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """The stack of some shape that `to_matrices` gives these matrices for."""
  is_wide = math.prod(shape[1:-1]) <= shape[-1]
  return (matrices if is_wide else jnp.swapaxes(matrices, 1, 2)).reshape(shape)


def gram_residual(weights: jax.Array, scale: jax.Array) -> tuple[jax.Array, jax.Array]:
  """`C C^T - scale^2 I`, `[rows, rows]`, and its Frobenius norm."""
  gram = jnp.matmul(weights, weights.T)
  residual = gram - jnp.square(scale) * jnp.eye(len(gram), dtype=gram.dtype)
  return residual, jnp.sqrt(jnp.sum(jnp.square(residual)))


def gram_gradient(weights, live, scale) -> tuple[jax.Array, jax.Array]:
  """A quarter of the gradient of the squared norm, and the norm."""
  residual, norm = gram_residual(weights, scale)
  gradient = jnp.matmul(residual, weights)
  return jnp.where(live, gradient, jnp.zeros((), gradient.dtype)), norm
