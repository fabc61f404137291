"""What the modules of a model say of its parameters, put together."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from eoi_jax.layouts.layout import Kernel, Layout, by_shape, entry
from eoi_jax.layouts.trees import Layouts, apply_table, complete, present_leaves


class Reading:
  """What modules say of their parameters, by name of the leaf."""

  def __init__(self):
    self.layouts: dict[str, Layout | None] = {}  # of one layer's kernel, None = none
    # Of one layer's parameter; the tree may have axes of layers more.
    self.shapes: dict[str, tuple[int, ...]] = {}
    self.origins: dict[str, Any] = {}  # what those of one transformation have in common
    # Axes whose entries have a norm each, of kernels under WeightNorm.
    self.normalized: dict[str, Any] = {}
    self.reasons: dict[str, str] = {}  # why a layout is in doubt

  def add_shape(self, path: Sequence[Any], shape, origin: Any = None) -> None:
    """Notes the shape of one layer's parameter."""
    name = "/".join(map(str, path))
    self.shapes.setdefault(name, tuple(shape))
    self.origins.setdefault(name, origin)

  def add(self, path: Sequence[Any], shape, layout, doubt: str = "") -> None:
    """Notes how a layer reads its kernel, and why that is in doubt, "" if it is not."""
    name = "/".join(map(str, path))
    before = self.layouts.setdefault(name, layout)
    if layout is None:
      return
    self.add_shape(path, shape)
    if doubt:
      self.layouts[name], self.reasons[name] = None, doubt
    elif before != layout:
      self.reasons[name] = f"read as {before} and as {layout} by two layers"

  def assemble(self, params: Any, table, line: str) -> Layouts:
    """Layouts of a tree; what modules do not tell is read by table and by shape.

    `line` is what the caller is to write, with {} for the table.
    """
    leaves = present_leaves(params)
    shapes = {name: tuple(jnp.shape(leaf)) for name, leaf in leaves.items()}
    given = apply_table(table or {}, shapes)
    self._check_normalized(given)
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
      elif name in self.reasons:
        doubts[name] = "None" if layout is None else _entry(layout, len(shape))
      elif layout is None:
        given[name] = None
      elif name not in stacks:
        given[name] = layout
      elif (axes := self._choose(name, stacks)) is None:
        doubts[name] = _entry(layout, len(shape))
      else:
        letters = iter(layout.axes)
        places = ["s" if n in axes else next(letters) for n in range(len(shape))]
        given[name] = dataclasses.replace(layout, axes="".join(places))
    return complete(given, leaves, doubts=doubts, reasons=self.reasons, line=line)

  def _check_normalized(self, given) -> None:
    """Refuses kernels that weight normalization would change, if the table does not.

    It divides by norms, which an isometry has equal to one along its outputs, if these
    are at most as many as its inputs.
    """
    for name, axes in self.normalized.items():
      layout, shape = self.layouts.get(name), self.shapes.get(name, ())
      if layout is None or name in given:
        continue
      axes = (axes,) if isinstance(axes, int) else tuple(axes or ())
      outputs = tuple(sorted(axis % len(shape) for axis in axes))
      kernel = Kernel(name, jax.ShapeDtypeStruct(shape, jnp.float32), layout)
      rows, cols = kernel.block_shape[-2:]
      if outputs != layout.axes_of("o") or rows < cols:
        raise ValueError(
          f"`table` must say what {name!r} {shape} is: WeightNorm divides it by its "
          f"norms along axes {outputs}, and those of an isometry of {rows} x {cols} "
          f'are not one; `table={{"{name}": None}}` leaves it dense, '
          f'`table={{"{name}": "{layout.axes}"}}` takes the isometry before it.'
        )

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
  return entry("s" * (rank - len(layout.axes)) + layout.axes, layout.groups)


def _with_stack(text: str, number: int) -> str:
  """An entry of a table with axes of layers in front."""
  return text.replace('"', '"' + "s" * number, 1)


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
