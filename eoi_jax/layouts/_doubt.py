"""The error for leaves in doubt, with the line to write."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

LETTERS = "i input, o output, w window, s stack of layers or experts"
LINE = "layouts=kernel_layouts(params, {})"  # to write, with {} for the table
# What arrays of a rank often are, for the error.
_OFTEN = {
  2: '"io", "oi" of PyTorch and Equinox',
  3: '"sio" layers or experts, "ioo" query, key or value, "iio" output of attention, '
  '"wio" or "oiw" a convolution',
  4: '"wwio" or "oiww" a convolution, "iiio" patches, "ssio" layers of experts, "sioo" '
  'or "siio" layers of attention',
  5: '"wwwio" or "oiwww" a convolution, "swwio" or "soiww" layers of convolutions',
}


def in_doubt(
  doubts: Mapping[str, str],
  leaves: Mapping[str, Any],
  reasons: Mapping[str, str],
  line: str,
) -> str:
  """The error that names leaves in doubt and shows the line to write."""
  shown = list(doubts)[:8]
  shapes = {name: tuple(jnp.shape(leaves[name])) for name in shown}
  why = {name: f" ({reason})" for name, reason in reasons.items()}
  named = ", ".join(f"{n!r} {shape}{why.get(n, '')}" for n, shape in shapes.items())
  entries = ", ".join(f"{json.dumps(n)}: {doubts[n]}" for n in shown)
  more = f" and {len(doubts) - len(shown)} more" if len(doubts) > len(shown) else ""
  ranks = sorted({len(shape) for shape in shapes.values()} & _OFTEN.keys())
  often = "".join(f"; of rank {rank} often {_OFTEN[rank]}" for rank in ranks)
  argument = "layouts" if "kernel_layouts" in line else "table"
  read = (
    ", or read them off a Flax model: `linen_layouts(model, inputs)`, "
    "`nnx_layouts(module)`"
  )
  return (
    f"`{argument}` must say how each array is read where its shape does not tell: in "
    f"doubt {'is' if len(doubts) == 1 else 'are'} {named}{more}. One letter an axis "
    f"({LETTERS}; None = no kernel{often}), for example "
    f"`{line.format('{' + entries + '}')}`{read if argument == 'layouts' else ''}."
  )
