"""Sparse kernels whose strided convolution is an isometry, with nonzeros on all taps.

A stride `s` parts an image into `prod(s)` phases: the pixels `s n + p` are an image of
their own, which the taps `p, p + s, ...` of the window see. The strided convolution is
one of stride 1 of all phases together, and an isometry if this chain is:

    mix the channels of all phases by a sparse orthogonal `H1 (out, phases * in)`,
    delay the channels of each phase by its own taps, and rotate them by `H2_p (in, in)`

(in the order of the transposed map, from the outputs to the inputs). Phase `p` then has
the kernel `H1_p[:, d == t] H2_p[d == t, :]` at its tap `t`, as in `_paraunitary.py`,
whose counting of nonzeros on bits it shares.
"""

import functools
import itertools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from eoi_jax import _keys as keys_lib
from eoi_jax.givens import _plan as plan_lib
from eoi_jax.initializers import _paraunitary as paraunitary


class _Phase(NamedTuple):
  """The taps of a window that see one phase of an image."""

  start: tuple[int, ...]  # the first
  sizes: tuple[int, ...]  # of their window

  @property
  def taps(self) -> int:
    return math.prod(self.sizes)


def strided_taps(
  key: jax.Array, shape: tuple[int, ...], budget, dtype=jnp.float32, **options: Any
) -> jax.Array:
  """Samples a sparse kernel on all taps whose strided convolution is an isometry.

  With circular padding and strides that divide the image all singular values of the
  convolution are 1 to rounding: an isometry of its outputs if `out <= in * phases`,
  of its inputs else, where a window at least as large as the strides has
  `prod(strides)` phases. (Strides beyond the window drop pixels: then there are as
  many phases as taps.)

  The shape is `(*window, in, out)`; option `strides` has one for each axis of the
  window, other arguments are those of `all_taps`. The budget is at least `min(out, in *
  phases)`.
  """
  return paraunitary.sample(_draw, key, shape, budget, dtype, **options)


def _phases(window, strides) -> list[_Phase]:
  """The phases of an image, those of few taps first."""
  axes = [
    [(first, -(-(size - first) // stride)) for first in range(min(size, stride))]
    for size, stride in zip(window, strides, strict=True)
  ]
  phases = [_Phase(*zip(*phase, strict=True)) for phase in itertools.product(*axes)]
  return sorted(phases, key=lambda phase: (phase.taps, phase.sizes))


def _draw(words, budget, settings: paraunitary.Settings) -> jax.Array:
  phases = _phases(settings.window, settings.strides)
  rows, hi, taps = settings.outputs, settings.inputs, [p.taps for p in phases]
  columns, total = len(taps) * hi, sum(taps)
  mixed, means = _densities(jnp, budget, rows, hi, taps)
  largest, most = _densities(np, settings.max_budget, rows, hi, taps)
  left = paraunitary.sparse_factor(
    keys_lib.fold_in(words, 0), (rows, columns), mixed, int(largest), settings
  )
  parts = left.reshape(len(taps), hi, rows)
  nonzeros = jnp.count_nonzero(parts, axis=(1, 2)).astype(jnp.int32)
  kernel = jnp.zeros((*settings.window, hi, rows), settings.dtype)
  # Phases of as many taps are drawn by one program, one after the other.
  delays = [paraunitary.delays(phase.sizes, hi) or [1] for phase in phases]
  for _, alike in itertools.groupby(range(len(taps)), key=delays.__getitem__):
    places = list(alike)
    first, last = places[0], places[-1]
    own = nonzeros[first : last + 1]  # what `H1` gave to each
    # What is left goes to the phases by their taps.
    share = taps[first] * (budget // total) + taps[first] * (budget % total) // total
    spare = (budget - nonzeros[first:].sum()) // len(places)
    # With few nonzeros a row meets as many others as its phase has taps.
    mean = min(float(max(most[first], taps[first])), hi)
    draw = functools.partial(
      _delay_and_rotate,
      delays=delays[first],
      mean=means[first],
      settings=paraunitary.rotation_sizes(hi, mean * rows, rows, settings),
    )
    words_of = keys_lib.fold_in(words[None], np.array(places, np.uint32) + 1)
    shares = own + jnp.clip(share - own, 0, spare)
    drawn = jax.lax.map(draw, (words_of, parts[first : last + 1], shares))
    for part, place in zip(drawn, places, strict=True):
      start, sizes = phases[place]
      part = jnp.swapaxes(part.reshape(*sizes, rows, hi), -1, -2)
      steps = zip(start, settings.strides, strict=True)
      kernel = kernel.at[tuple(slice(n, None, step) for n, step in steps)].set(part)
    budget -= jnp.count_nonzero(drawn).astype(jnp.int32)
    total -= taps[first] * len(places)
  return kernel


def _densities(xp, budget, rows: int, hi: int, taps: list[int]):
  """Nonzeros of `H1`, and of a row of each `H2_p`, that lead to the budget.

  A product of densities `x` and `y` over `in` channels that are dealt to `t` taps has
  the density `1 - (1 - x y)^(in / t)`. `H1` is no denser than the kernel: a phase of
  one tap could not have fewer nonzeros.
  """
  columns, total = hi * len(taps), sum(taps)
  density = xp.minimum(budget / (total * hi * rows), 1.0)
  chance = functools.partial(paraunitary.path_chance, xp, density)
  mixed = xp.minimum(xp.sqrt(chance(hi * len(taps) / total)), density)
  mixed = xp.clip(mixed, 1 / max(rows, columns), 1.0)
  number = xp.round(mixed * (rows * columns)).astype("int32")
  means = [xp.clip(hi * chance(hi / t) / mixed, 1.0, hi) for t in taps]
  return xp.clip(number, min(rows, columns), budget), means


def _delay_and_rotate(args, *, delays, mean, settings: plan_lib.Settings):
  """Spreads one phase over its taps: float array `[taps * rows, hi]`."""
  words, left, budget = args
  begin = jnp.count_nonzero(left).astype(jnp.float32)
  growth = budget.astype(jnp.float32) / jnp.maximum(begin, 1)
  part = left
  for place, taps in enumerate(delays, start=1):
    whole = jnp.round(begin * growth ** (place / len(delays))).astype(jnp.int32)
    part = paraunitary.delay_and_rotate(
      keys_lib.fold_in(words, place),
      part if place == 1 else part.reshape(-1, len(left)).T,
      taps,
      mean ** (1 / len(delays)),
      budget if place == len(delays) else jnp.minimum(whole, budget),
      settings,
    )
  return part
