"""Kernels of strided convolutions: isometric, counted exactly, spread evenly."""

import functools
import math

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eoi_jax import (
  allocate,
  conv_singular_values,
  count_masks,
  eoi_init,
  gram_errors,
  linen_layouts,
  sparsify,
)
from eoi_jax.initializers._polyphase import strided_taps
from eoi_jax.layouts.layout import block_floor
from tests.cases import few

KEY = jax.random.key(0)
POLYPHASE = {"taps": "polyphase"}


def assert_isometric(kernel, strides):
  """All singular values on a torus that the strides divide, larger than the window."""
  sizes = zip(strides, kernel.shape[:-2], strict=True)
  image = [stride * max(2, -(-size // stride) + 1) for stride, size in sizes]
  values = conv_singular_values(kernel, image, padding="CIRCULAR", strides=strides)
  chex.assert_trees_all_close(values, np.ones_like(values), atol=1e-5, rtol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize(
  ("shape", "strides", "schedule"),
  few(
    [
      ((3, 3, 16, 32), (2, 2), "matching"),
      ((3, 24, 64), (2,), "iid"),
      ((3, 8, 80), (2,), "matching"),  # more outputs than inputs of all phases
      ((7, 3, 24), (2,), "matching"),  # more taps than channels
      ((2, 8, 8), (3,), "iid"),  # strides beyond the window
    ],
    0,
    rows=True,
  ),
)
def test_kernels_are_isometric_within_their_budget(shape, strides, schedule):
  size, lowest = math.prod(shape), block_floor(shape, strides)
  budgets = [max(lowest, round(d * size)) for d in (0.0, 0.05, 0.1, 0.3, 0.7, 1.0)]

  def sample(budget):
    options = {"max_budget": size, "schedule": schedule}
    return strided_taps(KEY, shape, budget, strides=strides, **options)

  kernels = np.asarray(jax.jit(jax.vmap(sample))(jnp.array(budgets, jnp.int32)))
  counts = np.count_nonzero(kernels.reshape(len(budgets), -1), axis=1)
  assert (counts <= budgets).all() and counts[0] == lowest
  for kernel in kernels:
    assert_isometric(kernel, strides)
  if shape[-2] >= 16:  # channels enough for every tap
    assert counts[-1] == size
    taps = np.count_nonzero(kernels[1:], axis=(-2, -1)).reshape(len(budgets) - 1, -1)
    shares = taps * taps.shape[1] / counts[1:, None]
    assert shares.min() > 0.5 and shares.max() < 2


class Net(nn.Module):
  """Strided, grouped, transposed and dilated convolutions on a torus."""

  @nn.compact
  def __call__(self, x):
    options = {"padding": "CIRCULAR", "use_bias": False, "strides": 2}
    x = nn.Conv(16, (3,), feature_group_count=2, name="groups", **options)(x)
    x = nn.ConvTranspose(8, (3,), name="transposed", **(options | {"strides": (2,)}))(x)
    return nn.Conv(6, (2,), kernel_dilation=2, name="dilated", **options)(x)


@pytest.mark.slow
def test_layouts_tell_strides_and_direction(value_error):
  inputs = jax.random.normal(KEY, (1, 16, 10))
  layouts = linen_layouts(Net(), inputs)
  params = Net().init(KEY, inputs)["params"]
  assert layouts["groups/kernel"].strides == (2,)
  assert layouts["dilated/kernel"].strides == (1,)  # all taps see one phase
  new, masks = sparsify(KEY, params, 0.3, layouts=layouts, options=POLYPHASE)
  for name, count in count_masks(masks).items():
    assert count.live == round(0.3 * count.total), name
  assert all(error.max() < 5e-6 for error in gram_errors(new, layouts=layouts).values())
  for half in np.split(np.asarray(new["groups"]["kernel"]), 2, axis=-1):
    assert_isometric(half, (2,))
  layer = nn.ConvTranspose(8, (3,), (2,), padding="CIRCULAR", use_bias=False)
  apply = functools.partial(layer.apply, {"params": new["transposed"]})
  jacobian = jax.jacobian(apply)(jnp.zeros((1, 8, 16))).reshape(128, 128)
  values = np.linalg.svd(jacobian, compute_uv=False)
  chex.assert_trees_all_close(values, np.ones_like(values), atol=1e-5, rtol=1e-7)
  with value_error("'groups/kernel'", "`density`", 'taps "all"'):  # a floor of .067
    sparsify(KEY, params, 0.06, layouts=layouts, options=POLYPHASE)
  # The others pay for the floors of what is strided.
  options = {"floors": "lift", "layouts": layouts}
  densities = allocate(params, 0.06, taps="polyphase", **options)
  new, masks = sparsify(KEY, params, densities, layouts=layouts, options=POLYPHASE)
  assert all(error.max() < 5e-6 for error in gram_errors(new, layouts=layouts).values())
  counts = count_masks(masks)
  assert sum(count.live for count in counts.values()) == round(0.06 * 720)
  assert counts["groups/kernel"].live == 16  # 8 outputs of 2 phases of 5 inputs, twice
  with value_error("`density`", "'groups/kernel'", "16 weights"):
    allocate(params, 0.06, taps="polyphase", floors="error", layouts=layouts)
  with value_error("`taps`", "polyphase", "strided"):
    allocate(params, 0.06, taps="strided", **options)
  # At stride 1 it is what taps "all" gives.
  some, layouts = {"dilated": params["dilated"]}, layouts.replace({"dilated/*": "wio"})
  starts = [
    sparsify(KEY, some, 0.3, layouts=layouts, options={"taps": taps})[0]
    for taps in ("polyphase", "all")
  ]
  chex.assert_trees_all_equal(*starts)


@pytest.mark.slow
def test_the_initializer_takes_the_strides(value_error):
  init = eoi_init(0.2, taps="polyphase", strides=2)
  kernel = init(KEY, (3, 6, 10))
  assert_isometric(np.asarray(kernel), (2,))
  assert 0.8 * 36 < np.count_nonzero(kernel) <= 36
  chex.assert_shape(eoi_init(0.2, taps="polyphase", strides=2)(KEY, (6, 10)), (6, 10))
  with value_error("`strides`", "polyphase", "None"):
    eoi_init(0.2, taps="polyphase")
  with value_error("`strides`", "polyphase", "2"):
    eoi_init(0.2, taps="all", strides=2)
  with value_error("`strides`", "2 of them", "(2,)"):
    eoi_init(0.2, taps="polyphase", strides=(2,))(KEY, (3, 3, 6, 10))
  with value_error("`density`", "0.01852", "(3, 3, 6, 10)"):  # 10 nonzeros, not 6
    eoi_init(0.015, taps="polyphase", strides=2)(KEY, (3, 3, 6, 10))


@pytest.mark.slow
def test_a_delta_kernel_counts_as_what_it_is():
  layouts = linen_layouts(nn.Conv(8, (3, 3), strides=2), jnp.ones((1, 4, 4, 6)))
  params = {"kernel": eoi_init(0.2)(KEY, (3, 3, 6, 8)), "bias": jnp.zeros(8)}
  assert gram_errors(params, layouts=layouts)["kernel"][0] < 5e-6  # at stride 1
  params["kernel"] *= 2
  assert gram_errors(params, layouts=layouts)["kernel"][0] > 1
