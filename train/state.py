"""The state of a training, and its start as a function of config and key."""

import functools
import math
import zlib
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import optax

import eoi_jax
from train.datasets import DatasetSpec
from train.dynamic import STATIC, DynamicSettings
from train.gains import gains
from train.mesh import Placement
from train.optimizers import OptimizerSettings, create_optimizer

# Where the density goes: by shapes alone, or by scores of a dense network.
BY_SHAPE = ("uniform", "erk", "dense")
SCORED = ("snip", "grasp", "synflow")


class Recipe(NamedTuple):
  """What a compiled step depends on, hashable.

  Attributes:
    model: the network.
    spec: the data set's constants.
    optimizer: the optimizer's settings.
    batch_size: examples a step.
    steps_per_epoch: whole batches in the training set.
    num_steps: length of the training.
    augment: whether training images are cropped and flipped at random.
    streamed: whether the host brings the batches of each chunk.
    placement: how the training lies on several devices, None on one.
    dynamic: whether and how masks move.
  """

  model: Any
  spec: DatasetSpec
  optimizer: OptimizerSettings
  batch_size: int
  steps_per_epoch: int
  num_steps: int
  augment: bool = False
  streamed: bool = False
  placement: Placement | None = None
  dynamic: DynamicSettings = STATIC

  def create_tx(self, masks: Any, key: jax.Array) -> optax.GradientTransformation:
    """Returns the optimizer; masks and key are those of the start."""
    return create_optimizer(
      self.optimizer,
      self.num_steps,
      masks,
      key=key,
      dynamic=self.dynamic,
      is_stacked=self.model.is_stacked,
    )


class TrainState(NamedTuple):
  """All that changes in a training, and all that a checkpoint needs.

  Attributes:
    step: number of updates done, int32.
    params: the network's parameters; dead weights are exactly zero.
    opt_state: the optimizer's state, of `train.dynamic`: it holds the masks.
    batch_stats: running statistics of normalization layers, {} without any.
    key: the key of the training; keys of epochs and steps are folded into it.
  """

  step: jax.Array
  params: Any
  opt_state: Any
  batch_stats: Any
  key: jax.Array

  @property
  def masks(self) -> Any:
    """Tree like `params`: bool leaves, True = trained, or None = dense leaf."""
    return eoi_jax.current_masks(self.opt_state)


def named_key(key: jax.Array, name: str) -> jax.Array:
  """Returns the key for the purpose `name`, whatever other purposes there are."""
  return jax.random.fold_in(key, zlib.crc32(name.encode()))


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


def optimizer_settings(config: Any) -> OptimizerSettings:
  """Returns the optimizer part of a config as a hashable value."""
  return OptimizerSettings(**config.optimizer.to_dict())


def create_train_state(
  key: jax.Array, *, sparsity: SparsitySettings, recipe: Recipe, masks: Any = None
) -> TrainState:
  """Samples parameters and masks, and starts the optimizer.

  Args:
    key: the key of the run; it is consumed.
    sparsity: density and start of the kernels.
    recipe: network, data set and optimizer.
    masks: the masks to start from, if `sparsity.needs_masks` (`train.schemes`).

  Returns:
    The state at step 0.

  Raises:
    ValueError: if a kernel cannot have the wanted density.
  """
  args = {"sparsity": sparsity, "model": recipe.model, "spec": recipe.spec}
  if sparsity.needs_masks:
    params, batch_stats = dense_start(key, **args)
    wanted = masks
    if sparsity.start == "eoi":
      wanted = eoi_jax.mask_densities(masks, is_stacked=recipe.model.is_stacked)
      wanted = budget_densities(sparsity, params, wanted, recipe.model)
    params, masks = _sparsify(key, params, wanted, sparsity, recipe.model)
  else:
    params, masks, batch_stats = sparse_start(key, **args)
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
  static = ("sparsity", "model", "spec")
  usual = jax.jit(function, static_argnames=static)
  options = {"xla_backend_optimization_level": 1}
  soon = jax.jit(function, static_argnames=static, compiler_options=options)

  @functools.wraps(function)
  def start(key, *, sparsity, model, spec):
    inner = isinstance(key, jax.core.Tracer)  # options are for the outermost program
    long = sparsity.start == "ai"
    usually = inner or long or jax.default_backend() != "cpu"
    return (usual if usually else soon)(key, sparsity=sparsity, model=model, spec=spec)

  return start


@_compile_soon
def sparse_start(
  key: jax.Array, *, sparsity: SparsitySettings, model: Any, spec: DatasetSpec
) -> tuple[Any, Any, Any]:
  """Samples a network; returns parameters, masks and batch statistics."""
  params, batch_stats = _init(key, model, spec)
  wanted = densities(sparsity, params, model)
  params, masks = _sparsify(key, params, wanted, sparsity, model)
  return params, masks, batch_stats


@_compile_soon
def dense_start(
  key: jax.Array, *, sparsity: SparsitySettings, model: Any, spec: DatasetSpec
) -> tuple[Any, Any]:
  """Samples a dense network; returns parameters and batch statistics.

  Its kernels are those that the start "base" then masks.
  """
  params, batch_stats = _init(key, model, spec)
  dense = sparsity._replace(start=sparsity.reference)
  return _sparsify(key, params, 1.0, dense, model)[0], batch_stats


def _init(key: jax.Array, model: Any, spec: DatasetSpec) -> tuple[Any, Any]:
  inputs = jnp.zeros((1, *spec.shape), jnp.float32)
  variables = model.init(named_key(key, "params"), inputs)
  return variables["params"], variables.get("batch_stats", {})


def _sparsify(key, params, wanted, sparsity: SparsitySettings, model: Any):
  return eoi_jax.sparsify(
    named_key(key, "sparsity"),
    params,
    wanted,
    start=sparsity.start,
    scale=sparsity.scale,
    options=sparsity.options,
    is_kernel=model.is_kernel,
    is_stacked=model.is_stacked,
  )


def densities(sparsity: SparsitySettings, params: Any, model: Any) -> Any:
  """Returns the density of each kernel: a tree like `params`, None = dense leaf."""
  leaves = {"is_kernel": model.is_kernel, "is_stacked": model.is_stacked}
  if sparsity.distribution == "dense":
    return eoi_jax.uniform(params, 1.0, **leaves)
  if sparsity.distribution == "uniform":
    return eoi_jax.uniform(params, sparsity.density, **leaves)
  wanted = eoi_jax.erk(params, sparsity.density, **leaves)
  return budget_densities(sparsity, params, wanted, model)


def budget_densities(
  sparsity: SparsitySettings, params: Any, wanted: Any, model: Any
) -> Any:
  """Returns densities whose weights add up exactly; EOI's keep the layers' floors."""
  leaves: dict[str, Any] = {
    "is_kernel": model.is_kernel,
    "is_stacked": model.is_stacked,
  }
  floors = sparsity.floors if sparsity.start == "eoi" else "ignore"
  counts = eoi_jax.budgets(
    params, wanted, density=sparsity.density, floors=floors, **leaves
  )
  return eoi_jax.densities_from_budgets(params, counts, **leaves)
