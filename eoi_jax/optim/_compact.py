"""Optimizer states of live weights only: leaves as vectors, and back.

A masked leaf becomes the vector of its live weights, in row-major order. Both ways are
gathers: the mask is kept as bits, and the place of a weight in the vector is the number
of bits before its own. Steps take as long as with masks; with a scatter in place of the
second gather they take 1.2 times as long, and one more array of the size of the leaf.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from eoi_jax.optim._masked import gathered, match_type

_TOLERANCE = 1e-6  # of the largest step of a leaf: decay by 1e-5 is seen
_STEPS = (8, 64)  # fewest and most that are tried; accumulators move now and then


class LiveWeights(NamedTuple):
  """Where the live weights of a leaf are: `4 live + size / 4` bytes.

  Attributes:
    indices: int32 `[live]`, positions in the flat leaf, in order.
    bits: uint32 `[ceil(size / 32)]`, the mask of the flat leaf, lowest bits first.
    before: int32 likewise, live weights before those of each word of bits.
    used: bool `[size]` for each axis of the leaf: whether a position along it has a
      live weight.
  """

  indices: jax.Array
  bits: jax.Array
  before: jax.Array
  used: tuple[jax.Array, ...]

  @property
  def shape(self) -> tuple[int, ...]:
    """Shape of the leaf."""
    return tuple(axis.shape[-1] for axis in self.used)

  def to_mask(self) -> jax.Array:
    """The bool mask; with leading axes where `vmap` has put some."""
    shape = self.shape
    batch = self.bits.shape[:-1]
    words, place = self._words()
    flat = ((words >> place) & 1).reshape(*batch, -1)[..., : math.prod(shape)]
    return flat.reshape(*batch, *shape) > 0

  def to_leaf(self, vector: jax.Array, rest: jax.Array) -> jax.Array:
    """A leaf with `vector` at the live weights and `rest` at the others."""
    dtype, like = jnp.promote_types(vector.dtype, rest.dtype), rest
    vector, rest = vector.astype(dtype), gathered(rest).astype(dtype)
    if not vector.size:
      return match_type(rest, like)
    vector = jax.lax.platform_dependent(vector, cpu=self._store, default=lambda v: v)
    words, place = self._words()
    below = words & ((jnp.uint32(1) << place) - 1)
    rank = self.before[:, None] + jax.lax.population_count(below).astype(jnp.int32)
    rank = rank.reshape(-1)[: rest.size].reshape(rest.shape)
    leaf = jnp.where(self.to_mask(), vector.at[rank].get(mode="clip"), rest)
    return match_type(leaf, like)

  def _store(self, vector: jax.Array) -> jax.Array:
    """The same: under a condition that always holds, the CPU's compiler stores it.

    Else it is computed again at every weight, dead ones too: 3 times slower.
    """
    return jax.lax.cond(self.indices[0] >= 0, lambda v: v, jnp.zeros_like, vector)

  def _words(self) -> tuple[jax.Array, jax.Array]:
    """The word of each bit and its place there, both uint32 `[..., words, 32]`."""
    shape = (*self.bits.shape, 32)
    words = jnp.broadcast_to(self.bits[..., None], shape)
    return words, jax.lax.broadcasted_iota(jnp.uint32, shape, len(shape) - 1)


def is_end(node: Any) -> bool:
  """Whether a node stands for a leaf of the parameters."""
  return node is None or isinstance(node, LiveWeights)


def _map(function, live: Any, *trees: Any) -> Any:
  """Maps `function(live, *leaves)` over masked leaves; others are the first tree's."""
  return jax.tree.map(
    lambda ours, *leaves: leaves[0] if ours is None else function(ours, *leaves),
    *(live, *trees),
    is_leaf=is_end,
  )


def find_live(masks: Any) -> Any:
  """Tree like `masks` of `LiveWeights`, None = dense leaf."""

  def find(mask):
    if isinstance(mask, jax.core.Tracer | jax.ShapeDtypeStruct):
      raise ValueError(
        "`masks` must be concrete with compact=True, since their counts are shapes: "
        f"got {type(mask).__name__}; build the transformation outside of `jit`."
      )
    mask = np.asarray(mask)
    axes = range(mask.ndim)
    used = (mask.any(axis=tuple(a for a in axes if a != axis)) for axis in axes)
    words = np.pad(mask.reshape(-1), (0, -mask.size % 32)).reshape(-1, 32)
    bits = np.packbits(words, bitorder="little").view("<u4").astype(np.uint32)
    counts = words.sum(1, dtype=np.int32)
    return LiveWeights(
      indices=jnp.asarray(np.flatnonzero(mask).astype(np.int32)),
      bits=jnp.asarray(bits),
      before=jnp.asarray(counts.cumsum(dtype=np.int32) - counts),
      used=tuple(map(jnp.asarray, used)),
    )

  return jax.tree.map(find, masks)


def gather(live: Any, tree: Any) -> Any:
  """Masked leaves as the vectors of their live weights."""
  return _map(_gather, live, tree)


def _gather(live: LiveWeights, leaf: Any) -> Any:
  if isinstance(leaf, jax.ShapeDtypeStruct):
    return jax.ShapeDtypeStruct(live.indices.shape, leaf.dtype)
  flat = jnp.ravel(gathered(leaf))
  vector = flat.at[live.indices].get(
    mode="promise_in_bounds", indices_are_sorted=True, unique_indices=True
  )
  # A selection that is always true: the compiler then rounds sums of products as it
  # does with masks, and training is the same to the last bit.
  return jnp.where(live.indices >= 0, vector, jnp.zeros((), vector.dtype))


def update(inner, updates, inner_state, params, live, **extra_args):
  """`masked_update` on vectors, with `LiveWeights` in place of the masks."""
  vectors = None if params is None else gather(live, params)
  slopes = gather(live, updates)
  moves, inner_state = inner.update(slopes, inner_state, vectors, **extra_args)
  if params is None:
    rest = jax.tree.map(jnp.zeros_like, updates)
  else:
    rest = jax.tree.map(jnp.negative, params)
  return _map(LiveWeights.to_leaf, live, moves, rest), inner_state


def check_elementwise(inner: Any, params: Any, live: Any) -> None:
  """Checks that `inner` treats a weight the same wherever it stands.

  The states of leaves and of vectors must have one structure, with shapes that differ
  as those of the parameters do; and steps on a small tree of leaves of the same ranks
  must move live weights alike, until two of them have moved some.
  """
  abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(jnp.shape(x), x.dtype), params)
  vectors = gather(live, abstract)
  whole, parts = (jax.eval_shape(inner.init, tree) for tree in (abstract, vectors))
  pairs = zip(jax.tree.leaves(abstract), jax.tree.leaves(vectors), strict=True)
  shapes = {(x.shape, y.shape) for x, y in pairs}
  if jax.tree.structure(whole) != jax.tree.structure(parts):
    _refuse("its state has another structure for vectors than for matrices")
  for x, y in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
    if x.shape != y.shape and (x.shape, y.shape) not in shapes:
      _refuse(f"it keeps an array of shape {x.shape}, which is that of no parameter")
  with jax.ensure_compile_time_eval():
    _try_out(inner, abstract, live)


def _refuse(problem: str) -> None:
  raise ValueError(
    "`inner` must treat a weight the same wherever it stands with compact=True: "
    f"{problem}; use compact=False."
  )


def _try_out(inner: Any, abstract: Any, live: Any) -> None:
  """Compares steps of `inner` on small leaves and on their live weights."""
  rng = np.random.default_rng(0)

  def draw(leaf):
    shape = tuple(min(size, 4 if len(leaf.shape) > 1 else 8) for size in leaf.shape)
    dtype = jnp.promote_types(leaf.dtype, jnp.float32)
    return jnp.asarray(rng.standard_normal(shape), dtype)

  params = jax.tree.map(draw, abstract)
  masks = jax.tree.map(
    lambda ours, x: None if ours is None else rng.random(x.shape) < 0.6,
    *(live, params),
    is_leaf=is_end,
  )
  small = find_live(masks)

  def keep_live(tree):
    return _map(LiveWeights.to_leaf, small, gather(small, tree), zeros)

  zeros = jax.tree.map(jnp.zeros_like, params)
  params = keep_live(params)
  vectors = gather(small, params)
  state, vector_state = inner.init(params), inner.init(vectors)
  fewest, most = _STEPS
  moved = 0
  for step in range(most):
    if step >= fewest and moved >= 2:
      break
    slopes = keep_live(jax.tree.map(draw, abstract))
    try:
      moves, state = inner.update(slopes, state, params)
      got, vector_state = inner.update(gather(small, slopes), vector_state, vectors)
    except (TypeError, ValueError) as error:
      _refuse(f"it cannot be tried without extra arguments ({error})")
    pairs = list(zip(*map(jax.tree.leaves, (got, gather(small, moves))), strict=True))
    moved += any(bool(jnp.any(y != 0)) for _, y in pairs)
    for x, y in pairs:
      bound = _TOLERANCE * jnp.abs(y).max(initial=1e-30)
      if not bool(jnp.all(jnp.abs(x - y) <= bound.astype(x.dtype))):
        _refuse("it moves live weights otherwise when they are a vector")
