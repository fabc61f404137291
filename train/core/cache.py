"""Where what later processes need again is kept: compiled programs, decoded images."""

import os
import tempfile
from pathlib import Path

from train.core.console import logger

VARIABLE = "EOI_JAX_CACHE"


def directory(kind: str) -> Path | None:
  """Returns the directory for things of a kind, such as "data"; it exists.

  It is in the one that EOI_JAX_CACHE names, or else in `eoi_jax` of $XDG_CACHE_HOME or
  of ~/.cache; None where the variable is "off", or nothing can be written.
  """
  place = os.environ.get(VARIABLE, "auto")
  if place == "off":
    return None
  if place == "auto":
    place = os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "eoi_jax")
  try:
    path = Path(place).expanduser() / kind
    path.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=path):
      pass
  except (OSError, RuntimeError) as error:  # RuntimeError: there is no home
    logger.debug("nothing is kept for later processes: %s", error)
    return None
  return path
