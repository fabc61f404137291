"""What a network says of its kernels, in the form that `eoi_jax` takes.

The one place that knows how: everything else in `train` calls `with_layouts`,
`find_kernels` and `exact_densities`.
"""

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

import eoi_jax


def with_layouts(
  function: Callable[..., Any], model: Any, *, copies: Any = None
) -> Callable[..., Any]:
  """Tells a function of `eoi_jax` which leaves are kernels, and how to read them.

  Args:
    function: takes `layouts=`, as every function that looks at kernels does.
    model: a network of `train.models`.
    copies: dict of the parameters of several such networks, if `function` is called
      with it instead of those of one.

  Returns:
    The function with these keywords filled in.
  """
  parameters = inspect.signature(function).parameters
  if "layouts" in parameters:
    layouts = model.layouts
    if copies is not None:
      table = {f"*/{name}": layout for name, layout in layouts.items()}
      layouts = eoi_jax.kernel_layouts(copies, table)  # pyright: ignore
    return functools.partial(function, layouts=layouts)
  # Until the library has `layouts`: predicates on the names of the leaves.
  options = {}
  for keyword in ("is_kernel", "is_stacked"):
    if keyword in parameters:
      predicate = getattr(model, keyword)
      options[keyword] = predicate if copies is None else _below(predicate)
  return functools.partial(function, **options)


def _below(predicate: Callable[[str, Any], bool]) -> Callable[[str, Any], bool]:
  return lambda name, leaf: predicate(name.partition("/")[2], leaf)


class Kernel(NamedTuple):
  """A kernel leaf: `count` kernels of one shape, all sparse or all dense.

  Attributes:
    leaf: the array, or its shape and type.
    shape: `(*window, in, out)` of one kernel.
    count: number of kernels in the leaf.
  """

  leaf: Any
  shape: tuple[int, ...]
  count: int

  @property
  def size(self) -> int:
    """Number of weights of one kernel."""
    return math.prod(self.shape)

  @property
  def floor(self) -> float:
    """Lowest density with an orthogonal start."""
    return min(self.shape[-2:]) / self.size


def find_kernels(params: Any, model: Any) -> dict[str, Kernel]:
  """Returns all kernels of a network by name, those that stay dense, too."""
  sparse = {}
  if (layouts := getattr(model, "layouts", None)) is not None:
    bound = eoi_jax.layouts.find_kernels(params, layouts)  # pyright: ignore
    sparse = {n: Kernel(k.leaf, k.layer_shape, k.num_layers) for n, k in bound.items()}
  found = {}
  for name, leaf in named_leaves(params).items():
    stacked = name not in sparse and model.is_stacked(name, leaf)
    shape = tuple(leaf.shape[1:] if stacked else leaf.shape)
    if name in sparse:
      found[name] = sparse[name]
    elif name.rpartition("/")[2] == "kernel" and len(shape) >= 2:
      found[name] = Kernel(leaf, shape, leaf.shape[0] if stacked else 1)
  return found


def exact_densities(
  params: Any, densities: Any, density: float, model: Any, *, floors: str = "ignore"
) -> Any:
  """Returns densities whose numbers of weights add up to `density` exactly.

  Args:
    params: the parameters, or their shapes.
    densities: tree like `params`, None = dense leaf.
    density: of all kernels together.
    model: the network.
    floors: for kernels with too few weights for an orthogonal start: "ignore", "error",
      or "lift" them at the cost of the others.
  """
  if floors == "lift" and '"lift"' not in (inspect.getdoc(eoi_jax.budgets) or ""):
    floors = "raise"  # its name before `layouts`
  budgets = with_layouts(eoi_jax.budgets, model)
  counts = budgets(params, densities, density=density, floors=floors)
  return with_layouts(eoi_jax.densities_from_budgets, model)(params, counts)


def named_leaves(tree: Any) -> dict[str, Any]:
  """Returns the leaves of a tree by name, "hidden/dense/kernel"; None is a leaf."""
  leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: x is None)
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): leaf
    for path, leaf in leaves
  }
