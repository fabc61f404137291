"""Dynamic sparse training: masks that change while any optax optimizer runs."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from eoi_jax import _checks as checks
from eoi_jax import _keys
from eoi_jax.layouts.trees import (
  Layouts,
  fill_tree,
  is_leaf,
  named_leaves,
  present_leaves,
)
from eoi_jax.optim._compact import LiveWeights
from eoi_jax.optim._masked import (
  as_transformation,
  check_trees,
  fit_masks,
  is_none,
  keep_live,
  masked_update,
  match_axes,
)
from eoi_jax.optim.rules import (
  RULES,
  Rule,
  Rules,
  change_masks,
  check_densities,
  density_of,
  make_rules,
  masked_kernels,
)
from eoi_jax.optim.static import StaticSparsityState

_is_masked_node = functools.partial(type.__instancecheck__, optax.MaskedNode)
_is_compact = functools.partial(type.__instancecheck__, LiveWeights)

# Number of steps done to the fraction of live weights that is replaced then.
Schedule = Callable[[jax.Array], Any]
# `(params, masks) -> params`.
Restore = Callable[[Any, Any], Any]


class DynamicSparsityState(NamedTuple):
  """State of `dynamic_sparsity`.

  Attributes:
    inner_state: state of the wrapped transformation.
    masks: tree like the parameters: bool leaves, True = trained; None = dense leaf.
    num_updates: number of updates so far, int32.
    num_grown: tree like `masks`: number of weights grown so far, int32 `[layers]`.
    key_data: two words of a PRNG key, None without one.
    mean: tree like `masks`: running mean of the dense gradients, float32; None without.
  """

  inner_state: Any
  masks: Any
  num_updates: jax.Array
  num_grown: Any
  key_data: Any
  mean: Any = None


def dynamic_sparsity(
  inner: optax.GradientTransformation,
  masks: Any,
  *,
  schedule: Schedule,
  drop: str | Rule = "magnitude",
  grow: str | Rule = "gradient",
  scope: str = "layer",
  regrow: bool = True,
  mean_decay: float = 0.0,
  skip_step: bool = False,
  restore: Restore | None = None,
  key: jax.Array | None = None,
  layouts: Layouts | None = None,
) -> optax.GradientTransformationExtraArgs:
  """Moves live weights to better places now and then, under any optimizer.

  Between changes of the masks it is `static_sparsity`. At a change the optimizer's step
  is done first; then the live weights of lowest drop score are dropped and as many
  candidates of highest growth score grown (`evolve_masks`). Dropped weights are exactly
  zero after the update, new weights start at zero, and the moments of both at their
  initial value: those in trees of the state that have the structure of the parameters.

  `update` needs the parameters, and as `updates` the dense gradients: those with
  respect to all weights of the masked network. All that changes is in the state. The
  change is under `lax.cond`, also when `vmap` runs several networks: steps without a
  change pay nothing.

  It must be the outermost transformation that changes updates: `optax.scale` after it
  in a chain, or around it what averages or scales parameters (`optax.lookahead`,
  `schedule_free`, `sam` or `mechanize`), would bring dropped weights back. Write
  `dynamic_sparsity(optax.chain(...), masks, ...)`. `optax.MultiSteps` may stand around
  it, which then counts the steps that are taken. Not supported as `inner`: optimizers
  that divide by the second moment of the step before (`optax.contrib.acprop`), since
  that of a new weight is zero, and `optax.flatten`, which hides the parameters.

  Args:
    inner: any optax transformation, or an object with `init` and `update`.
    masks: tree like the parameters: bool leaves, True = trained; None = dense leaf. Or
      a function `params -> masks`.
    schedule: number of steps done (1, 2, ...) to the fraction of the live weights that
      is replaced after that step, 0 = no change; `drop_schedule`, say.
    drop: score whose lowest are dropped, as in `evolve_masks`.
    grow: score whose highest are grown, likewise.
    scope: "layer", "global" or "unit" (SRigL): who competes with whom, likewise.
    regrow: whether a weight that was just dropped may come back, as published.
    mean_decay: of the running mean of the dense gradients that both rules see, in
      `[0, 1)`; 0 shows them the last gradients alone. The mean starts at zero and takes
      the memory of the masked leaves; growth by it is that of sparse momentum.
    skip_step: whether the optimizer's step is left out where masks change, as
      published.
    restore: `(params, masks) -> params`, done after growth: `restore_isometry`, say.
      It may move live weights only.
    key: a PRNG key for rules that draw.
    layouts: which leaves are stacks of layers, each with a count of its own; None =
      each masked leaf is one layer (with "unit", what `kernel_layouts` reads).

  Returns:
    A transformation with state `DynamicSparsityState`; extra arguments of `update` are
    passed on to `inner`.

  Raises:
    ValueError: if an option is not known or `key` is missing; from `init`, if the masks
      do not fit the parameters; from `update`, if `params` is missing, or it or the
      updates do not fit the masks.

  Example:
    >>> params = jnp.array([2.0, 1.0, 0.0, 0.0])
    >>> masks = jnp.array([True, True, False, False])
    >>> tx = dynamic_sparsity(optax.sgd(0.1), masks, schedule=lambda count: 0.5)
    >>> gradient = jnp.array([0.0, 0.0, 1.0, 2.0])
    >>> updates, state = tx.update(gradient, tx.init(params), params)
    >>> state.masks.tolist(), optax.apply_updates(params, updates).tolist()
    ([True, False, False, True], [2.0, 0.0, 0.0, 0.0])

  Reference: Mocanu et al., 2018, Nature Communications 9, 2383; Evci et al., 2020,
  arXiv:1911.11134; sparse momentum: Dettmers and Zettlemoyer, 2019, arXiv:1907.04840.
  """
  rules = make_rules(drop, grow, scope, regrow, layouts, has_key=key is not None)
  return _moving_masks(
    inner, masks, rules, schedule, mean_decay, skip_step, restore, key
  )


def rigl(
  inner: optax.GradientTransformation,
  masks: Any,
  *,
  num_steps: int,
  fraction: float = 0.3,
  every: int = 100,
  until: float = 0.75,
  scope: str = "layer",
  mean_decay: float = 0.0,
  skip_step: bool = False,
  restore: Restore | None = None,
  layouts: Layouts | None = None,
) -> optax.GradientTransformationExtraArgs:
  """RigL: drops the smallest weights and grows those of the largest gradients.

  Args:
    inner: any optax transformation; see `dynamic_sparsity` for what may stand around.
    masks: tree like the parameters: bool leaves, True = trained; None = dense leaf.
    num_steps: length of the training.
    fraction: fraction of the live weights to replace, at the start of a cosine.
    every: steps from one change of the masks to the next.
    until: fraction of the training after which masks stay.
    scope: "layer", "global" or "unit" (SRigL), as in `dynamic_sparsity`.
    mean_decay: as in `dynamic_sparsity`; 0, as published, looks at one batch.
    skip_step: as in `dynamic_sparsity`.
    restore: as in `dynamic_sparsity`.
    layouts: as in `dynamic_sparsity`.

  Returns:
    A transformation with state `DynamicSparsityState`.

  Reference: Evci et al., 2020, arXiv:1911.11134.
  """
  schedule = drop_schedule(fraction, num_steps=num_steps, every=every, until=until)
  rules = make_rules("magnitude", "gradient", scope, True, layouts, has_key=False)
  return _moving_masks(inner, masks, rules, schedule, mean_decay, skip_step, restore)


def set_evolution(
  inner: optax.GradientTransformation,
  masks: Any,
  *,
  key: jax.Array,
  num_steps: int,
  fraction: float = 0.3,
  every: int = 100,
  until: float = 0.75,
  scope: str = "layer",
  skip_step: bool = False,
  restore: Restore | None = None,
  layouts: Layouts | None = None,
) -> optax.GradientTransformationExtraArgs:
  """SET: drops the smallest weights and grows others at random.

  Args:
    inner: any optax transformation; see `dynamic_sparsity` for what may stand around.
    masks: tree like the parameters: bool leaves, True = trained; None = dense leaf.
    key: a PRNG key.
    num_steps: length of the training.
    fraction: fraction of the live weights to replace, at the start of a cosine.
    every: steps from one change of the masks to the next.
    until: fraction of the training after which masks stay.
    scope: "layer", "global" or "unit", as in `dynamic_sparsity`.
    skip_step: as in `dynamic_sparsity`.
    restore: as in `dynamic_sparsity`.
    layouts: as in `dynamic_sparsity`.

  Returns:
    A transformation with state `DynamicSparsityState`.

  Raises:
    ValueError: if an option is out of range, or `key` is None.

  Reference: Mocanu et al., 2018, Nature Communications 9, 2383; with the cosine of
  Evci et al., 2020.
  """
  schedule = drop_schedule(fraction, num_steps=num_steps, every=every, until=until)
  has_key = key is not None
  rules = make_rules("magnitude", "random", scope, True, layouts, has_key=has_key)
  return _moving_masks(inner, masks, rules, schedule, 0.0, skip_step, restore, key)


def gradual_pruning(
  inner: optax.GradientTransformation,
  masks: Any,
  density: Any,
  *,
  num_steps: int,
  initial_density: Any = 1.0,
  every: int = 100,
  begin: float = 0.0,
  until: float = 0.75,
  scope: str = "layer",
  restore: Restore | None = None,
  layouts: Layouts | None = None,
) -> optax.GradientTransformationExtraArgs:
  """Gradual magnitude pruning: drops the smallest weights until a density is met.

      d(t) = d_1 + (d_0 - d_1) (1 - (t - t_0) / (t_1 - t_0))^3

  every so many steps from `t_0 = begin * num_steps` to `t_1 = until * num_steps`, where
  the last density is met to the weight; each layer keeps one at least. Nothing is
  grown.

  Args:
    inner: any optax transformation; see `dynamic_sparsity` for what may stand around.
    masks: tree like the parameters, the start: bool leaves, True = trained; None =
      dense leaf. Counts never rise.
    density: `d_1` of the masked leaves, in `(0, 1]`: a float (of each layer, or with
      scope "global" of all together), or a tree like `masks` of floats or arrays
      `[layers]`, as `allocate` gives it, one for every masked leaf.
    num_steps: length of the training.
    initial_density: `d_0`, in `[density, 1]`, likewise.
    every: steps from one change of the masks to the next.
    begin: fraction of the training before which masks stay.
    until: fraction of the training after which masks stay.
    scope: "layer", or "global": all masked weights compete, and each layer keeps its
      best live weight.
    restore: `(params, masks) -> params`, done after pruning: `restore_isometry`, say.
    layouts: which leaves are stacks of layers; None = each leaf is one layer.

  Returns:
    A transformation with state `DynamicSparsityState`.

  Raises:
    ValueError: if an option is out of range; from `init`, if densities do not fit the
      masks (the leaf is named).

  Reference: Zhu and Gupta, 2017, arXiv:1710.01878.
  """
  if scope not in ("layer", "global"):
    raise ValueError(f'`scope` must be "layer" or "global", got {scope!r}.')
  num_steps = checks.integer("num_steps", num_steps, 1)
  every = checks.integer("every", every, 1)
  begin, until = checks.fraction("begin", begin), checks.fraction("until", until)
  if begin >= until:
    raise ValueError(
      f"`begin` and `until` must be in [0, 1] and in order, got {begin} and {until}."
    )
  first = _read_densities("initial_density", initial_density)
  last = _read_densities("density", density)
  by_name = [each for each in (last, first) if isinstance(each, dict)]
  for name in by_name[0] if by_name else [""]:
    low, high = (density_of(each, name) for each in (last, first))
    if not np.all((low > 0) & (low <= high) & (high <= 1)):
      raise ValueError(
        "`density` must be in (0, 1] and at most `initial_density`, got "
        f"{low} and {high}{name and f' for {name!r}'}."
      )
  start, end = round(begin * num_steps), max(round(until * num_steps), 1)

  def schedule(count):
    count = jnp.asarray(count, jnp.int32)
    past = (count - start).astype(jnp.float32) / max(end - start, 1)
    due = (((count - start) % every == 0) & (count >= start)) | (count == end)
    done = jnp.where(count >= end, 1.0, 1 - (1 - past) ** 3)
    done = jnp.maximum(done, jnp.finfo(jnp.float32).tiny)  # due at the start, too
    return jnp.where(due & (count <= end), done, 0.0)

  rules = Rules(RULES["magnitude"], None, scope, True, layouts, (first, last))
  return _moving_masks(inner, masks, rules, schedule, 0.0, False, restore)


def _read_densities(argument: str, given: Any) -> Any:
  """A density as a number, or densities of leaves by name."""
  if jax.tree_util.all_leaves([given]) and np.ndim(given) == 0:
    return np.float64(checks.number(argument, given))
  return {n: np.asarray(d, np.float64) for n, d in present_leaves(given).items()}


def _moving_masks(
  inner: Any,
  masks: Any,
  rules: Rules,
  schedule: Schedule,
  mean_decay: float,
  skip_step: bool,
  restore: Restore | None,
  key: Any = None,
) -> optax.GradientTransformationExtraArgs:
  """The transformation that changes masks by `rules`; see `dynamic_sparsity`."""
  inner = as_transformation(inner)
  for name, value in (("schedule", schedule), ("restore", restore)):
    if not callable(value) and (name, value) != ("restore", None):
      raise ValueError(f"`{name}` must be a function, got {value!r}.")
  mean_decay = checks.number("mean_decay", mean_decay)
  if not 0 <= mean_decay < 1:
    raise ValueError(f"`mean_decay` must be in [0, 1), got {mean_decay}.")
  words = None if key is None else _keys.key_data(key)

  def init_fn(params):
    used = fit_masks(params, masks)
    key_data = None if words is None else jnp.array(words, copy=True)
    count, kernels = jnp.zeros((), jnp.int32), masked_kernels(rules, used)
    is_empty = not named_leaves(params)  # the placeholder of `optax.tree_map_params`
    inner_state = inner.init(params if is_empty else keep_live(used, params))
    if not is_empty:
      _check_state(inner_state, params)
      check_densities(rules, used, kernels)
    num_grown = {}
    for name, mask in present_leaves(used).items():
      zeros = jnp.zeros(kernels[name].num_layers if name in kernels else 1, jnp.int32)
      is_struct = isinstance(mask, jax.ShapeDtypeStruct)
      num_grown[name] = zeros if is_struct else match_axes(zeros, mask)
    mean = None
    if mean_decay:
      mean = jax.tree.map(lambda m: jnp.zeros_like(m, jnp.float32), used)
    grown = fill_tree(used, num_grown)
    return DynamicSparsityState(inner_state, used, count, grown, key_data, mean)

  def update_fn(updates, state, params=None, **extra_args):
    if params is None:
      raise ValueError("`params` must be given to `update` of `dynamic_sparsity`.")
    count = jnp.asarray(optax.safe_increment(state.num_updates))
    fraction = jnp.asarray(schedule(count), jnp.float32)
    check_trees(state.masks, updates, params)
    old, mean, seen = state.masks, state.mean, updates
    moves, inner_state = masked_update(
      inner, updates, state.inner_state, params, old, **extra_args
    )
    if mean_decay:
      mean, seen = _averaged(mean, updates, mean_decay)

    def keep(moves, inner_state):
      return moves, inner_state, old, state.num_grown

    def change(moves, inner_state):
      """Does the step, drops, grows, restores, and starts moments anew."""
      if skip_step:
        moves, inner_state = jax.tree.map(jnp.zeros_like, moves), state.inner_state
      weights = keep_live(old, optax.apply_updates(params, moves))
      step_key = None
      if words is not None:
        step_key = jax.random.wrap_key_data(state.key_data, impl="threefry2x32")
        step_key = jax.random.fold_in(step_key, count)
      new, grown = change_masks(rules, step_key, weights, seen, old, fraction)
      weights = keep_live(new, weights)
      if restore is not None:
        weights = keep_live(new, restore(weights, new))
      changed = jax.tree.map(jnp.logical_xor, old, new)
      kept = jax.tree.map(lambda a, b: a & b & (restore is None), old, new)
      moves = _lead_to(weights, params, moves, kept)
      inner_state = _reset_moments(inner, inner_state, weights, changed)
      grown = jax.tree.map(jnp.add, state.num_grown, grown)
      return moves, inner_state, new, grown

    def change_if_due(moves, inner_state):
      pairs = change(moves, inner_state), keep(moves, inner_state)
      return jax.tree.map(lambda new, old: jnp.where(due, new, old), *pairs)

    due = fraction > 0
    moves, inner_state, new, num_grown = jax.lax.cond(
      _any_member(due), change_if_due, keep, moves, inner_state
    )
    return moves, DynamicSparsityState(
      inner_state, new, count, num_grown, state.key_data, mean
    )

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _averaged(mean: Any, updates: Any, decay: float) -> tuple[Any, Any]:
  """Returns the running mean, and the updates with the mean where there is one."""

  def mix(mean, update):  # in the dtype of the mean; nan and inf leave it as it is
    if mean is None:
      return None
    new = decay * mean + (1 - decay) * update.astype(mean.dtype)
    return jnp.where(jnp.isfinite(new), new, mean)

  mean = jax.tree.map(mix, mean, updates, is_leaf=is_none)
  seen = jax.tree.map(
    lambda m, u: u if m is None else m, mean, updates, is_leaf=is_none
  )
  return mean, seen


def _lead_to(weights: Any, params: Any, moves: Any, kept: Any) -> Any:
  """Returns updates from `params` to `weights`; `kept` entries have their own `moves`.

  Those are the optimizer's to the last bit. None in `kept` keeps a whole leaf.
  """

  def lead(kept, weight, leaf, move):
    if kept is None:
      return move
    return jnp.where(kept, move, weight.astype(move.dtype) - leaf.astype(move.dtype))

  return jax.tree.map(lead, kept, weights, params, moves, is_leaf=is_none)


@jax.custom_batching.custom_vmap
def _any_member(due: jax.Array) -> jax.Array:
  """Whether any member of a `vmap` is due: one answer, so `cond` stays a branch."""
  return due


@_any_member.def_vmap
def _(axis_size, in_batched, due):
  del axis_size, in_batched
  return _any_member(jnp.any(due)), False


def _map_like(function: Any, like: Any, tree: Any, *others: Any) -> Any:
  """Maps each subtree that has the structure of `like`, leaf by leaf with `like`.

  An optimizer keeps what belongs to the parameters in trees of their structure (optax:
  moments, histories, copies), with masked nodes where a leaf, or all below a node, is
  left out. All else is shared or of no parameter, and left as it is, as is a leaf whose
  place in `like` has None.

  Args:
    function: `(leaf of like, leaf of tree, *leaves of others) -> leaf`.
    like: tree like the parameters.
    tree: an optimizer's state.
    *others: trees of its structure.
  """
  owners, whole = jax.tree.flatten(like, is_leaf=is_none)
  states = jax.tree.leaves(tree, is_leaf=_is_masked_node)
  stops = is_leaf if any(map(_is_masked_node, states)) else is_none

  def owners_of(node):
    """The leaves of `like` that the leaves of a node belong to, else None."""
    leaves, treedef = jax.tree.flatten(node, is_leaf=stops)
    if treedef == whole:
      return owners
    if stops is is_none:
      return None
    try:
      below = treedef.flatten_up_to(like)
    except ValueError:  # another structure
      return None
    pairs = zip(leaves, below, strict=True)
    known = (stops(x) or jax.tree_util.all_leaves([y]) for x, y in pairs)
    return below if all(known) else None

  def of_node(node, *rest):
    below = owners_of(node)
    if below is None:
      return node
    leaves, treedef = jax.tree.flatten(node, is_leaf=stops)
    rest = [treedef.flatten_up_to(other) for other in rest]
    new = [
      leaf if owner is None or stops(leaf) else function(owner, leaf, *more)
      for owner, leaf, *more in zip(below, leaves, *rest, strict=True)
    ]
    return treedef.unflatten(new)

  return jax.tree.map(
    of_node, tree, *others, is_leaf=lambda node: owners_of(node) is not None
  )


def _check_state(inner_state: Any, params: Any) -> None:
  """Refuses states that hold one vector of all weights."""
  total = sum(leaf.size for leaf in jax.tree.leaves(params))
  rest = _map_like(lambda owner, leaf: None, params, inner_state)
  if any(leaf.shape == (total,) and total > 2 for leaf in jax.tree.leaves(rest)):
    raise ValueError(
      "`inner` must keep its moments in trees like the parameters where masks change, "
      f"got a vector of all {total} weights (`optax.flatten`?)."
    )


def _reset_moments(
  inner: optax.GradientTransformation, inner_state: Any, params: Any, changed: Any
) -> Any:
  """Sets moments to what `inner.init(params)` gives, where a mask changed.

  Subtrees of the state with the structure of the parameters belong to them. A leaf that
  has the shape of its parameter, or that with leading axes (a history, say), is reset
  entry by entry; what is shared between entries (factored moments, norms of a layer)
  stays. `changed` is a tree like `params`, the parameters after the change: bool
  leaves, True = start anew; None = nothing.
  """

  def reset(mask, old, new):
    if mask.ndim == 0 or jnp.shape(old)[-mask.ndim :] != mask.shape:
      return old
    mask = jnp.broadcast_to(mask, old.shape)
    return jnp.where(mask, jnp.asarray(new, old.dtype), old)

  return _map_like(reset, changed, inner_state, inner.init(params))


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
  fraction = checks.fraction("fraction", fraction)
  until = checks.fraction("until", until)
  end = round(until * num_steps)

  def schedule(count):
    count = jnp.asarray(count, jnp.int32)
    phase = jnp.float32(jnp.pi / max(end, 1)) * count.astype(jnp.float32)
    due = (count % every == 0) & (count < end)
    return jnp.where(due, jnp.float32(fraction / 2) * (1 + jnp.cos(phase)), 0)

  return schedule


def current_masks(opt_state: Any) -> Any:
  """The masks that an optimizer state holds, wherever in it they are.

  Args:
    opt_state: state of `static_sparsity`, `dynamic_sparsity` or of transformations
      around them.

  Returns:
    Tree like the parameters: bool leaves, True = trained; None = dense leaf. Of several
    masks of a leaf, what all of them leave alive.

  Raises:
    ValueError: if there is no such state.

  Example:
    >>> from eoi_jax import static_sparsity
    >>> tx = static_sparsity(optax.sgd(0.1), jnp.eye(2, dtype=bool))
    >>> tx = optax.chain(optax.clip(1.0), tx)
    >>> current_masks(tx.init(jnp.eye(2))).tolist()
    [[True, False], [False, True]]
  """
  kinds = (StaticSparsityState, DynamicSparsityState)
  nodes = jax.tree.leaves(opt_state, is_leaf=lambda node: isinstance(node, kinds))
  found = [
    jax.tree.map(_to_mask, node.masks, is_leaf=_is_compact)
    for node in nodes
    if isinstance(node, kinds)
  ]
  if not found:
    raise ValueError(
      "`opt_state` must hold a state of `static_sparsity` or `dynamic_sparsity`, got "
      f"{type(opt_state).__name__}."
    )
  return functools.reduce(_both, found)


def _to_mask(mask: Any) -> Any:
  """The bool mask; `optax.contrib.sam` makes an integer of it."""
  if _is_compact(mask):
    return mask.to_mask()
  return mask if mask.dtype == jnp.bool_ else mask.astype(bool)


def _both(left: Any, right: Any) -> Any:
  """Masks that leave alive what both do; None, also of a whole node, leaves all."""
  if left is None or right is None:
    return right if left is None else left
  if jax.tree_util.all_leaves([left]):
    return left & right
  return jax.tree.map(_both, left, right, is_leaf=lambda node: node is not left)
