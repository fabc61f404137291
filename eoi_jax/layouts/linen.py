"""Layouts read off a Flax Linen model."""

import dataclasses
import itertools
import sys
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from eoi_jax.layouts._layers import conv, conv_transpose, einsum, find_doubt
from eoi_jax.layouts._reading import Reading
from eoi_jax.layouts.layout import Layout
from eoi_jax.layouts.nnx import read_nnx
from eoi_jax.layouts.trees import Layouts


def linen_layouts(
  model: Any,
  *inputs: Any,
  table: Mapping[str, str | Layout | None] | None = None,
  **kwargs: Any,
) -> Layouts:
  """Layouts of the parameters of a Flax Linen model, read off its modules.

  The model is initialized in shapes only: nothing is computed.

  Args:
    model: a `flax.linen.Module`.
    *inputs: what `model.init` takes after the keys: arrays or shape-dtype structs.
    table: as in `kernel_layouts`, for parameters that modules of your own make; it
      overrules what is read.
    **kwargs: passed on to `model.init`, as they are (`train=False`).

  Returns:
    `Layouts` of `model.init(...)["params"]`. Embeddings and low-rank adapters stay
    dense.

  Raises:
    ValueError: if a parameter is in doubt, or `nn.WeightNorm` would undo an isometry.

  Example:
    >>> import flax.linen as nn
    >>> import jax.numpy as jnp
    >>> model = nn.MultiHeadDotProductAttention(num_heads=4)
    >>> linen_layouts(model, jnp.ones((1, 5, 32)))["query/kernel"].axes
    'ioo'
  """
  import flax.linen as nn

  if not isinstance(model, nn.Module):
    raise ValueError(f"`model` must be a flax.linen.Module, got {type(model)}.")
  reading, readers = Reading(), _readers()

  def record(next_fun, args, context_kwargs, context):
    module = context.module
    scope = getattr(module.scope, "root", None)
    before = set(reading.layouts) if isinstance(module, nn.WeightNorm) else set()
    outputs = next_fun(*args, **context_kwargs)
    own = {
      name: tuple(leaf.shape)
      for name, leaf in nn.meta.unbox(module.variables.get("params", {})).items()
      if hasattr(leaf, "shape")
    }
    for name, shape in own.items():
      reading.add_shape((*module.path, name), shape, scope)
    if context.method_name != "__call__":
      return outputs
    if isinstance(module, nn.WeightNorm):
      words = module.variable_filter or [""]
      for name in reading.layouts.keys() - before:
        if any(word in name for word in words):
          reading.normalized[name] = module.feature_axes
    kind = next((k for k in readers if isinstance(module, k)), None)
    name, read = readers.get(kind, ("", None))
    if name in own:
      if kind is nn.Einsum:
        # The call may name the indices in place of the module.
        given = [*args[1:2], context_kwargs.get("einsum_str"), module.einsum_str]
        layout = einsum(next(g for g in given if g is not None), own[name])
      else:
        layout = read(module, own[name])
      if layout and isinstance(module.parent, nn.ConvLSTMCell):  # four gates
        layout = dataclasses.replace(layout, groups=4)
      mapped = any("Map_variables" in part for part in module.path)
      doubt = find_doubt(module, module.name or "", "__call__", "param")
      doubt = "map_variables may change it" if mapped else doubt
      reading.add((*module.path, name), own[name], layout, doubt)
    nnx = sys.modules.get("flax.nnx")  # loaded, if a module of it is here
    if nnx is not None and isinstance(module, nnx.bridge.ToLinen):
      read_nnx(reading, _abstract(nnx, module), module.path, scope)
    return outputs

  leaves, tree = jax.tree.flatten((inputs, kwargs))
  is_array = [hasattr(leaf, "shape") and hasattr(leaf, "dtype") for leaf in leaves]

  def init(arrays):
    traced = iter(arrays)
    parts = zip(is_array, leaves, strict=True)
    filled = [next(traced) if array else leaf for array, leaf in parts]
    args, options = jax.tree.unflatten(tree, filled)
    keys = {name: jax.random.key(0) for name in ("params", "dropout")}
    with nn.intercept_methods(record):
      return model.init(keys, *args, **options)

  arrays = list(itertools.compress(leaves, is_array))
  variables = nn.meta.unbox(jax.eval_shape(init, arrays))
  line = "linen_layouts(model, inputs, table={})"
  return reading.assemble(variables.get("params", {}), table, line)


def _readers() -> dict[Any, tuple[str, Any]]:
  """Name of the kernel of each layer of Linen, and how to read its layout."""
  import flax.linen as nn

  from eoi_jax.blocks.linen import BlockDense

  return {
    nn.Dense: ("kernel", lambda module, shape: Layout("io")),
    nn.DenseGeneral: ("kernel", _dense_general),
    nn.Einsum: ("kernel", None),  # read off the call
    nn.Conv: ("kernel", conv),
    nn.ConvLocal: ("kernel", lambda m, shape: Layout("s" * (len(shape) - 2) + "io")),
    nn.ConvTranspose: ("kernel", conv_transpose),
    nn.Embed: ("embedding", lambda module, shape: None),
    BlockDense: ("blocks", lambda module, shape: None),  # only live weights exist
  }


def _abstract(nnx, module) -> Any:
  """The NNX module, in shapes, that a `flax.nnx.bridge.ToLinen` makes."""

  def make():
    rngs = {} if module.skip_rng else {"rngs": nnx.Rngs(0)}
    return module.nnx_class(*module.args, **module.kwargs, **rngs)

  return nnx.eval_shape(make)


def _dense_general(module, shape: tuple[int, ...]) -> Layout:
  """Kernels `(*batch, *in, *out)` of `nn.DenseGeneral`."""
  batch, inputs = np.size(module.batch_dims), np.size(module.axis)
  return Layout("s" * batch + "i" * inputs + "o" * (len(shape) - batch - inputs))
