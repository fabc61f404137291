"""The start of a training run: parameters and masks, a function of config and key.

Gains, then the network with its blocks, densities and masks, then the kernels, then the
optimizer.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

import eoi_jax
from eoi_jax import blocks as blocks_lib
from eoi_jax.layouts import fill_tree, find_kernels, named_leaves
from train.core.config import (
  BY_SHAPE,
  CRITICAL,
  DENSE_STARTS,
  SCORED,
  START_FIELDS,
  flatten,
)
from train.core.console import UserError
from train.core.optimizers import Pruning
from train.core.state import Averages, Recipe, TrainState, named_key
from train.data.datasets import DatasetSpec
from train.data.images import normalize
from train.models import ACTIVATIONS, MODELS, Blocks, Network, create_model
from train.models.blocks import dense_view, named_layouts

OF_DATA = ("snip", "grasp")  # distributions whose scores look at examples


class Gains(NamedTuple):
  """Scales of a start."""

  scale: float  # of the kernels, sigma_w
  bias_std: float  # of the biases, sigma_b


def gains(config: Any) -> Gains:
  """Returns the numbers behind `sparsity.scale` and `sparsity.bias_std`.

  With `scale = "critical"` both are those of the critical point of the network's
  activation at the variance `sparsity.q_star`.

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
  fallback: str
  taps: str
  relu: bool
  constant_fan_in: bool

  @property
  def options(self) -> dict[str, Any]:
    """Options of the start, as `eoi_jax.sparsify` calls them."""
    if self.start == "sao":
      return {"relu": self.relu}
    starts = (
      [self.start, self.fallback] if self.start == "eoi_in_mask" else [self.start]
    )
    fields = {field for start in starts for field in START_FIELDS.get(start, ())}
    values: dict[str, Any] = {name: getattr(self, name) for name in fields - {"floors"}}
    if angle := values.pop("angle", 0.0):
      values["angle"] = math.radians(angle)
    if "fallback" in values:
      values["fallback"] = self.fallback or None
    names = {"ai_method": "method", "ai_steps": "num_steps"}
    return {names.get(name, name): value for name, value in values.items()}

  @property
  def needs_masks(self) -> bool:
    """Whether the start depends on masks that are drawn or scored before it."""
    level = self.constant_fan_in and self.start in ("base", "ai")
    return level or self.distribution in SCORED or self.start == "eoi_in_mask"


def sparsity_settings(config: Any) -> SparsitySettings:
  """Returns the sparsity part of a config as a hashable value."""
  values = config.sparsity.to_dict() | gains(config)._asdict()
  values["relu"] = config.model.activation == "relu"
  values["constant_fan_in"] = config.dynamic.method == "srigl"
  return SparsitySettings(**{name: values[name] for name in SparsitySettings._fields})


def create_network(config: Any, spec: DatasetSpec) -> Network:
  """Builds the network of a checked config, with blocks if it asks for them.

  Raises:
    UserError: if `model.blocks` does not go with other fields, or no layer is as wide.
    ValueError: if the network does not exist in that form.
  """
  sparsity = sparsity_settings(config)
  make = functools.partial(create_model, config, spec, bias_std=sparsity.bias_std)
  if not config.model.blocks:
    return make()
  model, flat = make(), flatten(config)
  networks = [name for name, entry in MODELS.items() if "blocks" in entry.fields]
  for field, allowed in (("model.name", networks), *_WITH_BLOCKS.items()):
    if flat[field] not in allowed:
      raise UserError(
        f"`{field}` must be one of {', '.join(map(str, allowed))} with `model.blocks`, "
        f"got {flat[field]!r}."
      )
  inputs = jax.ShapeDtypeStruct((1, *spec.shape), jnp.float32)
  params = jax.eval_shape(model.init, jax.random.key(0), inputs)["params"]
  return make(blocks=_choose_blocks(config.model.blocks, sparsity, params, model))


_WITH_BLOCKS: dict[str, tuple] = {
  "sparsity.start": ("eoi",),
  "sparsity.distribution": BY_SHAPE,
  "sparsity.angle": (0.0,),
  "dynamic.method": ("static",),
}


def _choose_blocks(
  size: int, sparsity: SparsitySettings, params: Any, model: Network
) -> Blocks:
  """Chooses the layers that have blocks, and how many each group has there.

  Dense kernels that are to be sparse get blocks if no side is shorter than a block;
  others keep their masks. Of the wanted density of each kernel the whole blocks are
  taken first; then kernels get one block more a group in the order of the rest, the
  larger kernel first, where that brings the total nearer to the wanted one.
  """
  wanted = named_leaves(densities(sparsity, params, model))
  met, rest, left = {}, [], 0.0
  for name, kernel in find_kernels(params, model.layouts).items():
    density = 1.0 if wanted[name] is None else float(np.mean(wanted[name]))
    *window, fan_in, fan_out = kernel.layer_shape
    side = min(fan_in, fan_out)
    if window or side < max(size, 1 / density) or density >= 1:
      continue
    shape, weights = (fan_in, fan_out), kernel.num_layers * kernel.layer_size
    groups = _groups(shape, density, size)[0]
    blocks = math.floor(density * groups + 1e-6)
    met[name] = (blocks, groups)
    left += (density - blocks / groups) * weights
    if _groups(shape, (blocks + 1) / groups, size) == (groups, blocks + 1):
      left_out = round(density * groups - blocks, 6)
      rest.append((left_out, weights / groups, name))
  if not met:
    raise UserError(
      "`model.blocks` must be at most the smaller side of a dense layer that is to be "
      f"sparse, got {size}."
    )
  for _, step, name in sorted(rest, reverse=True):
    if step < 2 * left * (1 - 1e-6):
      met[name], left = (met[name][0] + 1, met[name][1]), left - step
  layers = ((n.removesuffix("/kernel"), r / groups) for n, (r, groups) in met.items())
  return Blocks(size, tuple(layers))


def _groups(shape: tuple[int, int], density: float, size: int) -> tuple[int, int]:
  """Groups of a layout, and blocks of each group."""
  layout = jax.eval_shape(
    lambda: blocks_lib.block_layout(jax.random.key(0), shape, density, block_size=size)
  )
  return layout.num_groups, layout.num_matchings


def create_train_state(
  key: jax.Array, *, sparsity: SparsitySettings, recipe: Recipe, masks: Any = None
) -> TrainState:
  """Samples parameters and masks, and starts the optimizer: the state at step 0.

  `masks` are those to start from, if `sparsity.needs_masks` (see `create_masks`).

  Raises:
    ValueError: if a kernel cannot have the wanted density.
  """
  model = recipe.model
  if not sparsity.needs_masks and isinstance(key, jax.core.Tracer):
    return _state_by_shape(key, sparsity=sparsity, recipe=recipe)
  if not sparsity.needs_masks:
    # Not one program: exact masks of a traced key are a callback to the host, and JAX
    # keeps no program with a callback in its compilation cache.
    params, batch_stats, layouts = _jit_init(key, recipe=recipe)
    started = _start_kernels(key, params, layouts, sparsity, model)
    return _jit_first_state(key, *started, batch_stats, layouts, recipe=recipe)
  params, batch_stats = dense_start(key, sparsity=sparsity, recipe=recipe)
  wanted = masks
  if sparsity.start == "eoi":  # keeps the densities of the layers, not the masks
    wanted = eoi_jax.masks.mask_densities(masks, layouts=model.layouts)
    wanted = densities(sparsity, params, model, rule=wanted)
  params, masks = _sparsify(key, params, wanted, sparsity, model)
  return _first_state(key, params, masks, wanted, batch_stats, {}, recipe)


def _first_state(
  key: jax.Array,
  params: Any,
  masks: Any,
  wanted: Any,
  batch_stats: Any,
  layouts: Any,
  recipe: Recipe,
) -> TrainState:
  if recipe.dynamic.method == "gmp":  # prunes what the start has left dense, too
    masks = jax.tree.map(
      lambda leaf, part, mask: (
        jnp.ones(leaf.shape, bool) if mask is None and part is not None else mask
      ),
      *(params, wanted, masks),
    )
  tx = recipe.create_tx(masks, named_key(key, "masks"))
  averages = None
  if recipe.optimizer.ema:  # in memory of their own: states are donated
    averages = Averages(*jax.tree.map(jnp.copy, (params, batch_stats)))
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    opt_state=tx.init(params),
    batch_stats=batch_stats,
    key=named_key(key, "train"),
    averages=averages,
    layouts=layouts,
  )


@functools.partial(jax.jit, static_argnames=("sparsity", "recipe"))
def _state_by_shape(
  key: jax.Array, *, sparsity: SparsitySettings, recipe: Recipe
) -> TrainState:
  """The state at step 0 where shapes tell the densities: one program."""
  params, batch_stats, layouts = _init(key, recipe)
  started = _start_kernels(key, params, layouts, sparsity, recipe.model)
  return _first_state(key, *started, batch_stats, layouts, recipe)


def _dense_start(
  key: jax.Array, *, sparsity: SparsitySettings, recipe: Recipe
) -> tuple[Any, Any]:
  params, batch_stats, _ = _init(key, recipe)
  dense = sparsity._replace(start=sparsity.reference)
  return _sparsify(key, params, 1.0, dense, recipe.model)[0], batch_stats


_jit = functools.partial(jax.jit, static_argnames=("sparsity", "recipe"))
_usual_dense_start = _jit(_dense_start)
_soon_dense_start = _jit(
  _dense_start, compiler_options={"xla_backend_optimization_level": 1}
)


def dense_start(
  key: jax.Array, *, sparsity: SparsitySettings, recipe: Recipe
) -> tuple[Any, Any]:
  """Samples a dense network; returns parameters and batch statistics.

  Its kernels are those that the start "base" then masks. The program runs once, and is
  large, one part for each shape of kernel: on a CPU it is compiled with less
  optimization. Masks are the same either way, weights to rounding.
  """
  inner = isinstance(key, jax.core.Tracer)  # options are for the outermost program
  usual = inner or sparsity.start == "ai" or jax.default_backend() != "cpu"
  function = _usual_dense_start if usual else _soon_dense_start
  return function(key, sparsity=sparsity, recipe=recipe)


def _init(key: jax.Array, recipe: Recipe) -> tuple[Any, Any, Any]:
  inputs = jnp.zeros((1, *recipe.spec.shape), jnp.float32)
  variables = recipe.model.init(named_key(key, "params"), inputs)
  others = (variables.get(name, {}) for name in ("batch_stats", "layouts"))
  return variables["params"], *others


_jit_init = jax.jit(_init, static_argnames="recipe")
_jit_first_state = jax.jit(_first_state, static_argnames="recipe")


def _start_kernels(key, params, layouts, sparsity: SparsitySettings, model: Network):
  """Starts masked kernels and blocks; returns parameters, masks, wanted densities."""
  if not layouts:
    wanted = densities(sparsity, params, model)
    return *_sparsify(key, params, wanted, sparsity, model), wanted
  no_masks = fill_tree(params, {})
  whole, _ = jax.eval_shape(dense_view, params, no_masks, layouts)
  found = named_leaves(densities(sparsity, whole, model.without_blocks))
  wanted = fill_tree(params, {n: found[n] for n in named_leaves(params) if n in found})
  masks = no_masks
  if any(model.layouts.values()):
    params, masks = _sparsify(key, params, wanted, sparsity, model)
  blocks = {
    f"{name}/blocks": blocks_lib.block_orthogonal(
      named_key(key, f"{name}/blocks"), layout, scale=sparsity.scale
    )
    for name, layout in named_layouts(layouts).items()
  }
  return fill_tree(params, blocks, keep=True), masks, wanted


def _sparsify(key, params, wanted, sparsity: SparsitySettings, model: Any):
  key = named_key(key, "sparsity")
  if sparsity.start == "fan_in_uniform":
    return _fan_in_uniform(key, params, model), fill_tree(params, {})
  new, masks = eoi_jax.sparsify(
    key,
    params,
    wanted,
    start=sparsity.start,
    scale=sparsity.scale,
    options=sparsity.options,
    layouts=model.layouts,
  )
  if not jax.tree.leaves(masks) and sparsity.start not in DENSE_STARTS:
    raise ValueError(
      f"`sparsity.start` {sparsity.start!r} must leave some kernel sparse; it has no "
      "sparse form for any kernel of this network."
    )
  return new, masks


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

  With a constant fan-in they are rounded to whole weights of each unit, at least one.
  `params` may be shapes; `rule`, a tree of densities, takes the distribution's place.

  Returns:
    Tree like `params`, None = dense leaf.
  """
  rule = sparsity.distribution if rule is None else rule
  if isinstance(rule, str) and rule in ("dense", "uniform", "uniform_skip"):
    density = 1.0 if rule == "dense" else sparsity.density
    dense = _skipped(params, model) if rule == "uniform_skip" else ()
    found = eoi_jax.uniform(params, density, dense=dense, layouts=model.layouts)
  else:
    floors = sparsity.floors if sparsity.start == "eoi" else "ignore"
    options = {"rule": rule, "floors": floors, "taps": sparsity.taps}
    options["layouts"] = model.layouts
    found = eoi_jax.allocate(params, sparsity.density, **options)
  if not sparsity.constant_fan_in:
    return found
  wanted, whole = named_leaves(found), {}
  for name, kernel in find_kernels(params, model.layouts).items():
    if wanted[name] is not None:
      fan_in = kernel.layer_size // kernel.layer_shape[-1]
      whole[name] = np.maximum(np.rint(np.asarray(wanted[name]) * fan_in), 1) / fan_in
  return fill_tree(found, whole, keep=True)


def pruning_of(sparsity: SparsitySettings, recipe: Recipe) -> Pruning:
  """Returns where gradual pruning begins and ends, by the rule of the start.

  Raises:
    UserError: if a kernel would have to grow, or scores of the data give layers
      densities that are not known before.
  """
  dynamic, model = recipe.dynamic, recipe.model
  is_dense = sparsity.start in DENSE_STARTS
  if sparsity.distribution in SCORED:
    if dynamic.scope == "layer":
      raise UserError(
        "`dynamic.scope` must be 'global' for `dynamic.method` = 'gmp' from "
        f"`sparsity.distribution` = {sparsity.distribution!r}, got 'layer'."
      )
    return Pruning(1.0 if is_dense else sparsity.density, dynamic.density)
  params, *_ = jax.eval_shape(lambda: _init(jax.random.key(0), recipe))
  kernels = find_kernels(params, model.layouts)
  first = sparsity._replace(distribution="dense") if is_dense else sparsity
  last = sparsity._replace(start="base", density=dynamic.density)
  if sparsity.distribution == "dense":
    last = last._replace(distribution="uniform")
  ends, counts = [], []
  for settings in (first, last):
    wanted = named_leaves(densities(settings, params, model))
    end = {
      name: np.broadcast_to(np.asarray(wanted[name], np.float64), kernel.num_layers)
      for name, kernel in kernels.items()
      if wanted[name] is not None
    }
    ends.append(tuple((name, tuple(each.tolist())) for name, each in end.items()))
    counts.append({n: np.rint(d * kernels[n].layer_size) for n, d in end.items()})
  before, after = counts
  grown = [name for name, many in after.items() if (many > before[name]).any()]
  if dynamic.scope == "global":
    size = sum(kernels[name].num_layers * kernels[name].layer_size for name in after)
    ends = [float(sum(before[n].sum() for n in after)) / size, dynamic.density]
    grown = ["all kernels"] if ends[0] < ends[1] else []
  if grown:
    raise UserError(
      "`dynamic.density` must leave no more weights than the start has, got "
      f"{dynamic.density} with more in {', '.join(grown)}."
    )
  return Pruning(*ends)


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
  key: jax.Array, *, sparsity: SparsitySettings, recipe: Recipe, data: Any
) -> Any:
  """Chooses the trained weights of a network before its start.

  The network scored is the one that "base" masks. SNIP scores one batch of the training
  set `data`, GraSP some examples of each class in two halves; others need no data.

  Returns:
    Tree like the parameters: bool leaves, True = trained, None = dense leaf. With a
    constant fan-in every unit of a layer has the same number.
  """
  model, density, layouts = recipe.model, sparsity.density, recipe.model.layouts
  params, stats = dense_start(key, sparsity=sparsity, recipe=recipe)

  def evaluate(params, inputs, **options):
    variables = {"params": params, "batch_stats": stats}
    return model.apply(variables, inputs, **{"train": False} | options)

  def train(params, inputs):
    rngs = {"dropout": named_key(key, "dropout")}
    options = {"mutable": ["batch_stats"], "rngs": rngs}
    return evaluate(params, inputs, train=True, **options)[0]

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
  masks = eoi_jax.random_masks(key, params, wanted, layouts=layouts)
  if not sparsity.constant_fan_in:
    return masks
  # All weights are drawn anew, unit by unit.
  options: dict[str, Any] = {"drop": "random", "grow": "random", "scope": "unit"}
  options["layouts"] = layouts
  return eoi_jax.optim.evolve_masks(key, params, params, masks, 1.0, **options)


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
