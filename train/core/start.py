"""The start of a training run: parameters and masks, a function of config and key.

Gains, then densities and masks, then the kernels, then the optimizer.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

import eoi_jax
from eoi_jax.layouts import fill_tree, find_kernels
from train.core.config import CRITICAL, SCORED
from train.core.console import UserError
from train.core.state import Recipe, TrainState, named_key
from train.data.datasets import Split
from train.data.images import normalize
from train.models import ACTIVATIONS


class Gains(NamedTuple):
  """Scales of a start.

  Attributes:
    scale: of the kernels, sigma_w.
    bias_std: of the biases, sigma_b.
  """

  scale: float
  bias_std: float


def gains(config: Any) -> Gains:
  """Returns the numbers behind `sparsity.scale` and `sparsity.bias_std`.

  With `scale = "critical"` both are those of the critical point of the network's
  activation at the variance `sparsity.q_star`.

  Args:
    config: a config whose fields have been checked.

  Raises:
    UserError: if there is no critical point, or a deviation of the biases is given
      besides.
  """
  sparsity = config.sparsity
  if sparsity.scale != CRITICAL:
    return Gains(float(sparsity.scale), float(sparsity.bias_std))
  if sparsity.bias_std:
    raise UserError(
      "`sparsity.bias_std` must be 0 with `sparsity.scale` = 'critical', which sets "
      f"both, got {sparsity.bias_std}."
    )
  return _critical(config.model.activation, float(sparsity.q_star))


@functools.cache
def _critical(activation: str, q_star: float) -> Gains:
  try:
    return Gains(*eoi_jax.critical_point(ACTIVATIONS[activation], q_star))
  except ValueError as error:
    raise UserError(
      f"`sparsity.scale` = 'critical' with {activation} at `sparsity.q_star` = "
      f"{q_star:g}: {error}"
    ) from error


class SparsitySettings(NamedTuple):
  """Plain values: hashable, so that the compiled start may depend on them."""

  start: str
  distribution: str
  density: float
  scale: float
  bias_std: float
  reference: str
  ai_method: str
  ai_steps: int
  synflow_rounds: int
  grasp_examples: int
  floors: str
  angle: float
  center: str
  taps: str
  relu: bool

  @property
  def options(self) -> dict[str, Any]:
    """Options of the start, by name."""
    angle = {"angle": math.radians(self.angle)} if self.angle else {}
    return {
      "eoi": {"center": self.center, "taps": self.taps, **angle},
      **dict.fromkeys(("eoi_in_mask", "eoi_structured"), angle),
      "base": {"reference": self.reference},
      "ai": {
        "reference": self.reference,
        "method": self.ai_method,
        "num_steps": self.ai_steps,
      },
      "sao": {"relu": self.relu},
    }.get(self.start, {})

  @property
  def needs_masks(self) -> bool:
    """Whether the start depends on masks that are not a function of shapes."""
    return self.distribution in SCORED or self.start == "eoi_in_mask"


def sparsity_settings(config: Any) -> SparsitySettings:
  """Returns the sparsity part of a config as a hashable value."""
  values = config.sparsity.to_dict() | gains(config)._asdict()
  values["relu"] = config.model.activation == "relu"
  return SparsitySettings(**{name: values[name] for name in SparsitySettings._fields})


def create_train_state(
  key: jax.Array, *, sparsity: SparsitySettings, recipe: Recipe, masks: Any = None
) -> TrainState:
  """Samples parameters and masks, and starts the optimizer.

  Args:
    key: the key of the run; it is consumed.
    sparsity: density and start of the kernels.
    recipe: network, data set and optimizer.
    masks: the masks to start from, if `sparsity.needs_masks` (see `create_masks`).

  Returns:
    The state at step 0.

  Raises:
    ValueError: if a kernel cannot have the wanted density.
  """
  model = recipe.model
  if not sparsity.needs_masks and isinstance(key, jax.core.Tracer):
    return _state_by_shape(key, sparsity=sparsity, recipe=recipe)
  if not sparsity.needs_masks:
    # Not one program: exact masks of a traced key are a callback to the host, and JAX
    # keeps no program with a callback in its compilation cache.
    params, batch_stats = _jit_init(key, recipe=recipe)
    wanted = densities(sparsity, params, model)
    params, masks = _sparsify(key, params, wanted, sparsity, model)
    return _jit_first_state(key, params, masks, batch_stats, recipe=recipe)
  params, batch_stats = dense_start(key, sparsity=sparsity, recipe=recipe)
  wanted = masks
  if sparsity.start == "eoi":  # keeps the densities of the layers, not the masks
    wanted = eoi_jax.masks.mask_densities(masks, layouts=model.layouts)
    wanted = densities(sparsity, params, model, rule=wanted)
  params, masks = _sparsify(key, params, wanted, sparsity, model)
  return _first_state(key, params, masks, batch_stats, recipe)


def _first_state(
  key: jax.Array, params: Any, masks: Any, batch_stats: Any, recipe: Recipe
) -> TrainState:
  tx = recipe.create_tx(masks, named_key(key, "masks"))
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    opt_state=tx.init(params),
    batch_stats=batch_stats,
    key=named_key(key, "train"),
  )


def _compile_soon(function):
  """Compiles a start; on a CPU with less optimization, if it is worth that.

  A start runs once, and its program is large: one part for each shape of kernel. Masks
  are the same either way, weights to rounding.
  """
  static = ("sparsity", "recipe")
  usual = jax.jit(function, static_argnames=static)
  options = {"xla_backend_optimization_level": 1}
  soon = jax.jit(function, static_argnames=static, compiler_options=options)

  @functools.wraps(function)
  def start(key, *, sparsity, recipe):
    inner = isinstance(key, jax.core.Tracer)  # options are for the outermost program
    long = sparsity.start == "ai"
    usually = inner or long or jax.default_backend() != "cpu"
    return (usual if usually else soon)(key, sparsity=sparsity, recipe=recipe)

  return start


@_compile_soon
def _state_by_shape(
  key: jax.Array, *, sparsity: SparsitySettings, recipe: Recipe
) -> TrainState:
  """The state at step 0 where shapes tell the densities: one program."""
  params, batch_stats = _init(key, recipe)
  wanted = densities(sparsity, params, recipe.model)
  params, masks = _sparsify(key, params, wanted, sparsity, recipe.model)
  return _first_state(key, params, masks, batch_stats, recipe)


@_compile_soon
def dense_start(
  key: jax.Array, *, sparsity: SparsitySettings, recipe: Recipe
) -> tuple[Any, Any]:
  """Samples a dense network; returns parameters and batch statistics.

  Its kernels are those that the start "base" then masks.
  """
  params, batch_stats = _init(key, recipe)
  dense = sparsity._replace(start=sparsity.reference)
  return _sparsify(key, params, 1.0, dense, recipe.model)[0], batch_stats


def _init(key: jax.Array, recipe: Recipe) -> tuple[Any, Any]:
  inputs = jnp.zeros((1, *recipe.spec.shape), jnp.float32)
  variables = recipe.model.init(named_key(key, "params"), inputs)
  return variables["params"], variables.get("batch_stats", {})


_jit_init = jax.jit(_init, static_argnames="recipe")
_jit_first_state = jax.jit(_first_state, static_argnames="recipe")


def _sparsify(key, params, wanted, sparsity: SparsitySettings, model: Any):
  key = named_key(key, "sparsity")
  if sparsity.start == "fan_in_uniform":
    return _fan_in_uniform(key, params, model), fill_tree(params, {})
  return eoi_jax.sparsify(
    key,
    params,
    wanted,
    start=sparsity.start,
    scale=sparsity.scale,
    options=sparsity.options,
    layouts=model.layouts,
  )


def _fan_in_uniform(key: jax.Array, params: Any, model: Any) -> Any:
  """Dense kernels, uniform in +-1 / sqrt(fan-in): the default start of PyTorch."""
  init = jax.nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform", batch_axis=0)
  kernels = {}
  for name, kernel in find_kernels(params, model.layouts).items():
    shape = (kernel.num_layers, *kernel.layer_shape)
    layers = init(named_key(key, name), shape, kernel.leaf.dtype)
    kernels[name] = kernel.from_layers(layers)
  return fill_tree(params, kernels, keep=True)


def densities(
  sparsity: SparsitySettings, params: Any, model: Any, *, rule: Any = None
) -> Any:
  """Returns densities whose weights add up exactly; EOI's keep the layers' floors.

  Args:
    sparsity: distribution, density and floors.
    params: the parameters, or their shapes.
    model: the network.
    rule: tree of densities to take in place of the distribution.

  Returns:
    Tree like `params`, None = dense leaf.
  """
  rule = sparsity.distribution if rule is None else rule
  if isinstance(rule, str) and rule in ("dense", "uniform", "uniform_skip"):
    density = 1.0 if rule == "dense" else sparsity.density
    dense = _skipped(params, model) if rule == "uniform_skip" else ()
    return eoi_jax.uniform(params, density, dense=dense, layouts=model.layouts)
  floors = sparsity.floors if sparsity.start == "eoi" else "ignore"
  options = {"rule": rule, "floors": floors, "layouts": model.layouts}
  return eoi_jax.allocate(params, sparsity.density, **options)


def _skipped(params: Any, model: Any) -> list[str]:
  """Kernels that "uniform_skip" keeps dense: the ends of a network, told by shape."""

  def is_end(*shape):
    *window, fan_in, fan_out = shape
    return fan_in == 3 if window else fan_in != fan_out

  kernels = find_kernels(params, model.layouts)
  ends = [name for name, kernel in kernels.items() if is_end(*kernel.layer_shape)]
  if len(ends) == len(kernels):
    raise ValueError(
      "`sparsity.distribution` must not be 'uniform_skip' for a network without square "
      f"dense layers and convolutions of more than 3 channels, got {ends}."
    )
  return ends


def create_masks(
  key: jax.Array, *, sparsity: SparsitySettings, recipe: Recipe, data: Split
) -> Any:
  """Chooses the trained weights of a network before its start.

  Args:
    key: the key of the run: the network scored is the one that "base" masks.
    sparsity: distribution and density.
    recipe: network and data set.
    data: the training set; SNIP scores one batch of it, GraSP some examples of each
      class in two halves.

  Returns:
    Tree like the parameters: bool leaves, True = trained, None = dense leaf.
  """
  model, density, layouts = recipe.model, sparsity.density, recipe.model.layouts
  params, stats = dense_start(key, sparsity=sparsity, recipe=recipe)

  def evaluate(params, inputs):
    variables = {"params": params, "batch_stats": stats}
    return model.apply(variables, inputs, train=False)

  def train(params, inputs):
    variables = {"params": params, "batch_stats": stats}
    rngs = {"dropout": named_key(key, "dropout")}
    options = {"mutable": ["batch_stats"], "rngs": rngs}
    return model.apply(variables, inputs, train=True, **options)[0]

  def batch(rows):
    images, labels = (np.asarray(array)[rows] for array in data)
    return normalize(jnp.asarray(images), recipe.spec), jnp.asarray(labels)

  key_data = named_key(key, "scores")
  if sparsity.distribution == "synflow":
    shape, rounds = (1, *recipe.spec.shape), sparsity.synflow_rounds
    options = {"num_rounds": rounds, "layouts": layouts}
    return eoi_jax.synflow_masks(evaluate, params, shape, density, **options)
  if sparsity.distribution == "snip":
    order = np.asarray(jax.random.permutation(key_data, len(data.labels)))
    examples = batch(order[: recipe.batch_size])
    scores = eoi_jax.snip_scores(train, params, examples, layouts=layouts)
    return eoi_jax.global_masks(scores, density)
  if sparsity.distribution == "grasp":
    rows = balanced_rows(key_data, data.labels, sparsity.grasp_examples)
    halves = [batch(half) for half in np.array_split(rows, 2)]
    scores = eoi_jax.grasp_scores(train, params, halves, layouts=layouts)
    return eoi_jax.global_masks(scores, density)
  wanted = densities(sparsity, params, model)
  key = named_key(key, "masks")
  return eoi_jax.random_masks(key, params, wanted, layouts=layouts)


def balanced_rows(key: jax.Array, labels: Any, count: int) -> np.ndarray:
  """Returns the rows of random examples of each class, classes in turns.

  There are `count` of each class, or as many as the rarest class has.
  """
  labels = np.asarray(labels)
  classes, sizes = np.unique(labels, return_counts=True)
  count = min(count, sizes.min())
  order = np.asarray(jax.random.permutation(key, len(labels)))
  rows = [order[labels[order] == label][:count] for label in classes]
  return np.stack(rows, axis=1).reshape(-1)
