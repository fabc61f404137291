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
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from eoi_jax.layouts import (
  Kernel,
  Layout,
  Layouts,
  apply_table,
  by_shape,
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

  reading, readers = _Reading(), _linen_readers()

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
        layout = _einsum(next(g for g in given if g is not None), own[name])
      else:
        layout = read(module, own[name])
      mapped = any("Map_variables" in part for part in module.path)
      change = "map_variables" if mapped else _own_method(module, "__call__", "param")
      reading.add((*module.path, name), own[name], layout, change)
    nnx = sys.modules.get("flax.nnx")  # loaded, if a module of it is here
    if nnx is not None and isinstance(module, nnx.bridge.ToLinen):
      reading.add_nnx(_abstract_nnx(nnx, module), module.path, scope)
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


def _linen_readers() -> dict[Any, tuple[str, Any]]:
  """Name of the kernel of each layer of Linen, and how to read its layout."""
  import flax.linen as nn

  from eoi_jax.blocks.linen import BlockDense

  return {
    nn.Dense: ("kernel", lambda module, shape: Layout("io")),
    nn.DenseGeneral: ("kernel", _linen_dense_general),
    nn.Einsum: ("kernel", None),  # read off the call
    nn.Conv: ("kernel", lambda m, shape: _conv(m, shape, m.feature_group_count)),
    nn.ConvLocal: ("kernel", lambda m, shape: Layout("s" * (len(shape) - 2) + "io")),
    nn.ConvTranspose: ("kernel", _conv_transpose),
    nn.Embed: ("embedding", lambda module, shape: None),
    BlockDense: ("blocks", lambda module, shape: None),  # only live weights exist
  }


def _abstract_nnx(nnx, module) -> Any:
  """The NNX module, in shapes, that a `flax.nnx.bridge.ToLinen` makes."""

  def make():
    rngs = {} if module.skip_rng else {"rngs": nnx.Rngs(0)}
    return module.nnx_class(*module.args, **module.kwargs, **rngs)

  return nnx.eval_shape(make)


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

  reading = _Reading()
  if isinstance(module, nnx.Module):
    reading.add_nnx(module)
    for path, part in nnx.iter_graph(module):
      if isinstance(part, nnx.bridge.ToNNX):
        _check_bridged(part, "/".join(map(str, path)), table)
    module = nnx.state(module)
  return reading.assemble(module, table, "nnx_layouts(module, table={})")


def _read_nnx(nnx, part, gates: Mapping[int, int]) -> dict[str, tuple[tuple, Any]]:
  """Shapes of one layer's kernels of an NNX module, and their layouts.

  Args:
    nnx: the package.
    part: a node of the module's graph.
    gates: number of gates in the kernels of layers, by id.
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


def _own_method(module, *methods: str) -> str:
  """The method that a subclass of a layer of Flax has of its own, "" if none.

  It may apply another matrix than the kernel: a standardized one, say.
  """
  flax = ("flax.", "eoi_jax.")
  own = itertools.takewhile(
    lambda kind: not kind.__module__.startswith(flax), type(module).__mro__
  )
  found = (f"{k.__name__}.{m}" for k in own for m in methods if m in vars(k))
  return next(found, "")


class _Reading:
  """What modules say of their parameters, by name of the leaf.

  Attributes:
    layouts: layout of one layer's kernel, None = no kernel.
    shapes: shape of one layer's parameter; the tree may have axes of layers more.
    origins: by name, what the parameters of one transformation have in common.
    normalized: axes whose entries have a norm each, of kernels under WeightNorm.
    reasons: why a reading is unsure: a layer may apply another matrix than its kernel,
      or two layers read one in two ways.
  """

  def __init__(self):
    self.layouts: dict[str, Layout | None] = {}
    self.shapes: dict[str, tuple[int, ...]] = {}
    self.origins: dict[str, Any] = {}
    self.normalized: dict[str, Any] = {}
    self.reasons: dict[str, str] = {}

  def add_shape(self, path: Sequence[Any], shape, origin: Any = None) -> None:
    """Notes the shape of one layer's parameter."""
    name = "/".join(map(str, path))
    self.shapes.setdefault(name, tuple(shape))
    self.origins.setdefault(name, origin)

  def add(self, path: Sequence[Any], shape, layout, change: str = "") -> None:
    """Notes how a layer reads its kernel.

    Args:
      path: of the kernel.
      shape: of it.
      layout: of it.
      change: what may put another matrix in its place, "" if nothing.
    """
    name = "/".join(map(str, path))
    before = self.layouts.setdefault(name, layout)
    if layout is None:
      return
    self.add_shape(path, shape)
    if change:
      self.reasons[name] = f"{change} may change it"
    elif before != layout:
      self.reasons[name] = f"read as {before} and as {layout} by two layers"

  def add_nnx(
    self, module: Any, prefix: Sequence[str] = (), origin: Any = None
  ) -> None:
    """Notes what the layers of an NNX module say.

    Args:
      module: the module, of arrays or shapes.
      prefix: path of the module.
      origin: see `origins`.
    """
    from flax import nnx

    graph = list(nnx.iter_graph(module))
    # A variable of several layers is in the state once.
    places = {id(x): path for path, x in graph if isinstance(x, nnx.Variable)}
    none = (nnx.BatchStat, nnx.Cache, nnx.Intermediate, nnx.Perturbation, nnx.RngState)
    gates: dict[int, int] = {}
    for path, part in graph:
      if isinstance(part, none):
        self.add((*prefix, *path), (), None)
      for kind, number in ((nnx.OptimizedLSTMCell, 4), (nnx.GRUCell, 3)):
        if isinstance(part, kind):
          gates |= {id(part.dense_i): number, id(part.dense_h): number}
    for path, part in graph:
      for name, (shape, layout) in _read_nnx(nnx, part, gates).items():
        place = places.get(id(getattr(part, name, None)), (*path, name))
        self.add_shape((*prefix, *place), shape, origin)
        self.add((*prefix, *place), shape, layout, _own_method(part, "__call__"))
      if isinstance(getattr(part, "out_features", None), int):
        self.add_shape((*prefix, *path, "bias"), (part.out_features,), origin)
      if isinstance(part, getattr(nnx, "WeightNorm", ())):  # of flax 0.12.1 and later
        state = nnx.state(part.layer_instance, nnx.Param)
        for place, leaf in nnx.to_flat_state(state):
          if part.variable_filter(place, leaf):
            name = "/".join(map(str, (*prefix, *path, "layer_instance", *place)))
            self.normalized[name] = part.feature_axes

  def assemble(self, params: Any, table, line: str) -> Layouts:
    """Layouts of a tree; what modules do not tell is read by table and by shape.

    Args:
      params: the tree.
      table: as in `kernel_layouts`.
      line: what the caller is to write, with {} for the table.
    """
    leaves = {name: x for name, x in named_leaves(params).items() if not is_leaf(x)}
    shapes = {name: tuple(jnp.shape(leaf)) for name, leaf in leaves.items()}
    given = apply_table(table or {}, shapes)
    _check_normalized(self.normalized, self.layouts, self.shapes, given)
    stacks = {  # axes that may count layers, of stacked parameters
      name: _stack_axes(self.shapes[name], shape)
      for name, shape in shapes.items()
      if self.shapes.get(name, shape) != shape
    }
    doubts: dict[str, str] = {}
    for name, shape in shapes.items():
      if name in given:
        continue
      doubt = None
      if name in self.layouts:
        layout = self.layouts[name]
      elif name in stacks:
        inner = jax.ShapeDtypeStruct(self.shapes[name], jnp.result_type(leaves[name]))
        layout, doubt = by_shape(name, inner, leaves)
      else:
        if doubt := self._near_stack(name, leaves, stacks):
          doubts[name] = doubt
        continue
      if doubt is not None:
        doubts[name] = _with_stack(doubt, len(shape) - len(self.shapes[name]))
      elif layout is None:
        given[name] = None
      elif name in self.reasons:
        changed = "may change it" in self.reasons[name]
        doubts[name] = "None" if changed else _entry(layout, len(shape))
      elif name not in stacks:
        given[name] = layout
      elif (axes := self._choose(name, stacks)) is None:
        doubts[name] = _entry(layout, len(shape))
      else:
        letters = iter(layout.axes)
        places = ["s" if n in axes else next(letters) for n in range(len(shape))]
        given[name] = dataclasses.replace(layout, axes="".join(places))
    return complete(given, leaves, doubts=doubts, reasons=self.reasons, line=line)

  def _choose(self, name: str, stacks) -> tuple[int, ...] | None:
    """Axes that count layers; None if that is open.

    Where equal sizes leave it open, the nearest parameter of the same transformation
    tells, which has them at the same places.
    """
    possible = stacks[name]
    if len(possible) == 1:
      return possible[0]

    def is_kin(other: str) -> bool:
      if self.origins[name] is not None:
        return self.origins[other] is self.origins[name]
      same = other.rpartition("/")[0] == name.rpartition("/")[0]
      return same or _shared(name, other) > 0

    kin = [n for n in stacks if len(stacks[n]) == 1 and is_kin(n)]
    for other in sorted(kin, key=lambda other: -_shared(name, other)):
      if stacks[other][0] in possible:
        return stacks[other][0]
    return None

  def _near_stack(self, name: str, leaves, stacks) -> str | None:
    """What to write for a parameter of unknown origin that may be in a known stack."""
    shape, dtype = jnp.shape(leaves[name]), jnp.result_type(leaves[name])
    if name in self.shapes or by_shape(name, leaves[name], leaves) == (None, None):
      return None
    for other, possible in stacks.items():
      if len(possible) != 1 or (axes := possible[0])[-1] >= len(shape):
        continue
      whole = jnp.shape(leaves[other])
      if any(shape[axis] != whole[axis] for axis in axes):
        continue
      inner = [size for axis, size in enumerate(shape) if axis not in axes]
      inner = jax.ShapeDtypeStruct(tuple(inner), dtype)
      layout, doubt = by_shape(name, inner, leaves)
      if layout is not None:
        return _entry(layout, len(shape))
      return "None" if doubt is None else _with_stack(doubt, len(axes))
    return None


def _entry(layout: Layout, rank: int) -> str:
  """An entry of a table: a layout, with axes of layers in front up to a rank."""
  letters = "s" * (rank - len(layout.axes)) + layout.axes
  groups = layout.groups or 1
  return f'Layout("{letters}", groups={groups})' if groups > 1 else f'"{letters}"'


def _with_stack(entry: str, number: int) -> str:
  """An entry of a table with axes of layers in front."""
  return entry.replace('"', '"' + "s" * number, 1)


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
    named = any(fnmatch.fnmatchcase(name, pattern) for pattern in table or {})
    if place[-1] == "kernel" and len(shape) > 2 and not named:
      raise ValueError(
        f"`table` must say how {name!r} {shape} of a Linen module is read; read it off "
        f"that module: `table={read}`."
      )


def _check_normalized(normalized, layouts, shapes, given) -> None:
  """Refuses kernels that weight normalization would change.

  It divides by norms, which an isometry has equal to one along its outputs, if these
  are at most as many as its inputs.

  Args:
    normalized: the axes whose entries have a norm each, by name of the leaf.
    layouts: as in `_Reading`.
    shapes: likewise.
    given: what the table says, by name.

  Raises:
    ValueError: naming the first such kernel.
  """
  for name, axes in normalized.items():
    layout, shape = layouts.get(name), shapes.get(name, ())
    if layout is None or name in given:
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


def _stack_axes(inner: tuple[int, ...], outer: tuple[int, ...]) -> list[tuple]:
  """Axes that a scan or vmap may have added to a parameter."""
  return [
    axes
    for axes in itertools.combinations(range(len(outer)), len(outer) - len(inner))
    if tuple(n for axis, n in enumerate(outer) if axis not in axes) == inner
  ]


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
  """Kernels `(*window, in / groups, out)`; patches where windows do not overlap."""
  rank, window = len(shape) - 2, shape[:-2]
  strides, padding = _strides(module, rank), _padding(module.padding)
  if _dilated(module):  # taps see the same phase of an image more often
    dilation = module.kernel_dilation
    dilation = (dilation,) * rank if isinstance(dilation, int) else dilation
    pairs = zip(strides, dilation, strict=True)
    strides = tuple(stride // math.gcd(stride, step) for stride, step in pairs)
  elif math.prod(window) > 1 and _apart(strides, window):
    return Layout("i" * (rank + 1) + "o", groups, strides, padding)
  return Layout("w" * rank + "io", groups, strides, padding)


def _conv_transpose(module, shape: tuple[int, ...]) -> Layout:
  """Kernels `(*window, in, out)`, or `(*window, out, in)` if `transpose_kernel`."""
  rank = len(shape) - 2
  strides, padding = _strides(module, rank), _padding(module.padding)
  ends = "oi" if module.transpose_kernel else "io"
  named = padding in ("VALID", "SAME", "CIRCULAR")
  if named and _apart(strides, shape[:-2]) and not _dilated(module):
    return Layout("o" * rank + ends, strides=strides, padding=padding)
  return Layout("w" * rank + ends, 1, strides, padding, transposed=True)


def _apart(strides: tuple[int, ...], window: tuple[int, ...]) -> bool:
  """Whether windows at these strides do not overlap."""
  return all(step >= size for step, size in zip(strides, window, strict=True))


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
