"""Arrays whose types say how they lie on a mesh: explicit shardings, manual axes."""

from collections.abc import Callable
from typing import Any

import jax


def varying(aval: Any) -> frozenset[str]:
  """Axes of a `jax.shard_map` over which an array of this type varies."""
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


def replicate(tree: Any) -> Any:
  """Arrays of an explicit mesh whole on every device; others as they are.

  Reshapes and products of explicitly sharded arrays need to be told a sharding.
  """

  def whole(array):
    mesh = jax.typeof(array).sharding.mesh
    if not mesh.explicit_axes:
      return array
    return jax.sharding.reshard(array, jax.NamedSharding(mesh, jax.P()))

  return jax.tree.map(whole, tree)


def partitioned(function: Callable, spec: jax.P, *operands: Any) -> Any:
  """Calls a function of explicitly sharded arrays; the partitioner sees to the rest.

  Args:
    function: of the operands.
    spec: sharding of its result.
    operands: trees of arrays.

  Returns:
    The result, explicitly sharded if an operand is, or the mesh of the context.
  """
  meshes = [jax.typeof(leaf).sharding.mesh for leaf in jax.tree.leaves(operands)]
  meshes.append(jax.sharding.get_abstract_mesh())
  mesh = next((mesh for mesh in meshes if mesh.explicit_axes), None)
  if mesh is None:
    return function(*operands)
  options = {"axes": mesh.explicit_axes, "out_sharding": jax.NamedSharding(mesh, spec)}
  return jax.sharding.auto_axes(function, **options)(*operands)
