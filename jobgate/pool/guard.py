"""
The gate's side of the warden: which process groups live, told as it changes.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

from twisted.internet.protocol import ProcessProtocol
from twisted.logger import Logger

from jobgate.pool import warden

if TYPE_CHECKING:
    from twisted.internet.interfaces import IDelayedCall
    from twisted.python.failure import Failure

__all__ = ["Guard"]

_AGAIN = 1.0
"""Seconds before a warden that has died is replaced."""


class Guard(ProcessProtocol):
    """
    Keeps one warden alive and informed.

    Args:
        reactor: Timers and processes.
    """

    _log = Logger()

    def __init__(self, reactor: Any) -> None:  # noqa: ANN401 (IReactorTime and IReactorProcess: no type can say both)
        self._reactor = reactor
        self._groups: set[int] = set()
        self._again: IDelayedCall | None = None
        self._alive = False
        self._stopping = False

    def start(self) -> None:
        """Start the warden; without one, a worker's own children may outlive a killed gate."""
        self._again = None
        try:
            self._reactor.spawnProcess(
                self,
                sys.executable,
                args=[sys.executable, "-I", "-S", warden.__file__],
                env={"PATH": os.defpath},
                childFDs={0: "w", 1: 1, 2: 2},
            )
        except OSError as error:
            self._log.error("the warden cannot be started: {why}", why=error.strerror)
            self._later()

    def stop(self) -> None:
        """All groups have ended: let the warden go."""
        self._stopping = True
        if self._again is not None:
            self._again.cancel()
            self._again = None
        if self._alive and self.transport is not None:
            self.transport.loseConnection()

    def group_started(self, pgid: int) -> None:
        """A process group lives."""
        self._groups.add(pgid)
        self._tell(b"+%d\n" % pgid)

    def group_ended(self, pgid: int) -> None:
        """The process group has been killed."""
        self._groups.discard(pgid)
        self._tell(b"-%d\n" % pgid)

    def connectionMade(self) -> None:
        """A new warden must be told everything."""
        self._alive = True
        self._tell(b"".join(b"+%d\n" % pgid for pgid in sorted(self._groups)))

    def processExited(self, reason: Failure) -> None:
        """It has died: the gate lives, so there must be another."""
        self._alive = False
        if not self._stopping:
            self._log.warn("the warden died ({why}); starting another", why=reason.value)
            self._later()

    def _tell(self, lines: bytes) -> None:
        if self._alive and self.transport is not None:
            self.transport.write(lines)

    def _later(self) -> None:
        if not self._stopping:
            self._again = self._reactor.callLater(_AGAIN, self.start)
