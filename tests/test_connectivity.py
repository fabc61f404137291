import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eoi_jax import (
  count_masks,
  kernel_layouts,
  kernel_masks,
  random_masks,
  sparse_orthogonal,
)
from eoi_jax.signal import (
  connected_components,
  effective_density,
  effective_masks,
)


def tanh_net(params, x):
  for layer in params[:-1]:
    x = jnp.tanh(x @ layer["kernel"] + layer["bias"][None])
  return x @ params[-1]["kernel"] + params[-1]["bias"][None]


def _template(*sizes):
  return [
    {"kernel": jnp.ones((rows, cols)), "bias": jnp.ones(cols)}
    for rows, cols in itertools.pairwise(sizes)
  ]


def _by_reachability(masks):
  """Effective masks of a chain of dense layers, by sets of reachable units."""
  forward = [np.ones(masks[0].shape[0], bool)]
  for mask in masks:
    forward.append(forward[-1] @ mask)
  backward = [np.ones(masks[-1].shape[1], bool)]
  for mask in reversed(masks):
    backward.append(mask @ backward[-1])
  backward = backward[::-1]
  return [
    mask & forward[n][:, None] & backward[n + 1][None] for n, mask in enumerate(masks)
  ]


@pytest.mark.slow
@pytest.mark.parametrize("density", [0.03, 0.1, 1.0])
def test_effective_masks_of_a_chain(density):
  params = _template(40, 30, 30, 30, 10)
  masks = random_masks(jax.random.key(0), params, density)
  effective = effective_masks(tanh_net, params, masks, (1, 40))
  expected = _by_reachability([np.asarray(layer["kernel"]) for layer in masks])
  for found, wanted in zip(effective, expected, strict=True):
    chex.assert_trees_all_equal(found["kernel"], wanted)
    assert found["bias"] is None
  total = sum(count.total for count in count_masks(effective).values())
  live = sum(wanted.sum() for wanted in expected)
  assert effective_density(effective) == pytest.approx(live / total)
  if density == 0.03:
    assert 0 < effective_density(effective) < 0.02
  if density == 1:
    assert effective_density(effective) == 1


def _stacked_net(params, x):
  x = jnp.tanh(x @ params["first"]["kernel"])
  x, _ = jax.lax.scan(
    lambda x, w: (jax.nn.hard_tanh(x @ w), None), x, params["hidden"]["kernel"]
  )
  return x @ params["last"]["kernel"]


@pytest.mark.slow
def test_effective_masks_of_a_deep_stack():
  """No signal is lost to saturation or underflow in 300 layers."""
  params = {
    "first": {"kernel": jnp.ones((16, 16))},
    "hidden": {"kernel": jnp.ones((300, 16, 16))},
    "last": {"kernel": jnp.ones((16, 4))},
  }

  options = {"layouts": kernel_layouts(params, {"hidden/kernel": "sio"})}
  masks = random_masks(jax.random.key(0), params, 0.25, **options)
  masks["last"] = {"kernel": None}
  effective = effective_masks(_stacked_net, params, masks, (1, 16), **options)
  chain = [masks["first"]["kernel"], *masks["hidden"]["kernel"], np.ones((16, 4), bool)]
  expected = _by_reachability([np.asarray(mask) for mask in chain])
  chex.assert_trees_all_equal(effective["hidden"]["kernel"], np.stack(expected[1:-1]))
  chex.assert_trees_all_equal(effective["last"]["kernel"], expected[-1])


def test_components():
  kernel = np.zeros((5, 4))
  kernel[0, 1] = kernel[2, 1] = kernel[2, 3] = 1.0  # one block: 0, 2 | 1, 3
  kernel[4, 0] = -2.0
  found = connected_components(kernel)
  assert found.count == 2
  assert found.inputs.tolist() == [0, -1, 0, -1, 1]
  assert found.outputs.tolist() == [1, 0, -1, 0]
  taps = np.zeros((3, 3, 5, 4))
  taps[0, 1] = kernel
  assert connected_components(taps).inputs.tolist() == found.inputs.tolist()
  assert connected_components(np.zeros((2, 3))).count == 0


def test_a_sparse_orthogonal_matrix_falls_into_blocks():
  """Each rotation joins two blocks at most; untouched columns are left alone."""
  counts = [
    connected_components(sparse_orthogonal(jax.random.key(0), (64, 64), density)).count
    for density in (1 / 64, 0.2)
  ]
  assert counts[0] == 64 and 1 <= counts[1] < 16
  blocks = connected_components(sparse_orthogonal(jax.random.key(0), (64, 64), 0.2))
  sizes = np.bincount(blocks.inputs)
  chex.assert_trees_all_equal(sizes, np.bincount(blocks.outputs))  # square blocks
  assert sizes[0] == sizes.max()


def test_errors(value_error):
  with value_error("`kernel`", "(3,)"):
    connected_components(np.ones(3))
  params = _template(4, 4)
  masks = kernel_masks(jax.random.key(0), jax.tree.map(jnp.zeros_like, params), 0.5)
  with value_error("`masks`", "0/kernel"):
    masks[0]["kernel"] = masks[0]["kernel"][:2]
    effective_masks(tanh_net, params, masks, (1, 4))
