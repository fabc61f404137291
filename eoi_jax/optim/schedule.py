"""When masks change, and by how much."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from eoi_jax import _checks as checks

# Number of steps done to the fraction of live weights that is replaced then.
Schedule = Callable[[jax.Array], Any]


def drop_schedule(
  fraction: float, *, num_steps: int, every: int = 100, until: float = 0.75
) -> Schedule:
  """Fraction of the live weights to replace: a cosine, every so many steps.

      f(t) = fraction / 2 (1 + cos(pi t / T)),  T = round(until * num_steps),

  where `every` divides the number `t` of steps done and `t < T`, else 0.

  Args:
    fraction: fraction at the start, in `[0, 1]`.
    num_steps: length of the training.
    every: steps from one change of the masks to the next.
    until: fraction of the training after which masks stay, in `[0, 1]`.

  Returns:
    `schedule(t) -> fraction`, for `dynamic_sparsity`.

  Raises:
    ValueError: if an option is out of range.

  Example:
    >>> schedule = drop_schedule(0.4, num_steps=1000, every=100, until=0.5)
    >>> [round(float(schedule(jnp.int32(t))), 3) for t in (100, 150, 250, 300, 500)]
    [0.362, 0.0, 0.0, 0.138, 0.0]
  """
  num_steps = checks.integer("num_steps", num_steps, 1)
  every = checks.integer("every", every, 1)
  for name, value in (("fraction", fraction), ("until", until)):
    if not 0 <= checks.number(name, value) <= 1:
      raise ValueError(f"`{name}` must be in [0, 1], got {value}.")
  end = round(until * num_steps)

  def schedule(count):
    count = jnp.asarray(count, jnp.int32)
    phase = jnp.float32(jnp.pi / max(end, 1)) * count.astype(jnp.float32)
    due = (count % every == 0) & (count < end)
    return jnp.where(due, jnp.float32(fraction / 2) * (1 + jnp.cos(phase)), 0)

  return schedule
