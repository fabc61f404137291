"""The public API: which names there are, and that all follow one grammar."""

import importlib
import inspect
import pathlib
import pkgutil
import re
import types

import pytest

import eoi_jax

# Call shapes that callers rely on: positional arguments | keyword-only options.
CONTRACT = {
  "sample_rotations": "key, num_columns, num_rotations | angle",
  "apply_rotations": "matrix, rotations",
  "expected_density": "num_columns, num_rotations",
  "rotations_for_density": "num_columns, density",
  "sparse_orthogonal": "key, shape, density, dtype | angle, schedule",
  "orthogonality_error": "matrix",
  "eoi_init": "density | scale, taps, center",
  "kernel_layouts": "params, table | convention",
  "kernel_masks": "key, params, density | layouts",
  "random_masks": "key, params, density | layouts",
  "apply_masks": "params, masks",
  "uniform": "params, density | layouts",
  "erk": "params, density | power_scale, layouts",
  "allocate": "params, density | rule, floors, layouts",
  "snip_scores": "apply_fn, params, batch | layouts",
  "grasp_scores": "apply_fn, params, batches | temperature, layouts",
  "synflow_scores": "apply_fn, params, input_shape | layouts",
  "synflow_masks": "apply_fn, params, input_shape, density | num_rounds, layouts",
  "global_masks": "scores, density",
  "sparsify": "key, params, densities_or_masks | start, scale, layouts",
  "static_sparsity": "inner, masks | compact",
  "gram_errors": "params | layouts",
  "set_evolution": "inner, masks | key, num_steps, fraction, every, until, skip_step",
  "rigl": "inner, masks | num_steps, fraction, every, until, skip_step",
  "current_masks": "opt_state",
  "critical_point": "activation, q_star",
  "jacobian_singular_values": "apply_fn, params, inputs",
  "conv_singular_values": "kernel, input_shape | padding, strides",
}
# As in JAX: `init(key, shape, dtype)` takes the dtype by position, and the gain of a
# reference initializer is its only argument.
POSITIONAL_DEFAULTS = {
  ("find_kernels", "layouts"),
  ("kernel_layouts", "table"),
  ("sparse_orthogonal", "dtype"),
  ("block_orthogonal", "dtype"),
  ("sao_orthogonal", "dtype"),
  ("conv_orthogonal", "scale"),
  ("delta_orthogonal", "scale"),
  ("dense_orthogonal", "scale"),
}
# As in optax, transformations take what they wrap first, and a key as an option.
TRANSFORMATIONS = ("dynamic_sparsity", "set_evolution")
# One word per thing (the word that is not used: the one that is).
OTHER_WORDS = {
  "sparsity": "density",
  "rng": "key",
  "seed": "key",
  "grads": "updates",
  "optimizer": "tx",
  "mask": "masks",
  "targets": "labels",
}


def _modules():
  """Every public module of the library."""
  yield eoi_jax
  for info in pkgutil.walk_packages(eoi_jax.__path__, "eoi_jax."):
    if not any(part.startswith("_") for part in info.name.split(".")):
      yield importlib.import_module(info.name)


MODULES = {module.__name__: module for module in _modules()}
NAMESPACES = {n: m for n, m in MODULES.items() if hasattr(m, "__all__")}
PUBLIC = {
  name: getattr(module, name)
  for module in NAMESPACES.values()
  for name in module.__all__
  if not isinstance(getattr(module, name), types.ModuleType)
}
FUNCTIONS = {n: f for n, f in PUBLIC.items() if inspect.isfunction(inspect.unwrap(f))}
CLASSES = {n: c for n, c in PUBLIC.items() if inspect.isclass(c)}


def parameters(function):
  return inspect.signature(function).parameters.values()


def by_kind(function):
  positional, keyword = [], []
  for p in parameters(function):
    (keyword if p.kind is p.KEYWORD_ONLY else positional).append(p.name)
  return positional, keyword


@pytest.mark.parametrize("name", sorted(NAMESPACES))
def test_all_is_sorted_and_complete(name):
  module = NAMESPACES[name]
  assert list(module.__all__) == sorted(set(module.__all__))
  reachable = {
    name
    for name, value in vars(module).items()
    if not name.startswith("_") and not isinstance(value, types.ModuleType)
  }
  assert reachable <= set(module.__all__) or not hasattr(module, "__path__")


def test_few_names_stand_at_the_top():
  assert len(eoi_jax.__all__) <= 48
  assert set(CONTRACT) <= set(eoi_jax.__all__)


@pytest.mark.parametrize("name", sorted(set(MODULES) - set(NAMESPACES)))
def test_what_a_module_defines_is_public_somewhere_or_used_inside(name):
  """No name without an underscore that nobody reads from outside its file."""
  module = MODULES[name]
  mine = {
    key
    for key, value in vars(module).items()
    if not key.startswith("_") and getattr(value, "__module__", None) == name
  }
  sources = [
    pathlib.Path(path).read_text()
    for path in pathlib.Path(eoi_jax.__path__[0]).rglob("*.py")
    if str(path) != module.__file__
  ]
  text = "\n".join(sources)
  unused = {n for n in mine if n not in PUBLIC and not re.search(rf"\b{n}\b", text)}
  assert not unused


def test_the_version_is_that_of_the_package():
  assert eoi_jax.__version__.count(".") == 2


@pytest.mark.parametrize("name", sorted(CONTRACT))
def test_contract(name):
  positional, options = (part.strip() for part in f"{CONTRACT[name]} | ".split("|")[:2])
  have_positional, have_options = by_kind(FUNCTIONS[name])
  assert have_positional == positional.split(", ")
  assert set(filter(None, options.split(", "))) <= set(have_options)


def test_rotations_are_a_named_tuple():
  assert eoi_jax.Rotations._fields == ("i", "j", "angle")


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_call_shapes(name):
  positional, _ = by_kind(FUNCTIONS[name])
  for p in parameters(FUNCTIONS[name]):
    if name != "linen_layouts":  # what `model.init` takes
      assert p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD), p
    if p.name == "key" and name not in TRANSFORMATIONS:
      assert positional[0] == "key"
    if p.default is not p.empty and (name, p.name) not in POSITIONAL_DEFAULTS:
      assert p.kind is p.KEYWORD_ONLY, f"option {p.name} must be keyword-only"
    for other, word in OTHER_WORDS.items():
      assert other not in p.name.split("_"), f"{p.name}: the word is {word}"


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_names(name):
  if name in CLASSES:
    assert "_" not in name and name[0].isupper()
  else:
    assert name.islower()
  assert "get_" not in name and "rng" not in name


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_docstrings_say_what_goes_in_and_out(name):
  text = inspect.getdoc(FUNCTIONS[name])
  assert text and text.splitlines()[0].endswith("."), "the first line is a sentence"
  arguments, _, results = text.partition("\nReturns:\n")
  assert results.strip() and "\nArgs:\n" in arguments
  documented = arguments.partition("\nArgs:\n")[2]
  for p in parameters(FUNCTIONS[name]):
    stars = {p.VAR_POSITIONAL: "*", p.VAR_KEYWORD: "**"}.get(p.kind, "")
    entry = f"\n  {stars}{p.name}: "
    assert entry in f"\n{documented}", f"{p.name} is not documented"
  if "raise " in inspect.getsource(FUNCTIONS[name]):
    assert "\nRaises:\n" in text


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_tuples_document_their_fields(name):
  text = inspect.getdoc(CLASSES[name])
  for field in getattr(CLASSES[name], "_fields", ()):
    assert f"\n  {field}: " in text


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_every_name_is_defined_in_the_library(name):
  assert inspect.unwrap(PUBLIC[name]).__module__.startswith("eoi_jax.")
