"""
Runs an example as a user would: the real program, its real configuration, over HTTP.

Must not know what any example does.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, Self

import pytest
from program import eventually

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType

__all__ = ["EXAMPLES", "Answer", "ExampleGate", "need", "need_installed", "need_module"]

EXAMPLES = Path(__file__).parents[2] / "examples"
"""Where the examples live."""

_START = 45.0
"""Seconds an example has until it listens."""
_STOP = 15.0
"""Seconds it has to go after SIGTERM."""
_ANSWER = 25.0
"""Seconds a call may take."""
_LISTENING = re.compile(r"jobgate listening on http://127\.0\.0\.1:(\d+)")


def need(program: str, package: str) -> None:
    """Skip a test whose program is missing; in CI, where all must be there, fail it."""
    if shutil.which(program) is None:
        _missing(f"{program} is not installed (Debian package {package})")


def need_module(name: str) -> Any:
    """Import a module that only a test wants, or do as `need` does."""
    need_installed(name)
    return import_module(name)


def need_installed(*names: str) -> None:
    """Look for modules that an example's own programs want, or do as `need` does."""
    for name in names:
        if find_spec(name.partition(".")[0]) is None:
            _missing(f"the module {name} is not installed (pip install 'jobgate[test]')")


def _missing(reason: str) -> NoReturn:
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


class Answer(NamedTuple):
    """What came back: status, headers by lower-case name, body."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def text(self) -> str:
        """The body as text."""
        return self.body.decode()


class ExampleGate:
    """
    `twistd -n jobgate --config examples/NAME/jobgate.toml --port 0` for as long as a `with` lasts.

    Args:
        name: The example's folder, or the path of a copy of it.
        folder: Where its log goes.
    """

    def __init__(self, name: str | Path, folder: Path) -> None:
        self._config = EXAMPLES / name / "jobgate.toml"
        self._log = folder / "jobgate.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._port = 0

    @property
    def log(self) -> str:
        """What it has logged so far."""
        return self._log.read_text(errors="replace")

    def __enter__(self) -> Self:
        """Start it and wait until it listens."""
        twistd = Path(sys.executable).parent / "twistd"
        command = [str(twistd), "-n", "--pidfile=", "jobgate"]
        command += ["--config", str(self._config), "--port", "0"]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self._log.parent
            )
        deadline = time.monotonic() + _START
        while (found := _LISTENING.search(self.log)) is None:
            if self._process.poll() is not None or time.monotonic() > deadline:
                self._process.kill()
                self._process.wait()
                pytest.fail(f"{self._config} did not start:\n{self.log}")
            time.sleep(0.02)
        self._port = int(found[1])
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        """Ask it to stop; it must go in time and with status 0."""
        process = self._process
        assert process is not None
        process.send_signal(signal.SIGTERM)
        try:
            status = process.wait(_STOP)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            status = -signal.SIGKILL
        if kind is None:
            assert status == 0, f"it ended with {status}:\n{self.log}"
            assert "Traceback" not in self.log, self.log

    def says(self, text: str, within: float = 10.0) -> None:
        """Wait until this text stands in the log."""
        eventually(lambda: text in self.log, within, f"the log says {text!r}")

    def call(self, queue: str, body: bytes | str, content_type: str = "text/plain") -> Answer:
        """`POST /call/<queue>` on a connection of its own."""
        return self._ask("POST", f"/call/{queue}", body, {"Content-Type": content_type})

    def calls(
        self, queue: str, bodies: Sequence[bytes | str], content_type: str = "text/plain"
    ) -> list[Answer]:
        """All of these at the same time, answers in the order of the bodies."""
        with ThreadPoolExecutor(len(bodies)) as pool:
            return list(pool.map(lambda body: self.call(queue, body, content_type), bodies))

    def graph(self, document: bytes | str) -> dict[str, Any]:
        """`POST /graphs`; what has become of it."""
        answer = self._ask("POST", "/graphs", document, {"Prefer": f"wait={_ANSWER - 2:.0f}"})
        assert answer.status == 200, answer.text
        found: dict[str, Any] = json.loads(answer.body)
        return found

    def get(self, path: str) -> Answer:
        """`GET path`."""
        return self._ask("GET", path, b"", {})

    def _ask(self, method: str, path: str, body: bytes | str, headers: dict[str, str]) -> Answer:
        connection = HTTPConnection("127.0.0.1", self._port, timeout=_ANSWER)
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            found = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, found, response.read())
        finally:
            connection.close()
