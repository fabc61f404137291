"""Sweeps as data: grids of configs, their names, and what may be wrong with them."""

import importlib
import pathlib

import pytest

from configs import sweeps
from train.analysis.dry_run import list_kernels
from train.core.console import UserError
from train.sweeps import grid

ROOT = pathlib.Path(__file__).parents[2]
FOLDER = pathlib.Path(sweeps.__file__).parent
NAMES = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "__init__")
INSPECTED = set()  # sweeps share networks

BASE = '''"""Tiny nets on the digits."""
from configs import quickstart
from configs.sweeps import schemes


def get_config(variant=""):
  config = quickstart.get_config("smoke")
  config.compare.field, config.compare.choices = "", ()
  config.seeds = (0, 1)
  return config


'''
AXES = """def get_axes(variant=""):
  return {
    "sparsity.density": (0.25, 0.5),
    "scheme": schemes("uniform-eoi", "erk-base", "sao", "dense"),
  }
"""


@pytest.fixture
def file(tmp_path):
  path = tmp_path / "tiny.py"
  path.write_text(BASE + AXES)
  return str(path)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_sweep_and_variant_holds_valid_configs(name):
  module = importlib.import_module(f"configs.sweeps.{name}")
  assert f"--config configs/sweeps/{name}.py:cpu" in module.__doc__
  assert list(module.VARIANTS) == ["cpu", "smoke"]
  for variant in ("", *module.VARIANTS):
    value = f"{FOLDER / name}.py:{variant}" if variant else f"{FOLDER / name}.py"
    loaded = grid.load_sweep(value)
    assert len(loaded.cells) >= 2 and len(loaded.title) <= 88
    if variant:
      assert f"`:{variant}`" in module.__doc__
    (config, *_) = [
      cell.config for cell in loaded.cells if cell.config.sparsity.start == "eoi"
    ]
    network = (config.model.name, config.model.depth, config.model.width)
    if network not in INSPECTED:
      INSPECTED.add(network)
      layers = list_kernels(config)
      assert 0 < layers.live < layers.total


def test_a_grid_is_expanded_in_order(file):
  loaded = grid.load_sweep(file)
  assert loaded.title == "Tiny nets on the digits"
  assert loaded.axes == {
    "density": ["0.25", "0.5"],
    "scheme": ["uniform-eoi", "erk-base", "sao", "dense"],
  }
  assert loaded.fields == {
    "sparsity.density",
    "sparsity.distribution",
    "sparsity.start",
  }
  paths = [cell.path for cell in loaded.cells]
  assert paths[:2] == ["density=0.25/uniform-eoi", "density=0.25/erk-base"]
  assert paths[3] == paths[7] == "density=0.25/dense"  # its density is 1 in both
  for cell in loaded.cells[4:6]:
    sparsity = cell.config.sparsity
    assert (cell.labels["density"], sparsity.density) == ("0.5", 0.5)
    assert cell.labels["scheme"] == f"{sparsity.distribution}-{sparsity.start}"


def test_seeds_one_by_one(file):
  loaded = grid.load_sweep(file, one_by_one=True)
  assert len(loaded.cells) == 16
  assert [cell.path for cell in loaded.cells[:2]] == [
    "density=0.25/uniform-eoi/seed=0",
    "density=0.25/uniform-eoi/seed=1",
  ]
  assert [cell.config.seed for cell in loaded.cells[:2]] == [0, 1]
  assert not any(cell.config.seeds for cell in loaded.cells)


def load(axes, tmp_path, **options):
  path = tmp_path / "own.py"
  path.write_text(BASE + f"get_axes = lambda: {axes}\n")
  return grid.load_sweep(str(path), **options)


def test_a_cell_trains_its_own_seeds_one_by_one(tmp_path):
  small = {"seeds": (), "model.width": 32}
  axes = {"net": {"large": {"seeds": (3,)}, "small": small, "usual": {}}}
  loaded = load(axes, tmp_path, one_by_one=True)
  assert [(cell.path, cell.config.seed) for cell in loaded.cells] == [
    ("large/seed=3", 3),
    ("small", 0),
    ("usual/seed=0", 0),
    ("usual/seed=1", 1),
  ]


def test_every_cell_has_a_directory_below_that_of_the_sweep(tmp_path):
  axes = {"sparsity.fallback": ("", "ai"), "own": {"..": {}, ".": {"seed": 1}}}
  loaded = load(axes, tmp_path)
  assert loaded.axes["fallback"] == ["fallback=none", "ai"]
  assert [cell.path for cell in loaded.cells] == [
    "fallback=none/own=..",
    "fallback=none/own=.",
    "ai/own=..",
    "ai/own=.",
  ]
  assert [cell.config.sparsity.fallback for cell in loaded.cells[1:3]] == ["", "ai"]


def test_axes_of_one_last_name_keep_their_whole_names(tmp_path):
  axes = {"optimizer.name": ("sgd", "adam"), "model.name": ("mlp",), "seed": (1, 2)}
  loaded = load(axes, tmp_path)
  assert list(loaded.axes) == ["optimizer.name", "model.name", "seed"]
  assert loaded.cells[0].path == "sgd/mlp/seed=1"


@pytest.mark.parametrize(
  ("axes", "words"),
  [
    ("{}", "must return a dict of axes"),
    ("{3: (1,)}", "must return a dict of axes"),
    ("1 / 0", r"get_axes\(\): ZeroDivisionError"),
    ("{'seed': 5}", "axis 'seed' must be a tuple of values, .* got 5"),
    ("{'sparsity.start': 'eoi'}", "must be a tuple of values, .* got 'eoi'"),
    ("{'a': {'b': 3}}", "axis 'a' must give a dict of fields for 'b', got 3"),
    ("{'sparsity.dens': (1,)}", "did you mean `sparsity.density`"),
    ("{'a': {}}", "'a' must have at least one choice"),
    ("{'a': {'b': {'sparsity.denst': 1}}}", "did you mean `sparsity.density`"),
    ("{'sparsity.density': (0.1, 2.0)}", r"`sparsity.density` must be .* got 2.0"),
    (
      "{'a': {'x y': {'seed': 1}, 'x+y': {'seed': 1}, 'x?y': {'seed': 2}}}",
      "same name",
    ),
    ("{'compare.field': ('seed',)}", "together"),
  ],
)
def test_malformed_axes_are_refused(axes, words, tmp_path):
  with pytest.raises(UserError, match=words):
    load(axes, tmp_path)


def test_configs_that_are_no_sweeps():
  with pytest.raises(UserError, match="has no get_axes"):
    grid.load_sweep(str(ROOT / "configs" / "mnist_mlp7.py"))
