"""Checks of arguments that several modules share."""

import math
import operator
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def integer(name: str, value: Any, minimum: int) -> int:
  """Returns `value` as an int of at least `minimum` or raises ValueError."""
  try:
    number = None if isinstance(value, bool) else operator.index(value)
  except TypeError:
    number = None
  if number is None or number < minimum:
    raise ValueError(
      f"`{name}` must be an integer of at least {minimum}, got {value!r}."
    )
  return number


def strides(value: Any, rank: int) -> tuple[int, ...]:
  """Returns one stride for each of `rank` axes of a window, or raises ValueError."""
  try:
    values = tuple(operator.index(stride) for stride in value)
  except TypeError:
    values = (integer("strides", value, 1),) * rank
  if len(values) != rank or min(values, default=1) < 1:
    raise ValueError(
      f"`strides` must be a positive integer or {rank} of them, got {value!r}."
    )
  return values


def function(name: str, value: Any) -> None:
  """Raises ValueError unless `value` can be called."""
  if not callable(value):
    raise ValueError(f"`{name}` must be a function, got {value!r}.")


def one_of(name: str, value: Any, options: Iterable[Any]) -> None:
  """Raises ValueError, with the known ones, unless `value` is one of the options."""
  if value not in (known := tuple(options)):
    raise ValueError(f"`{name}` must be one of {known}, got {value!r}.")


def as_float(value: Any) -> float:
  """Returns `value` as a Python float, nan if it is no number that is known."""
  if isinstance(value, str | bytes | bool | np.bool_):
    return math.nan
  try:
    return float(value)
  except (TypeError, ValueError):
    return math.nan


def _checked(name: str, value: Any, rule: str, holds: Callable[[float], bool]) -> float:
  result = as_float(value)
  if not holds(result):
    raise ValueError(f"`{name}` must be {rule}, got {value!r}.")
  return result


def number(name: str, value: Any) -> float:
  """Returns `value` as a finite Python float or raises ValueError."""
  return _checked(name, value, "a finite number", math.isfinite)


def positive(name: str, value: Any) -> float:
  """Returns `value` as a positive finite Python float or raises ValueError."""
  number(name, value)
  return _checked(name, value, "positive", lambda x: x > 0)


def fraction(name: str, value: Any) -> float:
  """Returns `value` as a Python float in `[0, 1]` or raises ValueError."""
  return _checked(name, value, "in [0, 1]", lambda x: 0 <= x <= 1)


def density(value: Any) -> float:
  """Returns a density in `(0, 1]` as a Python float or raises ValueError."""
  return _checked("density", value, "in (0, 1]", lambda x: 0 < x <= 1)


def compute_dtype(dtype: Any) -> jnp.dtype:
  """Float64 for float64, float32 for every other floating dtype."""
  return jnp.dtype("float64" if jnp.dtype(dtype) == jnp.float64 else "float32")


def matrix(value: Any) -> jax.Array:
  """Returns argument `matrix` as a floating array `[rows, cols]`."""
  value = jnp.asarray(value)
  if value.ndim != 2:
    raise ValueError(f"`matrix` must have shape (rows, cols), got shape {value.shape}.")
  if not jnp.issubdtype(value.dtype, jnp.floating):
    raise ValueError(f"`matrix` must be floating point, got {value.dtype}.")
  return value
