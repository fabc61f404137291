"""Every notebook runs from a clean kernel, shows pictures, uses the public API only."""

import ast
import functools
import pathlib
import re
import warnings

import documents
import nbformat
import pytest

import eoi_jax

ROOT = pathlib.Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
NAMES = ["01_quickstart", "02_signal_propagation", "03_your_own_network"]
PACKAGES = {"eoi_jax", "flax", "jax", "matplotlib", "numpy", "optax", "sklearn"}
STANDARD = {"functools", "itertools", "math"}
TRAINING = {"01_quickstart", "03_your_own_network"}

LAYERS = {"eoi_jax.blocks.linen", "eoi_jax.blocks.nnx"}  # they import Flax
NAMESPACES = [n for n, m in vars(eoi_jax).items() if hasattr(m, "__all__")]


def _num_pictures(outputs):
  return sum("image/png" in out.get("data", {}) for out in outputs)


def _sources(notebook):
  return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


def test_the_notebooks_are_there():
  stems = [path.stem for path in NOTEBOOKS]
  assert stems == [*NAMES, "04_density_allocation"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_committed_with_the_outputs_of_one_clean_run(path):
  """A reader sees the figures; nothing in them tells of the machine they are from."""
  notebook = nbformat.read(path, as_version=4)
  cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
  assert [c.execution_count for c in cells] == [*range(1, len(cells) + 1)]
  outputs = [out for cell in cells for out in cell.outputs]
  assert _num_pictures(outputs) >= 1
  for out in outputs:
    text = out.get("text", "") + out.get("data", {}).get("text/plain", "")
    assert out.get("name") != "stderr" and not re.search(r"/\w+/\w+/", text), text
  assert path.stat().st_size < 200_000


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_uses_the_public_api_only(path):
  tree = ast.parse("\n".join(_sources(nbformat.read(path, as_version=4))))
  imported = set()
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      imported |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      imported.add(node.module)
  assert "eoi_jax" in imported
  assert not any(name.startswith("eoi_jax.") for name in imported - LAYERS)
  assert {name.partition(".")[0] for name in imported} <= PACKAGES | STANDARD
  for node in ast.walk(tree):
    if isinstance(node, ast.Attribute):
      names = ast.unparse(node.value).split(".")
      if names in (["eoi_jax"], *(["eoi_jax", space] for space in NAMESPACES)):
        module = functools.reduce(getattr, names[1:], eoi_jax)
        assert node.attr in module.__all__, ast.unparse(node)


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_from_a_clean_kernel(path, tmp_path, monkeypatch):
  monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
  monkeypatch.setenv("JAX_PLATFORMS", "cpu")
  if path.stem in TRAINING:  # they compute for longer than they compile
    for name, value in documents.as_for_users().items():
      monkeypatch.setenv(name, value)
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of the machinery that runs notebooks
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
      notebook,
      timeout=120,
      kernel_name="python3",
      resources={"metadata": {"path": ROOT}},
    )
    client.execute()
  outputs = [out for cell in notebook.cells for out in cell.get("outputs", [])]
  assert _num_pictures(outputs) >= 1
  said = [out.text for out in outputs if out.get("name") == "stderr"]
  assert not said, said
