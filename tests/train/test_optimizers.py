"""Schedules, optimizers and the loss, against their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from train.core.optimizers import OptimizerSettings, create_optimizer, create_schedule
from train.core.steps import example_losses

SGD = OptimizerSettings("sgd", 0.1, 0.9, True, 0.0, "constant")
pytestmark = pytest.mark.usefixtures("standard_promotion")  # optax's schedules


def rates(steps, num_steps=100, **changes):
  schedule = create_schedule(SGD._replace(**changes), num_steps)
  return [float(jnp.asarray(schedule(jnp.int32(step)))) for step in steps]


@pytest.mark.parametrize("name", ["constant", "step", "cosine"])
def test_a_warm_up_rises_linearly_to_the_schedule(name):
  whole = rates(range(100), schedule=name)
  warm = rates(range(100), schedule=name, warmup=0.1)
  factors = [(step + 1) / 10 for step in range(10)] + [1.0] * 90
  np.testing.assert_allclose(warm, np.multiply(whole, factors), rtol=1e-5)
  assert rates(range(100), schedule=name, warmup=0.01) == whole  # a single step


PARAMS = {"w": jnp.array([[1.0, -2.0], [3.0, 0.0]]), "b": jnp.array([0.5])}
MASKS = {"w": jnp.array([[True, True], [True, False]]), "b": None}
GRADS = {"w": jnp.array([[0.3, 0.4], [0.0, 7.0]]), "b": jnp.array([1.2])}


def two_updates(settings):
  """Parameters after two equal gradients, and how they changed each time."""
  tx = create_optimizer(settings, 10, MASKS)
  params, state, changes = PARAMS, tx.init(PARAMS), []
  for _ in range(2):
    updates, state = tx.update(GRADS, state, params)
    params = optax.apply_updates(params, updates)
    changes.append(jax.device_get(updates))
  return jax.device_get(params), changes


def test_sgd_is_nesterovs_with_decay_in_the_gradient():
  _, changes = two_updates(SGD._replace(weight_decay=0.01))
  value, trace = 1.0, 0.0
  for change in changes:
    grad = 0.3 + 0.01 * value
    trace = grad + 0.9 * trace
    step = -0.1 * (grad + 0.9 * trace)
    np.testing.assert_allclose(change["w"][0, 0], step, rtol=1e-5)
    value += step


def test_adamw_decays_apart_from_the_gradient():
  settings = SGD._replace(name="adamw", nesterov=False)
  plain, decayed = (
    two_updates(settings._replace(weight_decay=decay))[1][0] for decay in (0.0, 0.5)
  )
  np.testing.assert_allclose(plain["w"][0], [-0.1, -0.1], rtol=1e-5)  # signs
  np.testing.assert_allclose(
    decayed["w"] - plain["w"], -0.1 * 0.5 * PARAMS["w"], atol=1e-6
  )


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_clipping_scales_the_gradient_of_live_weights(name):
  settings = SGD._replace(name=name, momentum=0.0, nesterov=False, learning_rate=1.0)
  params, (first, _) = two_updates(settings._replace(clip_norm=0.65))
  assert params["w"][1, 1] == 0
  if name == "sgd":  # the norm of the live gradient is 1.3; 7 does not count
    np.testing.assert_allclose(first["w"][0], [-0.15, -0.2], rtol=1e-5)
    np.testing.assert_allclose(first["b"], [-0.6], rtol=1e-5)
  _, loose = two_updates(settings._replace(clip_norm=1.5))
  _, free = two_updates(settings)
  jax.tree.map(np.testing.assert_array_equal, loose, free)


def test_the_losses_are_those_of_optax():
  logits = jax.random.normal(jax.random.key(0), (6, 5))
  labels = jnp.array([0, 1, 2, 3, 4, 0])
  shares = jax.nn.one_hot(labels, 5)
  plain = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
  np.testing.assert_allclose(example_losses(logits, shares), plain, rtol=1e-5)
  expected = optax.softmax_cross_entropy(logits, optax.smooth_labels(shares, 0.1))
  found = example_losses(logits, shares, smoothing=0.1)
  np.testing.assert_allclose(found, expected, rtol=1e-5)
  # Of a mixed image both labels are a yes, whatever their shares.
  mixed, yes = 0.9 * shares + 0.1 * shares[::-1], shares + shares[::-1]
  for smoothing in (0.0, 0.1):
    targets = optax.smooth_labels(jnp.minimum(yes, 1), smoothing)
    expected = optax.sigmoid_binary_cross_entropy(logits, targets).mean(-1)
    options = {"loss": "binary_cross_entropy", "smoothing": smoothing}
    found = example_losses(logits, mixed, **options)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
