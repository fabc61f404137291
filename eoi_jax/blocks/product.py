"""The product with a block-sparse kernel, its derivatives included.

With `x_g` the inputs of group `g`, `B_{h,c}` the block `c` of output group `h`, and
`(h, c)` over all blocks, three arrays are bound by one trilinear form

    T(x, B, y) = sum_{h,c} x_{inputs[h,c]} B_{h,c} y_h

whose derivative by one of them is the product of the other two:

    y_h      = sum_c x_{inputs[h,c]} B_{h,c}
    x_g      = sum_c y_{outputs[g,c]} B_{outputs[g,c],c}^T
    B_{h,c}  = x_{inputs[h,c]}^T y_h

These three are each other's derivatives, so one primitive has derivatives of every
order, forward and reverse, and each of them gathers: `outputs` is the inverse table.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import ShapedArray
from jax.extend import core as jex_core
from jax.interpreters import ad, batching, mlir

from eoi_jax import _checks as checks
from eoi_jax._sharding import partitioned, vary_alike, varying
from eoi_jax.blocks import layout as layout_lib
from eoi_jax.blocks.layout import BlockLayout

METHODS = ("auto", "loop", "batched")
_NAMES = ("x", "blocks", "y")
_UNROLL = 8  # blocks of a group in one step of a compiled loop
_LOOP_SIZE = 4096  # entries of a group of `x` or `y` that a step of the loop must have


def block_matmul(
  x: jax.Array,
  blocks: jax.Array,
  layout: BlockLayout,
  *,
  precision: lax.Precision | str | None = None,
  method: str = "auto",
) -> jax.Array:
  """The product `x @ W` of inputs and a block-sparse kernel.

  It costs `r / G` of the dense product. Sums are taken in float32 at least.

  Args:
    x: `[..., in]`, or `[*stack, ..., in]` where the layout has a stack.
    blocks: `[*stack, G, r, bi, bo]`.
    layout: layout of the blocks.
    precision: of the products of blocks, as in `jnp.matmul`.
    method: "loop" multiplies group after group, in place; "batched" gathers the groups
      and multiplies all at once, which accelerators and kernels that are sharded over
      their groups need; "auto" takes "loop" on a CPU where a group of `x` has 4096
      entries (64 rows for blocks of 64: up to 2 times faster there), else "batched".

  Returns:
    `[..., out]`, or `[*stack, ..., out]`, of the common dtype of `x` and `blocks`.

  Raises:
    ValueError: if shapes do not match the layout or the method is unknown.

  Example:
    >>> from eoi_jax.blocks import block_layout, block_orthogonal, blocks_to_dense
    >>> layout = block_layout(jax.random.key(0), (64, 96), 0.25, block_size=8)
    >>> blocks = block_orthogonal(jax.random.key(1), layout)
    >>> x = jnp.ones((5, 64))
    >>> dense = x @ blocks_to_dense(blocks, layout)
    >>> bool(jnp.allclose(block_matmul(x, blocks, layout), dense, atol=1e-5))
    True
  """
  checks.one_of("method", method, METHODS)
  layout_lib.check_blocks(blocks, layout)
  stack = layout.stack_shape
  if x.shape[-1:] != layout.shape[:1] or x.shape[: len(stack)] != stack:
    axes = "".join(f"{size}, " for size in stack)
    raise ValueError(
      f"`x` must have shape ({axes}..., {layout.shape[0]}), got {x.shape}."
    )
  dtype = jnp.result_type(x, blocks)
  if not jnp.issubdtype(dtype, jnp.floating):
    raise ValueError(f"`x` and `blocks` must be of floating dtype, got {dtype}.")
  if x.size == 0:  # of an empty batch
    return jnp.zeros((*x.shape[:-1], layout.shape[1]), dtype)
  if precision is not None:
    precision = lax.Precision(precision)
  run = functools.partial(_matmul, precision=precision, method=method)
  spec = jax.P(*jax.typeof(x).sharding.spec[:-1], None)
  return partitioned(run, spec, x.astype(dtype), blocks.astype(dtype), layout)


@functools.partial(jax.jit, static_argnames=("precision", "method"))
def _matmul(x, blocks, layout: BlockLayout, precision, method: str) -> jax.Array:
  stack, groups = layout.stack_shape, layout.num_groups
  depth, rest = math.prod(stack), x.shape[len(stack) : -1]
  x = layout_lib.pad_groups(x, layout.shape[0], groups)
  operands = [x.reshape(depth, math.prod(rest), x.shape[-1])] + [
    array.reshape(depth, *array.shape[len(stack) :])
    for array in (blocks, layout.inputs, layout.outputs)
  ]
  options = {"target": "y", "precision": precision, "method": method}
  y = product_p.bind(*vary_alike(operands), **options)
  y = y.reshape(*stack, *rest, y.shape[-1])
  return layout_lib.trim_groups(y, layout.shape[1], groups)


def _operands(target: str) -> tuple[str, str]:
  """Names of the two operands whose product is `target`."""
  first, second = (name for name in _NAMES if name != target)
  return first, second


def _product_loop(first, second, inputs, outputs, *, target: str, precision):
  """Group after group: blocks are read in place and results are written in place.

  `x` is `[stack, n, G bi]`, `blocks` `[stack, G, r, bi, bo]`, `y` `[stack, n, G bo]`.
  """
  arrays = dict(zip(_operands(target), (first, second), strict=True))
  depth, groups, matchings = inputs.shape
  dtype = first.dtype
  wide = checks.compute_dtype(dtype)
  dot = functools.partial(
    lax.dot_general, precision=precision, preferred_element_type=wide
  )

  zero = np.int32(0)  # indices are int32 as the tables, with 64-bit types too

  def columns(array, layer, group, axis=2):
    """One group of `x` or `y`, `[n, b]`, or `[b, n]` of its transpose (axis 1)."""
    sizes = [1, *array.shape[1:]]
    sizes[axis] //= groups
    start = [layer, zero, zero]
    start[axis] = group * sizes[axis]
    return lax.dynamic_slice(array, start, sizes)[0]

  def zeros(shape, dtype):
    return vary_alike(jnp.zeros(shape, dtype), first)

  if target == "blocks":
    x, y = arrays["x"].swapaxes(1, 2), arrays["y"]

    def group_blocks(k):
      layer, h = k // groups, k % groups
      here = columns(y, layer, h)

      def block(c):
        there = columns(x, layer, inputs[layer, h, c], axis=1)
        return dot(there, here, (((1,), (0,)), ((), ()))).astype(dtype)

      if matchings > _UNROLL:
        return lax.map(block, jnp.arange(matchings))
      return jnp.stack([block(c) for c in range(matchings)])

    result = lax.map(group_blocks, jnp.arange(depth * groups, dtype=jnp.int32))
    return result.reshape(depth, groups, *result.shape[1:])

  source, blocks = arrays["x" if target == "y" else "y"], arrays["blocks"]
  table = inputs if target == "y" else outputs
  size = blocks.shape[4 if target == "y" else 3]

  def step(k, result):
    k = jnp.asarray(k, jnp.int32)
    layer, group = k // groups, k % groups

    def term(c):
      other = table[layer, group, c]
      block = blocks[layer, group if target == "y" else other, c]
      axis = 0 if target == "y" else 1
      return dot(columns(source, layer, other), block, (((1,), (axis,)), ((), ())))

    if matchings > _UNROLL:
      add, start = (
        lambda c, total: total + term(c),
        zeros((source.shape[1], size), wide),
      )
      total = lax.fori_loop(0, matchings, add, start, unroll=_UNROLL)
    else:
      total = sum(map(term, range(1, matchings)), term(0))
    start = (layer, zero, group * size)
    return lax.dynamic_update_slice(result, total.astype(dtype)[None], start)

  shape = (depth, source.shape[1], groups * size)
  return lax.fori_loop(0, depth * groups, step, zeros(shape, dtype))


def _product_batched(first, second, inputs, outputs, *, target: str, precision):
  """All groups at once: gathers the groups, then one batched product."""
  arrays = dict(zip(_operands(target), (first, second), strict=True))
  groups, matchings = inputs.shape[1:]
  dtype = first.dtype
  einsum = functools.partial(
    jnp.einsum,
    precision=precision,
    preferred_element_type=checks.compute_dtype(dtype),
  )
  grouped = {
    name: array.reshape(*array.shape[:2], groups, -1).swapaxes(1, 2)
    for name, array in arrays.items()
    if name != "blocks"
  }

  def side_by_side(name, table):
    """The groups that each group meets, as the columns of one matrix."""
    met = jax.vmap(lambda array, table: array[table])(grouped[name], table)
    return met.swapaxes(2, 3).reshape(*table.shape[:2], met.shape[3], -1)

  if target == "blocks":
    met = side_by_side("x", inputs)
    result = einsum("sgnk,sgno->sgko", met, grouped["y"])
    return result.astype(dtype).reshape(*inputs.shape, -1, result.shape[-1])
  blocks = arrays["blocks"]
  if target == "y":
    met = side_by_side("x", inputs)
  else:
    met = side_by_side("y", outputs)
    number = jnp.arange(matchings)
    mine = jax.vmap(lambda blocks, table: blocks[table, number])(blocks, outputs)
    blocks = mine.swapaxes(3, 4)
  blocks = blocks.reshape(*blocks.shape[:2], -1, blocks.shape[-1])
  result = einsum("sgnk,sgko->sgno", met, blocks).astype(dtype).swapaxes(1, 2)
  return result.reshape(*result.shape[:2], -1)


def _result_type(*operands, target: str, precision, method: str) -> ShapedArray:
  """Abstract value of the result."""
  del method
  first, second, inputs, _ = operands
  if varying(first):  # in a `shard_map`, JAX itself knows what the result varies over
    function = functools.partial(_product_batched, target=target, precision=precision)
    return jax.make_jaxpr(function)(*operands).out_avals[0]
  depth, groups, matchings = inputs.shape
  shapes = dict(zip(_operands(target), (first.shape, second.shape), strict=True))
  if target == "blocks":
    sides = [shapes[name][2] // groups for name in ("x", "y")]
    return ShapedArray((depth, groups, matchings, *sides), first.dtype)
  n = shapes["x" if target == "y" else "y"][1]
  side = shapes["blocks"][4 if target == "y" else 3]
  return ShapedArray((depth, n, groups * side), first.dtype)


def _transpose(cotangent, first, second, *tables, target: str, **options):
  """The cotangent of an operand is the product of the result's and the other one."""
  names = _operands(target)
  wanted = [ad.is_undefined_primal(operand) for operand in (first, second)]
  results = [None, None]
  for place, (undefined, other) in enumerate(zip(wanted, (second, first), strict=True)):
    if undefined:
      arrays = {target: cotangent, names[1 - place]: other}
      pair = [arrays[name] for name in _operands(names[place])]
      results[place] = product_p.bind(*pair, *tables, target=names[place], **options)
  return *results, None, None


def _batched(operands, axes, *, target: str, **options):
  """`vmap`: more rows for one kernel, or a longer stack of kernels."""
  pairs = list(zip(operands, axes, strict=True))
  size = next(operand.shape[axis] for operand, axis in pairs if axis is not None)
  bind = functools.partial(product_p.bind, target=target, **options)
  first, second, inputs, outputs = operands
  place = _operands(target).index("y" if target == "x" else "x")
  alone = all((axis is None) == (n != place) for n, axis in enumerate(axes))
  if target != "blocks" and alone:  # [size, stack, n, units] -> [stack, size n, units]
    rows = jnp.moveaxis(operands[place], axes[place], 1)
    flat = rows.reshape(rows.shape[0], -1, rows.shape[-1])
    pair = (flat, second) if place == 0 else (first, flat)
    result = bind(*pair, inputs, outputs)
    return result.reshape(*rows.shape[:3], result.shape[-1]), 1
  moved = [
    jnp.broadcast_to(operand, (size, *operand.shape))
    if axis is None
    else jnp.moveaxis(operand, axis, 0)
    for operand, axis in pairs
  ]
  result = bind(*(operand.reshape(-1, *operand.shape[2:]) for operand in moved))
  return result.reshape(size, -1, *result.shape[1:]), 0


def _lower(platform: str):
  def compute(*operands, target, precision, method):
    if method == "auto":
      source = operands[1 if target == "x" else 0]
      large = source.size >= _LOOP_SIZE * math.prod(operands[2].shape[:2])
      method = "loop" if platform == "cpu" and large else "batched"
    function = _product_loop if method == "loop" else _product_batched
    return function(*operands, target=target, precision=precision)

  return mlir.lower_fun(compute, multiple_results=False)


product_p = jex_core.Primitive("block_product")
product_p.def_impl(
  jax.jit(product_p.bind, static_argnames=("target", "precision", "method"))
)
product_p.def_abstract_eval(_result_type)
ad.defjvp(
  product_p,
  lambda dot, first, *rest, **options: product_p.bind(dot, *rest, **options),
  lambda dot, first, _, *rest, **options: product_p.bind(first, dot, *rest, **options),
  None,
  None,
)
ad.primitive_transposes[product_p] = _transpose
batching.primitive_batchers[product_p] = _batched
mlir.register_lowering(product_p, _lower("other"))
mlir.register_lowering(product_p, _lower("cpu"), platform="cpu")
