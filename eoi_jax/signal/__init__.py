"""How signals pass through a network: spectra, criticality, profiles, connectivity."""

from eoi_jax.signal.connectivity import (
  Collapse,
  Components,
  connected_components,
  effective_density,
  effective_masks,
  find_collapse,
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

__all__ = [
  "Collapse",
  "Components",
  "JacobianExtremes",
  "LayerProfile",
  "SignalProfile",
  "SpectrumSummary",
  "chi_1",
  "connected_components",
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
  "new_meter",
  "signal_profile",
  "spectrum_summary",
  "variance_fixed_point",
  "watch",
]
