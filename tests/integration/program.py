"""
The real program, as a subprocess, and what a test asks of it.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import psutil
from prometheus_client.parser import text_string_to_metric_families
from raw_http import Answer, RawConnection

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

TWISTD = str(Path(sys.executable).parent / "twistd")
WORKERS = Path(__file__).parent / "workers"
START_WITHIN = 30.0
STOP_WITHIN = 20.0
_OUTCOMES = ("succeeded", "failed", "shed", "cancelled")


def eventually(
    condition: Callable[[], Any], within: float = 10.0, what: str = "", every: float = 0.01
) -> Any:
    """Poll until the condition is true, and return what it said; fails after `within` seconds."""
    deadline = time.monotonic() + within
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            message = f"not within {within} s: {what or condition}"
            raise AssertionError(message)
        time.sleep(every)


def sdk(name: str, *arguments: str) -> list[str]:
    """The command of a worker script in `workers/`."""
    return ["python", str(WORKERS / f"{name}.py"), *arguments]


def to_toml(config: Mapping[str, Any]) -> str:
    """A configuration written down; `tokens` is a list of tables."""
    lines: list[str] = []
    for key, value in config.items():
        if key == "tokens":
            for token in value:
                lines += ["[[tokens]]", *(f"{k} = {_value(v)}" for k, v in token.items())]
        elif key == "queues":
            for name, queue in value.items():
                lines += [f'[queues."{name}"]', *(f"{k} = {_value(v)}" for k, v in queue.items())]
        else:
            lines += [f"[{key}]", *(f"{k} = {_value(v)}" for k, v in value.items())]
    return "\n".join(lines) + "\n"


def _value(value: object) -> str:
    if isinstance(value, dict):
        pairs = (f"{json.dumps(key)} = {_value(item)}" for key, item in value.items())
        return "{ " + ", ".join(pairs) + " }"
    return json.dumps(value)


def twistd(
    *arguments: str,
    cwd: Path,
    env: Mapping[str, str] | None = None,
    timeout: float = START_WITHIN,
) -> subprocess.CompletedProcess[str]:
    """Run twistd to its end."""
    return subprocess.run(
        [TWISTD, *arguments],
        cwd=cwd,
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def marked(folder: Path) -> list[psutil.Process]:
    """Every process that was started, at whatever remove, by a Program of this folder."""
    mark = f"TMPDIR={folder}".encode()
    found = []
    for process in Path("/proc").iterdir():
        if not process.name.isdecimal():
            continue
        try:
            if mark in (process / "environ").read_bytes().split(b"\0") and alive(int(process.name)):
                found.append(psutil.Process(int(process.name)))
        except (OSError, psutil.NoSuchProcess):
            continue
    return found


class Program:
    """
    A gate that runs as its users run it.

    Args:
        folder: Where it keeps its files; also how its processes are told from others.
        config: Tables, or TOML.
        arguments: Options of `twistd jobgate` after `--config`.
        front: What `[gate] front` is, unless the configuration says.

    Attributes:
        url: Where it listens.
        pid: Its process id.
        config_path: The file it reads.
        killed: The test has killed it: at the end there is nothing to ask of it.
    """

    def __init__(
        self,
        folder: Path,
        config: Mapping[str, Any] | str,
        arguments: tuple[str, ...] = ("-p", "0"),
        front: str = "",
    ) -> None:
        self.folder = folder
        self.front = front
        self.config_path = folder / "jobgate.toml"
        self.url = ""
        self.pid = 0
        self.killed = False
        self._looked_at = 0
        self._log_path = folder / "gate.log"
        self._arguments = arguments
        self.process: subprocess.Popen[bytes] | None = None
        self.write_config(config)

    # --- its life

    def write_config(self, config: Mapping[str, Any] | str) -> None:
        """Write the file that it reads at its start and upon SIGHUP."""
        if not isinstance(config, str):
            tables = {**config, "gate": dict(config.get("gate", {}))}
            if self.front:
                tables["gate"].setdefault("front", self.front)
            config = to_toml(tables)
        new = self.config_path.with_suffix(".new")
        new.write_text(config)
        new.replace(self.config_path)

    def start(
        self,
        within: float = START_WITHIN,
        before_exec: Callable[[], None] | None = None,
        pass_fds: tuple[int, ...] = (),
        env: Mapping[str, str] | None = None,
    ) -> Program:
        """Start it, or start it again, and wait until it listens."""
        self.killed = False
        with self._log_path.open("wb") as log:
            self.process = subprocess.Popen(
                [
                    TWISTD,
                    "-n",
                    "--pidfile=",
                    "jobgate",
                    "--config",
                    str(self.config_path),
                    *self._arguments,
                ],
                cwd=self.folder,
                env={**os.environ, "TMPDIR": str(self.folder), **(env or {})},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                preexec_fn=before_exec,  # noqa: PLW1509 (no threads here)
                pass_fds=pass_fds,
            )
        self.pid = self.process.pid
        found = eventually(self._listening, within, "it listens")
        self.url = found[1]
        return self

    def _listening(self) -> re.Match[str] | None:
        assert self.process is not None, "called by start"
        assert self.process.poll() is None, self.log
        return re.search(r"jobgate listening on (https?://\S+)", self.log)

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)

    def wait(self, within: float = STOP_WITHIN) -> int:
        """Wait for its exit; returns its status."""
        assert self.process is not None, "not started"
        return self.process.wait(within)

    def stop(self, within: float = STOP_WITHIN) -> None:
        """SIGTERM: it must exit 0 in time, leave no process, and have logged no traceback."""
        assert self.process is not None, "not started"
        if self.killed:
            return
        before = self.descendants()
        if self.process.poll() is None:
            self.signal(signal.SIGTERM)
        try:
            status = self.wait(within)
        except subprocess.TimeoutExpired:
            message = f"it did not stop within {within} s; the log ends with\n{self.log[-3000:]}"
            raise AssertionError(message) from None
        assert status == 0, (status, self.log[-3000:])
        self.nobody_is_left(before)
        self.no_traceback()

    def descendants(self) -> list[psutil.Process]:
        """Its children and theirs."""
        try:
            own = psutil.Process(self.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            own = []
        return own + [p for p in marked(self.folder) if p.pid != self.pid and p not in own]

    def nobody_is_left(self, before: list[psutil.Process], within: float = 2.0) -> None:
        """Assert that of these, and of all with its mark, nobody lives after `within` seconds."""

        def left() -> list[psutil.Process]:
            known = [p for p in before if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
            return known + marked(self.folder)

        eventually(lambda: not left(), within, f"nobody is left: {left()}", every=0.02)

    def no_traceback(self) -> None:
        """Assert that since the last look it has met no bug of its own."""
        before, self._looked_at = self._looked_at, len(self.own_log)
        new = self.own_log[before:]
        for sign in ("Traceback (most recent call last)", "Unhandled", "internal-error"):
            at = new.find(sign)
            assert at < 0, new[max(0, at - 300) :][:4000]

    def end_by_force(self) -> None:
        """Whatever happened before: leave nothing behind."""
        everyone = self.descendants()
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait(STOP_WITHIN)
        for process in everyone:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue

    def kill(self) -> list[psutil.Process]:
        """SIGKILL; returns its descendants of before."""
        everyone = self.descendants()
        self.killed = True
        self.signal(signal.SIGKILL)
        self.wait()
        return everyone

    # --- what it says

    @property
    def log(self) -> str:
        """All it has logged so far."""
        return self._log_path.read_text(errors="replace") if self._log_path.exists() else ""

    def logged(self, pattern: str, within: float = 10.0) -> re.Match[str]:
        """Wait for a log line."""
        found: re.Match[str] = eventually(
            lambda: re.search(pattern, self.log), within, f"the log says {pattern!r}"
        )
        return found

    def says(self, text: str, within: float = 10.0) -> None:
        """Wait for a text in the log, which may come after what it tells of has been seen."""
        eventually(lambda: text in self.log, within, f"the log says {text!r}")

    @property
    def own_log(self) -> str:
        """Without what its workers said."""
        return "\n".join(x for x in self.log.splitlines() if "jobgate.pool.report.Output#" not in x)

    # --- calling it

    def connect(self, timeout: float = 20.0, receive_buffer: int = 0) -> RawConnection:
        """A raw connection to it."""
        return RawConnection(self.url, timeout, receive_buffer)

    def request(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float = 30.0,
    ) -> Answer:
        """One request on a connection of its own."""
        address = urlsplit(self.url)
        assert address.hostname is not None, self.url
        connection = http.client.HTTPConnection(address.hostname, address.port, timeout=timeout)
        try:
            connection.request(method, path, body, dict(headers or {}))
            response = connection.getresponse()
            return Answer(response.status, response.getheaders(), response.read())
        finally:
            connection.close()

    def get(self, path: str, headers: Mapping[str, str] | None = None) -> Answer:
        """GET."""
        return self.request("GET", path, None, headers)

    def post(
        self,
        path: str,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        timeout: float = 30.0,
    ) -> Answer:
        """POST."""
        return self.request("POST", path, body, headers, timeout)

    def call(
        self,
        queue: str,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        timeout: float = 30.0,
    ) -> Answer:
        """`POST /call/<queue>`."""
        return self.post(f"/call/{queue}", body, headers, timeout)

    def workers(self, queue: str = "") -> list[dict[str, Any]]:
        """`GET /workers`, of one queue or all."""
        found: list[dict[str, Any]] = self.get("/workers").json["workers"]
        return [worker for worker in found if queue in ("", worker["queue"])]

    def worker_pids(self, queue: str) -> list[int]:
        """The processes of the workers of a queue."""
        return [worker["pid"] for worker in self.workers(queue) if worker["pid"]]

    def queue(self, name: str) -> dict[str, Any]:
        """`GET /queues/<name>`."""
        found: dict[str, Any] = self.get(f"/queues/{name}").json
        return found

    def running(self, queue: str, count: int = 1, within: float = 10.0) -> None:
        """Wait until so many commands run."""
        eventually(lambda: self.queue(queue)["running"] == count, within, f"{count} run in {queue}")

    def waiting(self, queue: str, count: int = 1, within: float = 10.0) -> None:
        """Wait until so many commands wait."""
        eventually(lambda: self.queue(queue)["depth"] == count, within, f"{count} wait in {queue}")

    def ready(self, queue: str, count: int = 1, within: float = 15.0) -> None:
        """Wait until so many workers can take commands."""
        eventually(
            lambda: self.queue(queue)["workers"] == count, within, f"{count} workers of {queue}"
        )

    def metrics(self) -> dict[str, dict[str, float]]:
        """`GET /metrics`: the plain numbers, by queue and then by name without `jobgate_`."""
        numbers: dict[str, dict[str, float]] = {}
        for family in text_string_to_metric_families(self.get("/metrics").body.decode()):
            for sample in family.samples:
                if set(sample.labels) == {"queue"}:
                    of_queue = numbers.setdefault(sample.labels["queue"], {})
                    of_queue[sample.name.removeprefix("jobgate_")] = sample.value
        return numbers

    def conserved(self) -> dict[str, dict[str, float]]:
        """The metrics, after asserting that in them no command is lost or doubled."""
        numbers = self.metrics()
        for queue, of_queue in numbers.items():
            ended = sum(of_queue[f"commands_{outcome}_total"] for outcome in _OUTCOMES)
            inside = of_queue["commands_waiting"] + of_queue["commands_running"]
            assert of_queue["commands_accepted_total"] == ended + inside, (queue, of_queue)
        return numbers


def at_rest(gate: Program, queue: str, within: float = 10.0) -> dict[str, float]:
    """Wait until nothing waits or runs, and return the queue's numbers."""

    def numbers() -> dict[str, float] | None:
        of_queue = gate.conserved()[queue]
        return None if of_queue["commands_waiting"] or of_queue["commands_running"] else of_queue

    found: dict[str, float] = eventually(numbers, within, f"nothing waits or runs in {queue}")
    return found


def lines_of(path: Path) -> list[str]:
    """The lines of a file that may not be there yet."""
    return path.read_text().splitlines() if path.exists() else []
