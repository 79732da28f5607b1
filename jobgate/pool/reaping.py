"""
Reaps a child together with what it has used.

Twisted's processes are reaped with waitpid(2), which does not tell; wait4(2) does.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

from twisted.internet.process import unregisterReapProcessHandler

from jobgate.pool.machine import peak
from jobgate.pool.report import Usage

if TYPE_CHECKING:
    from collections.abc import Callable
    from resource import struct_rusage

__all__ = ["reap_with_usage"]

_RSS_UNIT = 1 if sys.platform == "darwin" else 1024
"""Bytes in which the system counts the most memory of a process."""


def reap_with_usage(transport: Any, told: Callable[[Usage], None]) -> None:  # noqa: ANN401 (Twisted has no type for it)
    """
    Have a process transport reap its child so that its usage is known.

    Args:
        transport: Twisted's `Process`; its `reapProcess` is replaced.
        told: Called before the transport tells of the exit. Not called for a child that
            ends before it is registered: Twisted has reaped that one itself.
    """

    def reap() -> None:
        try:
            pid, status, used = os.wait4(transport.pid, os.WNOHANG)
        except ChildProcessError:
            return
        if pid:
            told(_usage(used))
            unregisterReapProcessHandler(pid, transport)
            transport.processEnded(status)

    transport.reapProcess = reap


def _usage(used: struct_rusage) -> Usage:
    most = used.ru_maxrss * _RSS_UNIT
    return Usage(
        user=round(used.ru_utime, 3),
        system=round(used.ru_stime, 3),
        # What the child had as a copy of this process, before it became the worker, counts too.
        max_rss=most if most > peak() else None,
        major_faults=used.ru_majflt,
    )
