"""What a person at the terminal sees: errors in one line, the log, progress."""

import contextlib
import functools
import logging
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from absl import flags
from absl import logging as absl_logging

logger = logging.getLogger("train")

SECONDS_BETWEEN_LINES = 5.0


class UserError(ValueError):
  """A mistake of the caller: one line that names what is wrong.

  The programs print the message alone and exit with status 2; any other exception is a
  defect of the program and keeps its traceback.
  """


def one_line(error: Exception) -> str:
  """Returns an exception in one line, with its type if it is no ValueError."""
  kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
  return kind + " ".join(str(error).split())


_STYLES = {"bold": 1, "red": 31, "yellow": 33}


def paint(text: str, style: str, stream: Any) -> str:
  """Returns text in a style, if `stream` is a terminal and NO_COLOR is not set."""
  plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
  if plain or not stream.isatty():
    return text
  return f"\033[{_STYLES[style]}m{text}\033[0m"


def duration(seconds: float) -> str:
  """Returns a time as hours, minutes and seconds: "1:02:03"."""
  minutes, rest = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f"{hours}:{minutes:02}:{rest:02}"


class _Lines(logging.Formatter):
  """The message alone; that of a warning is coloured on a terminal."""

  def format(self, record: logging.LogRecord) -> str:
    text = super().format(record)
    if record.levelno < logging.WARNING:
      return text
    return paint(text, "yellow", sys.stderr)


def program(main: Callable[[Any], Any]) -> Callable[[Any], Any]:
  """Makes a `main` end in one line after a UserError, Ctrl-C or an error of a file.

  The line is on the standard error; the exit status is 2, or 130 after Ctrl-C.
  """

  @functools.wraps(main)
  def run(argv: Any) -> Any:
    try:
      return main(argv)
    except Exception as error:
      text = str(error)
      if isinstance(error, OSError) and error.filename:
        text = f"cannot use {error.filename}: {error.strerror}."
      elif not isinstance(error, UserError | flags.Error | OSError):
        if not isinstance(error, MemoryError) and "RESOURCE_EXHAUSTED" not in text:
          raise
        text = f"there is not enough memory: {one_line(error)[:200]}; --config.dry_run "
        text += "shows what a config takes, if it can be run at all."
      label = paint("error:", "red", sys.stderr)
      print(f"{label} {' '.join(text.split())}", file=sys.stderr)
      sys.exit(2)
    except KeyboardInterrupt:
      message = "stopped; the same command continues a run from its last checkpoint."
      print(f"\n{message}", flush=True)
      os._exit(130)  # the usual end may crash where threads still import or compile

  return run


def log_to_stderr(*, quiet: bool = False) -> None:
  """Shows the log of the trainer line by line, and only warnings of other packages.

  If `quiet`, only warnings of the trainer, too, and no progress.
  """
  warnings_only()
  handler = logging.StreamHandler(sys.stderr)
  handler.setFormatter(_Lines("%(message)s"))
  logger.addHandler(handler)
  logger.setLevel(logging.WARNING if quiet else logging.INFO)
  logger.propagate = False


def warnings_only() -> None:
  """Hides the information that Orbax and JAX log, unless --verbosity asks for it."""
  if not flags.FLAGS["verbosity"].present:
    absl_logging.set_verbosity(absl_logging.WARNING)


def table(rows: list[tuple[str, ...]]) -> str:
  """Aligns text in columns, the first to the left, the others to the right."""
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  lines = []
  for first, *rest in rows:
    cells = [first.ljust(widths[0])]
    cells += [c.rjust(w) for c, w in zip(rest, widths[1:], strict=True)]
    lines.append("  " + "  ".join(cells).rstrip())
  return "\n".join(lines)


class Progress(contextlib.ExitStack):
  """Shows how far a run is: a bar on a terminal, plain lines elsewhere.

  Use as a context manager around the training. A logger that shows only warnings shows
  no progress either.
  """

  def __init__(self, name: str, step: int, num_steps: int, num_epochs: int):
    super().__init__()
    self._name, self._num_steps, self._num_epochs = name, num_steps, num_epochs
    self._first, self._begin = step, time.monotonic()
    self._bar, self._last_line, self._evaluation = None, -math.inf, ""
    if sys.stderr.isatty() and logger.isEnabledFor(logging.INFO):
      from tqdm import tqdm

      options: dict[str, Any] = {"dynamic_ncols": True}
      if not all(os.get_terminal_size(sys.stderr.fileno())):
        options = {"ncols": 80, "nrows": 24}  # tqdm is mute where there is no size
      text = (
        "{desc} {percentage:3.0f}% |{bar:10}| {remaining} left, {rate_fmt}{postfix}"
      )
      options |= {"desc": name, "total": num_steps, "initial": step, "bar_format": text}
      self._bar = self.enter_context(tqdm(unit=" steps", file=sys.stderr, **options))

  @contextlib.contextmanager
  def paused(self) -> Iterator[None]:
    """Leaves what is done once out of the time that steps take."""
    begin = time.monotonic()
    yield
    self._last_line = time.monotonic()
    self._begin += self._last_line - begin
    if self._bar is not None:
      self._bar.unpause()

  def update(self, record: dict[str, Any]) -> None:
    """Shows a record of `metrics.jsonl`."""
    if record["split"] != "train":
      self._evaluation = f", {record['split']} {record['accuracy']:6.1%}"
    elif self._bar is not None:
      text = f"loss {record['loss']:.3f}, accuracy {record['accuracy']:.1%}"
      self._bar.set_postfix_str(text + self._evaluation, refresh=False)
      self._bar.update(record["step"] - self._bar.n)
    else:
      now, step, width = time.monotonic(), record["step"], len(str(self._num_steps))
      if step == self._num_steps or now - self._last_line >= SECONDS_BETWEEN_LINES:
        self._last_line = now
        rate = (now - self._begin) / max(step - self._first, 1)
        speed, left = record["steps_per_second"], rate * (self._num_steps - step)
        text = (
          f"epoch {record['epoch']:.1f}/{self._num_epochs}, "
          f"step {step:{width}}/{self._num_steps}, loss {record['loss']:.4f}, "
          f"accuracy {record['accuracy']:6.1%}{self._evaluation}, "
          f"{speed:.{0 if speed >= 10 else 1}f} steps/s, {duration(left)} left"
        )
        logger.info("%s: %s", self._name, text)
