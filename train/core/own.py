"""Code of your own that a config names, as MODULE:NAME."""

import ast
import contextlib
import importlib
import inspect
import traceback
from collections.abc import Iterable, Iterator
from typing import Any

from train.core.console import UserError, one_line


def is_own(name: str) -> bool:
  """Whether a name is of the form `package.module:name`."""
  module, _, attribute = name.partition(":")
  return all(word.isidentifier() for word in (*module.split("."), attribute))


def find(field: str, name: str) -> Any:
  """Imports what `name`, "package.module:name" in a config field, stands for.

  The module is found from the working directory and PYTHONPATH, as by `import`.

  Raises:
    UserError: if there is no such module, it cannot be imported, or has no such name.
  """
  module, _, attribute = name.partition(":")
  with blamed(field, name):
    try:
      found = importlib.import_module(module)
    except ModuleNotFoundError as error:
      if error.name is None or not f"{module}.".startswith(f"{error.name}."):
        raise
      raise UserError(
        f"`{field}` = {name!r}: there is no module {error.name!r} in the working "
        "directory or on PYTHONPATH."
      ) from error
  if not callable(getattr(found, attribute, None)):
    raise UserError(f"`{field}` = {name!r}: {found.__file__} defines no {attribute}.")
  return getattr(found, attribute)


def arguments(field: str, name: str) -> dict[str, inspect.Parameter]:
  """Returns the arguments that may be given by name, those of Linen itself left out."""
  parameters = inspect.signature(find(field, name)).parameters
  return {n: p for n, p in parameters.items() if n not in ("parent", "name")}


def written_arguments(field: str, text: str, known: Iterable[str]) -> dict[str, Any]:
  """Returns the arguments that a field holds as text: "heads=8, widths=(64, 128)".

  Raises:
    UserError: if it is not such a list; the message names the `known` arguments.
  """
  try:
    call: Any = ast.parse(f"f({text})", mode="eval").body
    if call.args or not isinstance(call.func, ast.Name):
      raise SyntaxError
    return {item.arg: as_tuples(ast.literal_eval(item.value)) for item in call.keywords}
  except (SyntaxError, ValueError, TypeError, AttributeError) as error:
    raise UserError(
      f"`{field}` must be arguments ({', '.join(known) or 'none'}) as in "
      f"'a=1, b=2.5', got {text!r}."
    ) from error


def as_tuples(value: Any) -> Any:
  """Returns lists, of JSON or as literals, as tuples, which can be hashed."""
  return tuple(map(as_tuples, value)) if isinstance(value, list) else value


@contextlib.contextmanager
def blamed(field: str, name: str) -> Iterator[None]:
  """Turns an exception of the user's code into a UserError that names the line."""
  try:
    yield
  except UserError:
    raise
  except Exception as error:
    place, module = "", name.partition(":")[0].rpartition(".")[2]
    for frame in traceback.extract_tb(error.__traceback__):
      if module in frame.filename.replace("\\", "/").rpartition("/")[2].split("."):
        place = f" ({frame.filename}, line {frame.lineno})"
    raise UserError(f"`{field}` = {name!r}: {one_line(error)[:500]}{place}") from error
