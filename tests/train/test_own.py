"""A network and a data set of one's own, from their module to a plain script."""

import json
import os
import re
import subprocess
import sys

import flax.linen as nn
import jax
import numpy as np
import pytest
from documents import ROOT, read
from flax import serialization

from eoi_jax.layouts import named_leaves
from train import export
from train.core import config as config_lib
from train.core.command import load_config
from train.core.console import UserError
from train.core.loop import evaluate_saved
from train.core.plan import check_plan, make_plan
from train.data import own as own_data
from train.models.own import OwnNetwork

PAGE = read(ROOT / "docs" / "howto" / "own.md")
WANDB = '''
"""Stands in for wandb: appends what is logged to a file."""
import json

class Error(Exception): pass

class Run:
  def define_metric(self, *args, **kwargs): pass
  def finish(self): self.log({"finished": True})
  def log(self, values):
    with open(self.path, "a") as file: file.write(json.dumps(values) + "\\n")

def init(dir, **options):
  run = Run()
  run.path = dir + "/wandb.jsonl"
  run.log({"id": options["id"], "density": options["config"]["sparsity"]["density"]})
  return run
'''


@pytest.fixture(scope="module")
def project(tmp_path_factory):
  """A directory outside of the checkout, with the files of the page."""
  folder = tmp_path_factory.mktemp("project")
  for language, text in PAGE.blocks:
    if language == "python" and (name := re.match(r"# (my_\w+\.py)\n", text)):
      (folder / name[1]).write_text(text)
  (folder / "wandb.py").write_text(WANDB)
  with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(folder)
    yield folder
  for name in ("my_net", "my_data"):
    sys.modules.pop(name, None)


def config_of(project, **fields):
  config = load_config(str(project / "my_config.py"))
  return changed(config, fields)


def changed(config, fields):
  fields = {name.replace("__", "."): value for name, value in fields.items()}
  return config_lib.changed(config, fields)


@pytest.mark.slow
@pytest.mark.usefixtures("standard_promotion")
def test_from_a_config_outside_to_a_plain_script(project):
  pytest.importorskip("sklearn")
  command = [sys.executable, "-m", "train.run", "--config=my_config.py"]
  command += ["--workdir=run", "--config.seeds=(3, 4)", "--config.num_epochs=3"]
  command += ["--config.model.width=16", "--config.wandb", "--quiet"]
  environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
  options = {"cwd": project, "env": environment, "capture_output": True, "text": True}
  done = subprocess.run(command, **options, check=False)
  assert done.returncode == 0, done.stdout + done.stderr
  workdir = project / "run"

  logged = list(map(json.loads, (workdir / "wandb.jsonl").read_text().splitlines()))
  records = list(map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines()))
  assert logged[0]["density"] == 0.25 and logged[-1] == {"finished": True}
  losses = [x["train/loss"] for x in logged if "train/loss" in x]
  assert losses == [r["loss"] for r in records if r["split"] == "train"]

  # The last checkpoint gives the number of the run, whatever else the config says.
  fields = {"seeds": (3, 4), "model__width": 16, "tensorboard": True}
  config = config_of(project, num_epochs=7, **fields)
  validation, test = evaluate_saved(config, workdir, "last")
  assert test["accuracy"] == records[-1]["accuracy"] > 0.2
  assert (validation["split"], validation["step"]) == ("validation", 81)
  with pytest.raises(UserError, match=r"another config \(sparsity.density: 0.25 there"):
    evaluate_saved(config_of(project, sparsity__density=0.5, **fields), workdir, "last")
  lines = (workdir / "evaluations.jsonl").read_text().splitlines()
  assert [json.loads(line) for line in lines] == [validation, test]

  formats = ["msgpack"]
  formats += ["safetensors"] if _has("safetensors") else []
  files = export.export(workdir, "last", tuple(formats))
  assert {path.stem for path in files} == {"model-seed3", "model-seed4"}
  images, labels = own_data.load("my_data:digits")[1]["test"]
  accuracies = []
  for path in files:
    exported = export.load(path)
    masks = {n: m for n, m in named_leaves(exported.masks).items() if m is not None}
    assert len(masks) == 5 and all(m.dtype == bool for m in masks.values())
    for name, mask in masks.items():
      assert (named_leaves(exported.params)[name][~mask] == 0).all()
    logits = exported.logits(images)
    accuracies.append(np.mean(logits.argmax(-1) == labels))
    if path.suffix == ".msgpack":
      np.testing.assert_allclose(_plain(path, images), logits, atol=1e-5)
  found = np.reshape(accuracies, (2, -1))
  np.testing.assert_allclose(found.T, [records[-1]["seeds"]["accuracy"]] * len(formats))


def _has(package):
  try:
    __import__(package)
  except ImportError:
    return False
  return True


def _plain(path, images):
  """The logits by the script of the page."""
  (script,) = [text for _, text in PAGE.blocks if text.startswith("import json")]
  names = {"images": images}
  script = script.replace('"model.msgpack"', repr(str(path)))
  exec(script.replace("width=64", "width=16"), names)
  return names["logits"]


def module(tmp_path, monkeypatch, text, name):
  (tmp_path / f"{name}.py").write_text("import flax.linen as nn\n" + text)
  monkeypatch.syspath_prepend(tmp_path)


NET = """
class Net(nn.Module):
  features: int = 10
  @nn.compact
  def __call__(self, images):
    {first}
    return nn.Dense(self.features)(images.reshape(len(images), -1))
"""


@pytest.mark.parametrize(
  ("text", "fields", "words"),
  [
    (None, {}, "no module 'net1'"),
    ("import nothing_such", {}, "No module named 'nothing_such' .*net2.py, line 2"),
    ("x = 1", {}, "net3.py defines no Net"),
    ("def Net(): return 3", {}, "must be a Linen module .* got int"),
    ("def Net(heads): return 3", {}, "`model.options` must give 'heads'"),
    (
      NET,
      {"model__options": "head=3"},
      r"arguments of net6:Net \(features\), got 'head'",
    ),
    (NET, {"model__options": "features=9"}, r"to logits \[2, 10\], got \[2, 9\]"),
    (NET, {"sparsity__bias_std": 0.1}, "bias_std` = 0.1 needs .* 'bias_init'"),
    (NET, {"model__drop_path": 0.1}, "drop_path` must be 0 for .*Net', .* got 0.1"),
    (NET, {"sparsity__scale": "critical"}, "'critical' needs .* 'activation'"),
    (NET, {"model__options": "9"}, r"\(features\) as in 'a=1, b=2.5', got '9'"),
    (NET, {"model__options": "features={9: 1}"}, "tuples in place of dictionaries"),
    ((NET, "raise KeyError('no')"), {}, "KeyError: 'no' .*net13.py, line 7"),
    (
      (NET, "self.param('mix', nn.initializers.ones, (4, 4, 3, 7))"),
      {},
      r'{"mix": "iiio"}.*`others`',
    ),
    (
      (NET, "self.variable('cache', 'x', int)"),
      {},
      "params and batch_stats, has cache",
    ),
    (
      NET.replace("images):", "images, training=False):"),
      {},
      "must call the argument `train` .*, got 'training'",
    ),
  ],
)
def test_what_is_no_network_is_one_clear_error(
  text, fields, words, tmp_path, monkeypatch, request
):
  name = f"net{request.node.callspec.indices['text'] + 1}"
  if text is not None:
    text, first = text if isinstance(text, tuple) else (text, "pass")
    module(tmp_path, monkeypatch, text.replace("{first}", first), name)
  config = config_lib.default_config()
  config.data.name, config.model.name = "digits", f"{name}:Net"
  with pytest.raises(UserError, match=words) as error:
    check_plan(changed(config, fields))
  assert "model." in str(error.value) or name in str(error.value)
  assert "\n" not in str(error.value)


@pytest.mark.slow
def test_a_table_of_its_own_and_kernels_that_stay_dense(tmp_path, monkeypatch):
  (text,) = [text for _, text in PAGE.blocks if "others = " in text]
  module(tmp_path, monkeypatch, text, "net_with_table")
  config = config_lib.default_config()
  config.data.name, config.model.name = "digits", "net_with_table:Net"
  recipe, again = check_plan(config), check_plan(config)
  model = recipe.model
  assert isinstance(model, OwnNetwork) and hash(recipe) == hash(again)
  assert recipe == again  # one compiled program
  kernels = {name: str(x) for name, x in model.layouts.items() if x is not None}
  assert kernels == {"mix": "io", "Dense_1/kernel": "io"}
  images = jax.random.normal(jax.random.key(0), (3, 8, 8, 1))
  variables = model.init(jax.random.key(1), images)
  inner = model.module
  assert isinstance(inner, nn.Module)
  np.testing.assert_array_equal(
    model.apply(variables, images, train=True), inner.apply(variables, images)
  )


IMAGES, LABELS = np.zeros((6, 4, 4, 1), np.uint8), np.arange(6) % 2
GOOD = {"num_classes": 2, "train": (IMAGES, LABELS), "test": (IMAGES[:2], LABELS[:2])}


@pytest.mark.parametrize(
  ("changes", "words"),
  [
    ({"num_classes": None}, "`num_classes` must be an integer .* got None"),
    ({"dev": (IMAGES, LABELS)}, "'dev' besides"),
    ({"test": IMAGES}, "'test' must be a pair"),
    ({"train": (IMAGES[..., 0], LABELS)}, r"\[n, height.*, got uint8 \[6, 4, 4\]"),
    ({"train": (IMAGES.astype(int), LABELS)}, "got int64"),
    ({"train": (IMAGES, LABELS / 2)}, r"labels of 'train' must be integers \[6\]"),
    ({"train": (IMAGES, LABELS[:5])}, r"got int64 \[5\]"),
    ({"train": (IMAGES, LABELS + 1)}, r"in \[0, 1\], got labels from 1 to 2"),
    ({"test": (IMAGES / 255, LABELS)}, "'test' must be those of 'train', uint8"),
    ({"train": (IMAGES * np.nan, LABELS)}, "must be finite"),
  ],
)
def test_what_is_no_data_set_is_one_clear_error(changes, words, monkeypatch):
  monkeypatch.setattr(own_data, "find", lambda field, name: lambda: GOOD | changes)
  with pytest.raises(UserError, match=words) as error:
    own_data.load("my:data")
  assert str(error.value).startswith("`data.name` = 'my:data'")


def test_what_numpy_counts_is_a_number_of_classes(monkeypatch):
  data = GOOD | {"num_classes": LABELS.max() + 1}
  monkeypatch.setattr(own_data, "find", lambda field, name: lambda: data)
  assert own_data.load("my:data")[0].num_classes == 2


@pytest.fixture
def sorted_by_class(monkeypatch):
  """A config of 4 x 4 images, sorted by their classes."""
  split = np.zeros((60, 4, 4, 1), np.uint8), np.repeat(np.arange(3), 20)
  data = {"num_classes": 3, "train": split, "test": split}
  monkeypatch.setattr(own_data, "find", lambda field, name: lambda: data)
  config = config_lib.default_config()
  config.data.name, config.data.validation = "sorted:by_class", 0.0
  config.batch_size = 6
  return config


def test_a_limit_keeps_the_same_share_of_each_class(sorted_by_class):
  dataset = make_plan(changed(sorted_by_class, {"data__limit": 9})).dataset
  for split in (dataset.train, dataset.test):
    assert split.labels.tolist() == [0] * 3 + [1] * 3 + [2] * 3
  assert dataset.sizes == {"train": 9, "test": 9}
  whole = make_plan(changed(sorted_by_class, {"data__limit": 60})).dataset
  assert len(whole.train.labels) == 60


def test_images_that_are_too_small_to_crop_are_refused(sorted_by_class):
  with pytest.raises(UserError, match="of more than 4 pixels a side, got 4 x 4"):
    make_plan(changed(sorted_by_class, {"data__augment": "crop_flip"}))


def brighter():
  found = sys.modules["my_data"].digits()
  images, labels = found["train"]
  return found | {"train": (2 * images, labels)}


@pytest.mark.slow
@pytest.mark.usefixtures("standard_promotion")  # of the schedule, by optax
def test_constants_are_measured_or_given(project, monkeypatch):
  pytest.importorskip("sklearn")
  plan = make_plan(config_of(project, data__validation=0.0))
  images, spec = plan.dataset.train.images, plan.recipe.spec
  assert images.dtype == np.float32 and len(images) == 1500 and spec.white == 1
  assert spec.mean == pytest.approx((images.mean(),), abs=1e-5)
  pixels = np.round(images * 255).astype(np.uint8)
  mean, std = own_data.measure(np.concatenate([pixels, 255 - pixels], -1))
  np.testing.assert_allclose(mean, [pixels.mean() / 255, 1 - pixels.mean() / 255], 1e-5)
  np.testing.assert_allclose(std, [pixels.std() / 255] * 2, 1e-5)
  monkeypatch.setitem(vars(sys.modules["my_data"]), "brighter", brighter)
  resized = {"data__augment": "random_resized_crop", "data__name": "my_data:brighter"}
  with pytest.raises(UserError, match=r"needs pixels in \[0, 1\], got \[0, 2\]"):
    make_plan(config_of(project, **resized))
  given = config_of(project, data__mean=(0.0,), data__std=(1.0,))
  assert make_plan(given).recipe.spec[3:5] == ((0.0,), (1.0,))
  with pytest.raises(UserError, match="one number for each of the 1 channels"):
    make_plan(config_of(project, data__mean=(0.0, 1), data__std=(1.0, 1)))


def test_a_file_of_another_kind_is_refused(tmp_path):
  (tmp_path / "model.msgpack").write_bytes(serialization.msgpack_serialize({"a": 1}))
  for name, words in {
    "model.npz": "must end with",
    "model.msgpack": "cannot be",
  }.items():
    with pytest.raises(UserError, match=words):
      export.load(tmp_path / name)
