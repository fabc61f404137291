"""Grids of runs, one table of the paper each: `python -m train.sweep --config=...`.

A sweep file is a config, by `get_config(variant)`, whose `get_axes(variant)` says what
its cells change: a field and its values, or an axis by name and `{label: changes}`. The
last axis makes the rows of the table. Variants of every file: none is the paper's
setting, for an accelerator; `:cpu` keeps data, network and schemes and cuts epochs,
examples or seeds to what 2 CPU cores can do; `:smoke` is to see that it runs.
"""

DISTRIBUTIONS = ("uniform", "erk", "snip", "grasp", "synflow")
STARTS = ("base", "ai", "eoi")
SPARSE = (*(f"{d}-{start}" for d in DISTRIBUTIONS for start in STARTS), "sao")


def schemes(*names: str, dense: str = "orthogonal") -> dict[str, dict]:
  """Returns an axis of schemes: where the density goes, and how the weights start.

  Args:
    names: such as "erk-eoi", "uniform_skip-eis" (the structured form of EOI) or "sao",
      whose layers that it cannot start stay dense; or, at density 1, "dense" and
      "dense-default", from the default kernels of PyTorch.
    dense: start of the dense network.
  """
  special = {
    "sao": _pair("uniform", "sao"),
    "dense": _pair("dense", dense) | {"sparsity.density": 1.0},
    "dense-default": _pair("dense", "fan_in_uniform") | {"sparsity.density": 1.0},
  }
  return {name: special.get(name) or _pair(*name.split("-")) for name in names}


def _pair(distribution: str, start: str) -> dict:
  start = {"eis": "eoi_structured"}.get(start, start)
  return {"sparsity.distribution": distribution, "sparsity.start": start}
