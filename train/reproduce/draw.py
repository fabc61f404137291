"""Drawings of the paper's figures: readable in print and without colour vision."""

import itertools
from typing import Any

import numpy as np

from train.core.figures import (
  COLORS,
  MARKERS,
  QUIET,
  draw_band,
  line_style,
  new_figure,
  plain_log_ticks,
)


def draw_density(data: dict[str, Any]) -> Any:
  """Draws expected and measured density over rotations a column."""
  figure, ((axes,),) = new_figure((5, 3.6), 1, 1)
  for number, curve in enumerate(data["curves"]):
    color = COLORS[number]
    x = np.array(curve["rotations"]) / curve["size"]
    axes.fill_between(x, curve["min"], curve["max"], color=color, alpha=0.25, lw=0)
    every = slice(number, None, 4)
    style = {"color": color, "ms": 4, "label": f"measured, N = {curve['size']}"}
    axes.plot(x[every], np.array(curve["mean"])[every], MARKERS[number % 3], **style)
    label = "expected" if number == len(data["curves"]) - 1 else None
    axes.plot(x, curve["expected"], color="black", linewidth=1, label=label)
  axes.set(xlabel="rotations / N", ylabel="density", ylim=(0, 1.02), xlim=(0, None))
  axes.legend(frameon=False, fontsize=8, loc="upper left")
  axes.set_title(f"range over {data['seeds']} seeds shaded", fontsize=9, color=QUIET)
  return figure


def draw_spectrum(data: dict[str, Any]) -> Any:
  """Draws mean and range of singular values over density, a panel for each net."""
  curves = data["curves"]
  rows = list(dict.fromkeys(curve["activation"] for curve in curves))
  columns = list(dict.fromkeys(curve["distribution"] for curve in curves))
  starts = list(dict.fromkeys(curve["start"] for curve in curves))
  shape = (1, len(rows)) if len(columns) == 1 else (len(rows), len(columns))
  size = (3.6 * shape[1] + 0.4, 3.0 * shape[0] + 0.4)
  figure, grid = new_figure(size, *shape, sharey=True)
  for axes, panel in zip(grid.flat, itertools.product(rows, columns), strict=True):
    for curve in curves:
      if (curve["activation"], curve["distribution"]) == panel:
        _draw_range(axes, curve, starts.index(curve["start"]))
    axes.set(xscale="log", xlabel="density")
    axes.set_title(", ".join(panel), fontsize=10)
    _density_ticks(axes, curves[0]["density"])
  for axes in grid[:, 0]:
    axes.set_ylabel("singular value of the Jacobian")
  grid[0, 0].legend(frameon=False, fontsize=8)
  figure.suptitle(
    f"mean of the singular values with its deviation over {data['seeds']} seeds; "
    f"shaded from the smallest to the largest (AI: {data['ai']})",
    fontsize=9,
    color=QUIET,
  )
  return figure


def _draw_range(axes, curve, number: int) -> None:
  x, style, color = curve["density"], line_style(number), COLORS[number]
  axes.fill_between(x, curve["min"], curve["max"], color=color, alpha=0.12, lw=0)
  for edge in ("min", "max"):
    axes.plot(x, curve[edge], linewidth=0.7, **style)
  style |= {"marker": MARKERS[number], "ms": 4, "linewidth": 1.8, "capsize": 2}
  axes.errorbar(x, curve["mean"], curve["deviation"], label=curve["start"], **style)


def _density_ticks(axes, densities) -> None:
  axes.set_xticks(densities, [f"{d:g}" for d in densities], fontsize=8)
  axes.xaxis.minorticks_off()


def draw_time(data: dict[str, Any]) -> Any:
  """Draws initialization time over size, a curve for each density."""
  figure, ((axes,),) = new_figure((5, 3.6), 1, 1)
  for number, (name, seconds) in enumerate(data["curves"].items()):
    style = line_style(number) | {"marker": MARKERS[number % 4], "ms": 4}
    axes.plot(data["sizes"], 1e3 * np.array(seconds), label=name, **style)
  axes.set(
    xscale="log", yscale="log", xlabel="N of an N x N matrix", ylabel="time (ms)"
  )
  plain_log_ticks(axes)
  _density_ticks(axes, data["sizes"])
  axes.legend(frameon=False, fontsize=8)
  axes.set_title(f"on {data['device']}, compiled", fontsize=9, color=QUIET)
  return figure


def draw_angles(data: dict[str, Any]) -> Any:
  """Draws a kernel for each law of the angle, and the losses."""
  from matplotlib.colors import LogNorm

  kernels, shown = data["kernels"], None
  ratios = [1.0] * len(kernels) + [1.3]
  size = (13, 3.1)
  figure, (panels,) = new_figure(size, 1, len(kernels) + 1, width_ratios=ratios)
  style = {"cmap": "Blues", "norm": LogNorm(1e-4, 1, clip=True)}
  for axes, (name, kernel) in zip(panels, kernels.items(), strict=False):
    image = np.ma.masked_equal(np.abs(kernel), 0)  # as white as the paper
    shown = axes.imshow(image, interpolation="nearest", **style)
    axes.set(xlabel="output unit", ylabel="input unit")
    axes.grid(False)
    axes.set_title(name, fontsize=10)
  figure.colorbar(shown, ax=panels[-2], label="absolute weight", shrink=0.8)
  axes = panels[-1]
  for number, name in enumerate(kernels):
    losses = np.array(data["loss"][name])
    band = losses.min(axis=0), losses.max(axis=0)
    draw_band(axes, data["epoch"], losses.mean(axis=0), band, number, name)
  axes.set(xlabel="epoch", ylabel="training loss (nats)", yscale="log")
  plain_log_ticks(axes)
  title = f"{data['network']} on {data['data']}, density {data['density']:g}"
  axes.set_title(f"{title}\nmean and range of {data['seeds']} seeds", fontsize=9)
  axes.legend(frameon=False, fontsize=8)
  return figure


def draw_delta(data: dict[str, Any]) -> Any:
  """Draws the taps of a delta kernel: weights, trainable zeros, dead weights."""
  from matplotlib.colors import ListedColormap
  from matplotlib.patches import Patch

  kernel, mask = np.array(data["kernel"]), np.array(data["mask"])
  kinds = mask.astype(int) + (kernel != 0)
  colors = ("#F2F2F2", "#E69F00", "#0072B2")
  figure, panels = new_figure((5.4, 5.8), *kinds.shape[:2])
  style = {"cmap": ListedColormap(colors), "interpolation": "nearest"}
  for tap, axes in np.ndenumerate(panels):
    axes.imshow(kinds[tap], vmin=0, vmax=2, **style)
    axes.set_title(f"tap ({tap[0]}, {tap[1]})", fontsize=8)
    axes.set(xticks=[], yticks=[])
    axes.grid(False)
    axes.spines[["top", "right"]].set_visible(True)
  panels[-1, 0].set(xlabel="output channel", ylabel="input channel")
  labels = ("not trained", "trained, starts at 0", "trained, orthogonal")
  handles = [
    Patch(facecolor=color, edgecolor=QUIET, linewidth=0.5, label=label)
    for color, label in zip(colors, labels, strict=True)
  ]
  figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
  return figure


def draw_curves(data: dict[str, Any]) -> Any:
  """Draws training loss and held-out accuracy over epochs."""
  figure, ((loss, accuracy),) = new_figure((9, 3.6), 1, 2)
  loss.set(xlabel="epoch", ylabel="training loss (nats)", yscale="log")
  for number, (name, curve) in enumerate(data.items()):
    label = f"{name} ({curve['runs']} run{'s' if curve['runs'] > 1 else ''})"
    for axes, value, factor in ((loss, "loss", 1), (accuracy, "accuracy", 100)):
      mean, std = (factor * np.array(curve[value][part]) for part in ("mean", "std"))
      # A logarithmic axis has no zero.
      low = np.maximum(mean - std, 0.5 * mean) if axes is loss else mean - std
      band = low, mean + std
      draw_band(axes, curve[value]["epoch"], mean, band, number, label)
  plain_log_ticks(loss)
  accuracy.set(xlabel="epoch", ylabel="held-out accuracy (%)")
  if len(data) > len(COLORS):  # too many for a legend inside the axes
    handles = accuracy.get_legend_handles_labels()
    style = {"frameon": False, "fontsize": 7, "handlelength": 3.5}
    figure.legend(*handles, loc="outside right center", **style)
  else:
    accuracy.legend(frameon=False, fontsize=8)
  return figure


def draw_accuracy(data: dict[str, Any]) -> Any:
  """Draws test accuracy over density, with deviations over seeds."""
  figure, ((axes,),) = new_figure((5, 3.6), 1, 1)
  for number, (name, curve) in enumerate(data.items()):
    mean, std = (100 * np.array(curve[value]) for value in ("mean", "std"))
    style = line_style(number) | {"marker": MARKERS[number % 4], "ms": 4, "capsize": 2}
    axes.errorbar(curve["density"], mean, std, label=name, **style)
  found = [density for curve in data.values() for density in curve["density"]]
  densities = sorted({float(f"{density:.2g}") for density in found})
  axes.set(xscale="log", xlabel="density", ylabel="test accuracy (%)")
  _density_ticks(axes, densities)
  axes.legend(frameon=False, fontsize=8)
  return figure
