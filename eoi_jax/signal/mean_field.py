"""Mean-field criticality: the gains at which deep networks neither shrink nor blow up.

A wide network with kernels of gain `sigma_w` and biases of deviation `sigma_b` carries
pre-activations of variance `q` from layer to layer by, with `z` standard normal,

    q' = sigma_w^2 E[f(sqrt(q) z)^2] + sigma_b^2,
    chi_1 = sigma_w^2 E[f'(sqrt(q) z)^2],

where `chi_1` is the mean square singular value of a layer's Jacobian. On the critical
line `q' = q = q_star` and `chi_1 = 1`. Both means are integrated adaptively in float64,
kinks of the activation included: the relative error is below 1e-10.

Reference: Poole et al., 2016, arXiv:1606.05340; Schoenholz et al., 2017,
arXiv:1611.01232; Pennington et al., 2017, arXiv:1711.04735.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from eoi_jax import _checks as checks

Activation = Callable[[jax.Array], jax.Array]

# What rounding leaves of a variance that is exactly zero.
_ROUNDING = 1e-12
# A rate below this is critical: gains carry rounding of their own.
_CRITICAL = 1e-10
_LARGEST, _SMALLEST = 1e12, 1e-12
# Beyond 12 deviations the Gaussian weight is below 1e-31.
_REACH = 12.0
# Breakpoints shrink towards 0, so that a step of any width there is resolved.
_HALVINGS = 32
_MAX_DEPTH, _MAX_CELLS = 48, 4096
# Relative change by halving at which a cell is done, and that all cells may leave.
_TOLERANCE, _UNRESOLVED = 1e-14, 1e-5
_NEGLIGIBLE = 1e-16  # of an integrand at the ends, where the density is 2e-32
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(16)
_PADDING = 64  # cells evaluated at once: one compiled shape


def critical_point(activation: Activation, q_star: float) -> tuple[float, float]:
  """Gain and bias deviation on the critical line.

  `sigma_w^2 = 1 / E[f'(sqrt(q_star) z)^2]` makes `chi_1 = 1`; `sigma_b^2 = q_star -
  sigma_w^2 E[f(sqrt(q_star) z)^2]` then keeps the variance at `q_star`.

  Args:
    activation: elementwise JAX function of a float array.
    q_star: variance of the pre-activations, positive.

  Returns:
    `(sigma_w, sigma_b)`, Python floats.

  Raises:
    ValueError: if `q_star` is not a positive number, or the activation has no critical
      point there: its slope is 0, its mean squared derivative diverges, or `sigma_b^2`
      would be negative.

  Example:
    >>> sigma_w, sigma_b = critical_point(jax.nn.relu, 1.0)
    >>> bool(abs(sigma_w**2 - 2) < 1e-9), sigma_b
    (True, 0.0)
  """
  q_star = checks.positive("q_star", q_star)
  square = _mean_square(activation, q_star)
  slope = _check_slope(_mean_slope(activation, q_star), q_star)
  variance = q_star - square / slope
  if variance < -_ROUNDING * q_star:
    raise ValueError(
      f"`q_star` must leave room for a bias: at {q_star:g} the critical gain "
      f"{slope**-0.5:.4g} alone gives a variance of {square / slope:.4g}."
    )
  variance = 0.0 if variance <= _ROUNDING * q_star else variance
  return slope**-0.5, math.sqrt(variance)


def critical_variance(activation: Activation, sigma_w: float) -> float:
  """Variance at which the gain `sigma_w` is critical.

  Args:
    activation: as in `critical_point`.
    sigma_w: gain of the kernels, positive.

  Returns:
    The `q_star` in `[1e-12, 1e12]` for which `critical_point` gives `sigma_w`. If there
    are several, one of them.

  Raises:
    ValueError: if there is none (a tanh needs `sigma_w > 1`), or any variance will do
      (a ReLU at `sqrt(2)`).

  Example:
    >>> q_star = critical_variance(jax.numpy.tanh, 1.05**0.5)
    >>> print(f"{critical_point(jax.numpy.tanh, q_star)[1] ** 2:.3g}")
    2.01e-05
  """
  sigma_w = checks.positive("sigma_w", sigma_w)

  def excess(log_q):
    # A slope may be 0 to rounding at small variances: that of relu(x - 1), say.
    return math.log(max(chi_1(activation, math.exp(log_q), sigma_w=sigma_w), 1e-300))

  grid = np.linspace(math.log(_SMALLEST), math.log(_LARGEST), 25).tolist()
  values = [excess(log_q) for log_q in grid]
  if max(map(abs, values)) < _ROUNDING:
    raise ValueError(
      f"`activation` must tell variances apart: at `sigma_w` = {sigma_w:.4g} every "
      "variance is critical."
    )
  for left, right, a, b in zip(grid, grid[1:], values, values[1:], strict=False):
    if a * b < 0:
      return math.exp(_root(excess, left, right))
  gains = sorted(sigma_w / math.exp(value / 2) for value in (values[0], values[-1]))
  raise ValueError(
    f"`sigma_w` must be a gain on the critical line of the activation, between about "
    f"{gains[0]:.4g} and {gains[1]:.4g}, got {sigma_w:g}."
  )


def variance_fixed_point(
  activation: Activation, sigma_w: float, sigma_b: float
) -> float:
  """Variance of the pre-activations deep in a network, `q_star`.

  The fixed point `q' = q` that the layers approach from a variance of 1.

  Args:
    activation: as in `critical_point`.
    sigma_w: gain of the kernels, positive.
    sigma_b: deviation of the biases, at least 0.

  Returns:
    `q_star`: a float; 0 if the signal dies out (below 1e-12), `inf` if it blows up
    (above 1e12).

  Raises:
    ValueError: if an argument is out of range, or the mean square of the activation
      diverges at a variance on the way.

  Example:
    >>> q_star = variance_fixed_point(jax.nn.relu, 1.0, 0.5)
    >>> bool(abs(q_star - 0.5) < 1e-9)
    True
  """
  sigma_w, sigma_b = _gains(sigma_w, sigma_b)

  def growth(log_q):
    q = math.exp(log_q)
    return (sigma_w**2 * _mean_square(activation, q) + sigma_b**2) / q - 1.0

  here, there, direction = 0.0, 0.0, growth(0.0)
  if abs(direction) < _ROUNDING:
    return 1.0
  while math.log(_SMALLEST) <= there <= math.log(_LARGEST):
    here, there = there, there + math.copysign(math.log(2), direction)
    if growth(there) * direction <= 0:
      return math.exp(_root(growth, here, there))
  return math.inf if direction > 0 else 0.0


def chi_1(activation: Activation, q_star: float, *, sigma_w: float) -> float:
  """Mean square singular value of a layer's Jacobian, `sigma_w^2 E[f'^2]`.

  Below 1 gradients vanish and inputs become alike with depth, above 1 gradients
  explode and inputs drift apart.

  Args:
    activation: as in `critical_point`.
    q_star: as there.
    sigma_w: gain of the kernels, positive.

  Returns:
    A Python float.

  Raises:
    ValueError: if an argument is out of range, or the mean squared derivative of
      the activation diverges.

  Example:
    >>> round(chi_1(jax.nn.relu, 1.0, sigma_w=1.0), 9)
    0.5
  """
  sigma_w = checks.positive("sigma_w", sigma_w)
  q_star = checks.positive("q_star", q_star)
  return sigma_w**2 * _mean_slope(activation, q_star)


def correlation_length(activation: Activation, sigma_w: float, sigma_b: float) -> float:
  """Number of layers over which a small difference changes by a factor e.

  `1 / |log chi_1|` at the variance that the network settles at: in the ordered phase
  (`chi_1 < 1`) the depth to which two inputs stay apart and gradients survive, in the
  chaotic phase the depth over which they grow. Networks are trainable up to a few
  times this depth.

  Args:
    activation: as in `critical_point`.
    sigma_w: as in `variance_fixed_point`.
    sigma_b: as there.

  Returns:
    The length in layers, `inf` on the critical line; 0 if the signal blows up, or dies
    out where the activation has no slope.

  Raises:
    ValueError: if an argument is out of range, or the slope of the activation is 0 at
      `q_star > 0` (a step), or its mean square diverges.

  Example:
    >>> round(correlation_length(jax.nn.relu, 1.0, 0.5), 6)  # 1 / log(2)
    1.442695
  """
  sigma_w, sigma_b = _gains(sigma_w, sigma_b)
  q_star = variance_fixed_point(activation, sigma_w, sigma_b)
  if q_star == math.inf:
    return 0.0
  chi = chi_1(activation, q_star or _SMALLEST, sigma_w=sigma_w)
  if q_star == 0.0 and chi == 0.0:
    return 0.0
  rate = abs(math.log(_check_slope(chi, q_star)))
  return math.inf if rate < _CRITICAL else 1 / rate


def _gains(sigma_w, sigma_b) -> tuple[float, float]:
  sigma_b = checks.number("sigma_b", sigma_b)
  if sigma_b < 0:
    raise ValueError(f"`sigma_b` must be at least 0, got {sigma_b!r}.")
  return checks.positive("sigma_w", sigma_w), sigma_b


def _root(function: Callable[[float], float], left: float, right: float) -> float:
  """The root between two points at which the function has different signs."""
  from scipy import optimize

  return float(optimize.brentq(function, left, right, xtol=1e-13))  # pyright: ignore


def _mean_square(activation: Activation, q: float) -> float:
  return _gaussian_mean("square", _value, activation, q)


def _mean_slope(activation: Activation, q: float) -> float:
  return _gaussian_mean("squared derivative", _slope, activation, q)


def _check_slope(slope: float, q: float) -> float:
  if slope > 0:
    return slope
  raise ValueError(
    f"`activation` must have a slope at Gaussian inputs of variance {q:g}: its mean "
    "squared derivative is 0."
  )


@functools.partial(jax.jit, static_argnums=0)
def _value(activation, x):
  return activation(x)


@functools.partial(jax.jit, static_argnums=0)
def _slope(activation, x):
  return jax.jvp(activation, (x,), (jnp.ones_like(x),))[1]


def _gaussian_mean(name: str, function: Callable, activation: Activation, q: float):
  """Mean of the square of a function of the activation at variance `q`.

  Gauss-Legendre on cells that are halved wherever halving changes the result: a kink
  is closed in on from both sides, smooth stretches stay whole.
  """

  def integrand(z):
    padded = np.pad(z, ((0, -len(z) % _PADDING), (0, 0)))
    blocks = math.sqrt(q) * padded.reshape(-1, _PADDING, len(_NODES))
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
      values = np.concatenate([function(activation, block) for block in blocks])
    if not jnp.issubdtype(values.dtype, jnp.floating):
      raise ValueError(
        f"`activation` must return real floating-point numbers, got {values.dtype}."
      )
    density = np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    return density * np.square(values[: len(z)].astype(np.float64))

  def integrals(left, right):  # over each cell
    half = (right - left)[:, None] / 2
    return (half * _WEIGHTS * integrand(left[:, None] + half * (1 + _NODES))).sum(
      axis=1
    )

  edges = _REACH * 2.0 ** -np.arange(_HALVINGS)
  edges = np.concatenate([-edges, [0.0], edges[::-1]])
  left, right = edges[:-1], edges[1:]
  coarse = integrals(left, right)
  scale, total = np.abs(coarse).sum(), 0.0
  for _ in range(_MAX_DEPTH):
    middle = (left + right) / 2
    left = np.stack([left, middle], axis=1).ravel()
    right = np.stack([middle, right], axis=1).ravel()
    fine = integrals(left, right)
    change = np.abs(fine.reshape(-1, 2).sum(axis=1) - coarse)
    rest = np.repeat(change > _TOLERANCE * scale, 2)
    total += fine[~rest].sum()
    left, right, coarse = left[rest], right[rest], fine[rest]
    if not rest.any() or len(left) > _MAX_CELLS:
      break
  # Halving goes on for ever at a pole. The ends carry weight if the function grows
  # faster than the density decays, and not only where the mean itself is tiny.
  ends = integrand(np.outer([-_REACH, _REACH], np.ones_like(_NODES))).max()
  total, unresolved = total + coarse.sum(), change[rest[::2]].sum()
  largest = max(unresolved, ends if ends > _NEGLIGIBLE else 0.0)
  if not math.isfinite(total) or largest > _UNRESOLVED * total:
    raise ValueError(
      f"`activation` must have a finite mean {name} at Gaussian inputs of variance "
      f"{q:g}: the integral diverges or the function is not finite."
    )
  return float(total)
