"""
The CommandQueue: where commands wait, and the throttle.

A `DeferredQueue` whose order is priority, then arrival, and whose every operation
costs the same however many wait. Must not know what a worker or a caller is.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from twisted.internet.defer import Deferred, DeferredQueue, QueueOverflow, succeed

from jobgate.command import Command, Lot

if TYPE_CHECKING:
    from collections.abc import Iterator

    from twisted.internet.interfaces import IReactorTime

    from jobgate.command import Batch, Worker

__all__ = ["AGEING", "PRIORITIES", "CommandQueue"]

PRIORITIES: Final = 8
"""Urgency 0 (first) to 7 (last), RFC 9218 section 4.1."""
AGEING: Final = 10.0
"""Seconds after which a waiting command has risen by one level."""

Getter = Callable[[Command], None]
Line = OrderedDict[Command, None]
"""The commands of one priority in order of arrival; any of them leaves in O(1)."""


class _Pending:
    """Commands in the order in which they are to be taken: what `DeferredQueue` calls pending."""

    __slots__ = ("_clock", "_lines", "_more", "_used", "count", "job_bytes", "jobs", "size_bytes")

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._lines: list[Line] = [OrderedDict() for _ in range(PRIORITIES)]
        self._used: list[Line] = []
        # By level, how many more wait than its line is long: a lot counts as all its jobs.
        self._more = [0] * PRIORITIES
        self.count = 0
        self.jobs = 0
        self.job_bytes = 0
        self.size_bytes = 0

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Command]:
        """Everything that waits, level by level (not the order of taking)."""
        for line in self._lines:
            yield from line

    def append(self, command: Command) -> None:
        line = self._lines[command.priority]
        if not line:
            self._used.append(line)
        line[command] = None
        self.count += 1
        if command.job:
            self._count_job(command, 1)
        self.size_bytes += len(command.body)

    def push_front(self, command: Command) -> None:
        self.append(command)
        self._lines[command.priority].move_to_end(command, last=False)

    def discard(self, command: Command) -> bool:
        line = self._lines[command.priority]
        if command not in line:
            return False
        del line[command]
        self._left(line, command)
        return True

    def pop(self) -> Command:
        """Take the first one, be it a lot."""
        used = self._used
        line = used[0] if len(used) == 1 else self._most_urgent()
        command, _ = line.popitem(last=False)
        # As `_left` does: this is the way that nearly all take.
        if not line:
            used.remove(line)
        self.count -= 1
        if command.job:
            self._count_job(command, -1)
        self.size_bytes -= len(command.body)
        return command

    def pop_for(self, worker: Worker) -> Command | None:
        """Take the first one that this worker has not declined; of a lot what it takes together."""
        command = self.pop()
        if command.declined is None or worker not in command.declined:
            return self._for(worker, command) if command.job else command
        self.push_front(command)
        for other in sorted(self, key=self._urgency):
            if other.declined is None or worker not in other.declined:
                self.discard(other)
                return self._for(worker, other)
        return None

    def oldest(self) -> float | None:
        """When the first of those that came first at their levels was accepted."""
        return min((next(iter(line)).accepted for line in self._used), default=None)

    @property
    def first(self) -> Command:
        """The one that is to be taken next, if there is any."""
        line = self._used[0] if len(self._used) == 1 else self._most_urgent()
        return next(iter(line))

    def ahead_of(self, priority: int) -> int:
        levels = priority + 1
        return sum(map(len, self._lines[:levels])) + sum(self._more[:levels])

    def _left(self, line: Line, command: Command) -> None:
        if not line:
            self._used.remove(line)
        self.count -= 1
        if command.job:
            self._count_job(command, -1)
        self.size_bytes -= len(command.body)

    def _count_job(self, command: Command, sign: int) -> None:
        """A job, or a lot of them, has come (1) or gone (-1)."""
        self.jobs += sign * command.size
        self.job_bytes += sign * (len(command.body) + command.extra)
        self.size_bytes += sign * command.extra
        if isinstance(command, Lot):
            more = sign * (command.size - 1)
            self.count += more
            self._more[command.priority] += more
            command.on_parted = self._parted if sign > 0 else None

    def _for(self, worker: Worker, command: Command) -> Command:
        """Of one that was taken out, what this worker takes; the rest stands first again."""
        if not isinstance(command, Lot) or command.size <= worker.lots:
            return command
        first, rest = command.part([worker.lots])
        self.push_front(rest)
        return first

    def _parted(self, lot: Lot, parts: list[Command]) -> None:
        """A lot that waits is several commands from now on, which have its place."""
        line = self._lines[lot.priority]
        at = list(line)
        behind = at[at.index(lot) + 1 :]
        self.discard(lot)
        for part in parts:
            self.append(part)
        for other in behind:
            line.move_to_end(other)

    def _most_urgent(self) -> Line:
        return min(self._used, key=lambda line: self._urgency(next(iter(line))))

    def _urgency(self, command: Command) -> tuple[int, float]:
        risen = int((self._clock.seconds() - command.accepted) / AGEING)
        return max(0, command.priority - risen), command.accepted


class CommandQueue(DeferredQueue[Command]):
    """
    Commands on their way to a worker.

    `size` bounds how many calls wait; a command for which a Runner waits already never
    waits itself and is not counted, nor is a job: its bound was the store's. While paused
    nothing leaves.

    Attributes:
        size: How many may wait.
        paused: Whether an operator has stopped it; set it with `pause` and `resume`.
        rivals: How many others must wait with a Runner for it to say that its worker is idle.
    """

    rivals = 1
    pending: _Pending  # type: ignore[assignment]
    waiting: OrderedDict[Getter, Worker]  # type: ignore[assignment]

    def __init__(self, size: int, clock: IReactorTime) -> None:
        # What DeferredQueue would do, which would put lists where these are.
        self.size = size
        self.backlog = None
        self.pending = _Pending(clock)
        self.waiting = OrderedDict()
        self.paused = False

    def __len__(self) -> int:
        return self.pending.count

    def __repr__(self) -> str:
        return f"<CommandQueue {len(self)}/{self.size} waiting, {len(self.waiting)} workers free>"

    @property
    def calls(self) -> int:
        """How many calls wait: what `size` bounds."""
        return self.pending.count - self.pending.jobs

    @property
    def bytes_waiting(self) -> int:
        """The bodies of what waits, together."""
        return self.pending.size_bytes

    def ahead_of(self, priority: int) -> int:
        """How many of those that wait would be taken before a new one of this priority."""
        return self.pending.ahead_of(priority)

    def longest_wait(self, now: float) -> float | None:
        """Seconds since the oldest of those that wait was accepted; None if there is none."""
        oldest = self.pending.oldest()
        return None if oldest is None else now - oldest

    @property
    def free_now(self) -> bool:
        """Whether a command put now would be handed over at once."""
        return bool(self.waiting) and not self.paused

    def put(self, command: Command) -> None:
        """
        Hand the command to a Runner that waits, or let it wait.

        Raises:
            QueueOverflow: `size` calls wait already.
        """
        if self.waiting and not self.paused:
            getter, _ = self.waiting.popitem(last=False)
            getter(command)
        elif self.size is None or command.job or self.calls < self.size:
            self.pending.append(command)
        else:
            raise QueueOverflow

    def put_lot(self, lot: Lot) -> None:
        """Let those who wait have what they take of a lot, and the rest of it wait."""
        self.pending.append(lot)
        self._serve()

    def put_back(self, command: Command) -> None:
        """Return a command that was taken: it stands first, and the bound does not apply."""
        if isinstance(command, Lot):
            self.pending.push_front(command)
            self._serve()
            return
        if not self.paused:
            for getter, worker in self.waiting.items():
                if command.declined is None or worker not in command.declined:
                    del self.waiting[getter]
                    getter(command)
                    return
        self.pending.push_front(command)

    def take(self, worker: Worker) -> Command | None:
        """The next command for this worker if one waits; the way without a Deferred."""
        if not self.pending.count or self.paused:
            return None
        return self.pending.pop_for(worker)

    def get(self) -> Deferred[Command]:
        """The next command, once there is one; cancelling takes the wait back in O(1)."""
        command = self.take(ANYONE)
        if command is not None:
            return succeed(command)
        got: Deferred[Command] = Deferred(self._cancelGet)
        self.waiting[got.callback] = ANYONE
        return got

    def wait(self, getter: Getter, worker: Worker) -> None:
        """
        What `get` does, for a Runner: without a Deferred.

        Args:
            getter: Is given the next command that the worker has not declined, once.
            worker: Whom it is for; while it is idle it comes before all that are not.
        """
        self.waiting[getter] = worker
        if worker.idle:
            self.waiting.move_to_end(getter, last=False)

    def prefer(self, getter: Getter) -> None:
        """Serve this wait before all others: its worker has become idle."""
        if getter in self.waiting:
            self.waiting.move_to_end(getter, last=False)

    def leave(self, getter: Getter) -> None:
        """Take a wait back; harmless if there is none."""
        self.waiting.pop(getter, None)

    def discard(self, command: Command) -> bool:
        """Take out a command that waits; False if it does not wait here."""
        return self.pending.discard(command)

    def close(self) -> None:
        """It is used no more."""

    def pause(self) -> None:
        """Let nothing leave until `resume`."""
        self.paused = True

    def resume(self) -> None:
        """Let commands leave again, to the Runners that wait."""
        self.paused = False
        self._serve()

    def _serve(self) -> None:
        """Hand out what waits to those who wait."""
        for getter, worker in list(self.waiting.items()):
            if not self.pending.count:
                break
            command = self.take(worker) if getter in self.waiting else None
            if command is not None:
                del self.waiting[getter]
                getter(command)

    def _cancelGet(self, d: Deferred[Command]) -> None:
        self.leave(d.callback)


class _Anyone:
    """A taker that is no worker; nothing is ever declined by it."""

    name = ""
    output = ""
    takes_batches = False
    lots = 1
    room = 1
    lanes = 1
    idle = True

    def send(self, command: Command) -> bool:
        """Never called: a bare `get` hands the command to its caller."""
        raise NotImplementedError

    def send_batch(self, batch: Batch) -> bool:
        """Never called, likewise."""
        raise NotImplementedError

    def cancel(self, command: Command) -> None:
        """Never called, likewise."""

    def overran(self, cause: str) -> None:
        """Never called, likewise."""


ANYONE = _Anyone()
