"""The numbers of Figure 3: singular values of MLP-7's Jacobian for every scheme."""

import functools
import itertools
from typing import Any

import jax
import numpy as np

import eoi_jax
from train.core.config import changed, default_config
from train.core.console import UserError
from train.core.plan import plan_start, start_state
from train.models import ACTIVATIONS

DISTRIBUTIONS = ("uniform", "erk", "snip", "grasp", "synflow")
STARTS = ("eoi", "ai", "base")
NUM_SAMPLES = 64


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
  for argument, names, known in (
    ("activations", activations, ACTIVATIONS),
    ("distributions", distributions, DISTRIBUTIONS),
    ("starts", starts, STARTS),
  ):
    for name in names:
      if name not in known:
        raise UserError(f"`{argument}` must be among {', '.join(known)}, got {name!r}.")
  common = {"sparsity.ai_method": ai_method, "sparsity.ai_steps": ai_steps}
  curves = []
  for names in itertools.product(activations, distributions, starts):
    scheme = dict(zip(("activation", "distribution", "start"), names, strict=True))
    fields = common | {
      "model.activation": scheme["activation"],
      "sparsity.distribution": scheme["distribution"],
      "sparsity.start": scheme["start"],
    }
    points = [_summary(fields | {"sparsity.density": d}, num_seeds) for d in densities]
    values = {key: [point[key] for point in points] for key in points[0]}
    curves.append(scheme | {"density": densities} | values)
  return {
    "curves": curves,
    "seeds": num_seeds,
    "samples": NUM_SAMPLES,
    "ai": f"{ai_method}, {ai_steps} steps",
  }


def _summary(fields: dict[str, Any], num_seeds: int) -> dict[str, float]:
  """Mean, largest and smallest singular value, and the deviation of the mean."""
  summaries = []
  for seed in range(num_seeds):  # by itself: all densities share a program
    plan = plan_start(changed(default_config(), fields | {"seed": seed}))
    shape = (NUM_SAMPLES, *plan.recipe.spec.shape)
    inputs = jax.random.normal(jax.random.key(0), shape)
    params, function = start_state(plan).params, _apply_function(plan.recipe.model)
    values = eoi_jax.jacobian_singular_values(function, params, inputs)
    summaries.append(eoi_jax.signal.spectrum_summary(values)[:3])
  mean, top, bottom = np.mean(summaries, axis=0).tolist()
  deviation = float(np.array(summaries)[:, 0].std(ddof=min(1, num_seeds - 1)))
  return {"mean": mean, "max": top, "min": bottom, "deviation": deviation}


@functools.cache
def _apply_function(model: Any) -> Any:
  """One function for each network, so that it is compiled once."""
  return lambda params, inputs: model.apply({"params": params}, inputs)
