"""Singular values of the input-output Jacobian: does a network preserve a signal?

`jacobian_singular_values` forms the Jacobian of every sample; `jacobian_extremes` only
multiplies with it and so takes networks and inputs of any size.

Inputs have any structure: the Jacobian is that of the flattened outputs by all
floating-point inputs together; integer and bool inputs (positions, an attention mask)
are constants. Token ids have no derivative: split the network behind its embedding, and
pass the embedded tokens as inputs.
"""

import contextlib
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from eoi_jax import _checks as checks
from eoi_jax import _keys as keys_lib
from eoi_jax._sharding import replicate, vary_alike
from eoi_jax.signal._networks import ApplyFn, check_inputs, is_float, outputs_of


class SpectrumSummary(NamedTuple):
  """Singular values of many Jacobians in a few numbers.

  Attributes:
    mean: of all singular values of all samples.
    max: the largest.
    min: the smallest.
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
  apply_fn: ApplyFn, params: Any, inputs: Any, *, batch_size: int = 32
) -> jax.Array:
  """Singular values of the input-output Jacobian of every sample.

  Each sample goes through the network alone, as a batch of one; the Jacobian is formed
  in reverse mode if the output is the smaller side, or if a `custom_vjp` has no forward
  mode, else in forward mode. The network computes in its own dtypes, with matrix
  products of full precision on every device.

  Args:
    apply_fn: `(params, inputs) -> outputs`, or a tuple with the outputs first; a
      leading batch axis; in evaluation mode, since batches of one have no statistics.
      It is static: pass the same function again to reuse the compiled program, and
      as `params` what changes in between: what it closes over is read once.
    params: tree of arrays.
    inputs: float array `[batch, ...]`, or a tree of arrays, some of them float.
    batch_size: samples at a time; less memory if smaller.

  Returns:
    Float array `[batch, min(in, out)]`, largest first: float64 if an input is, else
    float32.

  Raises:
    ValueError: if `inputs` has no floating-point array (token ids) or a complex one, or
      is no batch, or the outputs are not a real floating-point array.

  Example:
    >>> values = jacobian_singular_values(
    ...   lambda params, x: x @ params, 2 * jnp.eye(3, 2), jnp.ones((1, 3))
    ... )
    >>> values.tolist()
    [[2.0, 2.0]]

    With respect to the embeddings of tokens:

    >>> table, tokens = jnp.eye(3), jnp.array([[0, 2], [1, 1]])
    >>> def above_embedding(params, x):  # x: [batch, tokens, features]
    ...   return x.sum(axis=1) @ params
    >>> jacobian_singular_values(above_embedding, jnp.eye(3, 1), table[tokens]).shape
    (2, 1)
  """
  inputs = check_inputs(inputs)
  batch_size = checks.integer("batch_size", batch_size, 1)
  return _singular_values(apply_fn, replicate(params), inputs, batch_size)


@functools.partial(jax.jit, static_argnames=("apply_fn", "batch_size"))
def _singular_values(apply_fn, params, inputs, batch_size):
  def of_sample(sample):
    function, flat, outputs = _flatten(apply_fn, params, sample)
    jacobian = _jacobian(function, flat, outputs.size)
    return jnp.linalg.svd(jacobian, compute_uv=False)

  batch_size = min(batch_size, len(jax.tree.leaves(inputs)[0]))
  with jax.default_matmul_precision("highest"):
    return jax.lax.map(of_sample, inputs, batch_size=batch_size)


def _jacobian(function, flat, num_outputs):
  if num_outputs > flat.size:
    # A TypeError is that of a `custom_vjp`, which has no forward mode.
    with contextlib.suppress(TypeError):
      return jax.jacfwd(function)(flat)
  return jax.jacrev(function)(flat)


def _flatten(apply_fn, params, sample):
  """The network on one sample as a function of its joined floating-point inputs.

  Returns the function, its argument (a vector of float32 at least) and the type of its
  result, the flattened outputs in the same dtype. Inside, inputs have their own dtypes.
  """
  leaves, treedef = jax.tree.flatten(sample)
  floats = [leaf for leaf in leaves if is_float(leaf.dtype)]
  dtype = max((checks.compute_dtype(x.dtype) for x in floats), key=lambda d: d.itemsize)
  flat, unravel = ravel_pytree([x.astype(dtype) for x in floats])

  def function(flat):
    parts = iter(unravel(flat))
    inputs = [
      next(parts).astype(leaf.dtype) if is_float(leaf.dtype) else leaf
      for leaf in leaves
    ]
    inputs = treedef.unflatten([leaf[None] for leaf in inputs])
    return outputs_of(apply_fn, params, inputs).ravel().astype(dtype)

  outputs = jax.eval_shape(function, flat)
  return function, vary_alike(flat, outputs), outputs


def jacobian_extremes(
  key: jax.Array,
  apply_fn: ApplyFn,
  params: Any,
  inputs: Any,
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
  from above; the mean square is Hutchinson's estimate from random signs. Products with
  the Jacobian are derivatives of the reverse mode: a `custom_vjp` needs a backward
  function that can be differentiated.

  Args:
    key: a PRNG key; it is consumed.
    apply_fn: as in `jacobian_singular_values`.
    params: as there.
    inputs: as there.
    num_iterations: of the bidiagonalization; it keeps as many vectors of the input's
      and of the output's size per sample.
    num_probes: random vectors for the mean square, at least 2.
    batch_size: samples at a time.

  Returns:
    `JacobianExtremes` of float arrays `[batch]`.

  Raises:
    ValueError: as in `jacobian_singular_values`, or if a number is out of range.

  Example:
    >>> matrix = jnp.diag(jnp.array([3.0, 2.0, 1.0]))
    >>> extremes = jacobian_extremes(
    ...   jax.random.key(0), lambda params, x: x @ params, matrix, jnp.ones((1, 3))
    ... )
    >>> [round(float(x[0]), 4) for x in extremes[:3]]
    [3.0, 1.0, 4.6667]

  Reference: Golub and Kahan, 1965; Hutchinson, 1989.
  """
  inputs = check_inputs(inputs)
  sizes = (
    checks.integer("num_iterations", num_iterations, 1),
    checks.integer("num_probes", num_probes, 2),
    checks.integer("batch_size", batch_size, 1),
  )
  key = keys_lib.as_key(key)
  return _extremes(key, apply_fn, replicate(params), inputs, sizes)


@functools.partial(jax.jit, static_argnames=("apply_fn", "sizes"))
def _extremes(key, apply_fn, params, inputs, sizes):
  num_iterations, num_probes, batch_size = sizes

  def of_sample(argument):
    key, sample = argument
    function, flat, _ = _flatten(apply_fn, params, sample)
    flat = vary_alike(flat, key)
    output, transpose = jax.vjp(function, flat)

    def pull(u):
      return transpose(u)[0]

    def push(v):
      return derivative(v)[0]

    # `pull` is linear, so that its reverse derivative is the product with the Jacobian.
    _, derivative = jax.vjp(pull, jnp.zeros_like(output))
    # From the smaller side: then its whole space is reached in `size` iterations.
    if output.size <= flat.size:
      small, to_large, to_small = output, pull, push
    else:
      small, to_large, to_small = flat, push, pull
    count = min(num_iterations, small.size)
    matrix = _bidiagonalize(key, to_large, to_small, small, count)
    values = jnp.linalg.svd(matrix, compute_uv=False)
    if count == small.size:
      mean_square = jnp.sum(jnp.square(values)) / small.size
      return values[0], values[-1], mean_square, jnp.zeros_like(mean_square)

    def probe(key):
      signs = vary_alike(jax.random.rademacher(key, small.shape, small.dtype), small)
      return jnp.sum(jnp.square(to_large(signs))) / small.size

    probe_keys = jax.random.split(jax.random.fold_in(key, 1), num_probes)
    squares = jax.lax.map(probe, probe_keys)
    error = jnp.std(squares, ddof=1) / math.sqrt(num_probes)
    return values[0], values[-1], jnp.mean(squares), error

  num_samples = len(jax.tree.leaves(inputs)[0])
  keys, batch_size = jax.random.split(key, num_samples), min(batch_size, num_samples)
  with jax.default_matmul_precision("highest"):
    mapped = jax.lax.map(of_sample, (keys, inputs), batch_size=batch_size)
  return JacobianExtremes(*mapped)


def _bidiagonalize(key, to_large, to_small, small, count):
  """Lower bidiagonal matrix of a linear map on a Krylov space.

  Golub and Kahan's iteration starts from the smaller side, whose size and dtype `small`
  `[n]` has. Where the space ends early (a repeated singular value, say), a random
  direction orthogonal to it goes on. The result `[count, count]` has all singular
  values of the map if `count` is `n`, else values within their range.
  """
  large = jax.eval_shape(to_large, small)
  keys = jax.random.split(key, 2 * count + 1)
  shapes = (count, small.size), (count, large.size), ()
  zeros = [jnp.zeros(shape, small.dtype) for shape in shapes]
  u_basis, v_basis, zero = vary_alike(zeros, small)
  first, _ = _direction(keys[0], jnp.zeros_like(small), u_basis, 0.0)

  def step(carry, index):
    u_basis, v_basis, u, beta, scale = carry
    u_basis = u_basis.at[index].set(u)
    previous = v_basis[jnp.maximum(index - 1, 0)]
    vector = to_large(u) - beta * previous
    v, alpha = _direction(keys[2 * index + 1], vector, v_basis, scale)
    v_basis = v_basis.at[index].set(v)
    scale = jnp.maximum(scale, alpha)
    vector = to_small(v) - alpha * u
    u, next_beta = _direction(keys[2 * index + 2], vector, u_basis, scale)
    scale = jnp.maximum(scale, next_beta)
    return (u_basis, v_basis, u, next_beta, scale), (alpha, next_beta)

  start = (u_basis, v_basis, first, zero, zero)
  _, (alphas, betas) = jax.lax.scan(step, start, jnp.arange(count))
  return jnp.diag(alphas) + jnp.diag(betas[:-1], -1)


def _direction(key, vector, basis, scale):
  """Unit vector and length of the part of `vector` orthogonal to `basis`.

  If nothing of it is left but rounding, the length is 0 and the direction random.
  """
  for _ in range(2):
    vector = vector - basis.T @ (basis @ vector)
  length = jnp.linalg.norm(vector)
  spent = length <= 10 * jnp.finfo(vector.dtype).eps * scale
  random = jax.random.normal(key, vector.shape, vector.dtype)
  for _ in range(2):
    random = random - basis.T @ (basis @ random)
  random = random / jnp.linalg.norm(random)
  unit = jnp.where(spent, random, vector / jnp.where(spent, 1.0, length))
  return unit, jnp.where(spent, jnp.zeros_like(length), length)


def spectrum_summary(values: Any, *, bins: int = 50) -> SpectrumSummary:
  """Sums up singular values: mean, extremes, mean square and a histogram.

  Args:
    values: float array of any shape, as of `jacobian_singular_values`.
    bins: number of bins of the histogram.

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
