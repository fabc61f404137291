"""Progress on standard error: a bar on a terminal, plain lines elsewhere.

A logger that shows warnings only shows no progress either.
"""

import logging
import os
import sys
import time
from typing import Any

logger = logging.getLogger("train")

SECONDS_BETWEEN_LINES = 5.0


def _terminal_size() -> dict[str, Any]:
  """Follows the terminal; takes 80 x 24 where it tells no size, where tqdm is mute."""
  if all(os.get_terminal_size(sys.stderr.fileno())):
    return {"dynamic_ncols": True}
  return {"ncols": 80, "nrows": 24}


class Progress:
  """Shows how far a run is.

  Use as a context manager around the training.
  """

  def __init__(self, name: str, step: int, num_steps: int, num_epochs: int):
    self._name, self._num_steps, self._num_epochs = name, num_steps, num_epochs
    self._bar, self._last_line, self._evaluation = None, time.monotonic(), ""
    if sys.stderr.isatty() and logger.isEnabledFor(logging.INFO):
      from tqdm import tqdm

      self._bar = tqdm(
        desc=name,
        total=num_steps,
        initial=step,
        unit=" steps",
        bar_format="{desc} {percentage:3.0f}% |{bar:10}| {remaining} left, "
        "{rate_fmt}{postfix}",
        file=sys.stderr,
        **_terminal_size(),
      )

  def __enter__(self) -> "Progress":
    return self

  def __exit__(self, *args) -> None:
    if self._bar is not None:
      self._bar.close()

  def update(self, record: dict[str, Any]) -> None:
    """Shows a record of `metrics.jsonl`."""
    if record["split"] != "train":
      self._evaluation = f", {record['split']} {record['accuracy']:.1%}"
    elif self._bar is None:
      self._line(record)
    else:
      text = f"loss {record['loss']:.3f}, accuracy {record['accuracy']:.1%}"
      self._bar.set_postfix_str(text + self._evaluation, refresh=False)
      self._bar.update(record["step"] - self._bar.n)

  def _line(self, record: dict[str, Any]) -> None:
    now, last = time.monotonic(), record["step"] == self._num_steps
    if last or now - self._last_line >= SECONDS_BETWEEN_LINES:
      self._last_line = now
      logger.info(
        "%s: epoch %.1f/%d, step %d/%d, loss %.4f, accuracy %.1f%%%s, %.0f steps/s",
        self._name,
        record["epoch"],
        self._num_epochs,
        record["step"],
        self._num_steps,
        record["loss"],
        100 * record["accuracy"],
        self._evaluation,
        record["steps_per_second"],
      )
