"""Exact orthogonal initialization and static sparse training in JAX.

Sparse, exactly orthogonal kernels from random Givens rotations, the masks that go with
them, and optax transformations that keep dead weights at exact zero. What a first
program needs stands here; the rest stands in the namespaces:

  - `layouts`: how each leaf of a tree is a batch of matrices;
  - `givens`: rotations, their expected density, sparse orthogonal matrices;
  - `initializers`: EOI, the dense references, approximate isometry, SAO, `sparsify`;
  - `masks`: masks as trees, density allocation, SNIP, GraSP, SynFlow;
  - `optim`: static and dynamic sparsity under any optax optimizer;
  - `signal`: Jacobian spectra, criticality, profiles, connectivity;
  - `blocks`: block-sparse orthogonal kernels whose products cost what they weigh.

Reference: Nowak et al., "Sparser, Better, Deeper, Stronger: Improving Static Sparse
Training with Exact Orthogonal Initialization", 2024, arXiv:2406.01755.
"""

from eoi_jax import blocks, givens, initializers, layouts, masks, optim, signal
from eoi_jax.givens import (
  Rotations,
  apply_rotations,
  expected_density,
  orthogonality_error,
  rotations_for_density,
  sample_rotations,
  sparse_orthogonal,
)
from eoi_jax.initializers import eoi_init, sparsify
from eoi_jax.layouts import (
  Layout,
  Layouts,
  kernel_layouts,
  linen_layouts,
  nnx_layouts,
)
from eoi_jax.masks import (
  allocate,
  apply_masks,
  count_masks,
  erk,
  global_masks,
  grasp_scores,
  kernel_masks,
  random_masks,
  snip_scores,
  synflow_masks,
  synflow_scores,
  uniform,
)
from eoi_jax.optim import current_masks, rigl, set_evolution, static_sparsity
from eoi_jax.signal import (
  conv_singular_values,
  critical_point,
  gram_errors,
  jacobian_singular_values,
)

__version__ = "0.1.0"

__all__ = [
  "Layout",
  "Layouts",
  "Rotations",
  "allocate",
  "apply_masks",
  "apply_rotations",
  "blocks",
  "conv_singular_values",
  "count_masks",
  "critical_point",
  "current_masks",
  "eoi_init",
  "erk",
  "expected_density",
  "givens",
  "global_masks",
  "gram_errors",
  "grasp_scores",
  "initializers",
  "jacobian_singular_values",
  "kernel_layouts",
  "kernel_masks",
  "layouts",
  "linen_layouts",
  "masks",
  "nnx_layouts",
  "optim",
  "orthogonality_error",
  "random_masks",
  "rigl",
  "rotations_for_density",
  "sample_rotations",
  "set_evolution",
  "signal",
  "snip_scores",
  "sparse_orthogonal",
  "sparsify",
  "static_sparsity",
  "synflow_masks",
  "synflow_scores",
  "uniform",
]
