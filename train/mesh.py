"""Where arrays lie: batches split over all devices, parameters whole or split.

One axis, `batch`, over every device of every process. On a single device there is no
placement at all, and no program differs from what it would be without this module.
"""

import contextlib
import hashlib
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from train.errors import UserError

AXIS = "batch"
PARAMETERS = ("replicated", "sharded")
_SMALL = 2**14  # leaves below this size are not worth a collective


class Placement(NamedTuple):
  """How a training lies on several devices, hashable.

  Attributes:
    mesh: all devices, one axis.
    parameters: "replicated", whole on every device; or "sharded", each large leaf
      (and what the optimizer keeps of it) split along its longest even axis.
  """

  mesh: Mesh
  parameters: str


def create_placement(parameters: str) -> Placement | None:
  """Returns the placement on all devices, None if there is only one."""
  if jax.device_count() == 1:
    return None
  shape = (jax.device_count(),)
  return Placement(jax.make_mesh(shape, (AXIS,), (AxisType.Auto,)), parameters)


def place_batch(batch: Any, placement: Placement | None) -> Any:
  """Splits the examples of a batch over the devices, inside of a compiled program."""
  if placement is None:
    return batch
  sharding = NamedSharding(placement.mesh, PartitionSpec(AXIS))
  return jax.lax.with_sharding_constraint(batch, sharding)


def place_state(state: Any, placement: Placement | None) -> Any:
  """Keeps a state where it lies, inside of a compiled program."""
  if placement is None:
    return state
  return jax.lax.with_sharding_constraint(state, _shardings(state, placement))


def put_state(state: Any, placement: Placement | None) -> Any:
  """Brings a state that every process has whole to its place."""
  if placement is None:
    return state
  return jax.tree.map(_put, state, _shardings(state, placement))


def put_whole(tree: Any, placement: Placement | None) -> Any:
  """Brings arrays that every process has whole to every device."""
  if placement is None:
    return jax.device_put(tree)
  sharding = NamedSharding(placement.mesh, PartitionSpec())
  return jax.tree.map(lambda leaf: _put(leaf, sharding), tree)


def put_parts(tree: Any, placement: Placement | None, *, axis: int) -> Any:
  """Joins the parts of batches that the processes have, split along `axis`."""
  if placement is None:
    return jax.device_put(tree)
  spec = PartitionSpec(*(None for _ in range(axis)), AXIS)
  sharding = NamedSharding(placement.mesh, spec)
  return jax.tree.map(
    lambda leaf: jax.make_array_from_process_local_data(sharding, leaf), tree
  )


def _shardings(state: Any, placement: Placement) -> Any:
  return jax.tree.map(
    lambda leaf: NamedSharding(placement.mesh, _spec(leaf, placement)), state
  )


def _spec(leaf: Any, placement: Placement) -> PartitionSpec:
  if placement.parameters == "replicated" or math.prod(leaf.shape) < _SMALL:
    return PartitionSpec()
  even = [n for n, size in enumerate(leaf.shape) if size % placement.mesh.size == 0]
  if not even:
    return PartitionSpec()
  axis = max(even, key=lambda n: leaf.shape[n])
  return PartitionSpec(*(AXIS if n == axis else None for n in range(axis + 1)))


def _put(leaf: Any, sharding: NamedSharding) -> jax.Array:
  """Like `jax.device_put`, without asking the other processes for their values."""
  if jax.process_count() == 1:
    return jax.device_put(leaf, sharding)
  if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
    bits = _put(jax.random.key_data(leaf), sharding)
    return jax.random.wrap_key_data(bits, impl=jax.random.key_impl(leaf))
  host = np.asarray(leaf)
  return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


def is_primary() -> bool:
  """Whether this process is the one that writes for all."""
  return jax.process_index() == 0


@contextlib.contextmanager
def primary_context(make: Callable[..., Any], *args: Any) -> Iterator[None]:
  """Enters the context `make(*args)` on the primary process; the others wait for it.

  Raises:
    UserError: what the context raises there when it is entered; on the others, that
      it did.
  """
  with contextlib.ExitStack() as stack:
    error = None
    if is_primary():
      try:
        stack.enter_context(make(*args))
      except UserError as caught:
        error = caught
    if not agree(error is None):
      raise error or UserError("process 0 has stopped; its message says why.")
    yield


def agree(holds: bool) -> bool:
  """Whether something holds on all processes."""
  if jax.process_count() == 1:
    return holds
  return bool(multihost_utils.process_allgather(np.bool_(holds)).all())


def check_equal_masks(masks: dict[str, Any]) -> None:
  """Compares a hash of every mask with that of the other processes.

  Args:
    masks: name to mask, None = dense.

  Raises:
    UserError: if one differs; the names are in the message.
  """
  if jax.process_count() == 1:
    return
  names = [name for name, mask in masks.items() if mask is not None]
  hashes = np.stack([_hash(np.asarray(masks[name])) for name in names])
  everywhere = multihost_utils.process_allgather(hashes)
  differs = (everywhere != everywhere[:1]).any(axis=(0, 2))
  if differs.any():
    wrong = ", ".join(name for name, bad in zip(names, differs, strict=True) if bad)
    raise UserError(
      f"the masks of {wrong} differ between processes; give every process the same "
      "config, data and versions."
    )


def _hash(mask: np.ndarray) -> np.ndarray:
  digest = hashlib.sha256(np.packbits(mask).tobytes()).digest()
  return np.frombuffer(digest, np.uint8)
