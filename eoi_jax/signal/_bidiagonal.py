"""Golub-Kahan-Lanczos bidiagonalization of a linear map given by its products."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def bidiagonalize(key, to_large, to_small, small, count):
  """Lower bidiagonal matrix of a linear map on a Krylov space.

  Golub and Kahan's iteration with full reorthogonalization. Where the space ends early
  (a repeated singular value, say), a random direction orthogonal to it goes on.

  Args:
    key: a PRNG key; it is consumed.
    to_large: the transposed map, from the smaller side.
    to_small: the map, from the larger side.
    small: array `[n]` of the smaller side's size and dtype; its values do not matter.
    count: number of iterations, at most `n`.

  Returns:
    Float array `[count, count]`. Its singular values are within those of the map, and
    equal to them if `count` is `n`.
  """
  large = jax.eval_shape(to_large, small)
  keys = jax.random.split(key, 2 * count + 1)
  nothing = jnp.zeros((count, small.size), small.dtype)
  first, _ = _direction(keys[0], jnp.zeros_like(small), nothing, 0.0)
  tall = jnp.zeros((count, large.size), large.dtype)

  def step(carry, index):
    u_basis, v_basis, u, beta, scale = carry
    u_basis = u_basis.at[index].set(u)
    previous = v_basis[jnp.maximum(index - 1, 0)]
    v, alpha = _direction(
      keys[2 * index + 1], to_large(u) - beta * previous, v_basis, scale
    )
    v_basis = v_basis.at[index].set(v)
    scale = jnp.maximum(scale, alpha)
    u, next_beta = _direction(
      keys[2 * index + 2], to_small(v) - alpha * u, u_basis, scale
    )
    scale = jnp.maximum(scale, next_beta)
    return (u_basis, v_basis, u, next_beta, scale), (alpha, next_beta)

  zero = jnp.zeros((), small.dtype)
  start = (nothing, tall, first, zero, zero)
  _, (alphas, betas) = jax.lax.scan(step, start, jnp.arange(count))
  return jnp.diag(alphas) + jnp.diag(betas[:-1], -1)


def _direction(key, vector, basis, scale):
  """Unit vector and length of the part of `vector` orthogonal to `basis`.

  If nothing of it is left but rounding, the length is 0 and the direction random.
  """
  for _ in range(2):
    vector = vector - basis.T @ (basis @ vector)
  length = jnp.linalg.norm(vector)
  spent = length <= 10 * jnp.finfo(vector.dtype).eps * scale
  random = jax.random.normal(key, vector.shape, vector.dtype)
  for _ in range(2):
    random = random - basis.T @ (basis @ random)
  random = random / jnp.linalg.norm(random)
  unit = jnp.where(spent, random, vector / jnp.where(spent, 1.0, length))
  return unit, jnp.where(spent, jnp.zeros_like(length), length)
