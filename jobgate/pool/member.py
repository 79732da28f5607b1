"""
One worker of a pool, whatever carries what is said to it.

How it becomes ready, is retired, is lost, and what it leaves behind. `process` and `remote`
say how it is reached and made to go. Must not know why it should live or what its commands
are for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Final

from twisted.logger import Logger

from jobgate.command import RUNNING
from jobgate.pool.lifecycle import Event, State, after
from jobgate.pool.report import Evidence, Output, Report, now_as_text
from jobgate.pool.roles import Crew, Loss, Owner

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.internet.interfaces import IDelayedCall

    from jobgate.command import Batch, Command
    from jobgate.config import WorkerConfig
    from jobgate.pool.conversation import Conversation

__all__ = ["RETIRED", "Member"]

_NEVER: Final = float("inf")
# Asked about for every command.
_READY: Final = State.READY
_DRAINING: Final = State.DRAINING

RETIRED: Final = "retired"
"""The cause of an end that was planned."""


class Member:
    """
    One worker: the face a Runner drives, and its life.

    Args:
        name: As in `Jobgate-Worker`.
        queue: The queue it works for.
        config: How it is started, spoken to and limited.
        reactor: Time, timers and whatever else reaches it.
        owner: Told of its readiness and its end.

    Attributes:
        pid: Its process id once it has been spawned; None if it is not ours.
        state: Where it is in its life.
        born: When it came to be, seconds on the reactor's clock.
        ready_at: When it became ready, or None.
        crew: Its Runner while it has one.
        report: What it left behind, once it is gone.
        evidence: The command it was running when it was lost.
        call_at: Answers after which `_counted` is called, once.
        conversation: What is said to it; set by those who know how.
        address: Where it comes from; None if the gate started it.
        token: The SHA-256 of the token that let it in; empty if none was asked for.
    """

    _log: ClassVar = Logger()
    conversation: Conversation
    address: str | None = None
    token: str = ""
    evidence: Evidence | None = None
    call_at: float = _NEVER
    takes_batches = True
    lots = 1

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
        self._running_at_loss: list[str] = []
        self._output = Output(name, self._running, reactor.seconds)

    # --- what a Runner sees: the Worker protocol

    @property
    def lanes(self) -> int:
        """How many commands it runs at the same time: one, if it answers in order."""
        return 1 if self.conversation.ordered else self.conversation.capacity

    @property
    def room(self) -> int:
        """How many more commands, or batches of them, it can be handed now."""
        conversation = self.conversation
        if self.state is _READY and conversation.is_ready:
            return conversation.capacity + conversation.company - len(conversation.in_hand)
        return 0

    @property
    def idle(self) -> bool:
        """Whether it has no command in hand."""
        return not self.conversation.in_hand

    @property
    def idle_since(self) -> float:
        """When it last had a command in hand, or became ready."""
        return max(self.last_reply, self.ready_at or 0.0)

    @property
    def age(self) -> float:
        """Seconds since it came to be."""
        age: float = self._reactor.seconds() - self.born
        return round(age, 3)

    @property
    def output(self) -> str:
        """The last of what it has said aside."""
        return self._output.text()

    @property
    def utilisation(self) -> float:
        """The share of its time since it became ready in which it had commands in hand."""
        ready = 0.0 if self.ready_at is None else self._reactor.seconds() - self.ready_at
        return min(1.0, self.conversation.busy / ready) if ready > 0 else 0.0

    @property
    def lost_by(self) -> str:
        """What kind of loss its end was: see `Loss`."""
        return self._loss.kind if self._loss is not None else ""

    def hire(self, crew: Crew) -> None:
        """Give the worker its Runner."""
        self.crew = self.conversation.taker = crew

    def send(self, command: Command) -> bool:
        """Hand over a command; False if the worker turns out to be unfit."""
        return self.conversation.send(command)

    def send_batch(self, batch: Batch) -> bool:
        """Hand over commands that are to be run together; likewise."""
        return self.conversation.send_batch(batch)

    def cancel(self, command: Command) -> None:
        """Nobody wants the reply: do as the configuration says, if that harms nobody else."""
        if self.config.cancel == "kill" and command.began and not self._runs_for_others:
            self.stop_by_force(Loss("stopped", "its caller left (cancel = kill)"))
        elif self.config.cancel != "drop":
            self.conversation.cancel(command)

    def overran(self, cause: str) -> None:
        """One of its commands ran too long."""
        self.stop_by_force(Loss("timeout", cause))

    # --- its life

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
        """End it now."""
        if self.state in (State.ENDING, State.GONE):
            return
        self._leave(Event.KILL)
        self._lose(loss)
        self._end_by_force()

    def hurry(self) -> None:
        """No more patience."""
        if self.state is not State.GONE:
            if self.state is not State.ENDING:
                self._leave(Event.KILL)
            self._lose(Loss("stopped", "the gate is in a hurry"))
            self._end_at_once()

    # --- what the conversation needs: part of the Transport protocol

    def soon(self, then: Callable[[], None], after: float = 0.0) -> None:
        """Call back in the next turn of the loop, or so many seconds later."""
        self._reactor.callLater(after, then)

    def ready(self) -> None:
        """It has said HELLO, or what stands for it."""
        if self.state is not State.STARTING:
            return
        self.state = after(self.state, Event.READY)
        self._output.end()
        self.ready_at = self._reactor.seconds()
        self._watch()
        self._owner.worker_ready(self)

    def broken(self, why: str) -> None:
        """It broke the protocol."""
        self._log.warn("{worker} broke the protocol: {why}", worker=self.name, why=why)
        self.stop_by_force(Loss("protocol", why))

    def leaving(self) -> None:
        """It said DRAIN: only those who come by themselves may go by themselves."""
        self.broken("a frame of type 12, which a worker that the gate has started does not send")

    def aside(self, text: bytes) -> None:
        """It said something that is no message."""
        self._output.take(text)

    def settled(self, now: float) -> None:
        """It has one command less in hand."""
        self.last_reply = now
        if self.conversation.done >= self.call_at:
            self.call_at = _NEVER
            self._counted()
        if self.state is _DRAINING:
            self._end_if_drained()

    # --- how it is made to go, and looked after: each kind of worker has its way

    def _watch(self) -> None:
        """It has become ready: see to it that it stays alive."""
        raise NotImplementedError

    def _end_politely(self) -> None:
        """It has nothing in hand and will get nothing more: let it go."""
        raise NotImplementedError

    def _end_by_force(self) -> None:
        """End it, with what patience the configuration has."""
        raise NotImplementedError

    def _end_at_once(self) -> None:
        """End it without any."""
        raise NotImplementedError

    def _counted(self) -> None:
        """It has answered as many commands as `call_at` said."""

    # --- inside

    @property
    def _runs_for_others(self) -> bool:
        """Whether it has begun something that is still wanted: a kill would end that, too."""
        in_hand = self.conversation.in_hand.values()
        return any(command.began and command.state is RUNNING for command in in_hand)

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
        begun_first = next((command for command, begun in taken if begun), None)
        if begun_first is not None:
            self.evidence = Evidence(begun_first.id, begun_first.content_type, begun_first.body)
        at_work = sum(begun for _, begun in taken)
        if self.crew is not None:
            for command, begun in reversed(taken):
                alone = at_work == 1 if begun else not at_work
                self.crew.lost(command, loss, begun=begun, alone=alone)

    def _end_if_drained(self) -> None:
        if self.state is _DRAINING and self.idle:
            self.state = after(self.state, Event.DRAINED)
            self._end_politely()

    def _wait(self, seconds: float, then: Any, *args: object) -> None:  # noqa: ANN401 (any callable)
        self._cancel_timer()
        if seconds > 0:
            self._timer = self._reactor.callLater(seconds, then, *args)

    def _cancel_timer(self) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None

    def _write_report(
        self, loss: Loss, cause: str, status: int | None, signal_name: str | None
    ) -> Report:
        evidence = self.evidence
        return Report(
            worker=self.name,
            queue=self.queue,
            pid=self.pid,
            kind=loss.kind,
            cause=loss.cause if loss.kind != "died" else cause,
            exit_status=status,
            signal=signal_name,
            at=now_as_text(),
            lived=self.age,
            commands_done=self.conversation.done,
            running=self._running_at_loss,
            command=None if evidence is None else evidence.id,
            output=self.output,
        )
