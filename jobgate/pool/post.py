"""
A place for one worker; it outlives the workers that hold it.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import msgspec

from jobgate.pool.lifecycle import State
from jobgate.pool.report import Report

if TYPE_CHECKING:
    from collections.abc import Iterable

    from twisted.internet.interfaces import IDelayedCall

    from jobgate.pool.member import Member
    from jobgate.pool.report import Evidence, Slow

__all__ = ["Post"]

_KEPT = 64 * 1024 * 1024
"""Bytes of commands, for all posts of a queue together, that are kept for the reports."""


class Post:
    """
    A place for one worker.

    Attributes:
        number: From 0.
        name: The name of whoever holds it.
        worker: Who holds it: takes commands, or is about to.
        next: Who is being started to take over (make before break), or is on trial.
        leaving: Those who held it and have not exited yet.
        causes: How many workers were started here after the first, by why.
        report: The last crash report.
        evidence: What the worker of that report was running.
        slow: The last command that ran longer than `soft_timeout` here.
        last: Who held it last and did not go by plan, until another is started.
        not_before: When whoever has served long enough may be replaced, after a failure.
        done: Commands answered by those who have gone.
        busy: Seconds in which they had commands in hand.
    """

    def __init__(self, number: int, name: str) -> None:
        self.number = number
        self.name = name
        self.worker: Member | None = None
        self.next: Member | None = None
        self.leaving: list[Member] = []
        self.causes: Counter[str] = Counter()
        self.report: Report | None = None
        self.evidence: Evidence | None = None
        self.slow: Slow | None = None
        self.last: Member | None = None
        self.not_before = 0.0
        self.done = 0
        self.busy = 0.0
        self.restart: IDelayedCall | None = None

    def __repr__(self) -> str:
        return f"<Post {self.name} restarts={self.restarts} {self.everyone}>"

    @property
    def restarts(self) -> int:
        """How many workers were started here after the first."""
        return self.causes.total()

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

    @property
    def served(self) -> tuple[int, float]:
        """Commands that all of this post have answered, and seconds they had some in hand."""
        talks = [worker.conversation for worker in self.everyone]
        done = self.done + sum(talk.done for talk in talks)
        return done, self.busy + sum(talk.busy for talk in talks)

    @property
    def story(self) -> Report | None:
        """The report with all that is known; None if nothing has happened here."""
        if self.report is not None:
            return msgspec.structs.replace(self.report, slow=self.slow)
        worker = self.worker
        if self.slow is None or worker is None:
            return None
        return Report(
            worker=self.name,
            queue=worker.queue,
            pid=worker.pid,
            kind="slow",
            cause=f"{self.slow.command} ran for {self.slow.ran:g} s; the worker lives",
            exit_status=None,
            signal=None,
            at=self.slow.at,
            lived=worker.age,
            commands_done=worker.conversation.done,
            running=[command.id for command in worker.conversation.in_hand.values()],
            slow=self.slow,
            output=worker.output,
        )

    def remember(self, worker: Member, report: Report, among: Iterable[Post]) -> None:
        """
        Keep how a worker died, and what it was running.

        Args:
            worker: Who has died.
            report: How.
            among: The posts that share the room for what workers were running.
        """
        self.report, self.evidence = report, worker.evidence
        kept = 0
        newest = sorted(among, key=lambda p: (p is self, p.report.at if p.report else ""))
        for post in reversed(newest):
            kept += len(post.evidence.body) if post.evidence is not None else 0
            if kept > _KEPT and post is not self:
                post.evidence = None

    def count(self, worker: Member) -> None:
        """A worker has gone: what it has done stays."""
        self.done += worker.conversation.done
        self.busy += worker.conversation.busy
