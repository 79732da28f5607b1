"""
The Road: one queue's way from admission to outcome.

Every command of a queue comes in here (`submit`), and comes back here whenever it is to wait
again. How one ends is in `outcomes`, what follows when its time is up in `overdue`. Must not know
HTTP, processes or pipes; time comes from the clock it is given.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from jobgate import errors
from jobgate.command import DONE, RUNNING, WAITING, Command, Lot
from jobgate.gate.admission import check_content, check_room, expected_wait, retry_after
from jobgate.gate.losses import after_loss
from jobgate.gate.outcomes import Outcomes
from jobgate.gate.overdue import Overdue
from jobgate.gate.poison import Poison
from jobgate.gate.runner import Runner
from jobgate.gate.shards import Shards
from jobgate.gate.stats import QueueStats

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from twisted.internet.interfaces import IReactorTime

    from jobgate.command import Waiter, Worker
    from jobgate.config import QueueConfig
    from jobgate.errors import JobgateError
    from jobgate.gate.audit import Audit
    from jobgate.gate.batching import Batching
    from jobgate.gate.losses import Loss
    from jobgate.gate.queues import CommandQueue

__all__ = ["Pool", "Road"]

_FOREVER: Final = float("inf")


class Pool(Protocol):
    """Who keeps the workers (`jobgate.pool.supervisor.Supervisor`)."""

    last_cause: str

    @property
    def crash_loop(self) -> bool:
        """No worker lives because they keep dying."""

    @property
    def retry_in(self) -> float:
        """Seconds until the next start."""

    def needed(self) -> None:
        """A command waits, and nobody can take it: there may be no worker at all."""


class Road:
    """
    One named queue: its shards, its bounds, its counters and its poison list.

    Args:
        config: The queue's configuration.
        clock: Seconds and timers.
        audit: Where acceptance and outcome are written down, if anywhere.

    Attributes:
        shards: The CommandQueues; workers of one never take from another.
        stats: What is counted.
        poison: Commands that are kept out.
        pool: Who keeps its workers.
        draining: The gate is about to go; nothing new comes in.
        outcomes: Where commands end, and which of them are with a worker.
        overdue: What follows when their time is up.
        on_room: Told when a worker has room and nothing waits, where somebody wants to know.
    """

    on_room: Callable[[], None] | None = None

    def __init__(self, config: QueueConfig, clock: IReactorTime, audit: Audit | None) -> None:
        self.config = config
        self.stats = QueueStats()
        self.poison = Poison()
        self.pool: Pool | None = None
        self.draining = False
        self._clock = clock
        self._seconds = clock.seconds
        self._audit = audit
        self.shards = Shards(config, clock)
        self.outcomes = Outcomes(clock.seconds, self.stats, audit, lambda: self.shards.waiting)
        self.outcomes.batching = self.shards.batching
        self.overdue = Overdue(clock, self.outcomes, config.timeout)
        self._deadlines = self.overdue.deadlines
        self._running = self.outcomes.running
        self._forget = self.outcomes.left
        self._runners: list[Runner] = []
        self._lanes = 0
        self._lines = config.protocol == "lines"

    def __repr__(self) -> str:
        return f"<Road {self.config.name} waiting={self.waiting} running={self.running}>"

    # --- what others ask

    @property
    def waiting(self) -> int:
        """How many commands wait."""
        return self.shards.waiting

    @property
    def running(self) -> int:
        """How many commands are with a worker and not settled."""
        return len(self._running)

    @property
    def calls(self) -> tuple[int, int]:
        """How many calls wait and how many run: what is here without being a job."""
        running = len(self._running) - sum(command.job for command in self._running)
        return self.shards.calls, running

    @property
    def jobs_waiting(self) -> int:
        """How many jobs wait here."""
        return self.shards.jobs

    @property
    def batching(self) -> Batching | None:
        """When batches go, if there are any."""
        return self.shards.batching

    @property
    def lanes(self) -> int:
        """How many commands its workers run at the same time."""
        return self._lanes

    @property
    def staffed(self) -> bool:
        """Whether it has workers of its own, so that what comes in will be taken."""
        return bool(self._runners)

    @property
    def staff(self) -> int:
        """How many workers take from it, children or not."""
        return len(self._runners)

    @property
    def free(self) -> int:
        """How many more commands could start now."""
        return 0 if self.paused else sum(runner.worker.room for runner in self._runners)

    @property
    def bytes_waiting(self) -> int:
        """The bodies of what waits, together."""
        return self.shards.size_bytes

    @property
    def paused(self) -> bool:
        """Whether an operator has stopped it."""
        return self.shards.paused

    @property
    def plain(self) -> bool:
        """Whether a command for which a worker waits needs no closer look."""
        return not (self.draining or self._lines or self.poison)

    @property
    def expected_wait(self) -> float:
        """Seconds that one more command would wait, as far as can be known."""
        if any(shard.free_now for shard in self.shards):
            return 0.0
        return expected_wait(self.waiting, self.stats.service_time, self._lanes)

    def room_in(self, count: int) -> int:
        """Whole seconds until so many that wait will have gone, at the queue's own rate."""
        return retry_after(count, self.stats.service_time, self._lanes or 1)

    def waits(self) -> list[float | None]:
        """For each shard, seconds that its first command has waited; None where nobody waits."""
        now = self._seconds()
        return [None if shard.paused else shard.longest_wait(now) for shard in self.shards]

    def refusal(self) -> str:
        """Why nothing can come in now, in words; empty if it can."""
        if self.draining:
            return "the gate is shutting down"
        if self.pool is not None and self.pool.crash_loop:
            return f"no worker lives: {self.pool.last_cause}"
        calls = self.shards.calls
        if calls >= self.config.size and not any(s.free_now for s in self.shards):
            return f"the queue is full ({calls} waiting)"
        return ""

    # --- coming in

    def submit(
        self,
        command: Command,
        *,
        key: str = "",
        no_queue: bool = False,
        waiter: Waiter | None = None,
    ) -> None:
        """
        Let a command in and on its way.

        Args:
            command: As it was made.
            key: The same key, the same shard.
            no_queue: It is refused if no worker is free.
            waiter: What its `reply` shall be; without one it is a new Deferred.

        Raises:
            JobgateError: It is refused; the error says why and when to try again.
        """
        self.stats.accepted += 1
        shards = self.shards
        shard = shards[0] if len(shards) == 1 else shards.of(key)
        free = shard.free_now
        if not (free and self.plain):
            try:
                self._admit(command, shard, free=free, no_queue=no_queue)
            except errors.JobgateError as error:
                self.stats.shed += 1
                if self._audit is not None:
                    self._audit.refused(command, error)
                raise
        queue_timeout = self.config.queue_timeout
        if queue_timeout:
            command.queue_deadline = deadline = command.accepted + queue_timeout
            if deadline < command.due:
                command.due = deadline
        command.shard = shard
        command.forget = self._forget
        command.reply = Deferred(command.leave) if waiter is None else waiter
        if self._audit is not None:
            self._audit.accepted(command)
        if command.due != _FOREVER:
            self._deadlines.add(command, command.accepted)
        shard.put(command)
        if not self._lanes and self.pool is not None:
            self.pool.needed()

    def expect(self, command: Command) -> None:
        """
        Take note of a job, which the journal has accepted and counted, before it comes in.

        Its `reply` is there already: what it ends with is the journal's to judge.
        """
        command.job = True
        command.shard = self.shards[0]
        command.forget = self._forget

    def enter(self, command: Command, *, key: str = "") -> None:
        """Let a job in that is expected, unless it was withdrawn: no bound of calls applies."""
        if command.state is WAITING:
            command.shard = self.shards.of(key)
            if isinstance(command, Lot):
                command.shard.put_lot(command)
            else:
                command.shard.put(command)

    def parted(self, lot: Lot, parts: list[Command]) -> None:
        """A lot that runs is several commands from now on."""
        self._running.discard(lot)
        self._running.update(parts)

    def refuse(self, command: Command, error: JobgateError) -> None:
        """End a job that is expected, unless it was withdrawn."""
        if self.withdraw(command):
            command.reply.errback(Failure(error))

    def withdraw(self, command: Command) -> bool:
        """Take back a command that waits, as if it had never come; False if it does not wait."""
        if command.state is not WAITING:
            return False
        self.outcomes.take_out(command)
        self.outcomes.settled(command, self._seconds())
        return True

    def _admit(self, command: Command, shard: CommandQueue, *, free: bool, no_queue: bool) -> None:
        """Raise unless the command may come in."""
        config, pool = self.config, self.pool
        if self.draining:
            raise errors.ShuttingDown("the gate finishes what it has and takes nothing new")
        check_content(command, config, self.poison)
        if free:
            return
        # While somebody lives there is no need to ask: that is for every call that has to wait.
        if not self._lanes and pool is not None and pool.crash_loop:
            raise _nobody_lives(pool)
        check_room(
            command,
            shard,
            config,
            self.stats.service_time,
            self._lanes // len(self.shards) or 1,
            no_queue=no_queue,
        )

    # --- on its way: what the Runners report

    def release(self, commands: Sequence[Command]) -> None:
        """They have gone to somebody outside: what becomes of them is not decided here any more."""
        now = self._seconds()
        for command in commands:
            self._deadlines.remove(command)
            self.outcomes.settled(command, now)

    def not_started(self, command: Command) -> None:
        """It could not be handed over: it waits again, first of all, and nothing is counted."""
        command.attempt -= 1
        self._wait_again(command)

    def declined(self, command: Command, worker: Worker) -> None:
        """This worker will not have it: another shall, unless all have declined."""
        self.stats.declined += 1
        self._deadlines.remove(command)
        if command.state is DONE:
            return
        command.attempt -= 1
        command.declined = [*(command.declined or ()), worker]
        there = [r.worker for r in self._runners if r.queue is command.shard]
        # Where nobody is at the moment, or workers come as they like, the next one is waited for.
        if there and self.config.command and all(w in command.declined for w in there):
            self.outcomes.fail(
                command,
                errors.NoWorker("all workers declined it", retry_after=1),
                self._seconds(),
            )
            return
        self._wait_again(command)

    def lost(self, command: Command, loss: Loss, *, begun: bool, alone: bool) -> None:
        """
        Its worker is lost.

        Args:
            command: What the worker had.
            loss: How it was lost.
            begun: Whether the worker may have begun it.
            alone: Whether it was the only one that had begun, or nothing had.
        """
        self._deadlines.remove(command)
        if command.state is DONE:
            command.worker = None
            return
        now = self._seconds()
        error = after_loss(command, loss, self.config, now, begun=begun, alone=alone)
        if error is not None:
            if isinstance(error, errors.PoisonCommand):
                self.poison.add(command, now)
            self.outcomes.fail(command, error, now)
            return
        self.stats.retried += begun
        self._wait_again(command)

    # --- workers come and go

    def hire(self, worker: Worker, post: int) -> Runner:
        """Put a worker to work at the shard its post belongs to."""
        runner = Runner(self.shards[post % len(self.shards)], worker, self, post)
        self._runners.append(runner)
        self._lanes += worker.lanes
        return runner

    def dismiss(self, worker: Worker) -> None:
        """It takes no more commands."""
        self._runners = [runner for runner in self._runners if runner.worker is not worker]
        self._lanes = sum(runner.worker.lanes for runner in self._runners)

    def pool_changed(self) -> None:
        """In a crash loop nobody will come for what waits: say so. Jobs can wait for longer."""
        if self.pool is not None and self.pool.crash_loop:
            for command in self._withdraw_calls():
                self.outcomes.fail(command, _nobody_lives(self.pool), self._seconds())

    # --- what operators do

    def pause(self) -> None:
        """Hand out nothing until `resume`; calls still come in and wait."""
        self.shards.pause()

    def resume(self) -> None:
        """Hand out commands again."""
        self.shards.resume()

    def drain(self) -> None:
        """
        Let nothing new in; what was accepted is to be finished, also where it was paused.

        Nor does it wait for company that cannot come.
        """
        self.draining = True
        if self.shards.batching is not None:
            self.shards.batching.hurry()
        self.resume()

    def purge(self) -> int:
        """Throw out every call that waits; returns how many."""
        count = 0
        for command in self._withdraw_calls():
            self.outcomes.purged(command)
            count += 1
        return count

    def reconfigure(self, config: QueueConfig) -> None:
        """Take on other bounds and times; what waits stays."""
        before, self.config = self.config, config
        self._lines = config.protocol == "lines"
        self.poison.clear()
        self.overdue.timeout = config.timeout
        if config.shards == before.shards and config.batch == before.batch:
            self.shards.resize(config.size)
            return
        shards, self.shards = self.shards, Shards(config, self._clock)
        self.shards.take_over(shards, self._running)
        self.outcomes.batching = self.shards.batching
        for runner in self._runners:
            runner.move(self.shards[runner.post % config.shards])

    def abandon(self) -> None:
        """The gate has no more time: everything still here ends as `shutting-down`."""
        now = self._seconds()
        for command in self._withdraw_all():
            self.outcomes.fail(command, errors.ShuttingDown("it waited still"), now)
        for command in list(self._running):
            if command.state is RUNNING:
                error = errors.ShuttingDown("its worker had it", executed="maybe")
                self.outcomes.fail(command, error, now)

    def write_to(self, audit: Audit | None) -> None:
        """Write down acceptance and outcome there from now on, if anywhere."""
        self._audit = self.outcomes.audit = audit

    def when_quiet(self) -> Deferred[None]:
        """Fires when nothing waits and nothing runs; cancel it to stop waiting."""
        return self.outcomes.when_quiet()

    def close(self) -> None:
        """Stop the clock: nothing is left."""
        self._deadlines.stop()
        self.shards.close()

    # --- inside

    def _withdraw_all(self) -> Iterator[Command]:
        """Take out everything that waits, one by one: what is done with one may settle others."""
        for command in self.shards.commands():
            if command.state is WAITING:
                self.outcomes.take_out(command)
                yield command

    def _withdraw_calls(self) -> Iterator[Command]:
        """Likewise, but jobs stay."""
        for command in self.shards.commands():
            if command.state is WAITING and not command.job:
                self.outcomes.take_out(command)
                yield command

    def _wait_again(self, command: Command) -> None:
        """Back to the head of its queue; unless nobody reads it, its time begins anew."""
        now = self._seconds()
        self._running.discard(command)
        self._deadlines.remove(command)
        command.state = WAITING
        command.worker = None
        if command.batch is not None and (not command.batch.suspect or self.batching is None):
            command.batch = None
        command.began = 0.0
        if self.config.queue_timeout and not command.job and not command.unread:
            command.queue_deadline = now + self.config.queue_timeout
        command.due = min(command.queue_deadline, command.deadline)
        if command.due != _FOREVER:
            self._deadlines.add(command, now)
        command.shard.put_back(command)
        self.pool_changed()


def _nobody_lives(pool: Pool) -> errors.NoWorker:
    return errors.NoWorker(
        f"the workers keep dying: {pool.last_cause}", retry_after=pool.retry_in + 1
    )
