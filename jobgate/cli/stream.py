"""
Lines in, replies out, in order, with a bound on what is in between.

Must not know where workers come from: commands go through a Gate like any other.
"""

from __future__ import annotations

import json
import sys
from collections import deque
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IHalfCloseableProtocol, IPushProducer
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.stdio import StandardIO
from zope.interface import implementer

from jobgate.cli.bodies import as_json
from jobgate.command import Reply
from jobgate.errors import InternalError, JobgateError, NoWorker

if TYPE_CHECKING:
    from twisted.python.failure import Failure

    from jobgate.cli.meter import Meter
    from jobgate.gate import Gate

__all__ = ["Stream"]

_MOST_BYTES = 64 * 1024 * 1024
"""Bytes of lines and replies in between, about."""


class _Line:
    """One line under way."""

    __slots__ = ("number", "outcome", "size")

    def __init__(self, number: int, size: int) -> None:
        self.number = number
        self.size = size
        self.outcome: Reply | JobgateError | None = None


@implementer(IHalfCloseableProtocol, IPushProducer)
class Stream(Protocol):
    """
    Reads a descriptor line by line, calls a queue, and writes the replies to stdout.

    Args:
        gate: Runs the commands.
        queue: The queue's name.
        content_type: Of every line.
        window: Lines that may be in between.
        meter: Told of what has been written.
        as_json: A document for each line instead of the reply.

    Attributes:
        failed: How many lines have failed.
        over: Why it ended before the last line, if it did.
        unread: Whoever read stdout has left.
    """

    def __init__(
        self,
        gate: Gate,
        queue: str,
        content_type: str,
        window: int,
        meter: Meter,
        *,
        as_json: bool,
    ) -> None:
        self.failed = 0
        self.over = ""
        self.unread = False
        self._gate = gate
        self._queue = queue
        self._content_type = content_type
        self._window = window
        self._meter = meter
        self._as_json = as_json
        self._rest = b""
        self._lines: deque[bytes] = deque()
        self._under_way: deque[_Line] = deque()
        self._bytes = 0
        self._number = 0
        self._input_over = False
        self._reading = True
        self._writing = True
        self._stop = False
        self._done: Deferred[None] = Deferred()
        self._written: Deferred[None] = Deferred()
        self._calls: set[Deferred[Any]] = set()

    async def run(self, source: int, *, stop: bool) -> None:
        """Do all of it; with `stop`, up to the first line that fails."""
        self._stop = stop
        make: Any = StandardIO  # two classes, by platform, with signatures of their own
        stdio = make(self, stdin=source, reactor=self._gate.reactor)
        stdio.registerProducer(self, True)  # noqa: FBT003 (its name is not the same everywhere)
        try:
            await self._done
        finally:
            self._end()
            stdio.unregisterProducer()
            stdio.loseConnection()
        await self._written

    # --- input

    def dataReceived(self, data: bytes) -> None:
        """Some of the input."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        self._lines += lines
        self._go_on()

    def readConnectionLost(self) -> None:
        """The input is at its end."""
        if self._rest:
            self._lines.append(self._rest)
            self._rest = b""
        self._input_over = True
        self._go_on()

    def _go_on(self) -> None:
        """Start what may be started, and read more or no more."""
        while self._lines and not self._full and not self._done.called:
            self._call(self._lines.popleft())
        if self._input_over:
            if not self._lines and not self._under_way and not self._done.called:
                self._done.callback(None)
            return
        reading = not self._lines
        if reading is not self._reading and self.transport is not None:
            self._reading = reading
            stdio: Any = self.transport
            (stdio.resumeProducing if reading else stdio.pauseProducing)()

    @property
    def _full(self) -> bool:
        return len(self._under_way) >= self._window or self._bytes > _MOST_BYTES

    # --- commands

    def _call(self, body: bytes) -> None:
        self._number += 1
        line = _Line(self._number, len(body) + 1)
        self._under_way.append(line)
        self._bytes += line.size
        call = self._gate.call(self._queue, body, self._content_type)
        self._calls.add(call)
        call.addErrback(self._failed)
        call.addCallback(self._ended, line, call)

    @staticmethod
    def _failed(failure: Failure) -> JobgateError:
        error = failure.value
        return error if isinstance(error, JobgateError) else InternalError(repr(error))

    def _ended(self, outcome: Reply | JobgateError, line: _Line, call: Deferred[Any]) -> None:
        self._calls.discard(call)
        if isinstance(outcome, Reply) and outcome.stream is not None:
            parts: list[bytes | bytearray] = []
            outcome.stream.read(
                parts.append, lambda broken: self._streamed(line, outcome, parts, broken)
            )
            return
        self._settle(line, outcome)

    def _streamed(
        self, line: _Line, reply: Reply, parts: list[bytes | bytearray], broken: Failure | None
    ) -> None:
        reply.body = b"".join(parts)
        self._settle(line, reply if broken is None else self._failed(broken))

    def _settle(self, line: _Line, outcome: Reply | JobgateError) -> None:
        line.outcome = outcome
        if isinstance(outcome, Reply):
            self._bytes += len(outcome.body)
        self._write()
        self._go_on()

    # --- output

    def _write(self) -> None:
        """Write what has its turn, as long as somebody reads it."""
        while self._writing and not self._done.called and self._under_way:
            outcome = self._under_way[0].outcome
            if outcome is None:
                return
            line = self._under_way.popleft()
            self._bytes -= line.size
            if isinstance(outcome, Reply):
                self._bytes -= len(outcome.body)
            else:
                self._tell(line, outcome)
            if self.transport is not None:
                self.transport.write(self._text(line, outcome) + b"\n")
            self._meter.moved(1, line.size)

    def _tell(self, line: _Line, error: JobgateError) -> None:
        self.failed += 1
        words = ": ".join(word for word in (error.slug, error.title, error.detail) if word)
        sys.stderr.write(f"jobgate: line {line.number}: {words}\n")
        if isinstance(error, NoWorker) or self._stop:
            self.over = f"ended at line {line.number}"
            self._done.callback(None)

    def _text(self, line: _Line, outcome: Reply | JobgateError) -> bytes:
        if not self._as_json:
            return bytes(outcome.body) if isinstance(outcome, Reply) else b""
        document: dict[str, object] = {"line": line.number}
        if isinstance(outcome, Reply):
            document |= {"status": outcome.status, "content_type": outcome.content_type}
            document |= as_json(bytes(outcome.body))
        else:
            error = {"type": f"/problems/{outcome.slug}", "title": outcome.title}
            error |= {"detail": outcome.detail, "executed": outcome.executed}
            document["error"] = error
        return json.dumps(document, ensure_ascii=False).encode()

    def pauseProducing(self) -> None:
        """Nobody reads: write no more for now."""
        self._writing = False

    def resumeProducing(self) -> None:
        """Somebody reads again."""
        self._writing = True
        self._write()
        self._go_on()

    def stopProducing(self) -> None:
        """Nobody will read any more."""
        self.writeConnectionLost()

    def writeConnectionLost(self) -> None:
        """Nobody will read any more."""
        if not self._done.called:
            self.unread = True
            self._done.callback(None)

    def connectionLost(self, reason: Failure = connectionDone) -> None:  # noqa: ARG002 (as Twisted's)
        """All that was to be written has been."""
        if not self._written.called:
            self._written.callback(None)

    def _end(self) -> None:
        for call in list(self._calls):
            call.cancel()
