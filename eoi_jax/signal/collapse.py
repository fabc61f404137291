"""Layer collapse by name: layers without a weight, and paths that are cut.

A global mask can leave a layer without a weight, or with weights none of which lies on
a path from an input to an output. Such a network trains its biases, at best; better
to hear of it, with the names, before the first step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from eoi_jax import _kernels as kernels_lib
from eoi_jax._kernels import Kernel, LeafPredicate
from eoi_jax.masks._scoring import ApplyFn
from eoi_jax.signal.connectivity import effective_masks

# How many names a message lists.
_MAX_NAMES = 8


class Collapse(NamedTuple):
  """Layers that a mask has put out of use, by name; all empty if none.

  A layer of a stacked leaf is called `name[layer]`.

  Attributes:
    empty: layers without a trained weight.
    cut: layers with weights, none of which lies on a path from input to output.
    disconnected: whether no path leads from any input to any output.
    message: one line that says all that, or "" if nothing has collapsed.
  """

  empty: tuple[str, ...]
  cut: tuple[str, ...]
  disconnected: bool
  message: str


def find_collapse(
  apply_fn: ApplyFn,
  params: Any,
  masks: Any,
  input_shape: Sequence[int],
  *,
  is_kernel: LeafPredicate = kernels_lib.is_kernel,
  is_stacked: LeafPredicate = kernels_lib.never_stacked,
) -> Collapse:
  """Finds the layers that a mask has put out of use.

  Args:
    apply_fn: `(params, inputs) -> logits`, in evaluation mode.
    params: tree of arrays; only shapes, dtypes and names matter.
    masks: tree like `params`: bool leaves, True = trained; None = dense leaf.
    input_shape: shape of the inputs, with a batch of one.
    is_kernel: `(name, leaf) -> bool`, which leaves are kernels.
    is_stacked: `(name, leaf) -> bool`, which kernels have a leading axis of layers.

  Returns:
    A `Collapse`; its `message` is "" if every layer is in use.

  Raises:
    ValueError: if the masks do not fit, or the logits do not depend on the inputs.

  Example:
    >>> import jax.numpy as jnp
    >>> params = {"a": {"kernel": jnp.ones((2, 2))}, "b": {"kernel": jnp.ones((2, 2))}}
    >>> apply_fn = lambda p, x: jnp.tanh(x @ p["a"]["kernel"]) @ p["b"]["kernel"]
    >>> to_unit_0 = jnp.array([[True, False], [True, False]])
    >>> masks = {"a": {"kernel": to_unit_0}, "b": {"kernel": to_unit_0}}
    >>> find_collapse(apply_fn, params, masks, (1, 2)).message
    ''
    >>> from_unit_1 = jnp.array([[False, False], [True, False]])
    >>> masks = {"a": {"kernel": to_unit_0}, "b": {"kernel": from_unit_1}}
    >>> find_collapse(apply_fn, params, masks, (1, 2)).message
    'no path from input to output; no weight on a path: a/kernel, b/kernel'
  """
  kernels = kernels_lib.find_kernels(params, is_kernel=is_kernel, is_stacked=is_stacked)
  effective = effective_masks(
    apply_fn,
    params,
    masks,
    tuple(input_shape),
    is_kernel=is_kernel,
    is_stacked=is_stacked,
  )
  trained = kernels_lib.named_leaves(masks)
  on_path = kernels_lib.named_leaves(effective)
  empty, cut = [], []
  for name, kernel in kernels.items():
    used = _any_per_layer(kernel, on_path[name])
    mask = trained[name]
    alive = np.ones_like(used) if mask is None else _any_per_layer(kernel, mask)
    for layer in np.flatnonzero(~used):
      title = f"{name}[{layer}]" if kernel.stacked else name
      (cut if alive[layer] else empty).append(title)
  disconnected = not any(
    bool(np.any(leaf)) for leaf in on_path.values() if leaf is not None
  )
  return Collapse(
    tuple(empty), tuple(cut), disconnected, _message(empty, cut, disconnected)
  )


def _any_per_layer(kernel: Kernel, mask: Any) -> np.ndarray:
  """Whether each layer of a kernel has a True entry, `[num_layers]`."""
  layers = np.asarray(mask).reshape(kernel.num_layers, -1)
  return np.asarray(layers.any(axis=1))


def _message(empty: list[str], cut: list[str], disconnected: bool) -> str:
  parts = ["no path from input to output"] if disconnected else []
  for rule, names in (("no weight", empty), ("no weight on a path", cut)):
    if names:
      more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
      parts.append(f"{rule}: {', '.join(names[:_MAX_NAMES])}{more}")
  return "; ".join(parts)
