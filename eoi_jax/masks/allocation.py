"""Densities of the kernels of a tree from their shapes, and exact integer budgets.

`uniform` and `erk` give densities as real numbers. `budgets` turns densities into
numbers of weights that add up to the total exactly, and `densities_from_budgets` turns
those back into densities that `sparsify` and `kernel_masks` take, of which
`round(density * size)` is the budget to the weight.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

import numpy as np

from eoi_jax import _checks as checks
from eoi_jax import _kernels as kernels_lib
from eoi_jax._kernels import Kernel, LeafPredicate

# What to do with a layer whose budget is below the floor of an orthogonal kernel.
FLOORS = ("ignore", "error", "raise")


def uniform(
  params: Any,
  density: float,
  *,
  dense: Collection[str] = (),
  is_kernel: LeafPredicate = kernels_lib.is_kernel,
  is_stacked: LeafPredicate = kernels_lib.never_stacked,
) -> Any:
  """The same density for every kernel, but 1 for the ones that are to stay dense.

  Args:
    params: tree of arrays or shape-dtype structs.
    density: fraction of trained weights, in `(0, 1]`.
    dense: names of kernels of density 1, such as the first and the last of a network
      (the order of a tree does not tell which these are). The others keep `density`,
      so that the whole is denser than that.
    is_kernel: `(name, leaf) -> bool`, which leaves are kernels.
    is_stacked: `(name, leaf) -> bool`, which kernels have a leading axis of layers.

  Returns:
    Tree like `params`: a float for each kernel, None = dense leaf.

  Raises:
    ValueError: if `density` is not in `(0, 1]`, or `dense` names no kernel.

  Example:
    >>> import jax.numpy as jnp
    >>> uniform({"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}, 0.5)
    {'bias': None, 'kernel': 0.5}
  """
  density = checks.density(density)
  kernels = kernels_lib.find_kernels(params, is_kernel=is_kernel, is_stacked=is_stacked)
  densities = dict.fromkeys(kernels, density)
  for name in dense:
    if name not in densities:
      raise ValueError(f"`dense` must name kernels of {[*kernels]}, got {name!r}.")
    densities[name] = 1.0
  return kernels_lib.fill_tree(params, densities)


def erk(
  params: Any,
  density: float,
  *,
  power_scale: float = 1.0,
  is_kernel: LeafPredicate = kernels_lib.is_kernel,
  is_stacked: LeafPredicate = kernels_lib.never_stacked,
) -> Any:
  """Erdos-Renyi-Kernel: `min(1, eps * (sum(shape) / prod(shape))**power_scale)`.

  eps is the one number for which all kernels together have `density`; it is solved for
  exactly, without iteration over layers that pass 1. Shapes count every axis, the
  window of a convolution included.

  Args:
    params: tree of arrays or shape-dtype structs.
    density: fraction of trained weights over all kernels together, in `(0, 1]`.
    power_scale: exponent; 0 is uniform, 1 as published.
    is_kernel: `(name, leaf) -> bool`, which leaves are kernels.
    is_stacked: `(name, leaf) -> bool`, which kernels have a leading axis of layers;
      each layer counts as a kernel of its own.

  Returns:
    Tree like `params`: a float in `(0, 1]` for each kernel, None = dense leaf.

  Raises:
    ValueError: if `density` is not in `(0, 1]` or `power_scale` is not finite.

  Example:
    >>> import jax.numpy as jnp
    >>> densities = erk([jnp.ones((100, 100)), jnp.ones((100, 10))], 0.1)
    >>> [round(d, 5) for d in densities]
    [0.07097, 0.39032]

  Reference: Mocanu et al., 2018, arXiv:1707.04780; Evci et al., 2020,
  arXiv:1911.11134.
  """
  density = checks.density(density)
  power_scale = checks.number("power_scale", power_scale)
  kernels = kernels_lib.find_kernels(params, is_kernel=is_kernel, is_stacked=is_stacked)
  if not kernels:
    return kernels_lib.fill_tree(params, {})
  shapes = [kernel.shape for kernel in kernels.values()]
  raw = np.array([(sum(s) / math.prod(s)) ** power_scale for s in shapes])
  sizes = np.array([k.size * k.num_layers for k in kernels.values()], np.float64)
  amounts = _share(raw * sizes, np.zeros_like(sizes), sizes, density * sizes.sum())
  densities = np.minimum(amounts / sizes, 1.0).tolist()
  return kernels_lib.fill_tree(params, dict(zip(kernels, densities, strict=True)))


def budgets(
  params: Any,
  densities: Any,
  *,
  density: float | None = None,
  floors: str = "ignore",
  is_kernel: LeafPredicate = kernels_lib.is_kernel,
  is_stacked: LeafPredicate = kernels_lib.never_stacked,
) -> Any:
  """Numbers of trained weights that add up exactly, by largest remainder.

  Every layer gets the whole part of `density * size`; the weights still missing go to
  the layers with the largest fractions, one each (of equal ones, to the first).

  Args:
    params: tree of arrays or shape-dtype structs.
    densities: tree like `params` of densities, None = dense leaf, or one for all.
    density: density of the whole: the total is `round(density * N)`, N being the number
      of weights of all kernels that have a density. None takes that of `densities`.
      Layers of density 1 stay dense, the others are scaled to meet it.
    floors: an orthogonal kernel `(*window, in, out)` needs `min(in, out)` nonzeros at
      least. "ignore" that, for masks of any other start; "error" if a layer has fewer;
      or "raise" such layers to the floor and scale the others down, so that the total
      still holds.
    is_kernel: `(name, leaf) -> bool`, which leaves are kernels.
    is_stacked: `(name, leaf) -> bool`, which kernels have a leading axis of layers.

  Returns:
    Tree like `params`: an int for each kernel, an int64 array `[layers]` for each
    stacked leaf; None where `densities` is None.

  Raises:
    ValueError: if structures differ, a density is out of range, a layer is below its
      floor under "error" (it is named), or the total cannot be met.

  Example:
    >>> import jax.numpy as jnp
    >>> budgets([jnp.ones((3, 5)), jnp.ones((3, 3))], 0.25)
    [4, 2]
  """
  if floors not in FLOORS:
    raise ValueError(f"`floors` must be one of {FLOORS}, got {floors!r}.")
  kernels = kernels_lib.find_kernels(params, is_kernel=is_kernel, is_stacked=is_stacked)
  values = kernels_lib.kernel_densities(kernels, params, densities, "densities")
  kernels = {name: kernels[name] for name in values}
  if not kernels:
    return kernels_lib.fill_tree(params, {})
  layers = [kernel for kernel in kernels.values() for _ in range(kernel.num_layers)]
  sizes = np.array([kernel.size for kernel in layers], np.int64)
  wanted = np.concatenate([*values.values()]) * sizes
  total = wanted.sum() if density is None else checks.density(density) * sizes.sum()
  total = round(float(total))
  least = np.array([min(kernel.shape[-2:]) for kernel in layers], np.int64)
  low = least if floors == "raise" else np.zeros_like(least)
  low = np.where(wanted == sizes, sizes, low)
  counts = _round_to(wanted, low, sizes, total)
  if floors == "error" and np.any(counts < least):
    _below_floor(kernels, layers, counts, least)
  return kernels_lib.fill_tree(params, _per_kernel(kernels, counts))


def densities_from_budgets(
  params: Any,
  budgets: Any,
  *,
  is_kernel: LeafPredicate = kernels_lib.is_kernel,
  is_stacked: LeafPredicate = kernels_lib.never_stacked,
) -> Any:
  """Densities of which `round(density * size)` is the budget, exactly.

  Args:
    params: tree of arrays or shape-dtype structs.
    budgets: tree like `params` of numbers of trained weights, as `budgets` gives them.
    is_kernel: `(name, leaf) -> bool`, which leaves are kernels.
    is_stacked: `(name, leaf) -> bool`, which kernels have a leading axis of layers.

  Returns:
    Tree like `params`: a float for each kernel, a float64 array `[layers]` for a
    stacked leaf whose layers differ; None where `budgets` is None.

  Raises:
    ValueError: if structures differ, or a budget is not in `[0, size]`.

  Example:
    >>> import jax.numpy as jnp
    >>> densities_from_budgets([jnp.ones((3, 5)), jnp.ones((3, 3))], [3, None])
    [0.2, None]
  """
  kernels = kernels_lib.find_kernels(params, is_kernel=is_kernel, is_stacked=is_stacked)
  densities = {}
  for name, budget in kernels_lib.match_leaves(params, budgets, "budgets").items():
    if budget is None:
      continue
    if name not in kernels:
      raise ValueError(f"`budgets` must be None for {name!r}, which is no kernel.")
    size, counts = kernels[name].size, np.asarray(budget)
    if not np.all((counts >= 0) & (counts <= size)):
      raise ValueError(f"`budgets` must be in [0, {size}] for {name!r}, got {budget}.")
    values = counts / size
    densities[name] = float(values.flat[0]) if np.ptp(values) == 0 else values
  return kernels_lib.fill_tree(params, densities)


def _share(weights, low, high, total) -> np.ndarray:
  """`clip(c * weights, low, high)` with the one `c` for which the sum is `total`.

  The sum grows piecewise linearly in `c`: the breakpoints on either side of `total`
  tell which entries are clipped, and the rest is one division.
  """
  points = np.sort(np.concatenate([low / weights, high / weights]))

  def amounts(c):
    return np.clip(c * weights, low, high)

  first, last = 0, len(points) - 1
  while last - first > 1:
    middle = (first + last) // 2
    if amounts(points[middle]).sum() <= total:
      first = middle
    else:
      last = middle
  between = (points[first] + points[last]) / 2
  free = (between * weights > low) & (between * weights < high)
  if not free.any():
    return amounts(points[last])
  fixed = amounts(between)[~free].sum()
  result = amounts(between)
  result[free] = (total - fixed) / weights[free].sum() * weights[free]
  return np.clip(result, low, high)


def _round_to(wanted, low, high, total: int) -> np.ndarray:
  """Integers near a multiple of `wanted`, between `low` and `high`, of sum `total`."""
  if not low.sum() <= total <= high.sum():
    raise ValueError(
      f"`density` must leave between {low.sum()} weights (floors and dense layers) and "
      f"{high.sum()}, got a total of {total}."
    )
  amounts = np.clip(wanted, low, high).astype(np.float64)
  if abs(amounts.sum() - total) > 0.5:
    amounts = _share(wanted, low, high, total)
  counts = np.floor(amounts).astype(np.int64)
  fractions = amounts - counts
  # A rounding error of the sum may ask for one more or fewer than there are fractions.
  while (missing := total - counts.sum()) != 0:
    step = 1 if missing > 0 else -1
    room = counts < high if step > 0 else counts > low
    order = np.argsort(-step * fractions, kind="stable")
    chosen = order[room[order]][: abs(missing)]
    counts[chosen] += step
    fractions[chosen] -= step
  return counts


def _below_floor(kernels, layers, counts, least) -> None:
  """Raises the error of `floors="error"`, naming the first layer below its floor."""
  index = int(np.flatnonzero(counts < least)[0])
  kernel: Kernel = layers[index]
  raise ValueError(
    f"`densities` must leave kernel {kernel.name!r} at least min(in, out) = "
    f"{least[index]} weights for an orthogonal start, got {counts[index]} "
    f"({np.count_nonzero(counts < least)} layers of {len(layers)} are below their "
    'floor; `floors="raise"` raises them).'
  )


def _per_kernel(kernels: dict[str, Kernel], counts: np.ndarray) -> dict[str, Any]:
  """Counts of all layers, by kernel: an int, or an array for a stacked leaf."""
  result, start = {}, 0
  for name, kernel in kernels.items():
    part = counts[start : start + kernel.num_layers]
    result[name] = part if kernel.stacked else int(part[0])
    start += kernel.num_layers
  return result
