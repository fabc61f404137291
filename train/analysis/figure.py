"""The figure of the pre-flight report."""

import itertools
from pathlib import Path

import jax
import numpy as np

from train.analysis.preflight import Inspection, Row
from train.core.figures import COLORS, DASHES, QUIET, new_figure, plain_log_ticks, save
from train.core.plan import Plan
from train.core.steps import prepare
from train.data.streams import take

_REFERENCE = {"color": QUIET, "linestyle": (0, (2, 2)), "linewidth": 1.2}


def plot_inspection(path: Path, inspection: Inspection, title: str) -> None:
  """Draws spectrum, densities, signals and gradients over depth: PNG and PDF."""
  figure, panels = new_figure((9, 6.6), 2, 2)
  (spectrum, densities), (gains, gradients) = panels
  _draw_spectrum(spectrum, inspection)
  _draw_densities(densities, inspection)
  gains.axhline(1, **_REFERENCE)
  metered = [row for row in inspection.rows if row.gains]
  curves = {
    "signal: output / input of the layer": _in_depth(metered, "gains"),
    "gradient: layer / end of the network": _in_depth(metered, "gradient_gains"),
  }
  _draw_depth(gains, curves, "ratio of norms", 1.0)
  gains.legend(frameon=False, fontsize=8)
  norms = {"": _in_depth(inspection.rows, "gradient_norms")}
  _draw_depth(gradients, norms, "gradient norm of the kernel")
  figure.suptitle(title, fontsize=11)
  save(figure, path, dpi=150)


def plot_batch(path: Path, plan: Plan) -> None:
  """Draws 16 training images as a step would see them, with shares of labels."""
  recipe, spec = plan.recipe, plan.recipe.spec
  key, batch = jax.random.key(plan.config.seed), take(plan.dataset.train, 16)
  prepared = jax.jit(prepare, static_argnames="recipe")(key, batch, recipe=recipe)
  inputs, shares = map(np.asarray, prepared)
  images = np.clip(inputs * np.array(spec.std) + np.array(spec.mean), 0, 1)
  if images.shape[-1] not in (1, 3):  # neither grey nor in colour
    images = images.mean(-1, keepdims=True)
  figure, panels = new_figure((8, 8.6), 4, 4)
  for axes in panels.ravel():
    axes.axis("off")
  for axes, image, share in zip(panels.ravel(), images, shares, strict=False):
    axes.imshow(image, cmap="gray", vmin=0, vmax=1)
    labels = np.flatnonzero(share)
    axes.set_title(" + ".join(f"{share[n]:.2g} x {n}" for n in labels), fontsize=8)
  figure.savefig(path, dpi=150)


def _draw_spectrum(axes, inspection: Inspection) -> None:
  values = inspection.values.ravel()
  top = max(1.1, 1.05 * float(values.max()))
  axes.hist(values, bins=np.linspace(0, top, 41), color=COLORS[0])
  axes.axvline(1, label="isometry", **_REFERENCE)
  axes.set(
    xlabel="singular value of the Jacobian",
    ylabel=f"count ({inspection.spectrum['samples']} inputs)",
    xlim=(0, top),
  )
  axes.yaxis.get_major_locator().set_params(integer=True)
  axes.legend(frameon=False, fontsize=8)


def _draw_depth(axes, curves: dict[str, list[float]], ylabel: str, *around) -> None:
  """Draws values over the layers, on a logarithmic axis that has `around` in it.

  It is of a decade at least, or noise would look like a trend.
  """
  for number, (label, values) in enumerate(curves.items()):
    marker = ("o", "s")[number] if len(values) < 40 else None
    style = {"marker": marker, "markersize": 3.5, "linestyle": DASHES[number]}
    depth = np.arange(1, len(values) + 1)
    axes.plot(depth, values, color=COLORS[number], linewidth=1.5, label=label, **style)
  axes.xaxis.get_major_locator().set_params(integer=True)
  axes.set(xlabel="layer", ylabel=ylabel)
  values = [*around, *itertools.chain(*curves.values())]
  low, high = np.nanmin(values), np.nanmax(values)
  if not 0 < low <= high < np.inf:
    return
  axes.set_yscale("log")
  if high < 10 * low:
    middle = (low * high) ** 0.5
    axes.set_ylim(middle / 10**0.6, middle * 10**0.6)
  if high < 1e4 * low:
    plain_log_ticks(axes)


def _in_depth(rows: list[Row], name: str) -> list[float]:
  """Values in the order of the layers: kernels of one stack alternate."""
  values = []

  def stack(row):
    return row.layer.name.partition("/")[0], row.layer.count

  for (_, count), group in itertools.groupby(rows, key=stack):
    columns = [getattr(row, name) for row in group]
    order = zip(*columns, strict=True) if count > 1 else columns
    values += [value for layer in order for value in layer]
  return values


def _draw_densities(axes, inspection: Inspection) -> None:
  rows = inspection.rows
  position = np.arange(len(rows))
  density = [row.layer.density for row in rows]
  floors = [row.layer.floor for row in rows]
  axes.hlines(position, floors, density, color="#BDBDBD", linewidth=1.2)
  axes.plot(floors, position, "|", color=COLORS[1], markersize=9, label="floor")
  axes.plot(density, position, "o", color=COLORS[0], markersize=5, label="density")
  step = max(1, len(rows) // 20)
  labels = [
    row.layer.name.removesuffix("/kernel")
    + (f" \N{MULTIPLICATION SIGN} {row.layer.count}" if row.layer.count > 1 else "")
    for row in rows
  ]
  axes.set_yticks(position[::step], labels[::step], fontsize=8)
  axes.set_ylim(len(rows) - 0.5, -0.5)
  axes.set(xlabel="density of the kernel", xscale="log", xlim=(None, 1.3))
  axes.legend(
    frameon=False, fontsize=8, ncols=2, loc="lower right", bbox_to_anchor=(1, 1)
  )
