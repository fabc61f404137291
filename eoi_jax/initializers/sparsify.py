"""One door from a dense tree to a sparse start: `sparsify`, and the starts behind it.

`sparsify` reads the tree as blocks by its layouts, gathers the blocks of one shape into
a `_Stack`, and gives the stacks to the start. A start is a function of stacks and
options that yields `(values, masks)` of each: arrays `[n, *shape]`, with masks None
where the blocks are dense. Masks and what is put together from samples are NumPy arrays
outside of `jax.jit`, and traced arrays under it.
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from eoi_jax import _checks as checks
from eoi_jax import _keys
from eoi_jax.givens import patterns
from eoi_jax.givens.orthogonal import sample_many
from eoi_jax.givens.rotations import Angle
from eoi_jax.initializers import dense, eoi, isometry, sao
from eoi_jax.layouts.layout import Kernel
from eoi_jax.layouts.trees import Layouts, fill_tree
from eoi_jax.masks.trees import (
  check_masks,
  fill,
  given_kernels,
  is_traced,
  kernel_counts,
  live_counts,
  on_host,
  place_like,
)


def sparsify(
  key: jax.Array,
  params: Any,
  densities_or_masks: Any,
  *,
  start: str = "eoi",
  scale: float = 1.0,
  options: Mapping[str, Any] | None = None,
  layouts: Layouts | None = None,
) -> tuple[Any, Any]:
  """Gives every kernel of a tree a sparse start and its mask.

  The starts, with their options:

    - "eoi": exact orthogonal initialization. Of masks only the number of trained
      weights per layer is kept, the support is drawn anew. `taps`, `center`, `angle`,
      `schedule`, `cover` as in `eoi_init`; the layouts know the strides of "polyphase".
    - "eoi_in_mask": an exact isometry on the given mask itself (or a random one), at
      the centre tap of convolutions; the rest of the mask starts at zero. A mask that
      leaves an input or output without a partner allows none: an error, or, as
      `fallback` says, an isometry of fewer units ("partial"), "ai" (by "adam" unless
      `method` says otherwise) or "base", with the options of these. `angle`.
    - "eoi_structured": at the centre tap of a convolution a sparse orthogonal matrix
      of the density, trained at all taps of its support; dense kernels, and
      convolutions of three channels, stay dense. `angle`, `schedule`, `cover`.
    - "base": a dense `reference` ("delta_orthogonal" by default, "orthogonal",
      "conv_orthogonal") times the given mask, or a uniformly random one.
    - "ai": approximate isometry on such a mask, from the `reference` "orthogonal".
      `method`, `num_steps`, `step_size` as in `approximate_isometry`: "sgd" and 10000
      steps, the published ones, or "adam".
    - "sao": dense orthogonal blocks on random columns, for square dense kernels and
      for convolutions, there at the centre tap and trained at all taps; others stay
      dense. `degree` (else the density must give a legal one), `relu`.
    - "orthogonal", "delta_orthogonal", "conv_orthogonal": dense; the density is not
      used.

  Blocks of one shape, of any leaves, are started together in one compiled call; masks
  are drawn on the host. Convolutions are read as stride 1, but where windows do not
  overlap (the layout then has no window: the whole patch is one matrix). Grouped ones
  are started group by group: depthwise kernels keep every channel isometric.

  Args:
    key: a PRNG key; it is consumed. What a layer gets depends on the key, its name
      and its shape alone, not on the rest of the tree.
    params: tree of arrays. Kernels are replaced, other leaves are kept.
    densities_or_masks: a density for all kernels, in `(0, 1]`; or a tree like
      `params` of densities (arrays `[layers]` for stacked leaves), or of masks (bool,
      True = trained), None = dense leaf, which is left as it is.
    start: name of the start.
    scale: gain `sigma_w` of the kernels.
    options: options of the start by name.
    layouts: how leaves are read; None = by shape (`kernel_layouts`), where a leaf in
      doubt is an error. A leaf that is given None in a tree needs no layout.

  Returns:
    `(params, masks)`: the kernels in their start, zero off the mask; and the masks, a
    tree like `params` with None where a leaf is dense. Under "eoi", "eoi_in_mask",
    "base" and "ai" every layer has exactly `round(density * size)` trained weights.

  Raises:
    ValueError: if `start` or an option is unknown, structures differ, a leaf is in
      doubt or not of a real floating dtype of at least 16 bits, or a density is out of
      the range of its kernel; the leaf is named.

  Example:
    >>> dense = {"kernel": jnp.ones((16, 16)), "bias": jnp.zeros(16)}
    >>> params, masks = sparsify(jax.random.key(0), dense, 0.25)
    >>> int(masks["kernel"].sum()), masks["bias"] is None
    (64, True)

  Reference: Nowak et al., 2024, arXiv:2406.01755, section 5.
  """
  if start not in STARTS:
    raise ValueError(f"`start` must be one of {tuple(STARTS)}, got {start!r}.")
  run, known = STARTS[start]
  options = dict(options or {})
  _check_names(options, known, f"start {start!r}")
  if isinstance(scale, str | bool) or not math.isfinite(scale := float(scale)):
    raise ValueError(f"`scale` must be a finite number, got {scale!r}.")
  leaves = jax.tree.leaves(densities_or_masks)
  dtypes = {getattr(leaf, "dtype", None) for leaf in leaves}
  masked = dtypes == {jnp.dtype(bool)}
  if masked:
    check_masks(params, densities_or_masks)
    found = given_kernels(params, densities_or_masks, layouts, "masks")
  else:
    found = kernel_counts(params, densities_or_masks, layouts)
  data = _keys.key_data(key)
  key_values, key_masks = _keys.fold_in(data, 0), _keys.fold_in(data, 1)
  alike: dict[Any, list[tuple]] = {}  # kernels whose blocks have one shape
  for name, (kernel, value) in found.items():
    dtype = jnp.dtype(kernel.leaf.dtype)
    if not jnp.issubdtype(dtype, jnp.floating) or dtype.itemsize < 2:
      raise ValueError(
        f"kernel {name!r} must have a real floating dtype of at least 16 bits, got "
        f"{dtype}."
      )
    strided = ((), False)
    if options.get("taps") == "polyphase":
      strided = (kernel.layout.strides, kernel.layout.transposed)
    kind = (kernel.block_shape, kernel.leaf.dtype, kernel.groups)
    member = (kernel, on_host(value))
    alike.setdefault((*kind, strided, kernel.center), []).append(member)
  stacks = []
  for (shape, dtype, groups, strided, center), members in alike.items():
    kernels = [kernel for kernel, _ in members]
    stack = _Stack(
      names=tuple(k.name for k in kernels for _ in range(k.num_blocks)),
      shape=shape,
      dtype=dtype,
      keys=_keys.block_keys(key_values, kernels),
      mask_keys=_keys.block_keys(key_masks, kernels),
      budgets=_block_counts(members, groups, masked),
      masks=_join([k.to_blocks(mask) for k, mask in members]) if masked else None,
      strided=strided,
      center=center,
    )
    stacks.append(stack)
  values, masks = {}, {}
  done = run(stacks, scale, **options)
  for members, blocks in zip(alike.values(), done, strict=True):
    new, live = map(on_host, blocks)
    end = 0
    for kernel, _ in members:
      rows = slice(end, end + kernel.num_blocks)
      end = rows.stop
      values[kernel.name] = kernel.from_blocks(new[rows])
      if live is not None:
        masks[kernel.name] = kernel.from_blocks(live[rows])
  leaves = {name: kernel.leaf for name, (kernel, _) in found.items()}
  return (
    fill_tree(params, place_like(values, leaves), keep=True),
    fill_tree(params, place_like(masks, leaves)),
  )


def _block_counts(
  members: list[tuple[Kernel, Any]], groups: int, masked: bool
) -> np.ndarray | None:
  """Shares the trained weights of each layer out to its groups, evenly."""
  if masked and is_traced([mask for _, mask in members]):
    return None
  counts = [live_counts(*member) if masked else member[1] for member in members]
  layers = np.concatenate(counts)[:, None]
  return ((layers + groups - 1 - np.arange(groups)) // groups).ravel()


def _check_names(options: Mapping[str, Any], known: tuple[str, ...], of: str) -> None:
  for name in options:
    if name not in known:
      raise ValueError(f"`options` of {of} must be among {known}, got {name!r}.")


def _numpy(*arrays: Any) -> Any:
  """The module for these arrays: NumPy, or that of JAX under tracing."""
  return jnp if is_traced(*arrays) else np


def _join(parts: list[Any]) -> Any:
  return _numpy(*parts).concatenate(parts)


# The starts.

REFERENCES = {
  "orthogonal": dense.dense_orthogonal,
  "delta_orthogonal": dense.delta_orthogonal,
  "conv_orthogonal": dense.conv_orthogonal,
}
# What `eoi_in_mask` may do where no isometry fits: one of fewer units, or other starts.
FALLBACKS = ("partial", "ai", "base")
# Blocks of one shape from which on a program of their own pays for its compilation.
_MANY = 16


class _Stack(NamedTuple):
  """Blocks of one shape, of one or several leaves."""

  names: tuple[str, ...]  # of the leaf of each block
  shape: tuple[int, ...]  # `(in, out)` or `(*window, in, out)`
  dtype: Any  # of the leaves
  keys: Any  # key data of the values, uint32 `[n, 2]`
  mask_keys: Any  # key data of the masks, likewise
  budgets: np.ndarray | None  # trained weights `[n]`; None if masks are traced
  masks: Any  # bool `[n, *shape]`; None if only densities are given
  strided: tuple[tuple[int, ...], bool]  # strides of "polyphase"; is it transposed?
  center: tuple[int, ...]  # the tap that reads the output's own pixel

  @property
  def matrix_shape(self) -> tuple[int, int]:
    """`(in, out)`."""
    return (self.shape[-2], self.shape[-1])

  @property
  def wide_dtype(self) -> Any:
    """Dtype of the arithmetic: float32 at least."""
    return np.promote_types(self.dtype, jnp.float32)

  def known_budgets(self) -> np.ndarray:
    """The budgets, for a start that draws masks of its own."""
    if self.budgets is None:
      raise ValueError(
        "masks must be concrete arrays for a start that draws new ones; call "
        "`sparsify` outside of `jax.jit`."
      )
    return self.budgets

  def known_masks(self) -> Any:
    """The given masks, or uniformly random ones."""
    if self.masks is not None:
      return self.masks
    nothing = np.zeros((len(self.names), *self.shape), bool)
    return fill(self.mask_keys, nothing, self.known_budgets())


Blocks = tuple[Any, Any]


def _dense_blocks(stack: _Stack, scale: float, *, kind: str) -> Blocks:
  """Dense blocks. A channel on its own is a unit vector: every tap takes part."""
  checks.one_of("reference", kind, REFERENCES)
  kind = "orthogonal" if stack.matrix_shape == (1, 1) else kind
  at_center = kind == "delta_orthogonal"
  shape = stack.matrix_shape if at_center else stack.shape
  values = _dense(stack.keys, scale, kind, shape, jnp.dtype(stack.dtype))
  return _delta(stack, values) if at_center else values, None


@functools.partial(jax.jit, static_argnames=("scale", "kind", "shape", "dtype"))
def _dense(keys, scale: float, kind: str, shape, dtype) -> jax.Array:
  init = REFERENCES[kind](scale)
  return _each(lambda key: init(key, shape, dtype), keys)


def _each(draw: Callable[[jax.Array], jax.Array], keys: jax.Array) -> jax.Array:
  """Draws for every key; one after the other on a CPU.

  There a batched QR decomposition waits for threads of the pool that it runs in, and
  a program with several of them can wait forever.
  """
  if jax.default_backend() == "cpu":
    return jax.lax.map(draw, keys)
  return jax.vmap(draw)(keys)


def _base(
  stack: _Stack, scale: float, *, reference: str = "delta_orthogonal"
) -> Blocks:
  """A dense reference times the mask."""
  masks = stack.known_masks()
  values = on_host(_dense_blocks(stack, scale, kind=reference)[0])
  xp = _numpy(masks, values)
  return xp.where(masks, values, xp.zeros((), values.dtype)), masks


def _ai(
  stack: _Stack, scale: float, *, reference: str = "orthogonal", **options: Any
) -> Blocks:
  """Approximate isometry on the mask, from a dense reference."""
  masks = stack.known_masks()
  start, _ = _dense_blocks(stack, scale, kind=reference)
  result = isometry.approximate_isometry(start, masks, scale=scale, **options)
  return result.kernels, masks


def _eoi(
  stacks: list[_Stack],
  scale: float,
  *,
  taps: str = "center",
  center: str = "plain",
  **law: Any,
) -> Iterator[Blocks]:
  """Exact orthogonal matrices of the budgets, and trainable zeros up to them.

  The law is that of the rotations: angle, schedule and cover.
  """
  eoi.check_options(taps, center, law.get("schedule"))
  shapes, budgets = [], []
  for stack in stacks:
    whole = taps != "center" and math.prod(stack.shape[:-2]) > 1
    shapes.append(stack.shape if whole else stack.matrix_shape)
    budgets.append(_by_budget(stack, taps, center))
  drawn = _sample(stacks, shapes, budgets, scale, law)
  for stack, shape, values in zip(stacks, shapes, drawn, strict=True):
    values = _delta(stack, values) if shape == stack.matrix_shape else values
    yield values, fill(stack.mask_keys, values != 0, stack.known_budgets())


def _eoi_in_mask(
  stack: _Stack,
  scale: float,
  *,
  angle: Angle = None,
  fallback: str | None = None,
  **options: Any,
) -> Blocks:
  """An exact isometry inside the mask; the rest of the mask starts at zero."""
  if fallback not in (None, *FALLBACKS):
    raise ValueError(f"`fallback` must be None or in {FALLBACKS}, got {fallback!r}.")
  known = STARTS[fallback][1] if fallback in ("ai", "base") else ()
  _check_names(options, known, f"`fallback` {fallback!r}")
  masks, dtype = stack.known_masks(), stack.wide_dtype
  if is_traced(masks):
    stack._replace(budgets=None).known_budgets()
  matrices = np.zeros((len(masks), *stack.matrix_shape), dtype)
  failed = []
  for n, pattern in enumerate(np.asarray(masks)[(slice(None), *stack.center)]):
    match = patterns.match_lines(pattern)
    problem = patterns.matching_error(match, pattern.shape)
    if problem and fallback is None:
      raise ValueError(
        f"kernel {stack.names[n]!r}: no exact isometry on this mask: {problem} Option "
        f"`fallback` ({', '.join(FALLBACKS)}) starts such a layer in another way."
      )
    if problem:
      failed.append(n)
    # An isometry of the lines of the smaller side that have a partner.
    tall = pattern.shape[0] > pattern.shape[1]
    lines = np.flatnonzero(match >= 0)
    if lines.size:
      place = (slice(None), lines) if tall else lines
      matrices[n][place] = patterns.sample_in_pattern(
        stack.keys[n], pattern[place], pattern.size, dtype, angle=angle
      )
  values = _delta(stack, (scale * matrices).astype(stack.dtype))
  if failed and fallback != "partial":
    part = stack._replace(keys=stack.keys[failed], masks=masks[failed])
    start = functools.partial(_ai, method="adam") if fallback == "ai" else _base
    values[failed] = on_host(start(part, scale, **options)[0])
  return values, masks


def _eoi_structured(stacks: list[_Stack], scale: float, **law: Any) -> Iterator[Blocks]:
  """EIS: a sparse matrix at the centre tap, trained at all taps of its support.

  Dense kernels and convolutions of three or fewer channels are dense orthogonal.
  """
  is_sparse = [len(stack.shape) > 2 and stack.shape[-2] > 3 for stack in stacks]
  sparse = list(itertools.compress(stacks, is_sparse))
  shapes: list[Any] = [stack.matrix_shape for stack in sparse]
  drawn = _sample(sparse, shapes, list(map(_matrix_budgets, sparse)), scale, law)
  for stack, sparsely in zip(stacks, is_sparse, strict=True):
    if sparsely:
      matrices = next(drawn)
      yield _delta(stack, matrices), _at_all_taps(stack, matrices != 0)
    else:
      yield _dense_blocks(stack, scale, kind="delta_orthogonal")


def _matrix_budgets(stack: _Stack) -> np.ndarray:
  """Nonzeros of the matrices that are trained at all taps."""
  budgets = np.round(stack.known_budgets() / math.prod(stack.shape[:-2]))
  for name, budget in zip(stack.names, budgets, strict=True):
    if budget < min(stack.matrix_shape):
      raise ValueError(
        f"kernel {name!r}: density must be at least {1 / max(stack.matrix_shape):.4g} "
        f"for shape {stack.shape} under start 'eoi_structured', got "
        f"{budget / math.prod(stack.matrix_shape):.4g}; raise it there, or take start "
        "'eoi', whose floor is that of one tap."
      )
  return budgets.astype(np.int64)


def _sao(
  stack: _Stack, scale: float, *, degree: int | None = None, relu: bool = False
) -> Blocks:
  """Orthogonal blocks on random columns; at the centre tap, trained at all taps.

  Dense kernels that are not square and convolutions of three or fewer channels are
  dense orthogonal.
  """
  *window, rows, cols = stack.shape
  if (rows <= 3 or min(rows, cols) == 1) if window else rows != cols:
    return _dense_blocks(stack, scale, kind="delta_orthogonal")
  degrees = np.array([_degree(stack, n, degree, relu) for n in range(len(stack.names))])
  draw = functools.partial(sao.sao_orthogonal, dtype=stack.wide_dtype, relu=relu)

  def sample(blocks, value):
    keys = stack.keys[blocks]
    return scale * _each(lambda key: draw(key, (rows, cols), value), keys)

  matrices = _by_value(degrees, sample).astype(stack.dtype)
  return _delta(stack, matrices), _at_all_taps(stack, matrices != 0)


def _degree(stack: _Stack, index: int, degree: int | None, relu: bool) -> int:
  """Degree of one block, from its budget if none is asked for."""
  if degree is None:
    size = math.prod(stack.shape)
    exact = stack.known_budgets()[index] * max(stack.matrix_shape) / size
    degree = int(exact) if exact == int(exact) else exact
  try:
    return sao.check_degree(stack.matrix_shape, degree, relu=relu)
  except ValueError as error:
    raise ValueError(f"kernel {stack.names[index]!r}: {error}") from None


def _by_budget(stack: _Stack, taps: str, center: str) -> np.ndarray:
  """Nonzeros of each block, from its trained weights; errors name the leaf."""
  budgets, size = stack.known_budgets(), math.prod(stack.shape)
  (*window, rows, cols), (strides, transposed) = stack.shape, stack.strided
  shape = (*window, cols, rows) if transposed else stack.shape
  inner: dict[int, int] = {}
  for name, budget in zip(stack.names, budgets.tolist(), strict=True):
    if budget in inner:
      continue
    try:
      inner[budget] = eoi.kernel_budget(shape, budget / size, taps, center, strides)
    except ValueError as error:
      hint = ' `allocate(..., floors="lift")` lifts layers to their floor.'
      if max(stack.strided[0], default=1) > 1:
        hint = (
          ' `allocate(..., floors="lift", taps="polyphase")` lifts layers to their '
          'floor; taps "all" and "center" take fewer nonzeros.'
        )
      elif stack.matrix_shape == (1, 1):
        hint = " One weight for each channel, or None in its place to keep it dense."
      raise ValueError(f"kernel {name!r}: {error}{hint}") from None
  return np.array([inner[budget] for budget in budgets.tolist()], np.int64)


def _sample(
  stacks: list[_Stack], shapes: list, budgets: list[np.ndarray], scale: float, law
) -> Iterator[Any]:
  """Sparse orthogonal kernels `[n, *shape]` of each stack, of given nonzeros.

  A few blocks share compiled programs with those of other shapes. Many have one of
  their own, for budgets up to a largest one: those are few, and which one a block gets
  depends on its own budget alone, so that its values do, too.
  """
  rest = {name: value for name, value in law.items() if name != "schedule"}
  small: list[bool] = []
  blocks: dict[Any, list[tuple]] = {}  # of small stacks, by the dtype that they share
  for stack, shape, counts in zip(stacks, shapes, budgets, strict=True):
    is_iid = shape == stack.matrix_shape and law.get("schedule") in (None, "iid")
    small.append(is_iid and not is_traced(stack.keys) and len(stack.names) < _MANY)
    if small[-1]:
      of_stack = zip(stack.keys, [shape] * len(counts), counts.tolist(), strict=True)
      blocks.setdefault(stack.wide_dtype, []).extend(of_stack)
  drawn = {}
  for dtype, of_dtype in blocks.items():
    keys, sizes, counts = map(list, zip(*of_dtype, strict=True))
    drawn[dtype] = sample_many(keys, sizes, counts, dtype, **rest)
  for stack, shape, counts, is_small in zip(
    stacks, shapes, budgets, small, strict=True
  ):
    if not is_small:
      yield _sample_alike(stack, shape, counts, scale, law)
      continue
    kernels = np.empty((len(counts), *shape), stack.dtype)
    for place in range(len(counts)):
      kernels[place] = scale * next(drawn[stack.wide_dtype])
    yield kernels


def _sample_alike(
  stack: _Stack, shape: tuple[int, ...], budgets: np.ndarray, scale: float, law
) -> Any:
  """Kernels of one shape by programs of their own."""
  if len(shape) > 2:
    law = law | dict(zip(("strides", "transposed"), stack.strided, strict=True))
  static = (shape, stack.wide_dtype, tuple(sorted(law.items())))

  def sample(rows, largest):
    drawn = _draw(stack.keys[rows], budgets[rows].astype(np.int32), largest, *static)
    return (scale * on_host(drawn)).astype(stack.dtype)

  largest = np.array([_rung(shape, int(budget)) for budget in budgets])
  return _by_value(largest, sample)


@functools.partial(jax.jit, static_argnames=("largest", "shape", "dtype", "law"))
def _draw(keys, budgets, largest: int, shape, dtype, law) -> jax.Array:
  def draw(key, budget):
    return eoi.sample_kernel(key, shape, budget, dtype, max_budget=largest, **dict(law))

  return jax.vmap(draw)(keys, budgets)


def _rung(shape: tuple[int, ...], budget: int) -> int:
  """The next of a few budgets, whose densities are evenly spaced in their logits.

  The rotations that a density takes grow with its logit: the next budget costs at
  most half a rotation more for each column.
  """
  size, lowest, sides = math.prod(shape), min(shape[-2:]), max(shape[-2:])
  if budget <= lowest or 2 * budget * sides >= size * (2 * sides - 1):
    return lowest if budget <= lowest else size
  logit = math.ceil(math.log(budget / (size - budget)))
  return min(size, math.ceil(size / (1 + math.exp(-logit))))


def _by_value(values: np.ndarray, sample: Callable[..., Any]) -> Any:
  """Concatenates `sample(rows, value)` of equal values, in the order of the rows."""
  rows = [np.flatnonzero(values == value) for value in np.unique(values)]
  parts = [on_host(sample(r, int(values[r[0]]))) for r in rows]
  if len(parts) == 1:
    return parts[0]
  return _join(parts)[np.argsort(np.concatenate(rows))]


def _delta(stack: _Stack, matrices: Any) -> Any:
  """Kernels with the matrices at their centre taps."""
  window = stack.shape[:-2]
  place, shape = (slice(None), *stack.center), (len(matrices), *stack.shape)
  if math.prod(window) == 1:
    return matrices.reshape(shape)
  if is_traced(matrices):
    return jnp.zeros(shape, matrices.dtype).at[place].set(matrices)
  kernels = np.zeros(shape, matrices.dtype)
  kernels[place] = matrices
  return kernels


def _at_all_taps(stack: _Stack, support: Any) -> Any:
  """Masks of the support of matrices, at every tap."""
  ones = (1,) * len(stack.shape[:-2])
  support = support.reshape(-1, *ones, *stack.matrix_shape)
  return _numpy(support).broadcast_to(support, (len(support), *stack.shape))


def _one_by_one(start: Callable[..., Blocks], **fixed: Any):
  """A start of stacks, from one of a single stack."""

  def run(stacks, scale, **options):
    return (start(stack, scale, **fixed, **options) for stack in stacks)

  return run


_OF_AI = ("reference", "method", "num_steps", "step_size")

# Of each start: the function, and the names of its options.
STARTS: dict[str, tuple[Callable[..., Iterator[Blocks]], tuple[str, ...]]] = {
  "eoi": (_eoi, ("taps", "center", "angle", "schedule", "cover")),
  "eoi_in_mask": (_one_by_one(_eoi_in_mask), ("angle", "fallback", *_OF_AI)),
  "eoi_structured": (_eoi_structured, ("angle", "schedule", "cover")),
  "base": (_one_by_one(_base), ("reference",)),
  "ai": (_one_by_one(_ai), _OF_AI),
  "sao": (_one_by_one(_sao), ("degree", "relu")),
  **{kind: (_one_by_one(_dense_blocks, kind=kind), ()) for kind in REFERENCES},
}
