"""The command line that the programs share: config, workdir, and how they end."""

import logging
import re
import runpy
import sys
from pathlib import Path
from typing import NoReturn

from absl import flags
from absl import logging as absl_logging
from ml_collections import ConfigDict, config_flags

from train import config as config_lib
from train.errors import UserError
from train.progress import logger

CONFIG = config_flags.DEFINE_config_file(
  "config",
  None,
  "Config file, with a variant if it has any (configs/quickstart.py:smoke). Change a "
  "field by --config.FIELD=VALUE, such as --config.sparsity.density=0.05; "
  "configs/default.py explains the fields.",
)
WORKDIR = flags.DEFINE_string(
  "workdir",
  None,
  "Directory of the results; default: workdirs/, then config and changed fields.",
)


def load_config(value: str) -> ConfigDict:
  """Runs the config file that `FILE` or `FILE:VARIANT` names.

  Raises:
    UserError: if there is no such file or variant, or the file is broken.
  """
  path, colon, variant = value.partition(":")
  if not Path(path).is_file():
    raise UserError(f"config file {path!r} does not exist.")
  try:
    get_config = runpy.run_path(path)["get_config"]
    config = get_config(variant) if colon else get_config()
  except KeyError as error:
    raise UserError(f"config file {path}: no {error} in it.") from error
  except Exception as error:
    text = " ".join(str(error).split())
    kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
    raise UserError(f"config file {path}: {kind}{text}") from error
  if not isinstance(config, ConfigDict):
    raise UserError(f"config file {path}: get_config() must return a ConfigDict.")
  return config


def parse(argv: list[str]) -> list[str]:
  """Parses the command line; a mistake in it ends the program with one line."""
  try:
    return _parse(argv)
  except (UserError, flags.Error) as error:
    exit_with(error)


def _parse(argv: list[str]) -> list[str]:
  config, overrides = scan(argv[1:])
  if config is not None:
    config_lib.check_names(overrides, config_lib.flatten(load_config(config)))
  rest = flags.FLAGS(argv)
  if len(rest) > 1:
    raise UserError(f"unexpected argument {rest[1]!r}; flags begin with --.")
  if config is None:
    raise UserError("--config is missing, such as --config=configs/quickstart.py.")
  return rest


def scan(arguments: list[str]) -> tuple[str | None, dict[str, str]]:
  """Finds the config file and what a command line changes in it: field to value."""
  config, overrides = None, {}
  for argument, following in zip(arguments, [*arguments[1:], ""], strict=False):
    name, equals, value = argument.lstrip("-").partition("=")
    if not argument.startswith("-"):
      continue
    if argument == "--":
      break
    if name == "config":
      config = value if equals else following
    elif name.removeprefix("no").startswith("config."):
      field = name.removeprefix("no").removeprefix("config.").partition("[")[0]
      overrides[field] = value if equals else following
  return config, overrides


def default_workdir(arguments: list[str]) -> Path:
  """Returns the workdir of a command line that names none.

  The same command finds its own run again; another one gets another directory:
  `workdirs/quickstart`, `workdirs/quickstart-smoke`, `workdirs/quickstart-seed=1`.
  """
  config, overrides = scan(arguments)
  path, _, variant = (config or "").partition(":")
  changes = [f"{field}={value}" for field, value in sorted(overrides.items())]
  name = "-".join(filter(None, [Path(path).stem, variant, *changes]))
  return Path("workdirs") / re.sub(r"[^\w.,=+-]", "_", name)[:200]


def log_to_stderr(*, quiet: bool = False) -> None:
  """Shows the log of the trainer, line by line, and of others warnings only.

  Args:
    quiet: whether to show warnings only of the trainer, too, and no progress.
  """
  if not flags.FLAGS["verbosity"].present:
    absl_logging.set_verbosity(absl_logging.WARNING)  # Orbax tells every detail
  handler = logging.StreamHandler(sys.stderr)
  handler.setFormatter(logging.Formatter("%(message)s"))
  logger.addHandler(handler)
  logger.setLevel(logging.WARNING if quiet else logging.INFO)
  logger.propagate = False


def exit_with(error: Exception) -> NoReturn:
  """Ends the program with one line on the standard error, and status 2."""
  print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
  sys.exit(2)
