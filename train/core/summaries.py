"""What a run says about itself at its start and at its end: tables and numbers."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import eoi_jax
from eoi_jax.layouts import find_kernels, named_leaves
from train.core.config import DENSE_STARTS, flatten
from train.core.console import table
from train.core.workdir import read_json
from train.models import title_and_fields
from train.models.blocks import dense_view

SHOWN = 128  # rows and columns of a kernel in a figure


class Taps(NamedTuple):
  """The centre tap of the convolutions of a leaf, or all of their other taps."""

  size: int  # number of weights
  live: int  # trained weights
  nonzeros: int  # weights that are not zero at the start


class Layer(NamedTuple):
  """One kernel leaf of a network; a stack counts as `count` kernels."""

  name: str  # path of the leaf
  shape: tuple[int, ...]  # shape of one kernel
  count: int  # number of kernels in the leaf
  live: int  # trained weights in all of them
  density: float  # `live` over size
  orthogonality_error: float  # the largest of its kernels
  floor: float  # lowest density with an orthogonal start
  # centre tap and other taps of a convolution; None if there is one tap
  taps: tuple[Taps, Taps] | None


def list_layers(
  params: Any, masks: Any, scale: float, model: Any, taps: str
) -> list[Layer]:
  """Returns a row for each kernel that may be sparse, in the order of the tree.

  Kernels are compared with `scale` times an orthogonal one; floors depend on
  `sparsity.taps`.
  """
  errors = eoi_jax.gram_errors(params, scale=scale, layouts=model.layouts)
  flags, rows = named_leaves(masks), []
  counts = live_counts(params, masks, model.layouts)
  for name, kernel in find_kernels(params, model.layouts).items():
    live, size = counts[name]
    row = Layer(
      name=name,
      shape=kernel.layer_shape,
      count=kernel.num_layers,
      live=live,
      density=live / size,
      orthogonality_error=float(np.max(errors[name])),
      floor=kernel.floor(taps) / kernel.layer_size,
      taps=_count_taps(kernel, flags[name]),
    )
    rows.append(row)
  return rows


def _count_taps(kernel: Any, mask: Any) -> tuple[Taps, Taps] | None:
  window = kernel.layer_shape[:-2]
  if math.prod(window) == 1:
    return None
  nonzero = np.asarray(kernel.to_layers(kernel.leaf)) != 0
  live = np.ones_like(nonzero) if mask is None else np.asarray(kernel.to_layers(mask))
  place = (slice(None), *kernel.center)
  center = Taps(live[place].size, int(live[place].sum()), int(nonzero[place].sum()))
  whole = Taps(live.size, int(live.sum()), int(nonzero.sum()))
  return center, Taps(*(a - b for a, b in zip(whole, center, strict=True)))


def taps_table(rows: dict[str, tuple[Taps, Taps]]) -> str:
  """Returns density and nonzeros by taps as text, one kernel a line and the sums."""
  titles = ("centre tap: density", "nonzeros", "other taps: density", "nonzeros")
  lines: list[tuple[str, ...]] = [("kernel", *titles)]
  for name, taps in (rows | {"all convolutions": _sum_taps(rows)}).items():
    parts = [(f"{x.live / x.size:.4f}", f"{x.nonzeros:,}") for x in taps]
    lines.append((name, *(word for part in parts for word in part)))
  return table(lines)


def _sum_taps(rows: dict[str, tuple[Taps, Taps]]) -> list[Taps]:
  """Sums of several kernels: of their centre taps, of their other taps."""
  return [
    Taps(*np.sum(part, axis=0).tolist()) for part in zip(*rows.values(), strict=True)
  ]


class Support(NamedTuple):
  """Where one kernel has weights, at the start; a corner of it if it is large."""

  name: str  # the kernel's name
  live: np.ndarray  # bool `[fan_in, fan_out]`, the mask
  nonzero: np.ndarray  # bool likewise, weights that do not start at zero
  density: float  # of the mask of the whole kernel


class AtStart(NamedTuple):
  """What is known of a run before its first step; `start.json` holds it."""

  summary: dict[str, Any]  # the part of `summary.json` that is known then
  table: str  # the layers as text
  support: Support  # of the kernel that stands for most others, for the figure


def describe_start(config: Any, state: Any, scale: float, recipe: Any) -> AtStart:
  """Returns what is known of a run from the state of one seed at step 0.

  Blocks are shown as the kernels that they stand for.
  """
  params, masks = dense_view(state.params, state.masks, state.layouts)
  model = recipe.model.without_blocks
  layers = list_layers(params, masks, scale, model, config.sparsity.taps)
  stored = sum(leaf.size for leaf in jax.tree.leaves(state.params))
  taps = {layer.name: layer.taps for layer in layers if layer.taps}
  summary: dict[str, Any] = {
    "start": config.sparsity.start,
    "chance": 1 / recipe.spec.num_classes,
    "orthogonality_error": max(layer.orthogonality_error for layer in layers),
    **count_live(params, masks, model),
    "parameters_total": stored,
  }
  rows = [("kernel", "shape", "live weights", "density", "orthogonality error")]
  for layer in layers:
    shape = " x ".join(map(str, layer.shape))
    shape += f"  ({layer.count} of them)" if layer.count > 1 else ""
    error = f"{layer.orthogonality_error:.1e}"
    rows.append((layer.name, shape, f"{layer.live:,}", f"{layer.density:.4f}", error))
  text = table(rows)
  if taps:
    text += f"\n\n{taps_table(taps)}"
    for part, found in zip(("center_tap", "other_taps"), _sum_taps(taps), strict=True):
      density = found.live / found.size
      summary[part] = {"density": density, "nonzeros": found.nonzeros}
  return AtStart(summary, text, _support(params, masks, layers))


def live_counts(params: Any, masks: Any, layouts: Any) -> dict[str, tuple[int, int]]:
  """Returns the number of live weights and of all weights of each kernel."""
  flags = named_leaves(masks)
  sizes = {name: x.leaf.size for name, x in find_kernels(params, layouts).items()}
  return {
    name: (size if flags[name] is None else int(np.count_nonzero(flags[name])), size)
    for name, size in sizes.items()
  }


def count_live(params: Any, masks: Any, model: Any) -> dict[str, Any]:
  """Returns the part of a summary that masks tell: densities and live parameters.

  `density` is that of the kernels that may be sparse, all of them together.
  """
  kernels = live_counts(params, masks, model.layouts)
  live, size = np.sum(list(kernels.values()), axis=0).tolist()
  total = sum(leaf.size for leaf in jax.tree.leaves(params))
  return {
    "density": live / size,
    "densities": {name: part / whole for name, (part, whole) in kernels.items()},
    "parameters_live": total - size + live,
    "parameters_total": total,
  }


def _support(params: Any, masks: Any, layers: list[Layer]) -> Support:
  layer = max(layers, key=lambda row: row.count)
  nonzero = np.asarray(named_leaves(params)[layer.name]) != 0
  mask = named_leaves(masks)[layer.name]
  mask = np.ones(nonzero.shape, bool) if mask is None else np.asarray(mask)
  name = layer.name
  if layer.count > 1:
    middle = layer.count // 2
    name, nonzero, mask = f"{name}[{middle}]", nonzero[middle], mask[middle]
  nonzero, mask = (x.reshape(-1, x.shape[-1]) for x in (nonzero, mask))
  if max(mask.shape) > SHOWN:
    name += ", a corner"
  cut, density = (slice(SHOWN), slice(SHOWN)), float(mask.mean())
  return Support(name, mask[cut], nonzero[cut], density)


def start_json(at_start: AtStart) -> str:
  """Returns what `read_start` reads."""
  support = at_start.support
  rows = {
    name: ["".join(map(str, row)) for row in getattr(support, name).astype(int)]
    for name in ("live", "nonzero")
  }
  return json.dumps(at_start._asdict() | {"support": support._asdict() | rows}) + "\n"


def read_start(path: Path) -> AtStart | None:
  """Reads what an earlier process knew at step 0, None if it has left nothing."""
  try:
    found = read_json(path)
    support = found["support"]
    for name in ("live", "nonzero"):
      support[name] = np.array([[c == "1" for c in row] for row in support[name]])
    return AtStart(found["summary"], found["table"], Support(**support))
  except (ValueError, KeyError, TypeError):
    return None


def title(config: Any) -> str:
  """Returns what is trained, in one line, without what the config compares.

  A dense start has no density.
  """
  parts = {
    "model.depth": "{}-layer",
    "model.activation": "{}",
    "model.name": "{} on",
    "data.name": "{},",
    "model.width": "width {},",
    "sparsity.density": "density {},",
    "sparsity.start": "{} start",
  }
  network, fields = title_and_fields(config.model.name)
  fields = {f"model.{field}" for field in fields}
  flat = {
    field: value
    for field, value in flatten(config).items()
    if field in fields or not field.startswith("model.")
  } | {"model.name": network}
  compared = config.compare.field.split("+")
  if "sparsity.start" not in compared and config.sparsity.start in DENSE_STARTS:
    del flat["sparsity.density"]
  words = [
    text.format(flat[field])
    for field, text in parts.items()
    if field in flat and field not in compared
  ]
  return " ".join(words).rstrip(",")


def summary_table(summaries: dict[str, dict[str, Any]]) -> str:
  """Returns the summaries of one or more runs side by side, as text.

  Many runs stand one below the other.
  """
  lines = [("", *summaries)]
  for title, show in _LINES:
    cells = [show(summary) for summary in summaries.values()]
    lines += [(title, *cells)] if any(cells) else []
  if len(summaries) > _MAX_COLUMNS:
    lines = [row[:-1] for row in zip(*lines, strict=True)]
  return table(lines)


def _tap(part: str, number: str) -> Callable[[dict[str, Any]], str]:
  form = "{:.4f}" if number == "density" else "{:,}"
  return lambda s: form.format(s[part][number]) if part in s else ""


_MAX_COLUMNS = 6
_LINES = (
  ("test accuracy", lambda s: f"{s['test_accuracy']:.2%}"),
  ("test loss", lambda s: f"{s['test_loss']:.4f}"),
  ("density of kernels that may be sparse", lambda s: f"{s['density']:.4f}"),
  ("orthogonality error at start", lambda s: f"{s['orthogonality_error']:.1e}"),
  *(  # of networks with convolutions
    (f"{title}: {number}", _tap(part, number))
    for title, part in (("centre tap", "center_tap"), ("other taps", "other_taps"))
    for number in ("density", "nonzeros")
  ),
  ("parameters live", lambda s: f"{s['parameters_live']:,}"),
  ("parameters total", lambda s: f"{s['parameters_total']:,}"),
  ("training time", lambda s: f"{s['train_seconds']:.1f} s"),
  ("compile time", lambda s: f"{s['compile_seconds']:.1f} s"),
)
