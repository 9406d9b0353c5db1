"""Fixtures of the tests of probes."""

import numpy as np
import pytest

from medjax.probes.methods import linear


@pytest.fixture
def few_strengths(monkeypatch):
    """The linear probe tries three strengths: for tests of probes that use its classifier."""
    monkeypatch.setattr(linear, 'STRENGTHS', np.array([1e-3, 1e-1, 10.0]))
