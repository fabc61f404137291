"""What a sparse network is before its training: the contents of the pre-flight."""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import eoi_jax
from train.calls import Call, metered, trace_calls
from train.gains import gains
from train.models import ACTIVATIONS
from train.plan import make_plan, start_state
from train.state import named_key
from train.steps import normalize
from train.streams import take
from train.summaries import Layer, describe

# Above this error a kernel is no isometry: rounding stays well below.
TOLERANCE = 1e-4
_LARGEST_JACOBIAN = 4_000_000
# Networks whose layers follow the mean-field equations: no normalization or shortcut.
_PLAIN = ("mlp", "cnn")


class Row(NamedTuple):
  """One kernel of the network; a stack of equal layers is one row.

  Attributes:
    layer: name, shape, count, live weights, density, Gram error.
    floor: the lowest density with an orthogonal start.
    dead_inputs: input units without a weight at the start, all layers together.
    dead_outputs: likewise.
    flops: of one example's forward pass if all weights were live, all layers.
    gains: norm of the outputs over that of the inputs, by layer.
    gradient_gains: norm of the gradient at the outputs over that at the end of the
      network, by layer.
    gradient_norms: of the kernel, by layer.
    obstacles: why the layer cannot preserve every signal; empty if it does.
  """

  layer: Layer
  floor: float
  dead_inputs: int
  dead_outputs: int
  flops: int
  gains: list[float]
  gradient_gains: list[float]
  gradient_norms: list[float]
  obstacles: list[str]


class Inspection(NamedTuple):
  """All that the pre-flight reports.

  Attributes:
    rows: kernels in the order of the forward pass.
    totals: sums and ratios over the network.
    spectrum: singular values of the input-output Jacobian: mean, max, min, rms.
    values: the singular values, float `[samples, n]`.
    theory: mean-field numbers, empty for networks they do not describe.
    slopes: the lowest and the highest of the activation within two deviations of the
      pre-activations; it is an isometry only where they are equal in size.
  """

  rows: list[Row]
  totals: dict[str, float]
  spectrum: dict[str, Any]
  values: np.ndarray
  theory: dict[str, float]
  slopes: tuple[float, float]


def measure(config: Any, *, num_samples: int = 16) -> Inspection:
  """Builds the network of a config and measures it at its start.

  Args:
    config: a validated config.
    num_samples: training images for Jacobian and gradients.

  Raises:
    UserError: if the data set is missing or a kernel cannot have its density.
  """
  plan = make_plan(config)
  state = start_state(plan)
  params, masks, stats = state.params, state.masks, state.batch_stats
  model, spec, scale = _plain(plan.recipe.model), plan.recipe.spec, gains(config).scale
  variables = {"params": params, "batch_stats": stats}
  calls = trace_calls(model, variables, spec.shape)
  layers = {row.name: row for row in describe(params, masks, scale, model)}
  assert layers.keys() <= calls.keys()
  inputs = normalize(jnp.asarray(take(plan.dataset.train, num_samples).images), spec)
  apply_fn = functools.partial(_apply, model, _Frozen(stats))
  options = {"is_kernel": model.is_kernel, "is_stacked": model.is_stacked}
  key = named_key(jax.random.key(config.seed), "preflight")
  norms = eoi_jax.gradient_norms(key, apply_fn, params, inputs, **options)
  dead = eoi_jax.dead_units(params, **options)
  profiles = eoi_jax.layer_profiles(key, *metered(model, variables, spec.shape), inputs)
  rows = [
    _row(layers[n], calls[n], dead[n], profiles[n], norms[n])
    for n in calls
    if n in layers
  ]
  values = _singular_values(key, apply_fn, params, inputs)
  effective = eoi_jax.effective_masks(
    apply_fn, params, masks, (1, *spec.shape), **options
  )
  totals = _totals(rows, params) | {
    "effective_density": eoi_jax.effective_density(effective)
  }
  theory = _theory(config)
  return Inspection(
    rows=rows,
    totals=totals,
    spectrum=_spectrum(values, config.data.name),
    values=values,
    theory=theory,
    slopes=_slopes(config, theory.get("q_star", 1.0)),
  )


def _plain(model: Any) -> Any:
  """The network without rematerialization, whose layers can be looked into."""
  return model.clone(remat=False) if getattr(model, "remat", False) else model


class _Frozen:
  """Statistics as a part of a static function: compared by identity."""

  def __init__(self, tree: Any):
    self.tree = tree


def _apply(model, stats: _Frozen, params, inputs):
  variables = {"params": params, "batch_stats": stats.tree}
  return model.apply(variables, inputs, train=False)


def _row(layer: Layer, call: Call, dead, profile, norms) -> Row:
  taps = math.prod(layer.shape[:-2])
  size = math.prod(layer.shape) * layer.count
  return Row(
    layer=layer,
    floor=1 / (taps * max(layer.shape[-2:])),
    dead_inputs=dead.inputs,
    dead_outputs=dead.outputs,
    flops=2 * size * call.positions_out,
    gains=_by_layer(profile.gain),
    gradient_gains=_by_layer(profile.gradient_gain),
    gradient_norms=_by_layer(norms),
    obstacles=_obstacles(layer, call),
  )


def _by_layer(values: Any) -> list[float]:
  return np.asarray(values, float).ravel().tolist()


def _obstacles(layer: Layer, call: Call) -> list[str]:
  found = []
  if call.groups > 1:
    found.append(
      f"{call.groups} channel groups: a filter each, no rotation of channels"
    )
  elif layer.orthogonality_error > TOLERANCE:
    found.append(f"not orthogonal: Gram error {layer.orthogonality_error:.1g}")
  if max(call.strides, default=1) > 1:
    found.append(f"stride {max(call.strides)} drops pixels")
  elif call.positions_out < call.positions_in:
    found.append("its padding drops the border")
  size_in, size_out = layer.shape[-2:]
  if size_in > size_out and call.groups == 1:
    found.append(f"narrows {size_in} to {size_out}")
  return found


def _totals(rows: list[Row], params: Any) -> dict[str, float]:
  total = sum(leaf.size for leaf in jax.tree.leaves(params))
  size = sum(row.layer.count * math.prod(row.layer.shape) for row in rows)
  live = sum(row.layer.live for row in rows)
  flops = sum(row.flops for row in rows)
  live_flops = sum(row.flops * row.layer.density for row in rows)
  return {
    "parameters": total,
    "parameters_live": total - size + live,
    "kernel_density": live / size,
    "forward_flops_dense": flops,
    "forward_flops_sparse": round(live_flops),
    "bytes_dense": 4 * total,
    # Live weights, and one bit a weight to say which they are.
    "bytes_sparse": 4 * (total - size + live) + math.ceil(size / 8),
  }


def _singular_values(key, apply_fn, params, inputs) -> np.ndarray:
  """All singular values, or the two extremes of Jacobians too large to form."""
  outputs = jax.eval_shape(apply_fn, params, inputs)
  if inputs[0].size * math.prod(outputs.shape[1:]) <= _LARGEST_JACOBIAN:
    values = eoi_jax.jacobian_singular_values(apply_fn, params, inputs, batch_size=8)
    return np.asarray(values)
  extremes = eoi_jax.jacobian_extremes(
    key, apply_fn, params, inputs, num_iterations=24, num_probes=8, batch_size=1
  )
  root = jnp.sqrt(extremes.mean_square)
  return np.stack([extremes.max, root, extremes.min], axis=1)


def _spectrum(values: np.ndarray, data: str) -> dict[str, Any]:
  summary = eoi_jax.spectrum_summary(values)
  return {
    "mean": summary.mean,
    "max": summary.max,
    "min": summary.min,
    "root_mean_square": math.sqrt(summary.mean_square),
    "samples": len(values),
    "inputs": f"{data} training images",
  }


def _slopes(config: Any, q_star: float) -> tuple[float, float]:
  activation = ACTIVATIONS[config.model.activation]
  deviation = math.sqrt(q_star) if 0 < q_star < math.inf else 1.0
  points = deviation * jnp.linspace(-2.0, 2.0, 101)
  slopes = jax.vmap(jax.grad(activation))(points)
  return float(slopes.min()), float(slopes.max())


def _theory(config: Any) -> dict[str, float]:
  if config.model.name not in _PLAIN:
    return {}
  activation = ACTIVATIONS[config.model.activation]
  scale, bias_std = gains(config)
  q_star = eoi_jax.variance_fixed_point(activation, scale, bias_std)
  result = {"sigma_w": scale, "sigma_b": bias_std, "q_star": q_star}
  if math.isfinite(q_star):
    chi_1 = eoi_jax.chi_1(activation, q_star or 1e-12, sigma_w=scale)
    length = eoi_jax.correlation_length(activation, scale, bias_std)
    result |= {"chi_1": chi_1, "correlation_length": length}
  return result
