"""The command line that the programs share: config, workdir, cache."""

import functools
import os
import platform
import re
import runpy
import zlib
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from train.core import cache
from train.core import config as config_lib
from train.core.console import UserError, one_line, program

CONFIG: Any = flags.DEFINE_string(
  "config",
  None,
  "Config file, with a variant if it has any (configs/quickstart.py:smoke). Change a "
  "field by --config.FIELD=VALUE, such as --config.sparsity.density=0.05; --fields "
  "prints all of them.",
)
WORKDIR: Any = flags.DEFINE_string(
  "workdir",
  None,
  "Directory of the results; default: workdirs/, then config and changed fields.",
)
_FIELDS = flags.DEFINE_bool(
  "fields", False, "Print every config field, its default and meaning, and stop."
)
_CACHE = flags.DEFINE_string(
  "cache",
  "auto",
  "Directory of compiled programs and decoded images, shared by all runs; auto: "
  "$EOI_JAX_CACHE, else eoi_jax in $XDG_CACHE_HOME or in ~/.cache; off: none.",
)


@functools.cache
def run_file(path: Path) -> dict[str, Any]:
  """Executes a config file, once in this process; returns its names."""
  return runpy.run_path(str(path))


def load_config(value: str) -> ConfigDict:
  """Returns the config that `FILE` or `FILE:VARIANT` names.

  Raises:
    UserError: if there is no such file or variant, or the file is broken.
  """
  path, colon, variant = value.partition(":")
  if not Path(path).is_file():
    raise UserError(f"config file {path!r} does not exist.")
  try:
    get_config = run_file(Path(path).resolve())["get_config"]
    config = get_config(variant) if colon else get_config()
  except KeyError as error:
    raise UserError(f"config file {path}: no {error} in it.") from error
  except Exception as error:
    raise UserError(f"config file {path}: {one_line(error)}") from error
  if not isinstance(config, ConfigDict):
    raise UserError(f"config file {path}: get_config() must return a ConfigDict.")
  return config


@program
def parse(argv: list[str]) -> list[str]:
  """Parses the command line, and turns on the cache.

  `CONFIG.value` is the config afterwards, with the changes of the command line, and
  `WORKDIR.value` never None. A mistake ends the program with one line.
  """
  (file, words, others), config = scan(argv[1:]), None
  if file is not None:
    config = load_config(file)
    config_lib.check_names(words)
    changes = {name: config_lib.read_word(name, word) for name, word in words.items()}
    config = config_lib.changed(config, changes)
  rest = flags.FLAGS([argv[0], *others])
  if _FIELDS.value:
    print(config_lib.help_text())
    raise SystemExit(0)
  if len(rest) > 1:
    raise UserError(f"unexpected argument {rest[1]!r}; flags begin with --.")
  if config is None:
    raise UserError("--config is missing, such as --config=configs/quickstart.py.")
  flags.FLAGS["config"].value = config
  if not flags.FLAGS["workdir"].present:
    flags.FLAGS["workdir"].value = str(default_workdir(argv[1:]))
  if _CACHE.value != "auto":
    os.environ[cache.VARIABLE] = _CACHE.value  # also of processes that this one starts
  use_compilation_cache()
  return rest


def scan(arguments: list[str]) -> tuple[str | None, dict[str, str], list[str]]:
  """Takes a command line apart, before the config is loaded.

  Returns the config file, or None; config fields, each with the text of its new value;
  and all other words.
  """
  found: dict[str, str] = {}
  others, words = [], iter(arguments)
  for word in words:
    name, equals, value = word.partition("=")
    change = re.fullmatch(r"--?(?:config|(no)?config\.(.+))", name)
    if word == "--":
      others += [word, *words]
    elif change is None:
      others.append(word)
    else:
      no, field = change[1], change[2] or ""  # without a field, the file
      if not equals and (no or isinstance(config_lib.DEFAULTS.get(field), bool)):
        value = str(not no)
      elif not equals:
        value = next(words, "")
      found[field] = value
  return found.pop("", None), found, others


def default_workdir(arguments: list[str]) -> Path:
  """Returns the workdir of a command line that names none.

  The same command finds its own run again; another one gets another directory:
  `workdirs/quickstart`, `workdirs/quickstart-smoke`, `workdirs/quickstart-seed=1`.
  """
  file, words, _ = scan(arguments)
  path, _, variant = (file or "").partition(":")
  words = {name: word for name, word in words.items() if name not in config_lib.LOCAL}
  changes = [f"{name}={words[name]}" for name in sorted(words)]
  name = "-".join(filter(None, [Path(path).stem, variant, *changes]))
  return Path("workdirs") / re.sub(r"[^\w.,=+-]", "_", name)[:200]


def use_compilation_cache() -> None:
  """Keeps compiled programs for later processes; before the first one is compiled.

  Programs of one kind of processor have a directory of their own. Where nothing but
  JAX_COMPILATION_CACHE_DIR is set, it decides.
  """
  if "JAX_COMPILATION_CACHE_DIR" in os.environ and cache.VARIABLE not in os.environ:
    return
  if (path := cache.directory(f"xla/{_processor()}")) is not None:
    import jax

    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def _processor() -> str:
  """Names the kind of processor: compiled programs hold its instructions."""
  try:
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    lines = {line for line in text.splitlines() if line.startswith(("flags", "Feat"))}
  except OSError:
    lines = {platform.processor()}
  return f"{platform.machine()}-{zlib.crc32(''.join(sorted(lines)).encode()):08x}"
