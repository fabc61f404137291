"""Downloads a data set and prepares it in the format that the trainer reads.

python -m train.prepare --dataset=mnist [--data_dir=DIR]
python -m train.prepare --dataset=tiny_imagenet --manual_dir=DIR [--data_dir=DIR]
python -m train.prepare --dataset=imagenet --manual_dir=DIR [--data_dir=DIR]

`--dataset=tfds:NAME` is any other data set of tensorflow-datasets; builders that need
TensorFlow need it here, too. ImageNet takes some hours, and twice the size of its
archives on the disk: examples are shuffled into a fixed order.
"""

from absl import app, flags

from train.core.console import UserError, program
from train.data.datasets import DATASETS, MANUAL, TFDS
from train.data.prepare import prepare

_NAMES = [name for name in DATASETS if name != "digits"]
_KNOWN = f"one of {', '.join(_NAMES)}, {TFDS}NAME"
_DATASET = flags.DEFINE_string("dataset", None, f"which data set: {_KNOWN}")
_DATA_DIR = flags.DEFINE_string(
  "data_dir", None, "where to; default: $TFDS_DATA_DIR, else ~/tensorflow_datasets"
)
_MANUAL_DIR = flags.DEFINE_string(
  "manual_dir", None, f"where the archives are that you brought: {', '.join(MANUAL)}"
)
_PARTIAL = flags.DEFINE_bool(
  "partial", False, "accept archives with a part of the official images, for imagenet"
)


@program
def main(_: list[str]) -> None:
  """Prepares what the flags ask for."""
  name = _DATASET.value
  if name is None or (name not in _NAMES and not name.startswith(TFDS)):
    raise UserError(f"--dataset must be {_KNOWN}, got {name}.")
  place = prepare(name, _DATA_DIR.value, _MANUAL_DIR.value, partial=_PARTIAL.value)
  print(f"{name} is in {place}")


if __name__ == "__main__":
  app.run(main)
