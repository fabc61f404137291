"""Masks: exact counts, the support inside, None for dense leaves."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eoi_jax import apply_masks, eoi_init, kernel_layouts, kernel_masks, random_masks
from eoi_jax.masks import count_masks, dead_units, mask_densities

DENSITY = 0.2
SHAPES = {"stem": (3, 3, 4, 8), "hidden": (32, 64)}


def make_params(density=0.15):
  init = eoi_init(density)
  return {
    name: {
      "kernel": init(jax.random.fold_in(jax.random.key(0), index), shape),
      "bias": jnp.ones(shape[-1]),
    }
    for index, (name, shape) in enumerate(SHAPES.items())
  }


@pytest.fixture(scope="module")
def params():
  return make_params()


@pytest.fixture(scope="module")
def kernel(params):
  """Support of density .15, 32 x 64."""
  return params["hidden"]["kernel"]


def structure(tree):
  return jax.tree.structure(tree, is_leaf=lambda x: x is None)


def equal(left, right):
  assert structure(left) == structure(right)
  chex.assert_trees_all_equal(left, right)


def check_mask(mask, kernel, count):
  mask, kernel = np.asarray(mask), np.asarray(kernel)
  assert mask.dtype == bool and mask.shape == kernel.shape
  assert np.count_nonzero(mask) == count
  assert mask[kernel != 0].all()


@pytest.mark.slow
def test_counts_are_exact_and_the_support_is_inside(params):
  masks = kernel_masks(jax.random.key(1), params, DENSITY)
  assert structure(masks) == structure(params)
  for name, shape in SHAPES.items():
    count = round(DENSITY * int(np.prod(shape)))
    check_mask(masks[name]["kernel"], params[name]["kernel"], count)
    assert masks[name]["bias"] is None


@pytest.mark.slow
@pytest.mark.parametrize("density", [0.15, 0.151, 0.5, 0.999, 1.0])
def test_any_density_from_the_support_to_one(kernel, density):
  masks = kernel_masks(jax.random.key(1), {"kernel": kernel}, density)
  check_mask(masks["kernel"], kernel, round(density * kernel.size))


def test_densities_as_a_tree(params):
  densities = {
    "stem": {"kernel": 1.0, "bias": None},
    "hidden": {"kernel": 0.3, "bias": None},
  }
  masks = kernel_masks(jax.random.key(1), params, densities)
  assert np.asarray(masks["stem"]["kernel"]).all()
  check_mask(masks["hidden"]["kernel"], params["hidden"]["kernel"], round(0.3 * 2048))
  assert all(masks[name]["bias"] is None for name in SHAPES)
  densities["stem"]["kernel"] = None
  masks = kernel_masks(jax.random.key(1), params, densities)
  assert masks["stem"]["kernel"] is None
  assert masks["hidden"]["kernel"] is not None


def test_deterministic(params):
  first = kernel_masks(jax.random.key(1), params, DENSITY)
  equal(first, kernel_masks(jax.random.key(1), params, DENSITY))
  other = kernel_masks(jax.random.key(2), params, DENSITY)
  for name in SHAPES:
    assert (first[name]["kernel"] != other[name]["kernel"]).any()


def test_a_leaf_depends_on_its_name_and_not_on_its_company(params):
  whole = kernel_masks(jax.random.key(1), params, DENSITY)
  alone = kernel_masks(jax.random.key(1), {"hidden": params["hidden"]}, DENSITY)
  equal(alone["hidden"], whole["hidden"])
  # Another name draws other trainable zeros.
  renamed = kernel_masks(jax.random.key(1), {"other": params["hidden"]}, DENSITY)
  assert (renamed["other"]["kernel"] != whole["hidden"]["kernel"]).any()


def test_equal_shapes_get_different_masks(kernel):
  masks = kernel_masks(
    jax.random.key(1), {"a": {"kernel": kernel}, "b": {"kernel": kernel}}, DENSITY
  )
  assert (masks["a"]["kernel"] != masks["b"]["kernel"]).any()


def test_jit_equals_no_jit(params):
  def draw(key, params):
    return kernel_masks(key, params, DENSITY)

  key, params = jax.random.key(1), {"hidden": params["hidden"]}
  equal(jax.jit(draw)(key, params), draw(key, params))


def test_vmap_over_keys_equals_a_loop(params):
  params = {"hidden": params["hidden"]}
  keys = jax.random.split(jax.random.key(1), 3)
  together = jax.vmap(lambda key: kernel_masks(key, params, DENSITY))(keys)
  for index, key in enumerate(keys):
    alone = kernel_masks(key, params, DENSITY)
    equal(jax.tree.map(lambda x, k=index: x[k], together), alone)


def test_trainable_zeros_are_uniform_over_the_zero_cells():
  kernel = jnp.zeros((3, 3, 4, 4)).at[1, 1].set(jnp.eye(4))
  keys = jax.random.split(jax.random.key(3), 2000)
  draw = jax.vmap(lambda key: kernel_masks(key, {"kernel": kernel}, 0.25)["kernel"])
  share = np.asarray(draw(keys)).mean(axis=0)
  zero = np.asarray(kernel) == 0
  chance = (36 - 4) / zero.sum()
  assert (share[~zero] == 1).all()
  # 140 cells: five standard errors leave no room for a false alarm.
  standard_error = np.sqrt(chance * (1 - chance) / len(keys))
  assert np.abs(share[zero] - chance).max() < 5 * standard_error


def test_a_stacked_leaf_is_as_many_kernels(params):
  kernel = params["hidden"]["kernel"]
  stacked = {
    "layers": {"kernel": jnp.stack([kernel, kernel, -kernel[::-1]])},
    "hidden": params["hidden"],
  }
  masks = kernel_masks(
    jax.random.key(1),
    stacked,
    DENSITY,
    layouts=kernel_layouts(stacked, {"layers/*": "sio"}),
  )
  stack = masks["layers"]["kernel"]
  for mask, kernel in zip(stack, stacked["layers"]["kernel"], strict=True):
    check_mask(mask, kernel, round(DENSITY * 2048))
  assert len({np.asarray(mask).tobytes() for mask in stack}) == 3
  alone = kernel_masks(jax.random.key(1), params, DENSITY)
  chex.assert_trees_all_equal(masks["hidden"]["kernel"], alone["hidden"]["kernel"])


def test_which_leaves_are_kernels_is_the_callers_to_say(kernel):
  params = {"embedding": kernel, "kernel": kernel}
  default = kernel_masks(jax.random.key(2), params, DENSITY)
  assert default["embedding"] is None and default["kernel"] is not None
  layouts = kernel_layouts(params, {"embedding": "io", "kernel": None})
  mine = kernel_masks(jax.random.key(2), params, DENSITY, layouts=layouts)
  assert mine["kernel"] is None
  check_mask(mine["embedding"], params["embedding"], round(DENSITY * 2048))


class Layer(NamedTuple):
  w: jax.Array
  b: jax.Array


@jax.tree_util.register_pytree_with_keys_class
class Custom:
  """A pytree of the caller's own, with names."""

  def __init__(self, kernel, bias):
    self.kernel, self.bias = kernel, bias

  def tree_flatten_with_keys(self):
    names = ("kernel", "bias")
    return [(jax.tree_util.GetAttrKey(n), getattr(self, n)) for n in names], None

  @classmethod
  def tree_unflatten(cls, _, children):
    return cls(*children)


@pytest.mark.parametrize("kind", ["list", "tuple", "namedtuple", "nested", "custom"])
def test_any_pytree(kernel, kind):
  bias = jnp.ones(64)
  params, pick = {
    "list": ([kernel, bias, kernel], lambda m: (m[0], m[1])),
    "tuple": ((kernel, bias), lambda m: m),
    "namedtuple": (Layer(kernel, bias), tuple),
    "custom": (Custom(kernel, bias), lambda m: (m.kernel, m.bias)),
    "nested": (
      {"net": [{"weight": kernel, "bias": bias}]},
      lambda m: (m["net"][0]["weight"], m["net"][0]["bias"]),
    ),
  }[kind]
  masks = kernel_masks(jax.random.key(1), params, DENSITY)
  assert structure(masks) == structure(params)
  of_kernel, of_bias = pick(masks)
  check_mask(of_kernel, kernel, round(DENSITY * 2048))
  assert of_bias is None


def test_numpy_parameters(params):
  on_host = jax.tree.map(np.asarray, params)
  equal(
    kernel_masks(jax.random.key(1), on_host, DENSITY),
    kernel_masks(jax.random.key(1), params, DENSITY),
  )


def test_low_precision_parameters(params):
  half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
  masks = kernel_masks(jax.random.key(1), half, DENSITY)
  count = round(DENSITY * 2048)
  check_mask(masks["hidden"]["kernel"], half["hidden"]["kernel"] != 0, count)


def test_apply_masks_zeroes_the_dead_and_keeps_the_rest(params):
  masks = kernel_masks(jax.random.key(1), params, DENSITY)
  noise = jax.tree.map(lambda x: jax.random.normal(jax.random.key(5), x.shape), params)
  got = apply_masks(noise, masks)
  for name in SHAPES:
    mask, kernel = np.asarray(masks[name]["kernel"]), np.asarray(got[name]["kernel"])
    before = np.asarray(noise[name]["kernel"])
    chex.assert_trees_all_equal(kernel[mask], before[mask])
    chex.assert_trees_all_equal(kernel[~mask], 0)
    chex.assert_trees_all_equal(got[name]["bias"], noise[name]["bias"])
  equal(apply_masks(got, masks), got)
  equal(jax.jit(apply_masks)(noise, masks), got)
  # The support is inside the mask: nothing of the start is lost.
  equal(apply_masks(params, masks), params)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, -1.0])
def test_apply_masks_gives_positive_zeros_whatever_was_there(bad):
  params = {"kernel": jnp.full((4, 4), bad, jnp.float32)}
  got = apply_masks(params, {"kernel": jnp.eye(4, dtype=bool)})["kernel"]
  dead = np.asarray(got)[~np.eye(4, dtype=bool)]
  chex.assert_trees_all_equal(dead.view(np.uint32), 0)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32, jnp.int32])
def test_apply_masks_keeps_the_dtype(dtype):
  masks = {"kernel": jnp.eye(4, dtype=bool)}
  got = apply_masks({"kernel": jnp.ones((4, 4), dtype)}, masks)["kernel"]
  assert got.dtype == dtype


@pytest.mark.parametrize(
  "density", [0, 0.0, -0.5, 1.5, float("nan"), float("inf"), "0.5", True]
)
def test_malformed_density(value_error, params, density):
  with value_error("density", str(density)):
    kernel_masks(jax.random.key(1), params, density)


def test_a_density_below_the_support_names_the_leaf(value_error, params):
  nonzeros = int(jnp.count_nonzero(params["hidden"]["kernel"]))
  with value_error("hidden/kernel", "102", str(nonzeros)):
    kernel_masks(jax.random.key(1), {"hidden": params["hidden"]}, 0.05)


def test_a_malformed_density_in_a_tree_names_the_leaf(value_error, params):
  densities = jax.tree.map(lambda _: None, params)
  densities["hidden"]["kernel"] = -0.5
  with value_error("hidden/kernel", "-0.5"):
    kernel_masks(jax.random.key(1), params, densities)


def test_densities_of_another_structure(value_error, params):
  with value_error("densit"):
    kernel_masks(jax.random.key(1), params, {"hidden": 0.2})


def other_structures(params):
  masks = kernel_masks(jax.random.key(1), params, DENSITY)
  missing = {k: v for k, v in masks.items() if k != "hidden"}
  extra = {**masks, "extra": {"kernel": None}}
  turned = {**masks, "hidden": {**masks["hidden"]}}
  turned["hidden"]["kernel"] = masks["hidden"]["kernel"].T
  floats = {**masks, "hidden": {**masks["hidden"]}}
  floats["hidden"]["kernel"] = masks["hidden"]["kernel"].astype(jnp.float32)
  return {
    "missing": (missing, ("masks", "hidden")),
    "extra": (extra, ("masks", "extra")),
    "shape": (turned, ("hidden/kernel", "(64, 32)", "(32, 64)")),
    "dtype": (floats, ("hidden/kernel", "bool", "float32")),
  }


@pytest.mark.parametrize("case", ["missing", "extra", "shape", "dtype"])
def test_masks_of_another_structure(value_error, params, case):
  masks, words = other_structures(params)[case]
  with value_error(*words):
    apply_masks(params, masks)


def test_densities_of_masks_are_what_sparsify_takes():
  masks = {
    "dense": None,
    "kernel": jnp.arange(12).reshape(3, 4) < 3,
    "stack": jnp.arange(24).reshape(3, 2, 4) < 12,
  }
  table = {"kernel": "io", "stack": "sio"}
  layouts = kernel_layouts(masks, table)
  found = mask_densities(masks, layouts=layouts)
  assert found["dense"] is None and found["kernel"] == 0.25
  # A layer without a weight counts as one with one: no density is 0.
  assert found["stack"].tolist() == [1, 0.5, 0.125]
  params = {name: jnp.ones(m.shape) for name, m in masks.items() if m is not None}
  wanted = {name: found[name] for name in params}
  drawn = random_masks(jax.random.key(0), params, wanted, layouts=layouts)
  assert drawn["stack"].sum(axis=(1, 2)).tolist() == [8, 4, 1]


def shapes(*shape):
  return jax.ShapeDtypeStruct(shape, jnp.float32)


@pytest.mark.slow
def test_random_masks_have_exact_counts_and_no_favourite_cells():
  params = {"kernel": shapes(4, 6), "bias": shapes(6)}
  keys = jax.random.split(jax.random.key(0), 1500)
  draw = jax.vmap(lambda key: random_masks(key, params, 0.3)["kernel"])
  masks = np.asarray(draw(keys))
  chex.assert_trees_all_equal(masks.sum(axis=(1, 2)), round(0.3 * 24))
  standard_error = np.sqrt(0.3 * 0.7 / len(keys))
  assert np.abs(masks.mean(axis=0) - 7 / 24).max() < 5 * standard_error
  assert random_masks(keys[0], params, 0.3)["bias"] is None


def test_a_stack_may_have_a_density_for_each_layer():
  params = {"kernel": shapes(3, 4, 6)}
  masks = random_masks(
    jax.random.key(0),
    params,
    {"kernel": np.array([0.25, 0.5, 1.0])},
    layouts=kernel_layouts(params, {"kernel": "sio"}),
  )
  np.testing.assert_array_equal(masks["kernel"].sum(axis=(1, 2)), [6, 12, 24])


def test_a_density_for_each_layer_of_another_number_of_layers(value_error):
  params = {"kernel": shapes(3, 4, 6)}
  with value_error("kernel", "(3,)", "(2,)"):
    random_masks(
      jax.random.key(0),
      params,
      {"kernel": np.array([0.25, 0.5])},
      layouts=kernel_layouts(params, {"kernel": "sio"}),
    )


def test_count_masks():
  masks = {
    "a": {"kernel": np.eye(4, dtype=bool), "bias": None},
    "b": [jnp.ones(3, bool)],
  }
  counts = count_masks(masks)
  assert {name: tuple(c) for name, c in counts.items()} == {
    "a/kernel": (4, 16),
    "b/0": (3, 3),
  }
  assert counts["a/kernel"].density == 0.25


@pytest.mark.parametrize("function", [count_masks, mask_densities])
def test_what_is_no_mask_is_not_counted(value_error, function):
  for leaf, words in (
    (jax.ShapeDtypeStruct((2, 2), bool), "object"),
    ("on", "<U2"),
    (jnp.ones((2, 2)), "float32 of shape (2, 2)"),
    (np.zeros((0, 3), bool), "bool of shape (0, 3)"),
  ):
    with value_error("`masks` must be bool arrays", words, "'k'"):
      function({"k": leaf})


@pytest.mark.parametrize("function", [count_masks, mask_densities, dead_units])
def test_traced_masks_are_not_counted(value_error, function):
  with value_error("must be concrete arrays, got a traced one for 'kernel'"):
    jax.jit(function)({"kernel": jnp.ones((2, 2), bool)})
