"""
A store of jobs for tests.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from jobgate.jobs.sqlite import SqliteJournal

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

__all__ = ["inline_journal"]


def inline_journal(
    clock: IReactorTime, path: str = ":memory:", *, epoch: float = 1e9
) -> SqliteJournal:
    """
    A store of jobs without a thread: what it is asked has happened when the call returns.

    Args:
        clock: Its time, such as a `Clock`; it tries again by its timers.
        path: A file, for a store that can be opened anew.
        epoch: What the clock on the wall shows when `clock` shows 0.
    """
    return SqliteJournal(
        path, clock, clock=clock.seconds, wall=lambda: epoch + clock.seconds(), inline=True
    )
