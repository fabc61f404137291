import json

import pytest

from configs import default, mnist_mlp7, quickstart
from train.core import config as config_lib
from train.core import unread
from train.core.command import default_workdir, load_config
from train.core.console import UserError

NAN, INF = float("nan"), float("inf")

MALFORMED = [
  ("seed", -1),
  ("seed", 2**32),
  ("seed", True),
  ("seed", 1.0),
  ("num_epochs", 0),
  ("num_epochs", "10"),
  ("batch_size", 0),
  ("batch_size", 10**12),
  ("steps_per_dispatch", 0),
  ("eval_every", -3),
  ("checkpoint_every", 0),
  ("keep_checkpoints", 0),
  ("data.name", "imagenet21k"),
  ("data.validation", 1.0),
  ("data.validation", -0.1),
  ("data.name", "tfds:"),
  ("data.mean", (0.5, "x")),
  ("data.std", (0.5,)),
  ("profile", (5,)),
  ("profile", (0, 3)),
  ("profile", (5, 4)),
  ("model.options", 3),
  ("model.name", "transformer"),
  ("model.name", "my-net:Net"),
  ("model.depth", 1),
  ("model.width", 0),
  ("model.activation", "swish"),
  ("model.activation", None),
  ("sparsity.start", "magic"),
  ("sparsity.distribution", "erk?"),
  ("sparsity.center", "most"),
  ("sparsity.taps", "some"),
  ("sparsity.density", 0.0),
  ("sparsity.density", -0.5),
  ("sparsity.density", 1.5),
  ("sparsity.density", NAN),
  ("sparsity.density", "0.1"),
  ("sparsity.scale", 0.0),
  ("sparsity.scale", INF),
  ("sparsity.bias_std", -1e-3),
  ("optimizer.name", "sdg"),
  ("optimizer.learning_rate", NAN),
  ("optimizer.learning_rate", -0.1),
  ("optimizer.momentum", 1.0),
  ("optimizer.nesterov", 1),
  ("optimizer.weight_decay", INF),
  ("optimizer.schedule", "lineal"),
  ("optimizer.accumulate", 0),
  ("optimizer.ema", 1.0),
  ("dynamic.density", 0.0),
  ("dynamic.begin", 1.0),
  ("compare.choices", ("eoi", "eoi")),
  ("compare.choices", "eoi"),
]


def changed(**fields):
  config = default.get_config()
  with config.ignore_type():
    config.update_from_flattened_dict(fields)
  return config


@pytest.mark.parametrize(("field", "value"), MALFORMED)
def test_a_malformed_field_is_named_with_its_value(field, value):
  with pytest.raises(UserError) as error:
    config_lib.validate(changed(**{field: value}))
  message = str(error.value)
  assert f"`{field}`" in message and repr(value) in message and "\n" not in message


def test_choices_are_listed():
  with pytest.raises(
    UserError, match="linear, tanh, hard_tanh, relu, leaky_relu, selu"
  ):
    config_lib.validate(changed(**{"model.activation": "swish"}))


def test_unknown_and_missing_fields_are_named():
  config = default.get_config()
  config.model.dept = 3
  with pytest.raises(UserError, match=r"`model\.dept`; did you mean `model\.depth`\?"):
    config_lib.validate(config)
  config = default.get_config()
  del config.optimizer.momentum
  with pytest.raises(UserError, match=r"`optimizer\.momentum` is missing"):
    config_lib.validate(config)


@pytest.mark.parametrize(
  ("field", "choices", "words"),
  [
    ("", ("eoi",), "together"),
    ("sparsity.start", (), "together"),
    ("sparsity.begin", ("eoi",), "must name a field"),
    ("compare.field", ("eoi",), "must name a field"),
    ("sparsity.start", ("eoi", "magic"), "got 'magic'"),
    ("model.activation", ("relu", "selu"), "is 'tanh', but this config compares"),
  ],
)
def test_malformed_comparisons_are_refused(field, choices, words):
  config = changed(**{"compare.field": field, "compare.choices": choices})
  with pytest.raises(UserError, match=words):
    config_lib.validate(config)


@pytest.mark.parametrize("module", [default, quickstart, mnist_mlp7])
def test_shipped_configs_are_valid(module):
  config_lib.validate(module.get_config())
  for variant in getattr(module, "VARIANTS", ()):
    config_lib.validate(module.get_config(variant))
  with pytest.raises(ValueError, match="unknown variant 'nope'; known variants"):
    module.get_config("nope")


def test_expand_gives_what_a_person_would_write():
  runs = config_lib.expand(quickstart.get_config())
  assert list(runs) == ["eoi", "base"]
  for start, run in runs.items():
    single = quickstart.get_config()
    single.sparsity.start = start
    single.compare.field, single.compare.choices = "", ()
    assert json.loads(config_lib.to_json(run)) == json.loads(config_lib.to_json(single))
  assert config_lib.expand(runs["base"])["base"] is runs["base"]


def test_a_run_of_an_empty_choice_has_a_name():
  changes = {"compare.field": "sparsity.fallback", "compare.choices": ("", "ai")}
  config = config_lib.changed(default.get_config(), changes)
  runs = config_lib.expand(config)
  assert list(runs) == ["fallback=none", "ai"]
  assert [run.sparsity.fallback for run in runs.values()] == ["", "ai"]
  labels = [config_lib.label("sparsity.fallback", name) for name in runs]
  assert labels == ["fallback=none", "ai fallback"]


def test_conditions_name_fields_and_values_that_there_are():
  for field, conditions in unread.READ_WITH.items():
    assert field in config_lib.FIELDS
    for condition in conditions:
      for name, values in condition.items():
        assert all(map(config_lib.FIELDS[name].rule.holds, values)), (field, name)


@pytest.mark.parametrize(
  ("fields", "read"),
  [
    ({"angle": 30.0, "start": "base"}, {"start": "eoi"}),
    ({"scale": 1.5, "start": "fan_in_uniform"}, {"start": "orthogonal"}),
    ({"q_star": 0.5}, {"scale": "critical"}),
    ({"center": "more", "taps": "all"}, {"taps": "center"}),
    ({"taps": "all", "start": "base"}, {"start": "eoi"}),
    ({"reference": "conv_orthogonal"}, {"distribution": "snip"}),
    ({"ai_steps": 5, "start": "eoi_in_mask"}, {"fallback": "ai"}),
    ({"fallback": "ai"}, {"start": "eoi_in_mask"}),
  ],
)
def test_a_field_that_no_run_reads_is_told(fields, read):
  fields, read = ({f"sparsity.{n}": x for n, x in d.items()} for d in (fields, read))
  field, value = next(iter(fields.items()))
  alone, other = changed(**fields), changed(**fields | read)
  (line,) = unread.warn_of_unread([alone])
  assert line.startswith(f"`{field}` = {value!r} changes nothing here: it is read with")
  assert not [x for x in unread.warn_of_unread([alone, other]) if field in x]


def test_a_network_reads_its_own_fields_alone(caplog):
  config = changed(**{"model.name": "vgg16_c", "model.depth": 9, "dynamic.every": 3})
  with caplog.at_level("WARNING", "train"):
    unread.warn_of_unread([config])
  depth, every = caplog.messages
  assert depth == "`model.depth` = 9 changes nothing here: no network here takes it."
  assert "`dynamic.every` = 3" in every and "with `dynamic.method` set, rigl" in every
  assert not unread.warn_of_unread(config_lib.expand(quickstart.get_config()).values())


def test_differences_name_both_values():
  config = default.get_config()
  saved = json.loads(config_lib.to_json(config))
  assert config_lib.differences(config, saved) == []
  saved["model"]["depth"] = 9
  assert config_lib.differences(config, saved) == ["model.depth: 9 there, 7 here"]
  saved["model"]["dept"] = saved["model"].pop("depth") - 2
  (line,) = config_lib.differences(config, saved)  # one that is older, or newer
  assert line == "model.dept: 7 there, '(absent)' here"
  config.model.depth = 8
  assert "model.depth: 7 there, 8 here" in config_lib.differences(config, saved)


def test_a_saved_config_that_is_older_has_defaults():
  config = changed(**{"sparsity.scale": "critical", "seeds": (1, 2)})
  saved = json.loads(config_lib.to_json(config))
  del saved["model"]["depth"]
  assert config_lib.flatten(config_lib.from_saved(saved)) == config_lib.flatten(config)
  saved["model"]["dept"] = 3
  with pytest.raises(UserError, match="did you mean"):
    config_lib.from_saved(saved)


def test_config_files_that_cannot_be_used(tmp_path):
  cases = {
    "x = = 1": "SyntaxError",
    "y = 1": "no 'get_config'",
    "def get_config():\n  return 1 / 0": "ZeroDivisionError",
    "def get_config():\n  return {}": "must return a ConfigDict",
  }
  for number, (text, words) in enumerate(cases.items()):
    path = tmp_path / f"{number}.py"
    path.write_text(text)
    with pytest.raises(UserError, match=words) as error:
      load_config(str(path))
    assert str(path) in str(error.value) and "\n" not in str(error.value)
  with pytest.raises(UserError, match="does not exist"):
    load_config(str(tmp_path / "none.py"))


@pytest.mark.parametrize(
  ("arguments", "name"),
  [
    (["--config=configs/quickstart.py"], "quickstart"),
    (["--config", "configs/quickstart.py:smoke"], "quickstart-smoke"),
    (["--config=a/b.py", "--config.seed=1"], "b-seed=1"),
    (["--config=b.py", "--config.m.d", "2", "--config.a=x/y"], "b-a=x_y-m.d=2"),
  ],
)
def test_each_command_has_its_own_workdir(arguments, name):
  assert default_workdir(arguments).as_posix() == f"workdirs/{name}"
