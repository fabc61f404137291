"""Layouts read off Flax modules, Linen and NNX.

A module knows what the axes of its kernel mean; an array does not. Both readers look
at the layers of Flax itself, wherever they are nested: Dense, DenseGeneral, Einsum,
Conv, ConvLocal, ConvTranspose, Embed and their NNX counterparts, and with them
attention and recurrent cells, which are made of these. Axes that `nn.scan` and
`nn.vmap` add are stacks. Parameters of your own modules are read by shape, and by a
table where that leaves doubt.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from eoi_jax.layouts import (
  Kernel,
  Layout,
  Layouts,
  apply_table,
  complete,
  is_leaf,
  named_leaves,
)


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
    >>> model = nn.MultiHeadDotProductAttention(num_heads=4)
    >>> linen_layouts(model, jnp.ones((1, 5, 32)))["query/kernel"].axes
    'ioo'
  """
  import flax.linen as nn

  from eoi_jax.blocks.linen import BlockDense

  names = {nn.Embed: "embedding", BlockDense: "blocks"}
  readers = {
    nn.Dense: lambda module, shape: Layout("io"),
    nn.DenseGeneral: _linen_dense_general,
    nn.Einsum: None,  # read off the call
    nn.Conv: lambda module, shape: _conv(module, shape, module.feature_group_count),
    nn.ConvLocal: lambda module, shape: Layout("s" * (len(shape) - 2) + "io"),
    nn.ConvTranspose: _conv_transpose,
    nn.Embed: lambda module, shape: None,
    BlockDense: lambda module, shape: None,  # only live weights exist
  }
  found: dict[str, Layout | None] = {}
  inner: dict[str, tuple[int, ...]] = {}  # shapes inside of scans
  normalized: dict[str, Any] = {}  # axes that have norms of their own

  def record(next_fun, args, context_kwargs, context):
    module = context.module
    before = set(found) if isinstance(module, nn.WeightNorm) else set()
    outputs = next_fun(*args, **context_kwargs)
    if isinstance(module, nn.WeightNorm):
      words = module.variable_filter or [""]
      for name in found.keys() - before:
        if any(word in name for word in words):
          normalized[name] = module.feature_axes
    own = {
      name: tuple(leaf.shape)
      for name, leaf in nn.meta.unbox(module.variables.get("params", {})).items()
      if hasattr(leaf, "shape")
    }
    for name, shape in own.items():
      inner.setdefault("/".join((*module.path, name)), shape)
    kind = next((k for k in readers if isinstance(module, k)), None)
    name = names.get(kind, "kernel")
    if kind is None or context.method_name != "__call__" or name not in own:
      return outputs
    if kind is nn.Einsum:
      # The call may name the indices in place of the module.
      given = [*args[1:2], context_kwargs.get("einsum_str"), module.einsum_str]
      layout = _einsum(next(g for g in given if g is not None), own[name])
    else:
      layout = readers[kind](module, own[name])
    found["/".join((*module.path, name))] = layout
    return outputs

  def init(inputs):
    keys = {name: jax.random.key(0) for name in ("params", "dropout")}
    with nn.intercept_methods(record):
      return model.init(keys, *inputs, **kwargs)

  variables = nn.meta.unbox(jax.eval_shape(init, inputs))
  _check_normalized(normalized, found, inner, table)
  return _assemble(found, inner, variables.get("params", {}), table)


def nnx_layouts(
  module: Any, *, table: Mapping[str, str | Layout | None] | None = None
) -> Layouts:
  """Layouts of the state of a Flax NNX module, read off the module.

  Args:
    module: a `flax.nnx.Module`; or a state of one, whose leaves are then read by shape
      alone, as by `kernel_layouts`.
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

  found: dict[str, Layout | None] = {}
  inner: dict[str, tuple[int, ...]] = {}
  normalized: dict[str, Any] = {}
  if not isinstance(module, nnx.Module):
    return _assemble(found, inner, module, table)
  for path, part in nnx.iter_graph(module):
    for name, (shape, layout) in _read_nnx(nnx, part).items():
      name = "/".join((*map(str, path), name))
      found[name], inner[name] = layout, shape
    if isinstance(getattr(part, "out_features", None), int):
      inner["/".join((*map(str, path), "bias"))] = (part.out_features,)
    if isinstance(part, nnx.bridge.ToNNX):
      _check_bridged(part, "/".join(map(str, path)), table)
    if isinstance(part, getattr(nnx, "WeightNorm", ())):  # of flax 0.12.1 and later
      for place, leaf in nnx.to_flat_state(nnx.state(part.layer_instance, nnx.Param)):
        if part.variable_filter(place, leaf):
          name = "/".join(map(str, (*path, "layer_instance", *place)))
          normalized[name] = part.feature_axes
  _check_normalized(normalized, found, inner, table)
  return _assemble(found, inner, nnx.state(module), table)


def _read_nnx(nnx, part) -> dict[str, tuple[tuple[int, ...], Layout | None]]:
  """Shapes of one layer's kernels of an NNX module, and their layouts."""
  from eoi_jax.blocks.nnx import BlockDense

  if isinstance(part, nnx.LoRA):
    return {"lora_a": ((), None), "lora_b": ((), None)}
  if isinstance(part, BlockDense):  # only live weights exist
    return {"blocks": ((), None)}
  if isinstance(part, nnx.Embed):
    return {"embedding": ((), None)}
  if isinstance(part, nnx.Linear):
    return {"kernel": ((part.in_features, part.out_features), Layout("io"))}
  if isinstance(part, nnx.LinearGeneral):
    batch = tuple(part.batch_axis.values())
    shape = (*batch, *part.in_features, *part.out_features)
    axes = (len(batch), len(part.in_features), len(part.out_features))
    return {"kernel": (shape, Layout(_repeat("sio", axes)))}
  if isinstance(part, nnx.Einsum):
    shape = tuple(part.kernel_shape)
    return {"kernel": (shape, _einsum(part.einsum_str, shape))}
  if isinstance(part, nnx.Conv):
    groups = part.feature_group_count
    shape = (*part.kernel_size, part.in_features // groups, part.out_features)
    return {"kernel": (shape, _conv(part, shape, groups))}
  if isinstance(part, nnx.ConvTranspose):
    shape = tuple(part.kernel_shape)
    return {"kernel": (shape, _conv_transpose(part, shape))}
  return {}


def _assemble(found, inner, params: Any, table) -> Layouts:
  """Layouts of a tree from those of its modules; the rest by table and by shape.

  Args:
    found: layout of one layer's kernel, by name of the leaf.
    inner: shape of one layer's parameters, likewise.
    params: the tree, whose leaves may have axes of layers more.
    table: as in `kernel_layouts`.
  """
  leaves = {name: x for name, x in named_leaves(params).items() if not is_leaf(x)}
  shapes = {name: tuple(jnp.shape(leaf)) for name, leaf in leaves.items()}
  given = apply_table(table or {}, shapes)
  choices = {
    name: _stack_axes(inner[name], shape)
    for name, shape in shapes.items()
    if len(inner.get(name, shape)) < len(shape)
  }
  for name, layout in found.items():
    if name not in shapes or name in given:
      continue
    if layout is not None and name in choices:
      layout = _stacked(name, layout, choices, shapes[name])
    given[name] = layout
  return complete(given, leaves)


def _check_bridged(part, prefix: str, table) -> None:
  """Refuses kernels of a Linen module inside of NNX whose shape does not tell.

  Args:
    part: a `flax.nnx.bridge.ToNNX`.
    prefix: its path.
    table: what the caller says.

  Raises:
    ValueError: naming the first kernel of rank 3 or more.
  """
  from flax import nnx

  module = ".".join(["module", *filter(None, prefix.split("/")), "to_nnx__module"])
  read = f"linen_layouts({module}, inputs)"
  if prefix:
    read = f'{{f"{prefix}/{{n}}": x for n, x in {read}.items()}}'
  for place, leaf in nnx.to_flat_state(nnx.state(part, nnx.Param)):
    name, shape = "/".join(filter(None, (prefix, *map(str, place)))), jnp.shape(leaf)
    if place[-1] == "kernel" and len(shape) > 2 and not _in_table(name, table):
      raise ValueError(
        f"`table` must say how {name!r} {shape} of a Linen module is read; read it off "
        f"that module: `table={read}`."
      )


def _check_normalized(normalized, found, inner, table) -> None:
  """Refuses kernels that weight normalization would change.

  It divides by norms, which an isometry has equal to one along its outputs, if these
  are at most as many as its inputs.

  Args:
    normalized: the axes whose entries have a norm each, by name of the leaf.
    found: as in `_assemble`.
    inner: likewise.
    table: likewise; what it names is taken as it says.

  Raises:
    ValueError: naming the first such kernel.
  """
  for name, axes in normalized.items():
    layout, shape = found.get(name), inner.get(name, ())
    if layout is None or _in_table(name, table):
      continue
    axes = (axes,) if isinstance(axes, int) else tuple(axes or ())
    outputs = tuple(sorted(axis % len(shape) for axis in axes))
    kernel = Kernel(name, jax.ShapeDtypeStruct(shape, jnp.float32), layout)
    rows, cols = kernel.block_shape[-2:]
    if outputs != layout.axes_of("o") or rows < cols:
      raise ValueError(
        f"`table` must say what {name!r} {shape} is: WeightNorm divides it by its "
        f"norms along axes {outputs}, and those of an isometry of {rows} x {cols} are "
        f'not one; `table={{"{name}": None}}` leaves it dense, '
        f'`table={{"{name}": "{layout.axes}"}}` takes the isometry before it.'
      )


def _in_table(name: str, table) -> bool:
  return any(fnmatch.fnmatchcase(name, pattern) for pattern in table or {})


def _stack_axes(inner: tuple[int, ...], outer: tuple[int, ...]) -> list[tuple]:
  """Axes that a scan or vmap may have added to a parameter."""
  return [
    axes
    for axes in itertools.combinations(range(len(outer)), len(outer) - len(inner))
    if tuple(n for axis, n in enumerate(outer) if axis not in axes) == inner
  ]


def _stacked(name: str, layout: Layout, choices, shape: tuple[int, ...]) -> Layout:
  """The layout with `s` for the axes that a scan or vmap adds to a kernel.

  Where equal sizes leave it open which axes these are, the nearest parameter of the
  same transformation tells, which has them at the same places.

  Raises:
    ValueError: if none does.
  """
  possible = choices[name]
  if len(possible) > 1:
    near = sorted(choices, key=lambda other: -_shared(name, other))
    sure = [choices[n][0] for n in near if len(choices[n]) == 1]
    possible = [axes for axes in sure if axes in possible][:1]
  if len(possible) != 1:
    letters = "s" * (len(shape) - len(layout.axes)) + layout.axes
    raise ValueError(
      f"`table` must say which axes of {name!r} {shape} count layers; for example "
      f'`table={{"{name}": "{letters}"}}`.'
    )
  letters = iter(layout.axes)
  axes = "".join("s" if n in possible[0] else next(letters) for n in range(len(shape)))
  return dataclasses.replace(layout, axes=axes)


def _shared(name: str, other: str) -> int:
  """Number of modules that two parameters share, from the outermost."""
  pairs = zip(name.split("/"), other.split("/"), strict=False)
  return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def _repeat(letters: str, counts: Sequence[int]) -> str:
  return "".join(c * n for c, n in zip(letters, counts, strict=True))


def _linen_dense_general(module, shape: tuple[int, ...]) -> Layout:
  """Kernels `(*batch, *in, *out)` of `nn.DenseGeneral`."""
  num_batch = _length(module.batch_dims)
  num_inputs = _length(module.axis)
  num_outputs = len(shape) - num_batch - num_inputs
  return Layout(_repeat("sio", (num_batch, num_inputs, num_outputs)))


def _length(value) -> int:
  return len(value) if isinstance(value, Sequence) else 1


def _einsum(einsum_str: str, shape: tuple[int, ...]) -> Layout:
  """Axes of an einsum's second operand: contracted, kept, or shared with the first."""
  operands, _, result = einsum_str.replace(" ", "").replace("...", "").partition("->")
  inputs, kernel = operands.split(",")
  if len(kernel) != len(shape):
    raise ValueError(
      f"`einsum_str` must name every axis of the kernel {shape}, got {einsum_str!r}."
    )

  def letter(index: str) -> str:
    if index in inputs:
      return "s" if index in result else "i"
    if index in result:
      return "o"
    raise ValueError(
      "`einsum_str` must use every axis of its kernel in the inputs or the outputs, "
      f"got {index!r} in {einsum_str!r}."
    )

  return Layout("".join(map(letter, kernel)))


def _conv(module, shape: tuple[int, ...], groups: int) -> Layout:
  """Kernels `(*window, in / groups, out)`; patches where stride = window."""
  rank, window = len(shape) - 2, shape[:-2]
  strides, padding = _strides(module, rank), _padding(module.padding)
  patches = strides == window and padding == "VALID" and not _dilated(module)
  if _dilated(module):  # taps see the same phase of an image more often
    dilation = module.kernel_dilation
    dilation = (dilation,) * rank if isinstance(dilation, int) else dilation
    pairs = zip(strides, dilation, strict=True)
    strides = tuple(stride // math.gcd(stride, step) for stride, step in pairs)
  if groups == 1 and patches and math.prod(window) > 1:
    return Layout("i" * (rank + 1) + "o", strides=strides, padding=padding)
  return Layout("w" * rank + "io", groups, strides, padding)


def _conv_transpose(module, shape: tuple[int, ...]) -> Layout:
  """Kernels `(*window, in, out)`, or `(*window, out, in)` if `transpose_kernel`."""
  rank = len(shape) - 2
  strides, padding = _strides(module, rank), _padding(module.padding)
  ends = "oi" if module.transpose_kernel else "io"
  if strides == shape[:-2] and padding in ("VALID", "SAME") and not _dilated(module):
    return Layout("o" * rank + ends, strides=strides, padding=padding)
  return Layout("w" * rank + ends, 1, strides, padding, transposed=True)


def _strides(module, rank: int) -> tuple[int, ...]:
  strides = module.strides
  if strides is None or isinstance(strides, int):
    return (strides or 1,) * rank
  return tuple(strides)


def _padding(padding: Any) -> str | None:
  """Name of a padding, or None for amounts that have none."""
  if isinstance(padding, str):
    return padding
  amounts = jax.tree.leaves(padding)
  return "VALID" if amounts and not any(amounts) else None


def _dilated(module) -> bool:
  """Whether the kernel is dilated: its taps then do not cover their window."""
  dilation = module.kernel_dilation
  return math.prod(jax.tree.leaves(dilation) or [1]) != 1
