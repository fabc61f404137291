"""Measures a network on each device of a `shard_map`; compares with one at a time."""

import os

os.environ["JAX_NUM_CPU_DEVICES"] = "2"
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from eoi_jax import signal
from eoi_jax.layouts import kernel_layouts

PARAMS = {"kernel": jnp.linspace(-1, 1, 24).reshape(4, 6), "stack": jnp.ones((2, 4, 4))}
LAYOUTS = kernel_layouts(PARAMS, {"kernel": "io", "stack": "sio"})


def layer(kernel, x):
  return jnp.tanh(x @ kernel)


def network(params, x):
  for kernel in params["stack"]:
    x = layer(kernel, x)
  return x @ params["kernel"]


def metered(params, meter, x):
  y = layer(params["kernel"], x)
  return signal.record_signal(meter, x, y) @ params["kernel"].T


def profiles(key, params, x):
  meter = signal.signal_meter()
  return signal.layer_profiles(key, lambda m, x: metered(params, m, x), meter, x)


MEASURES = {
  "values": lambda key, params, x: signal.jacobian_singular_values(network, params, x),
  "extremes": lambda key, params, x: signal.jacobian_extremes(
    key, network, params, x, num_iterations=2, num_probes=2
  ),
  "norms": lambda key, params, x: signal.gradient_norms(
    key, network, params, x, layouts=LAYOUTS
  ),
  "profiles": profiles,
  "stack": lambda key, params, x: signal.signal_profile(key, layer, params["stack"], x),
}


def main() -> None:
  """Raises AssertionError if a value is not that of its device."""
  mesh = jax.make_mesh((2,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
  pairs = (
    jax.random.split(jax.random.key(0)),
    jax.tree.map(lambda leaf: jnp.stack([leaf, leaf / 2]), PARAMS),
    jax.random.normal(jax.random.key(1), (2, 3, 4)),
  )
  split, whole = PartitionSpec("x"), PartitionSpec()
  for name, measure in MEASURES.items():
    for varied in range(3):  # one argument differs between devices

      def pick(argument, place, n, varied=varied):
        return jax.tree.map(lambda leaf: leaf[place if n == varied else 0], argument)

      def local(*arguments, varied=varied, measure=measure):
        own = list(arguments)
        own[varied] = jax.tree.map(lambda leaf: leaf[0], own[varied])
        return jax.tree.map(lambda leaf: leaf[None], measure(*own))

      specs = tuple(split if n == varied else whole for n in range(3))
      mapped = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=split)
      given = [a if n == varied else pick(a, 0, n) for n, a in enumerate(pairs)]
      got = jax.jit(mapped)(*given)
      for place in range(2):
        want = measure(*(pick(a, place, n) for n, a in enumerate(pairs)))
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
          np.testing.assert_allclose(a[place], b, rtol=1e-3, atol=1e-5, err_msg=name)
  print("equal on 2 devices")


if __name__ == "__main__":
  main()
