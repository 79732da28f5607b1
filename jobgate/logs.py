"""
Logs as JSON, one object a line: `twistd --logger=jobgate.logs.json_observer jobgate`.
"""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TextIO

import msgspec
from twisted.logger import formatEvent
from twisted.python.failure import Failure

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.logger import LogEvent

__all__ = ["json_observer"]

_OWN = ("worker", "queue", "command", "pid", "line", "address", "cause", "why")
"""Fields of an event that are worth a member of their own."""
_json = msgspec.json.Encoder(enc_hook=repr).encode


def json_observer(out: TextIO | None = None) -> Callable[[LogEvent], None]:
    """
    An observer that writes `at`, `level`, `source`, `message` and the event's own fields.

    Args:
        out: Where to; standard output unless given.
    """
    stream = out or sys.__stdout__ or sys.stderr

    def observe(event: LogEvent) -> None:
        stream.write(_line(event))
        stream.flush()

    return observe


def _line(event: dict[str, Any]) -> str:
    at = datetime.fromtimestamp(event["log_time"], UTC)
    line: dict[str, object] = {
        "at": at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "level": event["log_level"].name if "log_level" in event else "info",
        "source": event.get("log_namespace", "-"),
        "message": formatEvent(event),
    }
    line |= {name: event[name] for name in _OWN if name in event}
    failure = event.get("log_failure")
    if isinstance(failure, Failure):
        line["traceback"] = failure.getTraceback()
    return _json(line).decode() + "\n"
