"""
The Runner: takes commands from one queue and runs them at one worker.

It takes the next command when its worker has room, never earlier, and always settles
what it took. Must not know how the worker is reached or what a caller is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from twisted.internet.defer import CancelledError
from twisted.logger import Logger

if TYPE_CHECKING:
    from twisted.internet.defer import Deferred
    from twisted.python.failure import Failure

    from jobgate.command import Command, Reply, Worker
    from jobgate.errors import JobgateError
    from jobgate.gate.queues import CommandQueue
    from jobgate.gate.road import Loss, Road

__all__ = ["Runner"]


class Runner:
    """
    Drives one worker.

    An idle Runner's waiting `get` is its place among the free ones; while commands
    wait it takes them without a Deferred. The next command is handed over before the
    last reply is passed on, so the worker is never kept waiting for a caller.

    Args:
        queue: Where commands come from.
        worker: Who runs them.
        road: Who settles them.
    """

    _log = Logger()

    def __init__(self, queue: CommandQueue, worker: Worker, road: Road) -> None:
        self.queue = queue
        self.worker = worker
        self._road = road
        self._waiting: Deferred[Command] | None = None
        self._stopped = False

    def __repr__(self) -> str:
        doing = "stopped" if self._stopped else "waiting" if self._waiting else "busy"
        return f"<Runner {doing} {self.worker!r}>"

    def start(self) -> None:
        """Take as much as the worker has room for, then wait."""
        self._fill()

    def stop(self) -> None:
        """Hand over no more."""
        self._stopped = True
        if self._waiting is not None:
            waiting, self._waiting = self._waiting, None
            waiting.cancel()

    # --- what becomes of commands: the Taker and Crew protocols of `jobgate.pool`

    def began(self, command: Command, now: float) -> None:
        """The worker has begun to run it."""
        self._road.began(command, now)

    def replied(self, command: Command, reply: Reply, now: float) -> None:
        """It ended well."""
        self._fill()
        self._road.succeeded(command, reply, now)

    def failed(self, command: Command, error: JobgateError, now: float) -> None:
        """The worker said FAIL."""
        self._fill()
        self._road.failed(command, error, now)

    def streaming(self, command: Command, reply: Reply) -> None:
        """The first part of a streamed reply has come."""
        self._road.streaming(command, reply)

    def declined(self, command: Command) -> None:
        """The worker will not have it: another gets it, first of all."""
        self._road.declined(command, self.worker)
        self._fill()

    def stray(self) -> None:
        """A reply to nothing in flight was dropped."""
        self._road.stats.stray_replies += 1

    def lost(self, command: Command, loss: Loss, *, begun: bool, alone: bool) -> None:
        """The worker is lost, and had this command."""
        self._road.lost(command, loss, begun=begun, alone=alone)

    # --- inside

    def _fill(self) -> None:
        queue, worker = self.queue, self.worker
        while not self._stopped and self._waiting is None and worker.room > 0:
            command = queue.take(worker)
            if command is None:
                self._waiting = waiting = queue.get_for(worker)
                waiting.addCallbacks(self._got, self._not_got)
                waiting.addErrback(self._bug)
            elif not self._run(command):
                return
        if self._waiting is not None and worker.idle:
            queue.prefer(self._waiting)

    def _got(self, command: Command) -> None:
        self._waiting = None
        if self._run(command):
            self._fill()

    def _run(self, command: Command) -> bool:
        self._road.starting(command, self.worker)
        try:
            if self.worker.send(command):
                return True
        except Exception:  # noqa: BLE001 (whatever it is, the command must not be lost)
            self._log.failure("{worker!r} could not be handed a command", worker=self.worker)
            self._stopped = True
        self._road.not_started(command)
        return False

    @staticmethod
    def _not_got(failure: Failure) -> None:
        """The wait was taken back by `stop`."""
        failure.trap(CancelledError)

    def _bug(self, failure: Failure) -> None:
        self._log.failure("a Runner of {worker!r} failed", failure=failure, worker=self.worker)
