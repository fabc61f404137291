"""Networks before they are trained."""
