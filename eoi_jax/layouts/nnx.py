"""Layouts read off a Flax NNX module."""

import fnmatch
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from eoi_jax.layouts._layers import conv, conv_transpose, einsum, find_doubt
from eoi_jax.layouts._reading import Reading
from eoi_jax.layouts.layout import Layout
from eoi_jax.layouts.trees import Layouts, present_leaves


def nnx_layouts(
  module: Any, *, table: Mapping[str, str | Layout | None] | None = None
) -> Layouts:
  """Layouts of the state of a Flax NNX module, read off the module.

  Args:
    module: a `flax.nnx.Module`, or a list or dict of them; or a state of one, whose
      leaves are then read by shape alone, as by `kernel_layouts`.
    table: as in `kernel_layouts`; it overrules what is read.

  Returns:
    `Layouts` of `nnx.state(module)` and of any part of it, such as
    `nnx.state(module, nnx.Param)`. Embeddings and low-rank adapters stay dense.

  Raises:
    ValueError: if a parameter is in doubt, or `nnx.WeightNorm` would undo an isometry.

  Example:
    >>> from flax import nnx
    >>> module = nnx.Linear(8, 4, rngs=nnx.Rngs(0))
    >>> nnx_layouts(module)
    kernel  (8, 4)  io
  """
  from flax import nnx

  reading, parts = Reading(), list(nnx.iter_graph(module))
  if any(isinstance(part, nnx.Module) for _, part in parts):
    read_nnx(reading, module)
    for path, part in parts:
      if isinstance(part, nnx.bridge.ToNNX):
        _check_bridged(part, "/".join(map(str, path)), table)
    module = nnx.state(module)
  elif any(isinstance(part, nnx.GraphDef) for _, part in parts) or not all(
    hasattr(leaf, "shape") for leaf in present_leaves(module).values() or [None]
  ):
    raise ValueError(f"`module` must be a flax.nnx.Module, got {type(module)}.")
  return reading.assemble(module, table, "nnx_layouts(module, table={})")


def read_nnx(
  reading: Reading, module: Any, prefix: Sequence[str] = (), origin: Any = None
) -> None:
  """Notes what the layers of an NNX module say: of arrays or shapes, at a path."""
  from flax import nnx

  graph = list(nnx.iter_graph(module))
  # A variable of several layers is in the state once.
  places = {id(x): path for path, x in graph if isinstance(x, nnx.Variable)}
  none = (nnx.BatchStat, nnx.Cache, nnx.Intermediate, nnx.Perturbation, nnx.RngState)
  gates: dict[int, int] = {}
  for path, part in graph:
    if isinstance(part, none):
      reading.add((*prefix, *path), (), None)
    for kind, number in ((nnx.OptimizedLSTMCell, 4), (nnx.GRUCell, 3)):
      if isinstance(part, kind):
        gates |= {id(part.dense_i): number, id(part.dense_h): number}
  for path, part in graph:
    for name, (shape, layout) in _read_layer(nnx, part, gates).items():
      place = places.get(id(getattr(part, name, None)), (*path, name))
      reading.add_shape((*prefix, *place), shape, origin)
      doubt = find_doubt(part, str(path[-1:]), "__call__")
      reading.add((*prefix, *place), shape, layout, doubt)
    if isinstance(getattr(part, "out_features", None), int):
      reading.add_shape((*prefix, *path, "bias"), (part.out_features,), origin)
    if isinstance(part, getattr(nnx, "WeightNorm", ())):  # of flax 0.12.1 and later
      state = nnx.state(part.layer_instance, nnx.Param)
      for place, leaf in nnx.to_flat_state(state):
        if part.variable_filter(place, leaf):
          name = "/".join(map(str, (*prefix, *path, "layer_instance", *place)))
          reading.normalized[name] = part.feature_axes


def _read_layer(nnx, part, gates: Mapping[int, int]) -> dict[str, tuple[tuple, Any]]:
  """Shapes of one layer's kernels of an NNX module, and their layouts.

  `gates` are the numbers of gates in the kernels of layers, by id.
  """
  from eoi_jax.blocks.nnx import BlockDense

  if isinstance(part, nnx.LoRA):
    return {"lora_a": ((), None), "lora_b": ((), None)}
  if isinstance(part, BlockDense):  # only live weights exist
    return {"blocks": ((), None)}
  if isinstance(part, nnx.Embed):
    return {"embedding": ((), None)}
  if isinstance(part, nnx.Linear):
    layout = Layout("io", gates.get(id(part), 1))
    return {"kernel": ((part.in_features, part.out_features), layout)}
  if isinstance(part, nnx.LinearGeneral):
    batch = tuple(part.batch_axis.values())
    ends = "i" * len(part.in_features) + "o" * len(part.out_features)
    shape = (*batch, *part.in_features, *part.out_features)
    return {"kernel": (shape, Layout("s" * len(batch) + ends))}
  for kind, read in (
    (nnx.Einsum, lambda layer, shape: einsum(layer.einsum_str, shape)),
    (nnx.Conv, conv),
    (nnx.ConvTranspose, conv_transpose),
  ):
    if isinstance(part, kind):
      shape = tuple(part.kernel_shape)
      return {"kernel": (shape, read(part, shape))}
  return {}


def _check_bridged(part, prefix: str, table) -> None:
  """Refuses kernels of a Linen module inside of NNX whose shape does not tell."""
  from flax import nnx

  module = ".".join(["module", *filter(None, prefix.split("/")), "to_nnx__module"])
  read = f"linen_layouts({module}, inputs)"
  if prefix:
    read = f'{{f"{prefix}/{{n}}": x for n, x in {read}.items()}}'
  for place, leaf in nnx.to_flat_state(nnx.state(part, nnx.Param)):
    name, shape = "/".join(filter(None, (prefix, *map(str, place)))), jnp.shape(leaf)
    named = any(fnmatch.fnmatchcase(name, pattern) for pattern in table or {})
    if place[-1] == "kernel" and len(shape) > 2 and not named:
      raise ValueError(
        f"`table` must say how {name!r} {shape} of a Linen module is read; read it off "
        f"that module: `table={read}`."
      )
