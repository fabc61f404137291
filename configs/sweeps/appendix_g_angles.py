"""Appendix G, the angle of EOI's rotations: 1 degree, 80 degrees, uniform.

MLP-7 with tanh on MNIST from EOI on ERK densities, trained as in `mlp7_schemes.py`,
which says what it follows. Rotations by one small angle leave the kernels near the
identity. The kernels themselves are shown by `python -m train.paper angles`.

Command: python -m train.sweep --config configs/sweeps/appendix_g_angles.py:cpu
Variants: `:cpu` has 3 seeds and 10 epochs, and so a rate of .1; `:smoke` 2 seeds and 2
epochs of 2000 images.
Cost: an estimate for 2 CPU cores, 3 minutes for `:cpu` and an hour for all.
"""

from configs.sweeps import mlp7_schemes

VARIANTS = mlp7_schemes.VARIANTS
ANGLES = {"1 degree": 1.0, "80 degrees": 80.0, "uniform": 0.0}


def get_config(variant: str = ""):
  config = mlp7_schemes.get_config(variant)
  config.sparsity.start = "eoi"
  config.sparsity.distribution = "erk"
  return config


def get_axes(variant: str = ""):
  densities = (0.1,) if variant == "smoke" else (0.05, 0.1)
  angles = {name: {"sparsity.angle": angle} for name, angle in ANGLES.items()}
  return {"sparsity.density": densities, "rotation": angles}
