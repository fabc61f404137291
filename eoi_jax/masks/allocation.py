"""Where the density goes: densities of the kernels of a tree, by rule, exact or real.

`uniform` and `erk` are the published rules as real numbers. `allocate` turns a rule, or
scores of all weights, into densities whose counts add up to the total exactly: of what
it returns, `round(density * size)` is the number of trained weights of each layer.
"""

import bisect
import math
from collections.abc import Collection
from typing import Any

import jax.numpy as jnp
import numpy as np

from eoi_jax import _checks
from eoi_jax.layouts.layout import TAPS, Kernel
from eoi_jax.layouts.trees import Layouts, fill_tree, find_kernels
from eoi_jax.masks._topk import mark_highest
from eoi_jax.masks.trees import given_kernels, live_counts

RULES = ("uniform", "erk")
# What to do with a layer whose count is below the floor of an orthogonal kernel.
FLOORS = ("ignore", "error", "lift")


def uniform(
  params: Any,
  density: float,
  *,
  dense: Collection[str] = (),
  layouts: Layouts | None = None,
) -> Any:
  """The same density for every kernel, but 1 for the ones that are to stay dense.

  Args:
    params: tree of arrays or shape-dtype structs.
    density: fraction of trained weights, in `(0, 1]`.
    dense: names of kernels of density 1, such as the first and the last of a network
      (the order of a tree does not tell which these are). The others keep `density`,
      so that the whole is denser than that.
    layouts: how leaves are read; None = by shape (`kernel_layouts`).

  Returns:
    Tree like `params`: a float for each kernel, None = dense leaf.

  Raises:
    ValueError: if `density` is not in `(0, 1]`, or `dense` names no kernel.

  Example:
    >>> uniform({"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}, 0.5)
    {'bias': None, 'kernel': 0.5}
  """
  density = _checks.density(density)
  densities = dict.fromkeys(find_kernels(params, layouts), density)
  _check_dense(dense, densities)
  return fill_tree(params, densities | dict.fromkeys(dense, 1.0))


def erk(
  params: Any,
  density: float,
  *,
  power_scale: float = 1.0,
  layouts: Layouts | None = None,
) -> Any:
  """Erdos-Renyi-Kernel: `min(1, eps * (sum(shape) / prod(shape))**power_scale)`.

  eps is the one number for which all kernels together have `density`; it is solved for
  exactly, without iteration over layers that pass 1. The shape is that of one layer,
  `(*window, in, out)`, with inputs and outputs merged as its layout says.

  Args:
    params: tree of arrays or shape-dtype structs.
    density: fraction of trained weights over all kernels together, in `(0, 1]`.
    power_scale: exponent; 0 is uniform, 1 as published.
    layouts: how leaves are read; None = by shape (`kernel_layouts`). Each layer of a
      stack counts as a kernel of its own.

  Returns:
    Tree like `params`: a float in `(0, 1]` for each kernel, None = dense leaf.

  Raises:
    ValueError: if `density` is not in `(0, 1]` or `power_scale` is not finite.

  Example:
    >>> densities = erk([jnp.ones((100, 100)), jnp.ones((100, 10))], 0.1)
    >>> [round(d, 5) for d in densities]
    [0.07097, 0.39032]

  Reference: Mocanu et al., 2018, arXiv:1707.04780; Evci et al., 2020,
  arXiv:1911.11134.
  """
  density = _checks.density(density)
  power_scale = _checks.number("power_scale", power_scale)
  kernels = find_kernels(params, layouts)
  shapes = [kernel.layer_shape for kernel in kernels.values()]
  logs = power_scale * np.log([sum(s) / math.prod(s) for s in shapes])
  raw = np.exp(np.maximum(logs - logs.max(), -600.0))  # no power over- or underflows
  sizes = [kernel.layer_size * kernel.num_layers for kernel in kernels.values()]
  sizes = np.array(sizes, np.float64)
  amounts = _share(raw * sizes, np.zeros_like(sizes), sizes, density * sizes.sum())
  densities = np.minimum(amounts / sizes, 1.0).tolist()
  return fill_tree(params, dict(zip(kernels, densities, strict=True)))


def allocate(
  params: Any,
  density: float,
  *,
  rule: Any = "uniform",
  floors: str = "ignore",
  taps: str = "center",
  dense: Collection[str] = (),
  layouts: Layouts | None = None,
) -> Any:
  """Densities that add up to the total exactly, for any rule.

  Every layer gets the whole part of what the rule gives it; the weights still missing
  go to the layers with the largest remainders, one each (of equal ones, to the first).
  Every layer keeps at least one weight. Layers that the rule makes dense stay dense.

  Args:
    params: tree of arrays or shape-dtype structs.
    density: fraction of trained weights over all kernels together, in `(0, 1]`.
    rule: "uniform"; "erk"; a tree of scores, arrays of the shapes of the kernels: each
      layer gets as many weights as it has among the highest of all; or a tree of
      densities of your own, scaled to meet the total. None in a tree = dense leaf.
    floors: an orthogonal kernel `(*window, in, out)` needs `min(in, out)` weights at
      least. "ignore" that, for masks of any other start; "error" if a layer has fewer;
      or "lift" such layers to the floor, and let the others pay.
    taps: as in `eoi_init`: with "polyphase" a strided convolution needs as many as a
      matrix `(in * prod(strides), out)`.
    dense: names of kernels of density 1; they come on top: the others together have
      `density`.
    layouts: how leaves are read; None = by shape (`kernel_layouts`).

  Returns:
    Tree like `params`: a float for each kernel, a float64 array `[layers]` for a
    stacked leaf whose layers differ, None = dense leaf. The counts `round(density *
    size)` add up to `round(density * total)`, `dense` ones not counted.

  Raises:
    ValueError: if an option is unknown, structures differ, a layer is below its floor
      under "error" (it is named), or the total cannot be met.

  Example:
    >>> params = [jnp.ones((3, 5)), jnp.ones((3, 3))]
    >>> densities = allocate(params, 0.25)
    >>> [round(d * w.size) for d, w in zip(densities, params)]
    [4, 2]
  """
  density = _checks.density(density)
  _checks.one_of("floors", floors, FLOORS)
  if isinstance(rule, str) and rule not in RULES:
    raise ValueError(f"`rule` must be one of {RULES} or a tree, got {rule!r}.")
  _checks.one_of("taps", taps, TAPS)
  densities: dict[str, Any] = {}
  others, any_left = params, True
  if dense:  # the rule is for the others
    values = 1.0 if isinstance(rule, str) else rule
    known = given_kernels(params, values, layouts, "rule")
    _check_dense(dense, known)
    densities, none = dict.fromkeys(dense, 1.0), dict.fromkeys(dense)
    any_left = len(densities) < len(known)
    others = fill_tree(params, none, keep=True)
    rule = rule if isinstance(rule, str) else fill_tree(rule, none, keep=True)
  if any_left:
    kernels, wanted = _wanted(others, density, rule, layouts)
    layers = [kernel for kernel in kernels for _ in range(kernel.num_layers)]
    least = np.ones(len(layers), np.int64)
    if floors != "ignore":
      least[:] = [kernel.floor(taps) for kernel in layers]
    counts = _counts(layers, np.concatenate(wanted), density, least, floors)
    ends = np.cumsum([kernel.num_layers for kernel in kernels])[:-1]
    for kernel, part in zip(kernels, np.split(counts, ends), strict=True):
      part = part / kernel.layer_size
      densities[kernel.name] = part if np.ptp(part) else float(part[0])
  return fill_tree(params, densities)


def _check_dense(dense: Any, known: Collection[str]) -> None:
  """Raises ValueError unless `dense` is a collection of names of kernels."""
  is_names = isinstance(dense, Collection) and not isinstance(dense, str)
  for name in dense if is_names else [dense]:
    if not is_names or name not in known:
      raise ValueError(f"`dense` must name kernels of {[*known]}, got {name!r}.")


def _wanted(params, density: float, rule, layouts) -> tuple[list[Kernel], list]:
  """Kernels, and the weights that the rule gives each layer, float `[num_layers]`."""
  if isinstance(rule, str):
    rule = (uniform if rule == "uniform" else erk)(params, density, layouts=layouts)
  found = given_kernels(params, rule, layouts, "rule")
  if not found:
    raise ValueError("`rule` must have a value for at least one kernel, got none.")
  kernels, wanted = [kernel for kernel, _ in found.values()], []
  if all(jnp.shape(value) == jnp.shape(k.leaf) for k, value in found.values()):
    scores = {name: value for name, (_, value) in found.items()}
    count = round(density * sum(np.size(score) for score in scores.values()))
    marked = mark_highest("rule", scores, count)
    return kernels, [live_counts(kernel, marked[kernel.name]) for kernel in kernels]
  for name, (kernel, value) in found.items():
    values = np.asarray(value, np.float64)
    if values.shape not in ((), (kernel.num_layers,), kernel.stack_shape):
      raise ValueError(
        "`rule` must hold scores of the shapes of all kernels, or densities of their "
        f"layers, got shape {values.shape} for {name!r} {jnp.shape(kernel.leaf)}."
      )
    if not np.all((values > 0) & (values <= 1)):
      raise ValueError(
        f"`rule` must hold densities in (0, 1], got {value} for {name!r}."
      )
    layers = np.broadcast_to(values.ravel(), kernel.num_layers)
    wanted.append(layers * kernel.layer_size)
  return kernels, wanted


def _counts(
  layers: list[Kernel], wanted, density: float, least: np.ndarray, floors: str
) -> np.ndarray:
  """Whole numbers of weights of all layers, of sum `round(density * total)`."""
  sizes = np.array([kernel.layer_size for kernel in layers], np.int64)
  low = least if floors == "lift" else np.ones_like(least)
  dense = np.where(wanted >= sizes, sizes, low)
  total = round(density * float(sizes.sum()))
  low = dense if dense.sum() <= total else low
  wanted = np.maximum(wanted, 1e-6)  # of a layer that the rule gives nothing
  counts = _round_to(wanted, low, sizes, total)
  below = np.flatnonzero(counts < least)
  if floors == "error" and below.size:
    index = int(below[0])
    raise ValueError(
      f"`density` must leave kernel {layers[index].name!r} at least its floor of "
      f"{least[index]} weights for an orthogonal start, got {counts[index]} "
      f"({below.size} layers of {len(layers)} are below their floor; "
      '`floors="lift"` lifts them).'
    )
  return counts


def _share(weights, low, high, total) -> np.ndarray:
  """`clip(c * weights, low, high)` with the one `c` for which the sum is `total`.

  The sum grows piecewise linearly in `c`: the breakpoints on either side of `total`
  tell which entries are clipped, and the rest is one division.
  """
  points = np.sort(np.concatenate([low / weights, high / weights]))

  def amounts(c):
    return np.clip(c * weights, low, high)

  # All but the first and the last, which bound every `c`.
  inner = points[1:-1].tolist()
  last = 1 + bisect.bisect_right(inner, total, key=lambda c: amounts(c).sum())
  between = (points[last - 1] + points[last]) / 2
  free = (between * weights > low) & (between * weights < high)
  if not free.any():
    return amounts(points[last])
  result = amounts(between)
  rest = total - result[~free].sum()
  result[free] = rest / weights[free].sum() * weights[free]
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
