"""Random Givens rotations, and the sparse orthogonal matrices that they make."""

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

__all__ = [
  "Rotations",
  "apply_rotations",
  "expected_density",
  "orthogonality_error",
  "pattern_fill",
  "rotated_identity",
  "rotations_for_density",
  "rotations_from_orthogonal",
  "sample_rotations",
  "sparse_orthogonal",
]
