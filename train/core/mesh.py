"""Where arrays lie on several devices, and how several processes act as one.

Batches are split over one axis, `batch`, of every device of every process; parameters
are whole or split. On a single device there is no placement at all, and no program
differs from what it would be without this module.
"""

import contextlib
import hashlib
import math
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from train.core.console import UserError

AXIS = "batch"
_SMALL = 2**14  # leaves below this size are not worth a collective


class Placement(NamedTuple):
  """Where the arrays of a training run lie on several devices, hashable."""

  mesh: Mesh  # all devices, one axis
  # "replicated", whole on every device; or "sharded", each large leaf (and what the
  # optimizer keeps of it) split along its longest even axis
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
  return jax.tree.map(_put, state, _shardings(state, placement))


def place_like(state: Any, placement: Placement | None) -> Any:
  """Says of shapes and types where a state of them lies."""
  return jax.tree.map(
    lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
    *(state, _shardings(state, placement)),
  )


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
  sharding = NamedSharding(placement.mesh, PartitionSpec(*[None] * axis, AXIS))
  return jax.make_array_from_process_local_data(sharding, tree)


def _shardings(state: Any, placement: Placement | None) -> Any:
  if placement is None:  # committed, as a restored state is: both run one program
    alone = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda _: alone, state)
  mesh, parameters = placement

  def place(leaf):
    even = [n for n, size in enumerate(leaf.shape) if size % mesh.size == 0]
    if parameters == "replicated" or math.prod(leaf.shape) < _SMALL or not even:
      return NamedSharding(mesh, PartitionSpec())
    axis = max(even, key=lambda n: leaf.shape[n])
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, AXIS))

  return jax.tree.map(place, state)


def _put(leaf: Any, sharding: jax.sharding.Sharding) -> jax.Array:
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
  """Raises a UserError with the names of masks that differ between the processes."""
  if jax.process_count() == 1:
    return
  names = [name for name, mask in masks.items() if mask is not None]
  bits = (np.packbits(np.asarray(masks[name])).tobytes() for name in names)
  hashes = np.stack([np.frombuffer(hashlib.sha256(b).digest(), np.uint8) for b in bits])
  everywhere = multihost_utils.process_allgather(hashes)
  differs = (everywhere != everywhere[:1]).any(axis=(0, 2))
  if differs.any():
    wrong = ", ".join(name for name, bad in zip(names, differs, strict=True) if bad)
    raise UserError(
      f"the masks of {wrong} differ between processes; give every process the same "
      "config, data and versions."
    )


def join(
  coordinator: str | None,
  num_processes: int | None,
  process_id: int | None,
  *,
  detect: bool,
) -> None:
  """Connects this process with the others; call it before JAX finds its devices.

  The coordinator is "HOST:PORT" of process 0. With `detect` the environment tells all
  of it, as on TPU pods and under Slurm; without anything the process is alone.

  Raises:
    UserError: if the arguments contradict each other or the others are not found.
  """
  alone = (coordinator, num_processes, process_id) == (None, None, None)
  if alone and not detect:
    return
  if detect and not alone:
    raise UserError("--distributed takes no --coordinator, --num_processes, ...")
  if not detect:
    if coordinator is None or num_processes is None or process_id is None:
      raise UserError("--coordinator, --num_processes and --process_id come together.")
    if ":" not in coordinator:
      raise UserError(f"--coordinator must be HOST:PORT, got {coordinator!r}.")
    if not 0 <= process_id < num_processes:
      raise UserError(
        f"--process_id must be in [0, {num_processes - 1}] with "
        f"--num_processes={num_processes}, got {process_id}."
      )
  try:
    jax.distributed.initialize(coordinator, num_processes, process_id)
  except (RuntimeError, ValueError) as error:
    raise UserError(f"cannot join the other processes: {error}") from error


EXIT_STATUS = 128 + signal.SIGTERM  # of a process that SIGTERM has ended


class Preemption(contextlib.ExitStack):
  """Remembers a SIGTERM instead of dying from it, from its making to its end.

  With several processes the notice of one reaches all, through the service of
  `jax.distributed`, and all leave after the same step.

  Attributes:
    noticed: whether there was one; of several processes, whether all shall leave.
  """

  def __init__(self):
    super().__init__()
    self.noticed = False
    here = threading.current_thread() is threading.main_thread()
    if jax.process_count() == 1 and here:
      before = signal.signal(signal.SIGTERM, self._notice)
      self.callback(signal.signal, signal.SIGTERM, before or signal.SIG_DFL)

  def _notice(self, *_) -> None:
    self.noticed = True

  def reached(self, step: int) -> bool:
    """Whether to save after `step` and leave; each process asks for every step."""
    if jax.process_count() > 1:
      self.noticed = multihost_utils.reached_preemption_sync_point(step)
    return self.noticed
