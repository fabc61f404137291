"""What a run says about itself at its start and at its end: tables and numbers."""

from typing import Any, NamedTuple

import jax
import numpy as np

import eoi_jax
from train.config import flatten
from train.data import DATASETS
from train.models import MODELS


class Layer(NamedTuple):
  """One kernel leaf of a network; a stack counts as `count` kernels.

  Attributes:
    name: path of the leaf.
    shape: shape of one kernel.
    count: number of kernels in the leaf.
    live: trained weights in all of them.
    density: `live` over size.
    orthogonality_error: the largest of its kernels.
  """

  name: str
  shape: tuple[int, ...]
  count: int
  live: int
  density: float
  orthogonality_error: float


def describe(params: Any, masks: Any, scale: float, model: Any) -> list[Layer]:
  """Returns a row for each kernel that may be sparse, in the order of the tree.

  Args:
    params: the parameters.
    masks: tree like `params`; bool leaves or None.
    scale: gain of the kernels: they are compared with `scale` times orthogonal.
    model: the network, with `is_kernel(name, leaf)` and `is_stacked(name, leaf)`.
  """
  errors = eoi_jax.gram_errors(
    params, scale=scale, is_kernel=model.is_kernel, is_stacked=model.is_stacked
  )
  flat_masks, rows = dict(_named_leaves(masks)), []
  for name, leaf in _named_leaves(params):
    mask = flat_masks[name]
    if name not in errors:
      continue
    stacked = model.is_stacked(name, leaf)
    live = leaf.size if mask is None else int(np.sum(mask))
    rows.append(
      Layer(
        name=name,
        shape=leaf.shape[1:] if stacked else leaf.shape,
        count=leaf.shape[0] if stacked else 1,
        live=live,
        density=live / leaf.size,
        orthogonality_error=float(np.max(errors[name])),
      )
    )
  return rows


class Support(NamedTuple):
  """Where one kernel has weights, at the start.

  Attributes:
    name: the kernel's name.
    live: bool `[fan_in, fan_out]`, the mask.
    nonzero: bool likewise, weights that do not start at zero.
    density: of the mask.
  """

  name: str
  live: np.ndarray
  nonzero: np.ndarray
  density: float


def pick_support(params: Any, masks: Any, layers: list[Layer]) -> Support:
  """Returns the support of the kernel that stands for most others: for a figure."""
  layer = max(layers, key=lambda row: row.count)
  leaf = dict(_named_leaves(params))[layer.name]
  mask = dict(_named_leaves(masks))[layer.name]
  mask = np.ones(leaf.shape, bool) if mask is None else np.asarray(mask)
  name, nonzero = layer.name, np.asarray(leaf) != 0
  if layer.count > 1:
    middle = layer.count // 2
    name, nonzero, mask = f"{name}[{middle}]", nonzero[middle], mask[middle]
  nonzero, mask = (x.reshape(-1, x.shape[-1]) for x in (nonzero, mask))
  return Support(name, mask, nonzero, float(mask.mean()))


def _named_leaves(tree: Any) -> list[tuple[str, Any]]:
  leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: x is None)
  return [
    (jax.tree_util.keystr(path, simple=True, separator="/"), leaf)
    for path, leaf in leaves
  ]


def summarize(config: Any, params: Any, layers: list[Layer]) -> dict[str, Any]:
  """Returns the part of a summary that is known before training."""
  total = sum(leaf.size for leaf in jax.tree.leaves(params))
  kernels = sum(layer.count * int(np.prod(layer.shape)) for layer in layers)
  live = sum(layer.live for layer in layers)
  return {
    "start": config.sparsity.start,
    "chance": 1 / DATASETS[config.data.name].num_classes,
    "density": live / kernels,
    "densities": {layer.name: layer.density for layer in layers},
    "orthogonality_error": max(layer.orthogonality_error for layer in layers),
    "parameters_live": total - kernels + live,
    "parameters_total": total,
  }


def layer_table(layers: list[Layer]) -> str:
  """Returns the layers as text, one a line."""
  rows = [("kernel", "shape", "live weights", "density", "orthogonality error")]
  for layer in layers:
    shape = " x ".join(map(str, layer.shape))
    shape += f"  ({layer.count} of them)" if layer.count > 1 else ""
    error = f"{layer.orthogonality_error:.1e}"
    rows.append((layer.name, shape, f"{layer.live:,}", f"{layer.density:.4f}", error))
  return table(rows)


def title(config: Any) -> str:
  """Returns what is trained, in one line, without what the config compares."""
  parts = {
    "model.depth": "{}-layer",
    "model.activation": "{}",
    "model.name": "{} on",
    "data.name": "{},",
    "model.width": "width {},",
    "sparsity.density": "density {},",
    "sparsity.start": "{} start",
  }
  model = MODELS[config.model.name]
  fields = {f"model.{field}" for field in model.fields}
  flat = {
    field: value
    for field, value in flatten(config).items()
    if field in fields or not field.startswith("model.")
  } | {"model.name": model.title}
  words = [
    text.format(flat[field])
    for field, text in parts.items()
    if field in flat and field not in config.compare.field.split("+")
  ]
  return " ".join(words).rstrip(",")


def summary_table(summaries: dict[str, dict[str, Any]]) -> str:
  """Returns the summaries of one or more runs side by side, as text.

  Many runs stand one below the other.
  """
  lines = [("", *summaries)]
  for title, show in _LINES:
    lines.append((title, *(show(summary) for summary in summaries.values())))
  if len(summaries) > _MAX_COLUMNS:
    lines = [row[:-1] for row in zip(*lines, strict=True)]
  return table(lines)


_MAX_COLUMNS = 6


_LINES = (
  ("test accuracy", lambda s: f"{s['test_accuracy']:.2%}"),
  ("test loss", lambda s: f"{s['test_loss']:.4f}"),
  ("density of all kernels", lambda s: f"{s['density']:.4f}"),
  ("orthogonality error at start", lambda s: f"{s['orthogonality_error']:.1e}"),
  ("parameters live", lambda s: f"{s['parameters_live']:,}"),
  ("parameters total", lambda s: f"{s['parameters_total']:,}"),
  ("training time", lambda s: f"{s['train_seconds']:.1f} s"),
  ("compile time", lambda s: f"{s['compile_seconds']:.1f} s"),
)


def table(rows: list[tuple[str, ...]]) -> str:
  """Aligns text in columns, the first to the left, the others to the right."""
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  lines = []
  for first, *rest in rows:
    cells = [first.ljust(widths[0])]
    cells += [c.rjust(w) for c, w in zip(rest, widths[1:], strict=True)]
    lines.append("  " + "  ".join(cells).rstrip())
  return "\n".join(lines)
