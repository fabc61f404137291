"""Prints the layers of a config's network, without data, weights or training.

python -m train.inspect --config=configs/cifar10_resnet32.py

Flags are those of `train.run`. `train.preflight` measures the network at its start.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from absl import logging as absl_logging

from eoi_jax import _kernels as kernels
from train import config as config_lib
from train.command import exit_with, parse
from train.data import DATASETS
from train.errors import UserError
from train.models import MODELS, create_model
from train.state import SCORED, densities, sparsity_settings
from train.summaries import table


class Row(NamedTuple):
  """One kernel leaf of a network; a stack counts as `count` kernels.

  Attributes:
    name: path of the leaf.
    shape: shape of one kernel.
    count: number of kernels in the leaf.
    parameters: weights of all of them.
    live: trained weights of all of them; None if scores of the data decide.
    floor: lowest density with an orthogonal start; None if the kernel stays dense.
  """

  name: str
  shape: tuple[int, ...]
  count: int
  parameters: int
  live: int | None
  floor: float | None


class Layers(NamedTuple):
  """The kernels of a network and what else it has.

  Attributes:
    rows: all kernels, in the order of the tree.
    total: parameters of the network, biases and the like included.
    live: trained weights of all kernels.
  """

  rows: list[Row]
  total: int
  live: int


def inspect(config: Any) -> Layers:
  """Lists the kernels of a config's network by shapes alone.

  Args:
    config: a config; it is checked here.

  Raises:
    UserError: if a field is wrong or the network does not exist in that form.
  """
  config_lib.validate(config)
  spec = DATASETS[config.data.name]
  sparsity = sparsity_settings(config)
  try:
    model = create_model(config, spec.num_classes, bias_std=sparsity.bias_std)
    inputs = jax.ShapeDtypeStruct((1, *spec.shape), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), inputs)["params"]
    scored = sparsity.distribution in SCORED
    uniform = sparsity._replace(distribution="uniform") if scored else sparsity
    wanted = kernels.named_leaves(densities(uniform, params, model))
  except ValueError as error:
    raise UserError(str(error)) from error
  every = kernels.find_kernels(params, is_stacked=model.is_stacked)
  rows = [_row(kernel, wanted[name], scored) for name, kernel in every.items()]
  sparse = sum(row.parameters for row in rows if row.floor is not None)
  dense = sum(row.parameters for row in rows if row.floor is None)
  live = round(config.sparsity.density * sparse) + dense
  if not scored:
    live = sum(row.live or 0 for row in rows)
  total = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
  return Layers(rows, total, live)


def _row(kernel: kernels.Kernel, density: Any, scored: bool) -> Row:
  """Describes a kernel of the given density or densities; None = dense."""
  parameters = kernel.num_layers * kernel.size
  live, floor = parameters, None
  if density is not None:
    per_layer = np.broadcast_to(np.asarray(density, np.float64), (kernel.num_layers,))
    live = sum(round(d * kernel.size) for d in per_layer.tolist())
    floor = 1 / (math.prod(kernel.shape[:-2]) * max(kernel.shape[-2:]))
  live = None if scored and floor is not None else live
  return Row(kernel.name, kernel.shape, kernel.num_layers, parameters, live, floor)


def layers_table(layers: Layers) -> str:
  """Returns the layers and their sums as text, one a line."""
  lines = [("kernel", "shape", "layers", "parameters", "density", "floor", "live")]
  for row in layers.rows:
    density, live = "by score", "by score"
    if row.live is not None:
      density, live = f"{row.live / row.parameters:.4f}", f"{row.live:,}"
    lines.append(
      (
        row.name,
        " x ".join(map(str, row.shape)),
        f"{row.count:,}",
        f"{row.parameters:,}",
        density,
        "dense" if row.floor is None else f"{row.floor:.4f}",
        live,
      )
    )
  weights = sum(row.parameters for row in layers.rows)
  count = sum(row.count for row in layers.rows)
  density = f"{layers.live / weights:.4f}"
  sums = (f"{count:,}", f"{weights:,}", density, "", f"{layers.live:,}")
  lines.append(("all kernels", "", *sums))
  others, live = layers.total - weights, layers.total - weights + layers.live
  lines.append(("biases and the like", "", "", f"{others:,}", "", "", f"{others:,}"))
  density = f"{live / layers.total:.4f}"
  lines.append(("network", "", "", f"{layers.total:,}", density, "", f"{live:,}"))
  return table(lines)


def describe(config: Any) -> str:
  """Returns all that the program prints of a config."""
  layers = inspect(config)
  spec = DATASETS[config.data.name]
  size = " x ".join(map(str, spec.shape))
  lines = [
    f"{MODELS[config.model.name].title} for {config.data.name}: {size} pixels, "
    f"{spec.num_classes} classes; {config.sparsity.distribution} density "
    f"{config.sparsity.density:g}, {config.sparsity.start} start",
    layers_table(layers),
  ]
  if config.compare.field:
    choices = ", ".join(map(str, config.compare.choices))
    lines.append(f"  The config compares {config.compare.field}: {choices}.")
  low = [row.name for row in layers.rows if _is_below_floor(row)]
  if low and config.sparsity.start == "eoi":
    lines.append(f"  Below the floor of an orthogonal start: {', '.join(low)}.")
  return "\n".join(lines)


def _is_below_floor(row: Row) -> bool:
  if row.live is None or row.floor is None:
    return False
  return row.live / row.parameters < row.floor * (1 - 1e-9)


def main(argv: list[str]) -> None:
  """Prints the layers of the config that the flags name."""
  del argv
  if not flags.FLAGS["verbosity"].present:
    absl_logging.set_verbosity(absl_logging.WARNING)  # JAX tells of missing devices
  try:
    print(describe(flags.FLAGS["config"].value))
  except UserError as error:
    exit_with(error)


if __name__ == "__main__":
  app.run(main, flags_parser=parse)
