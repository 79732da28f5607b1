"""
What follows from the changes that the journal tells: it is the first to know.

Counters and audit are kept true, queues filled, watchers told, and whoever still has a job that
has been ended from outside is told to leave it. Must not know what brought a change about.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from twisted.internet.defer import CancelledError
from twisted.python.failure import Failure

from jobgate.command import DONE, Lot
from jobgate.jobs import auditing
from jobgate.jobs.job import TERMINAL, State
from jobgate.jobs.lots import ids_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from jobgate.command import Command
    from jobgate.gate.audit import Audit
    from jobgate.jobs.backlog import Backlog
    from jobgate.jobs.job import Change
    from jobgate.jobs.watches import Watches

__all__ = ["Changes"]


class Changes:
    """
    Listens to a journal.

    Args:
        backlogs: The windows by queue.
        backlog_for: Finds or makes the window of a queue that has jobs.
        watches: Who hears of the changes.
        deaths: Workers that jobs have killed, by the jobs' ids; whose job has ended is dropped.
        sweep_in: Has the journal do what time demands, not later than in so many seconds.
        audit: Where acceptance and outcome are written down, if anywhere.

    Attributes:
        calls: Calls that are kept here and counted on their Roads, by id.
        audit: As given; a reload may bring another.
    """

    def __init__(
        self,
        backlogs: Mapping[str, Backlog],
        backlog_for: Callable[[str], Backlog],
        watches: Watches,
        deaths: dict[str, int],
        sweep_in: Callable[[float], None],
        audit: Audit | None,
    ) -> None:
        self._backlogs = backlogs
        self._backlog_for = backlog_for
        self._watches = watches
        self._deaths = deaths
        self._sweep_in = sweep_in
        self.calls: dict[str, Command] = {}
        self.audit = audit

    def stored(self, changes: Sequence[Change]) -> None:
        """The journal has stored these."""
        backlogs, calls, audit = self._backlogs, self.calls, self.audit
        watches = self._watches
        watched = bool(watches)
        fill: set[Backlog] = set()
        kept: set[Backlog] = set()
        for change in changes:
            backlog = backlogs.get(change.queue) or self._backlog_for(change.queue)
            state, before, size = change.state, change.before, len(change.ids) or 1
            if not calls or change.id not in calls:
                backlog.tally.count(state, before, size)
                if audit is not None:
                    auditing.changed(audit, change)
            if state is State.QUEUED:
                if not change.claimed:
                    backlog.stored += size
                    fill.add(backlog)
            elif state >= TERMINAL:
                if state is not State.DEAD:
                    kept.add(backlog)
                here = backlog.window
                if calls or self._deaths or (here and (change.ids or change.id in here)):
                    self._look_for(change, backlog)
            elif state is State.SCHEDULED and before is State.BLOCKED:
                # Nobody has been told yet when its time is.
                self._sweep_in(0.0)
            if watched:
                watches.changed(change)
        for backlog in kept:
            self._sweep_in(backlog.road.config.result_ttl)
        for backlog in fill:
            backlog.fill()

    def _look_for(self, change: Change, backlog: Backlog) -> None:
        """Jobs have ended that may be here still."""
        ids = ids_of(change)
        for id_ in ids:
            self._deaths.pop(id_, None)
            command = self.calls.pop(id_, None) or backlog.window.get(id_)
            if command is None or command.state == DONE:
                continue
            if isinstance(command, Lot):
                _part_off(command, ids)
                command = backlog.window[id_]
            _ended_elsewhere(command)


def _part_off(lot: Lot, ids: Sequence[str]) -> None:
    """Part a lot where those that have ended are followed by others, or the other way round."""
    over = set(ids)
    ended = [id_ in over for id_ in lot.ids]
    starts = [at for at in range(1, len(ended)) if ended[at] != ended[at - 1]]
    if starts:
        lot.part(starts)


def _ended_elsewhere(command: Command) -> None:
    """It has been ended from outside: whoever has it need not go on."""
    if command.forget is None:
        # It has not set out yet, or has been refused.
        command.state = DONE
    elif command.stream is None:
        command.reply.cancel()
    else:
        command.leave()
        command.stream.end(Failure(CancelledError()))
