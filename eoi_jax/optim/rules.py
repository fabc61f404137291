"""Which weights a mask loses and gains: the rules of dynamic sparse training.

Of a layer with `n` live weights, `floor(fraction * n)` of the lowest drop score are
dropped, then as many of the highest growth score are grown among all that are not kept.

    SET   drop score |w|, growth score random      (Mocanu et al., 2018, s41467-018)
    RigL  drop score |w|, growth score |dL/dw|     (Evci et al., 2020, arXiv:1911.11134)

As in the published code, a weight that was just dropped is a candidate again; one that
comes back at once is as if never touched. Of equal drop scores the lowest indices are
kept, of equal growth scores the lowest indices are grown.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from eoi_jax import _kernels as kernels_lib
from eoi_jax._kernels import Kernel, LeafPredicate
from eoi_jax.masks._topk import top_mask
from eoi_jax.masks.trees import check_masks

# `(key, weights, updates) -> scores` of one layer, all of its shape.
Rule = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def _magnitude(key, weights, updates):
  del key, updates
  return jnp.abs(weights)


def _gradient(key, weights, updates):
  del key, weights
  return jnp.abs(updates)


def _random(key, weights, updates):
  del updates
  return jax.random.uniform(key, weights.shape, jnp.float32)


RULES: dict[str, Rule] = {
  "magnitude": _magnitude,
  "gradient": _gradient,
  "random": _random,
}
SCOPES = ("layer", "global")


class Rules(NamedTuple):
  """How masks change, as plain values.

  Attributes:
    drop: score of live weights, the lowest are dropped.
    grow: score of candidates, the highest are grown.
    scope: "layer" or "global", who competes with whom.
    regrow: whether a weight that was just dropped is a candidate.
  """

  drop: Rule
  grow: Rule
  scope: str
  regrow: bool


def make_rules(
  drop: str | Rule, grow: str | Rule, scope: str, regrow: bool, *, has_key: bool
) -> Rules:
  """Checks the options of a change of masks.

  Raises:
    ValueError: if a name is not known, or a rule draws and there is no key.
  """
  if scope not in SCOPES:
    raise ValueError(f"`scope` must be one of {SCOPES}, got {scope!r}.")
  if not isinstance(regrow, bool):
    raise ValueError(f"`regrow` must be True or False, got {regrow!r}.")
  for name, rule in (("drop", drop), ("grow", grow)):
    if not callable(rule) and rule not in RULES:
      raise ValueError(
        f"`{name}` must be one of {tuple(RULES)} or a function, got {rule!r}."
      )
    if rule == "random" and not has_key:
      raise ValueError(f'`key` must be given for {name}="random", got None.')
  drop, grow = (RULES[r] if isinstance(r, str) else r for r in (drop, grow))
  return Rules(drop, grow, scope, regrow)


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
  is_stacked: LeafPredicate = kernels_lib.never_stacked,
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
    regrow: whether a weight that was just dropped may come back, as published.
    is_stacked: `(name, leaf) -> bool`, which leaves have a leading axis of layers.

  Returns:
    Masks of the same structure and counts.

  Raises:
    ValueError: if structures do not fit, an option is not known, or `key` is missing.

  Example:
    >>> params, updates = jnp.array([3.0, 1.0, 0.0, 0.0]), jnp.array([0.0, 1, 2, 3])
    >>> live = jnp.array([True, True, False, False])
    >>> evolve_masks(None, params, updates, live, 0.5).tolist()
    [True, False, False, True]
  """
  rules = make_rules(drop, grow, scope, regrow, has_key=key is not None)
  mask_of = {n: m for n, m in check_masks(params, masks).items() if m is not None}
  weights = kernels_lib.named_leaves(params)
  slopes = kernels_lib.match_leaves(params, updates, "updates")
  leaves = {
    name: Kernel(name, mask, bool(is_stacked(name, weights[name])))
    for name, mask in mask_of.items()
  }
  scores = {
    name: _scores(key, leaf, weights[name], slopes[name], rules)
    for name, leaf in leaves.items()
  }
  fraction = jnp.asarray(fraction, jnp.float32)
  select = _select_in_layers if scope == "layer" else _select_globally
  return kernels_lib.fill_tree(params, select(leaves, scores, fraction, regrow))


class Scores(NamedTuple):
  """Scores of the layers of a leaf, `[layers, size]` each."""

  drop: jax.Array
  grow: jax.Array


def _scores(key, leaf: Kernel, weights, updates, rules: Rules) -> Scores:
  """Scores of one leaf; keys depend on the name and the layer alone."""
  layers = (leaf.num_layers, -1)
  arrays = [kernels_lib.as_layers(leaf, jnp.asarray(a)) for a in (weights, updates)]
  keys = None if key is None else kernels_lib.kernel_keys(key, leaf)

  def of(rule, purpose):
    def of_layer(key, weights, updates):
      key = None if key is None else jax.random.fold_in(key, purpose)
      return rule(key, weights, updates)

    scores = jax.vmap(of_layer, in_axes=(None if key is None else 0, 0, 0))
    return scores(keys, *arrays).reshape(layers)

  return Scores(of(rules.drop, 0), of(rules.grow, 1))


def _select_in_layers(leaves, scores, fraction, regrow: bool) -> dict[str, jax.Array]:
  """Layers of equal size go through one compiled selection."""
  groups: dict[Any, list[str]] = {}
  for name, (drop, grow) in scores.items():
    groups.setdefault((drop.shape[1], drop.dtype, grow.dtype), []).append(name)
  masks = {}
  for names in groups.values():
    live = [leaves[n].leaf.reshape(leaves[n].num_layers, -1) for n in names]
    drop = jnp.concatenate([scores[n].drop for n in names])
    grow = jnp.concatenate([scores[n].grow for n in names])
    new = _select(drop, grow, jnp.concatenate(live), fraction, regrow=regrow)
    ends = np.cumsum([leaves[n].num_layers for n in names])[:-1].tolist()
    for name, mask in zip(names, jnp.split(new, ends), strict=True):
      masks[name] = mask.reshape(leaves[name].leaf.shape)
  return masks


def _select_globally(leaves, scores, fraction, regrow: bool) -> dict[str, jax.Array]:
  """One selection over all layers; the best live weight of each is safe."""
  if not leaves:
    return {}
  drop, grow, live = [], [], []
  for name, leaf in leaves.items():
    mask = leaf.leaf.reshape(leaf.num_layers, -1)
    kept, grown = (s.astype(jnp.float32) for s in scores[name])
    drop.append(_save_best(kept, mask).reshape(-1))
    grow.append(grown.reshape(-1))
    live.append(mask.reshape(-1))
  drop, grow = jnp.concatenate(drop), jnp.concatenate(grow)
  live_layers = jnp.concatenate(live)[None]
  new = _select(drop[None], grow[None], live_layers, fraction, regrow=regrow)[0]
  ends = np.cumsum([mask.size for mask in live])[:-1].tolist()
  parts = zip(leaves.items(), jnp.split(new, ends), strict=True)
  return {name: mask.reshape(leaf.leaf.shape) for (name, leaf), mask in parts}


def _save_best(scores: jax.Array, live: jax.Array) -> jax.Array:
  """Puts the first of the best live scores of each layer above all others."""
  best = jnp.argmax(_among(scores, live), axis=1, keepdims=True)
  is_best = jnp.arange(scores.shape[1])[None] == best
  return jnp.where(is_best & live, jnp.finfo(scores.dtype).max, scores)


@functools.partial(jax.jit, static_argnames="regrow")
def _select(drop, grow, live, fraction, *, regrow: bool) -> jax.Array:
  """The new masks of layers `[n, size]`: kept and grown weights."""

  def select(drop, grow, live):
    count = jnp.sum(live, dtype=jnp.int32)
    moved = jnp.floor(fraction * count.astype(fraction.dtype)).astype(jnp.int32)
    limit = count if regrow else jnp.minimum(count, live.size - count)
    moved = jnp.clip(moved, 0, limit)
    kept = top_mask(_among(drop, live), count - moved)
    candidates = ~kept if regrow else ~live
    return kept | top_mask(_among(grow, candidates), moved)

  return jax.vmap(select)(drop, grow, live)


def _among(scores: jax.Array, eligible: jax.Array) -> jax.Array:
  """Scores that are lower off `eligible` than anywhere on it."""
  lowest = jnp.finfo(scores.dtype).min
  scores = jnp.where(scores >= lowest, scores, lowest)  # nan and -inf
  return jnp.where(eligible, scores, -jnp.inf)
