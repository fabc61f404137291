"""Optimizers and schedules by name, under which dead weights stay zero."""

import functools
import inspect
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
from ml_collections import FrozenConfigDict

import eoi_jax
from eoi_jax.layouts import fill_tree, named_leaves
from train.core.console import UserError, one_line
from train.core.own import written_arguments

MOVING = ("set", "rigl", "srigl")  # drop as many weights as they grow
METHODS = ("static", *MOVING, "gmp")


# A section of a config, hashable: a compiled step depends on it.
Settings = Any
STATIC: Settings = FrozenConfigDict({"method": "static"})

MAIN = ("sgd", "adam", "adamw", "lion", "lamb", "muon")


def _find_optimizers() -> dict[str, Callable[..., Any]]:
  """The functions of optax that make an optimizer of a learning rate, by name."""
  # `schedule_free*` evaluates other weights than it trains; the `beta` of
  # `optimistic_gradient_descent` is no momentum.
  others = ("_", "scale_by_", "schedule_free", "optimistic_gradient")
  found: dict[str, Callable[..., Any]] = dict.fromkeys(MAIN, optax.sgd)
  for module in (optax.contrib, optax):
    for name, function in inspect.getmembers(module, inspect.isfunction):
      rates = "learning_rate" in inspect.signature(function).parameters
      if rates and not name.startswith(others):
        found[name] = function
  return found


def _step_schedule(init_value: float, decay_steps: int) -> optax.Schedule:
  """A tenth at one half, a hundredth at three quarters of the training."""
  drops = {decay_steps // 2: 0.1, (3 * decay_steps) // 4: 0.1}
  return optax.piecewise_constant_schedule(init_value, drops)


def _find_schedules() -> dict[str, Callable[..., optax.Schedule]]:
  """The schedules of optax by name, without "decay" and "schedule" at its end."""
  return {"constant": optax.constant_schedule, "step": _step_schedule} | {
    re.sub("(_decay)?(_schedule)?$", "", name): function
    for name, function in inspect.getmembers(optax.schedules, inspect.isfunction)
    if name.endswith(("_schedule", "_decay"))
  }


OPTIMIZERS, SCHEDULES = _find_optimizers(), _find_schedules()

# What optax calls the fields of the config. An optimizer without such an argument has
# no momentum; its weight decay acts through the gradient.
_ARGUMENTS = {
  "momentum": ("momentum", "b1", "beta"),  # the first of them
  "nesterov": ("nesterov",),
  "weight_decay": ("weight_decay", "weight_decay_rate", "adam_weight_decay"),
}

# Optax mixes integers and floats itself, which a strict caller need not hear of.
_PROMOTION = functools.partial(jax.numpy_dtype_promotion, "standard")


def _arguments(
  function: Callable[..., Any], field: str, text: str, fixed: dict, defaults: dict
) -> dict[str, Any]:
  """Joins the arguments of a function of optax: those of `text` in a field, and ours.

  `fixed` has the value of an argument and the field that sets it, which `text` must
  not; `defaults` the value where `text` gives none.
  """
  parameters = inspect.signature(function).parameters
  fixed, defaults = (
    {name: value for name, value in given.items() if name in parameters}
    for given in (fixed, defaults)
  )
  free = [name for name in parameters if name not in fixed]
  options = written_arguments(field, text, free)
  for name in options:
    if name in fixed:
      raise UserError(
        f"`{field}` must not give {name}, which `{fixed[name][1]}` sets, got {text!r}."
      )
    if name not in parameters:
      raise UserError(
        f"`{field}` must give arguments of {function.__name__} ({', '.join(free)}), "
        f"got {text!r}."
      )
  known = {name: value for name, (value, _) in fixed.items()} | defaults | options
  for name, parameter in parameters.items():
    if name not in known and parameter.default is inspect.Parameter.empty:
      raise UserError(
        f"`{field}` must give {name}, which {function.__name__} needs, got {text!r}."
      )
  return known


def create_schedule(settings: Settings, num_steps: int) -> optax.Schedule:
  """Returns the learning rate as a function of the step, over `num_steps` steps.

  `learning_rate` is its highest value; lengths are those of the training unless
  `schedule_options` says otherwise. In the first `warmup * num_steps` steps the rate
  rises linearly: as the schedule does it, or else by a factor that rises to 1.

  Raises:
    UserError: if `schedule_options` does not fit the schedule.
  """
  function = SCHEDULES[settings.schedule]
  length = max(round(settings.warmup * num_steps), 1) if settings.warmup else 0
  parameters = inspect.signature(function).parameters
  names = ("peak_value", "init_value", "value")
  rate = next((name for name in names if name in parameters), "")
  fixed: dict[str, Any] = {rate: (settings.learning_rate, "optimizer.learning_rate")}
  if length:
    fixed["warmup_steps"] = (length, "optimizer.warmup")
  lengths = dict.fromkeys(("decay_steps", "transition_steps"), num_steps)
  defaults = lengths | ({"init_value": 0.0} if rate == "peak_value" else {})
  field, text = "optimizer.schedule_options", settings.schedule_options
  arguments = _arguments(function, field, text, fixed, defaults)
  try:
    if "cosine_kwargs" in arguments:  # cycles, each with arguments of its own
      cycle = {"init_value": 0.0, "warmup_steps": 0}
      cycle["peak_value"] = settings.learning_rate
      arguments["cosine_kwargs"] = [cycle | own for own in arguments["cosine_kwargs"]]
    schedule = function(**arguments)
    with _PROMOTION():
      jax.eval_shape(schedule, jnp.int32(0))
  except Exception as error:  # of many kinds, as the arguments are
    raise UserError(
      f"`optimizer.schedule` = {settings.schedule!r} over {num_steps} steps with "
      f"`{field}` = {text!r}: {one_line(error)[:200]}"
    ) from error
  if length < 2 or "warmup_steps" in parameters:
    return schedule
  factor = optax.linear_schedule(1 / length, 1.0, length - 1)
  return lambda step: schedule(step) * factor(step)


def with_constant_rate(settings: Settings) -> Settings:
  """Returns the settings of an optimizer with a schedule of no length."""
  constant = {"schedule": "constant", "schedule_options": "", "warmup": 0.0}
  return FrozenConfigDict({**settings, **constant})


@functools.partial(jax.jit, static_argnums=(0, 1))
def learning_rate(settings: Settings, num_steps: int, step: int) -> jax.Array:
  """Returns the learning rate of a step, in one program whatever the schedule."""
  return jnp.asarray(create_schedule(settings, num_steps)(step), jnp.float32)


def optimizer_arguments(settings: Settings) -> dict[str, Any]:
  """Returns what the optimizer's function of optax is called with, but for the rate.

  Raises:
    UserError: if `options` does not fit it.
  """
  fixed: dict[str, Any] = {
    "learning_rate": (None, "optimizer.learning_rate"),
    "key": (None, "seed"),
  }
  function = OPTIMIZERS[settings.name]
  parameters = inspect.signature(function).parameters
  for field, names in _ARGUMENTS.items():
    known = [name for name in names if name in parameters]
    known = known[:1] if field == "momentum" else known
    fixed |= dict.fromkeys(known, (getattr(settings, field), f"optimizer.{field}"))
  field, text = "optimizer.options", settings.options
  arguments = _arguments(function, field, text, fixed, {})
  del arguments["learning_rate"]
  return arguments


def describe_optimizer(settings: Settings) -> str:
  """Returns the call of optax that the settings stand for, in one line."""
  arguments = [f"{n}={x!r}" for n, x in optimizer_arguments(settings).items() if x]
  rate = f"{settings.schedule} {settings.learning_rate:g}"
  return f"{settings.name}({', '.join([rate, *arguments])})"


@functools.lru_cache(maxsize=64)
def check_optimizer(settings: Settings) -> None:
  """Checks the options of an optimizer; what is not of `MAIN` is tried on shapes.

  Raises:
    UserError: if an option does not fit, or updates need more than gradients,
      parameters and the loss.
  """
  optimizer_arguments(settings)
  if settings.name in MAIN and not settings.options:
    return
  settings = with_constant_rate(settings)
  params = {"kernel": jnp.zeros((8, 4)), "bias": jnp.zeros(4)}

  def update():
    masks, key = {"kernel": None, "bias": None}, jax.random.key(0)
    tx = create_optimizer(settings, 1, masks, key=key)
    return tx.update(params, tx.init(params), params, value=jnp.zeros(()))

  try:
    with _PROMOTION():
      jax.eval_shape(update)
  except UserError:
    raise
  except Exception as error:  # of many kinds, as optimizers are
    raise UserError(
      "`optimizer.name` must be an optimizer that takes a schedule, gradients, "
      f"parameters and the loss, with `optimizer.options` = {settings.options!r}, got "
      f"{settings.name!r}: {one_line(error)[:200]}"
    ) from error


def _create_inner(
  settings: Settings, num_steps: int, masks: Any, key: Any, model: Any
) -> optax.GradientTransformation:
  """The optimizer itself, which knows nothing of masks but their tree."""
  function, arguments = OPTIMIZERS[settings.name], optimizer_arguments(settings)
  if settings.name == "muon" and model is not None:  # stacks, convolutions, attention
    axes = {
      name: optax.contrib.MuonDimensionNumbers(
        layout.axes_of("w") + layout.axes_of("i"), layout.axes_of("o")
      )
      for name, layout in model.kernels.items()
      if layout is not None and layout.groups == 1
    }
    arguments["muon_weight_dimension_numbers"] = fill_tree(masks, axes)
  if "key" in arguments:  # of noise
    arguments["key"] = key
  if settings.name == "lamb" and model is not None:
    function = functools.partial(_lamb, stacked=_stacked(masks, model))
  parts = [function(create_schedule(settings, num_steps), **arguments)]
  if not arguments.keys() & set(_ARGUMENTS["weight_decay"]):
    parts.insert(0, optax.add_decayed_weights(settings.weight_decay))
  if settings.clip_norm:
    parts.insert(0, optax.clip_by_global_norm(settings.clip_norm))
  return optax.chain(*parts)


def _lamb(
  learning_rate: optax.Schedule,
  *,
  stacked: Any,
  weight_decay: float,
  mask: Any = None,
  eps: float = 1e-6,
  **moments: Any,
) -> optax.GradientTransformation:
  """`optax.lamb` with a trust ratio for each layer of a stack, as published."""
  ratio = optax.scale_by_trust_ratio()

  def scale(update, leaf, is_stack):
    def alone(update, leaf):
      return ratio.update(update, ratio.init(leaf), leaf)[0]

    return (jax.vmap(alone) if is_stack else alone)(update, leaf)

  return optax.chain(
    optax.scale_by_adam(eps=eps, **moments),
    optax.add_decayed_weights(weight_decay, mask),
    optax.stateless(
      lambda updates, params: jax.tree.map(scale, updates, params, stacked)
    ),
    optax.scale_by_learning_rate(learning_rate),
  )


def _stacked(masks: Any, model: Any) -> Any:
  """Whether each leaf is a stack of layers: all kernels of its module are stacks."""
  kernels = [(n.partition("/")[0], x) for n, x in model.kernels.items() if x]
  stacks = {module for module, layout in kernels if layout.axes.startswith("s")}
  stacks -= {module for module, layout in kernels if not layout.axes.startswith("s")}
  return fill_tree(
    masks, {n: n.partition("/")[0] in stacks for n in named_leaves(masks)}
  )


def create_optimizer(
  settings: Settings,
  num_steps: int,
  masks: Any,
  *,
  key: jax.Array | None = None,
  dynamic: Settings = STATIC,
  pruning: tuple[Any, Any] | None = None,
  model: Any = None,
) -> optax.GradientTransformationExtraArgs:
  """Builds the optimizer under which dead weights stay exactly zero.

  Weight decay acts on all parameters: decoupled where the optimizer has an argument for
  it (adamw, lion, lamb, muon), else through the gradient (sgd, adam). The gradient of
  all live weights together is clipped to `clip_norm`, before that.

  Args:
    settings: the section `optimizer`.
    num_steps: length of the training.
    masks: tree like the parameters; bool leaves, True = trained, None = dense.
    key: for noise and for masks that change at random; the state keeps it.
    dynamic: the section `dynamic`: whether and how masks change.
    pruning: the densities between which gradual pruning goes.
    model: the network, whose layouts changing masks, muon and lamb need.

  Returns:
    An optax transformation with the masks in its state. `update` takes the loss as
    `value`, for the optimizers that look at it.
  """
  tx = _create_inner(settings, num_steps, masks, key, model)
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
  options: dict[str, Any] = {
    "every": dynamic.every,
    "until": dynamic.until,
    "scope": "unit" if dynamic.method == "srigl" else dynamic.scope,  # constant fan-in
    "num_steps": num_steps,
    "restore": restore,
    "layouts": model.layouts,
  }
  if dynamic.method == "gmp":
    assert pruning is not None
    start, end = (
      {name: np.array(x) for name, x in each} if isinstance(each, tuple) else each
      for each in pruning
    )
    options |= {"initial_density": start, "begin": dynamic.begin}
    return eoi_jax.optim.gradual_pruning(tx, masks, end, **options)
  options |= {"fraction": dynamic.fraction, "skip_step": dynamic.skip_step}
  if dynamic.method == "set":
    assert key is not None
    return eoi_jax.set_evolution(tx, masks, key=key, **options)
  return eoi_jax.rigl(tx, masks, mean_decay=dynamic.mean_decay, **options)


def count_moved(state: Any) -> dict[str, jax.Array]:
  """Counts live weights, and those grown since the start, where masks move; else {}.

  Returns:
    live_weights, density (of all masked kernels) and grown_weights, one for each seed.
  """
  if not isinstance(state.opt_state, eoi_jax.optim.DynamicSparsityState):
    return {}
  return _count_moved(state.opt_state, axis=state.key.ndim)


@functools.partial(jax.jit, static_argnames="axis")
def _count_moved(opt_state: Any, axis: int) -> dict[str, jax.Array]:
  def joined(tree):
    leaves = [leaf.reshape(*leaf.shape[:axis], -1) for leaf in jax.tree.leaves(tree)]
    return jnp.concatenate(leaves, axis=-1)

  masks = joined(opt_state.masks)
  live = jnp.sum(masks, axis=-1, dtype=jnp.int32)
  return {
    "live_weights": live,
    "density": live.astype(jnp.float32) / masks.shape[-1],
    "grown_weights": jnp.sum(joined(opt_state.num_grown), axis=-1),
  }
