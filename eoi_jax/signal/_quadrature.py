"""Gaussian means of an activation and of its slope, exact for kinked ones too."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import jax
import numpy as np

# Beyond 12 deviations the Gaussian weight is below 1e-31.
_REACH = 12.0
# Breakpoints shrink towards 0, so that a step of any width there is seen.
_HALVINGS = 32
_MAX_DEPTH = 48
_MAX_CELLS = 4096
_TOLERANCE = 1e-14
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(16)
_PADDING = 64  # cells evaluated at once: one compiled shape


def squared_means(activation: Callable, q: float) -> tuple[float, float]:
  """Gaussian means of `f(sqrt(q) z)^2` and `f'(sqrt(q) z)^2`.

  Args:
    activation: `f`, an elementwise JAX function; kinks and jumps are found.
    q: variance, positive.

  Returns:
    Both means, to a relative error of about 1e-12.

  Raises:
    ValueError: if `f` is not finite at these inputs.
  """
  integrals = _integrate(lambda z: _squares(activation, math.sqrt(q) * z))
  if not np.all(np.isfinite(integrals)):
    raise ValueError(
      f"`activation` must be finite at Gaussian inputs of variance {q:g}."
    )
  return float(integrals[0]), float(integrals[1])


def _squares(activation: Callable, x: np.ndarray) -> np.ndarray:
  """`f(x)^2` and `f'(x)^2` in float64, `[2, ...]`."""
  with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
    value, slope = _value_and_slope(activation, x)
  return np.square(np.stack([np.asarray(value), np.asarray(slope)]))


@functools.partial(jax.jit, static_argnums=0)
def _value_and_slope(activation, x):
  return jax.jvp(activation, (x,), (jax.numpy.ones_like(x),))


def _integrate(function: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
  """Integrates against the standard normal density, `[2]`.

  Gauss-Legendre on cells that are halved wherever halving changes the result: a kink
  is closed in on from both sides, smooth stretches stay whole.
  """
  edges = _REACH * 2.0 ** -np.arange(_HALVINGS)
  edges = np.concatenate([-edges, [0.0], edges[::-1]])
  left, right = edges[:-1], edges[1:]
  coarse = _cells(function, left, right)
  scale = np.abs(coarse).sum(axis=1, keepdims=True)
  total = np.zeros(2)
  for _ in range(_MAX_DEPTH):
    middle = (left + right) / 2
    left = np.stack([left, middle], axis=1).ravel()
    right = np.stack([middle, right], axis=1).ravel()
    fine = _cells(function, left, right)
    pairs = fine.reshape(2, -1, 2)
    done = np.all(np.abs(pairs.sum(axis=2) - coarse) <= _TOLERANCE * scale, axis=0)
    total += pairs[:, done].sum(axis=(1, 2))
    rest = np.repeat(~done, 2)
    left, right, coarse = left[rest], right[rest], fine[:, rest]
    # Nothing converges where the function is not finite or is all noise.
    if not rest.any() or len(left) > _MAX_CELLS or not np.all(np.isfinite(coarse)):
      break
  return total + coarse.sum(axis=1)


def _cells(function, left: np.ndarray, right: np.ndarray) -> np.ndarray:
  """Integral over each cell, `[2, cells]`."""
  count = len(left)
  padded = -(-count // _PADDING) * _PADDING
  left, right = (np.pad(edge, (0, padded - count)) for edge in (left, right))
  half = (right - left)[:, None] / 2
  z = left[:, None] + half * (1 + _NODES)
  values = np.concatenate(
    [function(block) for block in z.reshape(-1, _PADDING, len(_NODES))], axis=1
  )
  weights = half * _WEIGHTS * np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
  return np.einsum("fcn,cn->fc", values, weights)[:, :count]
