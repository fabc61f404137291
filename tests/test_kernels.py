"""Which leaves are kernels, their names, and the densities given to them."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx

from eoi_jax import _kernels as kernels
from eoi_jax import count_masks, random_masks, uniform


class Layer(NamedTuple):
  w: object
  b: object


def shapes(*shape):
  return jax.ShapeDtypeStruct(shape, jnp.float32)


def names_of(tree, **options):
  return list(kernels.find_kernels(tree, **options))


@pytest.mark.parametrize(
  ("tree", "names"),
  [
    ({"a": {"kernel": shapes(2, 3), "bias": shapes(3)}}, ["a/kernel"]),
    ({"net": [{"weight": shapes(2, 3)}, {"weight": shapes(3, 4)}]}, None),
    ([shapes(2, 3), shapes(3), shapes(3, 4)], ["0", "2"]),
    ((shapes(2, 3), (shapes(3, 4),)), ["0", "1/0"]),
    (Layer(shapes(2, 3), shapes(2, 3)), ["w"]),
    ({"conv": {"kernel": shapes(3, 3, 4, 8)}}, ["conv/kernel"]),
    ({"embedding": shapes(9, 4), "scale": shapes(4), "kernel": shapes(4)}, []),
    ({"norm": {"scale": shapes(2, 3)}}, []),
    ({"kernel": None, "w": optax.MaskedNode()}, []),
    (shapes(2, 3), [""]),
    ({}, []),
  ],
)
def test_default_kernels(tree, names):
  assert names_of(tree) == (
    ["net/0/weight", "net/1/weight"] if names is None else names
  )


def test_kernels_of_flax_linen():
  class Net(linen.Module):
    @linen.compact
    def __call__(self, x):
      x = linen.LayerNorm()(linen.Conv(8, (3, 3))(x))
      return linen.Dense(4)(x.reshape(len(x), -1))

  params = jax.eval_shape(Net().init, jax.random.key(0), jnp.ones((1, 4, 4, 3)))
  assert names_of(params) == ["params/Conv_0/kernel", "params/Dense_0/kernel"]


def test_kernels_of_flax_nnx():
  state = nnx.state(nnx.Linear(4, 8, rngs=nnx.Rngs(0)), nnx.Param)
  (kernel,) = kernels.find_kernels(state).values()
  assert kernel.name.startswith("kernel") and kernel.shape == (4, 8)


def test_a_stacked_leaf_is_seen_layer_by_layer():
  tree = {"layers": {"kernel": shapes(5, 2, 3)}, "head": {"kernel": shapes(3, 4)}}
  found = kernels.find_kernels(tree, is_stacked=lambda name, leaf: "layers" in name)
  stack, head = found["layers/kernel"], found["head/kernel"]
  assert (stack.shape, stack.num_layers, stack.size) == ((2, 3), 5, 6)
  assert (head.shape, head.num_layers, head.size) == ((3, 4), 1, 12)


def test_a_stack_of_vectors_is_no_stack_of_kernels(value_error):
  with value_error("kernel", "(5, 3)"):
    kernels.find_kernels({"kernel": shapes(5, 3)}, is_stacked=lambda name, leaf: True)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
def test_an_empty_kernel(value_error, shape):
  with value_error("kernel", str(shape)):
    kernels.find_kernels({"kernel": shapes(*shape)})


TREE = {"a": {"kernel": shapes(8, 4), "bias": shapes(4)}, "b": {"kernel": shapes(4, 4)}}


def test_uniform_is_one_density_for_every_kernel():
  densities = {"a": {"kernel": 0.25, "bias": None}, "b": {"kernel": 0.25}}
  assert uniform(TREE, 0.25) == densities
  only = uniform(TREE, 0.25, is_kernel=lambda name, leaf: name == "a/kernel")
  assert only == {"a": {"kernel": 0.25, "bias": None}, "b": {"kernel": None}}


@pytest.mark.parametrize("density", [0, -0.5, 1.5, float("nan")])
def test_uniform_with_a_malformed_density(value_error, density):
  with value_error("density", str(density)):
    uniform(TREE, density)


def test_random_masks_have_exact_counts_and_no_favourite_cells():
  params = {"kernel": shapes(4, 6), "bias": shapes(6)}
  keys = jax.random.split(jax.random.key(0), 1500)
  draw = jax.vmap(lambda key: random_masks(key, params, 0.3)["kernel"])
  masks = np.asarray(draw(keys))
  np.testing.assert_array_equal(masks.sum(axis=(1, 2)), round(0.3 * 24))
  standard_error = np.sqrt(0.3 * 0.7 / len(keys))
  assert np.abs(masks.mean(axis=0) - 7 / 24).max() < 5 * standard_error
  assert random_masks(keys[0], params, 0.3)["bias"] is None


def test_a_stack_may_have_a_density_for_each_layer():
  params = {"kernel": shapes(3, 4, 6)}
  masks = random_masks(
    jax.random.key(0),
    params,
    {"kernel": np.array([0.25, 0.5, 1.0])},
    is_stacked=lambda name, leaf: True,
  )
  np.testing.assert_array_equal(masks["kernel"].sum(axis=(1, 2)), [6, 12, 24])


def test_a_density_for_each_layer_of_another_number_of_layers(value_error):
  with value_error("kernel", "(3,)", "(2,)"):
    random_masks(
      jax.random.key(0),
      {"kernel": shapes(3, 4, 6)},
      {"kernel": np.array([0.25, 0.5])},
      is_stacked=lambda name, leaf: True,
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
