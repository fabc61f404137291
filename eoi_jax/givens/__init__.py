"""givens."""
