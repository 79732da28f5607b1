"""
What an embedding program hands over, looked at before it is let in.

What comes over HTTP has been read strictly; here anything may come, and what does not fit would
be found out by somebody else: in a worker's frame, a table, or what is counted. Pure.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Arguments", "checked"]

_LONGEST = 1e9
"""Seconds: what is longer is as good as for ever."""


class Arguments(NamedTuple):
    """
    What a command is made of.

    Attributes:
        body: The work.
        content_type: What the body is.
        priority: 0 (first) to 7.
        seconds: Until its time is up, or until it may start.
        key: The same key, the same shard.
    """

    body: bytes
    content_type: str
    priority: int
    seconds: float
    key: str


def checked(
    body: object,
    content_type: object,
    priority: object,
    seconds: float,
    key: object = "",
    *,
    span: str = "timeout",
) -> Arguments:
    """
    Make plain values of what was given.

    Args:
        body: Bytes, or a buffer of them.
        content_type: Printable text.
        priority: 0 to 7.
        seconds: 0 or more; beyond thirty years it is thirty years.
        key: Printable text, perhaps none.
        span: What `seconds` is called.

    Raises:
        TypeError: Something is of another kind.
        ValueError: Something cannot be.
    """
    if not isinstance(body, bytes | bytearray | memoryview):
        raise _other("body", body, "bytes")
    for name, text in (("content_type", content_type), ("key", key)):
        if not isinstance(text, str):
            raise _other(name, text, "str")
        if not text.isprintable():
            message = f"{name}: found {text!r}, wanted printable characters"
            raise ValueError(message)
    if not isinstance(priority, int):
        raise _other("priority", priority, "int")
    if not 0 <= priority <= 7:
        message = f"priority: found {priority}, wanted 0 to 7"
        raise ValueError(message)
    if not isinstance(seconds, int | float):
        raise _other(span, seconds, "a number of seconds")
    if not seconds >= 0:  # which a NaN is neither
        message = f"{span}: found {seconds}, wanted 0 seconds or more"
        raise ValueError(message)
    # Subclasses may be what no encoder knows.
    return Arguments(
        bytes(body), str(content_type), int(priority), float(min(seconds, _LONGEST)), str(key)
    )


def _other(name: str, found: object, wanted: str) -> TypeError:
    return TypeError(f"{name}: found {type(found).__name__}, wanted {wanted}")
