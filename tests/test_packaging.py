"""What lands in a site-packages folder: `eoi_jax` and nothing else."""

import email
import os
import pathlib
import re
import subprocess
import sys
import tarfile
import zipfile

import pytest

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope="module")
def dist(tmp_path_factory):
  """A folder with the wheel and the source archive, built without network."""
  folder = tmp_path_factory.mktemp("dist")
  command = [sys.executable, "-m", "hatchling", "build", "-d", str(folder)]
  subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
  return folder


@pytest.fixture(scope="module")
def wheel(dist):
  (path,) = dist.glob("*.whl")
  with zipfile.ZipFile(path) as archive:
    yield archive


@pytest.fixture(scope="module")
def metadata(wheel):
  (name,) = [n for n in wheel.namelist() if n.endswith(".dist-info/METADATA")]
  return email.message_from_bytes(wheel.read(name))


def _library_files():
  files = (ROOT / "eoi_jax").rglob("*")
  keep = (f for f in files if f.is_file() and "__pycache__" not in f.parts)
  return {f.relative_to(ROOT).as_posix() for f in keep}


def test_wheel_carries_the_library_alone(wheel):
  names = [n for n in wheel.namelist() if ".dist-info/" not in n]
  assert sorted(names) == sorted(_library_files())
  assert "eoi_jax/py.typed" in names


def test_wheel_carries_the_licence(wheel):
  (name,) = [n for n in wheel.namelist() if n.endswith("/licenses/LICENSE")]
  assert wheel.read(name) == (ROOT / "LICENSE").read_bytes()


def test_sdist_builds_the_same_library(dist):
  (path,) = dist.glob("*.tar.gz")
  with tarfile.open(path) as archive:
    names = {n.partition("/")[2] for n in archive.getnames()}
  extra = {n for n in names if not n.startswith("eoi_jax/")}
  assert names - extra == _library_files()
  assert extra == {
    ".gitignore",
    "CHANGELOG.md",
    "LICENSE",
    "PKG-INFO",
    "README.md",
    "pyproject.toml",
  }


def test_library_needs_no_framework(metadata):
  needs = metadata.get_all("Requires-Dist")
  core = {re.match(r"[\w-]+", n)[0] for n in needs if "extra ==" not in n}
  assert core == {"chex", "jax", "jaxlib", "numpy", "optax", "scipy"}
  assert {"train", "test", "docs", "lint"} <= set(metadata.get_all("Provides-Extra"))


def test_every_requirement_is_locked(metadata):
  lines = (ROOT / "constraints.txt").read_text().splitlines()
  assert all("==" in line for line in lines)
  locked = {_canonical(line.partition("==")[0]) for line in lines}
  names = (re.match(r"[\w.-]+", n)[0] for n in metadata.get_all("Requires-Dist"))
  assert {_canonical(name) for name in names} <= locked


def _canonical(name):
  return re.sub(r"[-_.]+", "-", name).lower()


def test_changelog_opens_with_the_version(metadata):
  changelog = (ROOT / "CHANGELOG.md").read_text()
  latest = re.search(r"^## (\S+)", changelog, re.MULTILINE)[1]
  assert latest == metadata["Version"]


@pytest.mark.slow
def test_wheel_works_outside_the_checkout(dist, tmp_path):
  """Installed from the wheel, without a framework: imports, samples, trains."""
  (path,) = dist.glob("*.whl")
  target = tmp_path / "site-packages"
  options = ("--quiet", "--no-deps", "--no-index", "--target", str(target))
  pip = [sys.executable, "-m", "pip", "install", *options, str(path)]
  subprocess.run(pip, cwd=tmp_path, check=True, capture_output=True)
  program = """
import importlib.metadata, inspect, sys
import eoi_jax, jax, jax.numpy as jnp, optax
assert eoi_jax.__file__.startswith(sys.argv[1]), eoi_jax.__file__
assert importlib.metadata.version("eoi_jax") == eoi_jax.__version__
for space in [eoi_jax, *filter(inspect.ismodule, vars(eoi_jax).values())]:
  assert all(hasattr(space, name) for name in getattr(space, "__all__", ()))
params, masks = eoi_jax.sparsify(jax.random.key(0), [jnp.zeros((8, 8))], 0.25)
tx = eoi_jax.static_sparsity(optax.sgd(0.1), masks)
updates, _ = tx.update([jnp.ones((8, 8))], tx.init(params), params)
assert int((updates[0] != 0).sum()) == 16
assert not {"flax", "equinox", "haiku", "train"} & set(sys.modules)
"""
  subprocess.run(
    [sys.executable, "-W", "error", "-c", program, str(target)],
    cwd=tmp_path,
    env={**os.environ, "PYTHONPATH": str(target), "JAX_PLATFORMS": "cpu"},
    check=True,
  )
