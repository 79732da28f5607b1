"""
How jobs set out: out of the window of their queue, down its Road, as commands.

Must not know how a job comes into the window, nor what becomes of it when it has ended.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

import msgspec

from jobgate import errors
from jobgate.command import Command, Lot
from jobgate.jobs.errand import Errand
from jobgate.jobs.inputs import give
from jobgate.jobs.lots import parted
from jobgate.jobs.waiting import unattended

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from twisted.internet.interfaces import IReactorTime

    from jobgate.jobs.backlog import Backlog
    from jobgate.jobs.job import Taken
    from jobgate.jobs.journal import Journal
    from jobgate.jobs.outcomes import Outcomes

__all__ = ["Departures"]

_FOREVER: Final = float("inf")
_decode: Final = msgspec.json.Decoder(dict[str, str]).decode


class Departures:
    """
    Makes commands of jobs, and has them set out.

    Args:
        backlogs: The windows by queue.
        journal: Where starts are stored that must not be repeated.
        clock: Seconds and timers.
        outcomes: Is told what becomes of them.
    """

    def __init__(
        self,
        backlogs: Mapping[str, Backlog],
        journal: Journal,
        clock: IReactorTime,
        outcomes: Outcomes,
    ) -> None:
        self._backlogs = backlogs
        self._journal = journal
        self._clock = clock
        self._outcomes = outcomes
        # Bound once: there is one job after another.
        self._on_start = outcomes.started
        self._on_progress = outcomes.progressed
        self._deaths = outcomes.deaths

    def run(self, taken: Taken) -> None:
        """Send a job, or a lot, down its Road."""
        backlog = self._backlogs[taken.queue]
        self._enter(self._command(taken, backlog), taken, backlog)

    def fed(self, command: Command, taken: Taken) -> None:
        """It has its inputs."""
        backlog = self._backlogs[taken.queue]
        self._set_out(command, taken, backlog)
        backlog.arrivals.tell_if_here()

    def not_fed(self, command: Command, taken: Taken, error: errors.Unprocessable) -> None:
        """It cannot be given them."""
        backlog = self._backlogs[taken.queue]
        backlog.road.refuse(command, error)
        backlog.arrivals.tell_if_here()

    # --- inside

    def _command(self, taken: Taken, backlog: Backlog) -> Command:
        """What it is on its Road, which is to expect it; it is here from now on."""
        accepted = self._clock.seconds() - max(0.0, self._journal.now() - taken.created)
        ids = taken.ids
        command: Command
        if ids:
            command = Lot(
                taken.queue,
                ids,
                taken.body,
                taken.content_type,
                taken.priority,
                accepted,
                partial(self._parts, taken, backlog),
            )
            backlog.window.update(dict.fromkeys(ids, command))
        else:
            command = Command(
                taken.queue,
                taken.id,
                taken.body,
                taken.content_type,
                taken.priority,
                accepted,
                _FOREVER,
            )
            backlog.window[taken.id] = command
        command.attempt = taken.attempt
        command.deaths = self._deaths.get(taken.id, 0)
        command.caller = taken.caller
        command.graph = taken.graph
        command.on_start = self._on_start
        command.on_progress = self._on_progress
        if taken.headers:
            command.headers = _decode(taken.headers)
        command.reply = Errand(self._outcomes, command, taken)
        backlog.road.expect(command)
        return command

    def _parts(self, taken: Taken, backlog: Backlog, starts: Sequence[int]) -> list[Command]:
        """What the parts of a lot are on its Road."""
        return [self._command(each, backlog) for each in parted(taken, starts)]

    def _enter(self, command: Command, taken: Taken, backlog: Backlog) -> None:
        road = backlog.road
        if road.poison and road.poison.knows(
            command.queue, command.content_type, command.body, self._clock.seconds()
        ):
            error = errors.PoisonCommand(
                "a command with this body has killed workers within the last hour", executed="no"
            )
            self._clock.callLater(0, road.refuse, command, error)
        elif taken.inputs and not taken.fed:
            backlog.feeder.add(command, taken)
        else:
            if taken.fed:
                give(command, taken, taken.fed)
            self._set_out(command, taken, backlog)

    def _set_out(self, command: Command, taken: Taken, backlog: Backlog) -> None:
        road = backlog.road
        key = command.headers.get("jobgate-key", "") if command.headers else ""
        if not taken.once:
            road.enter(command, key=key)
            return
        command.recorded = command.attempt + 1
        backlog.arrivals.starting += 1

        def enter(_: None) -> None:
            road.enter(command, key=key)
            backlog.arrivals.started()

        unattended(self._journal.start(command.id, command.recorded, "").addCallback(enter))
