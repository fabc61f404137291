"""Initializers of dense and convolution kernels with the call shape of JAX's own."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from eoi_jax import _checks as checks
from eoi_jax.givens import _plan as schedules
from eoi_jax.givens import orthogonal
from eoi_jax.givens import orthogonal as sampling
from eoi_jax.givens import rotations as rotations_lib

Initializer = Callable[..., jax.Array]

CENTER_RULES = ("plain", "more")


def eoi_init(
  density: float,
  *,
  scale: float = 1.0,
  angle: rotations_lib.Angle = None,
  schedule: str = "iid",
  cover: bool = False,
  center: str = "plain",
) -> Initializer:
  """Exact orthogonal initialization of sparse kernels.

  A dense kernel `(in, out)` is `scale` times a `sparse_orthogonal` matrix. A
  convolution kernel `(*window, in, out)` carries such a matrix `H` at its centre tap
  and zeros elsewhere (delta-orthogonal): at stride 1, with "SAME" or circular padding,
  the convolution is exactly isometric (from the smaller to the larger of `in`, `out`).

  The density counts all weights of the kernel, all taps included. `kernel_masks` fills
  the mask up to it with trainable zeros. The density of `H` is

    - "plain": `density`;
    - "more": `min(density * taps, sqrt(density), 1)`, more of them at the centre;

  in both cases at least the floor `1 / max(in, out)`, if the kernel's budget
  `round(density * size)` reaches that far.

  Args:
    density: fraction of trainable weights, in `[1 / (taps max(in, out)), 1]`.
    scale: gain `sigma_w`, finite: the singular values of the kernel's matrix.
    angle: as in `sparse_orthogonal`.
    schedule: as in `sparse_orthogonal`.
    cover: as in `sparse_orthogonal`: leaves no input or output dead, as far as the
      density allows.
    center: rule for the density of a convolution's centre tap, "plain" or "more".

  Returns:
    `init(key, shape, dtype=jnp.float32, out_sharding=None)`, a JAX initializer for
    shapes of rank 2 to 5. It is pure, jittable, and vmappable over keys.

  Raises:
    ValueError: if an argument is out of range; from `init`, if the rank is not 2 to
      5 or the density is below the floor of the shape.

  Example:
    >>> kernel = eoi_init(0.1)(jax.random.key(0), (3, 3, 32, 64))
    >>> bool((kernel[0] == 0).all()), int((kernel[1, 1] != 0).sum()) <= 205
    (True, True)

  Reference: Nowak et al., 2024, arXiv:2406.01755, sections 4 and 5, appendix F.
  """
  density = checks.density(density)
  scale = checks.number("scale", scale)
  if center not in CENTER_RULES:
    raise ValueError(f"`center` must be one of {CENTER_RULES}, got {center!r}.")
  schedules.check_schedule(schedule)

  def init(key, shape, dtype=jnp.float32, out_sharding=None):
    dtype = orthogonal.check_dtype(dtype)
    budget = center_budget(shape, density, center=center)
    compute_dtype = checks.compute_dtype(dtype)
    matrix = sampling.sample_to_budget(
      key,
      tuple(shape[-2:]),
      budget,
      compute_dtype,
      angle=angle,
      schedule=schedule,
      cover=bool(cover),
    )
    kernel = delta_kernel((scale * matrix).astype(dtype), tuple(shape[:-2]))
    return place(kernel, out_sharding)

  return init


def center_budget(shape, density: float, *, center: str = "plain") -> int:
  """Nonzeros that `eoi_init` may place in a kernel of `shape`.

  Args:
    shape: `(in, out)` or `(*window, in, out)`.
    density: fraction of trainable weights of the whole kernel.
    center: rule of `eoi_init` for convolutions.

  Returns:
    Largest number of nonzeros of the matrix at the centre tap.

  Raises:
    ValueError: if the rank is not 2 to 5 or the density is below the floor.
  """
  shape = check_shape(shape)
  window, matrix_shape = shape[:-2], shape[-2:]
  taps, size = math.prod(window), math.prod(matrix_shape)
  floor = 1 / (taps * max(matrix_shape))
  if not floor * (1 - 1e-9) <= density <= 1.0:
    raise ValueError(
      f"`density` must be in [{floor:.4g}, 1] for shape {shape}, got {density}."
    )
  central = density
  if taps > 1:
    if center == "more":
      central = min(density * taps, math.sqrt(density), 1.0)
    central = max(central, 1 / max(matrix_shape))
  lowest = min(matrix_shape)
  return max(lowest, min(round(central * size), round(density * taps * size)))


def check_shape(shape) -> tuple[int, ...]:
  """Returns the shape of a kernel as a tuple or raises ValueError."""
  shape = tuple(shape)
  if not 2 <= len(shape) <= 5 or min(shape) < 1:
    raise ValueError(
      "`shape` must be (in, out) or (*window, in, out) with a window of rank 1 to 3, "
      f"got {shape}."
    )
  return shape


def delta_kernel(matrix: jax.Array, window: tuple[int, ...]) -> jax.Array:
  """Convolution kernel `(*window, in, out)` with `matrix` at the centre, else zeros.

  The centre is that of `center_tap`.
  """
  if not window:
    return matrix
  kernel = jnp.zeros((*window, *matrix.shape), matrix.dtype)
  return kernel.at[center_tap(window)].set(matrix)


def center_tap(window: tuple[int, ...]) -> tuple[int, ...]:
  """Tap that "SAME" padding aligns with the output pixel: `(k - 1) // 2`."""
  return tuple((size - 1) // 2 for size in window)


def place(kernel: jax.Array, out_sharding) -> jax.Array:
  """Gives the kernel the sharding that the caller asks for, if any."""
  if out_sharding is None:
    return kernel
  mesh = getattr(out_sharding, "mesh", None)
  if mesh is not None and not mesh.are_all_axes_explicit:
    return jax.lax.with_sharding_constraint(kernel, out_sharding)
  return jax.sharding.reshard(kernel, out_sharding)
