"""Arrays laid out as others are: explicit shardings, manual axes of `shard_map`."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp


def match_type(array: jax.Array, like: Any) -> jax.Array:
  """Gives an array the explicit sharding and the varying manual axes of another."""
  array, sharding = match_axes(array, like), jax.typeof(like).sharding
  return jax.sharding.reshard(array, sharding) if any(sharding.spec) else array


def gathered(array: Any) -> jax.Array:
  """The array without explicit sharding, for what looks at all of it."""
  array = jnp.asarray(array)
  sharding = jax.typeof(array).sharding
  if not any(sharding.spec):
    return array
  return jax.sharding.reshard(array, jax.NamedSharding(sharding.mesh, jax.P()))


def match_axes(array: jax.Array, like: Any) -> jax.Array:
  """Lets an array vary over the manual axes (of `jax.shard_map`) of another."""
  own, wanted = (jax.typeof(x).manual_axis_type.varying for x in (array, like))
  axes = tuple(wanted - own)
  return jax.lax.pcast(array, axes, to="varying") if axes else array
