"""
A CommandQueue whose commands leave together.

What waits for company waits here, like everything else: until its batch goes a command can be
cancelled, overtaken and thrown out as in any queue. When a batch goes is decided in `batching`;
a Runner is given the first member as from any queue, and asks for its `company`. Whoever takes
no batches, as pullers do, has no use for company and is never kept waiting for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from twisted.internet.defer import QueueOverflow

from jobgate.command import Batch
from jobgate.gate.queues import CommandQueue, Getter

if TYPE_CHECKING:
    from twisted.internet.interfaces import IDelayedCall, IReactorTime

    from jobgate.command import Command, Lot, Worker
    from jobgate.gate.batching import Batching

__all__ = ["BatchQueue"]

_NEVER: Final = float("inf")


class BatchQueue(CommandQueue):
    """
    Commands on their way to a worker, many at a time.

    Args:
        size: How many calls may wait while no Runner does.
        clock: Seconds and timers.
        batching: When a batch goes.
    """

    rivals = 0

    def __init__(self, size: int, clock: IReactorTime, batching: Batching) -> None:
        super().__init__(size, clock)
        self._clock = clock
        self._batching = batching
        self._idle_since: dict[Getter, float] = {}
        self._must_go = _NEVER
        self._newest = 0.0
        self._next = _NEVER
        self._timer: IDelayedCall | None = None

    # --- what differs from other queues

    @property
    def free_now(self) -> bool:
        """Whether a command put now would have its place in a batch that a Runner waits for."""
        return (
            bool(self.waiting)
            and not self.paused
            and not self._batching.full(self.pending.count, 0)
        )

    def longest_wait(self, now: float) -> float | None:
        """Seconds since the oldest was accepted; None if all there is to wait for is company."""
        idle = not self.paused and any(worker.idle for worker in self.waiting.values())
        return None if idle else super().longest_wait(now)

    def put(self, command: Command) -> None:
        """
        Let the command wait, and all go that now may.

        Raises:
            QueueOverflow: `size` calls wait already, and for this one no Runner does.
        """
        pending = self.pending
        if not (self.size is None or command.job or self.calls < self.size or self.free_now):
            raise QueueOverflow
        pending.append(command)
        batching = self._batching
        must_go = batching.must_go(command.accepted, command.deadline, command.queue_deadline)
        if must_go < self._must_go:
            self._must_go = must_go
        self._newest = command.accepted
        # One more makes a difference if it is the first, the last, or in a hurry.
        if self.waiting and (
            pending.count == 1
            or must_go < self._next
            or batching.full(pending.count, pending.size_bytes)
        ):
            self._look()

    def put_lot(self, lot: Lot) -> None:
        """Let a lot wait, and all go that now may."""
        self._newest = lot.accepted
        super().put_lot(lot)

    def put_back(self, command: Command) -> None:
        """Return a command that was taken; those who are returned with it come first."""
        self.pending.push_front(command)
        self._must_go = -_NEVER
        self._look_at(self._clock.seconds())

    def take(self, worker: Worker) -> Command | None:
        """The first member of a batch, if one may go to this worker now."""
        if not self.pending.count or self.paused:
            return None
        now = self._clock.seconds()
        if self._goes_at(worker, now if worker.idle else None, now) > now:
            return None
        return super().take(worker)

    def company(self, first: Command, worker: Worker) -> Batch:
        """
        With whom a command goes that has just been taken.

        These are the next ones in the queue's order, up to the first that does not fit. Nobody
        mixes with those who may have killed a worker.
        """
        pending, batching, suspects = self.pending, self._batching, first.batch
        if suspects is not None:
            members = [
                member
                for member in suspects.members
                if member is first
                or (
                    member.batch is suspects
                    and (member.declined is None or worker not in member.declined)
                    and pending.discard(member)
                )
            ]
            return Batch(members, suspect=True)
        members, size_bytes = [first], len(first.body) + first.extra
        size, max_bytes, pop = batching.size, batching.max_bytes, pending.pop_for
        while pending.count and len(members) < size:
            command = pop(worker)
            if command is None:
                break
            size_bytes += len(command.body) + command.extra
            if command.batch is not None or size_bytes > max_bytes:
                pending.push_front(command)
                break
            members.append(command)
        self._must_go = -_NEVER if pending.count else _NEVER
        return Batch(members)

    def wait(self, getter: Getter, worker: Worker) -> None:
        """Be given the first member of the next batch, once one may go."""
        super().wait(getter, worker)
        if worker.idle:
            self._idle_since[getter] = self._clock.seconds()
        if self.pending.count:
            self._look()

    def prefer(self, getter: Getter) -> None:
        """Serve this wait before all others: its worker has become idle."""
        super().prefer(getter)
        if getter in self.waiting:
            self._idle_since[getter] = self._clock.seconds()
            self._look()

    def leave(self, getter: Getter) -> None:
        """Take a wait back; harmless if there is none."""
        super().leave(getter)
        self._idle_since.pop(getter, None)

    def close(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # --- inside

    def _serve(self) -> None:
        self._look()

    def _look(self) -> None:
        """Let everything go that may, and see to it that the rest is looked at in time."""
        self._next = _NEVER
        while self.pending.count and self.waiting and not self.paused:
            now = self._clock.seconds()
            soonest = _NEVER
            for getter, worker in self.waiting.items():
                at = self._goes_at(worker, self._idle_since.get(getter), now)
                if at <= now:
                    first = super().take(worker)
                    if first is not None:
                        break
                elif at < soonest:
                    soonest = at
            else:
                self._next = soonest
                if soonest != _NEVER:
                    self._look_at(soonest)
                return
            self.leave(getter)
            getter(first)

    def _goes_at(self, worker: Worker, idle_since: float | None, now: float) -> float:
        """When a batch goes to this worker, as things stand."""
        pending, batching = self.pending, self._batching
        if not worker.takes_batches:
            return now
        if pending.first.batch is not None:
            # Suspects go alone, to a worker that has nothing else to lose.
            return now if worker.idle else _NEVER
        if batching.full(pending.count, pending.size_bytes):
            return now
        oldest = pending.oldest()
        assert oldest is not None, "somebody waits"
        at = batching.goes_at(oldest, self._newest, idle_since)
        if self._must_go <= now < at:
            # It was for the sake of somebody who may have left since.
            self._must_go = min(
                batching.must_go(each.accepted, each.deadline, each.queue_deadline)
                for each in pending
            )
        return min(at, self._must_go)

    def _look_at(self, when: float) -> None:
        """Look at that time, or before."""
        if self._timer is not None:
            if self._timer.getTime() <= when:
                return
            self._timer.cancel()
        self._timer = self._clock.callLater(max(0.0, when - self._clock.seconds()), self._time)

    def _time(self) -> None:
        self._timer = None
        self._look()
