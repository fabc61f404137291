"""The start of a training run: parameters and masks, a function of config and key.

Gains, then the network with its blocks, densities and masks, then the kernels, then the
optimizer.
"""

import collections
import functools
import math
from typing import Any

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
  FIELDS,
  SCORED,
  START_FIELDS,
  flatten,
)
from train.core.console import UserError
from train.core.state import Averages, Recipe, TrainState, named_key
from train.data.datasets import DatasetSpec
from train.data.images import normalize
from train.models import ACTIVATIONS, MODELS, Blocks, Network, create_model
from train.models.blocks import dense_view, named_layouts

OF_DATA = ("snip", "grasp")  # distributions whose scores look at examples

_SECTION = [n.removeprefix("sparsity.") for n in FIELDS if n.startswith("sparsity.")]


class SparsitySettings(
  collections.namedtuple("_Settings", [*_SECTION, "relu", "constant_fan_in"])
):
  """The section `sparsity`, and what else a start depends on, hashable."""

  @property
  def options(self) -> dict[str, Any]:
    """Options of the start, as `eoi_jax.sparsify` calls them."""
    read = START_FIELDS | {"sao": ("relu",)}
    starts = (self.start, self.fallback if self.start == "eoi_in_mask" else "")
    fields = {field for start in starts for field in read.get(start, ())}
    values = self._asdict() | {
      "angle": math.radians(self.angle) or None,
      "fallback": self.fallback or None,
      "floors": None,
    }
    names = {"ai_method": "method", "ai_steps": "num_steps"}
    return {names.get(n, n): values[n] for n in fields if values[n] is not None}

  @property
  def needs_masks(self) -> bool:
    """Whether the start depends on masks that are drawn or scored before it."""
    level = self.constant_fan_in and self.start in ("base", "ai")
    return level or self.distribution in SCORED or self.start == "eoi_in_mask"


def sparsity_settings(config: Any) -> SparsitySettings:
  """Returns what the start of a config depends on.

  With `sparsity.scale = "critical"` the gain of the kernels and the deviation of the
  biases are those of the critical point of the network's activation at the variance
  `sparsity.q_star`.

  Raises:
    UserError: if there is no critical point, or a deviation of the biases is given
      besides.
  """
  sparsity, activation = config.sparsity, config.model.activation
  scale, bias_std = sparsity.scale, sparsity.bias_std
  if scale == CRITICAL:
    if bias_std:
      raise UserError(
        "`sparsity.bias_std` must be 0 with `sparsity.scale` = 'critical', which sets "
        f"both, got {bias_std}."
      )
    scale, bias_std = _critical(activation, float(sparsity.q_star))
  others = {
    "scale": float(scale),
    "bias_std": float(bias_std),
    "relu": activation == "relu",
    "constant_fan_in": config.dynamic.method == "srigl",
  }
  return SparsitySettings(**sparsity.to_dict() | others)


@functools.cache
def _critical(activation: str, q_star: float) -> tuple[float, float]:
  try:
    return eoi_jax.critical_point(ACTIVATIONS[activation], q_star)
  except ValueError as error:
    raise UserError(
      f"`sparsity.scale` = 'critical' with {activation} at `sparsity.q_star` = "
      f"{q_star:g}: {error}"
    ) from error


# What goes with `model.blocks`.
_WITH_BLOCKS: dict[str, tuple] = {
  "model.name": tuple(n for n, entry in MODELS.items() if "blocks" in entry.fields),
  "sparsity.start": ("eoi",),
  "sparsity.distribution": BY_SHAPE,
  "sparsity.angle": (0.0,),
  "dynamic.method": ("static",),
}


def create_network(config: Any, spec: DatasetSpec) -> Network:
  """Builds the network of a checked config, with blocks if it asks for them.

  Raises:
    UserError: if `model.blocks` does not go with other fields, or no layer is as wide.
    ValueError: if the network does not exist in that form.
  """
  sparsity, size = sparsity_settings(config), config.model.blocks
  make = functools.partial(create_model, config, spec, bias_std=sparsity.bias_std)
  model, flat = make(), flatten(config)
  if not size:
    return model
  for field, allowed in _WITH_BLOCKS.items():
    if flat[field] not in allowed:
      raise UserError(
        f"`{field}` must be one of {', '.join(map(str, allowed))} with `model.blocks`, "
        f"got {flat[field]!r}."
      )
  densities = _block_densities(size, sparsity, model, spec)
  return make(blocks=Blocks(size, tuple(densities.items())))


def _block_densities(
  size: int, sparsity: SparsitySettings, model: Network, spec: DatasetSpec
) -> dict[str, float]:
  """Chooses the layers that have blocks, and the density of each.

  Dense kernels that are to be sparse get blocks if no side is shorter than a block;
  others keep their masks. Of the wanted density of each kernel the whole blocks are
  taken first; then kernels get one block more a group in the order of the rest, the
  larger kernel first, where that brings the total nearer to the wanted one.
  """
  params, *_ = _init.eval_shape(jax.random.key(0), model=model, spec=spec)
  wanted = named_leaves(densities(sparsity, params, model))
  blocks, groups, rest, left = {}, {}, [], 0.0
  for name, kernel in find_kernels(params, model.layouts).items():
    density = 1.0 if wanted[name] is None else float(np.mean(wanted[name]))
    *window, fan_in, fan_out = kernel.layer_shape
    side = min(fan_in, fan_out)
    if window or side < max(size, 1 / density) or density >= 1:
      continue
    shape, weights = (fan_in, fan_out), kernel.num_layers * kernel.layer_size
    layer, count = name.removesuffix("/kernel"), _groups(shape, density, size)[0]
    groups[layer], blocks[layer] = count, math.floor(density * count + 1e-6)
    left += (density - blocks[layer] / count) * weights
    more = blocks[layer] + 1
    if _groups(shape, more / count, size) == (count, more):
      left_out = round(density * count - blocks[layer], 6)
      rest.append((left_out, weights / count, layer))
  if not blocks:
    raise UserError(
      "`model.blocks` must be at most the smaller side of a dense layer that is to be "
      f"sparse, got {size}."
    )
  for _, step, layer in sorted(rest, reverse=True):
    if step < 2 * left * (1 - 1e-6):
      blocks[layer], left = blocks[layer] + 1, left - step
  return {layer: blocks[layer] / count for layer, count in groups.items()}


def _groups(shape: tuple[int, int], density: float, size: int) -> tuple[int, int]:
  """Groups of a layout, and blocks of each group."""
  layout = jax.eval_shape(
    lambda: blocks_lib.block_layout(jax.random.key(0), shape, density, block_size=size)
  )
  return layout.num_groups, layout.num_matchings


_jit = functools.partial(jax.jit, static_argnames=("sparsity", "recipe"))


def create_train_state(
  key: jax.Array, *, sparsity: SparsitySettings, recipe: Recipe, data: Any = None
) -> TrainState:
  """Samples parameters and masks, and starts the optimizer: the state at step 0.

  `data` is the training set, for scores that look at it.

  Raises:
    ValueError: if a kernel cannot have the wanted density.
  """
  if not sparsity.needs_masks:
    # Of a concrete key not one program: exact masks of a traced key are a callback to
    # the host, and JAX keeps no program with a callback in its compilation cache.
    traced = isinstance(key, jax.core.Tracer)
    start = _jit(_start_by_shape) if traced else _start_by_shape
    return start(key, sparsity=sparsity, recipe=recipe)
  # Runs once, and is large, one part for each shape of kernel: on a CPU it is compiled
  # with less optimization. Masks are the same either way, weights to rounding.
  quick = sparsity.start != "ai" and jax.default_backend() == "cpu"
  options = {"xla_backend_optimization_level": 1} if quick else None
  start = _jit(_dense_start, compiler_options=options)
  params, batch_stats = start(key, sparsity=sparsity, recipe=recipe)
  wanted = _create_masks(key, params, batch_stats, sparsity, recipe, data)
  if sparsity.start == "eoi":  # keeps the densities of the layers, not the masks
    layouts = recipe.model.layouts
    wanted = eoi_jax.masks.mask_densities(wanted, layouts=layouts)
    wanted = densities(sparsity, params, recipe.model, rule=wanted)
  params, masks = _sparsify(key, params, wanted, sparsity, recipe)
  return _first_state(key, params, masks, batch_stats, {}, recipe=recipe)


def _start_by_shape(
  key: jax.Array, *, sparsity: SparsitySettings, recipe: Recipe
) -> TrainState:
  """The state at step 0 where shapes tell the densities."""
  model = recipe.model
  params, batch_stats, layouts = _init(key, model=model, spec=recipe.spec)
  masks = fill_tree(params, {})
  whole, _ = jax.eval_shape(dense_view, params, masks, layouts)
  found = named_leaves(densities(sparsity, whole, model.without_blocks))
  if not layouts or any(model.layouts.values()):
    wanted = fill_tree(params, found)
    params, masks = _sparsify(key, params, wanted, sparsity, recipe)
  blocks = {
    f"{name}/blocks": blocks_lib.block_orthogonal(
      named_key(key, f"{name}/blocks"), layout, scale=sparsity.scale
    )
    for name, layout in named_layouts(layouts).items()
  }
  params = fill_tree(params, blocks, keep=True)
  return _first_state(key, params, masks, batch_stats, layouts, recipe=recipe)


def _dense_start(
  key: jax.Array, *, sparsity: SparsitySettings, recipe: Recipe
) -> tuple[Any, Any]:
  """Parameters and batch statistics of the network that the start "base" masks."""
  model = recipe.model
  params, batch_stats, _ = _init(key, model=model, spec=recipe.spec)
  options = {"start": sparsity.reference, "scale": sparsity.scale}
  key = named_key(key, "sparsity")
  params, _ = eoi_jax.sparsify(key, params, 1.0, layouts=model.layouts, **options)
  return params, batch_stats


@functools.partial(jax.jit, static_argnames=("model", "spec"))
def _init(key: jax.Array, *, model: Network, spec: DatasetSpec):
  """Parameters, batch statistics and layouts of blocks before any start."""
  inputs = jnp.zeros((1, *spec.shape), jnp.float32)
  variables = model.init(named_key(key, "params"), inputs)
  others = (variables.get(name, {}) for name in ("batch_stats", "layouts"))
  return variables["params"], *others


@functools.partial(jax.jit, static_argnames="recipe")
def _first_state(key, params, masks, batch_stats, layouts, *, recipe: Recipe):
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


def _sparsify(key, params, wanted, sparsity: SparsitySettings, recipe: Recipe):
  """Starts the kernels; `wanted` are densities or masks. Returns them and masks."""
  key, layouts = named_key(key, "sparsity"), recipe.model.layouts
  if sparsity.start == "fan_in_uniform":
    new, masks = _fan_in_uniform(key, params, layouts), fill_tree(params, {})
  else:
    new, masks = eoi_jax.sparsify(
      key,
      params,
      wanted,
      start=sparsity.start,
      scale=sparsity.scale,
      options=sparsity.options,
      layouts=layouts,
    )
  if not jax.tree.leaves(masks) and sparsity.start not in DENSE_STARTS:
    raise ValueError(
      f"`sparsity.start` {sparsity.start!r} must leave some kernel sparse; it has no "
      "sparse form for any kernel of this network."
    )
  if recipe.dynamic.method == "gmp":  # prunes what the start has left dense, too
    masks = jax.tree.map(
      lambda leaf, part, mask: (
        jnp.ones(leaf.shape, bool) if mask is None and part is not None else mask
      ),
      *(new, wanted, masks),
    )
  return new, masks


def _fan_in_uniform(key: jax.Array, params: Any, layouts: Any) -> Any:
  """Dense kernels, uniform in +-1 / sqrt(fan-in): the default start of PyTorch."""
  init = jax.nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform", batch_axis=0)
  kernels = {}
  for name, kernel in find_kernels(params, layouts).items():
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
    found = eoi_jax.allocate(params, sparsity.density, layouts=model.layouts, **options)
  if not sparsity.constant_fan_in:
    return found
  wanted, whole = named_leaves(found), {}
  for name, kernel in find_kernels(params, model.layouts).items():
    if wanted[name] is not None:
      fan_in = kernel.layer_size // kernel.layer_shape[-1]
      whole[name] = np.maximum(np.rint(np.asarray(wanted[name]) * fan_in), 1) / fan_in
  return fill_tree(found, whole, keep=True)


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


def pruning_of(sparsity: SparsitySettings, recipe: Recipe) -> tuple[Any, Any]:
  """Returns the densities between which gradual pruning goes, by the rule of the start.

  Each is that of all kernels together, or of the layers of each, by name.

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
    return 1.0 if is_dense else sparsity.density, dynamic.density
  params, *_ = _init.eval_shape(jax.random.key(0), model=model, spec=recipe.spec)
  kernels = find_kernels(params, model.layouts)
  first = sparsity._replace(distribution="dense") if is_dense else sparsity
  last = sparsity._replace(start="base", density=dynamic.density)
  if sparsity.distribution == "dense":
    last = last._replace(distribution="uniform")
  ends, counts = [], []
  for settings in (first, last):
    wanted = named_leaves(densities(settings, params, model))
    layers = {
      name: np.broadcast_to(np.asarray(wanted[name], np.float64), kernel.num_layers)
      for name, kernel in kernels.items()
      if wanted[name] is not None
    }
    ends.append(tuple((name, tuple(each.tolist())) for name, each in layers.items()))
    counts.append({n: np.rint(d * kernels[n].layer_size) for n, d in layers.items()})
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
  return ends[0], ends[1]


def _create_masks(
  key, params, batch_stats, sparsity: SparsitySettings, recipe: Recipe, data: Any
) -> Any:
  """Chooses the trained weights of a network before its start.

  SNIP scores one batch of the training set `data`, GraSP some examples of each class in
  two halves; others need no data. With a constant fan-in every unit of a layer has the
  same number.
  """
  model, density, layouts = recipe.model, sparsity.density, recipe.model.layouts

  def apply(params, inputs, **options):
    variables = {"params": params, "batch_stats": batch_stats}
    return model.apply(variables, inputs, **options)

  def train(params, inputs):
    rngs = {"dropout": named_key(key, "dropout")}
    return apply(params, inputs, train=True, mutable=["batch_stats"], rngs=rngs)[0]

  def batch(rows):
    images, labels = (np.asarray(array)[rows] for array in data)
    return normalize(jnp.asarray(images), recipe.spec), jnp.asarray(labels)

  key_data = named_key(key, "scores")
  if sparsity.distribution == "synflow":
    evaluate, shape = functools.partial(apply, train=False), (1, *recipe.spec.shape)
    options = {"num_rounds": sparsity.synflow_rounds, "layouts": layouts}
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
  if sparsity.constant_fan_in:  # all weights are drawn anew, unit by unit
    options = {"drop": "random", "grow": "random", "scope": "unit", "layouts": layouts}
    masks = eoi_jax.optim.evolve_masks(key, params, params, masks, 1.0, **options)
  return masks


def balanced_rows(key: jax.Array, labels: Any, count: int) -> np.ndarray:
  """Returns the rows of random examples of each class, classes in turns.

  There are `count` of each class, or as many as the rarest class has.
  """
  labels = np.asarray(labels)
  classes, sizes = np.unique(labels, return_counts=True)
  order = np.asarray(jax.random.permutation(key, len(labels)))
  count = min(count, sizes.min())
  rows = [order[labels[order] == label][:count] for label in classes]
  return np.stack(rows, axis=1).reshape(-1)
