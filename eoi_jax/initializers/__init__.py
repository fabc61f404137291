"""Starts of kernels: EOI, the dense references, AI, SAO, and `sparsify` for trees."""

from eoi_jax.initializers.dense import (
  conv_orthogonal,
  delta_orthogonal,
  dense_orthogonal,
)
from eoi_jax.initializers.eoi import eoi_init
from eoi_jax.initializers.isometry import IsometryResult, approximate_isometry
from eoi_jax.initializers.sao import sao_degrees, sao_orthogonal
from eoi_jax.initializers.sparsify import sparsify

__all__ = [
  "IsometryResult",
  "approximate_isometry",
  "conv_orthogonal",
  "delta_orthogonal",
  "dense_orthogonal",
  "eoi_init",
  "sao_degrees",
  "sao_orthogonal",
  "sparsify",
]
