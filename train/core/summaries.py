"""What a run says about itself at its start and at its end: tables and numbers."""

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import eoi_jax
from eoi_jax.layouts import Kernel, find_kernels, named_leaves
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
  live: Any  # trained weights in all of them; None if scores of the data decide
  floor: Any  # lowest density with an orthogonal start; None if the leaf stays dense
  # centre tap and other taps of convolutions that may be sparse; None if there is one
  # tap, or scores of the data decide
  taps: tuple[Taps, Taps] | None = None
  # the largest of its kernels; nan before a start
  orthogonality_error: float = math.nan
  at_most: bool = False  # whether the start may fall short of `live`, as EIS does

  @property
  def size(self) -> int:
    """Weights of all kernels."""
    return self.count * math.prod(self.shape)

  @property
  def density(self) -> float:
    """Trained fraction of them."""
    return self.live / self.size


def list_layers(
  params: Any, masks: Any, scale: float, model: Any, taps: str
) -> list[Layer]:
  """Returns a row for each kernel that may be sparse, in the order of the tree.

  Kernels are compared with `scale` times an orthogonal one; floors depend on
  `sparsity.taps`.
  """
  errors = eoi_jax.gram_errors(params, scale=scale, layouts=model.layouts)
  flags, counts = named_leaves(masks), live_counts(params, masks, model.layouts)
  return [
    Layer(
      name=name,
      shape=kernel.layer_shape,
      count=kernel.num_layers,
      live=counts[name][0],
      floor=kernel.floor(taps) / kernel.layer_size,
      taps=_count_taps(kernel, flags[name]),
      orthogonality_error=float(np.max(errors[name])),
    )
    for name, kernel in find_kernels(params, model.layouts).items()
  ]


def _count_taps(kernel: Kernel, mask: Any) -> tuple[Taps, Taps] | None:
  if math.prod(kernel.layer_shape[:-2]) == 1:
    return None
  found, place = _where(kernel, mask), (slice(None), *kernel.center)
  whole = np.array([found[0].size, *(part.sum() for part in found)])
  center = np.array([found[0][place].size, *(part[place].sum() for part in found)])
  return Taps(*center.tolist()), Taps(*(whole - center).tolist())


def _where(kernel: Kernel, mask: Any) -> tuple[np.ndarray, np.ndarray]:
  """Where the layers of a leaf are trained, and where they are not zero."""
  nonzero = kernel.to_layers(np.asarray(kernel.leaf)) != 0
  live = np.ones_like(nonzero) if mask is None else kernel.to_layers(np.asarray(mask))
  return live, nonzero


def taps_table(layers: list[Layer]) -> str:
  """Returns density and nonzeros by taps as text, one convolution a line and the sums.

  Without convolutions it is empty.
  """
  named = {layer.name: layer.taps for layer in layers if layer.taps}
  if not named:
    return ""
  titles = ("centre tap: density", "nonzeros", "other taps: density", "nonzeros")
  lines: list[tuple[str, ...]] = [("kernel", *titles)]
  for name, taps in (named | {"all convolutions": _sum_taps(layers)}).items():
    parts = [(f"{x.live / x.size:.4f}", f"{x.nonzeros:,}") for x in taps]
    lines.append((name, *parts[0], *parts[1]))
  return table(lines)


def _sum_taps(layers: list[Layer]) -> list[Taps]:
  """Sums of several layers: of their centre taps, of their other taps."""
  found = [layer.taps for layer in layers if layer.taps]
  return [Taps(*part) for part in np.sum(found, axis=0).tolist()] if found else []


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
  summary: dict[str, Any] = {
    "start": config.sparsity.start,
    "chance": 1 / recipe.spec.num_classes,
    "orthogonality_error": max(layer.orthogonality_error for layer in layers),
    **count_live(params, masks, model),
    "parameters_total": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
  }
  rows = [("kernel", "shape", "live weights", "density", "orthogonality error")]
  for layer in layers:
    shape = " x ".join(map(str, layer.shape))
    shape += f"  ({layer.count} of them)" if layer.count > 1 else ""
    error = f"{layer.orthogonality_error:.1e}"
    rows.append((layer.name, shape, f"{layer.live:,}", f"{layer.density:.4f}", error))
  for part, found in zip(("center_tap", "other_taps"), _sum_taps(layers), strict=False):
    density = found.live / found.size
    summary[part] = {"density": density, "nonzeros": found.nonzeros}
  text = "\n\n".join(filter(None, (table(rows), taps_table(layers))))
  return AtStart(summary, text, _support(params, masks, model))


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


def _support(params: Any, masks: Any, model: Any) -> Support:
  kernels = find_kernels(params, model.layouts).values()
  kernel = max(kernels, key=lambda kernel: kernel.num_layers)
  name, middle = kernel.name, kernel.num_layers // 2
  found = _where(kernel, named_leaves(masks)[name])
  live, nonzero = (x[middle].reshape(-1, x.shape[-1]) for x in found)
  name += f"[{middle}]" if kernel.num_layers > 1 else ""
  name += ", a corner" if max(live.shape) > SHOWN else ""
  corner = (slice(SHOWN), slice(SHOWN))
  return Support(name, live[corner], nonzero[corner], float(live.mean()))


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
      support[name] = np.array(list(map(list, support[name]))) == "1"
    return AtStart(found["summary"], found["table"], Support(**support))
  except (ValueError, KeyError, TypeError):
    return None


_TITLE = {
  "model.depth": "{}-layer",
  "model.activation": "{}",
  "model.name": "{} on",
  "data.name": "{},",
  "model.width": "width {},",
  "sparsity.density": "density {},",
  "sparsity.start": "{} start",
}


def title(config: Any) -> str:
  """Returns what is trained, in one line, without what the config compares.

  A dense start has no density.
  """
  network, taken = title_and_fields(config.model.name)
  flat = flatten(config) | {"model.name": network}
  left_out = set(config.compare.field.split("+"))
  left_out |= {"model.depth", "model.activation", "model.width"} - {
    f"model.{field}" for field in taken
  }
  if "sparsity.start" not in left_out and config.sparsity.start in DENSE_STARTS:
    left_out.add("sparsity.density")
  words = [
    text.format(flat[field]) for field, text in _TITLE.items() if field not in left_out
  ]
  return " ".join(words).rstrip(",")


def summary_table(summaries: dict[str, dict[str, Any]]) -> str:
  """Returns the summaries of one or more runs side by side, as text.

  Many runs stand one below the other.
  """
  lines = [("", *summaries)]
  for title, field, form in _LINES:
    cells = [form.format(s[field]) if field in s else "" for s in summaries.values()]
    lines += [(title, *cells)] if any(cells) else []
  if len(summaries) > _MAX_COLUMNS:
    lines = [row[:-1] for row in zip(*lines, strict=True)]
  return table(lines)


_MAX_COLUMNS = 6
_LINES = (
  ("test accuracy", "test_accuracy", "{:.2%}"),
  ("test loss", "test_loss", "{:.4f}"),
  ("density of kernels that may be sparse", "density", "{:.4f}"),
  ("orthogonality error at start", "orthogonality_error", "{:.1e}"),
  ("centre tap: density", "center_tap", "{[density]:.4f}"),  # of convolutions
  ("centre tap: nonzeros", "center_tap", "{[nonzeros]:,}"),
  ("other taps: density", "other_taps", "{[density]:.4f}"),
  ("other taps: nonzeros", "other_taps", "{[nonzeros]:,}"),
  ("parameters live", "parameters_live", "{:,}"),
  ("parameters total", "parameters_total", "{:,}"),
  ("training time", "train_seconds", "{:.1f} s"),
  ("compile time", "compile_seconds", "{:.1f} s"),
)
