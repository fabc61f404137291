"""What every score of weights shares: kernels, precision, finite results, ranking."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from eoi_jax import _kernels as kernels_lib
from eoi_jax._kernels import Kernel, LeafPredicate

ApplyFn = Callable[[Any, jax.Array], jax.Array]


def find_kernels(params: Any, is_kernel: LeafPredicate) -> dict[str, Kernel]:
  """Kernels of a tree by name; at least one."""
  kernels = kernels_lib.find_kernels(params, is_kernel=is_kernel)
  if not kernels:
    raise ValueError("`params` must have at least one kernel, got none.")
  return kernels


@contextlib.contextmanager
def working_precision(dtype: Any) -> Iterator[None]:
  """Float64 where it is asked for; networks may then mix it with float32 arrays."""
  with contextlib.ExitStack() as stack:
    wide = jnp.dtype(dtype)
    if wide == jnp.float64 and jax.dtypes.canonicalize_dtype(wide) != wide:
      stack.enter_context(jax.enable_x64(True))
      stack.enter_context(jax.numpy_dtype_promotion("standard"))
    yield


def cast(tree: Any, dtype: Any) -> Any:
  """Floating leaves of a tree in `dtype`; others as they are."""

  def cast_leaf(leaf):
    if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
      return leaf
    return jnp.asarray(leaf, dtype)

  return jax.tree.map(cast_leaf, tree)


def split(params: Any, kernels: dict[str, Kernel], dtype: Any) -> tuple[dict, Any]:
  """The kernels by name, and the whole tree, in `dtype`."""
  params = cast(params, dtype)
  leaves = kernels_lib.named_leaves(params)
  return {name: leaves[name] for name in kernels}, params


def check_finite(scores: dict[str, jax.Array], function: str) -> None:
  """Raises ValueError, naming the leaf, if a score is nan or infinite."""
  for name, score in scores.items():
    if not bool(jnp.isfinite(score).all()):
      raise ValueError(
        f"`{function}` must find finite scores, got nan or inf for {name!r}: check "
        "`params` and the inputs."
      )


def finish(params: Any, scores: dict[str, jax.Array], function: str) -> Any:
  """Tree of scores in float32, or the floating dtype of the kernel if it is wider."""
  leaves = kernels_lib.named_leaves(params)
  scores = {
    name: score.astype(jnp.promote_types(jnp.result_type(leaves[name]), jnp.float32))
    for name, score in scores.items()
  }
  check_finite(scores, function)
  return kernels_lib.fill_tree(params, scores)


def mark_highest(
  scores: dict[str, np.ndarray], count: int, alive: dict[str, np.ndarray] | None = None
) -> dict[str, np.ndarray]:
  """Masks of the `count` highest of all scores; of equal ones, the first.

  Selection in linear time on the host, where it is many times faster than sorting.

  Args:
    scores: real arrays by name, without nan, of one dtype.
    count: number of entries to mark, at most that of all candidates.
    alive: bool arrays by name, the candidates; None = all.

  Returns:
    Bool arrays by name.
  """
  if alive is None:
    alive = {name: np.ones(s.shape, bool) for name, s in scores.items()}
  flat = np.concatenate([s[alive[name]] for name, s in scores.items()])
  if count == 0:
    return {name: np.zeros(s.shape, bool) for name, s in scores.items()}
  flat.partition(flat.size - count)
  threshold = flat[flat.size - count]
  masks = {name: (s > threshold) & alive[name] for name, s in scores.items()}
  missing = count - sum(np.count_nonzero(mask) for mask in masks.values())
  for name, s in scores.items():
    ties = np.flatnonzero((s == threshold) & alive[name])[:missing]
    masks[name].reshape(-1)[ties] = True
    missing -= ties.size
  return masks
