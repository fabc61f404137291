"""SynFlow against recorded scores, multilinear references and log-space at depth."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eoi_jax
from eoi_jax.signal import find_collapse
from tests.cases import few
from tests.golden_nets import NETS, load_net


@pytest.mark.slow
@pytest.mark.parametrize("name", few(NETS))
def test_recorded_scores_and_masks(golden, name):
  net = load_net(golden, name)
  shape = (1, *net.batch[0].shape[1:])
  scores = eoi_jax.synflow_scores(net.apply_fn, net.params, shape)
  masks = eoi_jax.synflow_masks(net.apply_fn, net.params, shape, 0.1)
  differ = total = live = 0
  for layer in net.params:
    recorded = net.recorded("synflow_score_step1", layer)
    chex.assert_trees_all_close(scores[layer]["kernel"], recorded, rtol=1e-5)
    mask = np.asarray(masks[layer]["kernel"])
    differ += np.count_nonzero(net.recorded("synflow_mask100it0.1", layer) != mask)
    total, live = total + mask.size, live + mask.sum()
    assert scores[layer]["bias"] is None and masks[layer]["bias"] is None
  assert live == round(0.1 * total) and differ <= 2


ACTIVATIONS = {
  "tanh": (jnp.tanh, 1.0),
  "sigmoid": (jax.nn.sigmoid, 1.0),
  "hard_tanh": (jax.nn.hard_tanh, 1.0),
  "relu": (jax.nn.relu, 1.0),
  "relu6": (jax.nn.relu6, 1.0),
  "leaky_relu": (jax.nn.leaky_relu, 1.0),
  "selu": (jax.nn.selu, 1.0507009873554805),
  "elu": (jax.nn.elu, 1.0),
  "softplus": (jax.nn.softplus, 1.0),
  "silu": (jax.nn.silu, 1.0),
  "hard_swish": (jax.nn.hard_swish, 1.0),
  "soft_sign": (jax.nn.soft_sign, 1.0),
  "gelu, tanh": (jax.nn.gelu, 1.0),
  "gelu, erf": (lambda x: jax.nn.gelu(x, approximate=False), 1.0),
  "clip": (lambda x: jnp.clip(x, -1.0, 1.0), 1.0),
  "gate by hand": (lambda x: x * jax.nn.sigmoid(x), 1.0),
  "checkpointed": (jax.checkpoint(jnp.tanh), 1.0),
  "scaled": (lambda x: 1.5 * jnp.tanh(x), 1.5),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", few(ACTIVATIONS, 3))
def test_activations_are_linear(name):
  """`|W1| 1 + |b1|`, times the slope, times `|W2|`: written out."""
  activation, slope = ACTIVATIONS[name]
  rng = np.random.default_rng(0)
  a, bias, b = (rng.normal(size=s).astype(np.float32) for s in ((4, 6), (6,), (6, 3)))

  def apply_fn(params, inputs):
    hidden = activation(inputs @ params["a"]["kernel"] + params["a"]["bias"][None])
    return hidden @ params["b"]["kernel"]

  params = {"a": {"kernel": a, "bias": bias}, "b": {"kernel": b}}
  scores = eoi_jax.synflow_scores(apply_fn, params, (1, 4))
  a, bias, b = (np.abs(v.astype(np.float64)) for v in (a, bias, b))
  # hidden units times their outgoing weights, and the other way round
  np.testing.assert_allclose(
    scores["a"]["kernel"], slope * a * b.sum(axis=1)[None], rtol=1e-6
  )
  np.testing.assert_allclose(
    scores["b"]["kernel"], slope * (a.sum(axis=0) + bias)[:, None] * b, rtol=1e-6
  )


class Net(nn.Module):
  """Circular convolution, batch normalization, tanh, rectifier, average pooling."""

  @nn.compact
  def __call__(self, x, train=False):
    x = nn.Conv(3, (3, 3), padding="CIRCULAR", name="conv")(x)
    x = nn.BatchNorm(use_running_average=not train, name="norm")(x)
    x = nn.tanh(x)
    x = nn.relu(x).reshape(-1, 2, 2, 2, 2, 3).mean(axis=(2, 4))
    return nn.Dense(4, name="dense")(x.reshape(x.shape[0], -1))


def _positive_total(params, stats, x):
  """Sum of the logits of `Net` with absolute parameters and statistics, in numpy."""
  absolute = lambda v: np.abs(np.asarray(v, np.float64))  # noqa: E731
  params, stats = jax.tree.map(absolute, (params, stats))
  total = np.zeros((*x.shape[:3], 3))
  for i in range(3):
    for j in range(3):
      total += np.roll(x, (1 - i, 1 - j), axis=(1, 2)) @ params["conv"]["kernel"][i, j]
  total += params["conv"]["bias"]
  norm, state = params["norm"], stats["norm"]
  total = (total - state["mean"]) / np.sqrt(state["var"] + 1e-5)
  total = np.maximum(total * norm["scale"] + norm["bias"], 0)
  total = total.reshape(1, 2, 2, 2, 2, 3).mean(axis=(2, 4)).reshape(1, -1)
  return (total @ params["dense"]["kernel"] + params["dense"]["bias"]).sum()


@pytest.mark.slow
def test_batch_statistics_and_circular_padding():
  model, rng = Net(), np.random.default_rng(1)
  variables = model.init(jax.random.key(0), jnp.ones((1, 4, 4, 2)))
  params = jax.tree.map(lambda v: v + 0.3, variables["params"])
  stats = {
    "norm": {
      # negative means count by their size; one channel ends up below zero
      "mean": jnp.asarray([-0.5, 0.25, 50.0], jnp.float32),
      "var": jnp.asarray(rng.uniform(0.5, 2.0, 3), jnp.float32),
    }
  }

  def apply_fn(params, inputs):
    return model.apply({"params": params, "batch_stats": stats}, inputs)

  scores = eoi_jax.synflow_scores(apply_fn, params, (1, 4, 4, 2))
  wide = jax.tree.map(lambda v: np.asarray(v, np.float64), params)
  ones, h = np.ones((1, 4, 4, 2)), 1e-3
  for name in ("conv", "dense"):
    kernel = wide[name]["kernel"]
    expected = np.zeros_like(kernel)
    for index in np.ndindex(kernel.shape):
      centre = kernel[index]
      step = h if centre > 0 else -h  # R is linear in |w|, piece by piece
      kernel[index] = centre + step
      high = _positive_total(wide, stats, ones)
      kernel[index] = centre
      slope = (high - _positive_total(wide, stats, ones)) / h
      expected[index] = np.abs(centre * slope)
    np.testing.assert_allclose(
      scores[name]["kernel"], expected, rtol=1e-5, atol=1e-8 * expected.max()
    )
  assert np.all(np.asarray(scores["conv"]["kernel"])[..., 2] == 0)


def _deep(params, inputs):
  """A tanh net with a stack of equal layers under `lax.scan`."""

  def layer(x, p):
    return jnp.tanh(x @ p["kernel"] + p["bias"][None]), None

  x, _ = jax.lax.scan(layer, inputs, params["hidden"])
  return x @ params["last"]["kernel"]


def _layouts(params):
  return eoi_jax.kernel_layouts(params, {"hidden/kernel": "sio"})


def _deep_params(depth, width, scale, key=0):
  keys = jax.random.split(jax.random.key(key), 3)
  return {
    "hidden": {
      "kernel": scale * jax.random.normal(keys[0], (depth, width, width)),
      "bias": 0.1 * jax.random.normal(keys[1], (depth, width)),
    },
    "last": {"kernel": jax.random.normal(keys[2], (width, 3))},
  }


@pytest.mark.parametrize("scale", few([1e-3, 30.0], 0))
def test_a_thousand_layers_neither_over_nor_underflow(scale):
  params = _deep_params(1000, 8, scale)  # R is about 10**-2100 or 10**2300
  scores = eoi_jax.synflow_scores(_deep, params, (1, 8), layouts=_layouts(params))
  hidden = np.asarray(scores["hidden"]["kernel"], np.float64)
  # The same by hand, each vector divided by its sum and the sums kept as logarithms.
  kernels = np.abs(np.asarray(params["hidden"]["kernel"], np.float64))
  biases = np.abs(np.asarray(params["hidden"]["bias"], np.float64))
  last = np.abs(np.asarray(params["last"]["kernel"], np.float64))
  forward, logs = [np.ones(8)], [0.0]
  for kernel, bias in zip(kernels, biases, strict=True):
    value = forward[-1] @ kernel + bias * np.exp(np.minimum(-logs[-1], 700))
    forward.append(value / value.sum())
    logs.append(logs[-1] + np.log(value.sum()))
  backward, back_logs = [last.sum(axis=1)], [0.0]
  for kernel in kernels[::-1]:
    value = kernel @ backward[-1]
    backward.append(value / value.sum())
    back_logs.append(back_logs[-1] + np.log(value.sum()))
  backward, back_logs = backward[::-1][1:], back_logs[::-1][1:]
  top = logs[-1] + np.log(forward[-1] @ last.sum(axis=1))
  flow = np.array(
    [
      np.exp(logs[n] + back_logs[n] - top)
      * kernels[n]
      * np.outer(forward[n], backward[n])
      for n in range(1000)
    ]
  )
  ratio = hidden.max() / flow.max()
  assert 0.5 < ratio <= 2.0  # R is brought near 1 by a power of two
  live = flow > 1e-30 * flow.max()  # float32 has no smaller numbers to return
  np.testing.assert_allclose(hidden[live], flow[live] * ratio, rtol=1e-5)
  if scale > 1:  # biases vanish beside the flow: no layer is worth less than another
    layers = hidden.sum(axis=(1, 2))
    np.testing.assert_allclose(layers[5:], layers[-1], rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("density", few([0.125, 1.0]))
def test_masks_of_a_deep_net_are_exact_and_leave_no_layer_dead(density):
  params = _deep_params(300, 16, 10.0)
  masks = eoi_jax.synflow_masks(
    _deep, params, (1, 16), density, num_rounds=20, layouts=_layouts(params)
  )
  total = 300 * 16 * 16 + 48
  live = sum(c.live for c in eoi_jax.count_masks(masks).values())
  assert live == round(density * total)
  found = find_collapse(_deep, params, masks, (1, 16), layouts=_layouts(params))
  assert found.message == ""


@pytest.mark.slow
def test_all_scores_of_a_thousand_layers_are_finite_and_exact():
  params = _deep_params(1000, 16, 1.0)
  kernels = jax.vmap(lambda k: jnp.linalg.qr(k)[0])(params["hidden"]["kernel"])
  params["hidden"] = {"kernel": 1.0247 * kernels, "bias": jnp.zeros((1000, 16))}
  inputs = jax.random.normal(jax.random.key(1), (12, 16))
  batch = inputs, jnp.arange(12) % 3
  layouts = _layouts(params)
  for scores in (
    eoi_jax.snip_scores(_deep, params, batch, layouts=layouts),
    eoi_jax.grasp_scores(_deep, params, [batch], layouts=layouts),
    eoi_jax.synflow_scores(_deep, params, (1, 16), layouts=layouts),
  ):
    layers = np.abs(np.asarray(scores["hidden"]["kernel"])).sum(axis=(1, 2))
    assert np.all(np.isfinite(layers)) and np.all(layers > 0)
    masks = eoi_jax.global_masks(scores, 0.125)
    live = sum(c.live for c in eoi_jax.count_masks(masks).values())
    assert live == round(0.125 * (1000 * 256 + 48))


@pytest.mark.slow
def test_rounds_keep_the_published_counts():
  """One round at a time, by hand: the mask follows from the counts of each round."""
  params = _deep_params(3, 5, 1.0)
  layouts = _layouts(params)
  density, rounds, total = 0.3, 4, 90
  scores = jax.jit(lambda p: eoi_jax.synflow_scores(_deep, p, (1, 5), layouts=layouts))
  alive = jax.tree.map(lambda p: p, params)
  for e in range(rounds):
    found = scores(alive)
    flat = np.concatenate([np.ravel(found[n]["kernel"]) for n in ("hidden", "last")])
    left = total - int((1 - density ** ((e + 1) / rounds)) * total)
    left = round(density * total) if e == rounds - 1 else left
    keep = np.zeros(total, bool)
    keep[np.argsort(-flat, kind="stable")[:left]] = True
    for name, part in zip(("hidden", "last"), np.split(keep, [75]), strict=True):
      shape = alive[name]["kernel"].shape
      alive[name]["kernel"] = alive[name]["kernel"] * part.reshape(shape).astype("f4")
  masks = eoi_jax.synflow_masks(
    _deep, params, (1, 5), density, num_rounds=rounds, layouts=layouts
  )
  for name in ("hidden", "last"):
    chex.assert_trees_all_equal(masks[name]["kernel"], alive[name]["kernel"] != 0)
  traced = jax.jit(
    lambda p: eoi_jax.synflow_masks(
      _deep, p, (1, 5), density, num_rounds=rounds, layouts=layouts
    )
  )(params)
  chex.assert_trees_all_equal(traced, masks)


def test_a_name_is_not_an_activation():
  """A jitted function of the name of an activation, with a weight of its own."""

  @jax.jit
  def swish(x, w):
    return x @ w

  @jax.jit
  def softplus(x):
    return 3.0 * x

  rng = np.random.default_rng(0)
  a, b = (rng.normal(size=(4, 4)).astype(np.float32) for _ in range(2))
  params = {"a": {"kernel": a}, "b": {"kernel": b}}

  def apply_fn(params, x):
    return swish(softplus(swish(x, params["a"]["kernel"])), params["b"]["kernel"])

  scores = eoi_jax.synflow_scores(apply_fn, params, (1, 4))
  a, b = np.abs(a), np.abs(b)
  chex.assert_trees_all_close(scores["a"]["kernel"], 3 * a * b.sum(1)[None], rtol=1e-5)
  chex.assert_trees_all_close(
    scores["b"]["kernel"], 3 * a.sum(0)[:, None] * b, rtol=1e-5
  )
  dead = {"a": {"kernel": np.zeros((4, 4), bool)}, "b": {"kernel": None}}
  found = find_collapse(apply_fn, params, dead, (1, 4))
  assert found.empty == ("a/kernel",) and found.disconnected


class Block(nn.Module):
  """A pre-LN transformer block on tokens, with a causal mask and a group norm."""

  @nn.compact
  def __call__(self, tokens):
    x = nn.Embed(11, 16, name="embed")(tokens)
    y = nn.LayerNorm(name="norm")(x)
    mask = nn.make_causal_mask(tokens)
    x = x + nn.MultiHeadDotProductAttention(num_heads=2, name="attention")(y, mask=mask)
    y = nn.gelu(nn.Dense(32, name="up")(nn.RMSNorm(name="rms")(x)))
    x = nn.GroupNorm(4, name="group")(x + nn.Dense(16, name="down")(y))
    return nn.Dense(3, name="head")(x), {"aux": x}


def _linear_block(params, tokens):
  """R of `Block` by hand: scale-only norms, attention `(q k^T) v / n`."""
  attention = params["attention"]
  x = jnp.broadcast_to(params["embed"]["embedding"].mean(0), (tokens, 16))
  scaled = lambda x, norm: x * norm["scale"][None] + norm.get("bias", 0.0)  # noqa: E731
  y = scaled(x, params["norm"])
  q, k, v = (
    jnp.einsum("ti,ihd->thd", y, attention[name]["kernel"]) + attention[name]["bias"]
    for name in ("query", "key", "value")
  )
  logits = jnp.einsum("thd,shd->hts", q / 8**0.5, k)
  weights = jnp.where(np.tri(tokens, dtype=bool), logits, 0.0) / tokens
  y = jnp.einsum("hts,shd->thd", weights, v)
  x = x + jnp.einsum("thd,hdo->to", y, attention["out"]["kernel"])
  x = x + attention["out"]["bias"]
  y = scaled(x, params["rms"]) @ params["up"]["kernel"] + params["up"]["bias"]
  x = x + y @ params["down"]["kernel"] + params["down"]["bias"]
  x = scaled(x, params["group"])
  return (x @ params["head"]["kernel"] + params["head"]["bias"]).sum()


@pytest.mark.slow
def test_a_transformer_block_is_scored_as_its_linear_form():
  model, tokens = Block(), jax.ShapeDtypeStruct((1, 5), jnp.int32)
  params = model.init(jax.random.key(0), jnp.ones((1, 5), jnp.int32))["params"]
  params = jax.tree.map(lambda p: p + 0.1, params)
  layouts = eoi_jax.linen_layouts(model, tokens)

  def apply_fn(params, tokens):
    return model.apply({"params": params}, tokens)

  scores = eoi_jax.synflow_scores(apply_fn, params, tokens, layouts=layouts)
  positive = jax.tree.map(jnp.abs, params)
  with jax.numpy_rank_promotion("allow"):
    slopes = jax.jit(jax.grad(lambda p: _linear_block(p, 5)))(positive)
  expected = jax.tree.map(jnp.multiply, positive, slopes)
  named = jax.tree.map(
    lambda score, e: e, scores, expected, is_leaf=lambda s: s is None
  )
  for name in ("query", "key", "value", "out"):
    assert jnp.all(scores["attention"][name]["kernel"] > 0), name
    chex.assert_trees_all_close(
      scores["attention"][name]["kernel"],
      named["attention"][name]["kernel"],
      rtol=1e-4,
    )
  for name in ("up", "down", "head"):
    chex.assert_trees_all_close(
      scores[name]["kernel"], named[name]["kernel"], rtol=1e-4
    )
  masks = eoi_jax.synflow_masks(
    apply_fn, params, tokens, 0.2, num_rounds=10, layouts=layouts
  )
  found = find_collapse(apply_fn, params, masks, tokens, layouts=layouts)
  assert found.message == ""


def test_several_inputs_by_name():
  params = {"a": {"kernel": jnp.ones((3, 2))}, "b": {"kernel": jnp.ones((4, 2))}}

  def apply_fn(params, inputs):
    return inputs["x"] @ params["a"]["kernel"] + inputs["y"] @ params["b"]["kernel"]

  scores = eoi_jax.synflow_scores(apply_fn, params, {"x": (1, 3), "y": (1, 4)})
  chex.assert_trees_all_close(scores, params)


@pytest.mark.slow
def test_errors(value_error):
  params = {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)}

  def dense(params, inputs):
    return inputs @ params["kernel"]

  with value_error("`apply_fn`", "a function", "None"):
    eoi_jax.synflow_scores(None, params, (1, 3))
  for outputs in (lambda p, x: {"y": x}, lambda p, x: [x, x], lambda p, x: ((x, x), x)):
    with value_error("`apply_fn`", "logits first"):
      eoi_jax.synflow_scores(outputs, params, (1, 3))
  for shape in (None, 3):
    with value_error("`input_shape`", f"got {shape}"):
      eoi_jax.synflow_scores(dense, params, shape)
  with value_error("`dtype`", "floating", "int"):
    eoi_jax.synflow_scores(dense, params, (1, 3), dtype=int)
  with value_error("`density`", "(0, 1]", "1.5"):
    eoi_jax.synflow_masks(dense, params, (1, 3), 1.5)
  with value_error("`num_rounds`", "at least 1", "0"):
    eoi_jax.synflow_masks(dense, params, (1, 3), 0.5, num_rounds=0)
  with value_error("`synflow_scores`", "zeros only", "'a/kernel'", "`layouts`"):
    dead = {"a": {"kernel": jnp.zeros((3, 3))}, "b": {"kernel": jnp.ones((3, 2))}}
    eoi_jax.synflow_scores(
      lambda p, x: x @ p["b"]["kernel"] + x @ p["a"]["kernel"] @ p["b"]["kernel"],
      dead,
      (1, 3),
    )
  with value_error("`density`", "path", "0.03"):
    chain = [{"kernel": jnp.eye(4)} for _ in range(3)]
    eoi_jax.synflow_masks(
      lambda p, x: x @ p[0]["kernel"] @ p[1]["kernel"] @ p[2]["kernel"],
      chain,
      (1, 4),
      0.03,
      num_rounds=3,
    )
  with value_error("`synflow_scores`", "'kernel'"):
    bad = params | {"kernel": jnp.full((3, 2), jnp.nan)}
    eoi_jax.synflow_scores(dense, bad, (1, 3))
  with value_error("`apply_fn`", "depend on its inputs"):
    eoi_jax.synflow_scores(lambda p, x: p["kernel"], params, (1, 3))

  def loops(params, inputs):
    def cond(state):
      return state.sum() < 10

    return jax.lax.while_loop(cond, lambda s: s + 1, inputs @ params["kernel"])

  with value_error("`apply_fn`", "while"):
    eoi_jax.synflow_scores(loops, params, (1, 3))
