"""Calls of a network: inputs of any structure, its outputs as one float array."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from eoi_jax import _checks as checks
from eoi_jax._sharding import replicate

ApplyFn = Callable[[Any, Any], Any]


def check_inputs(inputs: Any) -> Any:
  """Inputs as arrays with one batch size and at least one that has derivatives."""
  inputs = jax.tree.map(jnp.asarray, inputs)
  leaves = jax.tree.leaves(inputs)
  shapes, dtypes = [x.shape for x in leaves], [x.dtype for x in leaves]
  if (
    len({shape[:1] for shape in shapes}) != 1
    or () in shapes
    or not all(leaf.size for leaf in leaves)
  ):
    raise ValueError(
      "`inputs` must be arrays [batch, ...] of one batch size, not empty, got shapes "
      f"{shapes}."
    )
  names = ", ".join(map(str, dtypes))
  if any(jnp.issubdtype(dtype, jnp.complexfloating) for dtype in dtypes):
    raise ValueError(
      f"`inputs` must be real, got {names}: pass real and imaginary parts, as real "
      "inputs, to a function that joins them."
    )
  if not any(map(is_float, dtypes)):
    raise ValueError(
      f"`inputs` must be floating point, got {names}: token ids have no derivative. "
      "Pass their embeddings, `table[tokens]`, and the function of those."
    )
  return replicate(inputs)


def outputs_of(apply_fn: ApplyFn, params: Any, inputs: Any) -> jax.Array:
  """The network's outputs in float32 at least; the first if it returns a tuple."""
  checks.function("apply_fn", apply_fn)
  outputs = apply_fn(params, inputs)
  if isinstance(outputs, tuple | list) and outputs:
    outputs = outputs[0]
  dtype = getattr(outputs, "dtype", None)
  if dtype is None or not is_float(dtype):
    raise ValueError(
      "`apply_fn` must return a real floating-point array [batch, ...], alone or first "
      f"in a tuple, got {dtype or type(outputs).__name__}."
    )
  return replicate(outputs).astype(checks.compute_dtype(dtype))


def is_float(dtype: Any) -> bool:
  """Whether a dtype is real floating point."""
  return jnp.issubdtype(dtype, jnp.floating)
