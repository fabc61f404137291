"""Dynamic sparse training: masks that change while any optax optimizer runs."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from eoi_jax import _checks as checks
from eoi_jax import _kernels as kernels_lib
from eoi_jax._kernels import LeafPredicate
from eoi_jax.masks.trees import apply_masks, check_masks
from eoi_jax.optim import rules as dynamic_rules
from eoi_jax.optim._change import Change, Restore, Step, change_if
from eoi_jax.optim._newcomers import withhold_wild
from eoi_jax.optim.rules import Rule
from eoi_jax.optim.schedule import Schedule
from eoi_jax.optim.static import StaticSparsityState, masked_update


class DynamicSparsityState(NamedTuple):
  """State of `dynamic_sparsity`.

  Attributes:
    inner_state: state of the wrapped transformation.
    masks: tree like the parameters: bool leaves, True = trained; None = dense leaf.
    count: number of updates so far, int32.
    num_grown: tree like `masks`: number of weights grown so far, int32 `[layers]`.
    key_data: data of the PRNG key, None without one.
    mean: tree like `masks`: running mean of the dense gradients, float32; None without.
  """

  inner_state: Any
  masks: Any
  count: jax.Array
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
  is_stacked: LeafPredicate = kernels_lib.never_stacked,
) -> optax.GradientTransformationExtraArgs:
  """Moves live weights to better places now and then, under any optimizer.

  Between changes of the masks it is `static_sparsity`. At a change the optimizer's step
  is done first; then the live weights of lowest drop score are dropped and as many
  candidates of highest growth score grown (`evolve_masks`). Dropped weights are exactly
  zero after the update, new weights start at zero, and the moments of both at their
  initial value, in any optax state. A new weight whose first step is more than a
  thousand times any other of its layer starts one step later.

  `update` needs the parameters, and as `updates` the dense gradients: those with
  respect to all weights of the masked network. All that changes is in the state. The
  change is under `lax.cond`, also when `vmap` runs several networks: steps without a
  change pay nothing.

  Args:
    inner: any optax transformation.
    masks: tree like the parameters: bool leaves, True = trained; None = dense leaf.
    schedule: number of steps done (1, 2, ...) to the fraction of the live weights that
      is replaced after that step, 0 = no change; `drop_schedule`, say.
    drop: "magnitude", "gradient", "random" or `(key, weights, updates) -> scores` of
      one layer: the lowest are dropped.
    grow: likewise: the highest are grown.
    scope: "layer": every layer keeps its count exactly. "global": all masked weights
      compete, the total is kept exactly, and each layer keeps its best live weight.
    regrow: whether a weight that was just dropped may come back, as published.
    mean_decay: of the running mean of the dense gradients that both rules see, in
      `[0, 1)`; 0 shows them the last gradients alone. The mean starts at zero and takes
      the memory of the masked leaves; growth by it is that of sparse momentum.
    skip_step: whether the optimizer's step is left out where masks change, as
      published.
    restore: `(params, masks) -> params`, done after growth: `restore_isometry`, say.
      It may move live weights only.
    key: a PRNG key for rules that draw.
    is_stacked: `(name, leaf) -> bool`, which leaves have a leading axis of layers,
      each with a count of its own.

  Returns:
    A transformation with state `DynamicSparsityState`; extra arguments of `update` are
    passed on to `inner`.

  Raises:
    ValueError: if an option is not known or `key` is missing; from `init`, if the masks
      do not fit the parameters; from `update`, if `params` is missing.

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
  if not isinstance(inner, optax.GradientTransformation):
    raise ValueError(f"`inner` must be an optax.GradientTransformation, got {inner!r}.")
  for name, value in (("schedule", schedule), ("restore", restore)):
    if not callable(value) and (name, value) != ("restore", None):
      raise ValueError(f"`{name}` must be a function, got {value!r}.")
  if not 0 <= checks.number("mean_decay", mean_decay) < 1:
    raise ValueError(f"`mean_decay` must be in [0, 1), got {mean_decay}.")
  inner = optax.with_extra_args_support(inner)
  rules = dynamic_rules.make_rules(drop, grow, scope, regrow, has_key=key is not None)
  impl = None if key is None else jax.random.key_impl(key)
  change = Change(inner, rules, bool(skip_step), restore, impl, is_stacked)

  def init_fn(params):
    used = kernels_lib.fill_tree(params, check_masks(params, masks))
    return DynamicSparsityState(
      inner_state=inner.init(apply_masks(params, used)),
      masks=used,
      count=jnp.zeros((), jnp.int32),
      num_grown=kernels_lib.fill_tree(params, _zero_counts(params, used, is_stacked)),
      key_data=None if key is None else jax.random.key_data(key),
      mean=_zero_mean(params, used) if mean_decay else None,
    )

  def update_fn(updates, state, params=None, **extra_args):
    if params is None:
      raise ValueError("`params` must be given to `update` of `dynamic_sparsity`.")
    count = jnp.asarray(optax.safe_increment(state.count))
    fraction = jnp.asarray(schedule(count), jnp.float32)
    stepped, inner_state = masked_update(
      inner, updates, state.inner_state, params, state.masks, **extra_args
    )
    was_due = (state.count > 0) & (jnp.asarray(schedule(state.count)) > 0)
    stepped = withhold_wild(was_due, stepped, params, state.masks)
    mean, seen = state.mean, updates
    if mean_decay:
      mean, seen = _blend(mean_decay, mean, updates)
    step = Step(stepped, inner_state, seen, params, state, count, fraction)
    updates, inner_state, masks, num_grown = change_if(change, fraction > 0, step)
    return updates, DynamicSparsityState(
      inner_state, masks, count, num_grown, state.key_data, mean
    )

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _zero_counts(params: Any, masks: Any, is_stacked: LeafPredicate) -> dict[str, Any]:
  """A zero for each layer of each masked leaf."""
  leaves = kernels_lib.named_leaves(params)
  counts = {}
  for name, mask in kernels_lib.named_leaves(masks).items():
    if mask is not None:
      layers = len(mask) if is_stacked(name, leaves[name]) else 1
      counts[name] = jnp.zeros(layers, jnp.int32)
  return counts


def _zero_mean(params: Any, masks: Any) -> Any:
  """Zeros for each masked weight."""
  zeros = {
    name: jnp.zeros(mask.shape, jnp.float32)
    for name, mask in kernels_lib.named_leaves(masks).items()
    if mask is not None
  }
  return kernels_lib.fill_tree(params, zeros)


def _blend(decay: float, mean: Any, updates: Any) -> tuple[Any, Any]:
  """The mean after one more gradient, and the gradients with it in their place."""
  gradients, means = map(kernels_lib.named_leaves, (updates, mean))
  blended = {
    name: decay * old + (1 - decay) * gradients[name].astype(old.dtype)
    for name, old in means.items()
    if old is not None and not kernels_lib.is_leaf(gradients[name])
  }
  fill = functools.partial(kernels_lib.fill_tree, values=blended, keep=True)
  return fill(mean), fill(updates)


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
  found = [node.masks for node in nodes if isinstance(node, kinds)]
  if not found:
    raise ValueError(
      "`opt_state` must hold a state of `static_sparsity` or `dynamic_sparsity`, got "
      f"{type(opt_state).__name__}."
    )
  masks, *rest = found
  for other in rest:
    masks = jax.tree.map(_both, masks, other, is_leaf=kernels_lib.is_leaf)
  return masks


def _both(left, right):
  if left is None or right is None:
    return right if left is None else left
  return left & right
