"""Static sparse training under any optax optimizer."""

from typing import Any, NamedTuple

import optax

from eoi_jax.layouts.trees import named_leaves
from eoi_jax.optim import _compact
from eoi_jax.optim._masked import (
  as_transformation,
  check_trees,
  fit_masks,
  is_none,
  keep_live,
  masked_update,
)


class StaticSparsityState(NamedTuple):
  """State of `static_sparsity`.

  Attributes:
    inner_state: state of the wrapped transformation.
    masks: tree like the parameters: bool leaves, True = trained; None = dense leaf.
      With `compact=True` a `LiveWeights` stands in place of each mask.
  """

  inner_state: Any
  masks: Any


def static_sparsity(
  inner: optax.GradientTransformation, masks: Any, *, compact: bool = False
) -> optax.GradientTransformationExtraArgs:
  """Keeps dead weights at exact zero through any optimizer.

  Masks the updates and the parameters before `inner`, so that norms, moments,
  clipping and decay see live weights only, and the updates after it, so that nothing
  that `inner` does (weight decay, noise, orthogonalization) moves a dead weight. A
  dead weight that is not zero when training starts is brought to zero by the first
  update; one that is not finite is refused. nan and inf in dead gradients are dropped.

  The masks live in the state, as copies: they travel with it through `jit`, `vmap`,
  sharding, donation and checkpoints, and are no constants of the compiled program.
  For `optax.tree_map_params` they are not parameters. Functions that read the state of
  the optimizer take `state.inner_state`, for example
  `optax.contrib.schedule_free_eval_params(state.inner_state, params)`.

  It must come last in `optax.chain`: what changes its updates afterwards keeps dead
  weights from reaching zero. Write `static_sparsity(optax.chain(...), masks)`.
  `optax.lookahead` may stand around it if dead weights start at zero, not within, and
  so may `optax.contrib.mechanize`.
  Functions among the extra arguments (`grad_fn` of an opaque SAM) are passed on as they
  are: let them mask what they return.

  Args:
    inner: any optax transformation, or an object with `init` and `update`, such as
      `optax.MultiSteps`.
    masks: tree like the parameters: bool leaves, True = trained; None = dense leaf. Or
      a function `params -> masks`. Under `optax.partition` and `optax.masked` the
      masks of the whole tree will do.
    compact: whether `inner` sees each masked leaf as the vector of its live weights, in
      row-major order, so that its state is that much smaller. `inner` must treat a
      weight the same wherever it stands: SGD, Adam, AdamW, RMSprop, Lion and the like,
      clipping by value or by the norm of a leaf or of the tree. Others (Muon,
      Adafactor, noise, decay by the rank of a leaf) are refused by `init`, which tries
      a few steps of `inner` on a small copy of the tree, and cannot see what would
      begin after many. The masks must then be concrete: their
      counts are shapes. Not under `nnx.Optimizer`, which takes its states apart.

  Returns:
    A transformation with state `StaticSparsityState`; extra arguments of `update` are
    passed on to `inner`.

  Raises:
    ValueError: if `inner` is no optax transformation; from `init`, if structures,
      shapes or dtypes of the masks do not fit the parameters (the leaf is named), or
      `inner` does not work with `compact`; from `update`, if updates or parameters do
      not fit the masks.

  Example:
    >>> import jax.numpy as jnp
    >>> params = {"w": jnp.array([1.0, 0.0])}
    >>> tx = static_sparsity(optax.sgd(0.1, 0.9), {"w": jnp.array([True, False])})
    >>> updates, state = tx.update({"w": jnp.ones(2)}, tx.init(params), params)
    >>> optax.apply_updates(params, updates)["w"].tolist()[1]
    0.0
  """
  inner = as_transformation(inner)

  def init_fn(params):
    used = fit_masks(params, masks, copy=not compact)
    if not named_leaves(params):  # the placeholder of `optax.tree_map_params`
      return StaticSparsityState(inner.init(params), used)
    if not compact:
      return StaticSparsityState(inner.init(keep_live(used, params)), used)
    live = _compact.find_live(used)
    _compact.check_elementwise(inner, params, live)
    return StaticSparsityState(inner.init(_compact.gather(live, params)), live)

  def update_fn(updates, state, params=None, **extra_args):
    step, is_leaf = masked_update, is_none
    if compact:
      step, is_leaf = _compact.update, _compact.is_end
    check_trees(state.masks, updates, params, is_leaf=is_leaf, front=not compact)
    updates, inner_state = step(
      inner, updates, state.inner_state, params, state.masks, **extra_args
    )
    return updates, StaticSparsityState(inner_state, state.masks)

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)
