"""
What a worker says aside, and what a dead one leaves behind.
"""

from __future__ import annotations

from collections import deque
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple

import msgspec
from twisted.logger import Logger

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Evidence", "Output", "Report", "Slow", "Usage", "now_as_text"]

_KEPT = 64 * 1024
"""Bytes of a worker's last output that are kept."""
_LINE = 4096
"""Bytes of one line that are logged."""
_LINES_PER_SECOND = 200
"""Lines of one worker that are logged in a second; the rest are counted."""


class Evidence(NamedTuple):
    """
    The command that a worker was running when it was lost.

    Attributes:
        id: Its id.
        content_type: What its body is.
        body: Its body.
    """

    id: str
    content_type: str
    body: bytes | bytearray


class Usage(msgspec.Struct, kw_only=True):
    """
    What a process has used in its life, as the system counted it (getrusage(2)).

    Attributes:
        user: Seconds of CPU in the program.
        system: Seconds of CPU in the kernel for it.
        max_rss: The most resident memory it had, in bytes; null if that was never more than the
            gate's own, as a copy of which every child begins.
        major_faults: Pages that had to be read from disk.
    """

    user: float
    system: float
    max_rss: int | None
    major_faults: int


class Slow(msgspec.Struct, kw_only=True):
    """
    A command that ran longer than `soft_timeout`.

    Attributes:
        command: Its id.
        pid: The process that runs it.
        at: When it was noticed, RFC 3339.
        ran: Seconds it had run by then.
        stacks: Where each Python thread of the worker was, as far as it can tell.
    """

    command: str
    pid: int | None
    at: str
    ran: float
    stacks: str


class Report(msgspec.Struct, kw_only=True):
    """
    The last death of a worker, and what was noticed of those that live.

    Attributes:
        worker: Its name.
        queue: The queue it worked for.
        pid: Its process id.
        kind: "died", "protocol", "timeout", "memory", "stopped", or "slow" if it lives on.
        cause: In words, why it ended.
        exit_status: What it exited with, or None if a signal ended it.
        signal: The signal's name, or None.
        at: When, RFC 3339.
        lived: Seconds from its start.
        commands_done: How many it had answered.
        running: Ids of the commands it had in hand.
        command: The one of these it had begun first; `report/command` has its body.
        usage: CPU and memory of the process; null if the system did not tell.
        slow: The last command that ran longer than `soft_timeout` here, or null.
        output: The last 64 KiB of its stderr, and of its stdout that was no reply.
    """

    worker: str
    queue: str
    pid: int | None
    kind: str
    cause: str
    exit_status: int | None
    signal: str | None
    at: str
    lived: float
    commands_done: int
    running: list[str]
    command: str | None = None
    usage: Usage | None = None
    slow: Slow | None = None
    output: str


def now_as_text() -> str:
    """The time of day, RFC 3339."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class Output:
    """
    Logs what a worker prints line by line and keeps the last of it.

    Args:
        worker: The worker's name, for the log.
        running: Tells the id of the command it is running, or "".
        seconds: The time.
    """

    _log = Logger()

    def __init__(
        self, worker: str, running: Callable[[], str], seconds: Callable[[], float]
    ) -> None:
        self._worker = worker
        self._running = running
        self._seconds = seconds
        self._kept: deque[bytes] = deque()
        self._kept_bytes = 0
        self._rest = b""
        self._aside: list[bytes] | None = None
        self._second = 0
        self._logged = 0

    def take(self, data: bytes) -> None:
        """More output has come."""
        self._keep(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._line(line)
        if len(self._rest) > _LINE:
            self._line(self._rest)
            self._rest = b""

    def end(self) -> None:
        """Nothing more will come."""
        if self._rest:
            self._line(self._rest)
            self._rest = b""
        self._tell_unlogged()

    def mark(self) -> None:
        """Keep what comes from now on for `since_mark`, too."""
        self._aside = []

    def since_mark(self) -> str:
        """What has come since `mark`; forgets it."""
        said, self._aside = self._aside or [], None
        return b"".join(said)[-_KEPT:].decode("utf-8", "replace")

    def text(self) -> str:
        """The last of it, as far as it is text."""
        return b"".join(self._kept)[-_KEPT:].decode("utf-8", "replace")

    def _keep(self, data: bytes) -> None:
        data = data[-_KEPT:]
        if self._aside is not None:
            self._aside.append(data)
        self._kept.append(data)
        self._kept_bytes += len(data)
        while self._kept_bytes - len(self._kept[0]) >= _KEPT:
            self._kept_bytes -= len(self._kept.popleft())

    def _line(self, line: bytes) -> None:
        second = int(self._seconds())
        if second != self._second:
            self._tell_unlogged()
            self._second = second
        self._logged += 1
        if self._logged > _LINES_PER_SECOND:
            return
        self._log.info(
            "{worker} [{command}]: {line}",
            worker=self._worker,
            command=self._running() or "-",
            line=line[:_LINE].decode("utf-8", "replace"),
        )

    def _tell_unlogged(self) -> None:
        if self._logged > _LINES_PER_SECOND:
            self._log.warn(
                "{worker}: {count} more lines were not logged",
                worker=self._worker,
                count=self._logged - _LINES_PER_SECOND,
            )
        self._logged = 0
