"""Optimizers by name under which dead weights stay zero, and masks that change."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import eoi_jax

METHODS = ("static", "set", "rigl")


class OptimizerSettings(NamedTuple):
  """The section `optimizer` of a config, hashable: a compiled step depends on it."""

  name: str
  learning_rate: float
  momentum: float
  nesterov: bool
  weight_decay: float
  schedule: str
  warmup: float = 0.0
  label_smoothing: float = 0.0
  clip_norm: float = 0.0
  loss: str = "cross_entropy"


class DynamicSettings(NamedTuple):
  """The section `dynamic` of a config, hashable; by default masks stay."""

  method: str = "static"
  fraction: float = 0.3
  every: int = 100
  until: float = 0.75
  scope: str = "layer"
  mean_decay: float = 0.0
  skip_step: bool = False
  isometry_steps: int = 0
  isometry_scale: float = 0.0


STATIC = DynamicSettings()


def _step(learning_rate, num_steps):
  """A tenth at one half, a hundredth at three quarters of the training."""
  drops = {num_steps // 2: 0.1, (3 * num_steps) // 4: 0.1}
  return optax.piecewise_constant_schedule(learning_rate, drops)


def _sgd(settings, schedule):
  return optax.chain(
    optax.add_decayed_weights(settings.weight_decay),
    optax.sgd(schedule, settings.momentum, settings.nesterov),
  )


def _adam(settings, schedule):
  return optax.chain(
    optax.add_decayed_weights(settings.weight_decay),
    optax.adam(schedule, b1=settings.momentum, nesterov=settings.nesterov),
  )


def _adamw(settings, schedule):
  return optax.adamw(
    schedule,
    b1=settings.momentum,
    weight_decay=settings.weight_decay,
    nesterov=settings.nesterov,
  )


SCHEDULES = {
  "constant": lambda learning_rate, _: optax.constant_schedule(learning_rate),
  "step": _step,
  "cosine": optax.cosine_decay_schedule,
}
OPTIMIZERS = {"sgd": _sgd, "adam": _adam, "adamw": _adamw}


def create_schedule(settings: OptimizerSettings, num_steps: int) -> optax.Schedule:
  """Returns the learning rate as a function of the step, over `num_steps` steps.

  In the first `warmup * num_steps` steps it is the schedule's times a factor that rises
  linearly to 1.
  """
  schedule = SCHEDULES[settings.schedule](settings.learning_rate, num_steps)
  length = round(settings.warmup * num_steps)
  if length < 2:
    return schedule
  factor = optax.linear_schedule(1 / length, 1.0, length - 1)
  return lambda step: schedule(step) * factor(step)


@functools.partial(jax.jit, static_argnums=(0, 1))
def learning_rate(settings: OptimizerSettings, num_steps: int, step: int) -> jax.Array:
  """Returns the learning rate of a step, in one program whatever the schedule."""
  return jnp.asarray(create_schedule(settings, num_steps)(step), jnp.float32)


def create_optimizer(
  settings: OptimizerSettings,
  num_steps: int,
  masks: Any,
  *,
  key: jax.Array | None = None,
  dynamic: DynamicSettings = STATIC,
  model: Any = None,
) -> optax.GradientTransformation:
  """Builds the optimizer under which dead weights stay exactly zero.

  Args:
    settings: name, learning rate, ...; `momentum` is b1 for Adam. Weight decay acts
      on all parameters: through the gradient for sgd and adam, decoupled for adamw.
      The gradient of all live weights together is clipped to `clip_norm`, before that.
    num_steps: length of the training, for the schedule.
    masks: tree like the parameters; bool leaves, True = trained, None = dense.
    key: a PRNG key for masks that change at random; the state keeps it.
    dynamic: whether and how masks change.
    model: the network whose kernels these are; masks that change need it.

  Returns:
    An optax transformation with the masks in its state.
  """
  tx = OPTIMIZERS[settings.name](settings, create_schedule(settings, num_steps))
  if settings.clip_norm:
    tx = optax.chain(optax.clip_by_global_norm(settings.clip_norm), tx)
  if dynamic.method == "static":
    return eoi_jax.static_sparsity(tx, masks)
  restore = None
  if dynamic.isometry_steps:
    restore = functools.partial(
      eoi_jax.optim.restore_isometry,
      layouts=model.layouts,
      scale=dynamic.isometry_scale or None,
      num_steps=dynamic.isometry_steps,
    )
  names = ("fraction", "every", "until", "scope", "skip_step")
  options: dict[str, Any] = {name: getattr(dynamic, name) for name in names}
  options |= {"num_steps": num_steps, "restore": restore, "layouts": model.layouts}
  if dynamic.method == "set":
    assert key is not None
    return eoi_jax.set_evolution(tx, masks, key=key, **options)
  options["mean_decay"] = dynamic.mean_decay
  return eoi_jax.rigl(tx, masks, **options)


def count_grown(opt_state: Any) -> dict[str, jax.Array]:
  """Counts the weights that were grown since the start.

  Args:
    opt_state: of `create_optimizer`, of one seed or of several.

  Returns:
    `{"grown_weights": number}`, one for each seed; empty where masks stay.
  """
  if not isinstance(opt_state, eoi_jax.optim.DynamicSparsityState):
    return {}
  return {"grown_weights": _total(opt_state.num_grown)}


@jax.jit
def _total(num_grown: Any) -> jax.Array:
  totals = [jnp.sum(counts, axis=-1) for counts in jax.tree.leaves(num_grown)]
  return jnp.sum(jnp.stack(totals), axis=0)
