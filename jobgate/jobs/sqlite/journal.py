"""
The Journal's face on SQLite: every operation as a Deferred.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, ClassVar, Final

from twisted.internet.defer import Deferred, fail
from twisted.logger import Logger
from twisted.python.failure import Failure

from jobgate.errors import StoreUnavailable
from jobgate.jobs.sqlite import asking, entering, leases, running, schema, upkeep
from jobgate.jobs.sqlite.groups import Groups
from jobgate.jobs.sqlite.operations import Kind, Operation
from jobgate.jobs.sqlite.writer import InlineWriter, ThreadWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from jobgate.jobs.job import Change, Ending, Job, NewJob, Reply, State, Taken, Try
    from jobgate.jobs.journal import Due, Graph, Kept, Key, Leased, LeaseTerms, Stored
    from jobgate.jobs.sqlite.writer import Writer

__all__ = ["SqliteJournal"]

_OPERATIONS: Final = 100_000
"""Operations that may be under way; beyond it the store says so."""
_BYTES: Final = 64 << 20
"""And the bytes of their bodies."""


class SqliteJournal:
    """
    A store of jobs in a file, or in memory.

    Args:
        path: The file, made when the first job is put; or `:memory:`.
        reactor: Where Deferreds fire.
        clock: Seconds that never go back.
        wall: Seconds since the epoch; asked once, at the opening.
        inline: Run everything at once, in the calls that ask for it: for tests, which then need
            a reactor with timers (a `Clock` does) in place of one with threads.

    Attributes:
        now: The store's time.
    """

    now: Callable[[], float]

    _log: ClassVar = Logger()

    def __init__(
        self,
        path: str,
        reactor: Any,  # noqa: ANN401 (IReactorTime, and -FromThreads: no type can say both)
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        inline: bool = False,
    ) -> None:
        self._path = path
        self._groups = Groups(path, clock, wall)
        # Asked several times for a job.
        self.now = self._groups.now
        self._writer: Writer = (
            InlineWriter(self._groups, self._tell, reactor, at_once=inline)
            if inline or path == schema.MEMORY
            else ThreadWriter(self._groups, self._tell, reactor)
        )
        self._listener: Callable[[Sequence[Change]], None] = _nobody
        self._begun: dict[str, Operation] = {}
        self._begun_in = self._writer.submitted
        self._under_way = 0
        self._bytes = 0
        self._closed: Deferred[None] | None = None

    @property
    def durability(self) -> str:
        """`fsync` or `memory`, for `Jobgate-Durability`."""
        return "memory" if self._path == schema.MEMORY else "fsync"

    @property
    def trouble(self) -> str:
        """Why it cannot store now, in words; empty while it can."""
        return self._groups.trouble

    @property
    def writes(self) -> int:
        """Steps stored so far."""
        return self._groups.writes

    # --- its life

    def open(self, listener: Callable[[Sequence[Change]], None]) -> Deferred[dict[str, list[int]]]:
        """Open it; the listener is told of jobs that ended by the opening, too."""
        self._listener = listener
        return self._writer.open()

    def close(self) -> Deferred[None]:
        """Store what is under way, then close."""
        if self._closed is not None:
            return fail(StoreUnavailable("the store is closed"))
        self._closed = self._writer.close()
        return self._closed

    # --- in

    def put(
        self,
        jobs: Sequence[NewJob],
        *,
        claim: int = 0,
        key: Key | None = None,
        graph: str = "",
        limits: dict[str, int] | None = None,
    ) -> Deferred[Stored]:
        """Store jobs, all or none."""
        size = 0
        for job in jobs:
            size += len(job.body) + 200
        return self._do(Kind.WRITE, entering.put, jobs, claim, key, graph, limits, size=size)

    # --- out, and back

    def take(self, queue: str, count: int, max_bytes: int) -> Deferred[list[Taken]]:
        """Take queued jobs to run them here."""
        return self._do(Kind.HOLD, running.take, queue, count, max_bytes)

    def give_back(self, lots: Sequence[Sequence[str]]) -> Deferred[None]:
        """Leave what was taken, and not started, for another `take`."""
        return self._do(Kind.LASTING, running.give_back, lots)

    def start(self, id: str, attempt: int, worker: str) -> Deferred[None]:  # noqa: A002
        """A job of ours starts."""
        return self._do(Kind.LASTING, running.start, id, attempt, worker)

    def finish(self, id: str, attempt: int, ending: Ending) -> Deferred[bool]:  # noqa: A002
        """An attempt has ended."""
        return self._do(
            Kind.LASTING, running.finish, id, attempt, ending, size=_size_of_ending(ending)
        )

    def note_start(self, id: str, attempt: int, worker: str) -> None:  # noqa: A002
        """As `start`, where nobody waits for it."""
        if self._begun_in is not self._writer.submitted:
            self._begun_in = self._writer.submitted
            self._begun.clear()
        note = self._begun[id] = Operation(running.start, (id, attempt, worker), Kind.LASTING, None)
        self._note(note)

    def note_finish(self, id: str, attempt: int, ending: Ending) -> None:  # noqa: A002
        """As `finish`, likewise."""
        size = _size_of_ending(ending)
        if self._begun_in is self._writer.submitted:
            # What has begun in this turn, too, is one step for the store.
            begun = self._begun.pop(id, None)
            if begun is not None and begun.args[1] == attempt:
                begun.step = running.run
                begun.args += (ending,)
                begun.size = size
                self._bytes += size
                return
        self._note(Operation(running.finish, (id, attempt, ending), Kind.LASTING, None, size))

    def finish_waiting(self, id: str, ending: Ending) -> Deferred[bool]:  # noqa: A002
        """End a job that has not started (again)."""
        return self._do(Kind.LASTING, running.finish_waiting, id, ending)

    def consume(self, lots: Sequence[tuple[Sequence[str], int]]) -> Deferred[None]:
        """Jobs of ours are a puller's for good."""
        return self._do(Kind.LASTING, running.consume, lots)

    # --- leases

    def lease(
        self, lots: Sequence[tuple[Sequence[str], int]], terms: LeaseTerms
    ) -> Deferred[Leased]:
        """Jobs of ours start with a puller."""
        return self._do(Kind.WRITE, leases.lease, lots, terms)

    def leased(self, lease: str) -> Deferred[Leased | None]:
        """A lease that lives, or has been ended by `finish_lease` lately."""
        return self._do(Kind.READ, leases.leased, lease)

    def leased_by_key(self, key: Key) -> Deferred[tuple[Leased, list[Taken]] | None]:
        """The living lease that this key was used for."""
        return self._do(Kind.READ, leases.leased_by_key, key)

    def extend(self, lease: str, seconds: float) -> Deferred[Leased | None]:
        """Let it last for so many seconds from now."""
        return self._do(Kind.WRITE, leases.extend, lease, seconds)

    def finish_lease(self, lease: str, ending: Ending) -> Deferred[bool]:
        """All that it covers has ended so."""
        return self._do(Kind.WRITE, leases.finish_lease, lease, ending)

    # --- what people ask for

    def get(self, id: str) -> Deferred[Job | None]:  # noqa: A002
        """A job."""
        return self._do(Kind.READ, asking.get, id)

    def body(self, id: str) -> Deferred[tuple[str, bytes] | None]:  # noqa: A002
        """A job's content type and body."""
        return self._do(Kind.READ, asking.body, id)

    def result(self, id: str) -> Deferred[Reply | None]:  # noqa: A002
        """A job's reply."""
        return self._do(Kind.READ, asking.result, id)

    def tries(self, id: str) -> Deferred[list[Try]]:  # noqa: A002
        """The attempts that failed."""
        return self._do(Kind.READ, asking.tries, id)

    def page(
        self, queue: str, state: State | None, limit: int, after: str
    ) -> Deferred[tuple[list[Job], str]]:
        """Jobs, newest first."""
        return self._do(Kind.READ, asking.page, queue, state, limit, after)

    def ahead(self, id: str) -> Deferred[int]:  # noqa: A002
        """How many queued jobs of the same queue have their turn before this one."""
        return self._do(Kind.READ, asking.ahead, id)

    def graph(self, id: str, *, needs: bool = True) -> Deferred[Graph | None]:  # noqa: A002
        """A graph with all its jobs, and perhaps with what they need."""
        return self._do(Kind.READ, asking.graph, id, needs)

    def named(self, graph: str, names: Sequence[str]) -> Deferred[dict[str, str]]:
        """The ids of a graph's jobs by name."""
        return self._do(Kind.READ, asking.named, graph, names)

    def endings(self, ids: Sequence[str], max_bytes: int) -> Deferred[dict[str, Ending]]:
        """How jobs have ended."""
        return self._do(Kind.READ, asking.endings, ids, max_bytes)

    def unended(self, graph: str) -> Deferred[tuple[str, list[str]] | None]:
        """Whose a graph is, and the ids of its jobs that have not ended."""
        return self._do(Kind.READ, asking.unended, graph)

    def kept(self, key: Key) -> Deferred[Kept | None]:
        """What a key stands for."""
        return self._do(Kind.READ, entering.kept, key)

    def cancel(self, id: str, reason: str) -> Deferred[Job | None]:  # noqa: A002
        """End a job, or all jobs of a graph, as `CANCELLED`."""
        return self._do(Kind.WRITE, upkeep.cancel, id, reason)

    def retry(self, id: str) -> Deferred[bool]:  # noqa: A002
        """Queue a `DEAD` or `FAILED` job anew."""
        return self._do(Kind.WRITE, upkeep.retry, id)

    def forget(self, id: str) -> Deferred[None]:  # noqa: A002
        """Remove a job that has ended, and its key."""
        return self._do(Kind.LASTING, upkeep.forget, id)

    def purge(self, queue: str) -> Deferred[int]:
        """Cancel all that waits in a queue and is not taken, drop its dead."""
        return Deferred.fromCoroutine(self._purge(queue))

    # --- time

    def sweep(self) -> Deferred[Due]:
        """Do what time demands."""
        return self._do(Kind.UPKEEP, upkeep.sweep)

    # --- inside

    async def _purge(self, queue: str) -> int:
        # In slices, so that a million jobs neither fill the memory nor hold up everyone.
        total = below = 0
        while True:
            slice_: Deferred[tuple[int, int]] = self._do(Kind.WRITE, upkeep.purge, queue, below)
            count, below = await slice_
            total += count
            if not count:
                return total

    def _do(
        self, kind: Kind, step: Callable[..., object], *args: object, size: int = 0
    ) -> Deferred[Any]:
        if self._closed is not None:
            return fail(StoreUnavailable("the store is closed"))
        if kind is not Kind.LASTING and (
            self._under_way >= _OPERATIONS or (size and self._bytes and self._bytes + size > _BYTES)
        ):
            return fail(StoreUnavailable("the store cannot keep up", retry_after=1.0))
        self._under_way += 1
        self._bytes += size
        deferred: Deferred[Any] = Deferred()
        self._writer.submit(Operation(step, args, kind, deferred, size))
        return deferred

    def _note(self, operation: Operation) -> None:
        """What `_do` does, without a Deferred: there is one job after another."""
        if self._closed is None:
            self._under_way += 1
            self._bytes += operation.size
            self._writer.submit(operation)

    def _tell(self, changes: Sequence[Change], done: Sequence[Operation]) -> None:
        if changes:
            try:
                self._listener(changes)
            except Exception:  # noqa: BLE001 (those who wait must be told all the same)
                self._log.failure("a listener of the store failed")
        self._under_way -= len(done)
        for operation in done:
            self._bytes -= operation.size
            outcome, deferred = operation.outcome, operation.deferred
            if deferred is None:
                if outcome.__class__ is Failure and self._closed is None:
                    self._log.failure("{operation!r} was lost", outcome, operation=operation)
            elif outcome.__class__ is Failure:
                deferred.errback(outcome)
            else:
                deferred.callback(outcome)


def _size_of_ending(ending: Ending) -> int:
    size = len(ending.reply.body) if ending.reply is not None else 0
    for job in ending.jobs:
        size += len(job.body) + 200
    return size


def _nobody(changes: Sequence[Change]) -> None:
    """Nobody listens yet."""
