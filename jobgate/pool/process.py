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
from typing import TYPE_CHECKING, Any, Final

from twisted.internet.error import ProcessTerminated
from twisted.internet.protocol import ProcessProtocol

from jobgate.pool import launcher
from jobgate.pool.environment import STACKS_SIGNAL, environment
from jobgate.pool.frames import FramesConversation
from jobgate.pool.lifecycle import Event, State
from jobgate.pool.lifespan import Lifespan
from jobgate.pool.lines import LinesConversation
from jobgate.pool.member import RETIRED, Member
from jobgate.pool.pipes import WorkerInput, WorkerOutput, read_rest
from jobgate.pool.reaping import reap_with_usage
from jobgate.pool.report import Slow, now_as_text
from jobgate.pool.roles import GroupOwner, Loss

if TYPE_CHECKING:
    from twisted.internet.interfaces import IDelayedCall
    from twisted.python.failure import Failure

    from jobgate.config import WorkerConfig
    from jobgate.pool.report import Usage

__all__ = ["WorkerProcess"]

_STDIN: Final = 0
_STDOUT: Final = 1
_STDERR: Final = 2
_STATUS: Final = 3
_LAST_OUTPUT: Final = 0.2
"""Seconds a dead child's pipes stay open for what it said last: a grandchild may hold them."""
_SILENT_STDOUT: Final = 0.5
"""Seconds between the end of a child's stdout and its death that are not held against it."""
_PING_EVERY: Final = 30.0
"""Seconds an idle worker is left alone, and that it has for the answer."""
_STACKS: Final = 0.25
"""Seconds a slow worker has to say where it is."""
_POLITE: Final = 1.0
"""Seconds a worker without work has for DRAIN and the end of its stdin before SIGTERM."""


class WorkerProcess(Member, ProcessProtocol):
    """
    One long-lived child; arguments and attributes are those of every `Member`, and these.

    Attributes:
        generation: Which reload of its queue it was started after; set by its owner.
        lifespan: How long it may serve.
    """

    generation = 0

    def __init__(
        self,
        name: str,
        queue: str,
        config: WorkerConfig,
        reactor: Any,  # noqa: ANN401 (IReactorTime and -Process)
        owner: GroupOwner,
    ) -> None:
        super().__init__(name, queue, config, reactor, owner)
        self._keeper: GroupOwner = owner
        self._stdin: WorkerInput | None = None
        self._stdout: WorkerOutput | None = None
        self._status = b""
        self._usage: Usage | None = None
        self._slow: Slow | None = None
        self._slow_timer: IDelayedCall | None = None
        self._looked_up_to = 0.0
        self.lifespan = Lifespan(config)
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

    def burst(self, rss: int) -> None:
        """It holds far more memory than it may: it is killed, without patience."""
        most = self.config.max_memory
        if self.state not in (State.ENDING, State.GONE):
            self._leave(Event.KILL)
            self._lose(Loss("memory", f"{rss} bytes of RSS; twice max_memory is {2 * most}"))
        self._end_at_once()

    def look_for_slow(self, now: float) -> None:
        """Have the worker say where it is if a command has run for over `soft_timeout`."""
        late = now - self.config.soft_timeout
        commands = self.conversation.in_hand.values()
        slow = [c for c in commands if self._looked_up_to < c.began <= late]
        if not slow or self._slow is not None:
            return
        self._looked_up_to = max(command.began for command in slow)
        ran = round(now - slow[0].began, 3)
        self._slow = Slow(command=slow[0].id, pid=self.pid, at=now_as_text(), ran=ran, stacks="")
        transport: Any = self.transport
        if self.conversation.tells_stacks and transport.pid is not None:
            self._output.mark()
            os.kill(transport.pid, STACKS_SIGNAL)
        self._slow_timer = self._reactor.callLater(_STACKS, self._tell_slow)

    # --- what the conversation needs: the rest of the Transport protocol

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

    def hold(self, *, on: bool) -> None:
        """Read nothing from its stdout (True), or again (False)."""
        if self._stdout is not None:
            self._stdout.hold(on=on)

    # --- what Twisted tells: ProcessProtocol

    def connectionMade(self) -> None:
        """It has been spawned."""
        transport: Any = self.transport
        self.pid = transport.pid
        if transport.pid is not None:
            self._keeper.group_started(transport.pid)
        reap_with_usage(transport, self._used)
        self._stdin = WorkerInput(transport.pipes[_STDIN], self._reactor)
        self._stdout = WorkerOutput(transport.pipes[_STDOUT], self.conversation)

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        """Output has come that `WorkerOutput` does not read."""
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
        self._tell_slow()
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
        # Its last answers may have let it go, with a time to do so in.
        self._cancel_timer()
        if self.pid is not None:
            self._keeper.group_ended(self.pid)
        self._output.end()
        assert self._loss is not None, "set by _lose"
        self.report = self._write_report(self._loss, cause, status, name)
        self.report.usage = self._usage
        self._reactor.callLater(_LAST_OUTPUT, self._close_pipes)
        self._owner.worker_gone(self, self.report)

    # --- inside

    def _boot_too_long(self) -> None:
        self.stop_by_force(
            Loss("timeout", f"not ready within boot_timeout ({self.config.boot_timeout:g} s)")
        )

    def _counted(self) -> None:
        self._keeper.worker_counted(self)

    def _used(self, usage: Usage) -> None:
        self._usage = usage

    def _tell_slow(self) -> None:
        """It has had time to say where it is."""
        if self._slow_timer is not None and self._slow_timer.active():
            self._slow_timer.cancel()
        slow, self._slow, self._slow_timer = self._slow, None, None
        if slow is not None:
            slow.stacks = self._output.since_mark()
            self._keeper.worker_slow(self, slow)

    def _watch(self) -> None:
        """Let an idle worker show that it is alive."""
        self._wait(_PING_EVERY, self._look_after)

    def _look_after(self) -> None:
        """An idle worker must answer a PING before the next one is due."""
        quiet = self._reactor.seconds() - max(self.last_reply, self.ready_at or 0.0)
        if not self.conversation.answered_ping and self.idle:
            self.stop_by_force(Loss("timeout", f"no answer to PING within {_PING_EVERY:g} s"))
            return
        self._wait(_PING_EVERY, self._look_after)
        if self.idle and quiet >= _PING_EVERY:
            self.conversation.ping()

    def _end_politely(self) -> None:
        """DRAIN and the end of its stdin; who does not go is made to."""
        self.conversation.drain()
        self._lose(Loss("stopped", RETIRED))
        if self._stdin is not None:
            self._stdin.close()
        self._wait(_POLITE, self._end_by_force)

    def _end_by_force(self) -> None:
        """SIGTERM to its group, SIGKILL after `kill_timeout`."""
        if self.config.kill_timeout:
            self._signal(signal.SIGTERM)
            self._wait(self.config.kill_timeout, self._signal, signal.SIGKILL)
        else:
            self._cancel_timer()
            self._signal(signal.SIGKILL)

    def _end_at_once(self) -> None:
        """SIGKILL."""
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

    def _close_pipes(self) -> None:
        transport: Any = self.transport
        for pipe in list(transport.pipes.values()):
            pipe.loseConnection()
