"""
Unit tests: pure rooms, fakes and a Clock; they run under trial and pytest alike.

Hypothesis is kept to few examples, without deadlines and without files, so that the
whole takes well under a minute on a slow machine.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

settings.register_profile(
    "unit",
    max_examples=int(os.environ.get("JOBGATE_EXAMPLES", "40")),
    stateful_step_count=40,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
settings.load_profile("unit")
