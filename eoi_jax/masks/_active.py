"""Arrays with an exponent of their own, which no depth over- or underflows.

An `Active` array stands for `mantissa * 2**exponent`, with one exponent for the whole
array. Exponents are constants to the derivative, so that the derivative of a mantissa
is that of its value but for one power of two. With `reach=True` an array only says
which of its elements can be reached: it is 0 or 1, and so are derivatives.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# The exponent of an array of zeros: below any other.
NOTHING = -1e6
# Products between two searches for the largest element, each of which takes time to
# compile; mantissas have room for as many.
MAX_DEPTH = 4


class Active:
  """An array that depends on the inputs: `mantissa * 2**exponent`.

  Attributes:
    mantissa: array.
    exponent: scalar of the same dtype; at depth 0, within a few units of that of the
      largest element, `NOTHING` of an array of zeros.
    root: token shared by elementwise functions of one array.
    depth: number of products since the mantissa was last brought near 1.
    limit: if the array saturates, the value that it tends to; else None.
  """

  def __init__(self, mantissa, exponent, depth=0, *, root=None, limit=None):
    self.mantissa = mantissa
    self.exponent = exponent
    self.depth = depth
    self.root = object() if root is None else root
    self.limit = limit


@jax.custom_vjp
def _saturate(x):
  return (x != 0).astype(x.dtype)


_saturate.defvjp(
  lambda x: (_saturate(x), None), lambda _, g: ((g != 0).astype(g.dtype),)
)


def is_floating(value) -> bool:
  """Whether a Python or array value is of a floating type."""
  return jnp.issubdtype(getattr(value, "dtype", type(value)), jnp.floating)


def _depth(value) -> int:
  return value.depth if isinstance(value, Active) else 0


def _no_size(value) -> bool:
  """Whether a constant is known to be all zeros or infinities, equal at any scale."""
  known = not isinstance(value, jax.Array)
  return known and bool(np.all((value == 0) | ~np.isfinite(value)))


class Arithmetic:
  """What the rules of `positive` share: casts, common exponents, plain values.

  Attributes:
    dtype: float32 or float64, the dtype of mantissas and exponents.
    reach: whether arrays stand for what can be reached, in 0 and 1.
  """

  def __init__(self, dtype, reach):
    self.dtype = jnp.dtype(dtype)
    self.reach = reach
    self.zero = np.zeros((), self.dtype)

  def cast(self, value: Any) -> Any:
    """Any floating array in the dtype of the arithmetic; scalars stay concrete."""
    if isinstance(value, Active) or not is_floating(value):
      return value
    if isinstance(value, jax.Array):
      return value.astype(self.dtype)
    return np.asarray(value).astype(self.dtype)

  def settle(self, mantissa, exponent):
    """Brings a mantissa near 1 (or, for reachability, to 0 and 1)."""
    if self.reach:
      return Active(_saturate(mantissa), self.zero)
    shift = self._top(mantissa)
    factor = jnp.exp2(jnp.where(shift > NOTHING, -shift, jnp.zeros_like(shift)))
    return Active(mantissa * factor, jnp.maximum(exponent + shift, NOTHING))

  def fresh(self, mantissa, exponent, depth):
    """An array that is settled if too many products went into it."""
    if depth > MAX_DEPTH:
      return self.settle(mantissa, exponent)
    return Active(mantissa, exponent, depth)

  def value(self, x):
    """The plain array; it may overflow."""
    if isinstance(x, Active):
      return x.mantissa * jnp.exp2(x.exponent)
    return self.cast(x)

  def align(self, values):
    """Mantissas of several arrays at one exponent, that exponent, and their depth."""
    if self.reach:  # what does not depend on the inputs has no say
      mantissas = [
        v.mantissa if isinstance(v, Active) else jnp.zeros_like(self.cast(v))
        for v in values
      ]
      return mantissas, self.zero, max(_depth(v) for v in values)
    common = {id(v.exponent) for v in values if isinstance(v, Active)}
    if len(common) == 1 and all(isinstance(v, Active) or _no_size(v) for v in values):
      exponent = next(v.exponent for v in values if isinstance(v, Active))
      mantissas = [v.mantissa if isinstance(v, Active) else v for v in values]
      return mantissas, exponent, max(_depth(v) for v in values)
    settled = [
      self.settle(v.mantissa, v.exponent) if _depth(v) else self.cast(v) for v in values
    ]
    return *self._rescale(settled), 0

  def _rescale(self, values):
    """Mantissas at the largest exponent, and that exponent."""
    mantissas = [v.mantissa if isinstance(v, Active) else v for v in values]
    exponents = [v.exponent if isinstance(v, Active) else self.zero for v in values]
    tops = [v.exponent if isinstance(v, Active) else self._top(v) for v in values]
    highest = functools.reduce(jnp.maximum, tops)
    factors = [jax.lax.stop_gradient(jnp.exp2(e - highest)) for e in exponents]
    factors = [
      # Constants of zeros and infinities (the padding of a maximum) are as they are.
      f if isinstance(v, Active) else jnp.where(top > NOTHING, f, jnp.ones_like(f))
      for f, v, top in zip(factors, values, tops, strict=True)
    ]
    return [m * f for m, f in zip(mantissas, factors, strict=True)], highest

  def _top(self, mantissa):
    """Exponent of the largest element, a constant; `NOTHING` of zeros."""
    size = jnp.abs(jax.lax.stop_gradient(jnp.asarray(mantissa, self.dtype)))
    size = jnp.where(jnp.isfinite(size), size, jnp.zeros_like(size))
    top = jnp.max(size, initial=0.0)
    exponent = jnp.floor(jnp.log2(jnp.where(top > 0, top, jnp.ones_like(top))))
    return jnp.where(top > 0, exponent, jnp.full_like(exponent, NOTHING))
