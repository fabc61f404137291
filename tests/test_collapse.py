"""Layers out of use are found and named; reachability against boolean matrices."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eoi_jax import kernel_layouts, synflow_scores
from eoi_jax.signal import Collapse, effective_masks, find_collapse


def _mlp(params, inputs):
  """Layers `a`, `b`, `c` with biases and tanh; `b` is a stack under `lax.scan`."""

  def layer(x, p):
    return jnp.tanh(x @ p["kernel"] + p["bias"][None]), None

  x, _ = layer(inputs, params["a"])
  x, _ = jax.lax.scan(layer, x, params["b"])
  return x @ params["c"]["kernel"] + params["c"]["bias"][None]


DEPTH, WIDTH = 12, 6
PARAMS = {
  "a": {"kernel": jnp.ones((4, WIDTH)), "bias": jnp.ones(WIDTH)},
  "b": {"kernel": jnp.ones((DEPTH, WIDTH, WIDTH)), "bias": jnp.ones((DEPTH, WIDTH))},
  "c": {"kernel": jnp.ones((WIDTH, 3)), "bias": jnp.ones(3)},
}
LAYOUTS = kernel_layouts(PARAMS, {"b/kernel": "sio", "b/bias": None})
FULL = {
  "a": {"kernel": np.ones((4, WIDTH), bool), "bias": None},
  "b": {"kernel": np.ones((DEPTH, WIDTH, WIDTH), bool), "bias": None},
  "c": {"kernel": None, "bias": None},
}


def collapse(masks, **options):
  return find_collapse(_mlp, PARAMS, masks, (1, 4), layouts=LAYOUTS, **options)


def with_hidden(change):
  masks = jax.tree.map(np.copy, FULL)
  change(masks["b"]["kernel"])
  return masks


def test_nothing_to_report():
  assert collapse(FULL) == Collapse((), (), False, "")


def test_a_layer_without_a_weight_is_named():
  found = collapse(with_hidden(lambda b: b[7].fill(False)))
  assert found.empty == ("b/kernel[7]",)
  assert found.disconnected and len(found.cut) == DEPTH + 1
  assert found.message.startswith(
    "no path from input to output; no weight: b/kernel[7]; no weight on a path: a/"
  )
  assert found.message.endswith(" and 5 more") and "\n" not in found.message


def test_a_cut_without_an_empty_layer_is_found():
  def cut(b):
    b[3, :, 1:] = False  # only unit 0 receives
    b[4, 0, :] = False  # and nothing leaves it

  found = collapse(with_hidden(cut))
  assert found.empty == () and found.disconnected
  assert {"a/kernel", "b/kernel[3]", "b/kernel[4]", "c/kernel"} <= set(found.cut)


def test_only_masks_count():
  params = jax.tree.map(jnp.zeros_like, PARAMS)  # trainable zeros carry paths
  found = find_collapse(_mlp, params, FULL, (1, 4), layouts=LAYOUTS)
  assert found.message == ""


@pytest.mark.parametrize("density", [0.1, 0.2, 0.4])
def test_paths_equal_those_of_boolean_matrices(density):
  rng = np.random.default_rng(int(100 * density))
  masks = jax.tree.map(lambda m: rng.random(m.shape) < density, FULL)
  layers = [masks["a"]["kernel"], *masks["b"]["kernel"], np.ones((WIDTH, 3), bool)]
  forward = [np.ones(4, bool)]
  for layer in layers:
    forward.append(forward[-1] @ layer)
  backward = [np.ones(3, bool)]
  for layer in layers[::-1]:
    backward.append(layer @ backward[-1])
  backward = backward[::-1][1:]
  expected = [
    layer & f[:, None] & b[None]
    for layer, f, b in zip(layers, forward, backward, strict=False)
  ]
  found = effective_masks(_mlp, PARAMS, masks, (1, 4), layouts=LAYOUTS)
  assert np.array_equal(found["a"]["kernel"], expected[0])
  assert np.array_equal(found["b"]["kernel"], np.stack(expected[1:-1]))
  assert np.array_equal(found["c"]["kernel"], expected[-1])
  report = collapse(masks)
  names = ["a/kernel", *[f"b/kernel[{n}]" for n in range(DEPTH)], "c/kernel"]
  useless = {n for n, e in zip(names, expected, strict=True) if not e.any()}
  assert set(report.empty) | set(report.cut) == useless
  assert report.disconnected == (not expected[-1].any())


class Branches(nn.Module):
  """A residual block, layer norm, a gate, max pooling and attention of a kind."""

  @nn.compact
  def __call__(self, x):
    x = nn.Conv(4, (3, 3), name="stem")(x)
    y = nn.LayerNorm()(nn.gelu(nn.Conv(4, (3, 3), name="inner")(x)))
    gate = nn.sigmoid(nn.Dense(4, name="gate")(y.mean(axis=(1, 2))))
    x = x + nn.Conv(4, (1, 1), name="outer")(y) * gate[:, None, None, :]
    x = nn.max_pool(jnp.where(x > 0, x, 0.1 * x), (2, 2), (2, 2))
    x = x.reshape(x.shape[0], -1, 4)
    weights = nn.softmax(x @ x.transpose(0, 2, 1), axis=-1)
    return nn.Dense(3, name="head")((weights @ x).mean(axis=1))


@pytest.mark.slow
def test_branches_norms_gates_and_pools():
  model = Branches()
  inputs = jax.ShapeDtypeStruct((1, 4, 4, 2), jnp.float32)
  params = jax.eval_shape(model.init, jax.random.key(0), inputs)["params"]

  def apply_fn(params, inputs):
    return model.apply({"params": params}, inputs)

  kernels = [n for n in params if "kernel" in params[n]]
  masks = {n: dict.fromkeys(leaf) for n, leaf in params.items()}
  for name in kernels:
    masks[name]["kernel"] = np.ones(params[name]["kernel"].shape, bool)
  found = find_collapse(apply_fn, params, masks, (1, 4, 4, 2))
  assert found.message == ""
  masks["outer"]["kernel"][:] = False  # the block is dead, the network is not
  found = find_collapse(apply_fn, params, masks, (1, 4, 4, 2))
  assert found.empty == ("outer/kernel",) and not found.disconnected
  assert found.cut == ()  # what is inside still acts through the gate


def test_a_skip_connection_is_a_path():
  params = {"kernel": jnp.ones((3, 3))}
  empty = {"kernel": np.zeros((3, 3), bool)}
  found = find_collapse(lambda p, x: x + x @ p["kernel"], params, empty, (1, 3))
  assert found == Collapse(("kernel",), (), False, "no weight: kernel")
  found = find_collapse(lambda p, x: (x @ p["kernel"], x), params, empty, (1, 3))
  assert found.disconnected  # what comes after the logits is no output


def test_errors(value_error):
  with value_error("`masks`", "'a/kernel'", "shape"):
    bad = jax.tree.map(np.copy, FULL)
    bad["a"]["kernel"] = np.ones((WIDTH, 4), bool)
    collapse(bad)


def of(function, shapes, inputs=(1, 6), masked=()):
  """Message, and effective masks by name, of parameters of some shapes.

  Args:
    function: `(params, inputs) -> logits`.
    shapes: of the parameters; those of rank 0 and 1 are no kernels.
    inputs: as `input_shape`.
    masked: columns of `a` that are masked out.
  """
  params = {name: jnp.zeros(shape) for name, shape in shapes.items()}
  letters = {2: "io", 3: "sio"}
  layouts = kernel_layouts(params, {n: letters.get(len(s)) for n, s in shapes.items()})
  masks = {n: np.ones(s, bool) if len(s) > 1 else None for n, s in shapes.items()}
  for column in masked:
    masks["a"][:, column] = False
  options = {"layouts": layouts}
  message = find_collapse(function, params, masks, inputs, **options).message
  effective = effective_masks(function, params, masks, inputs, **options)
  return message, {n: np.asarray(x) for n, x in effective.items() if x is not None}


@pytest.mark.slow
def test_extrema_pass_on_all_that_they_see():
  def windows(p, x):
    return nn.max_pool((x @ p["a"])[..., None], (2,), (2,))[..., 0] @ p["b"]

  message, effective = of(windows, {"a": (6, 8), "b": (4, 3)})
  assert message == "" and effective["a"].all() and effective["b"].all()

  def least(p, x):
    return jnp.min((x @ p["a"]).reshape(len(x), 4, 2), -1) @ p["b"]

  message, effective = of(least, {"a": (6, 8), "b": (4, 3)}, masked=(0, 2, 4, 6))
  assert message == "" and effective["a"][:, 1::2].all()


@pytest.mark.slow
def test_differences_of_parameters_and_choices_are_paths():
  def gated(p, x):
    return (1 - p["g"]) * jnp.tanh(x @ p["a"])

  assert of(gated, {"a": (6, 6), "g": ()})[0] == ""

  def standardized(p, x):
    def scaled(w):
      return (w - w.mean(0, keepdims=True)) / (w.std(0, keepdims=True) + 1e-5)

    return jax.nn.relu(x @ scaled(p["a"])) @ scaled(p["b"])

  message, effective = of(standardized, {"a": (6, 8), "b": (8, 3)})
  assert message == "" and effective["a"].all()
  params = {"a": jnp.ones((6, 8)).at[0].set(3.0), "b": jnp.ones((8, 3)).at[0].set(2.0)}
  layouts = kernel_layouts(params, {"*": "io"})
  scores = synflow_scores(standardized, params, (1, 6), layouts=layouts)
  assert scores["a"].max() > 1e-4  # rounding leaves 1e-6 of a sum of zero

  def threshold(p, x):
    x = x @ p["a"]
    return jnp.where(jnp.abs(x) > 2, x, 0.0) @ p["b"]

  assert of(threshold, {"a": (6, 8), "b": (8, 3)})[0] == ""


@pytest.mark.slow
def test_tokens_and_experts_stand_for_all_of_them():
  tokens = jax.ShapeDtypeStruct((1, 5), jnp.int32)

  def encoded(p, t):
    rows = jax.nn.one_hot(t, 10) @ p["a"]
    known = (t != 1)[..., None]
    return jnp.where(known, rows, 0.0).sum(1) @ p["b"]

  message, effective = of(encoded, {"a": (10, 8), "b": (8, 3)}, tokens)
  assert message == "" and effective["a"].all()

  def experts(p, x):
    best = jax.lax.top_k(jax.nn.softmax(x @ p["a"]), 1)[1][:, 0]
    return jnp.einsum("ni,nio->no", x, p["w"][best])

  message, effective = of(experts, {"a": (6, 4), "w": (4, 6, 8)})
  assert effective["w"].all() and "w[" not in message


def test_complex_numbers_are_refused(value_error):
  params = {"w": jnp.ones((4, 4))}
  with value_error("`apply_fn`", "real", "complex"):
    synflow_scores(lambda p, x: jnp.fft.fft(x @ p["w"]).real, params, (1, 4))
