"""What a sparse network is before its training: measured, as text and as JSON.

Which kernels a network applies, in order, and what a meter at each of them shows; dead
units, singular values of the Jacobian at the start, and mean-field theory.
"""

import json
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import eoi_jax
from eoi_jax.layouts import fill_tree, named_leaves
from train.core.console import table
from train.core.plan import Plan, start_state
from train.core.start import sparsity_settings
from train.core.state import named_key, take_seed
from train.core.summaries import Layer, list_layers, live_counts
from train.data.images import normalize
from train.data.streams import take
from train.models import ACTIVATIONS, title_and_fields
from train.models.blocks import dense_view

_METERS = "meters"  # the collection of variables; `stacks.stack` gives it an axis


class Call(NamedTuple):
  """One layer with a kernel, as the network applies it to one example."""

  positions_in: int  # number of places (pixels, tokens) of its input, 1 for a vector
  positions_out: int  # of its output
  stride: int = 1  # the largest of a convolution, 1 otherwise
  groups: int = 1  # channel groups of a convolution, 1 otherwise


def metered(
  model: Any, variables: Any, input_shape: tuple[int, ...]
) -> tuple[dict[str, Call], Callable[[Any, jax.Array], jax.Array], Any]:
  """Puts a meter behind every convolution and every dense layer.

  Returns:
    The calls by the name of a kernel, "hidden/dense/kernel", in the order of the
    forward pass, followed by shapes alone: a layer that is scanned stands once. And
    what `layer_profiles` takes: `(meters, inputs) -> outputs`, and meters by the same
    names; those of a layer that is scanned are `[layers, ...]`.
  """
  calls: dict[str, Call] = {}

  def measure_layer(next_function, args, kwargs, context):
    outputs, module = next_function(*args, **kwargs), context.module
    layer = isinstance(module, nn.Conv | nn.Dense | nn.DenseGeneral)
    if not layer or context.method_name != "__call__":
      return outputs
    inputs = next(iter((*args, *kwargs.values())))
    calls.setdefault("/".join((*module.path, "kernel")), _call(module, inputs, outputs))
    meter = module.perturb("kernel", eoi_jax.signal.signal_meter(), _METERS)
    return eoi_jax.signal.record_signal(meter, inputs, outputs)

  def forward(variables, inputs, **options):
    with nn.intercept_methods(measure_layer):
      return model.apply(variables, inputs, **options)

  inputs = jnp.zeros((1, *input_shape), jnp.float32)
  shapes = jax.eval_shape(lambda v: forward(v, inputs, mutable=_METERS)[1], variables)
  shapes = shapes.get(_METERS, {})

  def apply_fn(meters, inputs):
    return forward({**variables, _METERS: fill_tree(shapes, meters)}, inputs)

  leaves = named_leaves(shapes).items()
  meters = {name: jnp.zeros(leaf.shape, leaf.dtype) for name, leaf in leaves}
  return calls, apply_fn, meters


def _call(module: nn.Module, inputs: jax.Array, outputs: jax.Array) -> Call:
  before, after = (math.prod(x.shape[1:-1]) for x in (inputs, outputs))
  if isinstance(module, nn.Conv):
    stride = int(np.max(module.strides or 1))
    return Call(before, after, stride, module.feature_group_count)
  if isinstance(module, nn.DenseGeneral):  # of several axes in or out
    before = after = outputs[0].size // int(np.prod(module.features))
  return Call(before, after)


# Above this error a kernel is no isometry: rounding stays well below.
TOLERANCE = 1e-4
_LARGEST_JACOBIAN = 4_000_000
# Networks whose layers follow the mean-field equations: no normalization or shortcut.
_PLAIN = ("mlp", "cnn")


class Row(NamedTuple):
  """One kernel of the network; a stack of equal layers is one row.

  A kernel that is no convolution's and no dense layer's has no meter: its `flops` are
  None, its gains empty.
  """

  layer: Layer  # name, shape, count, live weights, density, Gram error
  dead_inputs: int  # input units without a weight at the start, all layers together
  dead_outputs: int  # likewise
  # of one example's forward pass if all weights were live, all layers
  flops: int | None
  gains: list[float]  # norm of the outputs over that of the inputs, by layer
  # norm of the gradient at the outputs over that at the end of the network, by layer
  gradient_gains: list[float]
  gradient_norms: list[float]  # of the kernel, by layer
  obstacles: list[str]  # why the layer cannot preserve every signal; empty if it does


class Inspection(NamedTuple):
  """All that the pre-flight reports."""

  # kernels in the order of the forward pass, last those without a meter
  rows: list[Row]
  totals: dict[str, float]  # sums and ratios over the network
  # singular values of the input-output Jacobian: mean, max, min, rms
  spectrum: dict[str, Any]
  values: np.ndarray  # the singular values, float `[samples, n]`
  # mean-field numbers, empty for networks they do not describe
  theory: dict[str, float]
  # the lowest and the highest of the activation within two deviations of the
  # pre-activations; it is an isometry only where they are equal in size; None of a
  # network that takes no activation
  slopes: tuple[float, float] | None


def measure(plan: Plan, *, num_samples: int = 16) -> Inspection:
  """Builds the network of a plan and measures it at its start, on some training images.

  Raises:
    UserError: if a kernel cannot have its density.
  """
  config, state = plan.config, take_seed(start_state(plan), 0)
  params, masks = dense_view(state.params, state.masks, state.layouts)
  model, spec = plan.recipe.model.without_blocks, plan.recipe.spec
  if getattr(model, "remat", False):  # hides its layers
    model = model.clone(remat=False)
  variables = {"params": params, "batch_stats": state.batch_stats}
  calls, *network = metered(model, variables, spec.shape)
  scale = sparsity_settings(config).scale
  layers = list_layers(params, masks, scale, model, config.sparsity.taps)
  inputs = normalize(jnp.asarray(take(plan.dataset.train, num_samples).images), spec)

  def apply_fn(params, inputs):
    return model.apply({**variables, "params": params}, inputs, train=False)

  key = named_key(jax.random.key(config.seed), "preflight")
  layouts, signal = model.layouts, eoi_jax.signal
  norms = signal.gradient_norms(key, apply_fn, params, inputs, layouts=layouts)
  dead = eoi_jax.masks.dead_units(params, layouts=layouts)
  profiles = signal.layer_profiles(key, *network, inputs)
  rows = []
  order = {name: number for number, name in enumerate(calls)}
  for layer in sorted(layers, key=lambda layer: order.get(layer.name, len(order))):
    name = layer.name
    call, profile = calls.get(name), profiles.get(name)
    row = Row(
      layer=layer,
      dead_inputs=dead[name].inputs,
      dead_outputs=dead[name].outputs,
      flops=None if call is None else 2 * layer.size * call.positions_out,
      gains=_by_layer(profile and profile.gain),
      gradient_gains=_by_layer(profile and profile.gradient_gain),
      gradient_norms=_by_layer(norms[name]),
      obstacles=_obstacles(layer, call or Call(1, 1)),
    )
    rows.append(row)
  values = _singular_values(key, apply_fn, params, inputs)
  shape = (1, *spec.shape)
  effective = signal.effective_masks(apply_fn, params, masks, shape, layouts=layouts)
  totals = _totals(params, masks, model, calls) | {
    "effective_density": signal.effective_density(effective)
  }
  summary = signal.spectrum_summary(values)
  spectrum = {
    "mean": summary.mean,
    "max": summary.max,
    "min": summary.min,
    "root_mean_square": math.sqrt(summary.mean_square),
    "samples": len(values),
    "inputs": f"{config.data.name} training images",
  }
  return Inspection(rows, totals, spectrum, values, *_of_activation(config))


def _by_layer(values: Any) -> list[float]:
  return [] if values is None else np.asarray(values, float).ravel().tolist()


def _obstacles(layer: Layer, call: Call) -> list[str]:
  found = []
  if call.groups > 1:
    text = "channel groups: a filter each, no rotation of channels"
    found.append(f"{call.groups} {text}")
  elif layer.orthogonality_error > TOLERANCE:
    found.append(f"not orthogonal: Gram error {layer.orthogonality_error:.1g}")
  if call.stride > 1:
    found.append(f"stride {call.stride} drops pixels")
  elif call.positions_out < call.positions_in:
    found.append("its padding drops the border")
  size_in, size_out = layer.shape[-2:]
  if size_in > size_out and call.groups == 1:
    found.append(f"narrows {size_in} to {size_out}")
  return found


def _totals(params: Any, masks: Any, model: Any, calls: dict) -> dict[str, float]:
  """Sums over all kernels, those that stay dense, too; FLOPs of those with a meter."""
  total = sum(leaf.size for leaf in jax.tree.leaves(params))
  rows = []
  for name, (live, size) in live_counts(params, masks, model.kernels).items():
    each = 2 * calls[name].positions_out if name in calls else 0  # of a weight
    bits = size if model.layouts[name] else 0
    rows.append((size, live, each * size, each * live, bits))
  size, live, flops, live_flops, bits = np.sum(rows, axis=0).tolist()
  return {
    "parameters": total,
    "parameters_live": total - size + live,
    "kernel_density": live / size,
    "forward_flops_dense": flops,
    "forward_flops_sparse": live_flops,
    "bytes_dense": 4 * total,
    # Live weights, and one bit a weight to say which they are.
    "bytes_sparse": 4 * (total - size + live) + math.ceil(bits / 8),
  }


def _singular_values(key, apply_fn, params, inputs) -> np.ndarray:
  """All singular values, or the two extremes of Jacobians too large to form."""
  outputs = jax.eval_shape(apply_fn, params, inputs)
  if inputs[0].size * math.prod(outputs.shape[1:]) <= _LARGEST_JACOBIAN:
    values = eoi_jax.jacobian_singular_values(apply_fn, params, inputs, batch_size=8)
    return np.asarray(values)
  extremes = eoi_jax.signal.jacobian_extremes(
    key, apply_fn, params, inputs, num_iterations=24, num_probes=8, batch_size=1
  )
  root = jnp.sqrt(extremes.mean_square)
  return np.stack([extremes.max, root, extremes.min], axis=1)


def _of_activation(
  config: Any,
) -> tuple[dict[str, float], tuple[float, float] | None]:
  """The `theory` and the `slopes` of an `Inspection`."""
  if "activation" not in title_and_fields(config.model.name)[1]:
    return {}, None
  activation, theory, q_star = ACTIVATIONS[config.model.activation], {}, 1.0
  if config.model.name in _PLAIN:
    sparsity = sparsity_settings(config)
    scale, bias_std = sparsity.scale, sparsity.bias_std
    q_star = eoi_jax.signal.variance_fixed_point(activation, scale, bias_std)
    theory = {"sigma_w": scale, "sigma_b": bias_std, "q_star": q_star}
    if math.isfinite(q_star):
      chi_1 = eoi_jax.signal.chi_1(activation, q_star or 1e-12, sigma_w=scale)
      length = eoi_jax.signal.correlation_length(activation, scale, bias_std)
      theory |= {"chi_1": chi_1, "correlation_length": length}
  deviation = math.sqrt(q_star) if 0 < q_star < math.inf else 1.0
  points = deviation * jnp.linspace(-2.0, 2.0, 101)
  slopes = jax.vmap(jax.grad(activation))(points)
  return theory, (float(slopes.min()), float(slopes.max()))


def as_text(inspection: Inspection) -> str:
  """Returns the report as text."""
  cells = list(map(_cells, inspection.rows))
  parts = [table([tuple(cells[0]), *(tuple(row.values()) for row in cells)])]
  for heading, values in (
    ("totals", inspection.totals),
    ("singular values of the Jacobian", inspection.spectrum),
    ("mean-field theory", inspection.theory),
  ):
    if values:
      lines = [(name.replace("_", " "), _number(v)) for name, v in values.items()]
      parts.append(f"{heading}\n{table(lines)}")
  if not inspection.theory:
    parts.append("no mean-field theory: the network has shortcuts or normalization")
  low, high = inspection.slopes or (1.0, 1.0)
  obstacles = [
    f"  {row.layer.name}: {'; '.join(row.obstacles)}"
    for row in inspection.rows
    if row.obstacles
  ]
  if high - low > 1e-3:
    obstacles.append(f"  activation: its slopes run from {low:.3g} to {high:.3g}")
  heading = "not isometric for every signal"
  parts.append("\n".join([heading, *(obstacles or ["  none"])]))
  return "\n\n".join(parts)


def _cells(row: Row) -> dict[str, str]:
  """A row of the report: title of the column to text."""
  layer = row.layer
  shape, flops = "x".join(map(str, layer.shape)), row.flops
  return {
    "kernel": layer.name,
    "shape": f"{layer.count} of {shape}" if layer.count > 1 else shape,
    "density": f"{layer.density:.4f}",
    "floor": f"{layer.floor:.4f}",
    "live": f"{layer.live:,}",
    "dead in": f"{row.dead_inputs:,}",
    "dead out": f"{row.dead_outputs:,}",
    "Gram error": f"{layer.orthogonality_error:.1e}",
    "FLOPs": "-" if flops is None else _short(flops * layer.density),
    "gain": _mean(row.gains),
    "gradient": _mean(row.gradient_norms),
  }


def _mean(values: list[float]) -> str:
  return f"{math.fsum(values) / len(values):.2g}" if values else "-"


def _short(count: float) -> str:
  for factor, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
    if count >= factor:
      return f"{count / factor:.3g}{suffix}"
  return f"{count:.0f}"


def _number(value: Any) -> str:
  if isinstance(value, int):
    return f"{value:,}"
  return f"{value:.4g}" if isinstance(value, float) else str(value)


def as_json(inspection: Inspection) -> str:
  """Returns the report as JSON; what is not finite is null."""
  content: dict[str, Any] = {"layers": list(map(_fields, inspection.rows))}
  for name in ("totals", "spectrum", "theory", "slopes"):
    content[name] = getattr(inspection, name)
  finite = json.loads(json.dumps(content), parse_constant=lambda _: None)
  return json.dumps(finite, indent=2) + "\n"


def _fields(row: Row) -> dict[str, Any]:
  """What JSON holds of a row."""
  names = ("name", "shape", "count", "live", "density", "orthogonality_error", "floor")
  fields = {name: getattr(row.layer, name) for name in (*names, "taps")}
  fields |= {name: value for name, value in row._asdict().items() if name != "layer"}
  return {name: value for name, value in fields.items() if value is not None}
