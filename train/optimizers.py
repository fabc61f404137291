"""Optimizers and learning-rate schedules by name, all from optax."""

from typing import NamedTuple

import jax
import optax

from eoi_jax._kernels import LeafPredicate, never_stacked
from train.dynamic import STATIC, DynamicSettings, keep_sparse


class OptimizerSettings(NamedTuple):
  """Plain values: hashable, so that a compiled step may depend on them.

  `configs/default.py` explains them; by default there is no warm-up, no smoothing and
  no clipping.
  """

  name: str
  learning_rate: float
  momentum: float
  nesterov: bool
  weight_decay: float
  schedule: str
  warmup: float = 0.0
  label_smoothing: float = 0.0
  clip_norm: float = 0.0


def _constant(learning_rate, num_steps):
  del num_steps
  return optax.constant_schedule(learning_rate)


def _step(learning_rate, num_steps):
  """A tenth at one half, a hundredth at three quarters of the training."""
  drops = {num_steps // 2: 0.1, (3 * num_steps) // 4: 0.1}
  return optax.piecewise_constant_schedule(learning_rate, drops)


def _cosine(learning_rate, num_steps):
  return optax.cosine_decay_schedule(learning_rate, num_steps)


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


SCHEDULES = {"constant": _constant, "step": _step, "cosine": _cosine}
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


def create_optimizer(
  settings: OptimizerSettings,
  num_steps: int,
  masks,
  *,
  key: jax.Array | None = None,
  dynamic: DynamicSettings = STATIC,
  is_stacked: LeafPredicate = never_stacked,
) -> optax.GradientTransformation:
  """Builds the optimizer under which dead weights stay exactly zero.

  Args:
    settings: name, learning rate, ...; `momentum` is b1 for Adam. Weight decay acts
      on all parameters: through the gradient for sgd and adam, decoupled for adamw.
      The gradient of all live weights together is clipped to `clip_norm`, before that.
    num_steps: length of the training, for the schedule.
    masks: tree like the parameters; bool leaves, True = trained, None = dense.
    key: a PRNG key for masks that move at random; the state keeps it.
    dynamic: whether and how masks move.
    is_stacked: `(name, leaf) -> bool`, which leaves hold several layers.

  Returns:
    An optax transformation.
  """
  tx = OPTIMIZERS[settings.name](settings, create_schedule(settings, num_steps))
  if settings.clip_norm:
    tx = optax.chain(optax.clip_by_global_norm(settings.clip_norm), tx)
  options = {"num_steps": num_steps, "key": key, "is_stacked": is_stacked}
  return keep_sparse(tx, masks, settings=dynamic, **options)
