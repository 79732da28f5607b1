"""
A Post: a place for one worker, which outlives those that hold it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from jobgate.pool.lifecycle import State

if TYPE_CHECKING:
    from twisted.internet.interfaces import IDelayedCall

    from jobgate.pool.member import Member
    from jobgate.pool.report import Report

__all__ = ["Post"]


class Post:
    """
    A place for one worker.

    Attributes:
        number: From 0.
        name: The name of whoever holds it.
        worker: Who holds it: takes commands, or is about to.
        next: Who is being started to take over (make before break).
        leaving: Those who held it and have not exited yet.
        restarts: How many workers were started here after the first.
        report: The last crash report.
    """

    def __init__(self, number: int, name: str) -> None:
        self.number = number
        self.name = name
        self.worker: Member | None = None
        self.next: Member | None = None
        self.leaving: list[Member] = []
        self.restarts = -1
        self.report: Report | None = None
        self.restart: IDelayedCall | None = None

    def __repr__(self) -> str:
        return f"<Post {self.name} restarts={self.restarts} {self.everyone}>"

    @property
    def trying(self) -> bool:
        """Whether a worker is about to be started here, or is starting."""
        return self.restart is not None or (
            self.worker is not None and self.worker.state is State.STARTING
        )

    @property
    def everyone(self) -> list[Member]:
        """All processes of this post."""
        return [w for w in (self.worker, self.next, *self.leaving) if w is not None]
