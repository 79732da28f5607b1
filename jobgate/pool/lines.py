"""
The `lines` protocol (contract section 5.2), from the gate's side.

Must not know what carries the lines.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from jobgate.command import Reply
from jobgate.pool.conversation import Conversation, Transport
from jobgate.wire.frames import WireError
from jobgate.wire.lines import LinesDecoder, Template

if TYPE_CHECKING:
    from collections.abc import Callable

    from jobgate.command import Command
    from jobgate.config import WorkerConfig

__all__ = ["LinesConversation"]


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
        self._give(command, self._template.fill(command.body), b"")
        return True

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
        body = self._decoder.feed(data)
        if body is None:
            return
        now = self._seconds()
        frame_id = next(iter(self.in_hand))
        extra = self._decoder.pending
        if extra:
            self.is_ready = False
        command = self._finish(frame_id, now)
        self.done += 1
        if command is not None and self.taker is not None:
            self.taker.replied(command, Reply(body, self._config.reply_type), now)
        if extra:
            self._left_over(extra)
        else:
            self._transport.settled(now)

    def _left_over(self, data: bytes) -> None:
        self.is_ready = False
        self._transport.aside(data[:4096])
        self._transport.broken(f"output that belongs to no command: {data[:200]!r}")

    def ended(self) -> str | None:
        """A reply that was cut off, if there was one."""
        return "the output ended inside a reply" if self._decoder.pending else None
