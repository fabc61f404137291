"""Imports point one way: eoi_jax < train, and no module back to its user."""

import ast
import graphlib
import pathlib
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
LIBRARY = {"chex", "jax", "numpy", "optax", "scipy"}
# Slow to import or optional: at the place of use, not at start-up.
LAZY = {
  *("PIL", "grain", "matplotlib", "orbax", "safetensors", "scipy", "sklearn"),
  *("tensorboardX", "tensorflow_datasets", "wandb"),
}
# Modules that derive from a class of such a package: themselves imported where used.
LATE = {"train.data.tiny_imagenet", "eoi_jax.blocks.linen", "eoi_jax.blocks.nnx"}


def _modules(package):
  """Dotted name to syntax tree of every module of a package."""
  trees = {}
  for path in sorted((ROOT / package).rglob("*.py")):
    parts = path.relative_to(ROOT).with_suffix("").parts
    name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    trees[name] = ast.parse(path.read_text())
  return trees


def _imports(node, *, known=()):
  """Absolute names of what a syntax tree imports, anywhere in it.

  `from a import b` is `a.b` where that is one of the `known` modules, else `a`.
  """
  for child in ast.walk(node):
    if isinstance(child, ast.Import):
      yield from (alias.name for alias in child.names)
    elif isinstance(child, ast.ImportFrom):
      assert child.level == 0, f"relative import in line {child.lineno}"
      for alias in child.names:
        name = f"{child.module}.{alias.name}"
        yield name if name in known else child.module


def _roots(names):
  return {name.partition(".")[0] for name in names} - sys.stdlib_module_names


def _at_start_up(tree):
  """Imports of the module body, bodies of functions left out of the tree."""
  for node in ast.walk(tree):
    if isinstance(node, ast.FunctionDef):
      node.body = []
  return set(_imports(tree))


@pytest.mark.parametrize(
  ("package", "allowed"),
  [
    ("eoi_jax", LIBRARY | {"eoi_jax", "flax"}),  # flax where its modules are read
    ("configs", {"configs", "ml_collections", "train"}),
  ],
)
def test_imports_nothing_else(package, allowed):
  trees = _modules(package)
  assert trees
  used = {name: _roots(_imports(tree)) - allowed for name, tree in trees.items()}
  assert not {name: roots for name, roots in used.items() if roots}


@pytest.mark.slow
def test_train_does_not_import_its_callers():
  for name, tree in _modules("train").items():
    assert not _roots(_imports(tree)) & {"configs", "tests"}, name


@pytest.mark.slow
@pytest.mark.parametrize("package", ["eoi_jax", "train"])
def test_heavy_packages_wait_for_their_use(package):
  for name, tree in _modules(package).items():
    names = _at_start_up(tree)
    assert not names & LATE, name
    assert name in LATE or not _roots(names) & LAZY, name
    assert name in LATE or package == "train" or "flax" not in _roots(names), name


@pytest.mark.slow
@pytest.mark.parametrize("package", ["eoi_jax", "train", "configs"])
def test_modules_form_no_cycle(package):
  trees = _modules(package)
  inner = {
    name: {n for n in _imports(tree, known=trees) if n in trees}
    for name, tree in trees.items()
  }
  order = list(graphlib.TopologicalSorter(inner).static_order())
  assert sorted(order) == sorted(trees)
