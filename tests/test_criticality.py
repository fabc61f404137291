import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

from eoi_jax import sparse_orthogonal
from eoi_jax.signal import (
  chi_1,
  correlation_length,
  critical_point,
  critical_variance,
  signal_profile,
  variance_fixed_point,
)


def _kinked(x):
  """Kinks away from 0, and a jump in slope that no even symmetry hides."""
  return jnp.where(x < 0.3, 0.2 * x, jnp.where(x < 1.7, x - 0.24, 1.46))


ACTIVATIONS = {
  "tanh": jnp.tanh,
  "hard_tanh": jax.nn.hard_tanh,
  "relu": jax.nn.relu,
  "leaky_relu": jax.nn.leaky_relu,
  "gelu": jax.nn.gelu,
  "kinked": _kinked,
}


def _by_scipy(activation, q):
  """The two Gaussian means by scipy's adaptive quadrature, told of the kinks."""
  kinks = [0.0] + [s * k / math.sqrt(q) for k in (0.3, 1.0, 1.7) for s in (-1, 1)]

  def mean(function):
    return integrate.quad(
      lambda z: float(function(np.float64(math.sqrt(q) * z))) ** 2 * stats.norm.pdf(z),
      *(-12, 12),
      points=kinks,
      limit=200,
      epsabs=1e-13,
    )[0]

  return mean(jax.jit(activation)), mean(jax.jit(jax.grad(activation)))


@pytest.mark.slow
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_means_agree_with_another_quadrature(name, x64):
  activation, q = ACTIVATIONS[name], 0.7
  square, slope = _by_scipy(activation, q)
  assert chi_1(activation, q, sigma_w=1.3) == pytest.approx(1.69 * slope, rel=1e-9)
  sigma_w, sigma_b = critical_point(activation, q)
  assert sigma_w == pytest.approx(slope**-0.5, rel=1e-9)
  assert sigma_b**2 == pytest.approx(q - square / slope, abs=1e-9)


def test_tanh_at_the_papers_gain():
  q_star = critical_variance(jnp.tanh, math.sqrt(1.05))
  sigma_w, sigma_b = critical_point(jnp.tanh, q_star)
  assert sigma_w**2 == pytest.approx(1.05, rel=1e-10)
  assert sigma_b**2 == pytest.approx(2.01e-5, rel=5e-4)


@pytest.mark.parametrize("q_star", [1e-3, 1.0, 40.0])
def test_relu_is_critical_at_the_gain_of_he(q_star):
  sigma_w, sigma_b = critical_point(jax.nn.relu, q_star)
  assert sigma_w == pytest.approx(math.sqrt(2), rel=1e-12)
  assert sigma_b == 0.0


def test_linear_is_critical_at_gain_one():
  assert critical_point(lambda x: x, 2.0) == (pytest.approx(1.0, rel=1e-12), 0.0)


def test_hard_tanh_in_closed_form():
  sigma_w, _ = critical_point(jax.nn.hard_tanh, 1.0)
  assert sigma_w == pytest.approx((1 - 2 * stats.norm.sf(1)) ** -0.5, rel=1e-12)


@pytest.mark.parametrize("q_star", [1e-6, 1e6])
def test_extreme_variances_are_resolved(q_star):
  sigma_w, _ = critical_point(jnp.tanh, q_star)
  slope = 1 - 2 * q_star if q_star < 1 else 4 / 3 / math.sqrt(2 * math.pi * q_star)
  assert sigma_w == pytest.approx(slope**-0.5, rel=1e-5)


@pytest.mark.parametrize("q_star", [0.05, 1.0])
@pytest.mark.parametrize("name", ["tanh", "hard_tanh", "gelu"])
def test_the_critical_point_is_a_fixed_point(name, q_star):
  activation = ACTIVATIONS[name]
  sigma_w, sigma_b = critical_point(activation, q_star)
  assert chi_1(activation, q_star, sigma_w=sigma_w) == pytest.approx(1, rel=1e-12)
  if name != "gelu":  # whose map has a second, stable fixed point
    found = variance_fixed_point(activation, sigma_w, sigma_b)
    assert found == pytest.approx(q_star, rel=1e-8)
  assert critical_variance(jnp.tanh, 1.3) == pytest.approx(
    variance_fixed_point(
      jnp.tanh, *critical_point(jnp.tanh, critical_variance(jnp.tanh, 1.3))
    ),
    rel=1e-8,
  )


def test_fixed_points_that_vanish_or_diverge():
  assert variance_fixed_point(jnp.tanh, 0.9, 0.0) == 0.0
  assert variance_fixed_point(jax.nn.relu, 1.5, 0.1) == math.inf
  assert variance_fixed_point(jax.nn.relu, math.sqrt(2), 0.0) == 1.0  # all are fixed
  # q = q / 2 + sigma_b^2
  assert variance_fixed_point(jax.nn.relu, 1.0, 3.0) == pytest.approx(18.0, rel=1e-9)


def test_correlation_length_diverges_at_the_critical_point():
  sigma_w, sigma_b = critical_point(jnp.tanh, 0.1)
  assert correlation_length(jnp.tanh, sigma_w, sigma_b) > 1e8
  ordered = correlation_length(jnp.tanh, sigma_w - 0.05, sigma_b)
  chaotic = correlation_length(jnp.tanh, sigma_w + 0.1, sigma_b)
  assert 1 < ordered < 100 and 1 < chaotic < 100
  assert correlation_length(jax.nn.relu, 1.0, 0.1) == pytest.approx(1 / math.log(2))
  assert correlation_length(jax.nn.relu, 1.5, 0.1) == 0.0


def test_a_slope_that_vanishes_at_small_variances():
  """relu(x - 1) of a weak signal is 0: the signal is lost in the first layer."""

  def activation(x):
    return jax.nn.relu(x - 1)

  assert chi_1(activation, 1e-12, sigma_w=1.0) == 0.0
  assert correlation_length(activation, 1.0, 0.0) == 0.0
  q_star = critical_variance(activation, 2.0)
  assert 4 * stats.norm.sf(q_star**-0.5) == pytest.approx(1, rel=1e-9)


def _power(exponent):
  return lambda x: jnp.abs(x) ** exponent


def test_integrable_poles_of_the_slope():
  """E f'^2 of |x|^p is p^2 E |z|^(2p - 2), by the Gamma function; p > 1/2."""
  for p in (0.75, 2.0):
    moment = 2 ** (p - 1) * math.gamma(p - 0.5) / math.sqrt(math.pi)
    found = chi_1(_power(p), 1.0, sigma_w=1.0)
    assert found == pytest.approx(p**2 * moment, rel=1e-9)


def test_a_divergent_slope_leaves_the_variance(value_error):
  """q' = E |z| sqrt(q) of sqrt(|x|) has a fixed point; only its slope diverges."""
  found = variance_fixed_point(_power(0.5), 1.0, 0.0)
  assert found == pytest.approx(2 / math.pi, rel=1e-9)
  for function in (critical_point, lambda *args: chi_1(*args, sigma_w=1.0)):
    for p in (0.5, 0.4):
      with value_error("`activation`", "mean squared derivative", "diverges"):
        function(_power(p), 1.0)


def _tanh_layer(params, x):
  kernel, bias = params
  return jnp.tanh(x) @ kernel + bias[None, :]


def _tanh_stack(key, sigma_w, sigma_b, *, density, width, depth):
  key_kernels, key_biases = jax.random.split(key)
  init = functools.partial(sparse_orthogonal, shape=(width, width), density=density)
  kernels = jax.lax.map(init, jax.random.split(key_kernels, depth))
  biases = sigma_b * jax.random.normal(key_biases, (depth, width))
  return sigma_w * kernels, biases


@pytest.mark.slow
def test_a_deep_sparse_tanh_net_keeps_its_variance():
  q_star = critical_variance(jnp.tanh, math.sqrt(1.05))
  key_stack, key_inputs, key = jax.random.split(jax.random.key(3), 3)
  stack = _tanh_stack(
    key_stack, *critical_point(jnp.tanh, q_star), density=0.125, width=256, depth=200
  )
  inputs = math.sqrt(q_star) * jax.random.normal(key_inputs, (64, 256))
  profile = signal_profile(key, _tanh_layer, stack, inputs)
  for mean_square in (profile.mean_square[-1], jnp.mean(profile.mean_square)):
    chex.assert_trees_all_close(mean_square, jnp.float32(q_star), rtol=0.05)
  assert 0.3 < profile.gradient_gain[0] < 3


@pytest.mark.slow
def test_off_the_critical_line_the_gradient_is_lost():
  stack = _tanh_stack(jax.random.key(3), 0.9, 0.05, density=0.125, width=256, depth=200)
  inputs = jax.random.normal(jax.random.key(1), (64, 256))
  profile = signal_profile(jax.random.key(2), _tanh_layer, stack, inputs)
  assert profile.gradient_gain[0] < 1e-6


@pytest.mark.parametrize(
  ("call", "words"),
  [
    (lambda: critical_point(jnp.tanh, 0.0), ["`q_star`", "positive"]),
    (lambda: critical_point(jnp.tanh, math.nan), ["`q_star`", "finite"]),
    (lambda: critical_point(jnp.sign, 1.0), ["`activation`", "slope"]),
    (lambda: correlation_length(jnp.sign, 1.0, 0.1), ["`activation`", "slope"]),
    (lambda: critical_point(jnp.log, 1.0), ["`activation`", "finite"]),
    (lambda: critical_point(lambda x: jnp.exp(x**2), 1.0), ["mean square", "diverges"]),
    (lambda: critical_point(lambda x: jnp.exp(1j * x), 1.0), ["real", "complex128"]),
    (lambda: critical_point(lambda x: x - 3, 1.0), ["`q_star`", "10"]),
    (lambda: critical_variance(jnp.tanh, 0.9), ["`sigma_w`", "0.9"]),
    (lambda: critical_variance(jax.nn.relu, 2**0.5), ["every variance"]),
    (lambda: critical_variance(jax.nn.relu, 1.0), ["`sigma_w`", "1.414"]),
    (lambda: chi_1(jnp.tanh, 1.0, sigma_w=-1), ["`sigma_w`", "-1"]),
    (lambda: variance_fixed_point(jnp.tanh, 1.0, -0.1), ["`sigma_b`", "-0.1"]),
    (lambda: correlation_length(jnp.tanh, "a", 0.1), ["`sigma_w`", "'a'"]),
  ],
)
def test_errors(call, words, value_error):
  with value_error(*words):
    call()
