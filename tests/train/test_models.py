"""The paper's networks: counts, forms, depth for free, precision."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eoi_jax
from configs import default
from eoi_jax.layouts import find_kernels
from tests.cases import few
from train.data.datasets import DATASETS
from train.models import (
  ACTIVATIONS,
  CNN,
  MLP,
  MODELS,
  VGG,
  EfficientNet,
  ResNet,
  ViT,
  _cpu_convolution,
  cifar_resnet,
  create_model,
  resnet50,
)
from train.models import convolution as convolutions
from train.models.convolution import convolution

CIFAR, IMAGENET = (32, 32, 3), (224, 224, 3)
ATOL = 1e-5  # float32 through a few layers


def abstract(model, shape):
  """Shapes of all variables; nothing is computed."""
  inputs = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
  return jax.eval_shape(model.init, jax.random.key(0), inputs)


def sizes(found):
  """Weights and tensors of kernels; a stack counts as its layers."""
  weights = sum(math.prod(kernel.leaf.shape) for kernel in found.values())
  return weights, sum(kernel.num_layers for kernel in found.values())


@pytest.mark.slow
@pytest.mark.parametrize(
  ("model", "shape", "total", "maskable", "tensors"),
  [
    (MLP(depth=7, width=100, num_classes=10), (28, 28, 1), 130010, 129400, 7),
    (MLP(depth=1000, width=128, num_classes=10), (28, 28, 1), 16580746, 16452864, 1000),
    (CNN(depth=998, width=128, num_classes=10), CIFAR, 147017738, 146890112, 998),
    (cifar_resnet(20, num_classes=10), CIFAR, 272474, 270896, 22),
    (cifar_resnet(32, num_classes=10), CIFAR, 466906, 464432, 34),
    (cifar_resnet(56, num_classes=10), CIFAR, 855770, 851504, 58),
    (cifar_resnet(110, num_classes=10), CIFAR, 1730714, 1722416, 112),
    (VGG(form="C", num_classes=10), CIFAR, 11323466, 11307712, 16),
    (VGG(form="D", num_classes=10), CIFAR, 15255626, 15239872, 16),
    (resnet50(num_classes=1000), IMAGENET, 25557032, 25502912, 54),
    (EfficientNet(num_classes=200), (64, 64, 3), 4263748, 4212192, 82),
  ],
  ids=str,
)
def test_counts_are_the_papers(model, shape, total, maskable, tensors):
  params = abstract(model, shape)["params"]
  assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params)) == total
  found = find_kernels(params, model.kernels)
  assert sizes(found) == (maskable, tensors)


@pytest.mark.slow
@pytest.mark.parametrize(
  ("width", "heads", "total", "sparse"),
  [(384, 6, 22059496, 14155776), (768, 12, 86585320, 56623104)],
)
def test_of_deit_the_mlp_blocks_alone_become_sparse(width, heads, total, sparse):
  model = ViT(num_classes=1000, width=width, num_heads=heads)
  params = abstract(model, IMAGENET)["params"]
  assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params)) == total
  found = find_kernels(params, model.layouts)
  assert set(found) == {"blocks/mlp/dense1/kernel", "blocks/mlp/dense2/kernel"}
  assert sizes(found) == (sparse, 24) and sparse == 12 * 8 * width**2


@pytest.mark.slow
def test_depthwise_kernels_stay_dense():
  model = EfficientNet(num_classes=200)
  params = abstract(model, (64, 64, 3))["params"]
  every = find_kernels(params, model.kernels)
  sparse = find_kernels(params, model.layouts)
  left = {name: every[name] for name in every.keys() - sparse.keys()}
  assert sizes(left)[1] == 16 and all("depthwise" in name for name in left)
  assert all(kernel.layer_shape[2] == 1 for kernel in left.values())


SMALL = {
  "mlp": {"depth": 5, "width": 8},
  "cnn": {"depth": 6, "width": 8},
  "cifar_resnet": {"depth": 14},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", few(MODELS, 3))
def test_mixed_precision_keeps_parameters_and_logits_in_float32(name):
  model = MODELS[name].make(num_classes=10, dtype="bfloat16", **SMALL.get(name, {}))
  variables = abstract(model, (64, 64, 3))
  assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}

  def forward(variables, inputs):
    return model.apply(variables, inputs, train=True, mutable=["batch_stats"])

  inputs = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32)
  logits, changed = jax.eval_shape(forward, variables, inputs)
  assert (logits.shape, logits.dtype) == ((2, 10), jnp.float32)
  same = {"batch_stats": variables["batch_stats"]} if changed else {}
  assert jax.tree.structure(changed) == jax.tree.structure(same)
  jaxpr = str(jax.make_jaxpr(forward)(variables, inputs))
  assert "bf16[2," in jaxpr


@pytest.mark.slow
@pytest.mark.parametrize(
  ("small", "shape"),
  [
    (MLP(depth=10, width=8, num_classes=3), (4, 4, 1)),
    (CNN(depth=12, width=4, num_classes=3), (8, 8, 3)),
  ],
)
def test_rematerialization_changes_no_number(small, shape):
  inputs = jax.random.normal(jax.random.key(1), (2, *shape))
  variables = small.init(jax.random.key(0), inputs)
  frugal = small.clone(remat=True)

  def gradients(model):
    return jax.grad(lambda v: (model.apply(v, inputs) ** 2).sum())(variables)

  found, wanted = jax.jit(lambda: (gradients(frugal), gradients(small)))()
  chex.assert_trees_all_close(found, wanted, atol=ATOL)
  again = jax.eval_shape(frugal.init, jax.random.key(0), inputs)
  assert jax.tree.structure(again) == jax.tree.structure(variables)


@pytest.mark.parametrize(
  ("model", "words"),
  [
    (lambda: cifar_resnet(33, num_classes=10), r"6 n \+ 2 .* got 33"),
    (
      lambda: abstract(CNN(depth=3, width=8, num_classes=10), CIFAR),
      "at least 4, got 3",
    ),
    (
      lambda: abstract(ViT(num_classes=10, width=8, num_heads=2), (40, 32, 3)),
      "multiples of 16, got 40 x 32",
    ),
  ],
)
def test_what_cannot_be_built_is_refused(model, words):
  with pytest.raises(ValueError, match=words):
    model()


def direct(inputs, kernel, strides, padding, groups):
  return jax.lax.conv_general_dilated(
    inputs,
    kernel,
    (strides, strides),
    ((padding, padding), (padding, padding)),
    feature_group_count=groups,
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
  )


@pytest.mark.slow
@pytest.mark.parametrize(
  ("window", "strides", "padding", "groups"),
  [
    (3, 1, None, 1),
    (3, 2, None, 1),
    (3, 3, None, 1),
    (1, 2, None, 1),
    (1, 1, 1, 1),
    (5, 2, None, 1),
    (5, 2, None, 6),
  ],
)
def test_convolutions_and_their_gradients_are_those_of_lax(
  monkeypatch, window, strides, padding, groups
):
  layer = convolution(
    6, window, strides, padding=padding, use_bias=False, feature_group_count=groups
  )
  inputs = jax.random.normal(jax.random.key(1), (2, 9, 7, 6))
  params = layer.init(jax.random.key(0), inputs)
  pixels = window // 2 if padding is None else padding

  def expected(params, inputs):
    return direct(inputs, params["params"]["kernel"], strides, pixels, groups)

  @jax.jit
  def both(params, inputs):
    found, pull = jax.vjp(layer.apply, params, inputs)
    wanted, pull_wanted = jax.vjp(expected, params, inputs)
    return (found, pull(wanted)), (wanted, pull_wanted(wanted))

  found, (wanted, gradients) = both(params, inputs)
  # Sums of 126 products.
  chex.assert_trees_all_close(found, (wanted, gradients), atol=10 * ATOL)
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  chex.assert_trees_all_equal(layer.apply(params, inputs), wanted)


@pytest.mark.parametrize("strides", few([1, 2], 0))
def test_convolutions_have_derivatives_of_every_kind(strides):
  layer = convolution(4, 3, strides, use_bias=False)
  keys = jax.random.split(jax.random.key(1), 4)
  inputs, tangent = (jax.random.normal(key, (2, 8, 7, 3)) for key in keys[:2])
  kernel, direction = (jax.random.normal(key, (3, 3, 3, 4)) for key in keys[2:])

  def mine(inputs, kernel):
    return layer.apply({"params": {"kernel": kernel}}, inputs)

  def theirs(inputs, kernel):
    return direct(inputs, kernel, strides, 1, 1)

  def forward(function):
    return jax.jvp(function, (inputs, kernel), (tangent, direction))

  def curvature(function):
    def loss(inputs, kernel):
      return jnp.sum(jnp.sin(function(inputs, kernel)))

    gradient = jax.grad(loss, (0, 1))
    return jax.jvp(gradient, (inputs, kernel), (tangent, direction))

  def many(function, axes):
    def gradient(inputs, kernel):
      return jax.grad(lambda *args: jnp.sum(function(*args) ** 2), (0, 1))(
        inputs, kernel
      )

    images = inputs if axes[0] is None else jnp.stack((inputs, tangent), axes[0])
    kernels = kernel if axes[1] is None else jnp.stack((kernel, direction), axes[1])
    return jax.vmap(gradient, axes)(images, kernels)

  @jax.jit
  def every():
    return [
      (
        forward(function),
        curvature(function),
        [many(function, axes) for axes in ((1, None), (None, 2), (0, 1))],
      )
      for function in (mine, theirs)
    ]

  found, wanted = every()
  chex.assert_trees_all_close(found, wanted, rtol=10 * ATOL, atol=100 * ATOL)


def test_kernel_gradients_add_up_over_groups_of_images(monkeypatch):
  monkeypatch.setattr(_cpu_convolution, "_NUMBERS", 700)  # 2 images, and 1 is left
  layer = convolution(6, 3, padding=0, use_bias=False)
  inputs = jax.random.normal(jax.random.key(1), (5, 10, 9, 4))
  params = layer.init(jax.random.key(0), inputs)

  def expected(params, inputs):
    return direct(inputs, params["params"]["kernel"], 1, 0, 1)

  def gradient(function):
    return jax.grad(lambda params: jnp.sum(function(params, inputs) ** 2))(params)

  found, wanted = jax.jit(lambda: (gradient(layer.apply), gradient(expected)))()
  chex.assert_trees_all_close(found, wanted, rtol=10 * ATOL, atol=100 * ATOL)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="other backends have lax")
def test_equal_convolutions_are_one_program():
  layer = convolution(4, 3, use_bias=False)
  inputs = jnp.ones((1, 8, 8, 3))
  params = layer.init(jax.random.key(0), inputs)
  calls = []
  for _ in range(2):
    (eqn,) = (
      eqn
      for eqn in jax.make_jaxpr(layer.apply)(params, inputs).eqns
      if eqn.primitive.name == "cpu_convolution"
    )
    calls.append(eqn.params["call_jaxpr"])
  assert calls[0] is calls[1]  # else each call outside of `jit` would compile


@pytest.mark.slow
def test_scores_of_a_network_do_not_depend_on_how_it_convolves(monkeypatch):
  model = ResNet(num_classes=3, stages=(2,), width=4)
  inputs = jax.random.normal(jax.random.key(1), (2, 8, 8, 3))
  variables = jax.jit(model.init)(jax.random.key(0), inputs)
  params = variables.pop("params")
  labels = jnp.array([0, 2])

  def apply(params, inputs):
    return model.apply({"params": params, **variables}, inputs)

  def scores():
    # SynFlow reads the jaxpr; GraSP takes a forward derivative of a gradient.
    options = {"layouts": model.layouts}
    return (
      eoi_jax.masks.synflow_scores(apply, params, (1, 8, 8, 3), **options),
      eoi_jax.masks.grasp_scores(apply, params, (inputs, labels), **options),
    )

  def lax(inputs, kernel, strides, padding, groups):
    return jax.lax.conv_general_dilated(
      inputs, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )

  found = scores()
  monkeypatch.setattr(convolutions, "cpu_convolution", lax)
  chex.assert_trees_all_close(found, scores(), rtol=1e-3, atol=ATOL)


def test_groups_of_several_channels_are_refused():
  layer = convolution(4, 3, feature_group_count=2)
  if jax.default_backend() != "cpu":
    pytest.skip("other backends have grouped convolutions of their own")
  with pytest.raises(ValueError, match="one filter a channel"):
    layer.init(jax.random.key(0), jnp.zeros((1, 4, 4, 4)))


@pytest.mark.slow
def test_the_cnn_wraps_around():
  model = CNN(depth=6, width=4, num_classes=3)
  inputs = jax.random.normal(jax.random.key(1), (2, 8, 8, 3))

  def plain(params, x):
    hidden = params["hidden"]["conv"]
    layers = [params["input0"], params["input1"], params["input2"]]
    layers += [jax.tree.map(lambda leaf, n=n: leaf[n], hidden) for n in range(2)]
    for layer, strides in zip(layers, (1, 2, 2, 1, 1), strict=True):
      x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="wrap")
      x = direct(x, layer["kernel"], strides, 0, 1) + layer["bias"][None, None, None]
      x = jnp.tanh(x)
    x = x.mean((1, 2))  # what is left, 2 x 2, is one window of the pool
    return x @ params["output"]["kernel"] + params["output"]["bias"][None]

  @jax.jit
  def both():
    variables = model.init(jax.random.key(0), inputs)
    return model.apply(variables, inputs), plain(variables["params"], inputs)

  found, expected = both()
  chex.assert_trees_all_close(found, expected, atol=ATOL, rtol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize(
  "model",
  [
    MLP(depth=100, width=128, num_classes=10),
    CNN(depth=100, width=128, num_classes=10),
  ],
  ids=repr,
)
@pytest.mark.parametrize("remat", [False, True])
def test_the_program_does_not_grow_with_the_depth(model, remat):
  def program(depth):
    deep = model.clone(depth=depth, remat=remat)
    inputs = jax.ShapeDtypeStruct((2, *CIFAR), jnp.float32)
    params = abstract(deep, CIFAR)
    grad = jax.grad(lambda v, x: deep.apply(v, x).sum())
    return len(jax.jit(grad).lower(params, inputs).as_text().splitlines())

  # 96 or 98 and 996 or 998 layers: both leave a rest to the segments of remat.
  assert program(1000) == program(100)


@pytest.mark.slow
def test_training_moves_the_statistics_of_every_layer():
  model = cifar_resnet(20, num_classes=10)
  inputs = 3 + jax.random.normal(jax.random.key(1), (4, 8, 8, 3))

  variables = jax.tree.map(
    lambda leaf: jnp.full(leaf.shape, 0.1), abstract(model, (8, 8, 3))
  )
  apply = jax.jit(lambda v, x: model.apply(v, x, train=True, mutable="batch_stats"))
  _, changed = apply(variables, inputs)
  before, after = (
    jax.tree.leaves(tree["batch_stats"]) for tree in (variables, changed)
  )
  assert len(before) == 2 * (1 + 3 * 2 + 3 * 2 + 2)
  for old, new in zip(before, after, strict=True):
    assert (old != new).reshape(old.shape[0], -1).any(axis=-1).all()


@pytest.mark.slow
def test_a_thousand_linear_layers_from_eoi_are_one_isometry():
  model = MLP(depth=1000, width=64, num_classes=10, activation="linear")
  params = jax.tree.map(
    lambda leaf: jnp.zeros(leaf.shape), abstract(model, (256,))["params"]
  )
  params, masks = eoi_jax.sparsify(
    jax.random.key(0), params, 0.125, layouts=model.layouts
  )
  counts = masks["hidden"]["dense"]["kernel"].sum((1, 2))
  assert (counts == round(0.125 * 64**2)).all()
  # A linear map's matrix: its values on the basis of the inputs.
  matrix = model.apply({"params": params}, jnp.eye(256))
  values = jnp.linalg.svd(matrix, compute_uv=False)
  chex.assert_trees_all_close(values, jnp.ones(10), atol=1e-3, rtol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("activation", few(ACTIVATIONS))
def test_the_scanned_stack_equals_a_plain_loop(activation):
  bias_init = jax.nn.initializers.normal(0.1)
  model = MLP(
    depth=5, width=8, num_classes=3, activation=activation, bias_init=bias_init
  )
  inputs = jax.random.normal(jax.random.key(1), (4, 2, 3))
  apply = ACTIVATIONS[activation]

  def dense(layer, x):
    return x @ layer["kernel"] + layer["bias"][None]

  @jax.jit
  def both():
    params = model.init(jax.random.key(0), inputs)["params"]
    x = apply(dense(params["input"], inputs.reshape(4, 6)))
    for n in range(3):
      layer = jax.tree.map(lambda leaf, n=n: leaf[n], params["hidden"]["dense"])
      x = apply(dense(layer, x))
    return model.apply({"params": params}, inputs), dense(params["output"], x)

  found, expected = both()
  chex.assert_trees_all_close(found, expected, atol=ATOL, rtol=1e-7)


def test_two_layers_need_no_stack():
  params = MLP(depth=2, width=4, num_classes=3).init(
    jax.random.key(0), jnp.zeros((1, 5))
  )["params"]
  assert set(params) == {"input", "output"}


@pytest.mark.slow
def test_layers_of_the_stack_differ():
  params = MLP(depth=4, width=8, num_classes=3).init(
    jax.random.key(0), jnp.zeros((1, 5))
  )["params"]
  kernel = params["hidden"]["dense"]["kernel"]
  assert kernel.shape == (2, 8, 8) and (kernel[0] != kernel[1]).any()


@pytest.mark.slow
def test_branches_are_dropped_one_by_one_and_keep_their_expectation():
  model = ViT(
    num_classes=5,
    width=16,
    num_heads=2,
    depth=2,
    patch_size=4,
    drop_path=0.4,
    remat=True,
  )
  image = jax.random.normal(jax.random.key(0), (1, 8, 8, 3))
  params = model.init(jax.random.key(1), image)["params"]
  images = jnp.broadcast_to(image, (2048, 8, 8, 3))

  def scaled(factor):
    def scale(path, leaf):
      own = "scale" in jax.tree_util.keystr(path[-2:-1])
      return jnp.full_like(leaf, factor) if own else leaf

    return {"params": jax.tree_util.tree_map_with_path(scale, params)}

  @jax.jit
  def dropped(variables, key):
    return model.apply(variables, images, train=True, rngs={"dropout": key})

  # Two branches in each of two blocks: 16 cases, of examples that are the same.
  result = np.asarray(dropped(scaled(1.0), jax.random.key(2)))
  assert len(np.unique(result.round(3), axis=0)) == 16
  np.testing.assert_array_equal(dropped(scaled(1.0), jax.random.key(2)), result)
  assert (np.asarray(dropped(scaled(1.0), jax.random.key(3))) != result).any()
  # Scaled down, the branches add up, and so do their means.
  evaluate = jax.jit(model.apply)
  whole, nothing = (evaluate(scaled(f), image)[0] for f in (1e-3, 0.0))
  mean = dropped(scaled(1e-3), jax.random.key(4)).mean(0)
  error = jnp.linalg.norm(mean - whole) / jnp.linalg.norm(whole - nothing)
  assert error < 0.08  # of the four branches .018 each, one standard error


@pytest.mark.slow
def test_networks_without_branches_refuse_to_drop_them(value_error):
  config = default.get_config()
  config.model.drop_path = 0.1
  with value_error("`model.drop_path`", "'mlp'", "got 0.1"):
    create_model(config, DATASETS["mnist"], bias_std=0.0)
