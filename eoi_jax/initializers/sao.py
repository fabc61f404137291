"""Sparsity-aware orthogonal matrices (SAO): dense orthogonal blocks on random columns.

The columns of a `(lo, hi)` matrix are dealt at random into `hi / degree` sets of
`degree`; each set belongs to a block of rows, which carries rows of a random
`degree x degree` orthogonal matrix. Every row has `degree` nonzeros, every column
`degree lo / hi`. Nothing is drawn twice: which degrees fit is decided by division.
"""

import functools

import jax
import jax.numpy as jnp

from eoi_jax import _checks as checks
from eoi_jax import _keys as keys_lib
from eoi_jax.givens import orthogonal


def sao_orthogonal(
  key: jax.Array,
  shape: tuple[int, int],
  degree: int,
  dtype=jnp.float32,
  *,
  relu: bool = False,
) -> jax.Array:
  """Samples a sparse orthogonal matrix with `degree` nonzeros in every row.

  Args:
    key: a PRNG key; it is consumed.
    shape: `(rows, cols)`, static. Let `lo, hi = min(shape), max(shape)`.
    degree: nonzeros along the larger side, one of `sao_degrees(shape)`: the density
      times `hi`.
    dtype: floating dtype of the result.
    relu: whether to return `[[M, -M], [-M, M]]` of an orthogonal `M` of half the size
      and degree. It looks linear through a ReLU; half its singular values are 2, the
      others 0, so it is not orthogonal.

  Returns:
    Array of `shape`. Without `relu`, its columns are orthonormal if `rows >= cols`,
    its rows if `rows <= cols`.

  Raises:
    ValueError: if the shape does not allow the degree; the legal ones are listed.

  Example:
    >>> q = sao_orthogonal(jax.random.key(0), (32, 32), 8)
    >>> (q != 0).sum(0).tolist() == (q != 0).sum(1).tolist() == [8] * 32
    True
    >>> bool(jnp.allclose(q.T @ q, jnp.eye(32), atol=1e-5))
    True

  Reference: Esguerra et al., 2023, IEEE Access 11, "Sparsity-aware orthogonal
  initialization of deep neural networks"; arXiv:2406.01755, section 5.
  """
  shape = orthogonal.check_shape(shape)
  degree = check_degree(shape, degree, relu=relu)
  key = keys_lib.as_key(key)
  return _sample(key, shape, degree, orthogonal.check_dtype(dtype), bool(relu))


def sao_degrees(shape: tuple[int, int], *, relu: bool = False) -> tuple[int, ...]:
  """Degrees that a shape allows.

  Args:
    shape: `(rows, cols)`; let `lo, hi = min(shape), max(shape)`.
    relu: whether for the doubled form, in which `lo`, `hi` and the degree are even and
      their halves keep the rule.

  Returns:
    Ascending degrees that divide `hi` into a number of blocks that divides `lo`.

  Example:
    >>> sao_degrees((12, 12)), sao_degrees((8, 12)), sao_degrees((12, 12), relu=True)
    ((1, 2, 3, 4, 6, 12), (3, 6, 12), (2, 4, 6, 12))
  """
  lo, hi = sorted(orthogonal.check_shape(shape))
  if not relu:
    return tuple(d for d in range(1, hi + 1) if hi % d == 0 and lo % (hi // d) == 0)
  if lo % 2 or hi % 2:
    return ()
  return tuple(2 * degree for degree in sao_degrees((lo // 2, hi // 2)))


def check_degree(shape: tuple[int, int], degree, *, relu: bool) -> int:
  """Returns a legal degree as an int or raises ValueError with the legal ones."""
  legal = sao_degrees(shape, relu=relu)
  form = "the ReLU form of shape" if relu else "shape"
  if not legal:
    raise ValueError(
      f"`shape` must have even sides for the ReLU form, got {tuple(shape)}."
    )
  if isinstance(degree, bool) or degree not in legal:
    densities = ", ".join(f"{d / max(shape):.4g}" for d in legal)
    raise ValueError(
      f"`degree` must be one of {', '.join(map(str, legal))} for {form} "
      f"{tuple(shape)} (densities {densities}), got {degree}."
    )
  return checks.integer("degree", degree, 1)


@functools.partial(jax.jit, static_argnames=("shape", "degree", "dtype", "relu"))
def _sample(key, shape, degree: int, dtype, relu: bool) -> jax.Array:
  compute_dtype = checks.compute_dtype(dtype)
  lo, hi = min(shape), max(shape)
  parts = 2 if relu else 1
  matrix = _blocks(key, lo // parts, hi // parts, degree // parts, compute_dtype)
  if relu:
    matrix = jnp.block([[matrix, -matrix], [-matrix, matrix]])
  return (matrix if shape[0] <= shape[1] else matrix.T).astype(dtype)


def _blocks(key, lo: int, hi: int, degree: int, dtype) -> jax.Array:
  """Orthogonal blocks `[lo, hi]` on randomly dealt columns."""
  key_columns, key_values = jax.random.split(key)
  num_blocks = hi // degree
  rows = lo // num_blocks
  dense = jax.nn.initializers.orthogonal()
  keys = jax.random.split(key_values, num_blocks)
  values = jax.vmap(lambda k: dense(k, (rows, degree), dtype))(keys)
  apart = jnp.eye(num_blocks, dtype=dtype)
  matrix = jnp.einsum("brd,bc->brcd", values, apart).reshape(lo, hi)
  return matrix[:, jax.random.permutation(key_columns, hi)]
