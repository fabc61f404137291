"""The default of every field; other configs start from here and change lines.

`python -m train.run --fields` prints the fields with their meaning. Not a recipe by
itself: see `quickstart.py`, `mnist_mlp7.py`.
"""

from ml_collections import ConfigDict

from train.core.config import default_config


def get_config(variant: str = "") -> ConfigDict:
  """Returns the fields with plain values; `variant` is empty here."""
  choose(variant, {})
  return default_config()


def choose(variant: str, variants: dict[str, dict]) -> dict:
  """Returns the changes that `--config=FILE:variant` stands for.

  Args:
    variant: the text after the colon; empty means no change.
    variants: name to changes, as `ConfigDict.update_from_flattened_dict` takes them.

  Returns:
    The changes, empty for no variant.

  Raises:
    ValueError: if there is no such variant.
  """
  if variant and variant not in variants:
    known = ", ".join(variants) or "none"
    raise ValueError(f"unknown variant {variant!r}; known variants: {known}.")
  return variants.get(variant, {})
