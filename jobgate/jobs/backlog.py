"""
One queue's jobs between the journal and the Road: the window.

The journal may hold millions; here are those that are about to run and those that do.
How many may be here depends on who is there to take them, so a queue that nobody drains
costs no memory. Must not know what becomes of a job when it has ended.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Protocol

from twisted.logger import Logger

from jobgate.jobs.job import TERMINAL, State
from jobgate.jobs.lots import ids_of, parted, singles, size_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from twisted.python.failure import Failure

    from jobgate.command import Command
    from jobgate.gate.road import Road
    from jobgate.jobs.inputs import Feeder
    from jobgate.jobs.job import NewJob, Taken
    from jobgate.jobs.journal import Journal
    from jobgate.jobs.lots import Jobs

__all__ = ["Backlog"]

_WINDOW = 1024
"""
Jobs that wait here for the queue's own workers.

So large that a burst need not go through the journal's backlog: what comes by that way is read
again, and costs half as much again.
"""
_LOW = 64
"""More are taken only once there is room for so many: soon, for the urgent ones among them."""
_AT_ONCE = 256
"""And so many at once, so that nobody else waits long for the journal."""
_IN_LOTS = 1000
"""Likewise, where lots are not taken apart."""
_BYTES = 16 * 1024 * 1024
"""Their bodies, together, about."""
_LINGER = 5.0
"""Seconds for which a queue that was pulled from keeps what comes at hand: who pulls comes back."""
_AT_HAND, _AT_HAND_BYTES = 256, 64 * 1024
"""As long as it is all that is queued, and no more than so many jobs and bytes of bodies."""
_RESTED = 1.0
"""Seconds after which the journal is asked again if it could not say."""


class Puller(Protocol):
    """Somebody from outside who waits for commands."""

    def end(self) -> None:
        """Wait no longer."""


class Backlog:
    """
    The window of one queue.

    Args:
        road: Where its jobs run.
        journal: Where they come from.
        run: Makes a job, or a lot, a command here and on the Road.
        feeder: Has those that wait for their inputs before they get there.
        look_in: Has `fill` called within so many seconds.

    Attributes:
        open: Jobs that have not ended, by state (blocked, scheduled, queued, running).
        stored: How many are queued in the journal at the most, and not here.
        window: What is here, waiting or running, by id.
        wanted: How many somebody else than the queue's workers would take.
        pulls: Who that is.
        starting: How many are here whose start is being stored.
        recalls: How often all that only waited here was given back: what was on its way then
            goes back as well, since it must not pass that by.
        closed: Nothing more comes.
    """

    _log = Logger()

    def __init__(
        self,
        road: Road,
        journal: Journal,
        run: Callable[[Taken], None],
        feeder: Feeder,
        look_in: Callable[[float], None],
    ) -> None:
        self.road = road
        self.feeder = feeder
        self.open = [0, 0, 0, 0]
        self.stored = 0
        self.window: dict[str, Command] = {}
        self._journal = journal
        self._run = run
        self._look_in = look_in
        self.wanted = 0
        self.pulls: set[Puller] = set()
        self.starting = 0
        self.recalls = 0
        self.closed = False
        self._coming = 0
        self._taking = False
        self._pulled = -_LINGER
        self._arrivals: deque[tuple[Taken, int]] = deque()
        self._letting_in = False
        self._when_here: list[Callable[[], None]] = []

    def __repr__(self) -> str:
        return f"<Backlog {self.road.config.name} {len(self.window)} here, {self.stored} stored>"

    @property
    def once(self) -> bool:
        """Whether a job's start must be stored before it starts, as it must never be repeated."""
        return self.road.config.retry == "never"

    @property
    def room(self) -> int:
        """How many more jobs may come here."""
        road = self.road
        if self.closed or road.draining:
            return 0
        most = self.wanted
        if road.staffed:
            most += road.free if self.once else _WINDOW
        if not most:
            return 0
        here = road.jobs_waiting
        if here and road.bytes_waiting >= _BYTES:
            return 0
        return max(0, most - here - self.feeder.hungry - self._coming)

    @property
    def busy(self) -> bool:
        """Whether there are jobs, or any on their way, or somebody who waits for them."""
        return bool(any(self.open) or self._coming or self.wanted)

    @property
    def waiting(self) -> int:
        """Everything that waits in the queue: calls, and jobs wherever they are."""
        blocked, scheduled, queued, _ = self.open
        return self.road.calls[0] + blocked + scheduled + queued

    @property
    def running(self) -> int:
        """Everything that runs."""
        return self.road.calls[1] + self.open[3]

    # --- what is counted

    def take_up(self, counts: Sequence[int]) -> None:
        """So many jobs, by state, have been found in the journal."""
        self.open = list(counts[: len(self.open)])
        self.stored = counts[State.QUEUED]
        self.road.stats.accepted += sum(counts)
        self.fill()

    def count(self, state: State, before: State | None, size: int) -> None:
        """So many have changed their state: what is accepted has ended, or waits, or runs."""
        stats = self.road.stats
        if before is None or before >= TERMINAL:
            stats.accepted += size
            if before is not None:
                stats.retried += size
        else:
            self.open[before] -= size
        if state < TERMINAL:
            self.open[state] += size
        elif state == State.SUCCEEDED:
            stats.succeeded += size
        elif state == State.CANCELLED:
            stats.cancelled += size
        else:
            stats.failed += size

    def refuse(self, size: int) -> None:
        """So many could not be stored: refused is accepted, then shed."""
        stats = self.road.stats
        stats.accepted += size
        stats.shed += size

    # --- what comes

    def claim(self, jobs: Sequence[NewJob]) -> tuple[list[NewJob], Sequence[NewJob]]:
        """
        Those that need not go by way of the journal's backlog, and the others, which come later.

        The first are expected here until `arrived` or `not_coming`.
        """
        claimed: list[NewJob] = []
        if self.stored or self._taking or not (room := self.room or self._at_hand(jobs)):
            return claimed, jobs
        size_bytes = 0
        for at, job in enumerate(jobs):
            size_bytes += len(job.body)
            if not room or job.delay or job.needs or (claimed and size_bytes > _BYTES):
                return claimed, jobs[at:]
            size = len(job.ids) or 1
            if size > room:
                first, rest = parted(job, [room])
                self._coming += room
                return [*claimed, *self.apart(first)], [rest, *jobs[at + 1 :]]
            room -= size
            self._coming += size
            if size > 1:
                claimed += self.apart(job)
            else:
                claimed.append(job)
        return claimed, ()

    def arrived(self, jobs: Sequence[Taken], recalls: int) -> None:
        """Jobs that were claimed, or taken, when there had been so many recalls: they run."""
        self._arrive(jobs, recalls)
        self._let_in()

    def apart(self, job: Jobs) -> list[Jobs]:
        """
        A lot as it runs here: whole, where nobody looks at its jobs one by one.

        The queue's own workers do, and so does whoever stores starts or keeps bodies out.
        """
        whole = not job.ids or not (self.road.staffed or self.road.poison or job.once)
        return [job] if whole else singles(job)

    def not_coming(self, count: int) -> None:
        """Jobs that were claimed could not be stored, or were there already."""
        self._coming -= count
        self.fill()
        self._tell_if_here()

    def unclaim(self, jobs: Sequence[NewJob]) -> None:
        """Nobody will hear whether claimed jobs are stored: those that are wait there."""
        if jobs:
            self._leave([ids_of(job) for job in jobs])

    def pulled(self) -> None:
        """Somebody else than the queue's workers has come for some, and may come again."""
        self._pulled = self._journal.now()

    def want(self, count: int) -> None:
        """Somebody else than the queue's workers would take so many more (or, negative, fewer)."""
        self.wanted += count
        if count > 0:
            self.fill()
        else:
            self.trim()

    def fill(self) -> None:
        """Take from the journal what there is room for."""
        if self.feeder.hungry:
            self.feeder.room()
        if self._idle > 0:
            self.trim()
        if self._taking:
            return
        # A job whose start is stored first comes only when a worker is free: calls may have it.
        self.road.on_room = self.fill if self.stored > 0 and self.once else None
        if self.stored <= 0:
            return
        if not self.road.staffed and self.road.pool is not None:
            self.road.pool.needed()
        room = self.room
        if room <= 0 or (room < _LOW and self.road.jobs_waiting > _LOW):
            return
        room = min(room, _AT_ONCE if self.road.staffed else _IN_LOTS)
        self._taking = True
        self._coming += room
        known = self.stored
        taken = self._journal.take(self.road.config.name, room, _BYTES)
        taken.addCallbacks(
            self._took,
            self._not_taken,
            callbackArgs=(room, known, self.recalls),
            errbackArgs=(room,),
        )

    @property
    def _lingers(self) -> float:
        """Seconds for which those who have pulled are still expected to come again."""
        return self._pulled + _LINGER - self._journal.now()

    @property
    def _idle(self) -> int:
        """How many are here, or about to be, for nobody who waits; workers are as good as such."""
        road = self.road
        if road.staffed:
            return 0
        return road.jobs_waiting + self.feeder.hungry + self._coming - self.wanted

    def _at_hand(self, jobs: Sequence[NewJob]) -> int:
        """How many of these are kept here, though nobody waits, for those who will come again."""
        road = self.road
        if road.staffed or self.closed or road.draining or self.once:
            return 0
        lingers = self._lingers
        if lingers <= 0:
            return 0
        count = size_bytes = 0
        for job in jobs:
            count += len(job.ids) or 1
            size_bytes += len(job.body)
        if self._idle + count > _AT_HAND or road.bytes_waiting + size_bytes > _AT_HAND_BYTES:
            # All goes to the store, and comes back in its order.
            self.clear()
            return 0
        self._look_in(lingers)
        return count

    def when_here(self, call: Callable[[], None]) -> None:
        """Call once nothing is on its way here from the journal any more; perhaps now."""
        self._when_here.append(call)
        self._tell_if_here()

    def fed(self) -> None:
        """A job that waited for its inputs has them, or waits no more."""
        self._tell_if_here()

    def started(self) -> None:
        """The start of a job has been stored."""
        self.starting -= 1
        self._tell_if_here()

    def _tell_if_here(self) -> None:
        if self._when_here and not self._coming and not self.feeder.hungry and not self.starting:
            calls, self._when_here = self._when_here, []
            for call in calls:
                call()

    def _took(self, jobs: list[Taken], room: int, known: int, recalls: int) -> None:
        self._taking = False
        count = sum(map(size_of, jobs))
        self._coming -= room - count
        # What was known when it was asked for and has not come is not there: taken otherwise,
        # cancelled, or ended. What has been told of since then is.
        self.stored -= count or known
        self._arrive(jobs, recalls)
        if recalls == self.recalls:
            self.fill()
        self._let_in()

    def _arrive(self, jobs: Sequence[Taken], recalls: int) -> None:
        for job in jobs:
            if job.ids:
                self._arrivals.extend([(each, recalls) for each in self.apart(job)])
            else:
                self._arrivals.append((job, recalls))

    def _let_in(self) -> None:
        """Let those that have arrived run, one behind the other, whatever each of them leads to."""
        if self._letting_in:
            return
        self._letting_in = True
        back = []
        try:
            while self._arrivals:
                job, recalls = self._arrivals.popleft()
                self._coming -= len(job.ids) or 1
                if self.closed or recalls != self.recalls:
                    back.append(ids_of(job))
                else:
                    self._run(job)
        finally:
            self._letting_in = False
        if back:
            self._leave(back)
            self.fill()
        self._tell_if_here()

    def _not_taken(self, failure: Failure, room: int) -> None:
        self._taking = False
        self._coming -= room
        self._tell_if_here()
        self._log.warn(
            "{queue}: jobs stay in the store: {why}",
            queue=self.road.config.name,
            why=failure.getErrorMessage(),
        )
        self._look_in(_RESTED)

    # --- what goes

    def left(self, *commands: Command) -> None:
        """They are here no more: they have ended, or wait for their next attempt in the journal."""
        window = self.window
        here = len(window)
        for command in commands:
            for job in command.ids or (command.id,):
                window.pop(job, None)
        if len(window) < here:
            self.fill()

    def give_back(self, command: Command) -> None:
        """It could not start here: it waits in the journal, as if it had never come."""
        self._give_back([command])
        self.fill()

    def clear(self) -> None:
        """Give back to the journal everything that only waits here, or is on its way here."""
        self.recalls += 1
        back = self.feeder.clear()
        here = dict.fromkeys(self.window.values())
        back += [command for command in here if self.road.withdraw(command)]
        if back:
            self._give_back(back)

    def trim(self) -> None:
        """Keep nothing waiting here that nobody is there to take, or is about to come for."""
        idle = self._idle
        if self.closed:
            self.clear()
        elif idle <= 0:
            return
        elif (
            self.stored > 0
            or self.once
            or idle > _AT_HAND
            or self.road.bytes_waiting > _AT_HAND_BYTES
            or self._lingers <= 0
        ):
            # What is in the store may have its turn before what is here.
            self.clear()
        else:
            self._look_in(self._lingers)

    def move(self, road: Road) -> None:
        """The queue has another Road; what runs on the old one ends there."""
        self._send_away()
        self.road.on_room = None
        self.road = self.feeder.road = road
        road.stats.accepted += sum(self.open)

    def close(self) -> None:
        """Let nothing more come; what runs may end."""
        self.closed = True
        self._send_away()

    def _send_away(self) -> None:
        self.clear()
        for pull in tuple(self.pulls):
            pull.end()

    def _give_back(self, commands: Sequence[Command]) -> None:
        lots = [ids_of(command) for command in commands]
        for lot in lots:
            for job in lot:
                self.window.pop(job, None)
        self._leave(lots)

    def _leave(self, lots: Sequence[Sequence[str]]) -> None:
        """Jobs that were taken, or claimed, stay in the store for now."""
        self.stored += sum(map(len, lots))
        self._journal.give_back(lots).addErrback(self._bug)

    def _bug(self, failure: Failure) -> None:
        self._log.failure("the journal lost an operation", failure=failure)
