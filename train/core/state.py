"""The state of a training run, of one seed or of several at once.

A state of several seeds is the state of one with an axis of seeds in front of every
array. Counters (integers without a shape, such as the step) have none: they are the
same for all seeds, so that what depends on them alone is computed once, and a
`lax.cond` on them stays a branch.
"""

import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import eoi_jax
from train.core.mesh import Placement
from train.core.optimizers import STATIC, Settings, create_optimizer
from train.data.datasets import DatasetSpec
from train.data.images import Augmentation


class Recipe(NamedTuple):
  """What a compiled step depends on besides its arguments, hashable."""

  model: Any  # the network
  spec: DatasetSpec  # the data set's constants
  optimizer: Settings  # the section of the config
  batch_size: int  # examples a step
  steps_per_epoch: int  # whole batches in the training set
  num_steps: int  # length of the training
  augmentation: Augmentation = Augmentation()  # how training images change
  streamed: bool = False  # whether the host brings the batches of each chunk
  placement: Placement | None = None  # where arrays lie on several devices, None on one
  dynamic: Settings = STATIC  # the section of the config
  pruning: tuple[Any, Any] | None = None  # of `pruning_of`, for the method "gmp"

  def create_tx(self, masks: Any, key: jax.Array) -> Any:
    """Returns the optimizer of optax; masks and key are those of the start."""
    return create_optimizer(
      self.optimizer,
      self.num_steps,
      masks,
      key=key,
      dynamic=self.dynamic,
      pruning=self.pruning,
      model=self.model,
    )


class Averages(NamedTuple):
  """Exponential running means over the steps; dead weights are exactly zero.

  They start from the values at step 0 and are not divided by the sum of their weights,
  as in DeiT's code. A weight that is dropped is forgotten at once.
  """

  params: Any
  batch_stats: Any

  def update(
    self, params: Any, batch_stats: Any, masks: Any, decay: float
  ) -> "Averages":
    """Returns the means after a step that ends with these values and masks."""
    new: Any = optax.incremental_update(Averages(params, batch_stats), self, 1 - decay)
    return new._replace(params=eoi_jax.apply_masks(new.params, masks))


class TrainState(NamedTuple):
  """All that changes in a training run, and all that a checkpoint needs."""

  step: jax.Array  # number of updates done, int32
  params: Any  # the network's parameters; dead weights are exactly zero
  opt_state: Any  # the optimizer's state, of `create_optimizer`: it holds the masks
  batch_stats: Any  # running statistics of normalization layers, {} without any
  key: jax.Array  # the key of the training; keys of epochs and steps are folded into it
  layouts: Any  # places of the blocks of `model.blocks`; {} without
  averages: Averages | None = None  # of parameters and statistics; None without

  @property
  def variables(self) -> dict[str, Any]:
    """What the network is applied to."""
    return {n: getattr(self, n) for n in ("params", "batch_stats", "layouts")}

  @property
  def masks(self) -> Any:
    """Tree like `params`: bool leaves, True = trained, or None = dense leaf."""
    return eoi_jax.current_masks(self.opt_state)

  @property
  def evaluated(self) -> "TrainState":
    """The state that evaluations see: with the averages in place, if there are any."""
    return self if self.averages is None else self._replace(**self.averages._asdict())


def named_key(key: jax.Array, name: str) -> jax.Array:
  """Returns the key for the purpose `name`, whatever other purposes there are."""
  return jax.random.fold_in(key, zlib.crc32(name.encode()))


@jax.jit
def copy(state: Any) -> Any:
  """Returns a state in memory of its own: a training step takes that of its state."""
  return jax.tree.map(jnp.copy, state)


def seed_axes(state: Any) -> Any:
  """Returns where `jax.vmap` finds the seeds of a state of several."""
  return jax.tree.map(lambda leaf: 0 if leaf.ndim else None, state)


def map_seeds(function: Callable[[jax.Array], Any], keys: jax.Array) -> Any:
  """Builds the state of several seeds: `function` makes that of one from its key."""
  alone = jax.eval_shape(function, keys[0])
  axes = jax.tree.map(lambda leaf: None if _is_counter(leaf) else 0, alone)
  return jax.vmap(function, out_axes=axes)(keys)


def stack_seeds(states: list[Any]) -> Any:
  """Joins the states of single seeds."""
  return jax.tree.map(
    lambda *leaves: leaves[0] if _is_counter(leaves[0]) else jnp.stack(leaves), *states
  )


def take_seed(state: Any, index: int) -> Any:
  """Returns one seed's part of a state of several; a state of one as it is."""
  several = bool(state.key.ndim)
  return jax.tree.map(lambda x: x[index] if several and x.ndim else x, state)


def _is_counter(leaf: Any) -> bool:
  return leaf.ndim == 0 and jnp.issubdtype(leaf.dtype, jnp.integer)
