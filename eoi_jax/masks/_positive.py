"""The positive linear view of a network, whatever its framework and depth.

SynFlow, and the search for cut paths, look at a network in which parameters are
absolute values and the rest is linear. That view is read off the jaxpr of `apply_fn`:
what depends on the inputs is *active* and is evaluated by the rules below; everything
else is evaluated as it stands.

- Inputs are all ones. Integers are tokens: a lookup by tokens gives the mean row of its
  table. Bools are True.
- Activations become linear: tanh, sigmoid, erf, clipping and the functions of `jax.nn`
  turn into the identity, `x * sigmoid(x)` and its like into `x`. A rectifier is kept:
  it is the identity on what is positive.
- Normalization by statistics of the array itself becomes its scale and offset alone:
  the mean or maximum of `x` is not subtracted from `x` (an all-ones input is its own
  mean, and a difference has no sign to rely on), and dividing `x` by a root of its
  statistics leaves it as it is, as batch normalization does at its initial statistics.
- Softmax becomes linear: the logits divided by their number. Attention is then
  `(q k^T) v / n`, linear in query, key and value. The softmax itself, of equal tokens,
  is uniform whatever query and key are. Masked logits (-1e4 and below) count as zero.
- An active array is `mantissa * 2**exponent` with one exponent for the whole array, so
  that a thousand layers neither over- nor underflow. Exponents are constants to the
  derivative, and powers of two: nothing is rounded.
- What is chosen by tokens, or by indices that depend on the inputs, is every choice at
  once; matrices that are made of parameters (standardized ones) are absolute, too.
- `reach=True` asks only what can be reached from the inputs: active arrays are 0 or 1,
  and so are the derivatives; constants that are added have no say, and extrema and
  choices are sums.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.core
import jax.extend.core as jex_core
import jax.numpy as jnp
import numpy as np

from eoi_jax import _checks

# fmt: off
# Activations by the name of their call in a jaxpr; a slope of 1 stands for them.
_ACTIVATIONS = frozenset((
  "celu", "elu", "gelu", "hard_sigmoid", "hard_silu", "hard_swish", "hard_tanh", "mish",
  "relu6", "selu", "silu", "soft_sign", "softplus", "squareplus", "swish",
))
_SELU_SLOPE = 1.0507009873554805
# Saturating primitives, and their limit where they gate their own argument.
_SATURATING = {"tanh": 1.0, "logistic": 1.0, "erf": 1.0, "erfc": 2.0, "atan": 1.0}
# First operand active, the others not: done to the mantissa, at the same exponent.
_MOVES = frozenset((
  "abs", "broadcast_in_dim", "copy", "copy_p", "cummax", "dynamic_slice", "expand_dims",
  "gather", "neg", "optimization_barrier", "real", "reduce_max", "reduce_min",
  "reduce_window_max", "reduce_window_min", "reshape", "rev", "sharding_constraint",
  "slice", "sort", "split", "squeeze", "stop_gradient", "transpose",
))
_SUMS = frozenset(("cumsum", "reduce_sum", "reduce_window_sum"))
_POWERS = {"sqrt": 0.5, "rsqrt": -0.5, "square": 2.0}
# Brought to one exponent: all operands, or those of these slices.
_ALIGNED = frozenset((
  "add", "add_any", "concatenate", "dynamic_update_slice", "max", "min", "pad",
  "scatter", "scatter-add", "select_n", "sub",
))
_ARRAYS = {
  "dynamic_update_slice": slice(0, 2), "scatter": slice(0, 3, 2),
  "scatter-add": slice(0, 3, 2), "select_n": slice(1, None),
}
_COMPARISONS = frozenset(("eq", "ge", "gt", "le", "lt", "ne"))
# Reductions to a statistic, and what makes a new array of one.
_STATISTICS = frozenset(("reduce_max", "reduce_min", "reduce_sum"))
_MIXING = frozenset((
  "conv_general_dilated", "cummax", "cumsum", "dot_general", "reduce_window_max",
  "reduce_window_min", "reduce_window_sum",
))
# fmt: on
_PRODUCTS = frozenset(("conv_general_dilated", "div", "dot_general", "mul"))
# The exponent of an array of zeros: below any other.
_NOTHING = -1e6
# Products between two searches for the largest element, each of which takes time to
# compile; mantissas have room for as many.
_MAX_DEPTH = 4
# Constants that mask logits: nothing at or below this is taken for a weight.
_MASKED = -1e4


@dataclasses.dataclass(eq=False)
class _Active:
  """An array that depends on the inputs: `mantissa * 2**exponent`.

  The exponent is a scalar of the same dtype; at depth 0, within a few units of that of
  the largest element, `_NOTHING` of an array of zeros.
  """

  mantissa: Any
  exponent: Any
  depth: int = 0  # products since the mantissa was last brought near 1
  _: dataclasses.KW_ONLY
  # Shared by elementwise functions of one array.
  root: Any = dataclasses.field(default_factory=object)
  limit: float | None = None  # the value that it tends to, if it saturates
  # Shared by an array and what is made of it and constants alone.
  content: Any = dataclasses.field(default_factory=object)
  merged: int = 0  # elements that a statistic (sum, maximum) merged into one
  spread: Any = None  # of a root of a statistic: what takes its place as a divisor
  logits: Any = None  # of an exponential: its argument

  def like(self, mantissa, **tags) -> "_Active":
    """Another mantissa of the same exponent and depth."""
    return _Active(mantissa, self.exponent, self.depth, **tags)


class _Tokens:
  """An integer or bool array that depends on integer inputs."""

  def __init__(self, value):
    self.value = value


def positive_network(
  apply_fn, params, input_shape, *, dtype, reach: bool = False
) -> Callable[[Any], tuple[jax.Array, jax.Array]]:
  """Builds the positive linear view of `apply_fn` on an all-ones input.

  The network is traced here, in the caller's settings; evaluate it where `dtype`,
  float32 or float64, is enabled. Floating arrays that `apply_fn` closes over (batch
  statistics) are replaced by absolute values. `apply_fn` and `input_shape` are those of
  `synflow_scores`; `reach` asks for reachability alone.

  Returns:
    `params -> (total, exponent)`: the sum of the logits is `total * 2**exponent`. It is
    differentiable, the exponent is constant. Parameters are to have `dtype`;
    nonnegative ones are the caller's part.

  Raises:
    ValueError: if the outputs do not depend on the inputs, or by way of a `while` loop.
  """
  _checks.function("apply_fn", apply_fn)
  if isinstance(input_shape, int | float | str) or not jax.tree.leaves(input_shape):
    raise ValueError(f"`input_shape` must be shapes or arrays, got {input_shape!r}.")
  inputs = jax.tree.map(_struct, input_shape, is_leaf=_is_shape)

  def logits(params, inputs):
    outputs = apply_fn(params, inputs)
    outputs = outputs[0] if isinstance(outputs, tuple) else outputs
    if not jax.tree_util.all_leaves([outputs]):
      raise ValueError(f"`apply_fn` must return logits first, got {type(outputs)}.")
    return outputs

  closed = jax.make_jaxpr(logits)(params, inputs)
  consts = [_absolute(c) for c in closed.consts]
  evaluator = _Evaluator(jnp.dtype(dtype), reach)

  def one(struct):
    if jnp.issubdtype(struct.dtype, jnp.floating):
      return evaluator.settle(jnp.ones(struct.shape, dtype), evaluator.zero)
    ones = jnp.ones(struct.shape, struct.dtype)
    return ones if struct.dtype == jnp.bool_ else _Tokens(ones)

  def apply(params):
    arguments = map(evaluator.cast, jax.tree.leaves(params))
    ones = map(one, jax.tree.leaves(inputs))
    outputs = evaluator.evaluate(closed.jaxpr, consts, [*arguments, *ones])
    sums = []
    for x in _active(outputs):
      x = evaluator.settle(x.mantissa, x.exponent)
      sums.append(evaluator.settle(jnp.sum(x.mantissa), x.exponent))
    if not sums:
      raise ValueError("`apply_fn` must depend on its inputs, got constant logits.")
    mantissas, exponent, _ = evaluator.align(sums)
    total = evaluator.settle(functools.reduce(jnp.add, mantissas), exponent)
    return total.mantissa, total.exponent

  return apply


def _is_shape(node) -> bool:
  return isinstance(node, tuple | list) and all(isinstance(n, int) for n in node)


def _struct(leaf):
  if _is_shape(leaf):
    return jax.ShapeDtypeStruct(tuple(leaf), jnp.float32)
  return jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf))


def _absolute(value):
  """Absolute values of a floating array that the network closes over."""
  if not _is_floating(value) or not np.ndim(value):
    return value
  xp = jnp if isinstance(value, jax.core.Tracer) else np
  value = xp.asarray(value)
  return xp.where(xp.isfinite(value) & (value > _MASKED), xp.abs(value), value)


@jax.custom_vjp
def _saturate(x):
  return (x != 0).astype(x.dtype)


def _saturate_back(_, g):
  # Slopes that differ do not cancel where an array is less its own mean, say.
  return ((g != 0).astype(g.dtype) * distinct(g.shape, g.dtype),)


_saturate.defvjp(lambda x: (_saturate(x), None), _saturate_back)


def distinct(shape: tuple[int, ...], dtype: Any) -> jax.Array:
  """Numbers in [0.5, 1.5), all different as far as the dtype allows."""
  index = jnp.arange(1, math.prod(shape) + 1, dtype=dtype).reshape(shape)
  return 0.5 + index * 0.6180339887 % 1


def _is_floating(value) -> bool:
  """Whether a Python or array value is of a floating type."""
  return jnp.issubdtype(getattr(value, "dtype", type(value)), jnp.floating)


def _is_active(value) -> bool:
  return isinstance(value, _Active)


def _active(values) -> list[_Active]:
  return [x for x in values if isinstance(x, _Active)]


def _mantissa(value):
  return value.mantissa if isinstance(value, _Active) else value


def _no_size(value) -> bool:
  """Whether a constant is known to be all zeros or infinities, equal at any scale."""
  known = not isinstance(value, jax.Array)
  return known and bool(np.all((value == 0) | ~np.isfinite(value)))


class _Evaluator:
  """Evaluates a jaxpr with active arrays; one instance per dtype and question.

  Attributes:
    dtype: float32 or float64, the dtype of mantissas and exponents.
    reach: whether arrays stand for what can be reached, in 0 and 1.
  """

  def __init__(self, dtype, reach):
    self.dtype = jnp.dtype(dtype)
    self.reach = reach
    self.zero = np.zeros((), self.dtype)

  def cast(self, value: Any) -> Any:
    """Any floating array in the dtype of the arithmetic; scalars stay concrete."""
    if isinstance(value, _Active) or not _is_floating(value):
      return value
    if isinstance(value, jax.Array):
      return value.astype(self.dtype)
    return np.asarray(value).astype(self.dtype)

  def settle(self, mantissa, exponent):
    """Brings a mantissa near 1 (or, for reachability, to 0 and 1)."""
    if self.reach:
      return _Active(_saturate(mantissa), self.zero)
    shift = self._top(mantissa)
    factor = jnp.exp2(jnp.where(shift > _NOTHING, -shift, jnp.zeros_like(shift)))
    return _Active(mantissa * factor, jnp.maximum(exponent + shift, _NOTHING))

  def fresh(self, mantissa, exponent, depth):
    """An array that is settled if too many products went into it."""
    if depth > _MAX_DEPTH:
      return self.settle(mantissa, exponent)
    return _Active(mantissa, exponent, depth)

  def align(self, values):
    """Mantissas of several arrays at one exponent, that exponent, and their depth."""
    active = _active(values)
    depth = max((x.depth for x in active), default=0)
    if self.reach:  # what does not depend on the inputs has no say
      mantissas = [
        v.mantissa if _is_active(v) else jnp.zeros_like(self.cast(v)) for v in values
      ]
      return mantissas, self.zero, depth
    common = {id(x.exponent) for x in active}
    if len(common) == 1 and all(_is_active(v) or _no_size(v) for v in values):
      return list(map(_mantissa, values)), active[0].exponent, depth
    parts = []  # mantissa, its exponent, and that of the largest element
    for v in values:
      if not _is_active(v):
        parts.append((self.cast(v), self.zero, self._top(v)))
      else:
        v = self.settle(v.mantissa, v.exponent) if v.depth else v
        parts.append((v.mantissa, v.exponent, v.exponent))
    highest = functools.reduce(jnp.maximum, (top for _, _, top in parts))
    mantissas = []
    for v, (mantissa, exponent, top) in zip(values, parts, strict=True):
      factor = jax.lax.stop_gradient(jnp.exp2(exponent - highest))
      if not _is_active(v):  # zeros and infinities, the padding of a maximum, stay
        factor = jnp.where(top > _NOTHING, factor, jnp.ones_like(factor))
      mantissas.append(mantissa * factor)
    return mantissas, highest, 0

  def _top(self, mantissa):
    """Exponent of the largest element, a constant; `_NOTHING` of zeros."""
    size = jnp.abs(jax.lax.stop_gradient(jnp.asarray(mantissa, self.dtype)))
    size = jnp.where(jnp.isfinite(size), size, jnp.zeros_like(size))
    top = jnp.max(size, initial=0.0)
    exponent = jnp.floor(jnp.log2(jnp.where(top > 0, top, jnp.ones_like(top))))
    return jnp.where(top > 0, exponent, jnp.full_like(exponent, _NOTHING))

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
    control = {"scan": self.scan, "while": self.while_loop, "cond": self.cond}
    if name in control:
      return control[name](eqn.params, [_plain(x) for x in inputs])
    active = _active(inputs)
    inner = _called(eqn)
    if inner is not None:
      slope = _slope(eqn) if len(active) == 1 else None
      if slope is not None:
        return [x.like(x.mantissa * slope, root=x.root) for x in active]
      jaxpr, consts = inner
      return self.evaluate(jaxpr, [_absolute(c) for c in consts], inputs)
    is_lookup = any(isinstance(x, _Tokens) for x in inputs)
    if name == "select_n" and isinstance(inputs[0], _Tokens) and active:
      cases = [_unmasked(self.cast(x)) if _is_floating(x) else x for x in inputs[1:]]
      mantissas, exponent, depth = self.align(cases)
      return [self.fresh(functools.reduce(jnp.add, mantissas), exponent, depth)]
    if name == "gather" and isinstance(inputs[1], _Tokens):
      axes = eqn.params["dimension_numbers"].start_index_map
      inputs = [self.mean_rows(inputs[0], axes), inputs[1]]
    inputs = [_plain(x) for x in inputs]
    if not active:
      outputs = self.bind(eqn, inputs)
      if not is_lookup:
        return outputs
      if name == "convert_element_type" and inputs[0].dtype == jnp.bool_:
        outputs = [jnp.ones_like(x) for x in outputs]  # any of them may be True
      return [
        self.settle(x, self.zero) if _is_floating(x) else _Tokens(x) for x in outputs
      ]
    if name in _MOVES | _SUMS and not _active(inputs[1:]):
      outputs = self.move(eqn, inputs)
    else:
      outputs = self.rule(name, eqn, inputs)
      outputs = outputs if isinstance(outputs, list) else [outputs]
    if not self.reach:
      self.relate(name, eqn, inputs, outputs)
    return outputs

  def mean_rows(self, x, axes):
    """An array whose rows are their mean: a lookup by tokens gives any of them."""
    if not isinstance(x, _Active) and not _is_floating(x):
      return x
    rows = self.cast(_mantissa(x))
    mean = jnp.broadcast_to(jnp.mean(rows, axis=axes, keepdims=True), rows.shape)
    return self.settle(mean, x.exponent) if isinstance(x, _Active) else mean

  def relate(self, name, eqn, inputs, outputs):
    """Notes which arrays are statistics of which."""
    active = _active(inputs)
    x = active[0]
    if name in _MIXING or any(other.content is not x.content for other in active):
      return
    for out in outputs:
      if not isinstance(out, _Active) or out is x:
        continue
      out.content, out.merged = x.content, min(v.merged for v in active)
      if name in _STATISTICS:
        out.merged = max(1, x.merged) * (x.mantissa.size // out.mantissa.size)
      if name in ("sqrt", "rsqrt", "pow") and out.merged:
        out.spread = jnp.ones_like(out.mantissa)
      elif len(active) == len(outputs) == 1 and x.spread is not None:
        (out.spread,) = self.bind(eqn, [x.spread if v is x else v for v in inputs])
      if name == "exp":
        out.logits = x

  def normalized(self, name, eqn, inputs):
    """An array less, times or by a statistic of its own; None of anything else."""
    x, s = inputs
    if name == "mul" and isinstance(x, _Active) and x.merged:
      x, s = s, x
    if not isinstance(x, _Active) or not isinstance(s, _Active):
      return None
    if x.content is not s.content or x.merged or not s.merged:
      return None
    if name == "sub":
      return x
    if name == "div" and x.logits is not None:  # softmax
      return x.logits.like(x.logits.mantissa / s.merged)
    return None if s.spread is None else self.scaled(name, eqn, [x, s.spread])

  def rule(self, name, eqn, inputs):
    """Outputs of an equation with an active input."""
    x, *others = _active(inputs)
    if name in _SATURATING:
      return x.like(x.mantissa, root=x.root, limit=_SATURATING[name])
    same_shape = x.mantissa.shape == eqn.outvars[0].aval.shape
    if name in ("clamp", "min") and not others and same_shape:
      return x
    if name in ("sub", "mul", "div") and not self.reach:
      found = self.normalized(name, eqn, inputs)
      if found is not None:
        return found
    if name in _ALIGNED:
      return self.sum(name, eqn, inputs)
    if name in _PRODUCTS:
      return self.product(name, eqn, inputs)
    if name in _COMPARISONS and not self.reach:
      return self.bind(eqn, self.align(inputs)[0])
    if name in _COMPARISONS:
      values = [_saturate(x.mantissa) if _is_active(x) else x for x in inputs]
      return [_Tokens(x) for x in self.bind(eqn, values)]
    floating = jnp.issubdtype(eqn.outvars[0].aval.dtype, jnp.floating)
    if floating and name in ("convert_element_type", "reduce_precision"):
      return x
    if name in _POWERS or name == "integer_pow":
      if self.reach:
        return x
      power = _POWERS[name] if name in _POWERS else float(eqn.params["y"])
      (m,) = self.bind(eqn, [x.mantissa])
      out = self.settle(m, x.exponent * power)
      out.root = x.root
      return out
    return self.other(eqn, inputs)

  def move(self, eqn, inputs):
    """A rearrangement or a sum of one active array."""
    x, *rest = inputs
    name = eqn.primitive.name
    extremum = self.reach and _sum_instead(eqn)
    if extremum:
      outputs = [extremum(x.mantissa)]
    elif self.reach and name == "neg":
      outputs = [x.mantissa]
    else:
      outputs = self.bind(eqn, [x.mantissa, *rest])
    if extremum or name in _SUMS:
      return [self.settle(m, x.exponent) for m in outputs]
    same = name in ("neg", "copy", "copy_p")
    tags = {"root": x.root, "limit": x.limit} if same else {}
    return [x.like(m, **tags) if _is_floating(m) else _Tokens(m) for m in outputs]

  def sum(self, name, eqn, inputs):
    """Sums, maxima, selections and joins: arrays at one exponent."""
    masked = []
    if name in ("add", "select_n") and not self.reach:
      plain = [not _is_active(x) and _is_floating(x) and np.ndim(x) > 0 for x in inputs]
      if name == "add":
        pairs = zip(inputs, plain, strict=True)
        masked = [self.cast(x) <= _MASKED for x, is_plain in pairs if is_plain]
      inputs = [_unmasked(x) if p else x for x, p in zip(inputs, plain, strict=True)]
    arrays = _ARRAYS.get(name, slice(None))
    mantissas, exponent, depth = self.align(inputs[arrays])
    if self.reach and name in ("sub", "max", "min"):
      m = mantissas[0] + mantissas[1]
    else:
      operands = list(inputs)
      operands[arrays] = mantissas
      (m,) = self.bind(eqn, operands)
    for mask in masked:  # of the one plain operand
      m = jnp.where(mask, jnp.zeros_like(m), m)
    out = self.fresh(m, exponent, depth)
    if name in ("add", "sub"):
      self.combine(name, inputs, out)
    return out

  def product(self, name, eqn, inputs):
    """Products and quotients: exponents add up."""
    left, right = inputs
    if not _is_active(left) or not _is_active(right):
      out = self.scaled(name, eqn, inputs)
    elif name == "mul" and left.root is right.root and (gated := _gated(left, right)):
      return gated
    elif self.reach:
      # It depends on either: a gate that no input reaches is constant, not zero.
      x, y = left.mantissa, right.mantissa
      sides = (x, jnp.ones_like(y)), (jnp.ones_like(x), y)
      out = self.settle(sum(self.bind(eqn, side)[0] for side in sides), self.zero)
    else:
      (m,) = self.bind(eqn, [left.mantissa, right.mantissa])
      other = -right.exponent if name == "div" else right.exponent
      out = self.settle(m, left.exponent + other)
    if name in ("mul", "div"):
      self.combine(name, inputs, out)
    return out

  def scaled(self, name, eqn, inputs):
    """A product or quotient of an active array and a plain one, either way round."""
    (x,) = _active(inputs)
    (factor,) = (self.cast(v) for v in inputs if v is not x)
    elementwise = name in ("mul", "div")
    if elementwise and self.reach:
      return x.like(x.mantissa * _saturate(jnp.asarray(factor, self.dtype)))
    if not elementwise:
      factor = _saturate(factor) if self.reach else jnp.abs(factor)
    (m,) = self.bind(eqn, [x.mantissa if v is x else factor for v in inputs])
    if name == "div" and inputs[1] is x:
      return self.settle(m, -x.exponent)
    return self.fresh(m, x.exponent, x.depth + 1)

  def combine(self, name, inputs, out):
    """Notes what the elementwise functions of one array, and constants, give."""
    roots = {id(x.root): x.root for x in _active(inputs)}
    if len(roots) == 1 and all(_is_active(x) or np.ndim(x) == 0 for x in inputs):
      (out.root,) = roots.values()
    out.limit = _shared_limit(name, inputs)

  def other(self, eqn, inputs):
    """Anything else: as it is; what it does to reachability is taken from shapes."""
    if any(jnp.issubdtype(v.aval.dtype, jnp.complexfloating) for v in eqn.outvars):
      raise ValueError(
        "`apply_fn` must be real between its inputs and logits, got the complex "
        f"outputs of `{eqn.primitive.name}`."
      )
    mantissas = [x.mantissa for x in _active(inputs)]
    if self.reach and {m.shape for m in mantissas} == {
      v.aval.shape for v in eqn.outvars
    }:
      values = [sum(mantissas[1:], mantissas[0])] * len(eqn.outvars)
    else:  # plain arrays, which may overflow
      values = self.bind(
        eqn,
        [x.mantissa * jnp.exp2(x.exponent) if _is_active(x) else x for x in inputs],
      )
    return [
      self.settle(x, self.zero) if _is_floating(v.aval) else _Tokens(x)
      for v, x in zip(eqn.outvars, values, strict=True)
    ]

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

  def pack(self, values, flags):
    """Values for JAX's control flow, pairs of mantissa and exponent where flagged."""

    def pair(value):
      if not isinstance(value, _Active):
        value = self.settle(jnp.asarray(value, self.dtype), self.zero)
      elif value.depth:
        value = self.settle(value.mantissa, value.exponent)
      return value.mantissa, jnp.asarray(value.exponent, self.dtype)

    return [pair(v) if f else v for v, f in zip(values, flags, strict=True)]

  def scan(self, params, inputs):
    """`lax.scan` over active and plain arrays."""
    if "ft_in" in params:  # of jax 0.12
      num_consts, num_carry, _ = map(len, params["ft_in"].unpack())
    else:
      num_consts, num_carry = params["num_consts"], params["num_carry"]
    consts, rest = inputs[:num_consts], inputs[num_consts:]
    init, xs = rest[:num_carry], rest[num_carry:]
    closed, length = params["jaxpr"], params["length"]
    flags, x_flags = list(map(_is_active, init)), list(map(_is_active, xs))
    found, y_flags = [], []

    def body(carry, x):
      carry, x = _unpack(carry, flags), _unpack(x, x_flags)
      outputs = self.evaluate(closed.jaxpr, closed.consts, [*consts, *carry, *x])
      new, ys = outputs[:num_carry], outputs[num_carry:]
      found[:] = [f or _is_active(c) for c, f in zip(new, flags, strict=True)]
      y_flags[:] = map(_is_active, ys)
      return self.pack(new, found), self.pack(ys, y_flags)

    packed_xs = [
      (x.mantissa, jnp.full((length,), x.exponent)) if _is_active(x) else x for x in xs
    ]
    slices = jax.tree.map(lambda x: x[0], packed_xs)
    while True:  # a plain carry may become active on the way round
      carry = self.pack(init, flags)
      jax.eval_shape(body, carry, slices)
      if found == flags:
        break
      flags = list(found)
    carry, ys = jax.lax.scan(
      body, carry, packed_xs, length=length, reverse=params["reverse"]
    )
    ys = [self._stack(y) if f else y for y, f in zip(ys, y_flags, strict=True)]
    return [*_unpack(carry, flags), *ys]

  def _stack(self, packed):
    """One exponent for a stack of arrays that each have their own."""
    mantissas, exponents = packed
    highest = jnp.max(exponents)
    factor = jnp.exp2(exponents - highest)
    factor = factor.reshape(-1, *[1] * (mantissas.ndim - 1))
    return _Active(mantissas * jax.lax.stop_gradient(factor), highest)

  def while_loop(self, params, inputs):
    """`lax.while_loop` over what does not depend on the inputs."""
    if _active(inputs):
      raise ValueError(
        "`apply_fn` must not carry its inputs through a `while` loop, which has no "
        "reverse derivative; use `lax.scan`, or `fori_loop` with static bounds."
      )
    cond, body = params["cond_jaxpr"], params["body_jaxpr"]
    start, end = params["cond_nconsts"], params["cond_nconsts"] + params["body_nconsts"]
    first, second, init = inputs[:start], inputs[start:end], inputs[end:]
    return jax.lax.while_loop(
      lambda c: self.evaluate(cond.jaxpr, cond.consts, [*first, *c])[0],
      lambda c: self.evaluate(body.jaxpr, body.consts, [*second, *c]),
      init,
    )

  def cond(self, params, inputs):
    """`lax.switch`; floating outputs are active if any input is."""
    index, *rest = inputs
    active, branches = bool(_active(rest)), params["branches"]
    outs = branches[0].out_avals
    flags = [active and jnp.issubdtype(a.dtype, jnp.floating) for a in outs]

    def branch(closed):
      return lambda: self.pack(self.evaluate(closed.jaxpr, closed.consts, rest), flags)

    return _unpack(jax.lax.switch(index, list(map(branch, branches))), flags)


def _unpack(values, flags):
  """What `_Evaluator.pack` made pairs of."""
  return [_Active(*v) if f else v for v, f in zip(values, flags, strict=True)]


def _gated(left, right):
  """`x * sigmoid(x)` and its like: the array times its gate's limit, else None."""
  x, gate = sorted((left, right), key=lambda x: x.limit is not None)
  if x.limit is not None or gate.limit is None:
    return None
  return x.like(x.mantissa * gate.limit, root=x.root)


def _sum_instead(eqn) -> Callable[[Any], Any] | None:
  """The sum over what an extremum runs over, None of any other equation."""
  name, params = eqn.primitive.name, eqn.params
  if name in ("reduce_max", "reduce_min"):
    return lambda x: jnp.sum(x, axis=params["axes"])
  if name == "cummax":
    return lambda x: jax.lax.cumsum(x, params["axis"], params["reverse"])
  if name in ("reduce_window_max", "reduce_window_min"):
    names = ("window_dimensions", "window_strides", "padding")
    window = [params[n] for n in (*names, "base_dilation", "window_dilation")]
    add = jax.lax.add
    return lambda x: jax.lax.reduce_window(x, np.zeros((), x.dtype), add, *window)
  return None


def _plain(x):
  return x.value if isinstance(x, _Tokens) else x


def _unmasked(x):
  """A constant without the entries that mask logits."""
  return jnp.where(x <= _MASKED, jnp.zeros_like(x), x)


def _slope(eqn):
  """Slope that stands for a call of an activation of `jax.nn`; None of other calls.

  A name is not enough: the program must be that of `jax.nn` as well.
  """
  name = eqn.params.get("name")
  if name not in _ACTIVATIONS or not hasattr(jax.nn, name):
    return None
  avals = [v.aval for v in eqn.invars]
  structs = [
    jax.ShapeDtypeStruct(a.shape, a.dtype, weak_type=a.weak_type) for a in avals
  ]
  for options in ({}, {"approximate": False}) if name == "gelu" else ({},):
    function = functools.partial(getattr(jax.nn, name), **options)
    try:
      real = jax.make_jaxpr(function)(*structs).eqns
    except TypeError:  # it does not take such arguments
      return None
    inner = [_called(other) for other in real]
    called = _called(eqn)
    if called and any(other and str(other[0]) == str(called[0]) for other in inner):
      return _SELU_SLOPE if name == "selu" else 1.0
  return None


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


def _shared_limit(name, inputs):
  """Limit of a saturating array times or plus a literal; None of anything else."""
  limits = []
  for x in inputs:
    limit = x.limit if isinstance(x, _Active) else x
    if limit is None or np.ndim(limit) or isinstance(limit, jax.core.Tracer):
      return None
    limits.append(float(limit))
  left, right = limits
  if name == "div":
    return left / right if right else None
  return {"add": left + right, "sub": left - right, "mul": left * right}[name]
