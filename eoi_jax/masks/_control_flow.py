"""Scans, loops and branches over active arrays; see `positive`."""

from __future__ import annotations

import abc
from typing import Any

import jax
import jax.numpy as jnp

from eoi_jax.masks._active import Active, Arithmetic


class ControlFlow(Arithmetic, abc.ABC):
  """JAX's control flow with active arrays, in terms of `evaluate`."""

  @abc.abstractmethod
  def evaluate(self, jaxpr: Any, consts: Any, arguments: Any) -> list[Any]:
    """Values of the outputs of a jaxpr; each active or a plain array."""

  def pack(self, value, as_active):
    """A value as a tree for JAX's control flow."""
    if not as_active:
      return value
    if not isinstance(value, Active):
      value = self.settle(jnp.asarray(value, self.dtype), self.zero)
    elif value.depth:
      value = self.settle(value.mantissa, value.exponent)
    return value.mantissa, jnp.asarray(value.exponent, self.dtype)

  def scan(self, params, inputs):
    """`lax.scan` over active and plain arrays."""
    num_consts, num_carry = params["num_consts"], params["num_carry"]
    consts, rest = inputs[:num_consts], inputs[num_consts:]
    init, xs = rest[:num_carry], rest[num_carry:]
    closed, length = params["jaxpr"], params["length"]
    flags = [isinstance(x, Active) for x in init]
    y_flags = []

    def body(carry, x):
      carry = [Active(*c) if f else c for c, f in zip(carry, flags, strict=True)]
      x = [Active(*c) if isinstance(c, tuple) else c for c in x]
      outputs = self.evaluate(closed.jaxpr, closed.consts, [*consts, *carry, *x])
      new, ys = outputs[:num_carry], outputs[num_carry:]
      found = [f or isinstance(c, Active) for c, f in zip(new, flags, strict=True)]
      y_flags[:] = [isinstance(y, Active) for y in ys]
      new = [self.pack(c, f) for c, f in zip(new, found, strict=True)]
      ys = [self.pack(y, f) for y, f in zip(ys, y_flags, strict=True)]
      changed.append(found)
      return new, ys

    packed_xs = [
      (x.mantissa, jnp.full((length,), x.exponent)) if isinstance(x, Active) else x
      for x in xs
    ]
    slices = jax.tree.map(lambda x: x[0], packed_xs)
    while True:  # a plain carry may become active on the way round
      changed = []
      carry = [self.pack(c, f) for c, f in zip(init, flags, strict=True)]
      jax.eval_shape(body, carry, slices)
      if changed[-1] == flags:
        break
      flags = changed[-1]
    carry, ys = jax.lax.scan(
      body, carry, packed_xs, length=length, reverse=params["reverse"]
    )
    carry = [Active(c[0], c[1]) if f else c for c, f in zip(carry, flags, strict=True)]
    ys = [self._stack(y) if f else y for y, f in zip(ys, y_flags, strict=True)]
    return [*carry, *ys]

  def _stack(self, packed):
    """One exponent for a stack of arrays that each have their own."""
    mantissas, exponents = packed
    highest = jnp.max(exponents)
    factor = jnp.exp2(exponents - highest)
    factor = factor.reshape(-1, *[1] * (mantissas.ndim - 1))
    return Active(mantissas * jax.lax.stop_gradient(factor), highest)

  def while_loop(self, params, inputs):
    """`lax.while_loop` over what does not depend on the inputs."""
    if any(isinstance(x, Active) for x in inputs):
      raise ValueError(
        "`apply_fn` must not carry its inputs through a `while` loop, which has no "
        "reverse derivative; use `lax.scan`, or `fori_loop` with static bounds."
      )
    cond, body = params["cond_jaxpr"], params["body_jaxpr"]
    split = params["cond_nconsts"], params["cond_nconsts"] + params["body_nconsts"]
    first, second, init = inputs[: split[0]], inputs[slice(*split)], inputs[split[1] :]
    return jax.lax.while_loop(
      lambda c: self.evaluate(cond.jaxpr, cond.consts, [*first, *c])[0],
      lambda c: self.evaluate(body.jaxpr, body.consts, [*second, *c]),
      init,
    )

  def cond(self, params, inputs):
    """`lax.switch`; floating outputs are active if any input is."""
    index, *rest = inputs
    active = any(isinstance(x, Active) for x in rest)
    outs = params["branches"][0].out_avals
    flags = [active and jnp.issubdtype(a.dtype, jnp.floating) for a in outs]

    def branch(closed):
      def run(_):
        values = self.evaluate(closed.jaxpr, closed.consts, rest)
        return [self.pack(v, f) for v, f in zip(values, flags, strict=True)]

      return run

    values = jax.lax.switch(index, [branch(c) for c in params["branches"]], 0)
    return [Active(*v) if f else v for v, f in zip(values, flags, strict=True)]
