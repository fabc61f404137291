"""The starts, each a function of a stack of blocks of one shape.

A start takes a `Stack` and returns `(values, masks)`: arrays `[n, *shape]`, with masks
None where the blocks are dense. `sparsify` finds the blocks and puts them back.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from eoi_jax import _checks as checks
from eoi_jax.givens import _plan as schedules
from eoi_jax.givens import orthogonal as sampling
from eoi_jax.givens import patterns as guided
from eoi_jax.givens.rotations import Angle
from eoi_jax.initializers import dense, isometry, sao
from eoi_jax.initializers import eoi as initializers
from eoi_jax.masks import trees as masks_lib

REFERENCES = {
  "orthogonal": dense.dense_orthogonal,
  "delta_orthogonal": dense.delta_orthogonal,
  "conv_orthogonal": dense.conv_orthogonal,
}
# What `eoi_in_mask` may do where no isometry fits: one of fewer units, or other starts.
FALLBACKS = ("partial", "ai", "base")


class Stack(NamedTuple):
  """Blocks of one shape, of one or several leaves.

  Attributes:
    names: name of the leaf of each block.
    shape: `(in, out)` or `(*window, in, out)`.
    dtype: dtype of the leaves.
    keys: PRNG keys `[n]` of the values.
    mask_keys: PRNG keys `[n]` of the masks.
    budgets: trained weights of each block, int32 `[n]`; None if masks are traced.
    masks: bool `[n, *shape]`, True = trained; None if only densities are given.
  """

  names: tuple[str, ...]
  shape: tuple[int, ...]
  dtype: Any
  keys: jax.Array
  mask_keys: jax.Array
  budgets: np.ndarray | None
  masks: jax.Array | None

  @property
  def matrix_shape(self) -> tuple[int, int]:
    """`(in, out)`."""
    return (self.shape[-2], self.shape[-1])


Blocks = tuple[jax.Array, jax.Array | None]


def orthogonal(stack: Stack, scale: float) -> Blocks:
  """Dense, orthogonal as a matrix `(taps * in, out)`."""
  return _reference(stack, scale, "orthogonal"), None


def delta_orthogonal(stack: Stack, scale: float) -> Blocks:
  """Dense, orthogonal at the centre tap."""
  return _reference(stack, scale, "delta_orthogonal"), None


def conv_orthogonal(stack: Stack, scale: float) -> Blocks:
  """Dense, orthogonal as a convolution, weights at every tap."""
  return _reference(stack, scale, "conv_orthogonal"), None


def base(stack: Stack, scale: float, *, reference: str = "delta_orthogonal") -> Blocks:
  """A dense reference times the mask."""
  masks = _masks(stack)
  values = _reference(stack, scale, reference)
  return jnp.where(masks, values, jnp.zeros((), values.dtype)), masks


def ai(
  stack: Stack,
  scale: float,
  *,
  reference: str = "orthogonal",
  method: str = "sgd",
  num_steps: int | None = None,
  step_size: float | None = None,
) -> Blocks:
  """Approximate isometry on the mask, from a dense reference."""
  masks = _masks(stack)
  result = isometry.approximate_isometry(
    _reference(stack, scale, reference),
    masks,
    scale=scale,
    method=method,
    num_steps=num_steps,
    step_size=step_size,
  )
  return result.kernels, masks


def eoi(
  stack: Stack,
  scale: float,
  *,
  center: str = "plain",
  angle: Angle = None,
  schedule: str = "iid",
  cover: bool = False,
) -> Blocks:
  """Exact orthogonal matrices of the budgets, and trainable zeros up to them."""
  budgets = _budgets(stack)
  inner = np.array(
    [_center_budget(stack, n, center) for n in range(len(budgets))], np.int32
  )
  options = {"angle": angle, "schedule": schedule, "cover": cover}
  values = _delta(stack, _sample(stack, inner, scale, options))
  return values, masks_lib.fill(stack.mask_keys, values != 0, budgets)


def eoi_in_mask(
  stack: Stack, scale: float, *, angle: Angle = None, fallback: str | None = None
) -> Blocks:
  """An exact isometry inside the mask; the rest of the mask starts at zero."""
  if fallback not in (None, *FALLBACKS):
    raise ValueError(f"`fallback` must be None or in {FALLBACKS}, got {fallback!r}.")
  masks = _masks(stack)
  if isinstance(masks, jax.core.Tracer):
    _budgets(stack._replace(budgets=None))
  center = initializers.center_tap(stack.shape[:-2])
  patterns = np.asarray(masks[(slice(None), *center)])
  dtype = checks.compute_dtype(stack.dtype)
  matrices, failed = [], []
  for n, pattern in enumerate(patterns):
    problem = guided.matching_error(guided.match_lines(pattern), pattern.shape)
    if problem and fallback is None:
      raise ValueError(
        f"kernel {stack.names[n]!r}: no exact isometry on this mask: {problem} Option "
        f"`fallback` ({', '.join(FALLBACKS)}) starts such a layer in another way."
      )
    if problem:
      failed.append(n)
    matrix = _isometry_in(stack.keys[n], pattern, dtype, angle)
    matrices.append(matrix)
  values = _delta(stack, (scale * jnp.stack(matrices)).astype(stack.dtype))
  if failed and fallback != "partial":
    rows = np.array(failed)
    part = stack._replace(
      names=tuple(stack.names[n] for n in failed),
      keys=stack.keys[rows],
      mask_keys=stack.mask_keys[rows],
      masks=masks[rows],
    )
    start = ai(part, scale, method="adam") if fallback == "ai" else base(part, scale)
    values = values.at[rows].set(start[0])
  return values, masks


def _isometry_in(key, pattern: np.ndarray, dtype, angle: Angle) -> jax.Array:
  """An isometry of the lines that can be matched inside the pattern; others zero."""
  tall = pattern.shape[0] > pattern.shape[1]
  wide = pattern.T if tall else pattern
  lines = np.flatnonzero(guided.match_lines(pattern) >= 0)
  matrix = jnp.zeros(wide.shape, dtype)
  if lines.size:
    inner = guided.sample_in_pattern(key, wide[lines], wide.size, dtype, angle=angle)
    matrix = matrix.at[lines].set(inner)
  return matrix.T if tall else matrix


def eoi_structured(
  stack: Stack,
  scale: float,
  *,
  angle: Angle = None,
  schedule: str = "iid",
  cover: bool = False,
) -> Blocks:
  """EIS: a sparse matrix at the centre tap, trained at all taps of its support.

  Dense kernels and convolutions of three or fewer channels are dense orthogonal.
  """
  if len(stack.shape) == 2 or stack.shape[-2] <= 3:
    return delta_orthogonal(stack, scale)
  taps = math.prod(stack.shape[:-2])
  lowest = min(stack.shape[-2:])
  inner = np.round(_budgets(stack) / taps).astype(np.int32)
  for name, budget in zip(stack.names, inner, strict=True):
    if budget < lowest:
      raise ValueError(
        f"kernel {name!r}: density must be at least {1 / max(stack.shape[-2:]):.4g} "
        f"for shape {stack.shape} under start 'eoi_structured', got "
        f"{budget / math.prod(stack.shape[-2:]):.4g}."
      )
  options = {"angle": angle, "schedule": schedule, "cover": cover}
  matrices = _sample(stack, inner, scale, options)
  support = (matrices != 0).reshape(
    -1, *(1,) * (len(stack.shape) - 2), *stack.shape[-2:]
  )
  return _delta(stack, matrices), jnp.broadcast_to(support, (len(inner), *stack.shape))


def sao_start(
  stack: Stack, scale: float, *, degree: int | None = None, relu: bool = False
) -> Blocks:
  """Orthogonal blocks on random columns; at the centre tap, trained at all taps.

  Dense kernels that are not square and convolutions of three or fewer channels are
  dense orthogonal.
  """
  *window, rows, cols = stack.shape
  if (rows <= 3 or min(rows, cols) == 1) if window else rows != cols:
    return delta_orthogonal(stack, scale)
  degrees = np.array([_degree(stack, n, degree, relu) for n in range(len(stack.names))])

  def sample(rows_of, value):
    return scale * _each(
      lambda k: sao.sao_orthogonal(k, (rows, cols), value, relu=relu),
      stack.keys[rows_of],
    )

  matrices = _by_value(degrees, sample).astype(stack.dtype)
  support = (matrices != 0).reshape(-1, *(1,) * len(window), rows, cols)
  masks = jnp.broadcast_to(support, (len(degrees), *stack.shape))
  return _delta(stack, matrices), masks


def _degree(stack: Stack, index: int, degree: int | None, relu: bool) -> int:
  """Degree of one block, from its budget if none is asked for."""
  if degree is None:
    size = math.prod(stack.shape)
    exact = _budgets(stack)[index] * max(stack.shape[-2:]) / size
    degree = int(exact) if exact == int(exact) else exact
  try:
    return sao.check_degree(stack.matrix_shape, degree, relu=relu)
  except ValueError as error:
    raise ValueError(f"kernel {stack.names[index]!r}: {error}") from None


def _reference(stack: Stack, scale: float, kind: str) -> jax.Array:
  """Dense blocks. A channel on its own is a unit vector: every tap takes part."""
  if kind not in REFERENCES:
    raise ValueError(f"`reference` must be one of {tuple(REFERENCES)}, got {kind!r}.")
  kind = "orthogonal" if stack.shape[-2:] == (1, 1) else kind
  return _dense(stack.keys, scale, kind, stack.shape, jnp.dtype(stack.dtype))


@functools.partial(jax.jit, static_argnames=("scale", "kind", "shape", "dtype"))
def _dense(keys, scale: float, kind: str, shape, dtype) -> jax.Array:
  init = REFERENCES[kind](scale)
  return _each(lambda key: init(key, shape, dtype), keys)


def _each(draw: Callable[[jax.Array], jax.Array], keys: jax.Array) -> jax.Array:
  """Draws for every key; one after the other on a CPU.

  There a batched QR decomposition waits for threads of the pool that it runs in, and
  a program with several of them can wait forever.
  """
  if jax.default_backend() == "cpu":
    return jax.lax.map(draw, keys)
  return jax.vmap(draw)(keys)


def _masks(stack: Stack) -> jax.Array:
  """The given masks, or uniformly random ones."""
  if stack.masks is not None:
    return stack.masks
  nothing = jnp.zeros((len(stack.names), *stack.shape), bool)
  return masks_lib.fill(stack.mask_keys, nothing, _budgets(stack))


def _budgets(stack: Stack) -> np.ndarray:
  if stack.budgets is None:
    raise ValueError(
      "masks must be concrete arrays for a start that draws new ones; call `sparsify` "
      "outside of `jax.jit`."
    )
  return stack.budgets


def _center_budget(stack: Stack, index: int, center: str) -> int:
  """Nonzeros of one block, at the centre tap of a convolution."""
  density = float(_budgets(stack)[index]) / math.prod(stack.shape)
  try:
    return initializers.center_budget(stack.shape, density, center=center)
  except ValueError as error:
    hint = ""
    if stack.shape[-2:] == (1, 1):
      hint = " One weight for each channel, or None in its place to keep it dense."
    raise ValueError(f"kernel {stack.names[index]!r}: {error}{hint}") from None


def _sample(stack: Stack, budgets: np.ndarray, scale: float, options) -> jax.Array:
  """Sparse orthogonal matrices `[n, in, out]` of given numbers of nonzeros.

  A compiled program serves budgets up to a largest one. Those are few, and which one
  a block gets depends on its own budget alone, so that its matrix does, too.
  """
  schedules.check_schedule(options["schedule"])
  shape = stack.matrix_shape
  dtype = checks.compute_dtype(stack.dtype)

  def sample(rows, largest):
    draw = jax.vmap(
      lambda key, budget: sampling.sample_to_budget(
        key, shape, budget, dtype, max_budget=largest, **options
      )
    )
    return draw(stack.keys[rows], jnp.asarray(budgets[rows]))

  largest = np.array([_rung(shape, int(budget)) for budget in budgets])
  return (scale * _by_value(largest, sample)).astype(stack.dtype)


def _rung(shape: tuple[int, int], budget: int) -> int:
  """The next of a few budgets, whose densities are evenly spaced in their logits.

  The rotations that a density takes grow with its logit: the next budget costs at
  most half a rotation more for each column.
  """
  size = math.prod(shape)
  if budget <= min(shape) or 2 * budget * max(shape) >= size * (2 * max(shape) - 1):
    return min(shape) if budget <= min(shape) else size
  logit = math.ceil(math.log(budget / (size - budget)))
  return min(size, math.ceil(size / (1 + math.exp(-logit))))


def _by_value(values: np.ndarray, sample: Callable[..., jax.Array]) -> jax.Array:
  """Concatenates `sample(rows, value)` of equal values, in the order of the rows."""
  rows = [np.flatnonzero(values == value) for value in np.unique(values)]
  parts = [sample(r, int(values[r[0]])) for r in rows]
  if len(parts) == 1:
    return parts[0]
  return jnp.concatenate(parts)[np.argsort(np.concatenate(rows))]


def _delta(stack: Stack, matrices: jax.Array) -> jax.Array:
  """Kernels with the matrices at their centre taps."""
  window = stack.shape[:-2]
  return jax.vmap(lambda matrix: initializers.delta_kernel(matrix, window))(matrices)


STARTS: dict[str, Callable[..., Blocks]] = {
  "eoi": eoi,
  "eoi_in_mask": eoi_in_mask,
  "eoi_structured": eoi_structured,
  "base": base,
  "ai": ai,
  "sao": sao_start,
  "orthogonal": orthogonal,
  "delta_orthogonal": delta_orthogonal,
  "conv_orthogonal": conv_orthogonal,
}
