"""
The `lines` protocol: programs that read a line and print lines, knowing nothing of us.

Sans-IO, like `frames`. One command is written as `send` with `{line}` replaced;
the reply is the one line that comes back, or all lines up to `until` or
`until_regex` (contract section 5.2).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from jobgate.wire.frames import MAX_FRAME, WireError

if TYPE_CHECKING:
    import re

__all__ = ["LinesDecoder", "Template", "one_line"]


def one_line(body: bytes, content_type: str) -> bytes:
    """
    A command's body as the one line that a program reads.

    A JSON body is compacted without being decoded, so numbers keep their digits.

    Raises:
        ValueError: It has a newline and is not JSON, or says it is JSON and is not.
    """
    kind = content_type.partition(";")[0].strip().lower()
    is_json = kind == "application/json" or kind.endswith("+json")
    if not is_json and b"\n" not in body:
        return body
    try:
        return msgspec.json.format(body, indent=-1)
    except (msgspec.DecodeError, RecursionError) as error:
        if is_json:
            message = f"body: the content type says JSON, but it is not: {error}"
        else:
            message = "body: one line is wanted, but there is a newline in it and it is not JSON"
        raise ValueError(message) from None


class Template:
    """What is written for one command: `send` with every `{line}` replaced."""

    __slots__ = ("_parts",)

    def __init__(self, send: str) -> None:
        self._parts = send.encode().split(b"{line}")

    def fill(self, line: bytes) -> bytes:
        """The bytes to write."""
        return line.join(self._parts)


class LinesDecoder:
    """
    Puts one reply together from what a program prints.

    Args:
        until: The line that ends a reply and is dropped.
        until_regex: The line that ends a reply and belongs to it. Without either a
            reply is one line.
        limit: The longest reply, in bytes.
    """

    __slots__ = ("_buffer", "_last", "_limit", "_line_start", "_searched", "_until")

    def __init__(
        self,
        until: str = "",
        until_regex: re.Pattern[bytes] | None = None,
        limit: int = MAX_FRAME,
    ) -> None:
        self._until = until.encode()
        self._last = until_regex
        self._limit = limit
        self._buffer = bytearray()
        self._line_start = 0
        self._searched = 0

    @property
    def pending(self) -> bytes:
        """What has come and belongs to no reply yet."""
        return bytes(self._buffer)

    def feed(self, data: bytes) -> bytes | None:
        """
        Take output in.

        Returns:
            The reply without its last newline once it is complete, else None.
            What came after it stays in `pending`.

        Raises:
            WireError: The reply is over the limit.
        """
        buffer = self._buffer
        buffer += data
        while True:
            newline = buffer.find(b"\n", self._searched)
            if newline < 0:
                self._searched = len(buffer)
                self._check(len(buffer))
                return None
            line = bytes(buffer[self._line_start : newline]).removesuffix(b"\r")
            if self._until and line == self._until:
                return self._take(max(self._line_start - 1, 0), newline)
            if not self._until and (self._last is None or self._last.search(line)):
                return self._take(newline, newline)
            self._line_start = self._searched = newline + 1

    def _check(self, length: int) -> None:
        if length > self._limit:
            message = f"a reply of over {self._limit} bytes"
            raise WireError(message)

    def _take(self, end: int, newline: int) -> bytes:
        self._check(end)
        reply = bytes(self._buffer[:end])
        del self._buffer[: newline + 1]
        self._line_start = self._searched = 0
        return reply
