"""Takes kernels back towards isometry on the masks that they have.

    f(C) = ||C C^T - scale^2 I||_F^2,   C = W * mask, on the smaller Gram side

by conjugate gradients with an exact line search: along any direction f is a quartic.
Training bends singular values, and a change of masks cuts some: a few steps undo most
of both, from where the weights are.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from eoi_jax import _checks as checks
from eoi_jax.initializers.isometry import (
  from_matrices,
  gram_gradient,
  gram_residual,
  to_matrices,
)
from eoi_jax.layouts.trees import Layouts, fill_tree, find_kernels, named_leaves
from eoi_jax.masks.trees import check_masks
from eoi_jax.optim._masked import gathered, match_type

_BISECTIONS = 30


def restore_isometry(
  params: Any,
  masks: Any,
  *,
  scale: float | None = None,
  num_steps: int = 10,
  layouts: Layouts | None = None,
) -> Any:
  """Lowers the Gram error of every masked kernel; the masks stay.

  The error is that of `approximate_isometry`, with a convolution as the matrix
  `(taps * in, out)`; here the weights move on from where they are.

  Args:
    params: tree of arrays.
    masks: tree like `params`: bool leaves, True = trained; None = dense leaf, which
      is left as it is.
    scale: gain that the kernels should have; None: of each its own, the root mean
      square of its singular values.
    num_steps: steps of conjugate gradients, two products of matrices each.
    layouts: how the masked leaves are batches of matrices; None = what
      `kernel_layouts` reads off their shapes.

  Returns:
    Tree like `params`: no kernel's error is higher than before, weights off the masks
    are zero.

  Raises:
    ValueError: if the masks do not fit, a masked leaf is in doubt, or an option is out
      of range.

  Example:
    >>> params = {"kernel": jax.random.normal(jax.random.key(0), (16, 16)) / 4}
    >>> masks = {"kernel": jax.random.bernoulli(jax.random.key(1), 0.5, (16, 16))}
    >>> kernel = restore_isometry(params, masks, scale=1.0)["kernel"]
    >>> bool(jnp.abs(kernel.T @ kernel - jnp.eye(16)).max() < 0.3)
    True
  """
  num_steps = checks.integer("num_steps", num_steps, 0)
  scale = None if scale is None else checks.positive("scale", scale)
  mask_of = check_masks(params, masks)
  leaves = named_leaves(params)
  masked = fill_tree(params, {name: leaves[name] for name in mask_of})
  moved = {}
  for name, kernel in find_kernels(masked, layouts).items():
    leaf = jnp.asarray(kernel.leaf)
    weights, live = (kernel.to_blocks(gathered(a)) for a in (leaf, mask_of[name]))
    restored = kernel.from_blocks(_restore(weights, live, scale, num_steps))
    moved[name] = match_type(restored, leaf)
  return fill_tree(params, moved, keep=True)


@functools.partial(jax.jit, static_argnames="num_steps")
def _restore(kernels, masks, scale: float | None, num_steps: int) -> jax.Array:
  """Treats a stack of kernels `[n, *window, in, out]`."""
  dtype = checks.compute_dtype(kernels.dtype)
  matrices, live = to_matrices(kernels.astype(dtype)), to_matrices(masks)
  matrices = jnp.where(live, matrices, jnp.zeros((), dtype))
  target = None if scale is None else jnp.asarray(scale, dtype)
  descend = functools.partial(_descend, scale=target, num_steps=num_steps)
  result = jax.vmap(descend)(matrices, live)
  return from_matrices(result, kernels.shape).astype(kernels.dtype)


def _descend(weights, live, *, scale, num_steps: int) -> jax.Array:
  """Conjugate gradients (Polak and Ribiere) on one matrix with its rows short."""
  if scale is None:
    scale = jnp.sqrt(jnp.sum(jnp.square(weights)) / weights.shape[0])
  unit, one = jnp.where(scale > 0, scale, 1), jnp.ones_like(scale)
  start = weights / unit
  gradient, error = gram_gradient(start, live, one)

  def step(_, carry):
    weights, gradient, direction = carry
    weights = weights + _line_search(weights, direction) * direction
    new, _ = gram_gradient(weights, live, one)
    before = jnp.vdot(gradient, gradient)
    ratio = jnp.vdot(new, new - gradient) / jnp.where(before > 0, before, 1)
    direction = jnp.maximum(ratio, 0) * direction - new
    uphill = jnp.vdot(direction, new) >= 0
    return weights, new, jnp.where(uphill, -new, direction)

  first = (start, gradient, -gradient)
  last, _, _ = jax.lax.fori_loop(0, num_steps, step, first)
  return jnp.where(gram_residual(last, one)[1] < error, unit * last, weights)


def _line_search(weights: jax.Array, direction: jax.Array) -> jax.Array:
  """A minimum of `f(C + t D) = ||R + t P + t^2 Q||^2` at `t >= 0`, by its slope.

  The slope is a cubic, below zero at 0 and above zero beyond the bound of its roots.
  """
  cross = jnp.matmul(weights, direction.T)
  r, _ = gram_residual(weights, jnp.ones((), weights.dtype))
  p, q = cross + cross.T, jnp.matmul(direction, direction.T)
  slope = (
    jnp.vdot(r, p),
    jnp.vdot(p, p) + 2 * jnp.vdot(r, q),
    3 * jnp.vdot(p, q),
    2 * jnp.vdot(q, q),
  )
  top = jnp.where(slope[3] > 0, slope[3], 1)
  roots = jnp.abs(jnp.stack(slope[:3]) / top) ** jnp.array([1 / 3, 1 / 2, 1], top.dtype)
  bound = 2 * jnp.max(roots)  # Fujiwara's, on all roots of a polynomial

  def halve(_, ends):
    low, high = ends
    t = (low + high) / 2
    below = slope[0] + t * (slope[1] + t * (slope[2] + t * slope[3])) < 0
    return jnp.where(below, t, low), jnp.where(below, high, t)

  low, high = jax.lax.fori_loop(0, _BISECTIONS, halve, (jnp.zeros_like(bound), bound))
  return jnp.where(slope[3] > 0, (low + high) / 2, 0)
