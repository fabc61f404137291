"""SNIP, GraSP and the baselines against recorded scores and plain numpy."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import eoi_jax
from eoi_jax.masks import magnitude_scores, random_scores
from tests.cases import few
from tests.golden_nets import NETS, load_net

RTOL = 1e-5  # the expected scores are float64, ours are rounded to float32
WIDE = {"dtype": jnp.float64}


@pytest.mark.slow
@pytest.mark.parametrize("name", few(NETS))
@pytest.mark.parametrize("method", few(["snip", "grasp_onebatch", "grasp_halves"], 2))
def test_recorded_scores_and_masks(golden, name, method):
  net = load_net(golden, name)
  (x, y), half = net.batch, len(net.batch[1]) // 2
  if method == "snip":
    wide = eoi_jax.snip_scores(net.apply_fn, net.params, (x, y), **WIDE)
    scores, sign = eoi_jax.snip_scores(net.apply_fn, net.params, (x, y)), 1
  else:
    halves = [(x[:half], y[:half]), (x[half:], y[half:])]
    batches = [(x, y)] if method == "grasp_onebatch" else halves
    wide = eoi_jax.grasp_scores(net.apply_fn, net.params, batches, **WIDE)
    scores, sign = eoi_jax.grasp_scores(net.apply_fn, net.params, batches), -1
  masks = eoi_jax.global_masks(scores, 0.1)
  differ = 0
  for layer, leaf in wide.items():
    recorded = sign * net.recorded(f"{method}_score", layer)
    chex.assert_trees_all_close(leaf["kernel"], recorded, rtol=RTOL)
    narrow, top = scores[layer]["kernel"], np.abs(recorded).max()
    chex.assert_trees_all_close(narrow, recorded, rtol=RTOL, atol=2e-6 * top)
    kept = net.recorded(f"{method}_mask0.1", layer)
    differ += np.count_nonzero(kept != np.asarray(masks[layer]["kernel"]))
    assert leaf["bias"] is None and masks[layer]["bias"] is None
  counts = eoi_jax.count_masks(masks).values()
  assert sum(c.live for c in counts) == round(0.1 * sum(c.total for c in counts))
  assert differ <= 2  # int(N d) and N - int(N (1 - d)) as recorded, not round(N d)


def _tanh_net(params, inputs):
  hidden = jnp.tanh(inputs @ params["a"]["kernel"] + params["a"]["bias"][None])
  return hidden @ params["b"]["kernel"]


def _tanh_gradient(a, bias, b, x, y, temperature=1.0):
  """Gradient of the mean cross-entropy of a tanh net, by hand, in float64."""
  hidden = np.tanh(x @ a + bias)
  logits = hidden @ b / temperature
  error = np.exp(logits - logits.max(axis=1, keepdims=True))
  error /= error.sum(axis=1, keepdims=True)
  error[np.arange(len(y)), y] -= 1
  error /= len(y) * temperature
  return x.T @ ((error @ b.T) * (1 - hidden**2)), hidden.T @ error


@pytest.fixture(scope="module")
def tanh_case():
  rng = np.random.default_rng(0)
  a, bias, b = rng.normal(size=(6, 8)), rng.normal(size=8), rng.normal(size=(8, 4))
  x, y = rng.normal(size=(12, 6)), rng.integers(0, 4, 12)
  arrays = [np.float32(v).astype(np.float64) for v in (a, bias, b, x)]
  a, bias, b, x = arrays
  params = {"a": {"kernel": a, "bias": bias}, "b": {"kernel": b}}
  params = jax.tree.map(lambda v: jnp.asarray(v, jnp.float32), params)
  return params, (jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.int32)), (*arrays, y)


def test_snip_on_tanh(tanh_case):
  params, batch, (a, bias, b, x, y) = tanh_case
  scores = eoi_jax.snip_scores(_tanh_net, params, batch, **WIDE)
  da, db = _tanh_gradient(a, bias, b, x, y)
  expected = np.abs(a * da), np.abs(b * db)
  total = sum(e.sum() for e in expected)
  np.testing.assert_allclose(scores["a"]["kernel"], expected[0] / total, rtol=RTOL)
  np.testing.assert_allclose(scores["b"]["kernel"], expected[1] / total, rtol=RTOL)
  assert scores["a"]["kernel"].dtype == jnp.float32


@pytest.mark.slow
@pytest.mark.parametrize("temperature", few([200.0, 1.5]))
@pytest.mark.parametrize("parts", [1, 2])
def test_grasp_on_tanh(tanh_case, temperature, parts):
  params, (inputs, labels), (a, bias, b, x, y) = tanh_case
  pieces = [slice(None)] if parts == 1 else [slice(5), slice(5, None)]

  def gradient(a, b):
    found = [_tanh_gradient(a, bias, b, x[p], y[p], temperature) for p in pieces]
    return [sum(g) for g in zip(*found, strict=True)]

  ga, gb = gradient(a, b)
  h = 1e-4 / max(np.abs(ga).max(), np.abs(gb).max())  # central difference along g
  high, low = gradient(a + h * ga, b + h * gb), gradient(a - h * ga, b - h * gb)
  ha, hb = ((u - v) / (2 * h) for u, v in zip(high, low, strict=True))
  total = np.abs((a * ha).sum() + (b * hb).sum()) + 1e-10
  batches = [(inputs[p], labels[p]) for p in pieces]
  scores = eoi_jax.grasp_scores(
    _tanh_net, params, batches, temperature=temperature, **WIDE
  )
  for name, expected in (("a", a * ha), ("b", b * hb)):
    found = np.asarray(scores[name]["kernel"], np.float64)
    scale = np.abs(expected).max() / total
    np.testing.assert_allclose(found, expected / total, rtol=1e-5, atol=1e-6 * scale)
  if parts == 1:  # one batch needs no list
    alone = eoi_jax.grasp_scores(
      _tanh_net, params, (inputs, labels), temperature=temperature, **WIDE
    )
    assert jnp.array_equal(alone["a"]["kernel"], scores["a"]["kernel"])


class BatchNormNet(nn.Module):
  """Circular convolution, batch normalization, rectifier, dense."""

  @nn.compact
  def __call__(self, x, train):
    x = nn.Conv(3, (3, 3), padding="CIRCULAR", use_bias=False, name="conv")(x)
    x = nn.BatchNorm(use_running_average=not train, name="norm")(x)
    x = nn.relu(x)
    return nn.Dense(4, name="dense")(x.reshape(x.shape[0], -1))


def _batch_norm_loss(params, x, y):
  """The loss of `BatchNormNet` in training mode, in numpy."""
  kernel = params["conv"]["kernel"]
  total = np.zeros((*x.shape[:3], 3))
  for i in range(3):
    for j in range(3):
      total += np.roll(x, (1 - i, 1 - j), axis=(1, 2)) @ kernel[i, j]
  mean, var = total.mean(axis=(0, 1, 2)), total.var(axis=(0, 1, 2))
  norm = params["norm"]
  total = (total - mean) / np.sqrt(var + 1e-5) * norm["scale"] + norm["bias"]
  logits = np.maximum(total, 0).reshape(len(x), -1) @ params["dense"]["kernel"]
  logits += params["dense"]["bias"]
  logs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
  return -logs[np.arange(len(y)), y].mean()


@pytest.mark.slow
def test_snip_with_batch_statistics_and_circular_padding():
  model = BatchNormNet()
  rng = np.random.default_rng(1)
  x = rng.normal(size=(6, 4, 4, 2)).astype(np.float32)
  y = rng.integers(0, 4, 6).astype(np.int32)
  variables = model.init(jax.random.key(0), x[:1], train=False)
  params = jax.tree.map(
    lambda v: v + 0.1 * rng.normal(size=v.shape).astype(np.float32),
    variables["params"],
  )
  stats = variables["batch_stats"]

  def apply_fn(params, inputs):
    state = {"params": params, "batch_stats": stats}
    return model.apply(state, inputs, train=True, mutable=["batch_stats"])[0]

  scores = eoi_jax.snip_scores(apply_fn, params, (x, y), **WIDE)
  assert scores["norm"] == {"scale": None, "bias": None}
  wide = jax.tree.map(lambda v: np.asarray(v, np.float64), params)
  expected, h = {}, 1e-6
  for name in ("conv", "dense"):
    kernel = wide[name]["kernel"]
    slope = np.zeros_like(kernel)
    for index in np.ndindex(kernel.shape):
      centre = kernel[index]
      kernel[index] = centre + h
      high = _batch_norm_loss(wide, x, y)
      kernel[index] = centre - h
      slope[index] = (high - _batch_norm_loss(wide, x, y)) / (2 * h)
      kernel[index] = centre
    expected[name] = np.abs(kernel * slope)
  total = sum(e.sum() for e in expected.values())
  for name, e in expected.items():
    # The differences are good to 1e-9 of the loss.
    np.testing.assert_allclose(
      scores[name]["kernel"], e / total, rtol=1e-5, atol=1e-8 / total
    )


def test_64_bit_types_stay_off(tanh_case):
  params, batch, _ = tanh_case
  wide = eoi_jax.snip_scores(_tanh_net, params, batch, **WIDE)
  assert jnp.zeros(1).dtype == jnp.float32
  narrow = eoi_jax.snip_scores(_tanh_net, params, batch)
  chex.assert_trees_all_close(narrow, wide, rtol=1e-3)
  chex.assert_trees_all_equal_dtypes(narrow, wide)


@pytest.mark.slow
def test_networks_with_types_of_their_own():
  """The carries of an LSTM are float32 whatever its inputs are."""
  model = nn.Sequential([nn.RNN(nn.OptimizedLSTMCell(5)), nn.Dense(3)])
  x, y = jax.random.normal(jax.random.key(0), (4, 6, 5)), jnp.ones((4, 6), jnp.int32)
  variables = model.init(jax.random.key(1), x)
  layouts = eoi_jax.linen_layouts(model, x)
  scores = eoi_jax.snip_scores(
    lambda p, x: model.apply({"params": p}, x),
    variables["params"],
    (x, y),
    layouts=layouts,
  )
  chex.assert_tree_all_finite(scores)
  total = sum(jnp.sum(s) for s in jax.tree.leaves(scores))
  chex.assert_trees_all_close(total, 1.0, rtol=1e-5)


def test_bfloat16_scores_are_float32(tanh_case):
  params, (x, y), _ = tanh_case
  half = jax.tree.map(lambda v: v.astype(jnp.bfloat16), (params, x))
  scores = eoi_jax.snip_scores(_tanh_net, half[0], (half[1], y))
  assert scores["a"]["kernel"].dtype == jnp.float32
  expected = eoi_jax.snip_scores(_tanh_net, params, (x, y))
  chex.assert_trees_all_close(scores, expected, atol=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("function", few([eoi_jax.snip_scores, eoi_jax.grasp_scores]))
def test_inputs_outputs_labels_and_losses(tanh_case, function):
  """Trees of inputs, auxiliary outputs, soft labels, a loss, and jit: the same."""
  params, (x, y), _ = tanh_case
  expected = function(_tanh_net, params, (x, y))

  def split(params, inputs):
    left, right = inputs
    return _tanh_net(params, jnp.concatenate([left, right], axis=1)), {"aux": left}

  pair = (x[:, :2], x[:, 2:])
  chex.assert_trees_all_close(function(split, params, (pair, y)), expected, rtol=1e-3)
  soft = jax.nn.one_hot(y, 4)
  found = function(_tanh_net, params, (x, soft))
  chex.assert_trees_all_close(found, expected, rtol=1e-3)

  def loss(logits, labels):
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels["y"])
    return losses.sum() / labels["y"].size

  found = function(_tanh_net, params, (x, {"y": y}), loss=loss)
  chex.assert_trees_all_close(found, expected, rtol=1e-3)
  found = jax.jit(lambda p, x, y: function(_tanh_net, p, (x, y)))(params, x, y)
  chex.assert_trees_all_close(found, expected, rtol=1e-3)


def test_tokens():
  params = {"embedding": jnp.eye(5, 4), "kernel": jnp.arange(1.0, 13.0).reshape(4, 3)}
  batch = jnp.array([[0, 3], [1, 2]]), jnp.array([[0, 1], [2, 2]])
  scores = eoi_jax.snip_scores(
    lambda p, ids: p["embedding"][ids] @ p["kernel"], params, batch
  )
  assert scores["embedding"] is None and jnp.all(scores["kernel"] > 0)


def test_grasp_takes_a_list_of_labels():
  params = {"kernel": jnp.array([[1.0, -2.0], [0.5, 0.1]])}
  inputs = jnp.array([[1.0, 2.0], [0.5, -1.0]])
  one, other = (
    eoi_jax.grasp_scores(lambda p, x: x @ p["kernel"], params, (inputs, labels))
    for labels in ([0, 1], jnp.array([0, 1]))
  )
  chex.assert_trees_all_equal(one, other)


@pytest.mark.parametrize("function", [eoi_jax.snip_scores, eoi_jax.grasp_scores])
@pytest.mark.parametrize("kind", [list, np.asarray, jnp.asarray])
def test_labels_that_a_traced_function_closes_over(function, kind, value_error):
  params, inputs = {"kernel": jnp.array([[1.0, -2.0], [0.5, 0.1]])}, jnp.eye(2)

  def score(params, labels):
    return function(lambda p, x: x @ p["kernel"], params, (inputs, labels))

  labels, wrong = kind([0, 1]), kind([0, 2])
  found = jax.jit(lambda params: score(params, labels))(params)
  chex.assert_trees_all_close(found, score(params, labels), rtol=1e-5)
  with value_error("`labels` must be in [0, 2), got 2"):
    jax.jit(lambda params: score(params, wrong))(params)


def test_grasp_through_a_custom_backward_pass(tanh_case):
  params, batch, _ = tanh_case

  @jax.custom_vjp
  def dense(x, w):
    return x @ w

  dense.defvjp(lambda x, w: (x @ w, (x, w)), lambda r, g: (g @ r[1].T, r[0].T @ g))

  def apply_fn(params, inputs):
    hidden = dense(inputs, params["a"]["kernel"]) + params["a"]["bias"][None]
    return dense(jnp.tanh(hidden), params["b"]["kernel"])

  found = eoi_jax.grasp_scores(apply_fn, params, batch)
  expected = eoi_jax.grasp_scores(_tanh_net, params, batch)
  chex.assert_trees_all_close(found, expected, rtol=1e-3, atol=1e-6)


class NnxNet(nnx.Module):
  """Dense, batch normalization, dense."""

  def __init__(self, rngs):
    self.first = nnx.Linear(6, 8, rngs=rngs)
    self.norm = nnx.BatchNorm(8, rngs=rngs)
    self.last = nnx.Linear(8, 4, rngs=rngs)

  def __call__(self, x):
    return self.last(nnx.relu(self.norm(self.first(x))))


@pytest.mark.slow
def test_nnx_in_training_mode_leaves_the_statistics_alone(tanh_case):
  _, batch, _ = tanh_case
  module = NnxNet(nnx.Rngs(0))
  graphdef, params, rest = nnx.split(module, nnx.Param, ...)
  before = jax.tree.map(jnp.copy, nnx.to_pure_dict(rest))

  def apply_fn(params, inputs):
    return nnx.merge(graphdef, params, rest, copy=True)(inputs)

  scores = eoi_jax.snip_scores(apply_fn, params, batch)
  chex.assert_trees_all_equal(nnx.to_pure_dict(rest), before)
  chex.assert_trees_all_equal(
    nnx.to_pure_dict(nnx.state(module, nnx.BatchStat)), before
  )
  masks = eoi_jax.global_masks(scores, 0.5)
  live = sum(c.live for c in eoi_jax.count_masks(masks).values())
  assert live == (6 * 8 + 8 * 4) // 2


@pytest.mark.slow
def test_explicit_meshes_and_shard_map(tanh_case):
  params, batch, _ = tanh_case
  expected = eoi_jax.snip_scores(_tanh_net, params, batch)
  masks = eoi_jax.global_masks(expected, 0.25)
  mesh = jax.make_mesh((1,), ("m",), axis_types=(jax.sharding.AxisType.Explicit,))
  spec = jax.sharding.PartitionSpec
  with jax.set_mesh(mesh):
    specs = {"a": {"kernel": spec(None, "m"), "bias": spec("m")}}
    specs["b"] = {"kernel": spec("m", None)}
    sharded = jax.tree.map(
      lambda p, s: jax.device_put(p, jax.NamedSharding(mesh, s)), params, specs
    )

    def apply_fn(params, inputs):
      hidden = jnp.tanh(inputs @ params["a"]["kernel"] + params["a"]["bias"][None])
      return jnp.einsum(
        "bi,io->bo", hidden, params["b"]["kernel"], out_sharding=spec(None, None)
      )

    scores = eoi_jax.snip_scores(apply_fn, sharded, batch)
    assert scores["a"]["kernel"].sharding.spec == spec(None, "m")
    found = eoi_jax.global_masks(scores, 0.25)
    assert found["a"]["kernel"].sharding == scores["a"]["kernel"].sharding
    traced = jax.jit(lambda s: eoi_jax.global_masks(s, 0.25))(scores)
    assert traced["a"]["kernel"].sharding == scores["a"]["kernel"].sharding
    pruned = eoi_jax.synflow_masks(apply_fn, sharded, (1, 6), 0.25, num_rounds=3)
  chex.assert_trees_all_close(scores, expected, rtol=1e-5)
  chex.assert_trees_all_equal((found, traced), (masks, masks))
  alone = eoi_jax.synflow_masks(_tanh_net, params, (1, 6), 0.25, num_rounds=3)
  chex.assert_trees_all_equal(pruned, alone)
  mapped = jax.shard_map(
    lambda s: eoi_jax.global_masks(s, 0.25),
    mesh=jax.make_mesh((1,), ("m",), axis_types=(jax.sharding.AxisType.Auto,)),
    in_specs=spec("m"),
    out_specs=spec("m"),
  )(expected)
  chex.assert_trees_all_equal(mapped, masks)


def test_scores_of_nothing_but_zeros_are_refused(tanh_case, value_error):
  params, batch, _ = tanh_case

  def dead(params, inputs):
    hidden = jax.nn.relu(inputs @ params["a"]["kernel"] - 1e3)
    return hidden @ params["b"]["kernel"]

  for function in (eoi_jax.snip_scores, eoi_jax.grasp_scores):
    with value_error(f"`{function.__name__}`", "'a/kernel', 'b/kernel'", "`layouts`"):
      function(dead, params, batch)
  with value_error("`magnitude_scores`", "'b/kernel'"):
    magnitude_scores(params | {"b": {"kernel": jnp.zeros((8, 4))}})
  with value_error("`scores`", "zero"):
    eoi_jax.global_masks([jnp.zeros((2, 2))], 0.5)


def test_global_masks_keep_the_highest_and_break_ties_by_index():
  scores = {
    "a": np.array([[1.0, 5.0], [2.0, 2.0]]),
    "b": None,
    "c": np.array([[2.0, 2.0, 0.0, 0.0]]),
  }
  kept = {}
  for count in range(1, 9):
    masks = eoi_jax.global_masks(scores, count / 8)
    assert masks["b"] is None
    flat = np.concatenate([np.ravel(masks["a"]), np.ravel(masks["c"])])
    assert flat.sum() == count
    kept[count] = np.flatnonzero(flat).tolist()
  assert kept[3] == [1, 2, 3] and kept[4] == [1, 2, 3, 4]
  assert kept[6] == [0, 1, 2, 3, 4, 5] and kept[7] == [0, 1, 2, 3, 4, 5, 6]
  traced = jax.jit(lambda s: eoi_jax.global_masks(s, 0.5))(
    {"a": jnp.asarray(scores["a"], jnp.bfloat16), "b": None, "c": scores["c"]}
  )
  assert jnp.array_equal(traced["c"], eoi_jax.global_masks(scores, 0.5)["c"])
  bools = {"a": scores["a"] > 2, "c": scores["c"] > 0}
  traced = jax.jit(lambda s: eoi_jax.global_masks(s, 0.5))(bools)
  chex.assert_trees_all_equal(traced, eoi_jax.global_masks(bools, 0.5))


@pytest.mark.slow
@pytest.mark.parametrize("density", [0.005, 0.1, 0.3335, 0.999, 1.0])
def test_baselines_have_exact_counts(density):
  params = {
    "a": {
      "kernel": jax.random.normal(jax.random.key(0), (31, 17)),
      "bias": jnp.ones(17),
    },
    "b": {"kernel": jax.random.normal(jax.random.key(1), (17, 5))},
  }
  for scores in (
    magnitude_scores(params),
    random_scores(jax.random.key(2), params),
  ):
    masks = eoi_jax.global_masks(scores, density)
    live = sum(c.live for c in eoi_jax.count_masks(masks).values())
    assert live == round(density * 612)
  masks = eoi_jax.global_masks(magnitude_scores(params), density)
  sizes = np.concatenate([np.abs(params[n]["kernel"]).ravel() for n in "ab"])
  kept = np.concatenate([np.ravel(masks[n]["kernel"]) for n in "ab"])
  assert sizes[kept].min() >= sizes[~kept].max(initial=0)


def test_errors(tanh_case, value_error):
  params, (x, y), _ = tanh_case
  with value_error("`labels`", "integers", "float32"):
    eoi_jax.snip_scores(_tanh_net, params, (x, x))
  with value_error("`labels`", "(12,)", "(11,)"):
    eoi_jax.snip_scores(_tanh_net, params, (x, y[:11]))
  for bad in (-1, 4):
    with value_error("`labels`", "[0, 4)", f"got {bad}", "`loss`"):
      eoi_jax.snip_scores(_tanh_net, params, (x, y.at[3].set(bad)))
  with value_error("`apply_fn`", "dict", "`loss`"):
    eoi_jax.snip_scores(lambda p, x: {"out": _tanh_net(p, x)}, params, (x, y))
  for score in (eoi_jax.snip_scores, eoi_jax.grasp_scores):
    with value_error("`apply_fn`", "a function", "None"):
      score(None, params, (x, y))
    with value_error("`loss`", "a function", "3"):
      score(_tanh_net, params, (x, y), loss=3)
    for value, words in ((lambda z, _: z.sum(-1), "float32[12]"), (lambda *_: 3, "3")):
      with value_error("`loss`", "a scalar", words):
        score(_tanh_net, params, (x, y), loss=value)
    with value_error("`dtype`", "floating", "int"):
      score(_tanh_net, params, (x, y), dtype=int)
    for labels in (5 * jax.nn.one_hot(y, 4), jax.nn.one_hot(y, 4) * 3 - 0.5):
      with value_error("`labels`", "probabilities", "of sum ", "`loss`"):
        score(_tanh_net, params, (x, labels))
    whole = jax.tree.map(lambda w: w.astype(jnp.int32), params)
    with value_error("'a/kernel'", "real floating", "int32"):
      score(lambda p, x: _tanh_net(params, x), whole, (x, y))
  for batch, words in (({"x": x}, "dict"), ((x, y, y), "tuple"), (x[:2], "Array")):
    with value_error("a batch", "(inputs, labels)", words):
      eoi_jax.snip_scores(_tanh_net, params, batch)
  with value_error("a batch", "(inputs, labels)", "tuple"):
    eoi_jax.grasp_scores(_tanh_net, params, [(x, y, y)])
  with value_error("`batches`", "none"):
    eoi_jax.grasp_scores(_tanh_net, params, [])
  with value_error("`temperature`", "positive", "-1"):
    eoi_jax.grasp_scores(_tanh_net, params, [(x, y)], temperature=-1.0)
  with value_error("`params`", "kernel"):
    eoi_jax.snip_scores(_tanh_net, {"bias": x[0]}, (x, y))
  with value_error("`snip_scores`", "nan", "'a/kernel'"):
    eoi_jax.snip_scores(_tanh_net, params, (x * jnp.nan, y))
  with value_error("`density`", "(0, 1]", "0.0"):
    eoi_jax.global_masks(magnitude_scores(params), 0.0)
  with value_error("`scores`", "real numbers", "'1'"):
    eoi_jax.global_masks([np.ones(3), np.array([1.0, np.nan])], 0.5)
  with value_error("`scores`", "real numbers", "'0'"):
    eoi_jax.global_masks([jnp.array([1j, 2.0])], 0.5)
  with value_error("`scores`", "not None"):
    eoi_jax.global_masks([None], 0.5)
