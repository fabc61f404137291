"""Densities from shapes against recorded ones, and budgets exact to one weight."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import eoi_jax
from eoi_jax import Layout
from eoi_jax.layouts import find_kernels

MODELS = ("mlp-7", "cifar_resnet_32", "efficientnet-b0")
DENSITIES = (0.005, 0.01, 0.02, 0.05, 0.1, 0.125, 0.3, 0.5, 0.77, 0.95, 0.999, 1.0)
# Windows first, then in and out; and a stack of equal layers.
TREE = {
  "first": {"kernel": jnp.ones((3, 3, 3, 16)), "bias": jnp.ones(16)},
  "hidden": {"kernel": jnp.ones((5, 16, 16))},
  "last": {"kernel": jnp.ones((16, 10)), "bias": jnp.ones(10)},
}
SIZES = np.array([432, *[256] * 5, 160])


LAYOUTS = eoi_jax.kernel_layouts(TREE, {"hidden/*": "sio"})


@pytest.fixture(scope="module")
def models(golden):
  """Tree of shapes (Flax layout) and recorded densities of each model."""
  recorded = json.loads((golden / "layer_densities.json").read_text())
  assert set(recorded) == set(MODELS)
  return {
    name: (
      [jax.ShapeDtypeStruct(tuple(s[::-1]), jnp.float32) for _, s in model["layers"]],
      model,
    )
    for name, model in recorded.items()
  }


def layouts_of(tree):
  depthwise = {
    str(n): Layout("wwio", groups=leaf.shape[-1])
    for n, leaf in enumerate(tree)
    if len(leaf.shape) == 4 and leaf.shape[-2] == 1
  }
  return eoi_jax.kernel_layouts(tree, depthwise, convention="hwio")


def counts_of(tree, densities, layouts=None):
  """Trained weights of every layer, by the rule that is documented."""
  kernels = find_kernels(tree, layouts)
  values = [d for d in jax.tree.leaves(densities) if d is not None]
  return np.concatenate(
    [
      [round(d * k.layer_size) for d in np.broadcast_to(v, k.num_layers).tolist()]
      for k, v in zip(kernels.values(), values, strict=True)
    ]
  )


@pytest.mark.parametrize("name", MODELS)
def test_erk_equals_the_recorded_densities(models, name):
  tree, model = models[name]
  assert model["dens"]
  for density, recorded in model["dens"].items():
    erk = eoi_jax.erk(tree, float(density))
    np.testing.assert_allclose(erk, recorded["erk"], rtol=0, atol=1e-9)
    dense = [n for (n, _), d in zip(model["layers"], erk, strict=True) if d == 1.0]
    assert dense == recorded["erk_dense"]


@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.parametrize("power_scale", [0.0, 0.5, 1.0, 2.0])
def test_erk_has_the_density_and_one_factor(density, power_scale):
  erk = eoi_jax.erk(TREE, density, power_scale=power_scale, layouts=LAYOUTS)
  assert erk["first"]["bias"] is None
  d = np.array([erk[n]["kernel"] for n in ("first", "hidden", "last")])
  shapes = [(3, 3, 3, 16), (16, 16), (16, 10)]
  raw = np.array([(sum(s) / math.prod(s)) ** power_scale for s in shapes])
  assert np.isclose(d @ [432, 1280, 160], density * 1872, rtol=1e-12)
  assert np.all((d > 0) & (d <= 1))
  free = d < 1
  factors = (d / raw)[free]
  assert np.allclose(factors, factors[:1], rtol=1e-12)
  if free.any():  # what is capped would pass 1
    assert np.all(factors[0] * raw[~free] >= 1 - 1e-12)


@pytest.mark.parametrize("power_scale", [300.0, -300.0])
def test_extreme_powers_fill_one_kernel_after_the_other(power_scale):
  tree = [jnp.ones((64, 64)), jnp.ones((64, 32))]
  erk = eoi_jax.erk(tree, 0.25, power_scale=power_scale)
  want = (1536 / 4096, 0.0) if power_scale < 0 else (0.0, 0.75)
  np.testing.assert_allclose(erk, want, atol=1e-9)


def test_uniform_keeps_the_named_kernels_dense(value_error):
  densities = eoi_jax.uniform(
    TREE, 0.2, dense=("first/kernel", "last/kernel"), layouts=LAYOUTS
  )
  assert densities["first"] == {"kernel": 1.0, "bias": None}
  assert densities["hidden"]["kernel"] == 0.2
  assert densities["last"]["kernel"] == 1.0
  with value_error("`dense`", "'first/bias'", "last/kernel"):
    eoi_jax.uniform(TREE, 0.2, dense=("first/bias",), layouts=LAYOUTS)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("floors", ["ignore", "lift"])
@pytest.mark.parametrize("rule", ["uniform", "erk"])
def test_counts_add_up_for_every_model(models, name, floors, rule):
  tree, _ = models[name]
  layouts = layouts_of(tree)
  kernels = list(find_kernels(tree, layouts).values())
  sizes = np.array([k.layer_size for k in kernels])
  least = np.array([min(k.block_shape[-2:]) * k.layout.groups for k in kernels])
  real = {"uniform": eoi_jax.uniform, "erk": eoi_jax.erk}[rule]
  for density in (*DENSITIES, *np.linspace(0.0051, 0.9987, 7).tolist()):
    if floors == "lift" and round(density * float(sizes.sum())) < least.sum():
      continue
    densities = eoi_jax.allocate(
      tree, density, rule=rule, floors=floors, layouts=layouts
    )
    counts = counts_of(tree, densities, layouts)
    assert counts.sum() == round(density * float(sizes.sum()))
    assert np.all((counts <= sizes) & (counts >= 1))
    wanted = np.array(real(tree, density, layouts=layouts)) * sizes
    if floors == "lift":
      assert np.all(counts >= least)
    elif wanted.min() >= 1:  # at most one weight from the real number
      assert np.all(np.abs(counts - wanted) < 1 + 1e-6)


def test_uniform_on_mlp_7_is_exact_to_one_weight():
  tree = [shape_of(784, 100), *[shape_of(100, 100)] * 5, shape_of(100, 10)]
  densities = eoi_jax.allocate(tree, 0.1)
  assert counts_of(tree, densities).sum() == 12940
  small = [shape_of(64, 81), *[shape_of(81, 81)] * 5, shape_of(81, 10)]
  total = sum(math.prod(x.shape) for x in small)
  for density in np.linspace(0.02, 0.99, 98).tolist():
    densities = eoi_jax.allocate(small, density)
    assert counts_of(small, densities).sum() == round(density * total)


def shape_of(*shape):
  return jax.ShapeDtypeStruct(shape, jnp.float32)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(density=st.floats(0.3, 0.9), values=st.lists(st.floats(0.1, 0.9), min_size=3))
def test_densities_of_your_own_are_scaled_to_the_total(density, values):
  tree = [shape_of(3, n + 2) for n in range(len(values))]
  sizes = np.array([math.prod(leaf.shape) for leaf in tree])
  counts = counts_of(tree, eoi_jax.allocate(tree, density, rule=values))
  assert counts.sum() == round(density * float(sizes.sum()))
  wanted = np.array(values) * sizes
  free = (counts < sizes) & (counts > 1)
  if free.any():  # one factor for all that are neither full nor at one weight
    low, high = (counts[free] - 1) / wanted[free], (counts[free] + 1) / wanted[free]
    assert low.max() <= high.min() + 1e-9


def test_the_largest_remainders_get_the_rest():
  tree = [jnp.ones((1, 10))] * 4
  own = eoi_jax.allocate(tree, 0.225, rule=[0.27, 0.16, 0.12, 0.35])
  assert counts_of(tree, own).tolist() == [3, 2, 1, 3]
  ties = eoi_jax.allocate(tree, 0.25)
  assert counts_of(tree, ties).tolist() == [3, 3, 2, 2]  # of equal ones the first


def test_scores_give_each_layer_its_share_of_the_highest():
  tree = {"a": {"w": jnp.ones((4, 4))}, "b": {"w": jnp.ones((4, 4))}}
  scores = jax.tree.map(lambda x: x + jnp.arange(16.0).reshape(4, 4), tree)
  scores["b"]["w"] += 8
  densities = eoi_jax.allocate(tree, 0.5, rule=scores)
  masks = eoi_jax.global_masks(scores, 0.5)
  expected = [int(mask.sum()) for mask in jax.tree.leaves(masks)]
  assert counts_of(tree, densities).tolist() == expected
  # A layer without any of the highest keeps one weight; another pays.
  scores["b"]["w"] += 100
  assert counts_of(tree, eoi_jax.allocate(tree, 0.5, rule=scores)).tolist() == [1, 15]


def test_stacks_are_layers():
  densities = eoi_jax.allocate(TREE, 0.101, layouts=LAYOUTS)
  assert np.shape(densities["hidden"]["kernel"]) in ((), (5,))
  assert densities["first"]["bias"] is None
  counts = counts_of(TREE, densities, LAYOUTS)
  assert counts.sum() == round(0.101 * SIZES.sum())
  masks = eoi_jax.random_masks(jax.random.key(0), TREE, densities, layouts=LAYOUTS)
  live = masks["hidden"]["kernel"].sum(axis=(1, 2))
  assert live.tolist() == counts[1:6].tolist()


@pytest.mark.slow
def test_floors_are_lifted_and_the_total_holds(value_error):
  options = {"layouts": LAYOUTS}
  own = eoi_jax.uniform(TREE, 0.5, **options)
  own["hidden"]["kernel"] = 0.03  # 7.68 of 256 weights; an orthogonal one needs 16
  with value_error("`density`", "'hidden/kernel'", "16 weights", 'floors="lift"'):
    eoi_jax.allocate(TREE, 0.18, rule=own, floors="error", **options)
  lifted = eoi_jax.allocate(TREE, 0.18, rule=own, floors="lift", **options)
  counts = counts_of(TREE, lifted, LAYOUTS)
  assert counts.sum() == round(0.18 * SIZES.sum())
  assert set(counts[1:6].tolist()) <= {16, 17}  # 17: a remainder
  free = counts[[0, 6]]
  wanted = np.array([0.5 * 432, 0.5 * 160])
  # The others keep their proportion, to one weight each.
  assert np.all(np.abs(free - wanted * free.sum() / wanted.sum()) < 1)
  params, masks = eoi_jax.sparsify(jax.random.key(0), TREE, lifted, **options)
  live = sum(c.live for c in eoi_jax.count_masks(masks).values())
  assert live == counts.sum()
  for errors in eoi_jax.gram_errors(params, **options).values():
    assert np.max(errors) < 5e-6


@pytest.mark.slow
def test_what_allocate_gives_sparsify_takes():
  """A small head and depthwise kernels, at densities where a share rounds to 0."""
  tree = {
    "wide": {"kernel": jnp.zeros((64, 64))},
    "depth": {"kernel": jnp.zeros((3, 3, 1, 16))},
    "head": {"kernel": jnp.zeros((8, 2))},
  }
  layouts = eoi_jax.kernel_layouts(tree, {"depth/*": Layout("wwio", groups=16)})
  for rule in ("uniform", "erk"):
    lifted = eoi_jax.allocate(tree, 0.03, rule=rule, floors="lift", layouts=layouts)
    _, masks = eoi_jax.sparsify(jax.random.key(0), tree, lifted, layouts=layouts)
    live = sum(c.live for c in eoi_jax.count_masks(masks).values())
    assert live == round(0.03 * (4096 + 144 + 16))
    ignored = eoi_jax.allocate(tree, 0.01, rule=rule, layouts=layouts)
    masks = eoi_jax.random_masks(jax.random.key(0), tree, ignored, layouts=layouts)
    assert all(c.live >= 1 for c in eoi_jax.count_masks(masks).values())


def test_dense_layers_come_on_top():
  densities = eoi_jax.allocate(TREE, 0.4, dense=("first/kernel",), layouts=LAYOUTS)
  counts = counts_of(TREE, densities, LAYOUTS)
  assert counts[0] == 432
  assert counts[1:].sum() == round(0.4 * SIZES[1:].sum())


@pytest.mark.parametrize("rule", ["erk", "scores"])
def test_the_rule_is_for_what_is_not_dense(rule, value_error):
  rng = np.random.default_rng(0)
  shapes = {"a": (40, 10), "b": (33, 10), "c": (10, 8)}
  tree = {n: {"w": jnp.asarray(rng.standard_normal(s))} for n, s in shapes.items()}
  tree["a"]["w"] += 100  # among the highest of all
  rules = [tree, {n: tree[n] for n in "bc"}] if rule == "scores" else [rule, rule]
  found = eoi_jax.allocate(tree, 0.3, rule=rules[0], dense={"a/w"})
  alone = eoi_jax.allocate({n: tree[n] for n in "bc"}, 0.3, rule=rules[1])
  assert found == {"a": {"w": 1.0}} | alone
  for bad in ("a/w", 5, iter(["a/w"])):
    for function in (eoi_jax.allocate, eoi_jax.uniform):
      with value_error("`dense`", "kernels of ['a/w'", f"got {bad!r}"):
        function(tree, 0.3, dense=bad)


def test_what_cannot_be_met_is_refused(value_error):
  tree = [jnp.ones((8, 8)), jnp.ones((8, 8))]
  with value_error("`density`", "between 16", "got a total of 13"):
    eoi_jax.allocate(tree, 0.1, floors="lift")
  with value_error("`floors`", "'ignore', 'error', 'lift'", "'raise'"):
    eoi_jax.allocate(tree, 0.1, floors="raise")
  with value_error("`rule`", "'uniform', 'erk'", "'snip'"):
    eoi_jax.allocate(tree, 0.1, rule="snip")
  for bad, words in ((np.nan, "real"), (0, "zero everywhere"), (1j, "real")):
    with value_error("`rule`", words):
      eoi_jax.allocate(tree, 0.5, rule=[np.full((8, 8), bad), np.full((8, 8), bad)])
  with value_error("`rule`", "'1'", "(3,)"):
    eoi_jax.allocate(tree, 0.1, rule=[0.5, np.ones(3)])
  with value_error("`density`", "(0, 1]", "1.5"):
    eoi_jax.allocate(tree, 1.5)
  with value_error("`density`", "(0, 1]", "0"):
    eoi_jax.erk(tree, 0)
  with value_error("`power_scale`", "inf"):
    eoi_jax.erk(tree, 0.5, power_scale=math.inf)


def test_densities_may_be_numbers_of_any_kind():
  tree = {"kernel": jnp.zeros((8, 8))}
  for density in (np.float32(0.5), np.float64(0.5), jnp.float32(0.5), 1):
    masks = eoi_jax.random_masks(jax.random.key(0), tree, density)
    assert int(masks["kernel"].sum()) == round(float(density) * 64)
