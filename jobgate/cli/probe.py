"""
One worker under observation: run by the gate's own code, given its input in unkind ways.

The conversation, the pipes and the life of the worker are the pool's, so what is found here is
what a gate would find. Must not know what is being checked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from twisted.internet.task import deferLater

from jobgate.command import Command, Reply
from jobgate.errors import JobgateError
from jobgate.pool.lifecycle import State
from jobgate.pool.process import WorkerProcess

if TYPE_CHECKING:
    from collections.abc import Callable

    from jobgate.config import WorkerConfig
    from jobgate.pool.member import Member
    from jobgate.pool.report import Report, Slow
    from jobgate.pool.roles import Loss

__all__ = ["NotHeld", "Probe"]

_FOREVER: Final = float("inf")
_LOOK_EVERY: Final = 0.005
"""Seconds between two looks at what is waited for."""
_DROP: Final = 0.001
"""Seconds between two looks whether the last byte has been read."""


class NotHeld(Exception):
    """The worker did not do what the protocol wants; the message says what it did."""


class _Worker(WorkerProcess):
    """
    A child whose input can be held back, and torn into single bytes.

    Attributes:
        held: What is said to it is kept until `release`.
        torn: The next byte is written when the one before has been read.
        breach: How it broke the protocol, if it did.
    """

    held = False
    torn = False
    breach = ""
    _kept = b""
    _dripping = False

    def write(self, head: bytes, body: bytes, *, idle: bool) -> int:
        """Send bytes as it is to have them."""
        if not (self.held or self.torn):
            return super().write(head, body, idle=idle)
        self._kept += head + body
        if self.torn and not self._dripping:
            self._dripping = True
            self._drip()
        return (self._stdin.offered if self._stdin else 0) + len(self._kept)

    def release(self) -> None:
        """Send in one piece what was held."""
        self.held = False
        kept, self._kept = self._kept, b""
        super().write(kept, b"", idle=True)

    def broken(self, why: str) -> None:
        """Keep what was wrong."""
        self.breach = self.breach or why
        super().broken(why)

    def end_input(self) -> None:
        """Close its stdin without a word, as the death of a gate does."""
        transport: Any = self.transport
        transport.closeStdin()

    def _drip(self) -> None:
        if not self._kept or self._stdin is None or self.state is State.GONE:
            self._dripping = False
            return
        if self._stdin.written == self._stdin.offered:
            first, self._kept = self._kept[:1], self._kept[1:]
            super().write(first, b"", idle=True)
        self._reactor.callLater(_DROP, self._drip)


class Probe:
    """
    Starts one worker, gives it commands and writes down what becomes of them.

    Is the worker's owner and its Runner at once (`jobgate.pool.roles`).

    Args:
        config: How it is started and spoken to.
        reactor: Time, timers and processes.
        patience: Seconds for anything it is to do.

    Attributes:
        worker: The child.
        outcomes: What became of each command, by its id.
        strays: How often it answered what it had not been asked.
        report: What it left behind, once it is gone.
    """

    def __init__(self, config: WorkerConfig, reactor: Any, patience: float) -> None:  # noqa: ANN401 (IReactorTime and -Process)
        self.worker = _Worker("check-1", "check", config, reactor, self)
        self.outcomes: dict[str, Reply | JobgateError | None] = {}
        self.strays = 0
        self.report: Report | None = None
        self._reactor = reactor
        self._patience = patience
        self._parts: dict[str, list[bytes | bytearray]] = {}

    # --- what a check does

    async def start(self) -> None:
        """
        Start it and wait for its HELLO, or what stands for it.

        Raises:
            NotHeld: It did not get that far.
        """
        try:
            self.worker.start()
        except OSError as error:
            raise NotHeld(f"it cannot be started: {error.strerror}") from None
        await self._until(lambda: self.worker.state is not State.STARTING, "not ready")
        self.sound()

    def command(self, body: bytes, content_type: str = "text/plain") -> Command:
        """Make a command."""
        now = self._reactor.seconds()
        number = f"check-{len(self.outcomes)}"
        self.outcomes[number] = None
        command = Command("check", number, body, content_type, 3, now, _FOREVER)
        command.attempt = 1
        return command

    def give(self, *commands: Command) -> None:
        """
        Hand commands over.

        Raises:
            NotHeld: It is not fit to be given any.
        """
        for command in commands:
            if not self.worker.send(command):
                self.sound()
                raise NotHeld("it takes no command although nothing is in hand")

    async def answered(self, *commands: Command) -> list[Reply | JobgateError]:
        """
        Wait for the last word on each of these, and for room for more.

        Raises:
            NotHeld: It broke the protocol, died, or did not answer in time.
        """
        await self._until(
            lambda: all(self.outcomes[c.id] for c in commands) and self.worker.room > 0,
            f"no answer to {' and '.join(command.id for command in commands)}",
        )
        self.sound()
        return [found for command in commands if (found := self.outcomes[command.id])]

    async def ponged(self) -> None:
        """Wait for the PONG to a PING."""
        await self._until(lambda: self.worker.conversation.answered_ping, "no PONG to a PING")
        self.sound()

    async def quiet(self, seconds: float) -> None:
        """
        Listen for so long: it must say nothing.

        Raises:
            NotHeld: It did.
        """
        await deferLater(self._reactor, seconds)
        self.sound()
        if self.strays:
            raise NotHeld(f"{self.strays} answers to nothing that was in hand")

    async def gone(self) -> Report:
        """
        Wait until it has exited.

        Raises:
            NotHeld: It lives on.
        """
        await self._until(lambda: self.report is not None, "it did not exit", alive=False)
        assert self.report is not None, "that was waited for"
        return self.report

    async def end(self) -> None:
        """Whatever became of it, leave nothing behind."""
        if self.worker.pid is not None and self.report is None:
            self.worker.hurry()
            await self._until(lambda: self.report is not None, "killed but not dead", alive=False)

    def sound(self) -> None:
        """
        Raises:
            NotHeld: It broke the protocol, or is gone.
        """
        if self.worker.breach:
            raise NotHeld(self.worker.breach)
        if self.report is not None:
            raise NotHeld(self.report.cause)

    async def _until(self, condition: Callable[[], bool], what: str, *, alive: bool = True) -> None:
        """Wait until it is so, or (if it must be alive for that) until it is lost."""
        deadline = self._reactor.seconds() + self._patience
        while not (condition() or (alive and (self.worker.breach or self.report))):
            if self._reactor.seconds() > deadline:
                raise NotHeld(f"{what} within {self._patience:g} s")
            await deferLater(self._reactor, _LOOK_EVERY)

    # --- as its owner

    def worker_ready(self, worker: Member) -> None:
        """It can take commands."""
        worker.hire(self)

    def worker_leaving(self, worker: Member) -> None:
        """It takes no more: broken, or about to be gone."""

    def worker_gone(self, worker: Member, report: Report) -> None:  # noqa: ARG002 (as Owner)
        """It has exited and been reaped."""
        self.report = report

    def worker_counted(self, worker: WorkerProcess) -> None:
        """It is never asked to count."""

    def worker_slow(self, worker: WorkerProcess, slow: Slow) -> None:
        """A check has its own patience."""

    def group_started(self, pgid: int) -> None:
        """Its process group lives as long as it does."""

    def group_ended(self, pgid: int) -> None:
        """Its process group has been killed."""

    # --- as its Runner

    def began(self, command: Command, now: float) -> None:
        """It runs."""
        command.began = now

    def replied(self, command: Command, reply: Reply, now: float) -> None:  # noqa: ARG002 (as Crew)
        """A REPLY, or the last part of one."""
        if command.stream is not None:
            command.stream.end()
            reply.body = b"".join(self._parts.pop(command.id))
        self.outcomes[command.id] = reply

    def failed(self, command: Command, error: JobgateError, now: float) -> None:  # noqa: ARG002 (as Crew)
        """A FAIL."""
        self.outcomes[command.id] = error

    def streaming(self, command: Command, reply: Reply) -> None:
        """The first CHUNK."""
        parts = self._parts.setdefault(command.id, [])
        assert reply.stream is not None, "that is what streaming means"
        reply.stream.read(parts.append, lambda _: None)

    def declined(self, command: Command) -> None:
        """A DECLINE."""
        self.outcomes[command.id] = JobgateError("declined")

    def unfit(self, command: Command, error: JobgateError) -> None:
        """A `lines` worker cannot be given it."""
        self.outcomes[command.id] = error

    def rested(self) -> None:
        """It has room again."""

    def stray(self) -> None:
        """An answer to nothing."""
        self.strays += 1

    def stop(self) -> None:
        """It gets no more commands; a check gives none by itself."""

    def lost(self, command: Command, loss: Loss, *, begun: bool, alone: bool) -> None:
        """It is gone with a command in hand; the report says how."""
