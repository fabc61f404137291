"""Which kernels a network applies, in order; and a meter at each of them."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

import eoi_jax

_METERS = "meters"  # the collection of variables; `stacks.stack` gives it an axis


class Call(NamedTuple):
  """One layer with a kernel, as the network applies it to one example.

  Attributes:
    positions_in: number of places (pixels, tokens) of its input, 1 for a vector.
    positions_out: of its output.
    strides: of a convolution, all 1 otherwise.
    groups: channel groups of a convolution, 1 otherwise.
  """

  positions_in: int
  positions_out: int
  strides: tuple[int, ...] = ()
  groups: int = 1


def trace_calls(model: Any, variables: Any, input_shape: tuple[int, ...]) -> dict:
  """Follows one example through a network, without computing anything.

  Args:
    model: a Linen module.
    variables: its variables, or their shapes.
    input_shape: shape of an input without the batch.

  Returns:
    Dict from the name of a kernel, "hidden/dense/kernel", to its `Call`, in the order
    of the forward pass. A layer that is scanned stands once.
  """
  calls: dict[str, Call] = {}

  def record(next_function, args, kwargs, context):
    outputs = next_function(*args, **kwargs)
    module = context.module
    if _has_kernel(context):
      name = "/".join((*module.path, "kernel"))
      options: Any = {}
      if isinstance(module, nn.Conv):
        strides = module.strides
        strides = (strides,) if isinstance(strides, int) else tuple(strides or ())
        options = {"strides": strides, "groups": module.feature_group_count}
      before, after = (math.prod(x.shape[1:-1]) for x in (args[0], outputs))
      calls.setdefault(name, Call(before, after, **options))
    return outputs

  def forward(variables):
    with nn.intercept_methods(record):
      return model.apply(variables, jnp.zeros((1, *input_shape), jnp.float32))

  jax.eval_shape(forward, variables)
  return calls


def _has_kernel(context: Any) -> bool:
  layer = isinstance(context.module, nn.Conv | nn.Dense)
  return layer and context.method_name == "__call__"


def metered(
  model: Any, variables: Any, input_shape: tuple[int, ...]
) -> tuple[Callable[[Any, jax.Array], jax.Array], Any]:
  """Puts a meter behind every layer that has a kernel.

  Args:
    model: a Linen module.
    variables: its variables, or their shapes to look at the meters alone.
    input_shape: shape of an input without the batch.

  Returns:
    What `eoi_jax.layer_profiles` takes: `(meters, inputs) -> outputs`, and meters by
    the names of the kernels; those of a layer that is scanned are `[layers, ...]`.
  """

  def watch(next_function, args, kwargs, context):
    outputs = next_function(*args, **kwargs)
    if not _has_kernel(context):
      return outputs
    meter = context.module.perturb("kernel", eoi_jax.new_meter(), _METERS)
    return eoi_jax.watch(meter, args[0], outputs)

  def forward(variables, inputs, **options):
    with nn.intercept_methods(watch):
      return model.apply(variables, inputs, **options)

  inputs = jnp.zeros((1, *input_shape), jnp.float32)
  shapes = jax.eval_shape(lambda v: forward(v, inputs, mutable=_METERS)[1], variables)
  shapes = shapes[_METERS]
  paths = jax.tree_util.tree_leaves_with_path(shapes)
  names = [jax.tree_util.keystr(p, simple=True, separator="/") for p, _ in paths]
  treedef = jax.tree.structure(shapes)

  def apply_fn(meters, inputs):
    tree = jax.tree.unflatten(treedef, [meters[name] for name in names])
    return forward({**variables, _METERS: tree}, inputs)

  meters = [jnp.zeros(leaf.shape, leaf.dtype) for _, leaf in paths]
  return apply_fn, dict(zip(names, meters, strict=True))
