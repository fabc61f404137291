"""Arrays inside `jax.shard_map`: each varies over some of the mesh's manual axes."""

from __future__ import annotations

from typing import Any

import jax


def varying(aval: Any) -> frozenset[str]:
  """Manual axes over which an array of this type varies."""
  mark = getattr(aval, "manual_axis_type", None)  # `vma` in jax 0.10 and before
  return mark.varying if mark is not None else getattr(aval, "vma", frozenset())


def vary_alike(tree: Any, *others: Any) -> Any:
  """The tree, whose arrays vary over all axes that any array of it or others does.

  A derivative by an array is the sum over the devices that it does not vary over.
  """
  leaves, treedef = jax.tree.flatten(tree)
  own = [varying(jax.typeof(leaf)) for leaf in leaves]
  axes = frozenset().union(*own)
  axes = axes.union(*(varying(jax.typeof(leaf)) for leaf in jax.tree.leaves(others)))
  return treedef.unflatten(
    jax.lax.pcast(leaf, tuple(sorted(axes - mine)), to="varying")
    if axes - mine
    else leaf
    for leaf, mine in zip(leaves, own, strict=True)
  )
