"""
A streamed reply on its way from its worker to its caller.

Knows neither of them: the worker's side writes, the caller's side reads, and whoever is not there
yet misses nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Protocol

from twisted.logger import Logger

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.python.failure import Failure

__all__ = ["Hold", "ReplyStream"]


class Hold(Protocol):
    """Stops what a worker sends, or lets it go on."""

    def __call__(self, *, on: bool) -> bool:
        """Stop it (True) or let it go on (False); returns whether that was done."""


class ReplyStream:
    """
    The parts of a streamed reply, kept until a reader is there, then passed on.

    A worker writes with `chunk` and `end`; the caller's side reads with `read`.

    Args:
        hold: Stops what the worker sends, if that holds up nobody else.

    Attributes:
        jobs: As a Reply's; there at the end.
    """

    jobs: bytes = b""

    _log: ClassVar = Logger()

    def __init__(self, hold: Hold | None = None) -> None:
        self._hold = hold
        self._holding = False
        self._chunks: list[bytes | bytearray] = []
        self._ended = False
        self._end: Failure | None = None
        self._on_chunk: Callable[[bytes | bytearray], None] | None = None
        self._on_end: Callable[[Failure | None], None] | None = None

    def read(
        self,
        on_chunk: Callable[[bytes | bytearray], None],
        on_end: Callable[[Failure | None], None],
    ) -> None:
        """Pass on what has come and all that will; `on_end` gets None or why it broke."""
        self._on_chunk, self._on_end = on_chunk, on_end
        chunks, self._chunks = self._chunks, []
        for chunk in chunks:
            on_chunk(chunk)
        if self._ended:
            on_end(self._end)

    def pause(self) -> bool:
        """Ask the worker for no more for now; False if that would hold up other commands."""
        if self._ended:
            # It has said all: what it says now is for others.
            return True
        if self._hold is None:
            return False
        self._holding = self._hold(on=True)
        return self._holding

    def resume(self) -> None:
        """Take more from the worker, if it is this stream that has it wait."""
        if self._hold is not None and self._holding:
            self._holding = False
            self._hold(on=False)

    def chunk(self, data: bytes | bytearray) -> None:
        """A part has come; ignored after the end."""
        if self._ended or not data:
            return
        if self._on_chunk is None:
            self._chunks.append(data)
            return
        try:
            self._on_chunk(data)
        except Exception:  # noqa: BLE001 (a reader's trouble must not reach the worker)
            self._log.failure("the reader of a streamed reply failed")
            self._on_chunk = None
            self._ended = True
            self.resume()

    def end(self, failure: Failure | None = None) -> None:
        """Nothing more will come; only the first call counts."""
        if self._ended:
            return
        self._ended, self._end = True, failure
        # Whatever the reader has yet to read: the worker has others to answer.
        self.resume()
        if self._on_end is not None:
            self._on_end(failure)
