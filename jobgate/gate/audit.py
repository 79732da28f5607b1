"""
The audit: one JSON line when a command is accepted, one when it has ended. Never bodies.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import msgspec
from twisted.logger import Logger

from jobgate.command import Reply

if TYPE_CHECKING:
    from jobgate.command import Command
    from jobgate.errors import JobgateError

__all__ = ["Audit"]

_json = msgspec.json.Encoder().encode


class Audit:
    """
    Appends to a file, one system call a line, so that a crash loses none.

    A line that cannot be written (disk full) is reported in the log, once until
    writing works again, and holds nobody up.

    Args:
        path: The file; made if it is not there.

    Raises:
        OSError: It cannot be opened for appending.
    """

    _log = Logger()

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._failing = False

    def accepted(self, command: Command) -> None:
        """It has been let in."""
        self._write("accepted", command, None)

    def refused(self, command: Command, error: JobgateError) -> None:
        """It has been turned away: acceptance and outcome in one."""
        self._write("refused", command, error.slug)

    def ended(self, command: Command, outcome: Reply | JobgateError | None) -> None:
        """It has ended, with a reply, a problem, or because its caller left."""
        if isinstance(outcome, Reply):
            status: object = outcome.status
        else:
            status = "cancelled" if outcome is None else outcome.slug
        self._write("ended", command, status)

    def append(
        self, event: str, name: str, queue: str, caller: str, attempt: int, **more: object
    ) -> None:
        """One line: what has happened to whom, sent by whom, and more where there is more."""
        line = {
            "at": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "event": event,
            "id": name,
            "queue": queue,
            "token": caller or None,
            "attempt": attempt,
            **more,
        }
        try:
            os.write(self._fd, _json(line) + b"\n")
            self._failing = False
        except OSError as error:
            if not self._failing:
                self._log.error("the audit cannot be written: {why}", why=error.strerror)
            self._failing = True

    def close(self) -> None:
        """Nothing more will be written."""
        os.close(self._fd)

    def _write(self, event: str, command: Command, status: object) -> None:
        more: dict[str, object] = {}
        if status is not None:
            more["status"] = status
        if event == "ended":
            began = command.began or command.ended
            more["waited"] = round(began - command.accepted, 6)
            more["ran"] = round(command.ended - began, 6)
        self.append(event, command.id, command.queue, command.caller, command.attempt, **more)
