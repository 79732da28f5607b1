"""
A local S3-compatible storage, as a program of its own.

Must not know what anybody keeps in it.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from http.client import HTTPConnection
from typing import TYPE_CHECKING, Self

import pytest

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Storage"]

_START = 40.0
"""Seconds it has until it listens."""
_RUNNING = re.compile(r"Running on http://127\.0\.0\.1:(\d+)")


class Storage:
    """
    moto's server on a free port, for as long as a `with` lasts.

    Args:
        folder: Where its log goes.

    Attributes:
        port: Where it listens on the loopback.
    """

    def __init__(self, folder: Path) -> None:
        self._log = folder / "storage.log"
        self._process: subprocess.Popen[bytes] | None = None
        self.port = 0

    def __enter__(self) -> Self:
        """Start it and wait until it listens."""
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        deadline = time.monotonic() + _START
        while (found := _RUNNING.search(self._log.read_text(errors="replace"))) is None:
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.end()
                pytest.fail(f"the storage did not start:\n{self._log.read_text()}")
            time.sleep(0.02)
        self.port = int(found[1])
        return self

    def __exit__(self, *failure: object) -> None:
        """End it."""
        self.end()

    def end(self) -> None:
        """It is gone; what was in it, too."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def get(self, path: str) -> tuple[int, str, bytes]:
        """The status, content type and bytes of what is kept there."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            # Whoever says anything about themselves is let in.
            connection.request("GET", path, headers={"Authorization": "AWS local:unsigned"})
            answer = connection.getresponse()
            return answer.status, answer.headers["Content-Type"], answer.read()
        finally:
            connection.close()
