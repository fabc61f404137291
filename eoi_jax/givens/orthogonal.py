"""Sparse, exactly orthogonal matrices: plan the support on bits, then rotate.

Which of a random sequence of rotations fit into a budget of nonzeros is known before
any arithmetic, and rotations of disjoint columns run together (`_plan.py`): dozens of
wide steps instead of thousands of narrow ones.
"""

import concurrent.futures
import functools
import math
import operator
import os
from collections.abc import Callable, Iterator

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from eoi_jax import _checks as checks
from eoi_jax import _keys as keys_lib
from eoi_jax.givens import _plan as plan_lib
from eoi_jax.givens import _tuning as tuning
from eoi_jax.givens import patterns
from eoi_jax.givens._plan import Angle, check_angle

_MOST_THREADS = 8  # that draw at once: each holds a matrix


def sparse_orthogonal(
  key: jax.Array,
  shape: tuple[int, int],
  density: float,
  dtype=jnp.float32,
  *,
  angle: Angle = None,
  schedule: str = "iid",
  cover: bool = False,
  pattern=None,
) -> jax.Array:
  """Samples a sparse matrix with exactly orthonormal rows or columns.

  Composes random Givens rotations of a partial identity until one more would pass
  the budget of nonzeros. Zeros are exact; orthogonality holds to rounding. Under
  `vmap` over keys all matrices are made together.

  Args:
    key: a PRNG key; it is consumed.
    shape: `(rows, cols)`, static. Columns are orthonormal if `rows >= cols`, rows if
      `rows <= cols`.
    density: fraction of nonzeros, a Python float in `[1 / max(shape), 1]`.
    dtype: floating dtype of the result. Arithmetic is in float32 at least and is cast
      last.
    angle: None for angles uniform on `[0, 2 pi)`, a float in radians, or
      `f(key, shape) -> angles`. Special angles (multiples of `pi / 4`, say) can make
      planned nonzeros cancel.
    schedule: "iid", independent uniform pairs of columns, the paper's law: nonzeros per
      row scatter widely, and about `(1 - d) / d` of the columns of a square matrix are
      never rotated. Or "matching", rounds of random perfect matchings: every column
      is rotated in every round, nonzeros per row and column are nearly equal.
    cover: whether rectangular matrices first spend one nonzero on every column (row)
      that would be empty at the start, so that no input or output is dead as far as
      the density allows: `density >= 1 / min(shape)` leaves none.
    pattern: bool array of `shape`, not traced, True = may be nonzero: keeps the support
      inside it. Rounds of random rotations of columns and of rows take the place of
      `schedule` and `cover`; the matrix falls short of the budget where they reach no
      further (`pattern_fill` tells). Density 1 fills as much as can be filled.

  Returns:
    Array of `shape`: at most `round(density * rows * cols)` nonzeros, and fewer by
    less than `min(shape)` (but for `pattern`).

  Raises:
    ValueError: if `shape` is not two-dimensional, `density` is out of range, `dtype`
      is not floating point, `schedule` is unknown, or `pattern` has another shape or
      no perfect matching.

  Example:
    >>> q = sparse_orthogonal(jax.random.key(0), (64, 32), density=0.2)
    >>> bool(jnp.allclose(q.T @ q, jnp.eye(32), atol=1e-5))
    True
    >>> 409 - 32 < int((q != 0).sum()) <= 409
    True

  Reference: Nowak et al., 2024, arXiv:2406.01755, section 4.
  """
  shape = check_shape(shape)
  budget = round(_check_density(density, shape) * shape[0] * shape[1])
  if pattern is not None:
    pattern = patterns.check_pattern(pattern, shape)
    return patterns.sample_in_pattern(
      key, pattern, budget, check_dtype(dtype), angle=angle
    )
  return sample_to_budget(
    key, shape, budget, dtype, angle=angle, schedule=schedule, cover=cover
  )


def sample_to_budget(
  key: jax.Array,
  shape: tuple[int, int],
  budget,
  dtype,
  *,
  max_budget: int | None = None,
  transposed: bool = False,
  angle: Angle = None,
  schedule: str = "iid",
  cover: bool = False,
) -> jax.Array:
  """`sparse_orthogonal` of at most `budget` nonzeros, at least `min(shape)`.

  The budget is an int; or a traced int32 scalar, if its largest value, `max_budget`, is
  given, which sizes the compiled program. `transposed` gives the transpose of it.
  """
  lo, hi = min(shape), max(shape)
  largest = budget if max_budget is None else max_budget
  plan_lib.check_schedule(schedule)
  cover = bool(cover) and hi > lo and largest > lo
  num_rotations = plan_lib.num_candidates(lo, hi, largest, schedule)
  settings = plan_lib.Settings(
    rows=lo,
    columns=hi,
    num_rotations=num_rotations,
    depth=plan_lib.max_depth(lo, hi, num_rotations, schedule, cover=cover),
    dtype=check_dtype(dtype),
    tall=(shape[0] > shape[1]) != transposed,
    angle=check_angle(angle),
    schedule=schedule,
    cover=cover,
  )
  return _sample(keys_lib.check_key(key), jnp.asarray(budget, jnp.int32), settings)


@functools.partial(jax.jit, static_argnames="settings")
def _sample(key, budget, settings: plan_lib.Settings) -> jax.Array:
  """Samples one matrix, or under `vmap` many."""
  if settings.num_rotations == 0:
    return jnp.eye(*settings.shape, dtype=settings.dtype)
  matrix = plan_lib.Matrix(settings.rows, settings.columns, settings.num_rotations)
  draw = functools.partial(_plan_and_rotate, matrix=matrix, settings=settings)
  size = settings.rows * settings.columns
  return tuning.batched(draw, keys_lib.key_data(key), budget, size)


def _plan_and_rotate(words, budget, *, matrix, settings, alone: bool) -> jax.Array:
  wide = settings._replace(dtype=np.promote_types(settings.dtype, jnp.float32))
  plan = plan_lib.plan(words, budget, matrix, settings, stop_early=tuning.in_cache())
  if settings.dtype == jnp.float16:
    return cast(tuning.rotated_identity(plan, wide, matrix.lo, alone), settings.dtype)
  return tuning.rotated_identity(plan, settings, matrix.lo, alone)


def sample_many(
  keys: list[jax.Array] | jax.Array,
  shapes: list[tuple[int, int]],
  budgets: list[int],
  dtype=jnp.float32,
  *,
  angle: Angle = None,
  cover: bool = False,
) -> Iterator[np.ndarray]:
  """Samples matrices of many shapes by a few compiled programs, on all cores.

  Matrices whose larger sides are of one class share a program, in which sizes and
  budgets are values; classes end at 8, 32, 128, 512, 1024, 2048... With `cover` each
  shape compiles its own program. Not for use under a transformation of JAX.

  Keys may be threefry key data, uint32 `[n, 2]`. Yields NumPy arrays in the order of
  the keys, waiting for each; all are begun at once. Each is the matrix of
  `sample_to_budget`: it depends on its own key, shape and budget alone.
  """
  options = {"angle": check_angle(angle), "cover": cover}
  dtype, draws = check_dtype(dtype), []
  for key, shape, budget in zip(keys, shapes, budgets, strict=True):
    draws.append(_drawing(key, shape, int(budget), dtype, options))
  # Threads only run compiled programs: the configuration of JAX is that of a thread.
  pool = concurrent.futures.ThreadPoolExecutor(min(os.cpu_count() or 1, _MOST_THREADS))
  largest_first = sorted(range(len(draws)), key=lambda n: -math.prod(shapes[n]))
  waiting = {n: pool.submit(draws[n]) for n in largest_first}

  def results():
    try:
      for n in range(len(draws)):
        yield waiting.pop(n).result()
    finally:  # after Ctrl-C, say
      pool.shutdown(wait=False, cancel_futures=True)

  return results()


def _drawing(
  key, shape: tuple[int, int], budget: int, dtype, options
) -> Callable[[], np.ndarray]:
  """What draws one matrix of `sample_many`, in any thread; it compiles here."""
  lo, hi = min(shape), max(shape)
  num = plan_lib.num_candidates(lo, hi, budget, "iid")
  if num == 0:
    return lambda: np.eye(*shape, dtype=dtype)
  if options["cover"] and lo < hi:
    matrix = np.asarray(sample_to_budget(key, shape, budget, dtype, **options))
    return lambda: matrix
  size = _size_class(hi)
  depth = plan_lib.max_depth(lo, hi, num, "iid")
  settings = plan_lib.Settings(
    rows=size,
    columns=size,
    num_rotations=size * _power_of_4(num / hi),
    depth=64 * _power_of_4(depth / 64),
    dtype=dtype,
    tall=True,
    angle=options["angle"],
  )
  device = getattr(jax.config, "jax_default_device", None)
  context = (jnp.result_type(float), device, jax.sharding.get_abstract_mesh())
  program = _padded_program(settings, *context)
  words, sizes = np.asarray(keys_lib.key_data(key)), (lo, hi, num, budget)

  def draw():
    whole = np.asarray(program.result()(words, np.array(sizes, np.int32)))[:hi, :lo]
    return whole.copy() if shape[0] > shape[1] else _transposed(whole)

  return draw


def _size_class(columns: int) -> int:
  """The largest number of columns of a program: a large matrix pays for the rest."""
  if columns > 512:
    return 2 ** math.ceil(math.log2(columns))
  return 2 * max(4, _power_of_4(columns / 2))


def _power_of_4(number: float) -> int:
  """The next power of four, from 1 on."""
  return 4 ** math.ceil(math.log(max(number, 1), 4))


def _transposed(matrix: np.ndarray, width: int = 64) -> np.ndarray:
  """A transposed copy, in strips that stay in cache: three times as fast as at once."""
  result = np.empty(matrix.shape[::-1], matrix.dtype)
  for first in range(0, len(matrix), width):
    result[:, first : first + width] = matrix[first : first + width].T
  return result


@functools.lru_cache(maxsize=64)
def _padded_program(
  settings: plan_lib.Settings, *context
) -> concurrent.futures.Future[Callable[..., jax.Array]]:
  """Compiles `_sample_padded` in a thread; programs depend on `context`, too."""
  del context
  words, sizes = (jax.ShapeDtypeStruct(*x) for x in (((2,), "uint32"), ((4,), "int32")))
  lowered = _sample_padded.lower(words, sizes, settings=settings)
  pool = concurrent.futures.ThreadPoolExecutor(1)
  compiled = pool.submit(lowered.compile)
  pool.shutdown(wait=False)
  return compiled


@functools.partial(jax.jit, static_argnames="settings")
def _sample_padded(words, sizes, settings: plan_lib.Settings) -> jax.Array:
  """Samples one matrix of sizes `(lo, hi, num_rotations, budget)`, `[hi, lo]`."""
  lo, hi, num, budget = sizes
  matrix = plan_lib.Matrix(lo, hi, num)
  return _plan_and_rotate(words, budget, matrix=matrix, settings=settings, alone=False)


def cast(matrix: jax.Array, dtype) -> jax.Array:
  """Casts a matrix; nonzeros that would round to zero become the smallest number."""
  result = matrix.astype(dtype)
  if jnp.finfo(dtype).smallest_subnormal <= jnp.finfo(matrix.dtype).smallest_subnormal:
    return result
  least = jnp.finfo(dtype).smallest_subnormal.astype(dtype)
  least = jnp.where(matrix > 0, least, -least)
  return jnp.where((result == 0) & (matrix != 0), least, result)


def orthogonality_error(matrix: jax.Array) -> jax.Array:
  """Largest deviation of the Gram matrix from the identity.

  Args:
    matrix: float array `[rows, cols]`.

  Returns:
    Scalar `max |G - I|` with `G = M^T M` if `rows >= cols`, else `G = M M^T`, in
    float32 at least.

  Raises:
    ValueError: if `matrix` is not two-dimensional or not floating point.

  Example:
    >>> float(orthogonality_error(2 * jnp.eye(3, 5)))
    3.0
  """
  matrix = checks.matrix(matrix)
  matrix = matrix.astype(np.promote_types(matrix.dtype, jnp.float32))
  if matrix.shape[0] < matrix.shape[1]:
    matrix = matrix.T
  gram = jnp.matmul(matrix.T, matrix, precision=jax.lax.Precision.HIGHEST)
  return jnp.max(jnp.abs(gram - jnp.eye(gram.shape[0], dtype=gram.dtype)), initial=0.0)


def check_shape(shape) -> tuple[int, int]:
  """Returns `shape` as two positive ints or raises ValueError."""
  try:
    sizes = tuple(operator.index(size) for size in shape)
  except TypeError:
    sizes = ()
  if len(sizes) != 2 or min(sizes) < 1:
    raise ValueError(
      f"`shape` must be two positive integers (rows, cols), got {shape!r}."
    )
  if math.prod(sizes) >= 2**31:
    raise ValueError(f"`shape` must have fewer than 2**31 elements, got {sizes}.")
  return sizes


def _check_density(density, shape: tuple[int, int]) -> float:
  """Returns `density` as a float in `[1 / max(shape), 1]` or raises ValueError."""
  if isinstance(density, jax.core.Tracer):
    raise ValueError(
      "`density` must be a Python number, since it fixes the number of candidate "
      "rotations; got a traced value."
    )
  floor = 1 / max(shape)
  # One part in 10^9 of slack: 1 / max(shape) computed elsewhere may round below.
  value = checks.as_float(density)
  if not floor * (1 - 1e-9) <= value <= 1.0:
    raise ValueError(
      f"`density` must be in [{floor:.4g}, 1] for shape {shape}, got {density!r}."
    )
  return value


def check_dtype(dtype) -> jnp.dtype:
  """Returns the canonical floating dtype or raises ValueError."""
  given = dtype
  try:
    dtype = jax.dtypes.canonicalize_dtype(dtype)
  except TypeError:
    dtype = jnp.dtype(bool)
  if not jnp.issubdtype(dtype, jnp.floating):
    raise ValueError(f"`dtype` must be floating point, got {given}.")
  if dtype.itemsize < 2:
    # Most entries would round to zero or to each other.
    raise ValueError(f"`dtype` must have at least 16 bits, got {dtype}.")
  return dtype
