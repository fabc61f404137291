"""The compiled part: training steps, many to a dispatch, and evaluation.

Everything here is pure and has no host in it. `Recipe` is static: runs with equal
recipes share one compiled program, so that starts and densities are compared at the
price of a single compilation.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from eoi_jax import apply_masks
from eoi_jax.layouts import named_leaves
from train.core.mesh import place_batch, place_state
from train.core.state import Recipe, TrainState, named_key, seed_axes
from train.data.datasets import Split
from train.data.images import augment, mix, normalize


class Sums(NamedTuple):
  """Sums over examples: divide by `count` for means."""

  loss: jax.Array
  correct: jax.Array
  count: jax.Array


class Norms(NamedTuple):
  """Euclidean norms over all leaves, of one step; dead weights count nothing."""

  grad: jax.Array
  update: jax.Array
  param: jax.Array


def example_losses(
  logits: jax.Array,
  shares: jax.Array,
  *,
  loss: str = "cross_entropy",
  smoothing: float = 0.0,
) -> jax.Array:
  """Returns the loss of each example, `[n]`.

  Args:
    logits: `[n, num_classes]`.
    shares: of the labels, likewise, with sums of 1.
    loss: "cross_entropy"; or "binary_cross_entropy", the mean over the classes of
      yes-or-no losses, for which every class of a share is a yes (Wightman et al.,
      2021, arXiv:2110.00476, section 2.3).
    smoothing: targets are `1 - smoothing` times what they were, and `smoothing` evenly
      over all classes (Szegedy et al., 2016, arXiv:1512.00567, section 7).
  """
  if loss == "cross_entropy":
    targets = optax.smooth_labels(shares, smoothing)
    return optax.softmax_cross_entropy(logits, targets)
  targets = optax.smooth_labels((shares > 0).astype(jnp.float32), smoothing)
  return optax.sigmoid_binary_cross_entropy(logits, targets).mean(-1)


def _sums(
  logits: jax.Array, shares: jax.Array, weights: jax.Array, **options: Any
) -> Sums:
  """Sums over a batch; examples of weight 0 are padding."""
  losses = example_losses(logits, shares, **options)
  correct = (logits.argmax(-1) == shares.argmax(-1)) & (weights > 0)
  return Sums(
    jnp.sum(losses * weights),
    jnp.sum(correct, dtype=jnp.int32),
    jnp.sum(weights > 0, dtype=jnp.int32),
  )


class StepResult(NamedTuple):
  """What one update has come from."""

  sums: Sums  # before it; of a mixed image the label of the larger share is a hit
  grads: Any  # tree like the parameters, of all weights, dead ones too
  updates: Any  # tree like the parameters: what was added to them


def prepare(
  key: jax.Array, batch: Split, *, recipe: Recipe
) -> tuple[jax.Array, jax.Array]:
  """Augments, normalizes and mixes a batch of uint8 images and int32 labels.

  Returns:
    Images, and shares of the labels, `[batch, num_classes]`; a function of `key`.
  """
  spec, settings = recipe.spec, recipe.augmentation
  key, key_mix = jax.random.split(key)
  white, cropped = float(spec.white), recipe.streamed
  images = augment(key, batch.images, settings, white=white, cropped=cropped)
  shares = jax.nn.one_hot(batch.labels, spec.num_classes, dtype=jnp.float32)
  return mix(key_mix, normalize(images, spec), shares, settings)


def train_step(
  state: TrainState, batch: Split, *, recipe: Recipe
) -> tuple[TrainState, StepResult]:
  """Does one update on uint8 images `[batch, ...]` and int32 labels `[batch]`."""
  settings, weights = recipe.optimizer, jnp.ones(batch.labels.shape, jnp.float32)
  examples = *prepare(step_key(state, "augment"), batch, recipe=recipe), weights
  options = {"loss": settings.loss, "smoothing": settings.label_smoothing}

  def loss_fn(params, batch_stats, examples, part):
    inputs, shares, weights = examples
    variables = state.variables | {"params": params, "batch_stats": batch_stats}
    rngs = {"dropout": jax.random.fold_in(step_key(state, "dropout"), part)}
    logits, changed = recipe.model.apply(
      variables, inputs, train=True, mutable=["batch_stats"], rngs=rngs
    )
    sums = _sums(logits, shares, weights, **options)
    return sums.loss / recipe.batch_size, (sums, changed.get("batch_stats", {}))

  grads, sums, batch_stats = _gradient(loss_fn, state, examples, recipe)
  tx = recipe.create_tx(state.masks, state.key)
  updates, opt_state = tx.update(
    grads, state.opt_state, state.params, value=sums.loss / recipe.batch_size
  )
  params = optax.apply_updates(state.params, updates)
  new = state._replace(
    step=state.step + 1, params=params, opt_state=opt_state, batch_stats=batch_stats
  )
  if state.averages is not None:
    averages = state.averages.update(
      params, batch_stats, new.masks, recipe.optimizer.ema
    )
    new = new._replace(averages=averages)
  return new, StepResult(sums, grads, updates)


def _gradient(
  loss_fn: Callable[..., Any], state: TrainState, examples: Any, recipe: Recipe
) -> tuple[Any, Sums, Any]:
  """Returns the gradient of a batch, its sums, and batch statistics after it.

  Of k = `optimizer.accumulate` micro-batches, one after another, gradients and sums add
  up, and statistics advance with each; j has the examples j, j + k, ..., so that every
  device has its part of each. `loss_fn` divides by the size of the whole batch.
  """
  gradient, count = jax.grad(loss_fn, has_aux=True), recipe.optimizer.accumulate
  if count == 1:
    grads, (sums, batch_stats) = gradient(state.params, state.batch_stats, examples, 0)
    return grads, sums, batch_stats

  def add(carry, micro_batch):
    grads, sums, batch_stats = carry
    examples, part = micro_batch
    examples = place_batch(examples, recipe.placement)
    new, (added, batch_stats) = gradient(state.params, batch_stats, examples, part)
    grads, sums = jax.tree.map(jnp.add, (grads, sums), (new, added))
    return (place_state(grads, recipe.placement), sums, batch_stats), None

  zeros = place_state(jax.tree.map(jnp.zeros_like, state.params), recipe.placement)
  parts = jax.tree.map(
    lambda x: x.reshape(-1, count, *x.shape[1:]).swapaxes(0, 1), examples
  )
  start = (zeros, zero_sums(), state.batch_stats)
  return jax.lax.scan(add, start, (parts, jnp.arange(count)))[0]


def _norms(masks: Any, step: StepResult) -> Norms:
  """Norms of a step, its parameters left out: those are known after the last one."""
  grads = optax.tree.norm(apply_masks(step.grads, masks))
  return Norms(grads, optax.tree.norm(step.updates), jnp.zeros(()))


def step_key(state: TrainState, name: str) -> jax.Array:
  """Returns the key of the next step for the purpose `name`."""
  return jax.random.fold_in(named_key(state.key, name), state.step)


def epoch_order(state: TrainState, size: int, *, recipe: Recipe) -> jax.Array:
  """Returns the order of `size` examples in the epoch that `state` is in.

  With `data.repeats` = k each stands k times in a row, and an epoch of equal length is
  the first part of them, as in DeiT's code (Hoffer et al., 2020, arXiv:1901.09335).
  """
  epoch = state.step // recipe.steps_per_epoch
  key = jax.random.fold_in(named_key(state.key, "epoch"), epoch)
  order = jax.random.permutation(key, size)
  repeats = recipe.augmentation.repeats
  return order if repeats == 1 else jnp.repeat(order, repeats)[:size]


@functools.partial(jax.jit, static_argnames="recipe", donate_argnames="state")
def train_chunk(
  state: TrainState, data: Split, count: jax.Array, sums: Sums, *, recipe: Recipe
) -> tuple[TrainState, Sums, Norms]:
  """Does `count` steps within one epoch, in one dispatch.

  `count` is traced: the last chunk of an epoch needs no second compilation, and a
  resumed run takes the very program of an uninterrupted one.

  Args:
    state: the state before, of one seed or of several (`train.core.state`); its buffers
      are donated.
    data: the whole training set, uint8, on the device; if `recipe.streamed`, the
      batches of this chunk, with a leading axis of at least `count`.
    count: number of steps, int32; they must not cross the end of an epoch.
    sums: what the sums begin with: `zero_sums`, or those of the chunk before.
    recipe: static settings.

  Returns:
    The state after; sums over all examples; norms of the last step's gradients and
    updates, and of the parameters after it; of several seeds with an axis of them.
  """
  chunk = functools.partial(_chunk, recipe=recipe)
  if state.key.ndim:
    axes = seed_axes(state)
    chunk = jax.vmap(chunk, (axes, 0, None, None), (axes, 0, 0))
  state, sums, norms = chunk(state, sums, data, count)
  return place_state(state, recipe.placement), sums, norms


def _chunk(
  state: TrainState, sums: Sums, data: Split, count: jax.Array, *, recipe: Recipe
) -> tuple[TrainState, Sums, Norms]:
  """The steps of a chunk for one seed."""
  streamed, size = recipe.streamed, data.labels.shape[0]
  order = None if streamed else epoch_order(state, size, recipe=recipe)

  def body(index, carry):
    state, sums, norms = carry
    rows = index  # of a stream: the batches of this chunk
    if order is not None:
      begin = (state.step % recipe.steps_per_epoch) * recipe.batch_size
      rows = jax.lax.dynamic_slice_in_dim(order, begin, recipe.batch_size)
    batch = Split(*(array[rows] for array in data))
    batch, masks = place_batch(batch, recipe.placement), state.masks
    state, step = train_step(state, batch, recipe=recipe)
    last = index == count - 1
    norms = jax.lax.cond(last, _norms, lambda *_: norms, masks, step)
    return state, jax.tree.map(jnp.add, sums, step.sums), norms

  zero = jnp.zeros(())
  start = (state, sums, Norms(zero, zero, zero))
  state, sums, norms = jax.lax.fori_loop(0, count, body, start)
  return state, sums, norms._replace(param=optax.tree.norm(state.params))


def zero_sums(shape: tuple[int, ...] = ()) -> Sums:
  """Returns sums over no example: `()` for one seed, `(seeds,)` for several."""
  loss: Any = np.zeros(shape, np.float32)
  zero: Any = np.zeros(shape, np.int32)
  return Sums(loss, zero, zero)


@functools.partial(jax.jit, static_argnames=("recipe", "batch_size"))
def evaluate(
  state: TrainState,
  data: Split,
  size: jax.Array,
  *,
  recipe: Recipe,
  batch_size: int = 1000,
) -> Sums:
  """Sums loss and hits over a whole split, in batches, in one dispatch.

  Splits of equal shapes share a program: `size` is traced, int32, and what lies beyond
  it is padding, as are examples of label -1. Of several seeds each sum has an axis.
  """
  length = data.labels.shape[0]
  devices = 1 if recipe.placement is None else recipe.placement.mesh.size
  batch_size = -(-min(batch_size, length) // devices) * devices
  num_batches = -(-size // batch_size)

  def over_batches(state, data, size, num_batches):
    def body(index, sums):
      rows = index * batch_size + jnp.arange(batch_size)
      batch = Split(*(a[jnp.minimum(rows, length - 1)] for a in data))
      images, labels = place_batch(batch, recipe.placement)
      weights = ((rows < size) & (labels >= 0)).astype(jnp.float32)
      inputs, num_classes = normalize(images, recipe.spec), recipe.spec.num_classes
      logits = recipe.model.apply(state.variables, inputs, train=False)
      shares = jax.nn.one_hot(labels, num_classes, dtype=jnp.float32)
      return jax.tree.map(jnp.add, sums, _sums(logits, shares, weights))

    return jax.lax.fori_loop(0, num_batches, body, zero_sums())

  if state.key.ndim:
    over_batches = jax.vmap(over_batches, (seed_axes(state), None, None, None))
  return over_batches(state, data, size, num_batches)


@jax.jit
def count_weights(state: TrainState) -> tuple[jax.Array, jax.Array]:
  """Counts live weights, and dead ones that are not zero, of all leaves and seeds."""
  weights, masks = named_leaves(state.params), named_leaves(state.masks)
  live = {name: mask for name, mask in masks.items() if mask is not None}
  revived = [(weights[name] != 0) & ~mask for name, mask in live.items()]

  def count(parts):  # one sum over all leaves compiles faster than one for each
    flat = [jnp.zeros(1, bool), *(part.reshape(-1) for part in parts)]
    return jnp.sum(jnp.concatenate(flat), dtype=jnp.int32)

  return count(live.values()), count(revived)
