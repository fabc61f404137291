"""`sparsify`: every start, every kind of layer, exact budgets, one door."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eoi_jax import (
  Layout,
  apply_masks,
  conv_singular_values,
  count_masks,
  gram_errors,
  kernel_layouts,
  random_masks,
  sparsify,
)
from eoi_jax.givens import pattern_fill
from eoi_jax.layouts import find_kernels
from tests.cases import few

ATOL = 5e-6
KEY = jax.random.key(0)
MASKED = ["eoi", "base", "ai"]  # starts whose masks have the exact budget
FEW_STEPS = {"ai": {"num_steps": 20}}


def tree(**shapes):
  """Linen-like parameters: a kernel of each shape, and a bias."""
  return {
    name: {"kernel": jnp.zeros(shape), "bias": jnp.ones(shape[-1])}
    for name, shape in shapes.items()
  }


# Few shapes: each compiles.
MLP = tree(first=(48, 24), second=(24, 24), third=(24, 24))
CNN = tree(stem=(3, 3, 3, 8), conv=(3, 3, 8, 8), wide=(3, 3, 8, 16), out=(8, 16))

# Layers like those of the paper's networks, and how many of each.
MLP_7 = [((784, 100), 1), ((100, 100), 5), ((100, 10), 1)]
RESNET = [((3, 3, 3, 16), 1), ((3, 3, 16, 16), 5), ((1, 1, 16, 32), 1), ((64, 10), 1)]


def network(layers):
  return [jnp.zeros(shape) for shape, number in layers for _ in range(number)]


def layer_budgets(params, densities):
  flat = jax.tree.leaves(densities)
  kernels = [x for x in jax.tree.leaves(params) if x.ndim > 1]
  return [round(d * k.size) for d, k in zip(flat, kernels, strict=True)]


def live(masks):
  return {name: count.live for name, count in count_masks(masks).items()}


def check_zeros(params, masks):
  """Weights off the masks are exactly zero; dense leaves have no mask."""
  chex.assert_trees_all_equal(params, apply_masks(params, masks))


@pytest.mark.slow
@pytest.mark.parametrize("params", few([MLP, CNN]), ids=["mlp", "cnn"])
@pytest.mark.parametrize("start", MASKED)
def test_counts_are_exact_and_other_leaves_stay(start, params):
  new, masks = sparsify(KEY, params, 0.3, start=start, options=FEW_STEPS.get(start))
  kernels = {f"{name}/kernel": leaf["kernel"] for name, leaf in params.items()}
  assert live(masks) == {n: round(0.3 * k.size) for n, k in kernels.items()}
  check_zeros(new, masks)
  for name, leaf in new.items():
    chex.assert_trees_all_equal(leaf["bias"], params[name]["bias"])
    assert masks[name]["bias"] is None


@pytest.mark.slow
@pytest.mark.parametrize(
  ("layers", "given"),
  [(MLP_7, "masks"), (RESNET, "densities")],
  ids=["mlp_7-masks", "resnet-densities"],
)
def test_eoi_has_any_budgets_and_is_exact(layers, given):
  params = network(layers)
  rng = np.random.default_rng(0)
  floors = [max(0.05, 1.05 / max(x.shape[-2:])) for x in params]
  densities = [float(rng.uniform(low, 1.2 * low)) for low in floors]
  want = layer_budgets(params, densities)
  argument = densities
  if given == "masks":
    argument = random_masks(jax.random.key(1), params, densities)
  new, masks = sparsify(KEY, params, argument)
  assert [count.live for count in count_masks(masks).values()] == want
  assert max(float(e.max()) for e in gram_errors(new).values()) < ATOL
  check_zeros(new, masks)


@pytest.mark.slow
@pytest.mark.parametrize(
  "start", few([*MASKED, "sao", "eoi_structured", "orthogonal"], 2)
)
def test_a_layer_does_not_depend_on_the_rest_of_the_tree(start):
  options = FEW_STEPS.get(start)
  start_all = functools.partial(sparsify, KEY, start=start, options=options)
  new, masks = start_all(MLP, 0.25)
  alone, mask = start_all({"third": MLP["third"]}, 0.25)
  chex.assert_trees_all_close(
    alone["third"]["kernel"], new["third"]["kernel"], atol=1e-6, rtol=1e-7
  )
  if masks["third"]["kernel"] is not None:
    chex.assert_trees_all_equal(mask["third"]["kernel"], masks["third"]["kernel"])
  assert float(jnp.abs(new["second"]["kernel"] - new["third"]["kernel"]).max()) > 0.1


@pytest.mark.slow
def test_a_layer_does_not_depend_on_the_densities_of_others():
  def densities(other):
    values = dict.fromkeys(MLP, other) | {"second": 0.2}
    return {name: {"kernel": d, "bias": None} for name, d in values.items()}

  one, _ = sparsify(KEY, MLP, densities(0.15))
  two, _ = sparsify(KEY, MLP, densities(0.7))
  chex.assert_trees_all_equal(one["second"]["kernel"], two["second"]["kernel"])


def test_base_is_the_dense_reference_times_the_mask():
  masks = random_masks(jax.random.key(1), MLP, 0.3)
  dense, none = sparsify(KEY, MLP, 0.3, start="orthogonal")
  assert jax.tree.leaves(none) == []
  assert max(float(e.max()) for e in gram_errors(dense).values()) < ATOL
  new, same = sparsify(KEY, MLP, masks, start="base")
  for name in MLP:
    chex.assert_trees_all_equal(same[name]["kernel"], masks[name]["kernel"])
    chex.assert_trees_all_equal(
      new[name]["kernel"],
      np.where(masks[name]["kernel"], dense[name]["kernel"], 0.0),
    )


@pytest.mark.slow
def test_ai_is_nearer_to_an_isometry_than_base_on_the_same_mask():
  def error(start, **options):
    new, masks = sparsify(KEY, MLP, 0.3, start=start, options=options)
    kernel = np.asarray(new["second"]["kernel"])
    return np.linalg.norm(kernel @ kernel.T - np.eye(24)), masks["second"]["kernel"]

  base, base_mask = error("base")
  sgd, ai_mask = error("ai", num_steps=200)
  adam, _ = error("ai", method="adam")
  chex.assert_trees_all_equal(base_mask, ai_mask)
  assert adam < sgd < 0.7 * base


@pytest.mark.slow
def test_references_of_convolutions():
  for start, isometric in [
    ("orthogonal", False),
    ("delta_orthogonal", True),
    ("conv_orthogonal", True),
  ]:
    new, _ = sparsify(KEY, CNN, 1.0, start=start)
    errors = {n: float(e[0]) for n, e in gram_errors(new).items()}
    assert (errors["conv/kernel"] < ATOL) == isometric
    base, masks = sparsify(KEY, CNN, 0.5, start="base", options={"reference": start})
    chex.assert_trees_all_equal(
      base["conv"]["kernel"],
      jnp.where(masks["conv"]["kernel"], new["conv"]["kernel"], 0.0),
    )


@pytest.mark.slow
def test_eoi_in_mask_keeps_the_mask_and_is_exact():
  masks = random_masks(jax.random.key(3), MLP, 0.4)
  new, same = sparsify(KEY, MLP, masks, start="eoi_in_mask")
  check_zeros(new, masks)
  for name in MLP:
    chex.assert_trees_all_equal(same[name]["kernel"], masks[name]["kernel"])
    filled = float(pattern_fill(new[name]["kernel"], masks[name]["kernel"]))
    assert filled > 0.15  # a perfect matching alone is 24 / 230
  assert max(float(e.max()) for e in gram_errors(new).values()) < ATOL


@pytest.mark.slow
def test_eoi_in_mask_of_convolutions_uses_the_center_of_the_mask():
  params = {"kernel": jnp.zeros((3, 3, 16, 16))}
  masks = random_masks(jax.random.key(3), params, 0.4)
  new, _ = sparsify(KEY, params, masks, start="eoi_in_mask")
  check_zeros(new, masks)
  assert float(gram_errors(new)["kernel"][0]) < ATOL


@pytest.mark.parametrize("fallback", few(["partial", "ai", "base"], 0))
def test_a_mask_with_a_dead_unit_has_no_isometry(fallback, value_error):
  masks = random_masks(jax.random.key(3), MLP, 0.4)
  cut = masks["second"]["kernel"].at[5].set(False)
  masks["second"]["kernel"] = cut
  with value_error("second/kernel", "perfect matching", "row 5", "fallback"):
    sparsify(KEY, MLP, masks, start="eoi_in_mask")
  new, same = sparsify(
    KEY, MLP, masks, start="eoi_in_mask", options={"fallback": fallback}
  )
  chex.assert_trees_all_equal(same["second"]["kernel"], cut)
  check_zeros(new, masks)
  errors = {n: float(e[0]) for n, e in gram_errors(new).items()}
  assert errors["first/kernel"] < ATOL and errors["third/kernel"] < ATOL
  values = np.linalg.svd(new["second"]["kernel"], compute_uv=False)
  if fallback == "partial":
    np.testing.assert_allclose(values, [1] * 23 + [0], atol=ATOL)
  else:
    assert np.abs(values[:23] - 1).max() > 1e-3


def test_a_fallback_takes_the_options_of_its_start(value_error):
  masks = random_masks(jax.random.key(3), MLP, 0.4)
  masks["second"]["kernel"] = masks["second"]["kernel"].at[5].set(False)
  options = {"fallback": "ai", "reference": "delta_orthogonal", "num_steps": 0}
  new, _ = sparsify(KEY, MLP, masks, start="eoi_in_mask", options=options)
  base, _ = sparsify(KEY, MLP, masks, start="base")  # of no step
  chex.assert_trees_all_equal(new["second"], base["second"])
  options = {"fallback": "base", "num_steps": 5}
  with value_error("`options`", "'base'", "reference", "'num_steps'"):
    sparsify(KEY, MLP, masks, start="eoi_in_mask", options=options)


@pytest.mark.slow
def test_sao_of_dense_kernels_and_convolutions():
  new, masks = sparsify(KEY, CNN, 0.25, start="sao")
  assert masks["stem"]["kernel"] is None and masks["out"]["kernel"] is None
  assert max(float(e.max()) for e in gram_errors(new).values()) < ATOL
  assert live(masks) == {"conv/kernel": 0.25 * 576, "wide/kernel": 0.25 * 1152}
  taps = np.asarray(masks["conv"]["kernel"]).reshape(9, 8, 8)
  assert (taps == taps[0]).all() and set(taps[0].sum(0)) == {2}
  new, masks = sparsify(KEY, MLP, 0.25, start="sao", options={"relu": True})
  values = np.linalg.svd(new["second"]["kernel"], compute_uv=False)
  np.testing.assert_allclose(values, [2] * 12 + [0] * 12, atol=ATOL)
  assert masks["first"]["kernel"] is None


def test_sao_has_the_precision_of_its_leaves(x64):
  new, _ = sparsify(KEY, {"kernel": jnp.zeros((16, 16))}, 0.25, start="sao")
  assert gram_errors(new)["kernel"].max() < 1e-14


def test_sao_refuses_illegal_densities(value_error):
  with value_error("second/kernel", "1, 2, 3, 4, 6, 8, 12, 24", "got 7.2"):
    sparsify(KEY, MLP, 0.3, start="sao")
  with value_error("second/kernel", "1, 2, 3, 4, 6, 8, 12, 24", "got 5"):
    sparsify(KEY, MLP, 0.3, start="sao", options={"degree": 5})
  _, masks = sparsify(KEY, MLP, 0.3, start="sao", options={"degree": 4})
  assert live(masks)["second/kernel"] == 4 * 24


@pytest.mark.slow
def test_eoi_structured_trains_whole_windows():
  new, masks = sparsify(KEY, CNN, 0.25, start="eoi_structured")
  assert masks["stem"]["kernel"] is None and masks["out"]["kernel"] is None
  assert max(float(e.max()) for e in gram_errors(new).values()) < ATOL
  mask, kernel = masks["wide"]["kernel"], new["wide"]["kernel"]
  chex.assert_trees_all_equal(mask, np.broadcast_to(kernel[1, 1] != 0, (3, 3, 8, 16)))
  assert 0.25 * 128 - 8 < np.count_nonzero(mask[1, 1]) <= 0.25 * 128
  check_zeros(new, masks)


# Depthwise and grouped convolutions, stride, 1x1, embeddings, stacked leaves.


def convolve(inputs, kernel, groups):
  pads = [((k - 1) // 2, k // 2) for k in kernel.shape[:2]]
  return jax.lax.conv_general_dilated(
    jnp.pad(inputs, [(0, 0), *pads, (0, 0)], mode="wrap"),
    kernel,
    (1, 1),
    "VALID",
    feature_group_count=groups,
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
    precision="highest",
  )


@pytest.mark.slow
@pytest.mark.parametrize(
  ("shape", "groups"), [((3, 3, 1, 8), 8), ((3, 3, 4, 16), 2), ((3, 3, 4, 8), 4)]
)
def test_grouped_convolutions_are_isometries(shape, groups):
  params = tree(conv=shape)
  layouts = kernel_layouts(params, {"conv/kernel": Layout("wwio", groups)})
  options = {"layouts": layouts}
  new, masks = sparsify(KEY, params, 0.3, **options)
  kernel = new["conv"]["kernel"]
  assert live(masks)["conv/kernel"] == round(0.3 * kernel.size)
  check_zeros(new, masks)
  assert float(gram_errors(new, **options)["conv/kernel"][0]) < ATOL
  num_inputs = shape[2] * groups
  inputs = jax.random.normal(jax.random.key(1), (1, 6, 6, num_inputs))
  outputs = convolve(inputs, kernel, groups)
  if shape[2] * groups <= shape[3]:  # else the map contracts
    chex.assert_trees_all_close(
      jnp.linalg.norm(outputs), jnp.linalg.norm(inputs), rtol=1e-5
    )
  if groups == 8:
    assert bool((kernel != 0).any(axis=(0, 1, 2)).all()), "a channel is dead"


@pytest.mark.slow
def test_depthwise_kernels_keep_every_channel_or_say_so(value_error):
  params = tree(depthwise=(3, 3, 1, 32), pointwise=(1, 1, 32, 64))
  with value_error("depthwise/kernel", "doubt", "groups=32"):
    sparsify(KEY, params, 0.5)
  layouts = kernel_layouts(params, {"depthwise/kernel": Layout("wwio", groups=32)})
  for start in ("eoi", "base", "ai", "sao", "eoi_structured", "conv_orthogonal"):
    options = {"options": FEW_STEPS.get(start), "layouts": layouts}
    new, _ = sparsify(KEY, params, 0.5, start=start, **options)
    kernel = new["depthwise"]["kernel"]
    assert bool((kernel != 0).any(axis=(0, 1, 2)).all()), start
  with value_error("depthwise/kernel", "0.1111", "channel", "None"):
    sparsify(KEY, params, 0.1, layouts=layouts)
  densities = {
    "depthwise": {"kernel": None, "bias": None},
    "pointwise": {"kernel": 0.1, "bias": None},
  }
  new, masks = sparsify(KEY, params, densities)
  assert masks["depthwise"]["kernel"] is None
  chex.assert_trees_all_equal(new["depthwise"]["kernel"], params["depthwise"]["kernel"])


def test_an_image_of_one_channel_is_no_depthwise_convolution():
  params = tree(stem=(3, 3, 1, 8))
  options = {"layouts": kernel_layouts(params, {"stem/kernel": "wwio"})}
  new, masks = sparsify(KEY, params, 0.5, **options)
  assert float(gram_errors(new, **options)["stem/kernel"][0]) < ATOL
  inputs = jax.random.normal(jax.random.key(1), (1, 6, 6, 1))
  outputs = convolve(inputs, new["stem"]["kernel"], 1)
  chex.assert_trees_all_close(
    jnp.linalg.norm(outputs), jnp.linalg.norm(inputs), rtol=1e-5
  )
  assert live(masks)["stem/kernel"] == 36


def test_groups_must_divide_the_outputs(value_error):
  with value_error("`groups`", "conv/kernel", "8 outputs", "3"):
    kernel_layouts(CNN, {"conv/kernel": Layout("wwio", groups=3)})


def test_patches_are_one_orthogonal_matrix():
  """Stride = window, as in a patch embedding: the whole window takes part."""
  params = tree(embed=(4, 4, 3, 64))
  layouts = kernel_layouts(params, {"embed/kernel": "iiio"})
  new, masks = sparsify(KEY, params, 0.2, layouts=layouts)
  kernel = new["embed"]["kernel"]
  assert live(masks)["embed/kernel"] == round(0.2 * kernel.size)
  assert bool((kernel != 0).any(axis=(2, 3)).all()), "a tap is dead"
  inputs = jax.random.normal(jax.random.key(1), (2, 8, 8, 3))
  outputs = jax.lax.conv_general_dilated(
    inputs,
    kernel,
    (4, 4),
    "VALID",
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
    precision="highest",
  )
  chex.assert_trees_all_close(
    jnp.sum(outputs**2, (1, 2, 3)), jnp.sum(inputs**2, (1, 2, 3)), rtol=1e-5
  )


def test_pointwise_kernels_are_matrices():
  params = tree(point=(1, 1, 16, 32))
  new, masks = sparsify(KEY, params, 0.3)
  assert live(masks)["point/kernel"] == round(0.3 * 512)
  matrix = new["point"]["kernel"][0, 0]
  gram = jnp.matmul(matrix, matrix.T, precision="highest")
  np.testing.assert_allclose(gram, np.eye(16), atol=ATOL)


def test_embeddings_stay_dense_unless_asked_for():
  params = {"embed": {"embedding": jnp.ones((64, 16))}, **tree(out=(16, 16))}
  new, masks = sparsify(KEY, params, 0.3)
  assert masks["embed"]["embedding"] is None
  chex.assert_trees_all_equal(new["embed"]["embedding"], jnp.ones((64, 16)))
  layouts = kernel_layouts(params, {"embed/embedding": "io"})
  new, masks = sparsify(KEY, params, 0.3, layouts=layouts)
  assert live(masks)["embed/embedding"] == round(0.3 * 1024)
  table = new["embed"]["embedding"]  # orthonormal columns, one for each feature
  gram = jnp.matmul(table.T, table, precision="highest")
  np.testing.assert_allclose(gram, np.eye(16), atol=ATOL)


@pytest.mark.slow
@pytest.mark.parametrize("start", few([*MASKED, "sao", "eoi_in_mask"]))
def test_stacked_leaves_hold_independent_layers(start):
  params = {"hidden": {"kernel": jnp.zeros((4, 24, 24)), "bias": jnp.ones((4, 24))}}
  layouts = kernel_layouts(params, {"*/kernel": "sio"})
  options = {"start": start, "layouts": layouts}
  if start in FEW_STEPS:
    options["options"] = FEW_STEPS[start]
  new, masks = sparsify(KEY, params, 0.25, **options)
  kernel, mask = new["hidden"]["kernel"], masks["hidden"]["kernel"]
  assert mask.sum(axis=(1, 2)).tolist() == [144] * 4
  assert float(jnp.abs(kernel[1] - kernel[2]).max()) > 0.1
  if start not in ("base", "ai"):
    errors = gram_errors(new, layouts=layouts)
    assert errors["hidden/kernel"].shape == (4,)
    assert errors["hidden/kernel"].max() < ATOL


def test_stacked_leaves_take_a_density_a_layer():
  params = {"hidden": {"kernel": jnp.zeros((3, 24, 24))}}
  densities = {"hidden": {"kernel": np.array([0.1, 0.3, 1.0])}}
  layouts = kernel_layouts(params, {"hidden/kernel": "sio"})
  new, masks = sparsify(KEY, params, densities, layouts=layouts)
  assert masks["hidden"]["kernel"].sum(axis=(1, 2)).tolist() == [58, 173, 576]
  errors = gram_errors(new, layouts=layouts)
  assert errors["hidden/kernel"].max() < ATOL


@pytest.mark.slow
def test_density_one_is_dense():
  for start in MASKED:
    new, masks = sparsify(KEY, MLP, 1.0, start=start, options=FEW_STEPS.get(start))
    assert all(bool(m.all()) for m in jax.tree.leaves(masks))
    errors = gram_errors(new)
    assert max(float(e.max()) for e in errors.values()) < ATOL


def test_scale_multiplies_isometric_kernels():
  new, _ = sparsify(KEY, MLP, 0.3, scale=1.5)
  errors = gram_errors(new, scale=1.5)
  assert max(float(e.max()) for e in errors.values()) < 2 * ATOL


@pytest.mark.parametrize("start", few(["eoi", "base", "ai"], 0))
def test_densities_are_static_under_jit(start):
  options = FEW_STEPS.get(start)

  @jax.jit
  def compiled(key, params):
    return sparsify(key, params, 0.25, start=start, options=options)

  chex.assert_trees_all_close(
    compiled(KEY, MLP),
    sparsify(KEY, MLP, 0.25, start=start, options=options),
    atol=1e-5,
    rtol=1e-7,
  )


def test_masks_under_jit(value_error):
  """Base keeps them, so it may trace them; EOI counts them, so it may not."""
  masks = random_masks(jax.random.key(1), MLP, 0.3)
  start = functools.partial(sparsify, KEY, MLP)
  traced, _ = jax.jit(lambda m: start(m, start="base"))(masks)
  eager, _ = start(masks, start="base")
  chex.assert_trees_all_close(
    traced["second"]["kernel"], eager["second"]["kernel"], atol=1e-6, rtol=1e-7
  )
  with value_error("masks", "concrete"):
    jax.jit(start)(masks)


@pytest.mark.parametrize(
  ("options", "words"),
  [
    ({"start": "eio"}, ("`start`", "eoi", "base", "ai", "sao", "'eio'")),
    ({"options": {"num_steps": 5}}, ("`options`", "eoi", "schedule", "'num_steps'")),
    ({"start": "ai", "options": {"method": "x"}}, ("`method`", "adam", "'x'")),
    ({"start": "base", "options": {"reference": "x"}}, ("`reference`", "delta")),
    ({"start": "eoi_in_mask", "options": {"fallback": "x"}}, ("`fallback`", "'x'")),
    ({"scale": float("inf")}, ("`scale`", "inf")),
    ({"scale": "1"}, ("`scale`", "'1'")),
    ({"scale": True}, ("`scale`", "True")),
  ],
)
def test_errors_list_what_is_known(options, words, value_error):
  with value_error(*words):
    sparsify(KEY, MLP, 0.3, **options)


def test_errors_name_the_leaf(value_error):
  with value_error("first/kernel", "0.02083", "(48, 24)", "0.01"):
    sparsify(KEY, MLP, 0.01)
  with value_error("conv/kernel", "0.125", "eoi_structured", "start 'eoi', whose"):
    sparsify(KEY, CNN, 0.05, start="eoi_structured")
  for density in (0.0, True, "0.3"):
    with value_error("density", "(0, 1]", repr(density)):
      sparsify(KEY, MLP, density)
  masks = random_masks(KEY, MLP, 0.3)
  masks["first"]["bias"] = jnp.ones(24, bool)
  with value_error("masks", "first/bias"):
    sparsify(KEY, MLP, masks)


@pytest.mark.slow
def test_all_taps_of_every_kind_of_convolution(value_error):
  params = {
    "square": {"kernel": jnp.zeros((3, 3, 16, 24))},
    "stack": {"kernel": jnp.zeros((2, 3, 16, 16))},
    "groups": {"kernel": jnp.zeros((3, 3, 8, 16))},
    "dense": {"kernel": jnp.zeros((24, 24))},
  }
  table = {"stack/*": "swio", "groups/*": Layout("wwio", groups=2)}
  layouts = kernel_layouts(params, table)
  new, masks = sparsify(
    KEY, params, 0.2, layouts=layouts, options={"taps": "all", "schedule": "matching"}
  )
  check_zeros(new, masks)
  assert live(masks) == {
    n: round(0.2 * k.layer_size) * k.num_layers
    for n, k in find_kernels(params, layouts).items()
  }
  for kernel in find_kernels(new, layouts).values():
    for block in kernel.to_blocks(np.asarray(kernel.leaf)):
      if block.ndim > 2:
        image = (5,) * (block.ndim - 2)
        values = conv_singular_values(block, image, padding="CIRCULAR")
        chex.assert_trees_all_close(values, 1.0, atol=1e-5, rtol=1e-7)
        if min(block.shape[-2:]) >= 16:  # channels enough for every tap
          assert (block != 0).any(axis=(-1, -2)).all(), "a tap is empty"
  with value_error("`taps`", "'center', 'all'", "'every'"):
    sparsify(KEY, CNN, 0.3, options={"taps": "every"})


@pytest.mark.slow
def test_threads_draw_in_the_precision_of_their_caller():
  for x64, dtype, atol in ((False, "float32", 5e-6), (True, "float64", 1e-14)) * 2:
    with jax.enable_x64(x64):
      params = {"a": np.zeros((30, 20), dtype), "b": np.zeros((20, 50), dtype)}
      layouts = kernel_layouts(params, {"*": "io"})
      new, masks = sparsify(KEY, params, 0.3, layouts=layouts)
      chex.assert_trees_all_equal_dtypes(new, params)
      assert live(masks) == {"a": 180, "b": 300}
      for error in gram_errors(new, layouts=layouts).values():
        assert error.max() < atol
