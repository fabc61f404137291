"""`eoi_init`: kernels that keep norms, in Flax layers and in plain pytrees."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx

from eoi_jax import (
  eoi_init,
  initializers,
  kernel_layouts,
  kernel_masks,
  orthogonality_error,
  static_sparsity,
)
from eoi_jax.layouts import find_kernels
from tests.cases import few

ATOL = 5e-6
DENSITY = 0.2
# Window ranks 1 to 3, odd and even sizes.
WINDOWS = [(3,), (4,), (3, 3), (2, 4), (1, 1), (3, 2, 3)]
IN, OUT = 16, 24


def center(window):
  """The tap that sees its own position under SAME padding."""
  return tuple((size - 1) // 2 for size in window)


def draw(window):
  """A kernel; a window of one even size has to be said to be one."""
  axes = "w" * len(window) + "io" if window == (4,) else None
  return eoi_init(DENSITY, axes=axes)(jax.random.key(0), (*window, IN, OUT))


def convolve(inputs, kernel, circular):
  """Stride 1, channels last; output as large as the input."""
  window = kernel.shape[:-2]
  spatial = "DHW"[-len(window) :]
  layout = (f"N{spatial}C", f"{spatial}IO", f"N{spatial}C")
  if circular:
    pads = [((k - 1) // 2, k // 2) for k in window]
    inputs = jnp.pad(inputs, [(0, 0), *pads, (0, 0)], mode="wrap")
  return jax.lax.conv_general_dilated(
    inputs,
    kernel,
    window_strides=(1,) * len(window),
    padding="VALID" if circular else "SAME",
    dimension_numbers=layout,
    precision="highest",
  )


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(32, 64), (64, 32), (1, 16)])
def test_dense_kernels_are_orthogonal_at_their_density(shape):
  kernel = eoi_init(DENSITY)(jax.random.key(0), shape)
  assert kernel.shape == shape and kernel.dtype == jnp.float32
  assert float(orthogonality_error(kernel)) < ATOL
  budget = round(DENSITY * kernel.size)
  assert budget - min(shape) < jnp.count_nonzero(kernel) <= budget


def test_a_dense_layer_keeps_norms():
  kernel = eoi_init(DENSITY)(jax.random.key(0), (32, 64))
  inputs = jax.random.normal(jax.random.key(1), (10, 32))
  outputs = jnp.matmul(inputs, kernel, precision="highest")
  chex.assert_trees_all_close(
    jnp.linalg.norm(outputs, axis=1), jnp.linalg.norm(inputs, axis=1), rtol=1e-5
  )


@pytest.mark.slow
@pytest.mark.parametrize("window", few(WINDOWS, 2))
def test_delta_kernels_live_at_the_center_alone(window):
  kernel = np.asarray(draw(window))
  assert kernel.shape == (*window, IN, OUT)
  middle = kernel[center(window)]
  assert np.count_nonzero(kernel) == np.count_nonzero(middle)
  assert float(orthogonality_error(jnp.asarray(middle))) < ATOL


@pytest.mark.slow
@pytest.mark.parametrize("window", few(WINDOWS, 2))
@pytest.mark.parametrize("circular", [True, False])
def test_convolution_keeps_norms(window, circular):
  kernel = draw(window)
  inputs = jax.random.normal(jax.random.key(1), (3, *(5,) * len(window), IN))
  outputs = convolve(inputs, kernel, circular)
  middle = kernel[center(window)]
  chex.assert_trees_all_close(
    outputs, jnp.matmul(inputs, middle, precision="highest"), atol=1e-5, rtol=1e-7
  )
  axes = tuple(range(1, inputs.ndim))
  chex.assert_trees_all_close(
    jnp.sqrt(jnp.sum(outputs**2, axes)), jnp.sqrt(jnp.sum(inputs**2, axes)), rtol=1e-5
  )


@pytest.mark.slow
@pytest.mark.parametrize(
  ("center", "density", "at_center"),
  [
    ("plain", 0.2, 0.2),
    ("plain", 0.02, 1 / OUT),  # the floor: no sparser matrix is orthogonal
    ("more", 0.02, 0.02**0.5),
    ("more", 0.2, 0.2**0.5),
    ("more", 0.01, 0.09),  # density times the 9 taps
  ],
)
def test_how_much_of_the_density_is_at_the_center(center, density, at_center):
  kernel = eoi_init(density, center=center)(jax.random.key(0), (3, 3, IN, OUT))
  budget = round(at_center * IN * OUT)
  assert budget - IN < np.count_nonzero(kernel) <= budget
  assert float(orthogonality_error(kernel[1, 1])) < ATOL
  masks = kernel_masks(jax.random.key(1), {"kernel": kernel}, density)
  assert np.count_nonzero(masks["kernel"]) == round(density * kernel.size)


@pytest.mark.parametrize("shape", [(32, 64), (3, 3, IN, OUT)])
def test_scale_multiplies_the_kernel(shape):
  key = jax.random.key(0)
  one, two = eoi_init(DENSITY)(key, shape), eoi_init(DENSITY, scale=1.5)(key, shape)
  chex.assert_trees_all_close(two, 1.5 * one, rtol=1e-6)
  chex.assert_trees_all_equal(one != 0, two != 0)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_lower_precision_is_cast_last(dtype):
  key, init = jax.random.key(0), eoi_init(DENSITY, scale=1.5)
  kernel = init(key, (32, 64), dtype)
  assert kernel.dtype == dtype
  want = init(key, (32, 64)).astype(dtype)
  chex.assert_trees_all_equal(kernel.astype(jnp.float32), want.astype(jnp.float32))


@pytest.mark.slow
def test_float64(x64):
  kernel = eoi_init(DENSITY)(jax.random.key(0), (32, 64), jnp.float64)
  assert kernel.dtype == jnp.float64
  assert float(orthogonality_error(kernel)) < 1e-12


@pytest.mark.slow
def test_jit_and_vmap():
  init, shape = eoi_init(DENSITY), (3, 3, IN, OUT)
  keys = jax.random.split(jax.random.key(0), 3)
  alone = np.stack([np.asarray(init(key, shape)) for key in keys])
  compiled = jax.jit(init, static_argnums=1)(keys[0], shape)
  chex.assert_trees_all_equal(compiled, alone[0])
  together = np.asarray(jax.vmap(lambda key: init(key, shape))(keys))
  chex.assert_trees_all_equal(together != 0, alone != 0)
  chex.assert_trees_all_close(together, alone, rtol=0, atol=1e-6)


def test_out_sharding_of_one_device():
  # As for the initializers of JAX, the axes of the mesh are of explicit type.
  mesh = jax.make_mesh((1,), ("x",), axis_types=(jax.sharding.AxisType.Explicit,))
  sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
  kernel = eoi_init(DENSITY)(jax.random.key(0), (32, 64), out_sharding=sharding)
  assert kernel.sharding.is_equivalent_to(sharding, 2)
  chex.assert_trees_all_equal(kernel, eoi_init(DENSITY)(jax.random.key(0), (32, 64)))


@pytest.mark.parametrize("wrap", [jax.jit, lambda function: function])
def test_out_sharding_on_axes_of_both_types(wrap):
  kinds = (jax.sharding.AxisType.Explicit, jax.sharding.AxisType.Auto)
  mesh = jax.make_mesh((1, 1), ("x", "y"), axis_types=kinds)
  sharding = jax.NamedSharding(mesh, jax.P("x", "y"))
  draw = wrap(lambda key: eoi_init(DENSITY)(key, (32, 64), out_sharding=sharding))
  with jax.set_mesh(mesh):
    kernel = draw(jax.random.key(0))
  assert kernel.sharding.is_equivalent_to(sharding, 2)
  expected = eoi_init(DENSITY)(jax.random.key(0), (32, 64))
  chex.assert_trees_all_close(kernel, expected, atol=1e-6)


def check_kernel(kernel):
  kernel = np.asarray(kernel)
  middle = kernel[center(kernel.shape[:-2])]
  assert float(orthogonality_error(jnp.asarray(middle))) < ATOL
  assert 0 < np.count_nonzero(kernel) < kernel.size / 2


LINEN = {
  "Dense": (linen.Dense(OUT, kernel_init=eoi_init(DENSITY)), (2, IN)),
  "Conv1d": (linen.Conv(OUT, (3,), kernel_init=eoi_init(DENSITY)), (2, 5, IN)),
  "Conv2d": (linen.Conv(OUT, (3, 2), kernel_init=eoi_init(DENSITY)), (2, 5, 5, IN)),
  "Conv3d": (
    linen.Conv(OUT, (2, 3, 3), kernel_init=eoi_init(DENSITY)),
    (2, 4, 4, 4, IN),
  ),
}


@pytest.mark.slow
@pytest.mark.parametrize("layer", few(sorted(LINEN)))
def test_flax_linen_layers(layer):
  module, shape = LINEN[layer]
  inputs = jax.random.normal(jax.random.key(1), shape)
  outputs, variables = module.init_with_output(jax.random.key(0), inputs)
  check_kernel(variables["params"]["kernel"])
  # SAME padding and one step: the bias starts at zero, so the layer keeps norms.
  assert outputs.shape == (*shape[:-1], OUT)
  assert float(jnp.linalg.norm(outputs)) == pytest.approx(
    float(jnp.linalg.norm(inputs)), rel=1e-4
  )


@pytest.mark.slow
def test_flax_linen_dense_general_over_two_axes():
  module = linen.DenseGeneral((4, 8), axis=(-2, -1), kernel_init=eoi_init(DENSITY))
  inputs = jax.random.normal(jax.random.key(1), (5, 2, IN))
  outputs, variables = module.init_with_output(jax.random.key(0), inputs)
  kernel = variables["params"]["kernel"]
  assert kernel.shape == (2, IN, 4, 8)
  # Flax draws (in, out) with the axes merged: there it is orthogonal.
  check_kernel(kernel.reshape(2 * IN, 32))
  chex.assert_trees_all_close(
    jnp.linalg.norm(outputs.reshape(5, -1), axis=1),
    jnp.linalg.norm(inputs.reshape(5, -1), axis=1),
    rtol=1e-5,
  )


def test_flax_linen_in_bfloat16_parameters():
  module = linen.Dense(OUT, kernel_init=eoi_init(DENSITY), param_dtype=jnp.bfloat16)
  variables = module.init(jax.random.key(0), jnp.ones((1, IN), jnp.bfloat16))
  assert variables["params"]["kernel"].dtype == jnp.bfloat16


def test_flax_nnx_linear():
  layer = nnx.Linear(IN, OUT, kernel_init=eoi_init(DENSITY), rngs=nnx.Rngs(0))
  check_kernel(layer.kernel[...])
  inputs = jax.random.normal(jax.random.key(1), (10, IN))
  chex.assert_trees_all_close(
    jnp.linalg.norm(layer(inputs), axis=1), jnp.linalg.norm(inputs, axis=1), rtol=1e-4
  )


def test_flax_nnx_conv():
  layer = nnx.Conv(
    IN, OUT, (3, 3), padding="CIRCULAR", kernel_init=eoi_init(DENSITY), rngs=nnx.Rngs(0)
  )
  check_kernel(layer.kernel[...])
  inputs = jax.random.normal(jax.random.key(1), (2, 5, 5, IN))
  assert float(jnp.linalg.norm(layer(inputs))) == pytest.approx(
    float(jnp.linalg.norm(inputs)), rel=1e-4
  )


@pytest.mark.slow
def test_a_plain_list_of_arrays_trains():
  init = eoi_init(0.25)
  keys = jax.random.split(jax.random.key(0), 3)
  params = [init(key, (16, 16)) for key in keys]
  masks = kernel_masks(jax.random.key(1), params, 0.25)
  tx = static_sparsity(optax.sgd(0.1, momentum=0.9), masks)
  inputs = jax.random.normal(jax.random.key(2), (32, 16))
  labels = jnp.argmax(inputs[:, :4], axis=1)

  def loss(params):
    x = inputs
    for kernel in params[:-1]:
      x = jnp.tanh(x @ kernel)
    logits = x @ params[-1]
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

  def step(carry, _):
    params, state = carry
    value, updates = jax.value_and_grad(loss)(params)
    updates, state = tx.update(updates, state, params)
    return (optax.apply_updates(params, updates), state), value

  run = jax.jit(lambda params: jax.lax.scan(step, (params, tx.init(params)), length=60))
  (trained, _), values = run(params)
  assert values[-1] < values[0] / 2
  for kernel, mask in zip(trained, masks, strict=True):
    assert np.count_nonzero(mask) == round(0.25 * mask.size)
    chex.assert_trees_all_equal(np.asarray(kernel)[~np.asarray(mask)], 0)


@pytest.mark.parametrize("density", [0, -0.5, 1.5, float("nan")])
def test_malformed_density_is_named_at_once(value_error, density):
  with value_error("density", str(density)):
    eoi_init(density)


def test_density_below_the_floor_of_the_kernel(value_error):
  with value_error("density", "[0.01562, 1]", "(64, 32)", "0.001"):
    eoi_init(0.001)(jax.random.key(0), (64, 32))


def test_density_below_the_floor_of_a_convolution(value_error):
  # One weight for each of the 24 outputs, of 9 taps times 24 inputs.
  with value_error("density", "[0.00463, 1]", "(3, 3, 16, 24)", "0.004"):
    eoi_init(0.004)(jax.random.key(0), (3, 3, IN, OUT))


def test_unknown_center_rule_lists_the_known_ones(value_error):
  with value_error("center", "'dense'", "plain", "more"):
    eoi_init(DENSITY, center="dense")


@pytest.mark.parametrize("shape", [(3, 3, 3, 3, 16, 24), (3, 0, 16, 24)])
def test_windows_of_rank_four_or_of_no_tap(value_error, shape):
  with value_error("shape", str(shape)):
    eoi_init(DENSITY)(jax.random.key(0), shape)


@pytest.mark.parametrize("shape", [None, 4, "44", (3.5, 4), (True, "4")])
@pytest.mark.parametrize(
  "init",
  [eoi_init(DENSITY), eoi_init(DENSITY, axes="io"), initializers.dense_orthogonal()],
)
def test_shapes_that_are_none(value_error, init, shape):
  with value_error("`shape`", repr(shape)):
    init(jax.random.key(0), shape)


@pytest.mark.parametrize("shape", [(), (8,)])
def test_biases_have_no_orthogonal_start(value_error, shape):
  with value_error("shape", str(shape)):
    eoi_init(DENSITY)(jax.random.key(0), shape)


@pytest.mark.parametrize("scale", [float("nan"), float("inf")])
def test_malformed_scale(value_error, scale):
  with value_error("scale", str(scale)):
    eoi_init(DENSITY, scale=scale)


@pytest.mark.slow
@pytest.mark.parametrize(
  ("axes", "shape"), [("ioo", (32, 4, 8)), ("iio", (4, 8, 16)), ("sio", (3, 16, 24))]
)
def test_axes_say_how_a_kernel_is_a_matrix(axes, shape):
  kernel = eoi_init(DENSITY, axes=axes)(jax.random.key(0), shape)
  layouts = kernel_layouts({"kernel": kernel}, {"kernel": axes})
  (bound,) = find_kernels({"kernel": kernel}, layouts).values()
  for matrix in bound.to_blocks(kernel):
    assert float(orthogonality_error(matrix)) < ATOL
    budget = round(DENSITY * matrix.size)
    assert budget - min(matrix.shape) < jnp.count_nonzero(matrix) <= budget


@pytest.mark.parametrize("shape", [(64, 4, 16), (4, 16, 64), (16, 16, 3, 64)])
def test_shapes_that_may_be_anything_are_refused(value_error, shape):
  with value_error("`axes`", str(shape), "i input"):
    eoi_init(DENSITY)(jax.random.key(0), shape)


@pytest.mark.slow
def test_grouped_convolutions_take_their_groups(value_error):
  with value_error("`groups`", "(3, 3, 1, 8)", "groups=8", "groups=1"):
    eoi_init(0.5)(jax.random.key(0), (3, 3, 1, 8))
  layer = linen.Conv(
    8, (3, 3), feature_group_count=4, kernel_init=eoi_init(0.5, groups=4)
  )
  inputs = jax.random.normal(jax.random.key(1), (2, 5, 5, 8))
  outputs, _ = layer.init_with_output(jax.random.key(0), inputs)
  chex.assert_trees_all_close(
    jnp.linalg.norm(outputs), jnp.linalg.norm(inputs), rtol=1e-5
  )


@pytest.mark.parametrize("key", [0, nnx.Rngs(0).params, jnp.ones(3)])
def test_what_is_no_key_is_refused(value_error, key):
  with value_error("`key`", "PRNG key"):
    eoi_init(DENSITY)(key, (16, 16))


@pytest.mark.slow
def test_keys_of_any_kind_draw_the_same_in_any_company():
  init = eoi_init(DENSITY)
  for impl in ("rbg", "unsafe_rbg", "threefry2x32"):
    keys = jax.random.split(jax.random.key(0, impl=impl), 3)
    together = jax.vmap(lambda key: init(key, (16, 16)))(keys)
    alone = jnp.stack([init(key, (16, 16)) for key in keys])
    chex.assert_trees_all_close(together, alone, atol=1e-6)
