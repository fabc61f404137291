"""The positive linear view of a network, whatever its framework and depth.

SynFlow, and the search for cut paths, look at a network in which parameters are
absolute values and activations are linear. That view is read off the jaxpr of
`apply_fn`: what depends on the inputs is *active* and is evaluated by the rules below;
everything else is evaluated as it stands.

- Activations become linear: tanh, sigmoid, erf, clipping and the named functions of
  `jax.nn` turn into the identity, `x * sigmoid(x)` and its like into `x`. A rectifier
  is kept: it is the identity on what is positive.
- An active array is `mantissa * 2**exponent` with one exponent for the whole array, so
  that a thousand layers neither over- nor underflow. Exponents are constants to the
  derivative, and powers of two: nothing is rounded.
- `reach=True` asks only what can be reached from the inputs: active arrays are 0 or 1,
  constants that are added have no say, and so do the derivatives.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.core
import jax.extend.core as jex_core
import jax.numpy as jnp
import numpy as np

from eoi_jax.masks._active import Active, is_floating
from eoi_jax.masks._control_flow import ControlFlow

# Activations by the name of their call in a jaxpr, and the slope that stands for them.
ACTIVATIONS = {
  "celu": 1.0,
  "elu": 1.0,
  "gelu": 1.0,
  "hard_sigmoid": 1.0,
  "hard_silu": 1.0,
  "hard_swish": 1.0,
  "hard_tanh": 1.0,
  "mish": 1.0,
  "relu6": 1.0,
  "selu": 1.0507009873554805,
  "silu": 1.0,
  "soft_sign": 1.0,
  "softplus": 1.0,
  "squareplus": 1.0,
  "swish": 1.0,
}
# Saturating primitives, and their limit where they gate their own argument.
_SATURATING = {"tanh": 1.0, "logistic": 1.0, "erf": 1.0, "erfc": 2.0, "atan": 1.0}
# First operand active, the others not: done to the mantissa, at the same exponent.
# fmt: off
_MOVES = frozenset((
  "abs", "broadcast_in_dim", "copy", "copy_p", "cummax", "dynamic_slice", "expand_dims",
  "gather", "neg", "optimization_barrier", "real", "reduce_max", "reduce_min",
  "reduce_window_max", "reduce_window_min", "reshape", "rev", "sharding_constraint",
  "slice", "sort", "split", "squeeze", "transpose",
))
_SUMS = frozenset(("cumsum", "reduce_sum", "reduce_window_sum"))
_POWERS = {"sqrt": 0.5, "rsqrt": -0.5, "square": 2.0}
_ALIGNED = frozenset((
  "add", "add_any", "concatenate", "dynamic_update_slice", "max", "pad", "scatter",
  "scatter-add", "select_n", "sub",
))
# fmt: on
_COMPARISONS = frozenset(["eq", "ge", "gt", "le", "lt", "ne"])
_PRODUCTS = frozenset(["conv_general_dilated", "div", "dot_general", "mul"])


class Positive(NamedTuple):
  """The network in its positive linear view.

  Attributes:
    apply: `params -> (total, exponent)`; the sum of the outputs is
      `total * 2**exponent`. Differentiable; the exponent is constant.
    dtype: dtype of the arithmetic; `params` are to have it.
  """

  apply: Callable[[Any], tuple[jax.Array, jax.Array]]
  dtype: Any


def positive_network(
  apply_fn: Callable[[Any, jax.Array], jax.Array],
  params: Any,
  input_shape: Sequence[int],
  *,
  dtype: Any,
  reach: bool = False,
) -> Positive:
  """Builds the positive linear view of `apply_fn` on an all-ones input.

  The network is traced here, in the caller's settings; evaluate it where `dtype` is
  enabled. Floating arrays that `apply_fn` closes over (batch statistics) are replaced
  by absolute values.

  Args:
    apply_fn: `(params, inputs) -> logits`.
    params: tree of arrays or shape-dtype structs.
    input_shape: shape of the inputs, with a batch of one.
    dtype: float32 or float64.
    reach: whether to ask for reachability alone.

  Returns:
    A `Positive`; nonnegative parameters are the caller's part.

  Raises:
    ValueError: if the outputs do not depend on the inputs, or by way of a `while` loop.
  """
  inputs = jax.ShapeDtypeStruct(tuple(input_shape), jnp.float32)
  closed = jax.make_jaxpr(apply_fn)(params, inputs)
  consts = [_absolute(c) for c in closed.consts]
  evaluator = _Evaluator(jnp.dtype(dtype), reach)

  def apply(params):
    ones = Active(jnp.ones(inputs.shape, dtype), jnp.zeros((), dtype))
    arguments = [*map(evaluator.cast, jax.tree.leaves(params)), ones]
    outputs = evaluator.evaluate(closed.jaxpr, consts, arguments)
    if not isinstance(outputs[0], Active):
      raise ValueError("`apply_fn` must depend on its inputs, got constant logits.")
    logits = evaluator.settle(outputs[0].mantissa, outputs[0].exponent)
    total = evaluator.settle(jnp.sum(logits.mantissa), logits.exponent)
    return total.mantissa, total.exponent

  return Positive(apply, jnp.dtype(dtype))


def _absolute(value):
  """Absolute values of a floating array that the network closes over."""
  if not is_floating(value) or not np.ndim(value):
    return value
  value = np.asarray(value)
  return np.where(np.isfinite(value), np.abs(value), value)


class _Evaluator(ControlFlow):
  """Evaluates a jaxpr with active arrays; one instance per dtype and question."""

  def evaluate(self, jaxpr, consts, arguments):
    """Values of the outputs of a jaxpr; each active or a plain array."""
    env = {}

    def read(var):
      if isinstance(var, jex_core.Literal):
        return self.cast(_absolute(var.val) if np.ndim(var.val) else var.val)
      return env[var]

    env.update(zip(jaxpr.constvars, map(self.cast, consts), strict=True))
    env.update(zip(jaxpr.invars, arguments, strict=True))
    for eqn in jaxpr.eqns:
      outputs = self.equation(eqn, [read(v) for v in eqn.invars])
      env.update(zip(eqn.outvars, outputs, strict=True))
    return [read(v) for v in jaxpr.outvars]

  def equation(self, eqn, inputs):
    """Values of the outputs of one equation."""
    name = eqn.primitive.name
    if name == "scan":
      return self.scan(eqn.params, inputs)
    if name == "while":
      return self.while_loop(eqn.params, inputs)
    if name == "cond":
      return self.cond(eqn.params, inputs)
    inner = _called(eqn)
    any_active = any(isinstance(x, Active) for x in inputs)
    if inner is not None:
      slope = ACTIVATIONS.get(eqn.params.get("name", ""))
      if slope is not None and any_active and len(eqn.outvars) == 1:
        x = next(x for x in inputs if isinstance(x, Active))
        if x.mantissa.shape == eqn.outvars[0].aval.shape:
          return [Active(x.mantissa * slope, x.exponent, x.depth, root=x.root)]
      jaxpr, consts = inner
      return self.evaluate(jaxpr, [_absolute(c) for c in consts], inputs)
    if not any_active:
      return self.bind(eqn, inputs)
    if name in _MOVES | _SUMS and not any(isinstance(x, Active) for x in inputs[1:]):
      return self.move(eqn, inputs)
    out = self.rule(name, eqn, inputs)
    return out if isinstance(out, list) else [out]

  def rule(self, name, eqn, inputs):
    """Outputs of an equation with an active input."""
    if name in _SATURATING:
      (x,) = inputs
      limit = _SATURATING[name]
      return Active(x.mantissa, x.exponent, x.depth, root=x.root, limit=limit)
    if name == "clamp" or name == "min":
      x = [x for x in inputs if isinstance(x, Active)]
      if len(x) == 1 and x[0].mantissa.shape == eqn.outvars[0].aval.shape:
        return x[0]
    if name in _ALIGNED or name == "min":
      return self.sum(name, eqn, inputs)
    if name in _PRODUCTS:
      return self.product(name, eqn, inputs)
    if name in _COMPARISONS:
      return self.bind(eqn, self._comparable(inputs))
    floating = jnp.issubdtype(eqn.outvars[0].aval.dtype, jnp.floating)
    if floating and name in ("convert_element_type", "reduce_precision"):
      return inputs[0]
    if name in _POWERS or name == "integer_pow":
      (x,) = inputs
      if self.reach:
        return x
      power = _POWERS[name] if name in _POWERS else float(eqn.params["y"])
      (m,) = self.bind(eqn, [x.mantissa])
      out = self.settle(m, x.exponent * power)
      return Active(out.mantissa, out.exponent, root=x.root)
    return self.other(eqn, inputs)

  def _comparable(self, inputs):
    """Plain arrays that compare as the given ones do."""
    if not self.reach:
      return self.align(inputs)[0]
    return [
      self.settle(x.mantissa, x.exponent).mantissa if isinstance(x, Active) else x
      for x in inputs
    ]

  def move(self, eqn, inputs):
    """A rearrangement or a sum of one active array."""
    x, rest = inputs[0], inputs[1:]
    sign_free = self.reach and eqn.primitive.name == "neg"
    outputs = [x.mantissa] if sign_free else self.bind(eqn, [x.mantissa, *rest])
    if eqn.primitive.name in _SUMS:
      return [self.settle(m, x.exponent) for m in outputs]
    same = eqn.primitive.name in ("neg", "copy", "copy_p")
    tags = {"root": x.root, "limit": x.limit} if same else {}
    return [Active(m, x.exponent, x.depth, **tags) for m in outputs]

  def sum(self, name, eqn, inputs):
    """Sums, maxima, selections and joins: arrays at one exponent."""
    if name == "select_n":
      cases, exponent, depth = self.align(inputs[1:])
      (m,) = self.bind(eqn, [inputs[0], *cases])
      return self.fresh(m, exponent, depth)
    if name in ("dynamic_update_slice", "scatter", "scatter-add"):
      arrays = [0, 1] if name == "dynamic_update_slice" else [0, 2]
      mantissas, exponent, depth = self.align([inputs[n] for n in arrays])
      operands = list(inputs)
      for n, mantissa in zip(arrays, mantissas, strict=True):
        operands[n] = mantissa
      (m,) = self.bind(eqn, operands)
      return self.fresh(m, exponent, depth)
    mantissas, exponent, depth = self.align(inputs)
    if self.reach and name in ("sub", "max", "min"):
      m = mantissas[0] + mantissas[1]
    else:
      (m,) = self.bind(eqn, mantissas)
    out = self.fresh(m, exponent, depth)
    if name in ("add", "sub"):
      out.root = _shared_root(inputs) or out.root
      out.limit = _shared_limit(name, inputs)
    return out

  def product(self, name, eqn, inputs):
    """Products and quotients: exponents add up."""
    roots = [x.root for x in inputs if isinstance(x, Active)]
    if name == "mul" and len(roots) == 2 and roots[0] is roots[1]:
      gated, gate = sorted(inputs, key=lambda x: x.limit is not None)
      if gated.limit is None and gate.limit is not None:  # x * sigmoid(x) and its like
        m = gated.mantissa * gate.limit
        return Active(m, gated.exponent, gated.depth, root=gated.root)
    if name in ("mul", "div") and len(roots) == 1:
      out = self.scaled(name, eqn, inputs)
    elif self.reach and len(roots) == 2:
      # It depends on either: a gate that no input reaches is constant, not zero.
      left, right = (x.mantissa for x in inputs)
      sides = (left, jnp.ones_like(right)), (jnp.ones_like(left), right)
      m = sum(self.bind(eqn, side)[0] for side in sides)
      out = self.settle(m, self.zero)
    elif len(roots) == 2:
      left, right = inputs
      (m,) = self.bind(eqn, [left.mantissa, right.mantissa])
      right_exponent = -right.exponent if name == "div" else right.exponent
      out = self.settle(m, left.exponent + right_exponent)
    else:
      x = next(x for x in inputs if isinstance(x, Active))
      (m,) = self.bind(eqn, [x.mantissa if v is x else v for v in inputs])
      out = self.fresh(m, x.exponent, x.depth + 1)
    if name in ("mul", "div"):
      out.root = _shared_root(inputs) or out.root
      out.limit = _shared_limit(name, inputs)
    return out

  def scaled(self, name, eqn, inputs):
    """An active array times or by a plain one, or a plain one by it."""
    first = isinstance(inputs[0], Active)
    x, factor = inputs if first else inputs[::-1]
    if self.reach:
      m = x.mantissa * (jnp.asarray(factor) != 0).astype(self.dtype)
      return Active(m, x.exponent, x.depth)
    (m,) = self.bind(eqn, [v.mantissa if v is x else v for v in inputs])
    if name == "div" and not first:
      return self.settle(m, -x.exponent)
    return self.fresh(m, x.exponent, x.depth + 1)

  def other(self, eqn, inputs):
    """Anything else: as it is; what it does to reachability is taken from shapes."""
    outputs = []
    active = [x for x in inputs if isinstance(x, Active)]
    shapes = {x.mantissa.shape for x in active}
    if self.reach and shapes == {v.aval.shape for v in eqn.outvars}:
      total = sum(x.mantissa for x in active[1:]) + active[0].mantissa
      values = [total] * len(eqn.outvars)
    else:
      values = self.bind(eqn, [self.value(x) for x in inputs])
    for var, value in zip(eqn.outvars, values, strict=True):
      if jnp.issubdtype(var.aval.dtype, jnp.floating):
        outputs.append(self.settle(value, self.zero))
      else:
        outputs.append(value)
    return outputs

  def bind(self, eqn, values):
    """The equation as it stands, in the dtype of the arithmetic."""
    params = {k: self._float_param(p) for k, p in eqn.params.items()}
    out = eqn.primitive.bind(*map(self.cast, values), **params)
    return list(out) if eqn.primitive.multiple_results else [out]

  def _float_param(self, param):
    is_dtype = isinstance(param, np.dtype) or (
      isinstance(param, type) and issubclass(param, np.generic)
    )
    return self.dtype if is_dtype and jnp.issubdtype(param, jnp.floating) else param


def _called(eqn):
  """Jaxpr and constants of a call (jit, custom derivative, checkpoint), or None."""
  for param in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
    inner = eqn.params.get(param)
    if isinstance(inner, jex_core.ClosedJaxpr):
      fits = len(inner.jaxpr.invars) == len(eqn.invars)
      return (inner.jaxpr, inner.consts) if fits else None
    if isinstance(inner, jex_core.Jaxpr) and len(inner.invars) == len(eqn.invars):
      fits = not inner.constvars and len(inner.outvars) == len(eqn.outvars)
      return (inner, []) if fits else None
  return None


def _shared_root(inputs):
  """Root of elementwise functions of one array; None of anything else."""
  roots = {id(x.root): x.root for x in inputs if isinstance(x, Active)}
  scalars = all(isinstance(x, Active) or np.ndim(x) == 0 for x in inputs)
  return next(iter(roots.values())) if len(roots) == 1 and scalars else None


def _shared_limit(name, inputs):
  """Limit of a saturating array times or plus a literal; None of anything else."""
  limits = []
  for x in inputs:
    limit = x.limit if isinstance(x, Active) else x
    if limit is None or np.ndim(limit) or isinstance(limit, jax.core.Tracer):
      return None
    limits.append(float(limit))
  left, right = limits
  if name == "div":
    return left / right if right else None
  return {"add": left + right, "sub": left - right, "mul": left * right}[name]
