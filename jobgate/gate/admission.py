"""
Whether a command may come in.

Pure: numbers in, a decision out. Must not know queues, clocks or workers.
"""

from __future__ import annotations

from math import ceil, inf

__all__ = ["expected_wait", "retry_after"]

_LONGEST = 3600
"""Seconds: no Retry-After is longer."""


def expected_wait(ahead: int, service_time: float, lanes: int) -> float:
    """
    How long a command will wait that finds `ahead` others before it.

    What runs now counts as one more: it is not known how far it is.

    Args:
        ahead: Commands that wait and would be taken first.
        service_time: Seconds a command runs, as measured; 0 while unknown.
        lanes: How many commands run at the same time.

    Returns:
        Seconds; `inf` when nothing runs at all.
    """
    if not lanes:
        return inf
    return (ahead + 1) * service_time / lanes


def retry_after(waiting: int, service_time: float, lanes: int) -> int:
    """
    Whole seconds after which the queue will have drained at its own rate (RFC 9110, 10.2.3).
    """
    wait = expected_wait(waiting, service_time, lanes)
    return _LONGEST if wait > _LONGEST else max(1, ceil(wait))
