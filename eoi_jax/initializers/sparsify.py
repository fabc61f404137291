"""One door from a dense tree to a sparse start: `sparsify`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from eoi_jax import _checks, _keys, _trees
from eoi_jax.initializers._starts import STARTS, Stack, on_host
from eoi_jax.layouts import Kernel, Layouts
from eoi_jax.masks.trees import (
  check_masks,
  given_kernels,
  kernel_counts,
  live_counts,
  place_like,
)


def sparsify(
  key: jax.Array,
  params: Any,
  densities_or_masks: Any,
  *,
  start: str = "eoi",
  scale: float = 1.0,
  options: Mapping[str, Any] | None = None,
  layouts: Layouts | None = None,
) -> tuple[Any, Any]:
  """Gives every kernel of a tree a sparse start and its mask.

  The starts, with their options:

    - "eoi": exact orthogonal initialization. Of masks only the number of trained
      weights per layer is kept, the support is drawn anew. `taps`, `center`, `angle`,
      `schedule`, `cover` as in `eoi_init`.
    - "eoi_in_mask": an exact isometry on the given mask itself (or a random one), at
      the centre tap of convolutions; the rest of the mask starts at zero. A mask that
      leaves an input or output without a partner allows none: an error, or, as
      `fallback` says, an isometry of fewer units ("partial"), "ai" or "base". `angle`.
    - "eoi_structured": at the centre tap of a convolution a sparse orthogonal matrix
      of the density, trained at all taps of its support; dense kernels, and
      convolutions of three channels, stay dense. `angle`, `schedule`, `cover`.
    - "base": a dense `reference` ("delta_orthogonal" by default, "orthogonal",
      "conv_orthogonal") times the given mask, or a uniformly random one.
    - "ai": approximate isometry on such a mask, from the `reference` "orthogonal".
      `method`, `num_steps`, `step_size` as in `approximate_isometry`: "sgd" and 10000
      steps, the published ones, or "adam".
    - "sao": dense orthogonal blocks on random columns, for square dense kernels and
      for convolutions, there at the centre tap and trained at all taps; others stay
      dense. `degree` (else the density must give a legal one), `relu`.
    - "orthogonal", "delta_orthogonal", "conv_orthogonal": dense; the density is not
      used.

  Blocks of one shape, of any leaves, are started together in one compiled call; masks
  are drawn on the host. Convolutions are read as stride 1, but where stride = window
  (the layout then has no window: the whole patch is one matrix). Grouped ones are
  started group by group: depthwise kernels keep every channel isometric.

  Args:
    key: a PRNG key; it is consumed. What a layer gets depends on the key, its name
      and its shape alone, not on the rest of the tree.
    params: tree of arrays. Kernels are replaced, other leaves are kept.
    densities_or_masks: a density for all kernels, in `(0, 1]`; or a tree like
      `params` of densities (arrays `[layers]` for stacked leaves), or of masks (bool,
      True = trained), None = dense leaf, which is left as it is.
    start: name of the start.
    scale: gain `sigma_w` of the kernels.
    options: options of the start by name.
    layouts: how leaves are read; None = by shape (`kernel_layouts`), where a leaf in
      doubt is an error. A leaf that is given None in a tree needs no layout.

  Returns:
    `(params, masks)`: the kernels in their start, zero off the mask; and the masks, a
    tree like `params` with None where a leaf is dense. Under "eoi", "eoi_in_mask",
    "base" and "ai" every layer has exactly `round(density * size)` trained weights.

  Raises:
    ValueError: if `start` or an option is unknown, structures differ, a leaf is in
      doubt or not of a real floating dtype of at least 16 bits, or a density is out of
      the range of its kernel; the leaf is named.

  Example:
    >>> dense = {"kernel": jnp.ones((16, 16)), "bias": jnp.zeros(16)}
    >>> params, masks = sparsify(jax.random.key(0), dense, 0.25)
    >>> int(masks["kernel"].sum()), masks["bias"] is None
    (64, True)

  Reference: Nowak et al., 2024, arXiv:2406.01755, section 5.
  """
  if start not in STARTS:
    raise ValueError(f"`start` must be one of {tuple(STARTS)}, got {start!r}.")
  run, known = STARTS[start]
  options = dict(options or {})
  for name in options:
    if name not in known:
      raise ValueError(
        f"`options` of start {start!r} must be among {known}, got {name!r}."
      )
  scale = _checks.number("scale", scale)
  given = _given_masks(params, densities_or_masks, layouts)
  if given is None:
    counts = kernel_counts(params, densities_or_masks, layouts)
  else:
    counts = {n: (k, _known_counts(k, mask)) for n, (k, mask) in given.items()}
  data = _keys.key_data(key)
  key_values, key_masks = _keys.fold_in(data, 0), _keys.fold_in(data, 1)
  stacks: dict[Any, list[str]] = {}
  for name, (kernel, _) in counts.items():
    _check_dtype(kernel)
    kind = (kernel.block_shape, kernel.leaf.dtype, kernel.groups)
    stacks.setdefault(kind, []).append(name)
  values, masks = {}, {}
  for (shape, dtype, _), names in stacks.items():
    kernels = [counts[name][0] for name in names]
    budgets = [_block_counts(*counts[name]) for name in names]
    stack = Stack(
      names=tuple(k.name for k in kernels for _ in range(k.num_blocks)),
      shape=shape,
      dtype=dtype,
      keys=_keys.block_keys(key_values, kernels),
      mask_keys=_keys.block_keys(key_masks, kernels),
      budgets=None if any(b is None for b in budgets) else np.concatenate(budgets),
      masks=given and _join([k.to_blocks(on_host(given[k.name][1])) for k in kernels]),
    )
    new, live = map(on_host, run(stack, scale, **options))
    ends = np.cumsum([kernel.num_blocks for kernel in kernels]).tolist()
    for kernel, end in zip(kernels, ends, strict=True):
      rows = slice(end - kernel.num_blocks, end)
      values[kernel.name] = kernel.from_blocks(new[rows])
      if live is not None:
        masks[kernel.name] = kernel.from_blocks(live[rows])
  kernels = [kernel for kernel, _ in counts.values()]
  return (
    _trees.fill_tree(params, place_like(values, kernels), keep=True),
    _trees.fill_tree(params, place_like(masks, kernels)),
  )


def _given_masks(params: Any, tree: Any, layouts) -> dict[str, Any] | None:
  """Kernels and their masks by name, or None if the tree holds densities."""
  leaves = jax.tree.leaves(tree)
  if not leaves or not all(jnp.result_type(x) == jnp.bool_ for x in leaves):
    return None
  check_masks(params, tree)
  return given_kernels(params, tree, layouts, "masks")


def _known_counts(kernel: Kernel, mask: Any) -> np.ndarray | None:
  return None if isinstance(mask, jax.core.Tracer) else live_counts(kernel, mask)


def _block_counts(kernel: Kernel, counts: np.ndarray | None) -> np.ndarray | None:
  """Shares the trained weights of each layer out to its groups, evenly.

  Returns:
    Integers `[num_blocks]`; groups of a layer differ by at most one.
  """
  if counts is None:
    return None
  groups = kernel.groups
  shares = (counts[:, None] + groups - 1 - np.arange(groups)) // groups
  return shares.ravel()


def _check_dtype(kernel: Kernel) -> None:
  dtype = jnp.dtype(kernel.leaf.dtype)
  if not jnp.issubdtype(dtype, jnp.floating) or dtype.itemsize < 2:
    raise ValueError(
      f"kernel {kernel.name!r} must have a real floating dtype of at least 16 bits, "
      f"got {dtype}."
    )


def _join(parts: list[Any]) -> Any:
  if len(parts) == 1:
    return parts[0]
  traced = any(isinstance(part, jax.core.Tracer) for part in parts)
  return (jnp if traced else np).concatenate(parts)
