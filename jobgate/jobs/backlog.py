"""
One queue's jobs between the journal and the Road: the window.

The journal may hold millions; here are those that are about to run and those that do.
How many may be here depends on who is there to take them, so a queue that nobody drains
costs no memory. Must not know what becomes of a job when it has ended.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Final

from twisted.logger import Logger

from jobgate.jobs.arrivals import Arrivals
from jobgate.jobs.demand import BYTES, Demand
from jobgate.jobs.job import State
from jobgate.jobs.lots import ids_of, parted, singles, size_of
from jobgate.jobs.tally import Tally

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

_LOW: Final = 64
"""More are taken only once there is room for so many: soon, for the urgent ones among them."""
_AT_ONCE: Final = 256
"""And so many at once, so that nobody else waits long for the journal."""
_IN_LOTS: Final = 1000
"""Likewise, where lots are not taken apart."""
_RESTED: Final = 1.0
"""Seconds after which the journal is asked again if it could not say."""


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
        tally: How many jobs there are, wherever they are.
        stored: How many are queued in the journal at the most, and not here.
        window: What is here, waiting or running, by id.
        arrivals: What is on its way here.
        demand: Who takes it, and how many.
        feeder: As given.
    """

    _log: ClassVar = Logger()

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
        self.tally = Tally(road)
        self.stored = 0
        self.window: dict[str, Command] = {}
        self.arrivals = Arrivals(feeder, run, self.apart, self._return)
        self.demand = Demand(road, feeder, self.arrivals, journal.now)
        self._journal = journal
        self._look_in = look_in
        self._taking = False

    def __repr__(self) -> str:
        return f"<Backlog {self.road.config.name} {len(self.window)} here, {self.stored} stored>"

    @property
    def busy(self) -> bool:
        """Whether there are jobs, or any on their way, or somebody who waits for them."""
        return bool(any(self.tally.open) or self.arrivals.coming or self.demand.wanted)

    # --- what comes

    def take_up(self, counts: Sequence[int]) -> None:
        """So many jobs, by state, have been found in the journal."""
        self.tally.take_up(counts)
        self.stored = counts[State.QUEUED]
        self.fill()

    def claim(self, jobs: Sequence[NewJob]) -> tuple[list[NewJob], Sequence[NewJob]]:
        """
        Those that need not go by way of the journal's backlog, and the others, which come later.

        The first are expected here until they have `arrived`, or are `not_coming`.
        """
        claimed: list[NewJob] = []
        if self.stored or self._taking or not (room := self.demand.room or self._at_hand(jobs)):
            return claimed, jobs
        arrivals = self.arrivals
        size_bytes = 0
        for at, job in enumerate(jobs):
            size_bytes += len(job.body)
            if not room or job.delay or job.needs or (claimed and size_bytes > BYTES):
                return claimed, jobs[at:]
            size = len(job.ids) or 1
            if size > room:
                first, rest = parted(job, [room])
                arrivals.coming += room
                return [*claimed, *self.apart(first)], [rest, *jobs[at + 1 :]]
            room -= size
            arrivals.coming += size
            if size > 1:
                claimed += self.apart(job)
            else:
                claimed.append(job)
        return claimed, ()

    def apart(self, job: Jobs) -> list[Jobs]:
        """
        A lot as it runs here: whole, where nobody looks at its jobs one by one.

        The queue's own workers do, and so does whoever stores starts or keeps bodies out.
        """
        whole = not job.ids or not (self.road.staffed or self.road.poison or job.once)
        return [job] if whole else singles(job)

    def not_coming(self, count: int) -> None:
        """Jobs that were claimed could not be stored, or were there already."""
        self.arrivals.coming -= count
        self.fill()
        self.arrivals.tell_if_here()

    def unclaim(self, jobs: Sequence[NewJob]) -> None:
        """Nobody will hear whether claimed jobs are stored: those that are wait there."""
        if jobs:
            self._leave([ids_of(job) for job in jobs])

    def want(self, count: int) -> None:
        """Somebody else than the queue's workers would take so many more (or, negative, fewer)."""
        self.demand.wanted += count
        if count > 0:
            self.fill()
        else:
            self.trim()

    def fill(self) -> None:
        """Take from the journal what there is room for."""
        if self.feeder.hungry:
            self.feeder.room()
        demand = self.demand
        if demand.idle > 0:
            self.trim()
        if self._taking:
            return
        # A job whose start is stored first comes only when a worker is free: calls may have it.
        self.road.on_room = self.fill if self.stored > 0 and demand.once else None
        if self.stored <= 0:
            return
        if not self.road.staffed and self.road.pool is not None:
            self.road.pool.needed()
        room = demand.room
        if room <= 0 or (room < _LOW and self.road.jobs_waiting > _LOW):
            return
        room = min(room, _AT_ONCE if self.road.staffed else _IN_LOTS)
        self._taking = True
        self.arrivals.coming += room
        known = self.stored
        taken = self._journal.take(self.road.config.name, room, BYTES)
        taken.addCallbacks(
            self._took,
            self._not_taken,
            callbackArgs=(room, known, self.arrivals.recalls),
            errbackArgs=(room,),
        )

    def _at_hand(self, jobs: Sequence[NewJob]) -> int:
        """How many of these are kept here, though nobody waits, for those who will come again."""
        road, demand = self.road, self.demand
        if road.staffed or demand.closed or road.draining or demand.once:
            return 0
        lingers = demand.lingers
        if lingers <= 0:
            return 0
        count = size_bytes = 0
        for job in jobs:
            count += len(job.ids) or 1
            size_bytes += len(job.body)
        if demand.too_many(count, size_bytes):
            # All goes to the store, and comes back in its order.
            self.clear()
            return 0
        self._look_in(lingers)
        return count

    def _took(self, jobs: list[Taken], room: int, known: int, recalls: int) -> None:
        arrivals = self.arrivals
        self._taking = False
        count = sum(map(size_of, jobs))
        arrivals.coming -= room - count
        # What was known when it was asked for and has not come is not there: taken otherwise,
        # cancelled, or ended. What has been told of since then is.
        self.stored -= count or known
        arrivals.add(jobs, recalls)
        if recalls == arrivals.recalls:
            self.fill()
        arrivals.let_in()

    def _not_taken(self, failure: Failure, room: int) -> None:
        self._taking = False
        self.arrivals.coming -= room
        self.arrivals.tell_if_here()
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
        self.arrivals.recalls += 1
        back = self.feeder.clear()
        here = dict.fromkeys(self.window.values())
        back += [command for command in here if self.road.withdraw(command)]
        if back:
            self._give_back(back)

    def trim(self) -> None:
        """Keep nothing waiting here that nobody is there to take, or is about to come for."""
        demand = self.demand
        if demand.closed:
            self.clear()
        elif demand.idle <= 0:
            return
        elif self.stored > 0 or demand.once or demand.too_many() or demand.lingers <= 0:
            # What is in the store may have its turn before what is here.
            self.clear()
        else:
            self._look_in(demand.lingers)

    def move(self, road: Road) -> None:
        """The queue has another Road; what runs on the old one ends there."""
        self._send_away()
        self.road.on_room = None
        self.road = self.feeder.road = self.demand.road = road
        self.tally.move(road)

    def close(self) -> None:
        """Let nothing more come; what runs may end."""
        self.demand.closed = True
        self._send_away()

    def _send_away(self) -> None:
        self.clear()
        self.demand.send_away()

    def _give_back(self, commands: Sequence[Command]) -> None:
        lots = [ids_of(command) for command in commands]
        for lot in lots:
            for job in lot:
                self.window.pop(job, None)
        self._leave(lots)

    def _return(self, lots: list[Sequence[str]]) -> None:
        """They have come too late."""
        self._leave(lots)
        self.fill()

    def _leave(self, lots: Sequence[Sequence[str]]) -> None:
        """Jobs that were taken, or claimed, stay in the store for now."""
        self.stored += sum(map(len, lots))
        self._journal.give_back(lots).addErrback(self._bug)

    def _bug(self, failure: Failure) -> None:
        self._log.failure("the journal lost an operation", failure=failure)
