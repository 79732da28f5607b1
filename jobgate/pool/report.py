"""
What a worker says aside, and what a dead one leaves behind.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import msgspec
from twisted.logger import Logger

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Output", "Report"]

_KEPT = 64 * 1024
"""Bytes of a worker's last output that are kept."""
_LINE = 4096
"""Bytes of one line that are logged."""
_LINES_PER_SECOND = 200
"""Lines of one worker that are logged in a second; the rest are counted."""


class Report(msgspec.Struct, kw_only=True):
    """
    The last death of a worker.

    Attributes:
        worker: Its name.
        queue: The queue it worked for.
        pid: Its process id.
        cause: In words, why it ended.
        exit_status: What it exited with, or None if a signal ended it.
        signal: The signal's name, or None.
        at: When, RFC 3339.
        lived: Seconds from its start.
        commands_done: How many it had answered.
        running: Ids of the commands it had in hand.
        output: The last 64 KiB of its stderr, and of its stdout that was no reply.
    """

    worker: str
    queue: str
    pid: int | None
    cause: str
    exit_status: int | None
    signal: str | None
    at: str
    lived: float
    commands_done: int
    running: list[str]
    output: str


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

    def text(self) -> str:
        """The last of it, as far as it is text."""
        return b"".join(self._kept)[-_KEPT:].decode("utf-8", "replace")

    def _keep(self, data: bytes) -> None:
        data = data[-_KEPT:]
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
