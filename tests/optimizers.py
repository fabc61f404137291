"""Every optimizer of the installed optax, by introspection, and ways to combine them.

The combinations name the leaves of a network `{"hidden": ..., "out": {"kernel": ...}}`.
"""

import inspect

import jax
import optax
import optax.contrib


def find_optimizers():
  """Every public function of the installed optax that builds an optimizer.

  It returns a gradient transformation and takes a learning rate; `scale_by_*` are the
  parts that such optimizers are made of.
  """
  found = {}
  for module in (optax, optax.contrib):
    for name in sorted(dir(module)):
      function = getattr(module, name) if not name.startswith("_") else None
      if not inspect.isfunction(function) or name.startswith("scale_by_"):
        continue
      signature = inspect.signature(function)
      rates = {"learning_rate", "max_learning_rate"} & set(signature.parameters)
      if "GradientTransformation" in str(signature.return_annotation) and rates:
        found[f"{module.__name__}.{name}"] = function
  return found


OPTIMIZERS = find_optimizers()

# Not driven below, with the reason.
EXCEPTIONS = {
  "optax.contrib.dpsgd": "takes gradients per example, `[batch, ...]`, not per leaf",
}

# Not driven with masks that change: `dynamic_sparsity` names them.
STATIC_ONLY = {
  "optax.contrib.acprop": "divides by the second moment of the step before",
}

# What an optimizer needs beyond a learning rate.
OPTIONS = {
  "optax.noisy_sgd": {"key": jax.random.key(0)},
  "optax.contrib.galore": {"rank": 2},
  "optax.contrib.schedule_free": {"base_optimizer": optax.sgd(0.01)},
}


def value_args(loss, value, updates):
  del loss, updates
  return {"value": value}


EXTRA_ARGS = {
  "optax.lbfgs": lambda loss, value, updates: {
    "value": value,
    "grad": updates,
    "value_fn": loss,
  },
  "optax.polyak_sgd": value_args,
  "optax.contrib.momo": value_args,
  "optax.contrib.momo_adam": value_args,
  "optax.contrib.sophia": lambda loss, value, updates: {"obj_fn": loss},
}


def build(name):
  function = OPTIMIZERS[name]
  options = dict(OPTIONS.get(name, {}))
  rate = inspect.signature(function).parameters.get("learning_rate")
  if rate is not None and rate.default is inspect.Parameter.empty:
    options["learning_rate"] = 0.01
  return function(**options)


def multi_steps():
  return optax.MultiSteps(
    optax.adamw(0.01), every_k_schedule=4
  ).gradient_transformation()


def two_groups():
  return optax.multi_transform(
    {
      "fast": optax.adamw(0.02, weight_decay=0.1),
      "slow": optax.sgd(0.01, momentum=0.9),
    },
    {"hidden": "fast", "out": "slow"},
  )


def schedules():
  return optax.inject_hyperparams(optax.adamw)(
    learning_rate=optax.cosine_decay_schedule(0.02, 100),
    weight_decay=optax.linear_schedule(0.1, 0.0, 100),
  )


COMBINATIONS = {
  "weight decay": lambda: optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.1)),
  "momentum": lambda: optax.sgd(0.1, momentum=0.9),
  "nesterov": lambda: optax.sgd(0.1, momentum=0.9, nesterov=True),
  "clip": lambda: optax.chain(optax.clip(0.01), optax.sgd(0.1)),
  "clip by norm": lambda: optax.chain(optax.clip_by_global_norm(0.1), optax.sgd(0.1)),
  "adaptive clip": lambda: optax.chain(optax.adaptive_grad_clip(0.1), optax.sgd(0.1)),
  "noise": lambda: optax.chain(
    optax.add_noise(0.1, 0.55, jax.random.key(0)), optax.sgd(0.01)
  ),
  "noise last": lambda: optax.chain(
    optax.sgd(0.01), optax.add_noise(1e-4, 0.55, jax.random.key(0))
  ),
  "ema": lambda: optax.chain(optax.sgd(0.1), optax.ema(0.9)),
  "centralize": lambda: optax.chain(optax.centralize(), optax.sgd(0.1)),
  "MultiSteps": multi_steps,
  "multi_transform": two_groups,
  "inject_hyperparams": schedules,
  "apply_if_finite": lambda: optax.apply_if_finite(optax.adamw(0.01), 3),
  "masked": lambda: optax.masked(
    optax.adamw(0.01), {"hidden": True, "out": {"kernel": True}}
  ),
  "scale": lambda: optax.scale(-0.1),
}
