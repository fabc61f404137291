"""Equal layers as one stack of parameters, run by a loop that compiles once."""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax


def keep_products(primitive: Any, *_: Any, **__: Any) -> bool:
  """A policy of `jax.checkpoint` that keeps the results of products alone.

  ResNet-32 so takes 40 % less memory and 10 % less time on a CPU.
  """
  kept = ("conv_general_dilated", "cpu_convolution", "dot_general")
  return primitive.name in kept


def stack(block: Any, length: int, *, remat: bool = False, policy: Any = None) -> Any:
  """Returns a module class that runs `length` blocks in a row under `nn.scan`.

  A block maps `(x, None)` to `(x, None)` and keeps shape and dtype of `x`; variables
  get a leading axis. With `remat` the backward pass computes the inside of each block
  again, but for what `policy` keeps (`jax.checkpoint`).
  """
  return nn.scan(
    nn.remat(block, prevent_cse=False, policy=policy) if remat else block,
    variable_axes={"params": 0, "batch_stats": 0, "layouts": 0, "meters": 0},
    split_rngs={"params": True, "dropout": True},
    length=length,
  )


class _Hidden(nn.Module):
  """A layer after an activation: the backward pass keeps one array for each layer."""

  make: Callable[[], nn.Module]
  activation: Callable[[jax.Array], jax.Array]

  @nn.compact
  def __call__(self, x: jax.Array, _: None) -> tuple[jax.Array, None]:
    return self.make()(self.activation(x)), None


def run_hidden(
  network: Any, length: int, make: Callable, activation: Callable, x: jax.Array
) -> jax.Array:
  """Runs the equal layers of a network, `hidden`, each after an activation."""
  if not network.remat or network.is_initializing():
    return stack(_Hidden, length)(make, activation, name="hidden")(x, None)[0]
  trees = network.variables.items()
  variables = {name: tree["hidden"] for name, tree in trees if "hidden" in tree}
  return run_in_segments(_Hidden(make, activation, parent=None), variables, x)


def run_in_segments(block: nn.Module, variables: Any, x: jax.Array) -> jax.Array:
  """Runs a stack, `block` with a leading axis of its variables, to save memory.

  The backward pass keeps the inputs of about `sqrt(length)` segments and computes each
  again: `2 sqrt(length)` activations in place of `length`, for one more forward pass.
  Variables must not change.
  """
  length = jax.tree.leaves(variables)[0].shape[0]
  size = math.isqrt(length)
  cut = length - length % size

  def layer(x, layer_variables):
    return block.apply(layer_variables, x, None)

  @jax.checkpoint
  def segment(x, segment_variables):
    return jax.lax.scan(layer, x, segment_variables)

  def whole(leaf):
    return leaf[:cut].reshape(cut // size, size, *leaf.shape[1:])

  x, _ = jax.lax.scan(segment, x, jax.tree.map(whole, variables))
  if cut < length:
    x, _ = segment(x, jax.tree.map(lambda leaf: leaf[cut:], variables))
  return x
