"""Several seeds as one program: arrays with a leading axis of seeds.

A state of several seeds is the state of one with that axis in front of every array.
Counters (integers without a shape, such as the step) have none: they are the same for
all seeds, so that what depends on them alone is computed once, and a `lax.cond` on
them stays a branch.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def over_seeds(function: Callable[..., Any], state: Any, *, keeps: bool = False) -> Any:
  """Maps `function(state, *rest)` over the seeds of a state, if it has several.

  Args:
    function: takes the state of one seed, and arguments that all seeds share.
    state: a state with a `key`, of shape `()` for one seed and `(seeds,)` for several.
    keeps: whether `function` returns `(state, others)` rather than others alone.

  Returns:
    `function` itself for one seed; else a function whose results have a leading axis
    of seeds, but for the counters of a state.
  """
  if not state.key.ndim:
    return function
  axes = _axes(state)

  def mapped(state, *rest):
    in_axes = (axes, *(None for _ in rest))
    return jax.vmap(function, in_axes, (axes, 0) if keeps else 0)(state, *rest)

  return mapped


def map_seeds(function: Callable[[jax.Array], Any], keys: jax.Array) -> Any:
  """Builds the state of several seeds: `function` makes that of one from its key."""
  alone = jax.eval_shape(function, keys[0])
  axes = jax.tree.map(lambda leaf: None if _is_counter(leaf) else 0, alone)
  return jax.vmap(function, out_axes=axes)(keys)


def stack_seeds(states: list[Any]) -> Any:
  """Joins the states of single seeds."""
  return jax.tree.map(
    lambda *leaves: leaves[0] if _is_counter(leaves[0]) else jnp.stack(leaves), *states
  )


def take_seed(state: Any, index: int) -> Any:
  """Returns one seed's part of a state of several; a state of one as it is."""
  if not state.key.ndim:
    return state
  return jax.tree.map(lambda leaf: leaf[index] if leaf.ndim else leaf, state)


def _axes(state: Any) -> Any:
  return jax.tree.map(lambda leaf: 0 if leaf.ndim else None, state)


def _is_counter(leaf: Any) -> bool:
  return leaf.ndim == 0 and jnp.issubdtype(leaf.dtype, jnp.integer)
