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
  derivative, and integers but under roots: mantissas change in the last bit at most.
- What is chosen by tokens, or by indices that depend on the inputs, is every choice at
  once; matrices that are made of parameters (standardized ones) are absolute, too.
- `reach=True` asks only what can be reached from the inputs: active arrays are 0 or 1,
  and so are the derivatives; constants that are added have no say, and extrema and
  choices are sums.
"""

import contextlib
import dataclasses
import functools
import math
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.core
import jax.extend.core as jex_core
import jax.numpy as jnp
import numpy as np

from eoi_jax import _checks

# fmt: off
# Activations by the name of their call in a jaxpr; a slope of 1 stands for them. Others
# of `jax.nn` (gelu, relu) are linear, or kept, by the primitives that they are made of.
_ACTIVATIONS = frozenset((
  "celu", "elu", "hard_sigmoid", "hard_silu", "hard_tanh", "mish", "relu6", "selu",
  "silu", "soft_sign", "softplus", "squareplus",
))
_SELU_SLOPE = 1.0507009873554805
# Saturating primitives, and their limit where they gate their own argument.
_SATURATING = {"tanh": 1.0, "logistic": 1.0, "erf": 1.0, "erfc": 2.0, "atan": 1.0}
# What their limit becomes under elementwise functions of it and of numbers; a negated
# gate counts by its size, as all weights do.
_LIMITS = {
  "add": operator.add, "copy": operator.pos, "copy_p": operator.pos,
  "div": operator.truediv, "mul": operator.mul, "neg": operator.pos,
  "sub": operator.sub,
}
_POWERS = {"sqrt": 0.5, "rsqrt": -0.5, "square": 2.0, "integer_pow": None}
_ELEMENTWISE = frozenset((*_SATURATING, *_LIMITS, *_POWERS))
_SUMS = frozenset(("cumsum", "reduce_sum", "reduce_window_sum"))
# Done to mantissas at one exponent: those of the operands of the slice.
_ARRAYS: dict[str, slice] = dict.fromkeys((
  *_SUMS, "abs", "broadcast_in_dim", "copy", "copy_p", "cummax", "dynamic_slice",
  "expand_dims", "gather", "neg", "optimization_barrier", "real", "reduce_max",
  "reduce_min", "reduce_window_max", "reduce_window_min", "reshape", "rev",
  "sharding_constraint", "slice", "sort", "split", "squeeze", "stop_gradient",
  "transpose",
), slice(1))
_ARRAYS |= dict.fromkeys((
  "add", "add_any", "concatenate", "max", "min", "pad", "sub",
), slice(None))
_ARRAYS |= {
  "dynamic_update_slice": slice(2), "scatter": slice(0, 3, 2),
  "scatter-add": slice(0, 3, 2), "select_n": slice(1, None),
}
_PRODUCTS = frozenset(("conv_general_dilated", "div", "dot_general", "mul"))
_COMPARISONS = frozenset(("eq", "ge", "gt", "le", "lt", "ne"))
# Reductions to a statistic, and what makes a new array of one.
_STATISTICS = frozenset(("reduce_max", "reduce_min", "reduce_sum"))
_MIXING = frozenset((
  "conv_general_dilated", "cummax", "cumsum", "dot_general", "reduce_window_max",
  "reduce_window_min", "reduce_window_sum",
))
# fmt: on
# The exponent of an array of zeros: below any other.
_NOTHING = -1e6
# Constants that mask logits: nothing at or below this is taken for a weight.
_MASKED = -1e4


def _reduce_sum(x, *, axes, **_):
  return jnp.sum(x, axis=axes)


# What reaches an output: every operand of a difference, all that an extremum sees.
_REACHING = {
  "cummax": jax.lax.cumsum_p.bind,
  "div": jnp.multiply,
  "max": jnp.add,
  "min": jnp.add,
  "neg": jnp.positive,
  "reduce_max": _reduce_sum,
  "reduce_min": _reduce_sum,
  "reduce_window_max": jax.lax.reduce_window_sum_p.bind,
  "reduce_window_min": jax.lax.reduce_window_sum_p.bind,
  "sub": jnp.add,
}


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=["mantissa", "exponent"],
  meta_fields=[],
  drop_fields=["root", "limit", "content", "merged", "spread", "logits"],
)
@dataclasses.dataclass(eq=False)
class _Active:
  """An array that depends on the inputs: `mantissa * 2**exponent`.

  The exponent is a scalar of the same dtype, within a few units of that of the largest
  element, `_NOTHING` of an array of zeros.
  """

  mantissa: Any
  exponent: Any
  # Shared by elementwise functions of one array.
  root: Any = dataclasses.field(default_factory=object)
  limit: float | None = None  # the value that it tends to, if it saturates
  # Shared by an array and what is made of it and constants alone.
  content: Any = dataclasses.field(default_factory=object)
  merged: int = 0  # elements that a statistic (sum, maximum) merged into one
  spread: Any = None  # of a root of a statistic: what takes its place as a divisor
  logits: Any = None  # of an exponential: its argument


class _Tokens(NamedTuple):
  """An integer or bool array that depends on integer inputs."""

  value: Any


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
  evaluator = _Evaluator(jnp.dtype(dtype), reach)

  def one(struct):
    ones = jnp.ones(struct.shape, struct.dtype)
    if jnp.issubdtype(struct.dtype, jnp.floating):
      return evaluator.active(ones)
    return ones if struct.dtype == jnp.bool_ else _Tokens(ones)

  def apply(params):
    arguments = map(evaluator.cast, jax.tree.leaves(params))
    ones = map(one, jax.tree.leaves(inputs))
    (out,) = evaluator.evaluate(closed, [*arguments, *ones])
    if not _is_active(out):
      raise ValueError("`apply_fn` must depend on its inputs, got constant logits.")
    out = evaluator.settle(out.mantissa, out.exponent)
    total = evaluator.settle(jnp.sum(out.mantissa), out.exponent)
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


def _plain(value):
  return value.value if isinstance(value, _Tokens) else value


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

  def settle(self, mantissa, exponent) -> _Active:
    """Brings a mantissa near 1 (or, for reachability, to 0 and 1)."""
    if self.reach:
      return _Active(_saturate(mantissa), self.zero)
    size = jnp.abs(jax.lax.stop_gradient(mantissa))
    top = jnp.max(jnp.where(jnp.isfinite(size), size, 0), initial=0)
    shift = jnp.floor(jnp.log2(jnp.where(top > 0, top, 1)))
    exponent = jnp.where(top > 0, jnp.maximum(exponent + shift, _NOTHING), _NOTHING)
    return _Active(mantissa * jnp.exp2(-shift), exponent)

  def active(self, value) -> _Active:
    """Any array as an active one."""
    if isinstance(value, _Active):
      return value
    return self.settle(jnp.asarray(value, self.dtype), self.zero)

  def align(self, values):
    """Mantissas of several arrays at one exponent, and that exponent."""
    if self.reach:  # what does not depend on the inputs has no say
      mantissas = [
        v.mantissa if _is_active(v) else jnp.zeros_like(self.cast(v)) for v in values
      ]
      return mantissas, self.zero
    exponents = {id(x.exponent): x.exponent for x in _active(values)}
    if len(exponents) == 1 and all(_is_active(v) or _no_size(v) for v in values):
      return list(map(_mantissa, values)), *exponents.values()
    parts = list(map(self.active, values))
    highest = functools.reduce(jnp.maximum, (x.exponent for x in parts))
    mantissas = []
    for value, x in zip(values, parts, strict=True):
      scale = jnp.exp2(x.exponent - highest)
      if not _is_active(value):  # zeros and infinities, the padding of a maximum, stay
        scale = jnp.where(x.exponent > _NOTHING, scale, 1)
      mantissas.append(x.mantissa * jax.lax.stop_gradient(scale))
    return mantissas, highest

  def evaluate(self, closed, arguments):
    """Values of the outputs of a closed jaxpr; each active or a plain array."""
    env = {}

    def read(var):
      if isinstance(var, jex_core.Literal):
        return self.cast(_absolute(var.val))
      return env[var]

    jaxpr = closed.jaxpr
    consts = [self.cast(_absolute(value)) for value in closed.consts]
    env.update(zip(jaxpr.constvars, consts, strict=True))
    env.update(zip(jaxpr.invars, arguments, strict=True))
    for eqn in jaxpr.eqns:
      outputs = self.equation(eqn, [read(v) for v in eqn.invars])
      env.update(zip(eqn.outvars, outputs, strict=True))
    return [read(v) for v in jaxpr.outvars]

  def equation(self, eqn, inputs):
    """Values of the outputs of one equation."""
    name, active = eqn.primitive.name, _active(inputs)
    control = {"scan": self.scan, "while": self.while_loop, "cond": self.cond}
    if name in control:
      return control[name](eqn.params, list(map(_plain, inputs)))
    inner = _called(eqn)
    if inner is not None:
      slope = _slope(eqn, inner) if len(active) == 1 else None
      if slope is None:
        return self.evaluate(inner, inputs)
      return [_Active(x.mantissa * slope, x.exponent, root=x.root) for x in active]
    by_tokens = any(isinstance(x, _Tokens) for x in inputs)
    if name == "select_n" and isinstance(inputs[0], _Tokens) and active:
      cases = [_unmasked(x) if _is_floating(x) else x for x in inputs[1:]]
      mantissas, exponent = self.align(cases)
      return [self.settle(functools.reduce(jnp.add, mantissas), exponent)]
    if name == "gather" and isinstance(inputs[1], _Tokens):
      axes = eqn.params["dimension_numbers"].start_index_map
      inputs = [self.mean_rows(inputs[0], axes), inputs[1]]
    inputs = list(map(_plain, inputs))
    if active:
      outputs = self.rule(eqn, inputs)
      self.note(eqn, inputs, outputs)
      return outputs
    outputs = self.bind(eqn, inputs)
    if not by_tokens:
      return outputs
    if name == "convert_element_type" and inputs[0].dtype == jnp.bool_:
      outputs = [jnp.ones_like(x) for x in outputs]  # any of them may be True
    return [self.active(x) if _is_floating(x) else _Tokens(x) for x in outputs]

  def mean_rows(self, x, axes):
    """An array whose rows are their mean: a lookup by tokens gives any of them."""
    if not isinstance(x, _Active) and not _is_floating(x):
      return x
    rows = self.cast(_mantissa(x))
    mean = jnp.broadcast_to(jnp.mean(rows, axis=axes, keepdims=True), rows.shape)
    return self.settle(mean, x.exponent) if isinstance(x, _Active) else mean

  def note(self, eqn, inputs, outputs):
    """Notes which arrays are functions, and which are statistics, of which."""
    name, active = eqn.primitive.name, _active(inputs)
    x = active[0]
    outputs = [out for out in _active(outputs) if out is not x]
    alone = all(v.root is x.root if _is_active(v) else np.ndim(v) == 0 for v in inputs)
    alike = all(other.content is x.content for other in active)
    for out in outputs:
      if name in _ELEMENTWISE and alone:
        out.root = x.root
      out.limit = _limit(name, inputs)
      if self.reach or name in _MIXING or not alike:
        continue
      out.content, out.merged = x.content, min(v.merged for v in active)
      if name in _STATISTICS:
        out.merged = max(1, x.merged) * (x.mantissa.size // out.mantissa.size)
      if name in ("sqrt", "rsqrt", "pow") and out.merged:
        out.spread = jnp.ones_like(out.mantissa)
      elif len(active) == len(eqn.outvars) == 1 and x.spread is not None:
        (out.spread,) = self.bind(eqn, [x.spread if v is x else v for v in inputs])
      if name == "exp":
        out.logits = x

  def rule(self, eqn, inputs):
    """Outputs of an equation with an active input."""
    name, result = eqn.primitive.name, eqn.outvars[0].aval
    x, *others = _active(inputs)
    if name in _SATURATING:
      return [_Active(x.mantissa, x.exponent)]
    if name in ("clamp", "min") and not others and x.mantissa.shape == result.shape:
      return [x]
    if name in ("convert_element_type", "reduce_precision") and _is_floating(result):
      return [x]
    if name in ("sub", "mul", "div") and not self.reach:
      found = self.normalized(eqn, inputs)
      if found is not None:
        return [found]
    arrays = _ARRAYS.get(name, slice(0))
    if len(_active(inputs[arrays])) == 1 + len(others):
      return self.together(eqn, inputs, arrays)
    if name in _PRODUCTS:
      return [self.product(eqn, inputs)]
    if name in _COMPARISONS and not self.reach:
      return self.bind(eqn, self.align(inputs)[0])
    if name in _COMPARISONS:
      values = [_saturate(x.mantissa) if _is_active(x) else x for x in inputs]
      return list(map(_Tokens, self.bind(eqn, values)))
    if name in _POWERS and self.reach:
      return [x]
    if name in _POWERS:
      (mantissa,) = self.bind(eqn, [x.mantissa])
      return [self.settle(mantissa, x.exponent * (_POWERS[name] or eqn.params["y"]))]
    return self.other(eqn, inputs)

  def normalized(self, eqn, inputs):
    """An array less, times or by a statistic of its own; None of anything else."""
    name, (x, s) = eqn.primitive.name, inputs
    if name == "mul" and isinstance(x, _Active) and x.merged:
      x, s = s, x
    if not isinstance(x, _Active) or not isinstance(s, _Active):
      return None
    if x.content is not s.content or x.merged or not s.merged:
      return None
    if name == "sub":
      return x
    if name == "div" and x.logits is not None:  # softmax
      return _Active(x.logits.mantissa / s.merged, x.logits.exponent)
    return None if s.spread is None else self.product(eqn, [x, s.spread])

  def together(self, eqn, inputs, arrays: slice):
    """Moves, sums, maxima, selections and joins of arrays at one exponent."""
    name = eqn.primitive.name
    masks = {}
    if name in ("add", "select_n") and not self.reach:
      for n, x in enumerate(inputs):
        if not _is_active(x) and _is_floating(x) and np.ndim(x):
          masks[n] = x <= _MASKED
      inputs = [_unmasked(x) if n in masks else x for n, x in enumerate(inputs)]
    operands = list(inputs)
    operands[arrays], exponent = self.align(inputs[arrays])
    outputs = self.act(eqn, operands)
    if name == "add":
      for mask in masks.values():  # of the one plain operand
        outputs = [jnp.where(mask, jnp.zeros_like(m), m) for m in outputs]
    settle = _Active
    if self.reach or name in _SUMS or len(operands[arrays]) > 1:
      settle = self.settle
    return [settle(m, exponent) if _is_floating(m) else _Tokens(m) for m in outputs]

  def product(self, eqn, inputs):
    """Products and quotients: exponents add up."""
    name, (x, *others) = eqn.primitive.name, _active(inputs)
    if not others:
      (factor,) = (self.cast(v) for v in inputs if v is not x)
      if self.reach:
        factor = _saturate(jnp.asarray(factor, self.dtype))
      elif name not in ("mul", "div"):
        factor = jnp.abs(factor)
      (mantissa,) = self.act(eqn, [x.mantissa if v is x else factor for v in inputs])
      is_divisor = name == "div" and inputs[1] is x
      return self.settle(mantissa, -x.exponent if is_divisor else x.exponent)
    (y,) = others
    gated = _gated(x, y) if name == "mul" else None
    if gated is not None:
      return gated
    if self.reach:
      # It depends on either: a gate that no input reaches is constant, not zero.
      (left,) = self.act(eqn, [x.mantissa, jnp.ones_like(y.mantissa)])
      (right,) = self.act(eqn, [jnp.ones_like(x.mantissa), y.mantissa])
      return self.settle(left + right, self.zero)
    (mantissa,) = self.bind(eqn, [x.mantissa, y.mantissa])
    other = -y.exponent if name == "div" else y.exponent
    return self.settle(mantissa, x.exponent + other)

  def other(self, eqn, inputs):
    """Anything else: as it is; what it does to reachability is taken from shapes."""
    if any(jnp.issubdtype(v.aval.dtype, jnp.complexfloating) for v in eqn.outvars):
      raise ValueError(
        "`apply_fn` must be real between its inputs and logits, got the complex "
        f"outputs of `{eqn.primitive.name}`."
      )
    mantissas = [x.mantissa for x in _active(inputs)]
    shapes = {v.aval.shape for v in eqn.outvars}
    if self.reach and {m.shape for m in mantissas} == shapes:
      values = [functools.reduce(jnp.add, mantissas)] * len(eqn.outvars)
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

    def in_dtype(param):
      is_type = isinstance(param, type) and issubclass(param, np.generic)
      is_dtype = is_type or isinstance(param, np.dtype)
      return self.dtype if is_dtype and jnp.issubdtype(param, jnp.floating) else param

    params = {name: in_dtype(param) for name, param in eqn.params.items()}
    out = eqn.primitive.bind(*map(self.cast, values), **params)
    return list(out) if eqn.primitive.multiple_results else [out]

  def act(self, eqn, mantissas):
    """The equation of mantissas, or what stands for it if the question is reach."""
    reaching = _REACHING.get(eqn.primitive.name)
    if not self.reach or reaching is None:
      return self.bind(eqn, mantissas)
    return [reaching(*mantissas, **eqn.params)]

  def pack(self, values, flags):
    """Values for JAX's control flow, active where flagged."""
    return [self.active(v) if f else v for v, f in zip(values, flags, strict=True)]

  def scan(self, params, inputs):
    """`lax.scan` over active and plain arrays."""
    if "ft_in" in params:  # of jax 0.12
      num_consts, num_carry, _ = map(len, params["ft_in"].unpack())
    else:
      num_consts, num_carry = params["num_consts"], params["num_carry"]
    consts, rest = inputs[:num_consts], inputs[num_consts:]
    init, length = rest[:num_carry], params["length"]
    xs = [
      _Active(x.mantissa, jnp.full((length,), x.exponent)) if _is_active(x) else x
      for x in rest[num_carry:]
    ]

    def body(carry, x):
      outputs = self.evaluate(params["jaxpr"], [*consts, *carry, *x])
      new, ys = outputs[:num_carry], outputs[num_carry:]
      flags = [_is_active(v) or _is_active(c) for v, c in zip(new, carry, strict=True)]
      return self.pack(new, flags), ys

    slices = jax.tree.map(lambda x: x[0], xs)
    flags = None
    while flags != list(map(_is_active, init)):  # a plain carry may become active
      flags = list(map(_is_active, init))
      found, _ = jax.eval_shape(body, init, slices)
      init = self.pack(init, map(_is_active, found))
    carry, ys = jax.lax.scan(body, init, xs, length=length, reverse=params["reverse"])
    for n, y in enumerate(ys):
      if _is_active(y):  # one exponent for a stack of arrays that each have their own
        highest = jnp.max(y.exponent)
        factor = jax.lax.stop_gradient(jnp.exp2(y.exponent - highest))
        factor = factor.reshape(-1, *[1] * (y.mantissa.ndim - 1))
        ys[n] = _Active(y.mantissa * factor, highest)
    return [*carry, *ys]

  def while_loop(self, params, inputs):
    """`lax.while_loop` over what does not depend on the inputs."""
    if _active(inputs):
      raise ValueError(
        "`apply_fn` must not carry its inputs through a `while` loop, which has no "
        "reverse derivative; use `lax.scan`, or `fori_loop` with static bounds."
      )
    start, end = params["cond_nconsts"], params["cond_nconsts"] + params["body_nconsts"]
    first, second, init = inputs[:start], inputs[start:end], inputs[end:]
    return jax.lax.while_loop(
      lambda carry: self.evaluate(params["cond_jaxpr"], [*first, *carry])[0],
      lambda carry: self.evaluate(params["body_jaxpr"], [*second, *carry]),
      init,
    )

  def cond(self, params, inputs):
    """`lax.switch`; floating outputs are active if any input is."""
    index, *rest = inputs
    active, branches = bool(_active(rest)), params["branches"]
    flags = [active and _is_floating(aval) for aval in branches[0].out_avals]

    def branch(closed):
      return lambda: self.pack(self.evaluate(closed, rest), flags)

    return jax.lax.switch(index, list(map(branch, branches)))


def _gated(left, right):
  """`x * sigmoid(x)` and its like: the array times its gate's limit, else None."""
  x, gate = sorted((left, right), key=lambda x: x.limit is not None)
  if x.root is not gate.root or x.limit is not None or gate.limit is None:
    return None
  return _Active(x.mantissa * gate.limit, x.exponent)


def _limit(name, inputs) -> float | None:
  """Limit of a saturating function, and of what numbers make of it; else None."""
  limits: list[Any] = [x.limit if isinstance(x, _Active) else x for x in inputs]
  known = not any(
    x is None or np.ndim(x) or isinstance(x, jax.core.Tracer) for x in limits
  )
  if name in _LIMITS and known:
    with contextlib.suppress(ZeroDivisionError):
      return _LIMITS[name](*map(float, limits))
  return _SATURATING.get(name)


def _unmasked(x):
  """A constant without the entries that mask logits."""
  return jnp.where(x <= _MASKED, jnp.zeros_like(x), x)


def _slope(eqn, inner) -> float | None:
  """Slope that stands for a call of an activation of `jax.nn`; None of other calls.

  A name is not enough: the program must be that of `jax.nn` as well.
  """
  name = eqn.params.get("name")
  if name not in _ACTIVATIONS:
    return None
  try:
    real = jax.make_jaxpr(getattr(jax.nn, name))(*(v.aval for v in eqn.invars)).eqns
  except TypeError:  # it does not take such arguments
    return None
  programs = [str(called.jaxpr) for called in map(_called, real) if called]
  if str(inner.jaxpr) not in programs:
    return None
  return _SELU_SLOPE if name == "selu" else 1.0


def _called(eqn):
  """The closed jaxpr of a call (jit, custom derivative, checkpoint), or None."""
  inner = eqn.params.get("jaxpr", eqn.params.get("call_jaxpr"))
  if isinstance(inner, jex_core.Jaxpr) and not inner.constvars:
    inner = jex_core.ClosedJaxpr(inner, ())
  if not isinstance(inner, jex_core.ClosedJaxpr):
    return None
  fits = len(inner.jaxpr.invars) == len(eqn.invars)
  return inner if fits and len(inner.jaxpr.outvars) == len(eqn.outvars) else None
