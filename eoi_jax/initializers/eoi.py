"""Initializers of dense and convolution kernels with the call shape of JAX's own."""

import functools
import math
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from eoi_jax import _checks, _keys
from eoi_jax.givens._plan import Angle, check_schedule
from eoi_jax.givens.orthogonal import check_dtype, sample_to_budget
from eoi_jax.initializers._paraunitary import all_taps
from eoi_jax.initializers._polyphase import strided_taps
from eoi_jax.layouts.layout import TAPS, Kernel, Layout, block_floor, check_fit

Initializer = Callable[..., jax.Array]

CENTER_RULES = ("plain", "more")


def eoi_init(
  density: float,
  *,
  scale: float = 1.0,
  angle: Angle = None,
  schedule: str | None = None,
  cover: bool = False,
  taps: str = "center",
  center: str = "plain",
  axes: str | None = None,
  groups: int | None = None,
  strides: int | tuple[int, ...] | None = None,
) -> Initializer:
  """Exact orthogonal initialization of sparse kernels.

  A dense kernel `(in, out)` is `scale` times a `sparse_orthogonal` matrix. A
  convolution kernel `(*window, in, out)` is isometric as a convolution, from the
  smaller to the larger of `in` and `out`:

    - taps "center", as published: such a matrix `H` at the centre tap and zeros
      elsewhere (delta-orthogonal), isometric at stride 1 with "SAME" or circular
      padding;
    - taps "all": nonzeros on every tap, isometric at stride 1 with circular padding;
      zero padding loses what is shifted out at the border;
    - taps "polyphase": likewise at `strides`, which divide the image and are no larger
      than the window; its matrix is `(in * prod(strides), out)` then, not `(in, out)`.

  The density counts all weights of the kernel, all taps included. `kernel_masks` fills
  the mask up to it with trainable zeros. The density of `H` at the centre tap is

    - "plain": `density`;
    - "more": `min(density * taps, sqrt(density), 1)`, more of them at the centre;

  in both cases at least the floor `1 / max(in, out)`, if the kernel's budget
  `round(density * size)` reaches that far.

  An initializer sees a shape and nothing else. It reads rank 2 as `(in, out)`; ranks 4
  and 5 with a window of sizes up to 11, and rank 3 if that size is odd, too, as a
  convolution of one group. It refuses other shapes, and windows over one input
  channel: say `axes` and `groups`. It cannot see that a convolution is grouped:
  pass `groups=feature_group_count`. Flax flattens the kernels of DenseGeneral and of
  attention before it calls an initializer; those of Einsum need `axes`.

  Args:
    density: fraction of trainable weights, in `[1 / (taps max(in, out)), 1]`.
    scale: gain `sigma_w`, finite: the singular values of the kernel's matrix.
    angle: as in `sparse_orthogonal`.
    schedule: as in `sparse_orthogonal`; None is "iid", as published, but "matching"
      for kernels on all taps, whose taps then get more even shares in less time.
    cover: as in `sparse_orthogonal`.
    taps: which taps of a convolution carry nonzeros: "center", "all" or "polyphase".
    center: rule for the density of a convolution's centre tap, "plain" or "more".
    axes: meaning of the axes of the shape, one letter an axis (i input, o output, w
      window, s stack), as in `Layout`: "ioo" for a kernel `(in, heads, dim)`.
    groups: groups of a convolution, 1 for one that sees a gray image; None = 1 where
      that leaves no doubt.
    strides: strides of the convolution, for taps "polyphase" alone; a transposed
      convolution is started by `sparsify`, whose layouts know it.

  Returns:
    `init(key, shape, dtype=jnp.float32, out_sharding=None)`, a JAX initializer. It is
    pure, jittable, and vmappable over keys.

  Raises:
    ValueError: if an argument is out of range; from `init`, if the shape is in doubt or
      the density is below its floor.

  Example:
    >>> kernel = eoi_init(0.1)(jax.random.key(0), (3, 3, 32, 64))
    >>> bool((kernel[0] == 0).all()), int((kernel[1, 1] != 0).sum()) <= 205
    (True, True)

  Reference: Nowak et al., 2024, arXiv:2406.01755, sections 4 and 5, appendix F.
  """
  density, cover = _checks.density(density), bool(cover)
  scale = _checks.number("scale", scale)
  check_options(taps, center, schedule)
  if (strides is None) == (taps == "polyphase"):
    rule = "be given for" if strides is None else "be None without"
    raise ValueError(f'`strides` must {rule} taps "polyphase", got {strides}.')
  if groups is not None:
    groups = _checks.integer("groups", groups, 1)
  if axes is not None:
    Layout(axes)  # checks the letters

  def init(key, shape, dtype=jnp.float32, out_sharding=None):
    dtype, key = check_dtype(dtype), _keys.as_key(key)
    shape = check_shape(shape, any_rank=axes is not None)
    kernel, block = None, shape
    if axes is not None or groups is not None:
      layout = Layout(axes or "w" * (len(shape) - 2) + "io", groups or 1)
      check_fit("shape", shape, layout)
      kernel = Kernel("shape", jax.ShapeDtypeStruct(shape, dtype), layout)
      block = kernel.block_shape
    else:
      _check_without_doubt(shape)
    steps = () if strides is None else _checks.strides(strides, len(block) - 2)
    budget = kernel_budget(block, density, taps, center, steps)
    at_center = taps == "center" or math.prod(block[:-2]) == 1
    sample_shape = block[-2:] if at_center else block
    wide = np.promote_types(dtype, jnp.float32)

    def sample(key):
      options = {"angle": angle, "schedule": schedule, "cover": cover}
      drawn = sample_kernel(key, sample_shape, budget, wide, strides=steps, **options)
      drawn = (drawn if scale == 1 else scale * drawn).astype(dtype)
      return delta_kernel(drawn, block[:-2]) if at_center else drawn

    if kernel is None:
      return place(sample(key), out_sharding)
    if kernel.num_blocks == 1:
      blocks = sample(key)[None]
    else:
      blocks = jax.vmap(sample)(jax.random.split(key, kernel.num_blocks))
    return place(kernel.from_blocks(blocks), out_sharding)

  return init


def check_shape(shape: Any, *, any_rank: bool = False) -> tuple[int, ...]:
  """Returns the shape of a kernel as a tuple of ints or raises ValueError."""
  try:
    sizes = tuple(operator.index(size) for size in shape)
  except TypeError:
    sizes = ()
  if len(sizes) < 2 or min(sizes) < 1 or not (any_rank or len(sizes) <= 5):
    raise ValueError(
      "`shape` must be (in, out) or (*window, in, out) with a window of rank 1 to 3, "
      f"got {shape!r}."
    )
  return sizes


def _check_without_doubt(shape: tuple[int, ...]) -> None:
  """Raises ValueError unless a shape is a matrix or a convolution of one group."""
  rank, window = len(shape), shape[:-2]
  if max(window, default=1) > 11 or (rank == 3 and window[0] % 2 == 0):
    raise ValueError(
      f"`axes` must say what the axes of `shape` {shape} are, since it is no kernel "
      "(in, out) and no convolution (*window, in, out) with a window of sizes up to "
      "11 (odd, if it has one axis): one letter an axis (i input, o output, w "
      f'window, s stack): `eoi_init(density, axes="{"i" + "o" * (rank - 1)}")`.'
    )
  if math.prod(window) > 1 and shape[-2] == 1 < shape[-1]:
    raise ValueError(
      f"`groups` must say whether `shape` {shape} is a depthwise convolution "
      f"(`groups={shape[-1]}`) or one that sees a single channel (`groups=1`)."
    )


def check_options(taps: str, center: str, schedule: str | None) -> None:
  """Raises ValueError, with the known ones, unless the options are known."""
  if taps not in TAPS:
    raise ValueError(f"`taps` must be one of {TAPS}, got {taps!r}.")
  if center not in CENTER_RULES:
    raise ValueError(f"`center` must be one of {CENTER_RULES}, got {center!r}.")
  check_schedule(schedule or "iid")


def kernel_budget(
  shape: tuple[int, ...],
  density: float,
  taps: str = "center",
  center: str = "plain",
  strides: tuple[int, ...] = (),
) -> int:
  """Nonzeros that `eoi_init` may place in a kernel of some density.

  For taps "center" they are those of the matrix at the centre tap, else of the whole
  kernel `(in, out)` or `(*window, in, out)`; strides () are 1.

  Raises:
    ValueError: if the density is below the floor of the shape.
  """
  window, matrix_shape = shape[:-2], shape[-2:]
  num_taps, size = math.prod(window), math.prod(matrix_shape)
  lowest = block_floor(shape, strides) if taps == "polyphase" else min(matrix_shape)
  floor = lowest / (num_taps * size)
  if not floor * (1 - 1e-9) <= density <= 1.0:
    raise ValueError(
      f"`density` must be in [{floor:.4g}, 1] for shape {tuple(shape)}, got {density}."
    )
  whole = round(density * num_taps * size)
  if taps != "center" and num_taps > 1:
    return max(lowest, whole)
  central = density
  if num_taps > 1:
    if center == "more":
      central = min(density * num_taps, math.sqrt(density), 1.0)
    central = max(central, 1 / max(matrix_shape))
  return max(lowest, min(round(central * size), whole))


def sample_kernel(
  key: jax.Array,
  shape: tuple[int, ...],
  budget: Any,
  dtype: Any,
  *,
  schedule: str | None = None,
  strides: tuple[int, ...] = (),
  transposed: bool = False,
  **options: Any,
) -> jax.Array:
  """A sparse orthogonal matrix, or a convolution isometric on all its taps.

  Of shape `(in, out)`, or `(*window, in, out)`, which is isometric at its strides, ()
  for 1. Other options are those of `sample_to_budget`.
  """
  options["schedule"] = schedule or ("iid" if len(shape) == 2 else "matching")
  if len(shape) == 2:
    return sample_to_budget(key, shape, budget, dtype, **options)
  if max(strides, default=1) == 1:
    return all_taps(key, shape, budget, dtype, **options)
  # What a transposed convolution does is the transpose of a convolution back.
  *window, rows, cols = shape
  shape = (*window, cols, rows) if transposed else shape
  kernel = strided_taps(key, shape, budget, dtype, strides=strides, **options)
  return jnp.swapaxes(kernel, -1, -2) if transposed else kernel


@functools.partial(jax.jit, static_argnames="window")
def delta_kernel(matrix: jax.Array, window: tuple[int, ...]) -> jax.Array:
  """Convolution kernel `(*window, in, out)` with `matrix` at the centre, else zeros.

  The centre is the tap that "SAME" padding aligns with the output's pixel.
  """
  if not window:
    return matrix
  kernel = jnp.zeros((*window, *matrix.shape), matrix.dtype)
  return kernel.at[tuple((size - 1) // 2 for size in window)].set(matrix)


def place(kernel: jax.Array, out_sharding) -> jax.Array:
  """Gives the kernel the sharding that the caller asks for, if any."""
  if out_sharding is None:
    return kernel
  mesh = getattr(out_sharding, "mesh", None)
  if mesh is None or not mesh.auto_axes:
    return jax.sharding.reshard(kernel, out_sharding)
  if not mesh.explicit_axes:
    return jax.lax.with_sharding_constraint(kernel, out_sharding)
  if not isinstance(kernel, jax.core.Tracer):
    return jax.device_put(kernel, out_sharding)

  def only(axes):
    split = [names if isinstance(names, tuple) else (names,) for names in spec]
    kept = (tuple(name for name in names if name in axes) for names in split)
    return jax.NamedSharding(mesh, jax.P(*(names or None for names in kept)))

  # Explicit axes are a part of the type; the others are asked of the partitioner.
  spec = out_sharding.spec
  kernel = jax.sharding.reshard(kernel, only(mesh.explicit_axes))
  return jax.lax.with_sharding_constraint(kernel, only(mesh.auto_axes))
