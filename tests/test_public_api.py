"""The public API: which names there are, and that all follow one grammar."""

import inspect
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
  "eoi_init": "density | scale",
  "kernel_masks": "key, params, density | is_kernel, is_stacked",
  "random_masks": "key, params, density | is_kernel, is_stacked",
  "apply_masks": "params, masks",
  "uniform": "params, density | is_kernel, is_stacked",
  "erk": "params, density | power_scale, is_kernel, is_stacked",
  "snip_scores": "apply_fn, params, batch | is_kernel",
  "grasp_scores": "apply_fn, params, batches | temperature, is_kernel",
  "synflow_scores": "apply_fn, params, input_shape | is_kernel",
  "synflow_masks": "apply_fn, params, input_shape, density | num_rounds, is_kernel",
  "global_masks": "scores, density",
  "sparsify": "key, params, densities_or_masks | start, scale, is_kernel, is_stacked",
  "approximate_isometry": "kernels, masks | scale, method, num_steps",
  "sao_orthogonal": "key, shape, degree, dtype | relu",
  "static_sparsity": "inner, masks",
  "gram_errors": "params | is_kernel, is_stacked",
  "dynamic_sparsity": "inner, masks | drop, grow, schedule, key, is_stacked",
  "set_evolution": "inner, masks | key, num_steps, fraction, every, until, skip_step",
  "rigl": "inner, masks | num_steps, fraction, every, until, skip_step",
  "evolve_masks": "key, params, updates, masks, fraction | drop, grow, is_stacked",
  "restore_isometry": "params, masks | scale, num_steps, is_kernel, is_stacked",
  "current_masks": "opt_state",
}
# As in JAX: `init(key, shape, dtype)` takes the dtype by position, and the gain of a
# reference initializer is its only argument.
POSITIONAL_DEFAULTS = {
  ("sparse_orthogonal", "dtype"),
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
PUBLIC = {name: getattr(eoi_jax, name) for name in eoi_jax.__all__}
FUNCTIONS = {n: f for n, f in PUBLIC.items() if inspect.isfunction(inspect.unwrap(f))}
CLASSES = {n: c for n, c in PUBLIC.items() if inspect.isclass(c)}


def parameters(function):
  return inspect.signature(function).parameters.values()


def by_kind(function):
  positional, keyword = [], []
  for p in parameters(function):
    (keyword if p.kind is p.KEYWORD_ONLY else positional).append(p.name)
  return positional, keyword


def test_all_is_sorted_and_complete():
  assert list(eoi_jax.__all__) == sorted(set(eoi_jax.__all__))
  reachable = {
    name
    for name, value in vars(eoi_jax).items()
    if not name.startswith("_") and not isinstance(value, types.ModuleType)
  }
  assert reachable == set(eoi_jax.__all__)
  assert set(FUNCTIONS) | set(CLASSES) == set(PUBLIC)


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
    assert f"\n  {p.name}: " in f"\n{documented}", f"{p.name} is not documented"
  if "raise " in inspect.getsource(FUNCTIONS[name]):
    assert "\nRaises:\n" in text


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_tuples_document_their_fields(name):
  text = inspect.getdoc(CLASSES[name])
  for field in CLASSES[name]._fields:
    assert f"\n  {field}: " in text


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_every_name_is_defined_in_the_library(name):
  assert inspect.unwrap(PUBLIC[name]).__module__.startswith("eoi_jax.")
