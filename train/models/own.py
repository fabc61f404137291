"""Networks of your own: any Linen module, or a function that returns one."""

import functools
import inspect
from collections.abc import Hashable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from train.core.console import UserError
from train.core.own import arguments, blamed, find, written_arguments
from train.data.datasets import DatasetSpec
from train.models.network import Network

FIELD = "model.name"


class OwnNetwork(Network):
  """A Linen module, called and read as the networks of the trainer are.

  Parameters have the names that they have in the module itself. What it may bring
  besides, as attributes: `others` and `may_be_sparse` of `Network`.
  """

  # the module; it is called with `(images, train=...)` or with `(images)`
  module: nn.Module
  image_shape: tuple[int, int, int]  # `(height, width, channels)`

  def setup(self):
    """Leaves the names of the parameters as they are."""
    nn.share_scope(self, self.module)

  @property
  def others(self) -> Any:
    """Table of `eoi_jax.kernel_layouts`, `others` of the module."""
    return getattr(self.module, "others", {})

  def may_be_sparse(self, name: str) -> bool:
    """Whether the kernel called `name` may become sparse."""
    rule = getattr(self.module, "may_be_sparse", None)
    return rule is None or bool(rule(name))

  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    """Maps `[batch, height, width, channels]` to `[batch, num_classes]` logits."""
    mode = {"train": train} if _takes_train(type(self.module)) else {}
    return self.module(x, **mode).astype(jnp.float32)  # pyright: ignore


@functools.cache
def _takes_train(kind: type[nn.Module]) -> bool:
  return "train" in inspect.signature(kind.__call__).parameters


# What other code calls the argument `train`, or its opposite.
_MODES = ("training", "is_training", "deterministic", "use_running_average")


def model_fields(name: str) -> tuple[str, ...]:
  """Returns the fields of `config.model` that a network of your own may take."""
  given = ("num_classes", "kernel_init", "bias_init")
  return tuple(field for field in arguments(FIELD, name) if field not in given)


def create(
  config: Any, spec: DatasetSpec, given: dict[str, Any], *, bias_std: float
) -> OwnNetwork:
  """Builds the network that `config.model.name` names.

  It gets those arguments that it declares: of `given` (`num_classes`, `kernel_init` if
  it has no such default of its own, `bias_init`), of the fields of `config.model`, and
  everything in `config.model.options`, which comes first.

  Raises:
    UserError: if an argument is unknown, missing or of no use, or what is built is no
      Linen module that maps images to logits.
  """
  name, declared = config.model.name, arguments(FIELD, config.model.name)
  options = written_arguments("model.options", config.model.options, declared)
  _check(config, declared, options, bias_std)
  fields = {key: value for key, value in config.model.items() if key != "options"}
  settings = {
    key: value
    for key, value in (fields | given).items()
    if key in declared and (key != "kernel_init" or _is_required(declared[key]))
  }
  model = OwnNetwork(_build(name, tuple((settings | options).items())), spec.shape)
  _check_call(model, name, spec)  # pyright: ignore[reportArgumentType]
  return model


def _is_required(parameter: inspect.Parameter) -> bool:
  variadic = (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
  return parameter.default is parameter.empty and parameter.kind not in variadic


def _check(
  config: Any, declared: dict[str, Any], options: dict[str, Any], bias_std: float
) -> None:
  name, takes = config.model.name, ", ".join(declared) or "none"
  anything = any(p.kind is p.VAR_KEYWORD for p in declared.values())
  if unknown := [key for key in options if key not in declared and not anything]:
    raise UserError(
      f"`model.options` must give arguments of {name} ({takes}), got {unknown[0]!r}."
    )
  known = {"num_classes", "kernel_init", "bias_init", *config.model, *options}
  for key, parameter in declared.items():
    if _is_required(parameter) and key not in known - {"options"}:
      raise UserError(f"`model.options` must give {key!r}, which {name} needs.")
  sparsity = config.sparsity
  for key, needed, field in (
    ("activation", sparsity.scale == "critical", "`sparsity.scale` = 'critical'"),
    ("activation", sparsity.start == "sao", "`sparsity.start` = 'sao'"),
    ("bias_init", bias_std, f"`sparsity.bias_std` = {bias_std:.3g}"),
  ):
    if needed and key not in declared:
      raise UserError(f"{field} needs a network with the argument {key!r}: {name}.")
  for key, value in options.items():
    if not isinstance(value, Hashable):
      raise UserError(
        f"`model.options` must hold tuples in place of dictionaries, got {key}={value}."
      )


@functools.cache  # equal settings are one module: runs share their compiled programs
def _build(name: str, settings: tuple[tuple[str, Any], ...]) -> nn.Module:
  with blamed(FIELD, name):
    module = find(FIELD, name)(**dict(settings))
    if not isinstance(module, nn.Module):
      got = type(module).__name__
      raise ValueError(
        f"must be a Linen module or a function that returns one, got {got}."
      )
    try:
      hash(module)
    except TypeError as error:
      raise ValueError(f"the fields of the module must be hashable: {error}.") from None
    modes = [
      m for m in _MODES if m in inspect.signature(type(module).__call__).parameters
    ]
    if modes and not _takes_train(type(module)):  # it would stay in one of them
      raise ValueError(
        "must call the argument `train` that tells training from evaluation, got "
        f"{modes[0]!r}."
      )
  return module


@functools.cache
def _check_call(model: OwnNetwork, name: str, spec: DatasetSpec) -> None:
  """Traces the network; reads its layouts, too: what is in doubt is an error."""
  images = jax.ShapeDtypeStruct((2, *spec.shape), jnp.float32)
  with blamed(FIELD, name):
    key = jax.random.key(0)
    logits, variables = jax.eval_shape(model.init_with_output, key, images)
    try:
      _ = model.kernels
    except ValueError as error:
      raise ValueError(
        f"{error} Write such a table as `others` of the class."
      ) from error
    if logits.shape != (2, spec.num_classes):
      raise ValueError(
        f"must map images {[*images.shape]} to logits [2, {spec.num_classes}], got "
        f"{[*logits.shape]}."
      )
    if extra := sorted(set(variables) - {"params", "batch_stats"}):
      raise ValueError(
        f"must keep its variables in params and batch_stats, has {', '.join(extra)}."
      )
