"""
The `lines` protocol (contract section 5.2), from the gate's side.

Must not know what carries the lines.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from jobgate.command import Reply
from jobgate.errors import BadRequest, JobgateError, Unprocessable
from jobgate.pool.conversation import Conversation, Transport
from jobgate.wire.frames import WireError
from jobgate.wire.lines import LinesDecoder, Template, one_line

if TYPE_CHECKING:
    from collections.abc import Callable

    from jobgate.command import Batch, Command
    from jobgate.config import WorkerConfig

__all__ = ["LinesConversation"]

_APART: Final = 0.005
"""Seconds after an answer within which more output may still belong to it."""
_PROMPT: Final = 0.05
"""Seconds within which a program that waits for its next line has surely read it: what it answers
by then is no late output of the command before."""
_AT_ONCE: Final = 0.001
"""Seconds after as many answers as a batch has members for which another one is waited for."""
_LATE: Final = 1.0
"""Seconds after an answer within which a program that is busy yet may print more of it."""


class LinesConversation(Conversation):
    """The `lines` protocol (contract section 5.2), from the gate's side."""

    capacity = 1
    ordered = True

    def __init__(
        self, config: WorkerConfig, transport: Transport, seconds: Callable[[], float]
    ) -> None:
        super().__init__(config, transport, seconds)
        self._template = Template(config.send)
        self._decoder = self._new_decoder(config.until, config.until_regex)
        self._boot: LinesDecoder | None = None
        self._banner_seen = False
        self._answered_at = -_LATE
        self._answers: list[bytes] = []
        self._told = 0
        if config.boot_until or config.boot_until_regex:
            self._boot = self._new_decoder(config.boot_until, config.boot_until_regex)

    @staticmethod
    def _new_decoder(until: str, until_regex: str) -> LinesDecoder:
        return LinesDecoder(until, re.compile(until_regex.encode()) if until_regex else None)

    def started(self) -> None:
        """Without a banner to wait for, a program that runs is ready."""
        if self._boot is None and not self.is_ready:
            self.is_ready = True
            self._transport.ready()

    def send(self, command: Command) -> bool:
        """Write the command's line, unless the worker turns out to have said too much before."""
        self._transport.look()
        if not self.is_ready:
            return False
        try:
            [line] = self._pieces(command, 0)
        except JobgateError as error:
            if self.taker is not None:
                self.taker.unfit(command, error)
        else:
            self._give(command, line, b"")
        return True

    def send_batch(self, batch: Batch) -> bool:
        """Write a line for each; as many answers come back, in the same order."""
        self._transport.look()
        return self.is_ready and super().send_batch(batch)

    def _pieces(self, command: Command, frame_id: int) -> list[bytes]:  # noqa: ARG002 (lines have none)
        # Mostly done at admission; a command may have been let in for another protocol.
        if command.inputs:
            raise Unprocessable("a worker that speaks lines takes no inputs")
        try:
            line = one_line(command.body, command.content_type)
        except ValueError as error:
            raise BadRequest(str(error)) from None
        return [self._template.fill(line)]

    def receive(self, data: bytes) -> None:
        """Take in what the program printed."""
        if self.closed:
            return
        try:
            if self._boot is not None and not self._banner_seen:
                self._banner(data)
            elif self.in_hand:
                self._output(data)
            else:
                self._left_over(data)
        except WireError as error:
            self._transport.broken(str(error))

    def _banner(self, data: bytes) -> None:
        assert self._boot is not None, "only called while a banner is awaited"
        banner = self._boot.feed(data)
        if banner is None:
            return
        self._banner_seen = True
        self._transport.aside(banner + b"\n")
        if self._boot.pending:
            self._left_over(self._boot.pending)
            return
        self.is_ready = True
        self._transport.ready()

    def _output(self, data: bytes) -> None:
        commands = list(self.in_hand.values())
        answers = self._answers
        if len(answers) == len(commands):
            self._left_over(b"\n".join([*answers, data]))
            return
        read = self._transport.written()
        before = commands[len(answers) - 1].offered if answers else self._told
        if read <= before:
            # It has read nothing of the command yet, so this cannot be the answer.
            self._left_over(data)
            return
        body = self._decoder.feed(data)
        while body is not None:
            if read < commands[len(answers)].offered:
                # Nor can this be all of it: it has not read the command to its end.
                self._left_over(body)
                return
            answers.append(body)
            if len(answers) == len(commands):
                self._answered(commands[0].began)
                return
            body = self._decoder.feed(b"")

    def _answered(self, began: float) -> None:
        """As many answers have come as were asked for."""
        answers = self._answers
        extra = self._decoder.pending
        now = self._seconds()
        # The first of these may belong to the command before; of a batch with an answer too many
        # nobody knows whose is whose: none is to be trusted.
        apart = began - self._answered_at
        late = apart < (_APART if now - began < _PROMPT else _LATE)
        if extra and (len(answers) > 1 or late):
            self._left_over(b"\n".join([*answers, extra]))
            return
        if len(answers) > 1:
            # Whoever prints more does it at once: until that is seen nobody knows, either.
            self._transport.soon(self._apart, _AT_ONCE)
            return
        self._settle(now)
        if extra:
            self._left_over(extra)
        else:
            self._transport.soon(self._rest)
            self._transport.settled(now)

    def _apart(self) -> None:
        """A moment after a batch's last answer: unless more has come they are what they seem."""
        self._transport.look()
        self._settle_batch()

    def _settle_batch(self) -> None:
        """Enough answers have come, and nothing else."""
        if self._answers and len(self._answers) == len(self.in_hand) and not self.closed:
            now = self._seconds()
            self._settle(now)
            self._transport.soon(self._rest)
            self._transport.settled(now)

    def _settle(self, now: float) -> None:
        """Each gets its answer."""
        answers, self._answers = self._answers, []
        # Whoever prints more does it at once: until that is seen, no other command is given.
        self.is_ready = False
        self._answered_at = now
        self._told = next(reversed(self.in_hand.values())).offered
        for (frame_id, command), body in zip(list(self.in_hand.items()), answers, strict=True):
            self._finish(frame_id, now)
            self.done += 1
            if self.taker is not None:
                self.taker.replied(command, Reply(body, self._config.reply_type), now)

    def _rest(self) -> None:
        """A moment after a reply: whoever has said nothing more is ready for the next command."""
        self._transport.look()
        if not self.closed:
            self.is_ready = True
            if self.taker is not None:
                self.taker.rested()

    def _left_over(self, data: bytes) -> None:
        self.is_ready = False
        self._transport.aside(data[:4096])
        self._transport.broken(f"output that belongs to no command: {data[:200]!r}")

    def ended(self) -> str | None:
        """A reply that was cut off, if there was one; answers of which there were enough count."""
        self._settle_batch()
        return "the output ended inside a reply" if self._decoder.pending else None
