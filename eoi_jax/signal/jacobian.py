"""Singular values of the input-output Jacobian: does a network preserve a signal?

`jacobian_singular_values` forms the Jacobian of every sample; `jacobian_extremes` only
multiplies with it and so takes networks and inputs of any size.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from eoi_jax import _checks as checks
from eoi_jax.signal import _bidiagonal as bidiagonal

ApplyFn = Callable[[Any, jax.Array], jax.Array]


class SpectrumSummary(NamedTuple):
  """Singular values of many Jacobians in a few numbers.

  Attributes:
    mean: of all singular values of all samples.
    max: the largest of all.
    min: the smallest of all.
    mean_square: mean of their squares; 1 preserves gradient norms on average.
    counts: int `[bins]`, a histogram.
    edges: float `[bins + 1]`, its edges, from 0 to the largest value.
  """

  mean: float
  max: float
  min: float
  mean_square: float
  counts: np.ndarray
  edges: np.ndarray


class JacobianExtremes(NamedTuple):
  """What products with the Jacobian tell of its singular values, `[batch]` each.

  Attributes:
    max: the largest singular value; never above it but for rounding.
    min: the smallest of the `min(in, out)`; never below it but for rounding.
    mean_square: mean square of the `min(in, out)` values.
    mean_square_error: standard error of `mean_square`; 0 where it is exact.
  """

  max: jax.Array
  min: jax.Array
  mean_square: jax.Array
  mean_square_error: jax.Array


def jacobian_singular_values(
  apply_fn: ApplyFn, params: Any, inputs: jax.Array, *, batch_size: int = 32
) -> jax.Array:
  """Singular values of the input-output Jacobian of every sample.

  Each sample goes through the network alone, as a batch of one; the Jacobian is that
  of its flattened output by its flattened input, in reverse mode if the output is the
  smaller of the two, else in forward mode. Matrix products are of full precision on
  every device.

  Args:
    apply_fn: `(params, inputs) -> outputs`, with a leading batch axis. It is static:
      pass the same function again to reuse the compiled program.
    params: tree of arrays.
    inputs: float array `[batch, ...]`.
    batch_size: samples at a time; less memory if smaller.

  Returns:
    Float array `[batch, min(in, out)]`, largest first.

  Raises:
    ValueError: if `inputs` is no batch of floating-point samples.

  Example:
    >>> values = jacobian_singular_values(
    ...   lambda params, x: x @ params, 2 * jnp.eye(3, 2), jnp.ones((1, 3))
    ... )
    >>> values.tolist()
    [[2.0, 2.0]]
  """
  inputs = _check_inputs(inputs)
  batch_size = checks.integer("batch_size", batch_size, 1)
  return _singular_values(apply_fn, params, inputs, min(batch_size, len(inputs)))


@functools.partial(jax.jit, static_argnames=("apply_fn", "batch_size"))
def _singular_values(apply_fn, params, inputs, batch_size):
  def of_sample(sample):
    function = _flat_function(apply_fn, params, sample)
    size_out = jax.eval_shape(function, sample.ravel()).size
    differentiate = jax.jacrev if size_out <= sample.size else jax.jacfwd
    jacobian = differentiate(function)(sample.ravel())
    return jnp.linalg.svd(jacobian, compute_uv=False)

  with jax.default_matmul_precision("highest"):
    return jax.lax.map(of_sample, inputs, batch_size=batch_size)


def jacobian_extremes(
  key: jax.Array,
  apply_fn: ApplyFn,
  params: Any,
  inputs: jax.Array,
  *,
  num_iterations: int = 64,
  num_probes: int = 32,
  batch_size: int = 8,
) -> JacobianExtremes:
  """Extreme singular values and mean square of Jacobians too large to form.

  Golub-Kahan-Lanczos bidiagonalization with full reorthogonalization: one product
  with the Jacobian and one with its transpose an iteration. If `num_iterations`
  reaches the smaller of input and output size, everything is exact to rounding. Else
  the largest value converges within a few dozen iterations, the smallest more slowly,
  from above; the mean square is Hutchinson's estimate from random signs.

  Args:
    key: a PRNG key; it is consumed.
    apply_fn: `(params, inputs) -> outputs`, with a leading batch axis; static.
    params: tree of arrays.
    inputs: float array `[batch, ...]`; each sample goes through the network alone.
    num_iterations: of the bidiagonalization; it keeps as many vectors of the input's
      and of the output's size per sample.
    num_probes: random vectors for the mean square, at least 2.
    batch_size: samples at a time.

  Returns:
    `JacobianExtremes` of float arrays `[batch]`.

  Raises:
    ValueError: if `inputs` is no batch of floating-point samples or a number is out of
      range.

  Example:
    >>> matrix = jnp.diag(jnp.array([3.0, 2.0, 1.0]))
    >>> extremes = jacobian_extremes(
    ...   jax.random.key(0), lambda params, x: x @ params, matrix, jnp.ones((1, 3))
    ... )
    >>> [round(float(x[0]), 4) for x in extremes[:3]]
    [3.0, 1.0, 4.6667]

  Reference: Golub and Kahan, 1965; Hutchinson, 1989.
  """
  inputs = _check_inputs(inputs)
  num_iterations = checks.integer("num_iterations", num_iterations, 1)
  num_probes = checks.integer("num_probes", num_probes, 2)
  batch_size = min(checks.integer("batch_size", batch_size, 1), len(inputs))
  sizes = (num_iterations, num_probes, batch_size)
  return _extremes(key, apply_fn, params, inputs, sizes)


@functools.partial(jax.jit, static_argnames=("apply_fn", "sizes"))
def _extremes(key, apply_fn, params, inputs, sizes):
  num_iterations, num_probes, batch_size = sizes

  def of_sample(argument):
    key, sample = argument
    function = _flat_function(apply_fn, params, sample)
    flat = sample.ravel()
    output, push = jax.linearize(function, flat)
    transpose = jax.linear_transpose(push, flat)

    def pull(u):
      return transpose(u)[0]

    # From the smaller side: then its whole space is reached in `size` iterations.
    if output.size <= flat.size:
      small, to_large, to_small = output, pull, push
    else:
      small, to_large, to_small = flat, push, pull
    count = min(num_iterations, small.size)
    matrix = bidiagonal.bidiagonalize(key, to_large, to_small, small, count)
    values = jnp.linalg.svd(matrix, compute_uv=False)
    if count == small.size:
      mean_square = jnp.sum(jnp.square(values)) / small.size
      return values[0], values[-1], mean_square, jnp.zeros_like(mean_square)
    squares = _probe_squares(key, to_large, small, num_probes)
    error = jnp.std(squares, ddof=1) / math.sqrt(num_probes)
    return values[0], values[-1], jnp.mean(squares), error

  keys = jax.random.split(key, len(inputs))
  with jax.default_matmul_precision("highest"):
    mapped = jax.lax.map(of_sample, (keys, inputs), batch_size=batch_size)
  return JacobianExtremes(*mapped)


def _probe_squares(key, to_large, small, num_probes):
  """Hutchinson's estimates of the mean square singular value, `[num_probes]`."""

  def square(key):
    signs = jax.random.rademacher(key, small.shape, small.dtype)
    return jnp.sum(jnp.square(to_large(signs))) / small.size

  keys = jax.random.split(jax.random.fold_in(key, 1), num_probes)
  return jax.lax.map(square, keys)


def spectrum_summary(values: Any, *, bins: int = 50) -> SpectrumSummary:
  """Sums up singular values: mean, extremes, mean square and a histogram.

  Args:
    values: float array of any shape, such as the result of
      `jacobian_singular_values`.
    bins: number of bins of the histogram, from 0 to the largest value.

  Returns:
    A `SpectrumSummary`.

  Raises:
    ValueError: if `values` is empty.

  Example:
    >>> spectrum_summary(jnp.array([[1.0, 3.0]]), bins=3).counts.tolist()
    [0, 1, 1]
  """
  flat = np.asarray(values, np.float64).ravel()
  if flat.size == 0:
    raise ValueError(f"`values` must not be empty, got shape {np.shape(values)}.")
  top = float(flat.max())
  counts, edges = np.histogram(flat, checks.integer("bins", bins, 1), (0, top or 1.0))
  return SpectrumSummary(
    mean=float(flat.mean()),
    max=top,
    min=float(flat.min()),
    mean_square=float(np.square(flat).mean()),
    counts=counts,
    edges=edges,
  )


def _flat_function(apply_fn, params, sample):
  """The network on one flattened sample, in float32 at least."""

  def function(flat):
    outputs = apply_fn(params, flat.reshape(1, *sample.shape)).ravel()
    return outputs.astype(checks.compute_dtype(outputs.dtype))

  return function


def _check_inputs(inputs) -> jax.Array:
  inputs = jnp.asarray(inputs)
  if not jnp.issubdtype(inputs.dtype, jnp.floating):
    raise ValueError(f"`inputs` must be floating point, got {inputs.dtype}.")
  if inputs.size == 0 or inputs.ndim == 0:
    raise ValueError(
      f"`inputs` must have shape [batch, ...], not empty, got shape {inputs.shape}."
    )
  return inputs
