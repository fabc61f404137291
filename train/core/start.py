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
from train.core.config import CRITICAL, SCORED
from train.core.console import UserError
from train.core.kernels import exact_densities, with_layouts
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
  relu: bool

  @property
  def options(self) -> dict[str, Any]:
    """Options of the start, by name."""
    angle = {"angle": math.radians(self.angle)} if self.angle else {}
    return {
      **dict.fromkeys(("eoi", "eoi_in_mask", "eoi_structured"), angle),
      "base": {"reference": self.reference},
      "ai": {"method": self.ai_method, "num_steps": self.ai_steps},
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
  if not sparsity.needs_masks:
    return _state_by_shape(key, sparsity=sparsity, recipe=recipe)
  model = recipe.model
  params, batch_stats = dense_start(key, sparsity=sparsity, recipe=recipe)
  wanted = masks
  if sparsity.start == "eoi":  # keeps the densities of the layers, not the masks
    wanted = with_layouts(eoi_jax.mask_densities, model)(masks)
    wanted = _exact(sparsity, params, wanted, model)
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


def _sparsify(key, params, wanted, sparsity: SparsitySettings, model: Any):
  return with_layouts(eoi_jax.sparsify, model)(
    named_key(key, "sparsity"),
    params,
    wanted,
    start=sparsity.start,
    scale=sparsity.scale,
    options=sparsity.options,
  )


def densities(sparsity: SparsitySettings, params: Any, model: Any) -> Any:
  """Returns the density of each kernel: a tree like `params`, None = dense leaf."""
  if sparsity.distribution in ("dense", "uniform"):
    density = 1.0 if sparsity.distribution == "dense" else sparsity.density
    return with_layouts(eoi_jax.uniform, model)(params, density)
  wanted = with_layouts(eoi_jax.erk, model)(params, sparsity.density)
  return _exact(sparsity, params, wanted, model)


def _exact(sparsity: SparsitySettings, params: Any, wanted: Any, model: Any) -> Any:
  """Densities whose weights add up exactly; EOI's keep the floors of the layers."""
  floors = sparsity.floors if sparsity.start == "eoi" else "ignore"
  return exact_densities(params, wanted, sparsity.density, model, floors=floors)


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
  model, density = recipe.model, sparsity.density
  params, stats = dense_start(key, sparsity=sparsity, recipe=recipe)

  def evaluate(params, inputs):
    variables = {"params": params, "batch_stats": stats}
    return model.apply(variables, inputs, train=False)

  def train(params, inputs):
    variables = {"params": params, "batch_stats": stats}
    return model.apply(variables, inputs, train=True, mutable=["batch_stats"])[0]

  def batch(rows):
    images, labels = (np.asarray(array)[rows] for array in data)
    return normalize(jnp.asarray(images), recipe.spec), jnp.asarray(labels)

  key_data = named_key(key, "scores")
  if sparsity.distribution == "synflow":
    shape, rounds = (1, *recipe.spec.shape), sparsity.synflow_rounds
    synflow = with_layouts(eoi_jax.synflow_masks, model)
    return synflow(evaluate, params, shape, density, num_rounds=rounds)
  if sparsity.distribution == "snip":
    order = np.asarray(jax.random.permutation(key_data, len(data.labels)))
    snip = with_layouts(eoi_jax.snip_scores, model)
    scores = snip(train, params, batch(order[: recipe.batch_size]))
    return eoi_jax.global_masks(scores, density)
  if sparsity.distribution == "grasp":
    rows = balanced_rows(key_data, data.labels, sparsity.grasp_examples)
    halves = [batch(half) for half in np.array_split(rows, 2)]
    scores = with_layouts(eoi_jax.grasp_scores, model)(train, params, halves)
    return eoi_jax.global_masks(scores, density)
  wanted = densities(sparsity, params, model)
  random_masks = with_layouts(eoi_jax.random_masks, model)
  return random_masks(named_key(key, "masks"), params, wanted)


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
