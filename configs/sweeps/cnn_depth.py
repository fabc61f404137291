"""Where training stops over depth: CNNs of 30, 100 and 300 layers on CIFAR-10.

The recipe is that of `cifar10_cnn100.py`, which says what it follows: ERK masks of one
weight in eight from the base start, AI, EOI at the centre tap and EOI over all taps,
beside a dense delta-orthogonal network; 2 seeds. `curves-*.png` of the workdir show the
training at each depth, the table has the depth as its columns.

Command: python -m train.sweep --config configs/sweeps/cnn_depth.py:cpu
Variants: `:cpu` trains the 100 layers alone, for 390 steps; `:smoke` three starts of 10
layers of 16 channels on 640 images. `--config.model.width=16 --config.data.limit=25000`
cuts all depths to an hour of one CPU core.
Cost: an estimate for one CPU core, half an hour for `:cpu` (half a second a step) and 6
hours for all; `:smoke` a minute.
"""

from configs import cifar10_cnn100, default
from configs.sweeps import schemes

VARIANTS = {
  "cpu": {"data.limit": 25_000},
  "smoke": {"seeds": (), **cifar10_cnn100.VARIANTS["smoke"]},
}
ROWS = {
  "base": schemes("erk-base")["erk-base"],
  "AI": schemes("erk-ai")["erk-ai"],
  "EOI, centre": schemes("erk-eoi")["erk-eoi"] | {"sparsity.taps": "center"},
  "EOI, all taps": schemes("erk-eoi")["erk-eoi"] | {"sparsity.taps": "all"},
  "dense": schemes("dense", dense="delta_orthogonal")["dense"],
}
SMOKE = ("base", "EOI, centre", "EOI, all taps")


def get_config(variant: str = ""):
  config = cifar10_cnn100.get_config()
  config.seeds = (0, 1)
  config.keep_checkpoints, config.keep_best = 1, 0
  config.update_from_flattened_dict(default.choose(variant, VARIANTS))
  return config


def get_axes(variant: str = ""):
  depths = {"cpu": (100,), "smoke": (10,)}.get(variant, (30, 100, 300))
  rows = {name: ROWS[name] for name in SMOKE} if variant == "smoke" else ROWS
  return {"model.depth": depths, "scheme": rows}
