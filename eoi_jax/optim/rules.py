"""Rules of dynamic sparse training: who is dropped, who is grown, among whom.

In a layer with `n` live weights, `floor(fraction * n)` of the lowest drop score are
dropped, then as many of the highest growth score are grown among all that are not kept.

    SET   drop score |w|, growth score random      (Mocanu et al., 2018, s41467-018)
    RigL  drop score |w|, growth score |dL/dw|     (Evci et al., 2020, arXiv:1911.11134)

As in the published code, a weight that was just dropped is a candidate again; one that
comes back at once is as if never touched. Of equal drop scores the lowest indices are
kept, of equal growth scores the lowest indices are grown.
"""

import functools
import math
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from eoi_jax import _checks, _keys
from eoi_jax.layouts.layout import Kernel
from eoi_jax.layouts.trees import (
  Layouts,
  fill_tree,
  find_kernels,
  leaf_names,
  match_leaves,
  present_leaves,
)
from eoi_jax.masks._topk import top_mask
from eoi_jax.masks.trees import check_masks, is_traced
from eoi_jax.optim._masked import check_trees, gathered, is_none, match_type

# `(key, weights, updates) -> scores` of one layer, all of its shape.
Rule = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]

RULES: dict[str, Rule] = {
  "magnitude": lambda key, weights, updates: jnp.abs(weights),
  "gradient": lambda key, weights, updates: jnp.abs(updates),
  "random": lambda key, weights, updates: jax.random.uniform(key, weights.shape),
}
SCOPES = ("layer", "global", "unit")


class Rules(NamedTuple):
  """How masks change: the options of `evolve_masks`, as plain values.

  Densities are the start and the end of pruning without growth: floats, or dicts from
  names to a float or an array `[layers]`; None = counts are kept.
  """

  drop: Rule
  grow: Rule | None  # None grows nothing
  scope: str
  regrow: bool
  layouts: Layouts | None
  densities: tuple[Any, Any] | None = None


def make_rules(
  drop: str | Rule,
  grow: str | Rule,
  scope: str,
  regrow: bool,
  layouts: Layouts | None,
  *,
  has_key: bool,
) -> Rules:
  """Checks the options of a change of masks."""
  _checks.one_of("scope", scope, SCOPES)
  if not isinstance(regrow, bool):
    raise ValueError(f"`regrow` must be True or False, got {regrow!r}.")
  for name, rule in (("drop", drop), ("grow", grow)):
    if not callable(rule) and rule not in tuple(RULES):
      raise ValueError(
        f"`{name}` must be one of {tuple(RULES)} or a function, got {rule!r}."
      )
    if rule == "random" and not has_key:
      raise ValueError(f'`key` must be given for {name}="random", got None.')
  drop, grow = (RULES[r] if isinstance(r, str) else r for r in (drop, grow))
  return Rules(drop, grow, scope, regrow, layouts)


def evolve_masks(
  key: jax.Array | None,
  params: Any,
  updates: Any,
  masks: Any,
  fraction: Any,
  *,
  drop: str | Rule = "magnitude",
  grow: str | Rule = "gradient",
  scope: str = "layer",
  regrow: bool = True,
  layouts: Layouts | None = None,
) -> Any:
  """Drops the weights of lowest score and grows as many of highest score.

  Args:
    key: a PRNG key for rules that draw, else None; it is consumed.
    params: tree of arrays.
    updates: tree like `params`: dense gradients, those of dead weights included.
    masks: tree like `params`: bool leaves, True = trained; None = dense leaf.
    fraction: fraction of the live weights to drop, in `[0, 1]`; may be traced.
    drop: "magnitude", "gradient", "random" or `(key, weights, updates) -> scores` of
      one layer, real and of its shape: the lowest are dropped. nan is lowest.
    grow: likewise: the highest are grown.
    scope: "layer": every layer keeps its count exactly. "global": all masked weights
      compete, the total is kept exactly, and each layer keeps its best live weight.
      "unit": every layer keeps its count exactly and shares it evenly out to its
      outputs, whose counts then differ by at most one: constant fan-in.
    regrow: whether a weight that was just dropped may come back, as published.
    layouts: which leaves are stacks of layers; None = each leaf is one layer (with
      "unit", what `kernel_layouts` reads).

  Returns:
    Masks of the same structure and counts.

  Raises:
    ValueError: if structures do not fit, an option is not known, or `key` is missing.

  Example:
    >>> params, updates = jnp.array([3.0, 1.0, 0.0, 0.0]), jnp.array([0.0, 1, 2, 3])
    >>> live = jnp.array([True, True, False, False])
    >>> evolve_masks(None, params, updates, live, 0.5).tolist()
    [True, False, False, True]

  Reference for "unit": Lasby et al., 2023, arXiv:2305.02299.
  """
  rules = make_rules(drop, grow, scope, regrow, layouts, has_key=key is not None)
  used = fill_tree(params, check_masks(params, masks))
  slopes = fill_tree(params, match_leaves(params, updates, "updates"))
  key = None if key is None else _keys.as_key(key)
  check_trees(used, slopes, params)
  if not is_traced(fraction):
    fraction = _checks.fraction("fraction", fraction)
  fraction = jnp.asarray(fraction, jnp.float32)
  return change_masks(rules, key, params, slopes, used, fraction)[0]


def masked_kernels(rules: Rules, masks: Any) -> dict[str, Kernel]:
  """The masked leaves that are read by layouts, by name."""
  if rules.layouts is None and rules.scope != "unit":
    return {}
  return find_kernels(masks, rules.layouts)


def change_masks(
  rules: Rules, key: Any, params: Any, updates: Any, masks: Any, fraction: jax.Array
) -> tuple[Any, Any]:
  """New masks, of masks that fit, and how many weights were grown, int32 `[layers]`.

  The key is a threefry key, or None. The fraction is that of the live weights to drop;
  of pruning, the part of the way from its first to its last density that is done.
  """
  paths, treedef = jax.tree_util.tree_flatten_with_path(masks, is_leaf=is_none)
  arrays = map(treedef.flatten_up_to, (params, updates))
  kernels = masked_kernels(rules, masks)
  named = kernels or key is not None or rules.densities is not None
  names = leaf_names([path for path, _ in paths]) if named else [""] * len(paths)
  groups: dict[Any, list[int]] = {}
  rows: dict[int, tuple] = {}
  leaves = zip(paths, *arrays, strict=True)
  for n, ((_, mask), weights, slopes) in enumerate(leaves):
    if mask is not None:
      leaf = (names[n], kernels.get(names[n]), mask, weights, slopes)
      row = _rows(rules, key, *leaf, fraction)
      rows[n] = row
      types = [jax.typeof(x) for x in row]
      kind = tuple([(t.manual_axis_type, t.dtype, t.shape[1]) for t in types])
      groups.setdefault(0 if rules.scope == "global" else kind, []).append(n)
  new: list[Any] = [None] * len(paths)
  grown: list[Any] = [None] * len(paths)
  for members in groups.values():
    parts = _select_together(rules, [rows[n] for n in members], fraction)
    for n, part in zip(members, parts, strict=True):
      _, mask = paths[n]
      kernel = kernels.get(names[n])
      if kernel is None:
        chosen = part.reshape(mask.shape)
      elif rules.scope == "unit":  # a row holds the inputs of an output
        units = part.reshape(kernel.num_layers, kernel.layer_shape[-1], -1)
        chosen = kernel.from_layers(units.swapaxes(1, 2))
      else:
        chosen = kernel.from_layers(part)
      new[n] = match_type(chosen, mask)
      born = part & ~rows[n][2]
      born = born.reshape(1 if kernel is None else kernel.num_layers, -1)
      grown[n] = jnp.sum(born, axis=1, dtype=jnp.int32)
  return treedef.unflatten(new), treedef.unflatten(grown)


def _rows(rules: Rules, key, name, kernel, mask, weights, slopes, fraction) -> tuple:
  """Drop scores, growth scores, mask `[rows, size]` and target counts `[rows, 1]`.

  Weights of one row compete. Keys depend on the name and the layer alone.
  """
  view = kernel.to_layers if kernel else lambda array: array[None]
  weights, slopes, live = [view(gathered(a)) for a in (weights, slopes, mask)]
  num_layers = len(live)
  keys = None
  if key is not None:
    named = jax.random.fold_in(key, zlib.crc32(name.encode()))
    numbers = jnp.arange(num_layers, dtype=jnp.uint32)
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(named, numbers)

  def scores(rule, purpose):
    def of_layer(key, weights, slopes):
      key = None if key is None else jax.random.fold_in(key, purpose)
      return rule(key, weights, slopes)

    return jax.vmap(of_layer, (None if key is None else 0, 0, 0))(keys, weights, slopes)

  drop = scores(rules.drop, 0)
  grow = drop if rules.grow is None else scores(rules.grow, 1)
  counts = jnp.sum(live.reshape(num_layers, -1), axis=1, keepdims=True, dtype=jnp.int32)
  if rules.scope == "unit":
    outputs = live.shape[-1]
    apart = (x.reshape(num_layers, -1, outputs) for x in (drop, grow, live))
    rows = (x.swapaxes(1, 2).reshape(num_layers * outputs, -1) for x in apart)
    shares = counts // outputs + (jnp.arange(outputs)[None] < counts % outputs)
    return (*rows, shares.reshape(-1, 1))
  if rules.densities is not None:
    first, last = (density_of(each, name) for each in rules.densities)
    counts = _pruned(np.full(num_layers, live[0].size), first, last, fraction)[:, None]
  return (*(x.reshape(num_layers, -1) for x in (drop, grow, live)), counts)


def check_densities(rules: Rules, masks: Any, kernels: dict[str, Kernel]) -> None:
  """Checks that densities by name are those of all masked leaves and their layers."""
  masked = present_leaves(masks)
  for argument, place in (("initial_density", 0), ("density", 1)):
    densities = rules.densities and rules.densities[place]
    if not isinstance(densities, dict):
      continue
    for name in masked.keys() ^ densities.keys():
      raise ValueError(
        f"`{argument}` must name all masked leaves, {[*masked][:8]}, and no others, "
        f"got {[*densities][:8]}: see {name!r}."
      )
    for name, value in densities.items():
      layers = kernels[name].num_layers if name in kernels else 1
      if np.shape(value) not in ((), (layers,)):
        raise ValueError(
          f"`{argument}` of {name!r} must be a number or have shape ({layers},), one "
          f"for each layer of its layout, got shape {np.shape(value)}."
        )


def density_of(densities: Any, name: str) -> Any:
  """The density of the leaf `name`, 1 where a dict does not tell."""
  return densities.get(name, 1.0) if isinstance(densities, dict) else densities


def _pruned(sizes: np.ndarray, first: Any, last: Any, fraction) -> jax.Array:
  """Counts after a part of the way between two densities; exact at its ends."""
  ends = (np.maximum(np.rint(d * sizes), 1) for d in (first, last))
  start, end = (counts.astype(np.int32) for counts in ends)
  done = jnp.rint(fraction * (start - end).astype(np.float32)).astype(jnp.int32)
  return jnp.where(fraction >= 1, end, start - done)


def _select_together(rules: Rules, rows: list[tuple], fraction) -> list[jax.Array]:
  """New masks of rows of equal size, or in the global scope of one long row."""
  sizes = [row[2].shape for row in rows]
  if rules.scope == "global":
    rows = [
      (_save_best(drop.astype(jnp.float32), live), grow.astype(jnp.float32), live, n)
      for drop, grow, live, n in rows
    ]
    drop, grow, live = (
      jnp.concatenate([row[k].reshape(-1) for row in rows])[None] for k in range(3)
    )
    target = jnp.stack([jnp.sum(row[3]) for row in rows]).sum().reshape(1, 1)
    if rules.densities and not any(isinstance(d, dict) for d in rules.densities):
      target = _pruned(np.full((1, 1), live.size), *rules.densities, fraction)
    ends = np.cumsum([math.prod(size) for size in sizes])[:-1].tolist()
    least = sum(size[0] for size in sizes)  # one for each layer
    target = jnp.maximum(target, least) if rules.densities else target
  else:
    least = 0
    drop, grow, live, target = map(jnp.concatenate, zip(*rows, strict=True))
    ends = np.cumsum([size[0] for size in sizes])[:-1].tolist()
  options = {"regrow": rules.regrow, "growing": rules.grow is not None, "least": least}
  new = _select(drop, grow, live, target, fraction, **options)
  parts = jnp.split(new[0] if rules.scope == "global" else new, ends)
  return [part.reshape(size) for part, size in zip(parts, sizes, strict=True)]


def _save_best(scores: jax.Array, live: jax.Array) -> jax.Array:
  """Puts the first of the best live scores of each layer above all others."""
  best = jnp.argmax(_among(scores, live), axis=1, keepdims=True)
  is_best = jnp.arange(scores.shape[1])[None] == best
  others = jnp.minimum(scores, jnp.finfo(scores.dtype).max)
  return jnp.where(is_best & live, jnp.inf, others)


@functools.partial(jax.jit, static_argnames=("regrow", "growing", "least"))
def _select(
  drop, grow, live, target, fraction, *, regrow: bool, growing: bool, least: int
):
  """The new masks of rows `[n, size]` with `target` live weights: kept and grown.

  At least `least` of them are kept.
  """

  def select(drop, grow, live, target):
    count = jnp.sum(live, dtype=jnp.int32)
    if not growing:
      return top_mask(_among(drop, live), jnp.minimum(count, target[0]))
    # Fractions that are whole but for rounding count as whole.
    moved = fraction * target[0].astype(fraction.dtype)
    moved = jnp.floor(moved * (1 + 2e-7)).astype(jnp.int32)
    most = jnp.maximum(target[0] - least, 0)
    kept_count = jnp.minimum(count, target[0] - jnp.clip(moved, 0, most))
    limit = target[0] if regrow else live.size - count
    moved = jnp.clip(target[0] - kept_count, 0, limit)
    kept = top_mask(_among(drop, live), target[0] - moved)
    candidates = ~kept if regrow else ~live
    return kept | top_mask(_among(grow, candidates), moved)

  return jax.vmap(select)(drop, grow, live, target)


def _among(scores: jax.Array, eligible: jax.Array) -> jax.Array:
  """Scores that are lower off `eligible` than anywhere on it."""
  lowest = jnp.finfo(scores.dtype).min
  scores = jnp.where(scores >= lowest, scores, lowest)  # nan and -inf
  return jnp.where(eligible, scores, -jnp.inf)
