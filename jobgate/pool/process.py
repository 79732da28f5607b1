"""
A worker that is a child of the gate, spoken to over its stdio.

Owns one child from its start to its reaping: how it boots, how it is told to stop, how
it is made to, and what is left of it. Must not know why it should live or what its
commands are for.
"""

from __future__ import annotations

import os
import signal
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from twisted.internet.error import ProcessTerminated
from twisted.internet.protocol import ProcessProtocol
from twisted.logger import Logger

from jobgate.pool import launcher
from jobgate.pool.environment import environment
from jobgate.pool.frames import FramesConversation
from jobgate.pool.lifecycle import Event, State, after
from jobgate.pool.lines import LinesConversation
from jobgate.pool.pipes import ChildStdin, ChildStdout, read_rest
from jobgate.pool.report import Output, Report
from jobgate.pool.roles import Crew, Loss, Owner

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.internet.interfaces import IDelayedCall
    from twisted.python.failure import Failure

    from jobgate.command import Command
    from jobgate.config import WorkerConfig
    from jobgate.pool.conversation import Conversation

__all__ = ["RETIRED", "WorkerProcess"]

_STDIN, _STDOUT, _STDERR, _STATUS = range(4)
_LAST_OUTPUT = 0.2
"""Seconds a dead child's pipes stay open for what it said last: a grandchild may hold them."""
_SILENT_STDOUT = 0.5
"""Seconds between the end of a child's stdout and its death that are not held against it."""
_PING_EVERY = 30.0
"""Seconds an idle worker is left alone, and that it has for the answer."""
_POLITE = 1.0
"""Seconds a worker without work has for DRAIN and the end of its stdin before SIGTERM."""
RETIRED = "retired"
"""The cause of an end that was planned."""


class WorkerProcess(ProcessProtocol):
    """
    One long-lived child.

    Args:
        name: As in `Jobgate-Worker`.
        queue: The queue it works for.
        config: How it is started and limited.
        reactor: Time, timers and processes.
        owner: Told of its readiness and its end.

    Attributes:
        pid: Its process id once it has been spawned.
        state: Where it is in its life.
        born: When it was spawned, seconds on the reactor's clock.
        ready_at: When it became ready, or None.
        crew: Its Runner while it has one.
        report: What it left behind, once it is gone.
    """

    _log = Logger()

    def __init__(
        self,
        name: str,
        queue: str,
        config: WorkerConfig,
        reactor: Any,  # noqa: ANN401 (IReactorTime and -Process)
        owner: Owner,
    ) -> None:
        self.name = name
        self.queue = queue
        self.config = config
        self._reactor = reactor
        self._owner = owner
        self.state = State.STARTING
        self.pid: int | None = None
        self.born = reactor.seconds()
        self.ready_at: float | None = None
        self.crew: Crew | None = None
        self.report: Report | None = None
        self.last_reply = 0.0
        self._loss: Loss | None = None
        self._timer: IDelayedCall | None = None
        self._stdin: ChildStdin | None = None
        self._stdout: ChildStdout | None = None
        self._status = b""
        self._running_at_loss: list[str] = []
        self._output = Output(name, self._running, reactor.seconds)
        self.conversation: Conversation
        if config.protocol == "lines":
            self.conversation = LinesConversation(config, self, reactor.seconds)
        else:
            self.conversation = FramesConversation(config, self, reactor.seconds, name, queue)

    def __repr__(self) -> str:
        age = self._reactor.seconds() - self.born
        return (
            f"<WorkerProcess {self.name} pid={self.pid} {self.state.name} "
            f"{age:.1f}s done={self.conversation.done}>"
        )

    # --- what a Runner sees: the Worker protocol

    @property
    def lanes(self) -> int:
        """How many commands it runs at the same time: one, if it answers in order."""
        return 1 if self.conversation.ordered else self.conversation.capacity

    @property
    def room(self) -> int:
        """How many more commands it can be handed now."""
        conversation = self.conversation
        if self.state is State.READY and conversation.is_ready:
            return conversation.capacity - len(conversation.in_hand)
        return 0

    @property
    def idle(self) -> bool:
        """Whether it has no command in hand."""
        return not self.conversation.in_hand

    def hire(self, crew: Crew) -> None:
        """Give the worker its Runner."""
        self.crew = self.conversation.taker = crew

    def send(self, command: Command) -> bool:
        """Hand over a command; False if the worker turns out to be unfit."""
        return self.conversation.send(command)

    def cancel(self, command: Command) -> None:
        """Nobody wants the reply: do as the configuration says."""
        if self.config.cancel == "kill":
            self.stop_by_force(Loss("stopped", "its caller left (cancel = kill)"))
        elif self.config.cancel == "cooperative":
            self.conversation.cancel(command)

    def overran(self, cause: str) -> None:
        """One of its commands ran too long."""
        self.stop_by_force(Loss("timeout", cause))

    # --- its life

    def start(self) -> None:
        """
        Spawn the child.

        Raises:
            OSError: The system has no process or descriptor to give.
        """
        arguments = [
            sys.executable, "-I", "-S", launcher.__file__,
            self.config.cwd, str(os.getpid()), *self.config.command,
        ]  # fmt: skip
        self._reactor.spawnProcess(
            self,
            sys.executable,
            args=arguments,
            env=environment(self.config, self.queue, self.name),
            childFDs={_STDIN: "w", _STDOUT: "r", _STDERR: "r", _STATUS: "r"},
        )
        self._wait(self.config.boot_timeout, self._boot_too_long)

    def retire(self) -> None:
        """Take no more commands, finish what is in hand, then exit."""
        before = self.state
        self.state = after(before, Event.RETIRE)
        if before is State.READY:
            self._owner.worker_leaving(self)
            if self.crew is not None:
                self.crew.stop()
            self._end_if_drained()
        elif before is State.STARTING:
            self._end_politely()

    def stop_by_force(self, loss: Loss) -> None:
        """End it now: SIGTERM to its group, SIGKILL after `kill_timeout`."""
        if self.state in (State.ENDING, State.GONE):
            return
        self._leave(Event.KILL)
        self._lose(loss)
        self._end_by_signal()

    def hurry(self) -> None:
        """No more patience: SIGKILL."""
        if self.state is not State.GONE:
            if self.state is not State.ENDING:
                self._leave(Event.KILL)
            self._lose(Loss("stopped", "the gate is in a hurry"))
            self._signal(signal.SIGKILL)

    # --- what the conversation needs: the Transport protocol

    def write(self, head: bytes, body: bytes, *, idle: bool) -> int:
        """Send bytes to the child; returns how many have been offered in all."""
        if self._stdin is None:
            return 0
        return self._stdin.write(head, body, idle=idle)

    def written(self) -> int:
        """How many of the offered bytes the child may have seen."""
        return 0 if self._stdin is None else self._stdin.written

    def look(self) -> None:
        """Take in what the child has said already."""
        if self._stdout is not None:
            self._stdout.read_rest()

    def soon(self, then: Callable[[], None]) -> None:
        """Call back in the next turn of the loop."""
        self._reactor.callLater(0, then)

    def ready(self) -> None:
        """It has said HELLO, or what stands for it."""
        if self.state is not State.STARTING:
            return
        self.state = after(self.state, Event.READY)
        self._output.end()
        self.ready_at = self._reactor.seconds()
        self._wait(_PING_EVERY, self._look_after)
        self._owner.worker_ready(self)

    def broken(self, why: str) -> None:
        """It broke the protocol."""
        self._log.warn("{worker} broke the protocol: {why}", worker=self.name, why=why)
        self.stop_by_force(Loss("protocol", why))

    def hold(self, *, on: bool) -> None:
        """Read nothing from its stdout (True), or again (False)."""
        if self._stdout is not None:
            self._stdout.hold(on=on)

    def aside(self, text: bytes) -> None:
        """It said something that is no message."""
        self._output.take(text)

    def settled(self, now: float) -> None:
        """It has one command less in hand."""
        self.last_reply = now
        if self.state is State.DRAINING:
            self._end_if_drained()

    # --- what Twisted tells: ProcessProtocol

    def connectionMade(self) -> None:
        """It has been spawned."""
        transport: Any = self.transport
        self.pid = transport.pid
        if transport.pid is not None:
            self._owner.group_started(transport.pid)
        self._stdin = ChildStdin(transport.pipes[_STDIN], self._reactor)
        self._stdout = ChildStdout(transport.pipes[_STDOUT], self.conversation)

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        """Output has come that `ChildStdout` does not read."""
        if childFD == _STDERR:
            self._output.take(data)
        elif childFD == _STATUS:
            self._status += data
        else:
            self.conversation.receive(data)

    def childConnectionLost(self, childFD: int) -> None:
        """One of its descriptors is closed."""
        if childFD == _STATUS:
            if not self._status:
                self.conversation.started()
        elif childFD == _STDOUT:
            if self._stdout is not None:
                self._stdout.close()
            if self.state not in (State.ENDING, State.GONE):
                self._reactor.callLater(_SILENT_STDOUT, self._stdout_closed)

    def processExited(self, reason: Failure) -> None:
        """It is dead; what it said before is still to be read."""
        if self._stdout is not None:
            self._stdout.read_rest()
            self._stdout.close()
        transport: Any = self.transport
        for fd in (_STATUS, _STDERR):
            if fd in transport.pipes:
                read_rest(transport.pipes[fd])
        self._cancel_timer()
        self._signal(signal.SIGKILL)
        value = reason.value
        number = value.signal if isinstance(value, ProcessTerminated) else None
        status = None if number else (value.exitCode if isinstance(value, ProcessTerminated) else 0)
        name = signal.Signals(number).name if number else None
        cause = self._status.decode("utf-8", "replace")
        if not cause:
            cause = f"killed by {name}" if name else f"exited with status {status}"
            torn = self.conversation.ended()
            if torn and self._loss is None:
                cause += f"; {torn}"
        self._leave(Event.EXIT)
        self._lose(Loss("died", cause, status, name))
        if self.pid is not None:
            self._owner.group_ended(self.pid)
        self._output.end()
        assert self._loss is not None, "set by _lose"
        self.report = self._write_report(self._loss, cause, status, name)
        self._reactor.callLater(_LAST_OUTPUT, self._close_pipes)
        self._owner.worker_gone(self, self.report)

    # --- inside

    def _running(self) -> str:
        in_hand = self.conversation.in_hand
        return next(iter(in_hand.values())).id if in_hand else ""

    def _leave(self, event: Event) -> None:
        """Go to a state in which it takes no commands, and say so once."""
        before, self.state = self.state, after(self.state, event)
        if before is State.READY:
            self._owner.worker_leaving(self)
            if self.crew is not None:
                self.crew.stop()

    def _lose(self, loss: Loss) -> None:
        """Give back the commands in hand; only the first reason counts."""
        if self._loss is not None:
            return
        self._loss = loss
        taken = self.conversation.take_all()
        self._running_at_loss = [command.id for command, _ in taken]
        alone = sum(begun for _, begun in taken) == 1
        if self.crew is not None:
            for command, begun in reversed(taken):
                self.crew.lost(command, loss, begun=begun, alone=alone)

    def _boot_too_long(self) -> None:
        self.stop_by_force(
            Loss("timeout", f"not ready within boot_timeout ({self.config.boot_timeout:g} s)")
        )

    def _look_after(self) -> None:
        """An idle worker must answer a PING before the next one is due."""
        quiet = self._reactor.seconds() - max(self.last_reply, self.ready_at or 0.0)
        if not self.conversation.answered_ping and self.idle:
            self.stop_by_force(Loss("timeout", f"no answer to PING within {_PING_EVERY:g} s"))
            return
        self._wait(_PING_EVERY, self._look_after)
        if self.idle and quiet >= _PING_EVERY:
            self.conversation.ping()

    def _end_if_drained(self) -> None:
        if self.state is State.DRAINING and self.idle:
            self.state = after(self.state, Event.DRAINED)
            self._end_politely()

    def _end_politely(self) -> None:
        """DRAIN and the end of its stdin; who does not go is made to."""
        self.conversation.drain()
        self._lose(Loss("stopped", RETIRED))
        if self._stdin is not None:
            self._stdin.close()
        self._wait(_POLITE, self._end_by_signal)

    def _end_by_signal(self) -> None:
        if self.config.kill_timeout:
            self._signal(signal.SIGTERM)
            self._wait(self.config.kill_timeout, self._signal, signal.SIGKILL)
        else:
            self._cancel_timer()
            self._signal(signal.SIGKILL)

    def _stdout_closed(self) -> None:
        if self.state not in (State.ENDING, State.GONE):
            why = self.conversation.ended() or "it closed its stdout but lives on"
            self.broken(why)

    def _signal(self, number: signal.Signals) -> None:
        """To the whole group; before the child leads one, to the child alone."""
        if self.pid is None:
            return
        try:
            os.killpg(self.pid, number)
        except ProcessLookupError:
            if self.state is not State.GONE and self.transport is not None:
                transport: Any = self.transport
                if transport.pid is not None:
                    os.kill(transport.pid, number)

    def _wait(self, seconds: float, then: Any, *args: object) -> None:  # noqa: ANN401 (any callable)
        self._cancel_timer()
        if seconds > 0:
            self._timer = self._reactor.callLater(seconds, then, *args)

    def _cancel_timer(self) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None

    def _close_pipes(self) -> None:
        transport: Any = self.transport
        for pipe in list(transport.pipes.values()):
            pipe.loseConnection()

    def _write_report(
        self, loss: Loss, cause: str, status: int | None, signal_name: str | None
    ) -> Report:
        return Report(
            worker=self.name,
            queue=self.queue,
            pid=self.pid,
            cause=loss.cause if loss.kind != "died" else cause,
            exit_status=status,
            signal=signal_name,
            at=datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            lived=round(self._reactor.seconds() - self.born, 3),
            commands_done=self.conversation.done,
            running=self._running_at_loss,
            output=self._output.text(),
        )
