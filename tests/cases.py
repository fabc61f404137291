"""Cases of parametrized tests: the first few are quick enough for the inner loop."""

import pytest


def few(cases, quick=1, *, rows=False):
  """Cases for `pytest.mark.parametrize`; all but the first `quick` are marked slow.

  Args:
    cases: values of one argument, or with `rows` tuples of values of several.
    quick: how many stay in `make test-fast`.
    rows: whether a case has a value for each of several arguments.
  """
  cases = list(cases)
  slow = [case if rows else (case,) for case in cases[quick:]]
  return [
    *cases[:quick],
    *(pytest.param(*values, marks=pytest.mark.slow) for values in slow),
  ]
