"""The numbers of Figure 3: singular values of MLP-7's Jacobian for every scheme.

All networks of the figure, whatever their density, distribution and seed, are started
by one call: kernels of one shape share a compiled program.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import eoi_jax
from train.core.console import UserError
from train.core.start import balanced_rows
from train.data.images import normalize
from train.data.load import load_dataset
from train.models import ACTIVATIONS, MLP

DISTRIBUTIONS = ("uniform", "erk", "snip", "grasp", "synflow")
STARTS = ("eoi", "ai", "base")
NUM_SAMPLES = 64
_SHAPE = (28, 28, 1)
# Scores of the data depend on the activation; the other distributions do not.
_OF_DATA = ("snip", "grasp")
_EXAMPLES = 25  # of each class


class Net(NamedTuple):
  """What the masks of one network depend on."""

  distribution: str  # a name in `DISTRIBUTIONS`
  activation: str  # a name in `ACTIVATIONS`; "" where it has no say
  density: float  # of the whole network
  seed: int  # of the run


def spectrum(
  *,
  activations: list[str],
  distributions: list[str],
  starts: list[str],
  densities: list[float],
  num_seeds: int,
  ai_method: str = "sgd",
  ai_steps: int = 1000,
) -> dict[str, Any]:
  """Singular values of the Jacobian of MLP-7 at Gaussian inputs, for every scheme.

  Args:
    activations: names in `ACTIVATIONS`.
    distributions: names in `DISTRIBUTIONS`; SNIP and GraSP need MNIST.
    starts: names in `STARTS`.
    densities: of the whole network, in `(0, 1]`.
    num_seeds: networks of each scheme.
    ai_method: "sgd", as published, or "adam".
    ai_steps: iterations of AI. Published: 10000; the mean singular value of a linear
      network at .05 is .79, .80 and .80 after 1000, 1500 and 10000 (5 to 10 seeds, of
      deviation .05), since steps of .1 end in a cycle around a minimum.

  Returns:
    Numbers that JSON can hold: a curve for each scheme, of mean, largest and smallest
    singular value, each the mean over seeds, with the deviation of the first.

  Raises:
    UserError: if a name is unknown, a density is too low, or MNIST is missing.
  """
  _check_names("activations", activations, tuple(ACTIVATIONS))
  _check_names("distributions", distributions, DISTRIBUTIONS)
  _check_names("starts", starts, STARTS)
  panels = [(a, d) for a in activations for d in distributions]

  def nets(activation, distribution, density):
    name = activation if distribution in _OF_DATA else ""
    return [Net(distribution, name, density, seed) for seed in range(num_seeds)]

  found = {net for panel in panels for d in densities for net in nets(*panel, d)}
  masks = {net: _masks(net) for net in sorted(found)}
  inputs = jax.random.normal(jax.random.key(0), (NUM_SAMPLES, *_SHAPE))
  curves = {}
  for start in starts:
    options = {"method": ai_method, "num_steps": ai_steps} if start == "ai" else {}
    params = _start(start, masks, options)
    for activation, distribution in panels:
      points = []
      for density in densities:
        rows = [params[net] for net in nets(activation, distribution, density)]
        points.append(_summary(activation, rows, inputs))
      curves[activation, distribution, start] = {
        "activation": activation,
        "distribution": distribution,
        "start": start,
        "density": densities,
      } | {key: [point[key] for point in points] for key in points[0]}
  order = [(*panel, start) for panel in panels for start in starts]
  return {
    "curves": [curves[key] for key in order],
    "seeds": num_seeds,
    "samples": NUM_SAMPLES,
    "ai": f"{ai_method}, {ai_steps} steps",
  }


def _check_names(argument: str, names: list[str], known: tuple[str, ...]) -> None:
  for name in names:
    if name not in known:
      raise UserError(f"`{argument}` must be among {', '.join(known)}, got {name!r}.")


def _model(activation: str) -> MLP:
  return MLP(depth=7, width=100, num_classes=10, activation=activation or "tanh")


@functools.cache
def _apply_function(activation: str) -> Callable[[Any, jax.Array], Any]:
  """One function for each activation, so that it is compiled once."""
  model = _model(activation)
  return lambda params, inputs: model.apply({"params": params}, inputs)


@functools.cache
def _dense(seed: int) -> Any:
  """The dense orthogonal network of a seed."""
  model = _model("")
  params = jax.jit(model.init)(jax.random.key(seed), jnp.zeros((1, *_SHAPE)))["params"]
  key = jax.random.fold_in(jax.random.key(seed), 1)
  options = {"start": "orthogonal", "layouts": model.layouts}
  return eoi_jax.sparsify(key, params, 1.0, **options)[0]


def _masks(net: Net) -> Any:
  """Which weights the distribution keeps."""
  params, layouts = _dense(net.seed), _model(net.activation).layouts
  if net.distribution == "synflow":
    function, shape = _apply_function(net.activation), (1, *_SHAPE)
    return eoi_jax.synflow_masks(function, params, shape, net.density, layouts=layouts)
  if net.distribution in _OF_DATA:
    scores = _scores(net.distribution, net.activation, net.seed)
    return eoi_jax.global_masks(scores, net.density)
  key = jax.random.fold_in(jax.random.key(net.seed), 2)
  rule = net.distribution
  wanted = eoi_jax.allocate(params, net.density, rule=rule, layouts=layouts)
  return eoi_jax.random_masks(key, params, wanted, layouts=layouts)


@functools.cache
def _scores(distribution: str, activation: str, seed: int) -> Any:
  """SNIP's or GraSP's scores of the dense network on some examples of each class."""
  dataset = _mnist()
  labels = np.asarray(dataset.train.labels)
  key = jax.random.fold_in(jax.random.key(seed), 3)
  halves = []
  for rows in np.array_split(balanced_rows(key, labels, _EXAMPLES), 2):
    images = jnp.asarray(np.asarray(dataset.train.images)[rows])
    halves.append((normalize(images, dataset.spec), jnp.asarray(labels[rows])))
  function, params = _apply_function(activation), _dense(seed)
  layouts = _model(activation).layouts
  if distribution == "snip":
    return eoi_jax.snip_scores(function, params, halves[0], layouts=layouts)
  return eoi_jax.grasp_scores(function, params, halves, layouts=layouts)


_mnist = functools.cache(lambda: load_dataset("mnist"))


def _start(start: str, masks: dict[Net, Any], options: dict[str, Any]) -> dict:
  """Starts all networks at once."""
  layouts = _model("").layouts
  targets = masks
  if start == "eoi":  # it keeps the densities of the layers, not the masks
    targets = {
      net: eoi_jax.allocate(
        _dense(net.seed),
        net.density,
        rule=eoi_jax.masks.mask_densities(tree, layouts=layouts),
        floors="lift",
        layouts=layouts,
      )
      for net, tree in masks.items()
    }
  if start == "base":
    options = {"reference": "orthogonal"}
  dense = {f"{net}": _dense(net.seed) for net in masks}
  try:
    table = {f"*/{name}": layout for name, layout in layouts.items()}
    params, _ = eoi_jax.sparsify(
      jax.random.key(0),
      dense,
      {f"{net}": target for net, target in targets.items()},
      start=start,
      options=options,
      layouts=eoi_jax.kernel_layouts(dense, table),
    )
  except ValueError as error:
    raise UserError(str(error)) from error
  return {net: params[f"{net}"] for net in masks}


def _summary(activation: str, nets: list[Any], inputs: jax.Array) -> dict[str, float]:
  """Mean, largest and smallest singular value, and the deviation of the mean."""
  function = _apply_function(activation)
  values = [eoi_jax.jacobian_singular_values(function, net, inputs) for net in nets]
  summaries = np.array([eoi_jax.signal.spectrum_summary(v)[:3] for v in values])
  mean, top, bottom = summaries.mean(axis=0).tolist()
  deviation = float(summaries[:, 0].std(ddof=1)) if len(nets) > 1 else 0.0
  return {"mean": mean, "max": top, "min": bottom, "deviation": deviation}
