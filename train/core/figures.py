"""Figures of finished runs: readable in print and without colour vision."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from train.core.summaries import Support

# Okabe and Ito's palette; dashes tell the curves apart without colour.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
DASHES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P")
QUIET = "#767676"


class Curves(NamedTuple):
  """What a figure shows of one run."""

  records: list[dict[str, Any]]  # the records of `metrics.jsonl`
  summary: dict[str, Any]  # the contents of `summary.json`
  support: Support  # of one kernel, at the start


def new_figure(size: tuple[float, float], *grid: int, **options: Any) -> Any:
  """Returns an empty figure and its axes, an array `[rows, columns]`."""
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  figure = Figure(figsize=size, layout="constrained")
  FigureCanvasAgg(figure)
  panels: Any = figure.subplots(*grid, squeeze=False, **options)
  for axes in panels.ravel():
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#E6E6E6", linewidth=0.6)
    axes.set_axisbelow(True)
  return figure, panels


def line_style(number: int) -> dict[str, Any]:
  """Returns colour and dashes of a curve: 24 pairs differ."""
  dashes = DASHES[(number + number // 12) % len(DASHES)]
  return {"color": COLORS[number % len(COLORS)], "linestyle": dashes}


def draw_band(axes, x: Any, mean: Any, band: Any, number: int, label: str) -> None:
  """Draws a curve in the style of a number, and shades its band, `(low, high)`."""
  style = line_style(number)
  if band is not None:
    axes.fill_between(x, *band, color=style["color"], alpha=0.2, lw=0)
  axes.plot(x, mean, linewidth=1.8, label=label, **style)


def save(figure: Any, path: Path, dpi: int = 200) -> None:
  """Writes `path.pdf` and `path.png`."""
  for suffix in ("pdf", "png"):
    figure.savefig(path.with_name(f"{path.name}.{suffix}"), dpi=dpi)


def draw_runs(runs: dict[str, Curves], title: str = "") -> Any:
  """Draws accuracy and loss of one or more runs, and one kernel of the first.

  The order of the runs gives colours. Of several seeds the mean is drawn, and the range
  is shaded.
  """
  many = len(runs) > len(COLORS)  # too many for a legend inside the axes
  size = (11, 5 if many else 3.6)
  figure, panels = new_figure(size, 1, 3, width_ratios=(1.25, 1.25, 1))
  (accuracy, loss, kernel), first = panels[0], next(iter(runs.values()))
  for number, (name, curves) in enumerate(runs.items()):
    label = f"{name}: test {curves.summary['test_accuracy']:.1%}"
    seeds = curves.summary.get("test_accuracy_seeds") or []
    if len(seeds) > 1:
      label += f" \N{PLUS-MINUS SIGN} {np.std(seeds, ddof=1):.1%}"
    evaluations = [r for r in curves.records if r["split"] in ("validation", "monitor")]
    _draw_curve(accuracy, evaluations, "accuracy", 100, number, label)
    training = [r for r in curves.records if r["split"] == "train"]
    _draw_curve(loss, training, "loss", 1, number, name)
  style = {"color": QUIET, "linewidth": 1, "linestyle": (0, (1, 2)), "zorder": 3}
  accuracy.axhline(100 * first.summary["chance"], label="chance", **style)
  end = accuracy.lines[0].get_xdata()[-1]
  accuracy.set(xlabel="epoch", xlim=(0, end), ylim=(0, 102))
  monitor = any(r["split"] == "monitor" for r in first.records)
  accuracy.set_ylabel(f"{'test' if monitor else 'validation'} accuracy (%)")
  if (seeds := len(first.summary.get("test_accuracy_seeds") or [])) > 1:
    accuracy.set_title(f"mean, and range of {seeds} seeds", fontsize=9, color=QUIET)
  if many:
    style = {"ncols": 5, "fontsize": 7, "frameon": False}
    handles = accuracy.get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", **style)
  else:
    accuracy.legend(frameon=False, loc="center right")
  loss.set(xlabel="epoch", ylabel="training loss (nats)", yscale="log")
  plain_log_ticks(loss)
  loss.set_xlim(0, *loss.lines[0].get_xdata()[-1:])  # none, if records were lost
  _draw_support(kernel, first.support)
  if title:
    figure.suptitle(title, fontsize=11)
  return figure


def _draw_curve(axes, records, value: str, factor: float, number, label) -> None:
  """Draws a value over epochs; of several seeds mean and range."""
  epochs, means = [r["epoch"] for r in records], [factor * r[value] for r in records]
  seeds, band = [r.get("seeds", {}).get(value) for r in records], None
  if seeds and all(seeds):
    band = factor * np.min(seeds, axis=1), factor * np.max(seeds, axis=1)
  draw_band(axes, epochs, means, band, number, label)


def plain_log_ticks(axes) -> None:
  """Labels a logarithmic y axis at 1, 2, 5 of every decade, in plain numbers."""
  from matplotlib.ticker import LogLocator, NullFormatter

  axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
  axes.yaxis.set_major_formatter("{x:g}")
  axes.yaxis.set_minor_formatter(NullFormatter())


def _draw_support(axes, support: Support) -> None:
  """Draws which weights of a kernel live."""
  from matplotlib.colors import ListedColormap
  from matplotlib.patches import Patch

  kinds = support.live.astype(np.int8) + (support.live & support.nonzero)
  colors = ("#FFFFFF", "#E69F00", "#0072B2")
  style = {"cmap": ListedColormap(colors), "interpolation": "nearest"}
  axes.imshow(kinds.T, vmin=0, vmax=2, **style)
  axes.set(xlabel="input unit", ylabel="output unit")
  axes.spines[:].set_visible(True)
  axes.grid(False)
  axes.set_title(f"support of {support.name}", fontsize=9)
  handles = [Patch(color=colors[2], label=f"live ({support.density:.1%})")]
  if (kinds == 1).any():
    handles.append(Patch(color=colors[1], label="live, starts at 0"))
  style = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.17), "ncols": 2}
  axes.legend(handles=handles, frameon=False, fontsize=8, **style)
