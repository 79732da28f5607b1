"""
The Runner: takes commands from one queue and runs them at one worker.

It takes the next command when its worker has room, never earlier, and always settles
what it took. Must not know how the worker is reached or what a caller is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from twisted.logger import Logger

from jobgate.command import RUNNING
from jobgate.gate.batch_queue import BatchQueue

if TYPE_CHECKING:
    from jobgate.command import Command, Reply, Worker
    from jobgate.errors import JobgateError
    from jobgate.gate.losses import Loss
    from jobgate.gate.queues import CommandQueue
    from jobgate.gate.road import Road

__all__ = ["Runner"]


class Runner:
    """
    Drives one worker.

    A Runner's wait in the queue is its worker's place among the free ones. The next
    command is handed over before the last reply is passed on, so the worker is never
    kept waiting for a caller.

    Args:
        queue: Where commands come from.
        worker: Who runs them.
        road: Their queue: who settles them, and who hears of it when they cannot be.
        post: The number of the worker's post; it decides the shard.

    Attributes:
        began: Told when the worker has begun to run a command.
    """

    _log: ClassVar = Logger()

    def __init__(self, queue: CommandQueue, worker: Worker, road: Road, post: int) -> None:
        self.worker = worker
        self.post = post
        self._road = road
        self._outcomes = road.outcomes
        # Asked for every command: to hand these on would cost a call each.
        self.began = road.overdue.began
        self._started = road.outcomes.running.add
        self._go_to(queue)
        self._get = self._got
        self._waiting = False
        self._stopped = False

    def __repr__(self) -> str:
        doing = "stopped" if self._stopped else "waiting" if self._waiting else "busy"
        return f"<Runner {doing} {self.worker!r}>"

    def start(self) -> None:
        """Take as much as the worker has room for, then wait."""
        self._fill()

    def move(self, queue: CommandQueue) -> None:
        """Take from another queue from now on."""
        self.queue.leave(self._get)
        self._waiting = False
        self._go_to(queue)
        self._fill()

    def stop(self) -> None:
        """Hand over no more."""
        self._stopped = True
        self._waiting = False
        self.queue.leave(self._get)

    # --- what becomes of commands: the Taker and Crew protocols of `jobgate.pool`

    def replied(self, command: Command, reply: Reply, now: float) -> None:
        """It ended well."""
        if command.batch is not None and command.batch.left:
            # The others are in hand still, and with them its place.
            pass
        elif not self._waiting:
            self._fill()
        elif len(self.queue.waiting) > self._rivals and self.worker.idle:
            self.queue.prefer(self._get)
        self._outcomes.succeeded(command, reply, now)

    def failed(self, command: Command, error: JobgateError, now: float) -> None:
        """The worker said FAIL."""
        self._more()
        self._outcomes.failed(command, error, now)

    def streaming(self, command: Command, reply: Reply) -> None:
        """The first part of a streamed reply has come."""
        self._outcomes.streaming(command, reply)

    def declined(self, command: Command) -> None:
        """The worker will not have it: another gets it, first of all."""
        self._road.declined(command, self.worker)
        self._more()

    def unfit(self, command: Command, error: JobgateError) -> None:
        """The worker cannot be given it."""
        self._outcomes.unfit(command, error)

    def rested(self) -> None:
        """The worker has room again."""
        self._more()

    def stray(self) -> None:
        """A reply to nothing in flight was dropped."""
        self._road.stats.stray_replies += 1

    def lost(self, command: Command, loss: Loss, *, begun: bool, alone: bool) -> None:
        """The worker is lost, and had this command."""
        self._road.lost(command, loss, begun=begun, alone=alone)

    # --- inside

    def _go_to(self, queue: CommandQueue) -> None:
        self.queue = queue
        self._rivals = queue.rivals
        self._run = self._run_batch if isinstance(queue, BatchQueue) else self._run_one

    def _more(self) -> None:
        """The worker has less in hand."""
        if not self._waiting:
            self._fill()
        elif len(self.queue.waiting) > self._rivals and self.worker.idle:
            self.queue.prefer(self._get)

    def _fill(self) -> None:
        queue, worker = self.queue, self.worker
        while not self._stopped and not self._waiting and worker.room > 0:
            command = queue.take(worker)
            if command is None:
                self._waiting = True
                queue.wait(self._get, worker)
                if self._road.on_room is not None:
                    self._road.on_room()
            elif not self._run(command):
                return

    def _got(self, command: Command) -> None:
        self._waiting = False
        if self._run(command):
            self._fill()

    def _run_one(self, command: Command) -> bool:
        """Hand a command over; whatever happens, it is not lost."""
        worker = self.worker
        command.state = RUNNING
        command.worker = worker
        command.attempt += 1
        self._started(command)
        try:
            if worker.send(command):
                return True
        except Exception:  # noqa: BLE001 (whatever it is, the command must not be lost)
            self._log.failure("{worker!r} could not be handed a command", worker=worker)
            worker.overran("the gate failed to write to it")
        if command.worker is worker and command.state is RUNNING:
            self._road.not_started(command)
        return False

    def _run_batch(self, first: Command) -> bool:
        """Hand a command over with its company; likewise."""
        worker, queue = self.worker, self.queue
        assert isinstance(queue, BatchQueue), "chosen where the queue is"
        batch = queue.company(first, worker)
        for command in batch.members:
            command.state = RUNNING
            command.worker = worker
            command.batch = batch
            command.attempt += 1
            self._started(command)
        try:
            if worker.send_batch(batch):
                return True
        except Exception:  # noqa: BLE001 (as above)
            self._log.failure("{worker!r} could not be handed a batch", worker=worker)
            worker.overran("the gate failed to write to it")
        for command in reversed(batch.members):
            if (command.worker, command.batch, command.state) == (worker, batch, RUNNING):
                self._road.not_started(command)
        return False
