"""Exact orthogonal initialization and static sparse training in JAX.

Sparse, exactly orthogonal kernels from random Givens rotations, the masks that go with
them, and an optax transformation that keeps dead weights at exact zero.

Reference: Nowak et al., "Sparser, Better, Deeper, Stronger: Improving Static Sparse
Training with Exact Orthogonal Initialization", 2024, arXiv:2406.01755.
"""

from eoi_jax.givens.density import expected_density, rotations_for_density
from eoi_jax.givens.orthogonal import orthogonality_error, sparse_orthogonal
from eoi_jax.givens.patterns import pattern_fill
from eoi_jax.givens.rotations import (
  Rotations,
  apply_rotations,
  rotated_identity,
  rotations_from_orthogonal,
  sample_rotations,
)
from eoi_jax.initializers.dense import (
  conv_orthogonal,
  delta_orthogonal,
  dense_orthogonal,
)
from eoi_jax.initializers.eoi import eoi_init
from eoi_jax.initializers.isometry import IsometryResult, approximate_isometry
from eoi_jax.initializers.sao import sao_degrees, sao_orthogonal
from eoi_jax.initializers.sparsify import sparsify
from eoi_jax.masks.allocation import budgets, densities_from_budgets, erk, uniform
from eoi_jax.masks.saliency import (
  global_masks,
  grasp_scores,
  magnitude_scores,
  random_scores,
  snip_scores,
)
from eoi_jax.masks.synflow import synflow_masks, synflow_scores
from eoi_jax.masks.trees import (
  DeadUnits,
  MaskCount,
  apply_masks,
  count_masks,
  dead_units,
  kernel_masks,
  mask_densities,
  random_masks,
)
from eoi_jax.optim.dynamic import DynamicSparsityState, current_masks, dynamic_sparsity
from eoi_jax.optim.recipes import rigl, set_evolution
from eoi_jax.optim.restore import restore_isometry
from eoi_jax.optim.rules import evolve_masks
from eoi_jax.optim.schedule import drop_schedule
from eoi_jax.optim.static import StaticSparsityState, static_sparsity
from eoi_jax.signal.collapse import Collapse, find_collapse
from eoi_jax.signal.connectivity import (
  Components,
  connected_components,
  effective_density,
  effective_masks,
)
from eoi_jax.signal.gram import gram_errors
from eoi_jax.signal.jacobian import (
  JacobianExtremes,
  SpectrumSummary,
  jacobian_extremes,
  jacobian_singular_values,
  spectrum_summary,
)
from eoi_jax.signal.mean_field import (
  chi_1,
  correlation_length,
  critical_point,
  critical_variance,
  variance_fixed_point,
)
from eoi_jax.signal.meters import LayerProfile, layer_profiles, new_meter, watch
from eoi_jax.signal.profiles import SignalProfile, gradient_norms, signal_profile

__version__ = "0.1.0"

__all__ = [
  "Collapse",
  "Components",
  "DeadUnits",
  "DynamicSparsityState",
  "IsometryResult",
  "JacobianExtremes",
  "LayerProfile",
  "MaskCount",
  "Rotations",
  "SignalProfile",
  "SpectrumSummary",
  "StaticSparsityState",
  "apply_masks",
  "apply_rotations",
  "approximate_isometry",
  "budgets",
  "chi_1",
  "connected_components",
  "conv_orthogonal",
  "correlation_length",
  "count_masks",
  "critical_point",
  "critical_variance",
  "current_masks",
  "dead_units",
  "delta_orthogonal",
  "dense_orthogonal",
  "densities_from_budgets",
  "drop_schedule",
  "dynamic_sparsity",
  "effective_density",
  "effective_masks",
  "eoi_init",
  "erk",
  "evolve_masks",
  "expected_density",
  "find_collapse",
  "global_masks",
  "gradient_norms",
  "gram_errors",
  "grasp_scores",
  "jacobian_extremes",
  "jacobian_singular_values",
  "kernel_masks",
  "layer_profiles",
  "magnitude_scores",
  "mask_densities",
  "new_meter",
  "orthogonality_error",
  "pattern_fill",
  "random_masks",
  "random_scores",
  "restore_isometry",
  "rigl",
  "rotated_identity",
  "rotations_for_density",
  "rotations_from_orthogonal",
  "sample_rotations",
  "sao_degrees",
  "sao_orthogonal",
  "set_evolution",
  "signal_profile",
  "snip_scores",
  "sparse_orthogonal",
  "sparsify",
  "spectrum_summary",
  "static_sparsity",
  "synflow_masks",
  "synflow_scores",
  "uniform",
  "variance_fixed_point",
  "watch",
]
