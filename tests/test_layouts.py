"""Layouts: read off modules, written by hand, by shape without doubt; never guessed."""

from typing import NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import eoi_jax
from eoi_jax import Layout, kernel_layouts, linen_layouts, nnx_layouts
from eoi_jax.blocks.linen import BlockDense
from eoi_jax.blocks.nnx import BlockDense as NnxBlockDense
from eoi_jax.layouts import Kernel, find_kernels

KEY = jax.random.key(0)
ATOL = 5e-6
DENSITY = 0.3


def shapes(*shape):
  return jax.ShapeDtypeStruct(shape, jnp.float32)


class Layer(NamedTuple):
  w: object
  b: object


def check_isometric(params, layouts, density=DENSITY):
  """Every block of every kernel is isometric as a matrix, every count exact."""
  new, masks = eoi_jax.sparsify(KEY, params, density, layouts=layouts)
  counts = eoi_jax.count_masks(masks)
  kernels = find_kernels(new, layouts)
  assert list(counts) == list(kernels)
  for name, kernel in kernels.items():
    assert counts[name].live == round(density * kernel.layer_size) * kernel.num_layers
    blocks = np.asarray(kernel.to_blocks(kernel.leaf), np.float64)
    matrices = blocks.reshape(len(blocks), -1, *blocks.shape[-2:]).sum(axis=1)
    for matrix in matrices:  # one tap of a convolution has weights
      wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
      np.testing.assert_allclose(wide @ wide.T, np.eye(len(wide)), atol=ATOL)
  return new, masks


# By shape.


@pytest.mark.parametrize(
  ("tree", "names"),
  [
    ({"a": {"kernel": shapes(2, 3), "bias": shapes(3)}}, ["a/kernel"]),
    ({"net": [{"weight": shapes(2, 3)}, {"weight": shapes(3, 4)}]}, None),
    ([shapes(2, 3), shapes(3), shapes(3, 4)], ["0", "2"]),
    ((shapes(2, 3), (shapes(3, 4),)), ["0", "1/0"]),
    (Layer(shapes(2, 3), shapes(2, 3)), ["w"]),
    ({"conv": {"kernel": shapes(3, 3, 4, 8)}}, ["conv/kernel"]),
    (
      {"embedding": shapes(9, 4), "kernel": shapes(4, 4), "scale": shapes(4)},
      ["kernel"],
    ),
    ({"heads": {"bias": shapes(2, 3)}, "w": shapes(2, 3)}, ["w"]),
    ({"norm": {"gamma": shapes(5, 4), "beta": shapes(5, 4)}, "w": shapes(4, 4)}, ["w"]),
    ({"kernel": shapes(2, 3), "w": optax.MaskedNode(), "x": None}, ["kernel"]),
    (shapes(2, 3), [""]),
  ],
)
def test_shapes_without_doubt(tree, names):
  expected = ["net/0/weight", "net/1/weight"] if names is None else names
  assert list(find_kernels(tree)) == expected


@pytest.mark.parametrize(
  ("tree", "words"),
  [
    (
      {"query": {"kernel": shapes(32, 4, 8)}},
      ("'query/kernel'", "(32, 4, 8)", '"ioo"'),
    ),
    ({"out": {"kernel": shapes(4, 8, 32)}}, ("'out/kernel'", '"iio"')),
    ({"kernel": shapes(8, 32, 64)}, ("'kernel'", "(8, 32, 64)")),  # experts
    ({"kernel": shapes(6, 10, 4, 8)}, ("'kernel'", "(6, 10, 4, 8)")),
    ({"weight": shapes(16, 8, 3, 3)}, ("'weight'", "(16, 8, 3, 3)")),  # OIHW
    ({"kernel": shapes(3, 3, 3, 3)}, ("'kernel'",)),  # HWIO or OIHW
    ({"kernel": shapes(3, 3, 1, 32)}, ("'kernel'", "groups=32")),
    ({"kernel": shapes(16, 16, 3, 64)}, ("'kernel'",)),  # patches?
    ({"w1": shapes(8, 8)}, ("'w1'", '"io"')),
    ({"U": shapes(8, 8), "weights": shapes(8, 8)}, ("'U'", "'weights'")),
    ({"lora_a": shapes(8, 2), "kernel": shapes(8, 8)}, ("'lora_a'", "None")),
    ({"token_embed": {"weight": shapes(99, 8)}}, ("'token_embed/weight'",)),
    ({"pos": shapes(1, 9, 8), "kernel": shapes(8, 8)}, ("'pos'", "None")),
    # Stacks of convolutions, of experts, of norms; norms over several axes.
    ({"kernel": shapes(5, 3, 3, 16, 32)}, ("'kernel'", '"swwio"')),
    ({"w": shapes(3, 5, 16, 32)}, ("'w'", '"ssio"')),
    ({"rms": {"weight": shapes(5, 16)}}, ("'rms/weight'", "None")),
    ({"1": {"weight": shapes(8, 6), "bias": shapes(8, 6)}}, ("'1/weight'", "None")),
    ({"A": shapes(4, 4), "B": shapes(4, 2), "C": shapes(2, 4)}, ("'A'", "'B'", "'C'")),
    ({"a": shapes(8, 2), "b": shapes(2, 8)}, ("'a'", "'b'")),
    ({"unembed": shapes(8, 99), "kernel": shapes(8, 8)}, ("'unembed'",)),
    # What the error suggests.
    ({"features": {"weight": shapes(32, 16, 5, 5)}}, ('"oiww"',)),
    ({"qkv": {"kernel": shapes(192, 3, 4, 16)}}, ('"iooo"',)),
    ({"query": {"kernel": shapes(6, 32, 4, 8)}}, ('"sioo"',)),
    ({"stem": {"kernel": shapes(4, 4, 3, 64)}}, ('"iiio"',)),
    ({"moe": {"kernel": shapes(5, 16, 24)}}, ('"sio"', '"ioo" query')),
    ({"conv1d": {"weight": shapes(32, 1, 4)}}, ('Layout("oiw", groups=32)',)),
    ({"conv1": {"kernel": shapes(3, 8, 16)}}, ('"wio"',)),
    ({"A_log": shapes(8, 4), "kernel": shapes(8, 8)}, ('{"A_log": None}',)),
    ({"class_token": shapes(1, 1, 8), "w": shapes(8, 8)}, ('"class_token": None',)),
  ],
)
def test_doubt_names_the_leaf_and_shows_the_line(tree, words, value_error):
  with value_error("`layouts`", "in doubt", "kernel_layouts(params, {", *words):
    kernel_layouts(tree)
  with value_error("in doubt", words[0]):
    eoi_jax.sparsify(KEY, tree, DENSITY)


def test_groups_are_asked_for_only_where_they_matter(value_error):
  tree = {"kernel": shapes(3, 3, 1, 32)}
  masks = eoi_jax.random_masks(KEY, tree, eoi_jax.erk(tree, 0.5))
  assert masks["kernel"].sum() == 144
  with value_error("'kernel'", "groups=32"):
    eoi_jax.allocate(tree, 0.5, floors="lift")


def test_no_kernel_at_all_is_an_error(value_error):
  for tree in ({"bias": shapes(3)}, {"embedding": shapes(9, 4)}, {}):
    with value_error("at least one kernel"):
      find_kernels(tree)


class Heads(NamedTuple):
  query: object
  value: object


def test_an_attribute_is_a_wrapper_only_where_it_is_alone():
  params = {"w": Heads(shapes(4, 4), shapes(4, 4)), "kernel": shapes(4, 4)}
  layouts = kernel_layouts(params, {"w/*": None})
  assert list(layouts) == ["kernel", "w/query", "w/value"]
  assert list(find_kernels(params, layouts)) == ["kernel"]
  boxed = {"kernel": nn.Partitioned(jnp.ones((4, 4)), names=(None, None))}
  assert list(kernel_layouts(boxed)) == ["kernel"]


def test_two_leaves_of_one_name(value_error):
  tree = {"a/kernel": shapes(2, 3), "a": {"kernel": shapes(3, 4)}}
  with value_error("'a/kernel'"):
    kernel_layouts(tree)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
def test_an_empty_kernel(value_error, shape):
  with value_error("kernel", str(shape)):
    find_kernels({"kernel": shapes(*shape)})


@pytest.mark.parametrize("dtype", [jnp.int8, jnp.complex64, jnp.float8_e4m3fn])
def test_kernels_that_cannot_be_orthogonal_in_their_dtype(value_error, dtype):
  with value_error("kernel", jnp.dtype(dtype).name):
    eoi_jax.sparsify(KEY, {"kernel": jnp.ones((4, 4), dtype)}, 0.5)


# By hand.


def test_tables_and_conventions(value_error):
  params = {"a": {"weight": shapes(16, 8, 3, 3)}, "b": {"weight": shapes(10, 16)}}
  layouts = kernel_layouts(params, convention="oihw")
  assert (layouts["a/weight"].axes, layouts["b/weight"].axes) == ("oiww", "oi")
  kernels = find_kernels(params, layouts)
  assert kernels["a/weight"].layer_shape == (3, 3, 8, 16)
  changed = layouts.replace({"b/*": None})
  assert list(find_kernels(params, changed)) == ["a/weight"]
  assert "b/weight  (10, 16)" in repr(changed) and "dense" in repr(changed)
  with value_error("`table`", "'c/*'"):
    layouts.replace({"c/*": None})
  with value_error("`table`", "'io'"):
    kernel_layouts(params, table="io")
  with value_error("`params`", "'abc'", "kernel"):
    kernel_layouts({"kernel": "abc"})
  with value_error("'ioo'", "b/weight", "(10, 16)"):
    layouts.replace({"b/*": "ioo"})
  with value_error("`convention`", "nchw"):
    kernel_layouts(params, convention="nchw")
  # Of rank 3 and 5 layers may be stacked; a name helps.
  (layout,) = kernel_layouts(
    {"conv": {"w": shapes(4, 3, 5)}}, convention="oihw"
  ).values()
  assert layout == Layout("oiw")
  for convention, shape in (("oihw", (5, 16, 16)), ("hwio", (5, 16, 16))):
    with value_error("'linear/w'", f'convention="{convention}"', '"s'):
      kernel_layouts({"linear": {"w": shapes(*shape)}}, convention=convention)
  with value_error("'conv/w'", '"swwio"', "table | {"):
    tree = {"conv": {"w": shapes(5, 3, 3, 8, 16)}, "e": {"w": shapes(9, 4)}}
    kernel_layouts(tree, {"e/*": None}, convention="hwio")
  # A name with brackets is a name.
  assert kernel_layouts({"a[0]": shapes(4, 4)}, {"a[0]": "io"})["a[0]"] == Layout("io")
  with value_error("`layouts`", "'c/weight'"):
    find_kernels({"c": {"weight": shapes(2, 2)}}, layouts)
  with value_error("`layouts`", "dict"):
    eoi_jax.uniform(params, 0.5, layouts={"a/weight": "oiww"})


def test_a_leaf_that_is_given_none_needs_no_layout():
  params = {"pos": jnp.ones((1, 9, 8)), "out": {"kernel": jnp.ones((8, 8))}}
  densities = {"pos": None, "out": {"kernel": 0.5}}
  new, masks = eoi_jax.sparsify(KEY, params, densities)
  assert masks["pos"] is None and masks["out"]["kernel"].sum() == 32
  again, _ = eoi_jax.sparsify(KEY, params, masks)
  chex.assert_trees_all_equal(new, again)


@pytest.mark.parametrize(
  ("layout", "shape", "layer", "layers", "block", "blocks"),
  [
    ("io", (4, 6), (4, 6), 1, (4, 6), 1),
    ("oi", (6, 4), (4, 6), 1, (4, 6), 1),
    ("oiww", (6, 4, 3, 5), (3, 5, 4, 6), 1, (3, 5, 4, 6), 1),
    ("sioo", (2, 4, 3, 5), (4, 15), 2, (4, 15), 2),
    ("iiio", (2, 2, 3, 8), (12, 8), 1, (12, 8), 1),
    (Layout("swwio", 2), (5, 3, 3, 2, 8), (3, 3, 2, 8), 5, (3, 3, 2, 4), 10),
  ],
)
def test_blocks_and_back(layout, shape, layer, layers, block, blocks):
  layout = Layout(layout) if isinstance(layout, str) else layout
  array = np.arange(np.prod(shape)).reshape(shape)
  kernel = Kernel("k", array, layout)
  assert (kernel.layer_shape, kernel.num_layers) == (layer, layers)
  assert (kernel.block_shape, kernel.num_blocks) == (block, blocks)
  for leaf in (array, jnp.asarray(array)):
    chex.assert_shape(kernel.to_layers(leaf), (layers, *layer))
    chex.assert_shape(kernel.to_blocks(leaf), (blocks, *block))
    chex.assert_trees_all_equal(kernel.from_layers(kernel.to_layers(leaf)), leaf)
    chex.assert_trees_all_equal(kernel.from_blocks(kernel.to_blocks(leaf)), leaf)


def test_blocks_hold_what_the_letters_say():
  array = np.arange(2 * 3 * 4 * 6).reshape(2, 3, 4, 6)
  blocks = Kernel("k", array, Layout("swio", 3)).to_blocks(array)
  # Layer 1, group 2: outputs 4 and 5 of it.
  np.testing.assert_array_equal(blocks[5], array[1, :, :, 4:])
  heads = Kernel("k", array[0], Layout("oio")).to_layers(array[0])[0]
  np.testing.assert_array_equal(heads[1], array[0][:, 1].ravel())


# Read off Linen.


class Block(nn.Module):
  """A pre-LN transformer block."""

  @nn.compact
  def __call__(self, x, _=None):
    y = nn.LayerNorm()(x)
    x = x + nn.MultiHeadDotProductAttention(num_heads=4, name="attn")(y, y)
    y = nn.LayerNorm()(x)
    return x + nn.Dense(16)(nn.gelu(nn.Dense(32)(y))), None


class Transformer(nn.Module):
  @nn.compact
  def __call__(self, tokens, train=False):
    x = nn.Embed(50, 16)(tokens)
    stack = nn.scan(
      Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=3
    )
    x, _ = stack(name="blocks")(x, None)
    x = nn.Dropout(0.1, deterministic=not train)(x)
    return nn.DenseGeneral((2, 5), name="head")(x)


@pytest.mark.slow
def test_a_whole_transformer_in_linen():
  tokens = jnp.zeros((2, 5), jnp.int32)
  model = Transformer()
  layouts = linen_layouts(model, tokens, train=True)
  variables = model.init(KEY, tokens)
  attention = {
    n.rsplit("/", 2)[1]: x.axes for n, x in layouts.items() if "attn" in n and x
  }
  assert attention == {"query": "sioo", "key": "sioo", "value": "sioo", "out": "siio"}
  assert layouts["Embed_0/embedding"] is None
  assert layouts["head/kernel"].axes == "ioo"
  new, masks = check_isometric(variables["params"], layouts)
  assert masks["Embed_0"]["embedding"] is None
  # The variables of a model will do, too.
  whole, _ = eoi_jax.sparsify(KEY, variables, DENSITY, layouts=layouts)
  chex.assert_trees_all_equal_shapes(whole["params"], new)


@pytest.mark.parametrize(
  "field, values",
  [
    ("axes", ["iox", "i", "wwwwio", 5, ("i", "o")]),
    ("groups", [0, 2.0, "2"]),
    ("strides", [2, None, (2,), [2, 2], "22", (0, 0), (-1, 1), (1.0, 2)]),
    ("padding", ["causal", "x", 1]),
    ("transposed", [None, 1]),
  ],
)
def test_layouts_refuse_what_they_cannot_read(value_error, field, values):
  for value in values:
    with value_error(f"`{field}` must", repr(value)):
      Layout(**{"axes": "wwio", field: value})


def test_layouts_take_numpy_integers_and_the_paddings_of_flax():
  assert Layout("io", np.int64(2)) == Layout("io", 2)
  assert Layout("iiio", strides=(2, 2), padding="VALID").strides == (2, 2)
  for padding in ("same", "REFLECT"):
    layer = nn.Conv(8, (3, 3), padding=padding)
    (layout, *_) = filter(None, linen_layouts(layer, jnp.ones((1, 5, 5, 4))).values())
    assert layout.padding == padding.upper()


LINEN = {
  "attention": (nn.MultiHeadDotProductAttention(num_heads=4), (1, 5, 64), 4),
  "dense_general": (nn.DenseGeneral((4, 8), axis=(-2, -1)), (2, 6, 10), 1),
  "batched": (nn.DenseGeneral(8, axis=-1, batch_dims=(0,)), (2, 3, 6), 1),
  "einsum": (nn.Einsum((64, 4, 16), "bi,iho->bho"), (2, 64), 1),
  "experts": (nn.Einsum((4, 8, 6), "ebi,eio->ebo"), (4, 2, 8), 1),
  "conv": (nn.Conv(8, (3,)), (1, 5, 4), 1),
  "grouped": (nn.Conv(8, (3, 3), feature_group_count=4), (1, 5, 5, 8), 1),
  "depthwise": (nn.Conv(8, (3, 3), feature_group_count=8), (1, 5, 5, 8), 1),
  "gray": (nn.Conv(8, (3, 3)), (1, 5, 5, 1), 1),
  "patches": (nn.Conv(64, (4, 4), strides=4, padding="VALID"), (1, 8, 8, 3), 1),
  "same_patches": (nn.Conv(64, (4, 4), strides=4), (1, 8, 8, 3), 1),
  "circular_patches": (nn.Conv(16, (2, 2), 2, padding="CIRCULAR"), (1, 8, 8, 3), 1),
  "grouped_patches": (nn.Conv(32, (2, 2), 2, feature_group_count=4), (1, 8, 8, 8), 1),
  "causal": (nn.Conv(8, (4,), padding="CAUSAL"), (1, 6, 8), 1),
  "causal_amounts": (
    nn.Conv(8, (3,), padding=[(4, 0)], kernel_dilation=2),
    (1, 6, 8),
    1,
  ),
  "even_transposed": (nn.ConvTranspose(8, (4, 2)), (1, 5, 5, 4), 1),
  "flipped": (nn.ConvTranspose(8, (4, 2), transpose_kernel=True), (1, 5, 5, 4), 1),
  "in_nnx": (
    nnx.bridge.to_linen(nnx.Conv, 8, 8, (3, 3), feature_group_count=4),
    (1, 5, 5, 8),
    1,
  ),
  "transposed": (nn.ConvTranspose(8, (3, 3), (2, 2)), (1, 5, 5, 4), 1),
  "lstm": (nn.RNN(nn.LSTMCell(8)), (1, 5, 4), 8),
  "gru": (nn.RNN(nn.GRUCell(8)), (1, 5, 4), 6),
  "conv_lstm": (nn.RNN(nn.ConvLSTMCell(8, (3, 3))), (1, 5, 4, 4, 8), 2),
}


@pytest.mark.parametrize("letters", ["bti,ti->bti", "bti,ti->bt"])
def test_an_einsum_that_is_no_matrix_stays_dense(letters):
  inputs = jnp.ones((2, 5, 8))
  model = nn.Sequential([nn.Dense(8), nn.Einsum((5, 8), letters, use_bias=False)])
  layouts = linen_layouts(model, inputs)
  assert layouts["layers_1/kernel"] is None and layouts["layers_0/kernel"]
  assert nnx_layouts(nnx.Einsum(letters, (5, 8), rngs=nnx.Rngs(0)))["kernel"] is None


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(LINEN))
def test_linen_layers_are_isometric(name):
  model, shape, number = LINEN[name]
  inputs = jax.random.normal(KEY, shape)
  layouts = linen_layouts(model, *(inputs,) * (2 if name == "attention" else 1))
  params = jax.eval_shape(
    model.init, KEY, *(inputs,) * (2 if name == "attention" else 1)
  )
  params = jax.tree.map(lambda x: jnp.zeros(x.shape), params["params"])
  density = 0.6 if name in ("depthwise", "gray", "grouped_patches") else 0.4
  new, _ = check_isometric(params, layouts, density)
  assert len(find_kernels(new, layouts)) == number
  if name == "conv_lstm":
    assert {x.groups for x in layouts.values() if x} == {4}
  if model.__class__ in (nn.Conv, nn.ConvTranspose) or name == "in_nnx":
    outputs = model.apply({"params": new}, inputs)
    np.testing.assert_allclose(
      jnp.linalg.norm(outputs), jnp.linalg.norm(inputs), rtol=1e-5
    )


def test_an_unknown_parameter_of_your_own_module(value_error):
  class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
      w = self.param("mixing", nn.initializers.ones, (4, 6))
      return nn.Dense(3)(x @ w)

  with value_error("in doubt", "'mixing'", "(4, 6)"):
    linen_layouts(Net(), jnp.ones((1, 4)))
  layouts = linen_layouts(Net(), jnp.ones((1, 4)), table={"mixing": "io"})
  assert [x and x.axes for x in layouts.values()] == [None, "io", "io"]


class OwnConv(nn.Module):
  @nn.compact
  def __call__(self, x, _=None):
    kernel = self.param("kernel", nn.initializers.lecun_normal(), (3, 3, 16, 16))
    axes = ("NHWC", "HWIO", "NHWC")
    y = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=axes)
    weight = self.param("weight", nn.initializers.ones, (16,))
    return y * weight[None, None, None], None


class OwnDense(nn.Module):
  @nn.compact
  def __call__(self, x, _=None):
    return x @ self.param("up", nn.initializers.ones, (16, 16)), None


def scanned(module):
  rngs = {"params": True}
  return nn.scan(module, variable_axes={"params": 0}, split_rngs=rngs, length=5)()


def test_parameters_of_your_own_in_a_stack(value_error):
  inputs = jnp.ones((1, 4, 4, 16))
  layouts = linen_layouts(scanned(OwnConv), inputs, None)
  assert dict(layouts) == {"kernel": Layout("swwio"), "weight": None}
  with value_error("`table`", "'up' (5, 16, 16)", 'table={"up": "sio"}'):
    linen_layouts(scanned(OwnDense), inputs, None)

  class Rms(nnx.Module):
    def __init__(self, rngs):
      self.weight = nnx.Param(jnp.ones(16))
      self.linear = nnx.Linear(16, 8, rngs=rngs)

  make = nnx.vmap(lambda key: Rms(nnx.Rngs(key)))
  with value_error("'weight' (5, 16)", '{"weight": None}'):
    nnx_layouts(make(jax.random.split(KEY, 5)))


def test_the_line_to_write_keeps_what_was_read(value_error):
  class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train):
      if not train:
        x = nn.Conv(16, (3, 3), feature_group_count=4)(x)
      return x * self.param("queries", nn.initializers.ones, (4, 16)).sum()

  model, inputs = Net(), jnp.ones((1, 4, 4, 16))
  with pytest.raises(ValueError, match="'queries'") as info:
    linen_layouts(model, inputs, False)  # flags may be positional
  line = str(info.value).rpartition("for example `")[2].partition("`")[0]
  assert line == 'linen_layouts(model, inputs, table={"queries": "io"})'
  layouts = linen_layouts(model, inputs, False, table={"queries": "io"})
  assert layouts["Conv_0/kernel"].groups == 4


def test_layers_that_apply_another_matrix_than_their_kernel(value_error):
  class Standardized(nn.Conv):
    def param(self, name, *args, **kwargs):
      value = super().param(name, *args, **kwargs)
      return value / value.std() if name == "kernel" else value

  inputs = jnp.ones((1, 4, 4, 16))
  with value_error("'kernel'", "Standardized.param may change it", '{"kernel": None}'):
    linen_layouts(Standardized(8, (3, 3)), inputs)

  class Adapted(nn.Module):
    @nn.compact
    def __call__(self, x):
      return nn.Dense(8)(x) + nn.Dense(8, name="lora_up")(x)

  masked, rngs = jnp.ones((3, 3, 16, 8)), nnx.Rngs(0)
  for change, options in {
    "`mask` may": {"mask": masked},
    "`input_dilation` may": {"input_dilation": (1, 2), "padding": 1},
  }.items():
    with value_error("'kernel'", change):
      linen_layouts(nn.Conv(8, (3, 3), **options), inputs)
    with value_error("'kernel'", change):
      nnx_layouts(nnx.Conv(16, 8, (3, 3), **options, rngs=rngs))
  with value_error("'kernel'", "`mask` may"):
    linen_layouts(nn.ConvTranspose(8, (3, 3), mask=masked), inputs)

  with value_error("'lora_up/kernel'", "a low-rank adapter", '"lora_up/kernel": None'):
    linen_layouts(Adapted(), inputs)
  with value_error("'lora_up/kernel'", "a low-rank adapter"):
    nnx_layouts(nnx.Dict(lora_up=nnx.Linear(4, 4, rngs=rngs)))

  class Scaled(nnx.Linear):
    def __call__(self, x):
      return super().__call__(x) * 2

  with value_error("'kernel'", "Scaled.__call__ may change it"):
    nnx_layouts(Scaled(8, 8, rngs=nnx.Rngs(0)))

  class Transposed(nn.Module):
    @nn.compact
    def __call__(self, x):
      def transposed(axes):
        return lambda tree: jax.tree.map(lambda k: k.transpose(axes), tree)

      back, swap = transposed((2, 3, 1, 0)), transposed((3, 2, 0, 1))
      conv = nn.map_variables(nn.Conv, "params", back, swap, init=True)
      return conv(16, (3, 3), use_bias=False)(x)

  with value_error("Map_variablesConv_0/kernel", "map_variables may change it"):
    linen_layouts(Transposed(), inputs)


def test_a_kernel_that_two_layers_read(value_error):
  inputs = jnp.ones((1, 4, 4, 16))

  class Frozen(nn.Module):
    @nn.compact
    def __call__(self, x):
      return nn.Conv(16, (3, 3), use_bias=False)(x)

  frozen = Frozen().init(KEY, inputs[..., :4])

  class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
      x = nn.Conv(16, (3, 3), feature_group_count=4, use_bias=False)(x)
      return x, Frozen().apply(frozen, x[..., :4])

  with value_error("'Conv_0/kernel'", "wwio groups=4 and as wwio by two layers"):
    linen_layouts(Net(), inputs)
  # In NNX one under two names is read once, by its layer.
  conv = nnx.Conv(16, 16, (3, 3), feature_group_count=4, rngs=nnx.Rngs(0))
  alias = nnx.Dict(all=nnx.Dict(kernel=conv.kernel), conv=conv)
  assert nnx_layouts(alias)["all/kernel"].groups == 4
  other = nnx.Conv(4, 16, (3, 3), strides=2, rngs=nnx.Rngs(0))
  other.kernel = conv.kernel
  with value_error("'all/kernel'", "by two layers"):
    nnx_layouts(nnx.Dict(all=nnx.Dict(kernel=conv.kernel), conv=conv, other=other))


@pytest.mark.slow
def test_weight_normalization_keeps_an_isometry_or_is_refused(value_error):
  inputs = jax.random.normal(KEY, (5, 8))
  for features, fits in ((6, True), (12, False)):
    dense = nn.Dense(features, use_bias=False)
    linen = nn.Sequential([nn.WeightNorm(dense)])
    rngs = nnx.Rngs(0)
    layer = nnx.WeightNorm(nnx.Linear(8, features, rngs=rngs), rngs=rngs)
    if not fits:
      with value_error("`table`", "kernel", f"(8, {features})", "WeightNorm", "None"):
        linen_layouts(linen, inputs)
      with value_error("`table`", "'layer_instance/kernel'", "WeightNorm"):
        nnx_layouts(layer)
      layouts = nnx_layouts(layer, table={"layer_instance/kernel": None})
      assert layouts["layer_instance/kernel"] is None
      continue
    layouts, params = linen_layouts(linen, inputs), linen.init(KEY, inputs)["params"]
    new, _ = check_isometric(params, layouts)
    (kernel,) = find_kernels(new, layouts).values()
    outputs = linen.apply({"params": new}, inputs)
    np.testing.assert_allclose(outputs, inputs @ kernel.leaf, rtol=1e-5, atol=1e-6)
    assert nnx_layouts(layer)["layer_instance/kernel"] == Layout("io")
  # Heads are outputs, too, which a norm of the last axis alone adds up.
  heads = nn.WeightNorm(nn.DenseGeneral((2, 3)))
  with value_error("(8, 2, 3)", "axes (2,)", "WeightNorm"):
    linen_layouts(heads, inputs)
  layouts = linen_layouts(
    nn.WeightNorm(heads.layer_instance, feature_axes=(1, 2)), inputs
  )
  assert [x.axes for x in layouts.values() if x] == ["ioo"]


def test_a_linen_module_in_nnx_is_read_off_that_module(value_error):
  inputs = jnp.ones((1, 3, 3, 8))
  conv = nn.Conv(8, (3, 3), feature_group_count=4)
  module = nnx.bridge.lazy_init(nnx.bridge.ToNNX(conv, rngs=nnx.Rngs(0)), inputs)
  with value_error("`table=linen_layouts(module.to_nnx__module, inputs)`", "'kernel'"):
    nnx_layouts(module)
  layouts = nnx_layouts(module, table=linen_layouts(module.to_nnx__module, inputs))
  assert layouts["kernel"] == Layout("wwio", 4, (1, 1), "SAME")
  net = nnx.Dict(stem=module)
  with value_error("module.stem.to_nnx__module", "'stem/kernel'"):
    nnx_layouts(net)
  table = {f"stem/{n}": x for n, x in linen_layouts(conv, inputs).items()}
  assert nnx_layouts(net, table=table)["stem/kernel"].groups == 4


def test_names_of_embeddings_and_norms_are_in_doubt(value_error):
  for module in ("tok_emb", "wte", "embedding", "layer_norm", "ln_1"):
    with value_error(f"'{module}/weight'", f'{{"{module}/weight": None}}'):
      kernel_layouts({module: {"weight": shapes(7, 8)}})
  for module in ("ensemble", "linear", "ln_1/dense"):
    (layout,) = kernel_layouts({module: {"weight": shapes(7, 8)}}).values()
    assert layout == Layout("io")


def test_a_convolution_without_shared_weights_is_a_stack():
  layouts = linen_layouts(nn.ConvLocal(16, (3, 3)), jnp.ones((1, 5, 5, 3)))
  assert layouts["kernel"] == Layout("ssio")


def test_a_stack_on_an_axis_that_equal_sizes_hide(value_error):
  dense = nn.vmap(
    nn.Dense, variable_axes={"params": 1}, split_rngs={"params": True}, in_axes=1
  )
  assert linen_layouts(dense(6), jnp.ones((2, 3, 4)))["kernel"].axes == "iso"
  # The bias tells: it has the layers on its second axis, too.
  assert linen_layouts(dense(6), jnp.ones((2, 4, 4)))["kernel"].axes == "iso"
  with value_error("`table`", "(4, 4, 6)", "'kernel'"):
    linen_layouts(dense(6, use_bias=False), jnp.ones((2, 4, 4)))

  # Another stack does not.
  def make(axis, use_bias):
    def one(key):
      return nnx.Linear(8, 8, use_bias=use_bias, rngs=nnx.Rngs(key))

    return nnx.vmap(one, out_axes=axis)(jax.random.split(KEY, 3 if use_bias else 8))

  stacks = nnx.Dict(a=make(0, True), b=make(1, False))
  with value_error("'b/kernel' (8, 8, 8)"):
    nnx_layouts(stacks)
  layouts = nnx_layouts(stacks, table={"b/kernel": "iso"})
  assert layouts["a/kernel"].axes == "sio"


# Read off NNX.


class NnxNet(nnx.Module):
  def __init__(self, rngs):
    self.attention = nnx.MultiHeadAttention(4, 32, 32, decode=False, rngs=rngs)
    self.layers = nnx.List(
      [nnx.Linear(8, 8, rngs=rngs), nnx.LoRALinear(8, 8, lora_rank=2, rngs=rngs)]
    )
    self.norm = nnx.BatchNorm(8, rngs=rngs)
    self.embed = nnx.Embed(10, 4, rngs=rngs)
    self.cell = nnx.OptimizedLSTMCell(4, 8, rngs=rngs)
    self.conv = nnx.Conv(8, 8, (3, 3), feature_group_count=4, rngs=rngs)
    self.back = nnx.ConvTranspose(4, 8, (3, 3), strides=2, rngs=rngs)
    self.einsum = nnx.Einsum("bi,iho->bho", (8, 2, 6), rngs=rngs)
    self.general = nnx.LinearGeneral((6, 10), (4, 8), axis=(-2, -1), rngs=rngs)
    self.dropout = nnx.Dropout(0.1, rngs=rngs)

    @nnx.vmap(in_axes=0, out_axes=0)
    def stack(key):
      return nnx.Linear(4, 5, rngs=nnx.Rngs(key))

    self.stack = stack(jax.random.split(KEY, 3))


@pytest.mark.slow
def test_a_whole_nnx_module():
  module = NnxNet(nnx.Rngs(0))
  layouts = nnx_layouts(module)
  axes = {name: str(x) for name, x in layouts.items() if x is not None}
  assert axes == {
    "attention/key/kernel": "ioo",
    "attention/out/kernel": "iio",
    "attention/query/kernel": "ioo",
    "attention/value/kernel": "ioo",
    "back/kernel": "wwio",
    "cell/dense_h/kernel": "io groups=4",
    "cell/dense_i/kernel": "io groups=4",
    "conv/kernel": "wwio groups=4",
    "einsum/kernel": "ioo",
    "general/kernel": "iioo",
    "layers/0/kernel": "io",
    "layers/1/kernel": "io",
    "stack/kernel": "sio",
  }
  state = nnx.state(module, nnx.Param)
  new, masks = check_isometric(state, layouts, 0.4)
  assert jax.tree.structure(new) == jax.tree.structure(state)
  nnx.update(module, new)
  inputs = jax.random.normal(KEY, (2, 8))
  np.testing.assert_allclose(
    jnp.linalg.norm(module.layers[0](inputs)), jnp.linalg.norm(inputs), rtol=1e-5
  )
  # Masks as a plain dict of the same names.
  plain = nnx.to_pure_dict(masks)
  chex.assert_trees_all_equal(
    eoi_jax.apply_masks(state, plain), eoi_jax.apply_masks(state, masks)
  )


def test_variables_that_are_no_parameters_of_nnx():
  rngs = nnx.Rngs(0)
  attention = nnx.MultiHeadAttention(4, 32, 32, decode=True, rngs=rngs)
  attention.init_cache((1, 5, 32))
  net = nnx.Dict(attention=attention, count=nnx.BatchStat(jnp.ones((4, 4))))
  net.norm = nnx.SpectralNorm(nnx.Linear(4, 4, rngs=rngs), rngs=rngs)
  layouts = nnx_layouts(net)
  kernels = [name for name, layout in layouts.items() if layout]
  assert len(kernels) == 5 and all(name.endswith("kernel") for name in kernels)


def test_a_state_of_nnx_is_read_by_shape(value_error):
  state = nnx.state(nnx.Linear(4, 8, rngs=nnx.Rngs(0)), nnx.Param)
  assert nnx_layouts(state)["kernel"].axes == "io"
  attention = nnx.MultiHeadAttention(4, 32, 32, decode=False, rngs=nnx.Rngs(0))
  with value_error("in doubt", "'query/kernel'"):
    nnx_layouts(nnx.state(attention, nnx.Param))


def test_modules_of_nnx_in_a_list_are_read_as_modules():
  rngs = nnx.Rngs(0)
  cell, conv = nnx.GRUCell(4, 8, rngs=rngs), nnx.Conv(4, 8, 3, 2, rngs=rngs)
  layouts = nnx_layouts([cell, {"conv": conv}])
  assert layouts["0/dense_h/kernel"].groups == 3
  assert layouts["1/conv/kernel"] == nnx_layouts(conv)["kernel"]


@pytest.mark.parametrize("bad", [None, {}, 3, nnx.Linear, lambda x: x])
def test_what_is_no_module_is_refused(bad, value_error):
  with value_error("`model`", "flax.linen.Module", type(bad).__name__):
    linen_layouts(bad, jnp.ones((1, 4)))
  with value_error("`module`", "flax.nnx.Module", type(bad).__name__):
    nnx_layouts(bad)
  with value_error("`module`", "flax.nnx.Module", "tuple"):
    nnx_layouts(nnx.split(nnx.Linear(4, 8, rngs=nnx.Rngs(0))))


@pytest.mark.slow
def test_block_sparse_layers_have_no_kernel_to_prune():
  model = nn.Sequential([BlockDense(16, 0.25, block_size=4), nn.Dense(4)])
  layouts = linen_layouts(model, jnp.ones((1, 16)))
  assert [n for n, x in layouts.items() if x] == ["layers_1/kernel"]
  module = nnx.Sequential(
    NnxBlockDense(16, 16, density=0.25, block_size=4, rngs=nnx.Rngs(0)),
    nnx.Linear(16, 4, rngs=nnx.Rngs(0)),
  )
  assert [n for n, x in nnx_layouts(module).items() if x] == ["layers/1/kernel"]
