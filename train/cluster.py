"""Several processes as one: who they are, and how they find each other."""

import jax

from train.errors import UserError


def join(
  coordinator: str | None,
  num_processes: int | None,
  process_id: int | None,
  *,
  detect: bool,
) -> None:
  """Connects this process with the others; call it before JAX finds its devices.

  Args:
    coordinator: "HOST:PORT" of process 0, None to be alone or to detect.
    num_processes: how many there are.
    process_id: number of this one, from 0.
    detect: whether the environment tells all of it, as on TPU pods and under Slurm.

  Raises:
    UserError: if the arguments contradict each other or the others are not found.
  """
  given = (coordinator, num_processes, process_id)
  if given == (None, None, None) and not detect:
    return
  if detect and given != (None, None, None):
    raise UserError("--distributed takes no --coordinator, --num_processes, ...")
  if not detect:
    _check(coordinator, num_processes, process_id)
  try:
    jax.distributed.initialize(coordinator, num_processes, process_id)
  except (RuntimeError, ValueError) as error:
    raise UserError(f"cannot join the other processes: {error}") from error


def _check(
  coordinator: str | None, num_processes: int | None, process_id: int | None
) -> None:
  if coordinator is None or num_processes is None or process_id is None:
    raise UserError("--coordinator, --num_processes and --process_id come together.")
  if ":" not in coordinator:
    raise UserError(f"--coordinator must be HOST:PORT, got {coordinator!r}.")
  if not 0 <= process_id < num_processes:
    raise UserError(
      f"--process_id must be in [0, {num_processes - 1}] with "
      f"--num_processes={num_processes}, got {process_id}."
    )
