"""
A file as commands and back: one line is one command, and a mark says where the file ends.

Pure. A line ends at a newline and nowhere else; a carriage return, an empty line and a last line
without a newline come through as they are. The mark is a command of its own content type, and its
body has a newline in it: no line of a file has either, so data is never taken for it, and a pull of
lines gives it alone (contract section 4.2).
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["END_TYPE", "LINE_TYPE", "Batch", "End", "LineTooLong", "batches", "halves"]

END_TYPE = "application/vnd.jobgate.end+json"
"""The content type of the mark."""
LINE_TYPE = "application/octet-stream"
"""The content type of a line."""
_MAX_LINE = 63 * 1024 * 1024
"""Bytes: no gate takes a longer body."""


class LineTooLong(Exception):
    """A line that no gate would take."""


class Batch(NamedTuple):
    """
    Some whole lines.

    Attributes:
        data: The lines; each but perhaps the file's last with its newline.
        lines: How many.
    """

    data: bytes
    lines: int


class End(NamedTuple):
    """
    The mark behind a file.

    Attributes:
        lines: How many lines the file had.
        size: How many bytes.
        sha256: Their digest, in hex.
        newline: Whether the last line ended with a newline.
    """

    lines: int
    size: int
    sha256: str
    newline: bool

    def encode(self) -> bytes:
        """As the body of a command."""
        return json.dumps(self._asdict()).encode() + b"\n"

    @classmethod
    def decode(cls, body: bytes) -> End:
        """
        From the body of a command.

        Raises:
            ValueError: It is none.
        """
        try:
            found = json.loads(body)
            return cls(*(kind(found[name]) for name, kind in _FIELDS.items()))
        except (KeyError, TypeError, ValueError):
            message = f"found {body[:200]!r}, wanted the mark at the end of a file"
            raise ValueError(message) from None


_FIELDS: dict[str, type] = {"lines": int, "size": int, "sha256": str, "newline": bool}


def batches(
    read: Callable[[int], bytes], size: int, most: int, longest: int = _MAX_LINE
) -> Iterator[Batch]:
    """
    The whole of a file in batches of whole lines.

    Args:
        read: Gives up to so many of the next bytes, none at the end.
        size: Bytes that a batch may have, or up to twice as many; a longer line is alone.
        most: Lines that a batch may have.
        longest: Bytes that a line may have.

    Raises:
        LineTooLong: A line is longer.
    """
    held: list[bytes] = []  # the beginning of a line, in pieces
    length = 0
    while piece := read(size):
        end = piece.rfind(b"\n") + 1
        held.append(piece[:end] if end else piece)
        if not end:
            length += len(piece)
        elif length <= size:
            yield from _by_count(b"".join(held), most)
        else:
            first = piece.find(b"\n") + 1
            length += first
            held[-1] = piece[:first]
            if length <= longest:
                yield Batch(b"".join(held), 1)
                length = 0
                yield from _by_count(piece[first:end], most)
        if length > longest:
            raise LineTooLong
        if end:
            held = [piece[end:]]
            length = len(piece) - end
    if length:
        yield Batch(b"".join(held), 1)


def _by_count(data: bytes, most: int) -> Iterator[Batch]:
    count = data.count(b"\n")
    while count > most:
        rest = data.split(b"\n", most)[-1]
        yield Batch(data[: len(data) - len(rest)], most)
        data, count = rest, count - most
    if count:
        yield Batch(data, count)


def halves(batch: Batch) -> tuple[Batch, Batch]:
    """A batch of several lines as two."""
    first, second = _by_count(batch.data, (batch.lines + 1) // 2)
    return first, second
