"""Signal propagation: does a network preserve signals and gradients over its depth?

`jacobian_singular_values` measures a network as a whole, `layer_profiles` and
`signal_profile` every layer, `gram_errors` the kernels; `critical_point` says which
gains a deep network needs.
"""

from eoi_jax.signal.connectivity import (
  Collapse,
  Components,
  connected_components,
  effective_density,
  effective_masks,
  find_collapse,
)
from eoi_jax.signal.convolution import conv_singular_values
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
from eoi_jax.signal.profiles import (
  SignalProfile,
  gradient_norms,
  layer_profiles,
  record_signal,
  signal_meter,
  signal_profile,
)

__all__ = [
  "Collapse",
  "Components",
  "JacobianExtremes",
  "SignalProfile",
  "SpectrumSummary",
  "chi_1",
  "connected_components",
  "conv_singular_values",
  "correlation_length",
  "critical_point",
  "critical_variance",
  "effective_density",
  "effective_masks",
  "find_collapse",
  "gradient_norms",
  "gram_errors",
  "jacobian_extremes",
  "jacobian_singular_values",
  "layer_profiles",
  "record_signal",
  "signal_meter",
  "signal_profile",
  "spectrum_summary",
  "variance_fixed_point",
]
