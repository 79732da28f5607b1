"""
What time demands of the journal, done when it is due and not much oftener.

Must not know what becomes of what is found.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Final

from twisted.logger import Logger

from jobgate.errors import StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.internet.interfaces import IDelayedCall, IReactorTime
    from twisted.python.failure import Failure

    from jobgate.jobs.journal import Due, Journal

__all__ = ["Sweeper"]

_FOREVER: Final = float("inf")
_LONGEST: Final = 60.0
"""Seconds after which the journal is swept even if nothing is known to be due."""
_SOON: Final = 0.01
"""Seconds: what is due is looked at no more often than this."""
_RESTED: Final = 1.0
"""Seconds after which a sweep that failed is tried again."""


class Sweeper:
    """
    Sweeps a journal.

    Args:
        journal: It.
        clock: Seconds and timers.
        swept: Told what was found.
    """

    _log: ClassVar = Logger()

    def __init__(self, journal: Journal, clock: IReactorTime, swept: Callable[[Due], None]) -> None:
        self._journal = journal
        self._clock = clock
        self._found = swept
        self._timer: IDelayedCall | None = None
        self._at = _FOREVER
        self._stopped = False

    def sweep_in(self, seconds: float) -> None:
        """Sweep not later than in so many seconds."""
        at = self._clock.seconds() + max(_SOON, seconds)
        if self._stopped or at >= self._at:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._at = at
        self._timer = self._clock.callLater(max(_SOON, seconds), self._sweep)

    def stop(self) -> None:
        """Sweep no more."""
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _sweep(self) -> None:
        self._timer = None
        self._at = _FOREVER
        self._journal.sweep().addCallback(self._swept).addErrback(self._not_swept)

    def _swept(self, due: Due) -> None:
        self._found(due)
        self.sweep_in(min(due.after, _LONGEST))

    def _not_swept(self, failure: Failure) -> None:
        if not failure.check(StoreUnavailable):
            self._log.failure("the journal could not be swept", failure=failure)
        self.sweep_in(_RESTED)
