"""One door from a dense tree to a sparse start: `sparsify`."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from eoi_jax import _blocks as blocks_lib
from eoi_jax import _checks as checks
from eoi_jax import _kernels as kernels_lib
from eoi_jax._blocks import GroupCount, Layout
from eoi_jax._kernels import Kernel, LeafPredicate
from eoi_jax.initializers import _starts as starts_lib
from eoi_jax.masks import trees as masks_lib

STARTS = tuple(starts_lib.STARTS)


def sparsify(
  key: jax.Array,
  params: Any,
  densities_or_masks: Any,
  *,
  start: str = "eoi",
  scale: float = 1.0,
  options: Mapping[str, Any] | None = None,
  is_kernel: LeafPredicate = kernels_lib.is_kernel,
  is_stacked: LeafPredicate = kernels_lib.never_stacked,
  num_groups: GroupCount = blocks_lib.depthwise_groups,
  is_patches: LeafPredicate = blocks_lib.never_patches,
) -> tuple[Any, Any]:
  """Gives every kernel of a tree a sparse start and its mask.

  The starts, with their options:

    - "eoi": exact orthogonal initialization. Of masks only the number of trained
      weights per layer is kept, the support is drawn anew. `center`, `angle`,
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

  Kernels of one shape, of any leaves, are started together in one compiled call.
  Convolutions are read as stride 1. Grouped ones are started group by group:
  depthwise kernels keep every channel isometric. Where stride = window the whole
  window is one matrix, if `is_patches` says so. A leaf that is not named like a
  kernel, such as an embedding, stays dense unless `is_kernel` takes it.

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
    is_kernel: `(name, leaf) -> bool`, which leaves are kernels.
    is_stacked: `(name, leaf) -> bool`, which kernels have a leading axis of layers.
    num_groups: `(name, leaf) -> int`, groups of a convolution, whose kernel is
      `(*window, in / groups, out)`; `leaf` has the shape of one layer. By default a
      window over one input channel is depthwise, anything else is not grouped.
    is_patches: `(name, leaf) -> bool`, which convolutions have stride = window and
      "VALID" padding.

  Returns:
    `(params, masks)`: the kernels in their start, zero off the mask; and the masks, a
    tree like `params` with None where a leaf is dense. Under "eoi", "eoi_in_mask",
    "base" and "ai" every layer has exactly `round(density * size)` trained weights.

  Raises:
    ValueError: if `start` or an option is unknown, structures differ, or a density is
      out of the range of its kernel; the leaf is named.

  Example:
    >>> dense = {"kernel": jnp.ones((16, 16)), "bias": jnp.zeros(16)}
    >>> params, masks = sparsify(jax.random.key(0), dense, 0.25)
    >>> int(masks["kernel"].sum()), masks["bias"] is None
    (64, True)

  Reference: Nowak et al., 2024, arXiv:2406.01755, section 5.
  """
  run, options = _check_start(start, options)
  scale = checks.number("scale", scale)
  kernels = kernels_lib.find_kernels(params, is_kernel=is_kernel, is_stacked=is_stacked)
  given = _given_masks(kernels, params, densities_or_masks)
  if given is None:
    counts = _counts(kernels, params, densities_or_masks)
  else:
    counts = {
      n: None
      if isinstance(m, jax.core.Tracer)
      else masks_lib.live_counts(kernels[n], m)
      for n, m in given.items()
    }
  kernels = {name: kernel for name, kernel in kernels.items() if name in counts}
  layouts = blocks_lib.find_layouts(
    kernels, num_groups=num_groups, is_patches=is_patches
  )
  values, masks = {}, {}
  for stack, members in _stacks(key, layouts, counts, given):
    new, live = run(stack, scale, **options)
    first = 0
    for layout in members:
      name, rows = layout.kernel.name, slice(first, first + layout.num_blocks)
      values[name] = blocks_lib.join(layout, new[rows])
      masks[name] = None if live is None else blocks_lib.join(layout, live[rows])
      first += layout.num_blocks
  return (
    kernels_lib.fill_tree(params, values, keep=True),
    kernels_lib.fill_tree(params, masks),
  )


def _check_start(start: str, options: Mapping[str, Any] | None):
  """The function of a start and its options, known by name."""
  if start not in STARTS:
    raise ValueError(f"`start` must be one of {STARTS}, got {start!r}.")
  run = starts_lib.STARTS[start]
  parameters = inspect.signature(run).parameters.values()
  known = tuple(p.name for p in parameters if p.kind is p.KEYWORD_ONLY)
  for name in options or {}:
    if name not in known:
      raise ValueError(
        f"`options` of start {start!r} must be among {known}, got {name!r}."
      )
  return run, dict(options or {})


def _given_masks(kernels: dict[str, Kernel], params: Any, tree: Any):
  """Masks by name, or None if the tree holds densities."""
  leaves = jax.tree.leaves(tree)
  if not leaves or not all(jnp.asarray(x).dtype == jnp.bool_ for x in leaves):
    return None
  masks = masks_lib.check_masks(params, tree)
  for name, mask in masks.items():
    if mask is not None and name not in kernels:
      raise ValueError(f"`masks` must be None for {name!r}, which is no kernel.")
  return {name: mask for name, mask in masks.items() if mask is not None}


def _counts(kernels: dict[str, Kernel], params: Any, densities: Any):
  """Trained weights of every layer of every kernel that is given a density."""
  by_name = kernels_lib.kernel_densities(kernels, params, densities)
  return {n: masks_lib.layer_counts(kernels[n], d) for n, d in by_name.items()}


def _stacks(key, layouts: dict[str, Layout], counts, masks):
  """Stacks of equal blocks, each with the layouts that they come from, in order."""
  key_values, key_masks = jax.random.split(key)
  groups: dict[Any, list[Layout]] = {}
  for layout in layouts.values():
    groups.setdefault((layout.shape, layout.kernel.leaf.dtype), []).append(layout)
  for (shape, dtype), members in groups.items():
    names = [layout.kernel.name for layout in members]
    budgets = [
      blocks_lib.block_counts(layout, counts[n])
      for n, layout in zip(names, members, strict=True)
      if counts[n] is not None
    ]
    live = None
    if masks is not None:
      live = jnp.concatenate(
        [blocks_lib.split(m, masks[n]) for n, m in zip(names, members, strict=True)]
      )
    yield (
      starts_lib.Stack(
        names=tuple(
          n for n, m in zip(names, members, strict=True) for _ in range(m.num_blocks)
        ),
        shape=shape,
        dtype=dtype,
        keys=blocks_lib.block_keys(key_values, members),
        mask_keys=blocks_lib.block_keys(key_masks, members),
        budgets=np.concatenate(budgets) if len(budgets) == len(names) else None,
        masks=live,
      ),
      members,
    )
