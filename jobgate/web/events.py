"""
Server-sent events (HTML Living Standard, section 9.2).
"""

from __future__ import annotations

from base64 import b64encode
from typing import TYPE_CHECKING

import msgspec

from jobgate.errors import InternalError, JobgateError
from jobgate.web.problems import problem

if TYPE_CHECKING:
    from twisted.python.failure import Failure

__all__ = ["as_event", "error_event"]


def as_event(data: bytes | bytearray, event: str = "", name: str = "") -> bytes:
    """
    Data as one event.

    Text is sent line by line as `data`; what is not UTF-8, or has a bare carriage
    return that the format cannot carry, is sent as event `base64`. `name` is the event's id.
    """
    try:
        text = bytes(data).decode()
    except UnicodeDecodeError:
        text = "\r"
    if "\r" in text:
        event, text = "base64", b64encode(data).decode()
    head = (f"id: {name}\n" if name else "") + (f"event: {event}\n" if event else "")
    return (head + "".join(f"data: {line}\n" for line in text.split("\n")) + "\n").encode()


def error_event(failure: Failure, command_id: str) -> bytes:
    """A failure after the first part, as event `error` with the problem document."""
    error = failure.value
    if not isinstance(error, JobgateError):
        error = InternalError("the gate's log has the details")
    document = msgspec.json.format(problem(error, command_id).body, indent=-1)
    return as_event(document, "error")
