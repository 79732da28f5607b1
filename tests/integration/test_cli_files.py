"""
`jobgate write` and `jobgate read`: a file through a gate, whatever becomes of the gate meanwhile.
"""

from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import pytest
from background import background, result
from command_line import JOBGATE, jobgate
from program import Program, eventually, sdk

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conftest import StartGate

pytestmark = pytest.mark.timeout(300)

MEMORY = {"gate": {"store": "memory:"}}
_MOST_MEMORY = 150_000_000
"""Bytes that each side may take."""


def lines(count: int, seed: int = 1) -> bytes:
    """Lines of all lengths, some of them empty."""
    random = Random(seed)
    return b"".join(
        b"%d %s\n" % (number, b"." * random.choice((0, 0, 1, 20, 200))) if number % 7 else b"\n"
        for number in range(count)
    )


class Running:
    """A command under way, whose memory is looked at when it is over."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [*JOBGATE, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        self._most = background(self._watch)

    def _watch(self) -> int:
        """The most memory it has taken, as far as could be seen until its end."""
        most = 0
        while self.process.poll() is None:
            with contextlib.suppress(OSError, IndexError):
                status = Path(f"/proc/{self.process.pid}/status").read_text()
                most = int(status.partition("VmHWM:")[2].split()[0]) * 1024
            time.sleep(0.02)
        return most

    def end(self) -> dict[str, Any]:
        """Wait for it; it must end well, and its summary is returned."""
        said, complained = self.process.communicate(timeout=250)
        assert (self.process.returncode, complained) == (0, b"")
        assert 0 < result(self._most) < _MOST_MEMORY
        summary: dict[str, Any] = json.loads(said)
        return summary

    def kill(self) -> None:
        """Whatever it does."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.communicate(timeout=20)


@pytest.fixture
def running() -> Iterator[list[Running]]:
    """Commands of a test; none outlives it."""
    commands: list[Running] = []
    yield commands
    for command in commands:
        command.kill()


def start(running: list[Running], *arguments: str) -> Running:
    """Start a command."""
    running.append(Running(*arguments))
    return running[-1]


@pytest.fixture(scope="module")
def gate(start_shared_gate: StartGate) -> Program:
    """A gate that keeps queues in memory."""
    return start_shared_gate(MEMORY)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\n",
        b"\n\n\n",
        b"a",
        b"a\n",
        b"\r\n\r\n",
        b"\ra\rb\n\r",
        b"\x00\n\xff\xfe\n\x80",
        b'{"lines": 0, "size": 0, "sha256": "", "newline": true}\n' * 2,
        "é\u2028\u0085\v\f\x1c\n\ufeff".encode(),
        lines(3000),
        lines(2000) + b"no newline",
    ],
    ids=range(12),
)
def test_any_file(gate: Program, tmp_path: Path, data: bytes) -> None:
    """Byte for byte, and the mark is gone with it."""
    source, copy = tmp_path / "source", tmp_path / "copy"
    source.write_bytes(data)
    done = jobgate("write", gate.url, "file", str(source))
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    done = jobgate("read", gate.url, "file", str(copy))
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert copy.read_bytes() == data
    assert gate.queue("file")["depth"] == 0


def test_pipes(gate: Program) -> None:
    """From stdin, to stdout, with a summary that does not mix with the lines."""
    data = lines(500)
    done = jobgate("write", gate.url, "pipe", "-", "--json", stdin=data)
    written = json.loads(done.stdout)
    done = jobgate("read", gate.url, "pipe", "-", "--json")
    read = json.loads(done.stderr)
    assert done.stdout == data
    assert (read["lines"], read["size"]) == (500, len(data))
    assert read["sha256"] == read["mark"]["sha256"] == written["sha256"]


def seen_on_a_terminal(*arguments: str) -> tuple[int, str]:
    """Run a command whose stderr is a terminal; its status, and what is there in the end."""
    ours, theirs = pty.openpty()
    with subprocess.Popen([*JOBGATE, *arguments], stdout=subprocess.PIPE, stderr=theirs) as process:
        os.close(theirs)
        seen = b""
        with contextlib.suppress(OSError):  # a terminal that nobody writes to any more: EIO
            while data := os.read(ours, 65536):
                seen += data
        os.close(ours)
        assert process.stdout is not None
        assert process.stdout.read() == b""
        return process.wait(60), seen.decode()


def test_progress_is_for_terminals(gate: Program, tmp_path: Path) -> None:
    """A bar while it lasts and a summary at the end; with --json neither."""
    source = tmp_path / "source"
    source.write_bytes(lines(500))
    for command in ("write", "read"):
        path = str(source if command == "write" else tmp_path / "copy")
        status, seen = seen_on_a_terminal(command, gate.url, "bar", path)
        assert status == 0
        assert "\x1b[" in seen
        assert f"{command}: 500 lines, {source.stat().st_size:,} bytes in " in seen


def test_without_a_mark(gate: Program, tmp_path: Path) -> None:
    """It stops after some empty polls; what it has is written."""
    jobgate("write", gate.url, "part", "-", "--no-mark", stdin=b"a\nb")
    copy = tmp_path / "copy"
    options = ("--retries", "2", "--wait", "0.1", "--json")
    done = jobgate("read", gate.url, "part", str(copy), *options)
    assert done.returncode == 0
    assert json.loads(done.stdout)["mark"] is None
    assert copy.read_bytes() == b"a\nb\n"
    done = jobgate("read", gate.url, "nothing", str(copy), *options)
    assert (done.returncode, copy.read_bytes()) == (0, b"")


def test_a_file_that_was_not_read_whole(gate: Program, tmp_path: Path) -> None:
    """Somebody else had a line of it: that is told, unless a part is what was wanted."""
    for options, status in (((), 1), (("--no-check",), 0)):
        jobgate("write", gate.url, "shared", "-", stdin=b"a\nb\nc\n")
        assert jobgate("pull", gate.url, "shared").stdout == b"a"
        done = jobgate("read", gate.url, "shared", str(tmp_path / "copy"), *options)
        assert done.returncode == status
        assert (tmp_path / "copy").read_bytes() == b"b\nc\n"
        assert (b"read 2 lines" in done.stderr) is bool(status)


def test_files_that_cannot_be_opened(gate: Program, tmp_path: Path) -> None:
    """One line says so."""
    for command in ("write", "read"):
        done = jobgate(command, gate.url, "q", str(tmp_path / "no" / "file"))
        assert done.returncode == 1
        assert done.stderr.endswith(b"No such file or directory\n")
        assert done.stderr.count(b"\n") == 1


def test_long_lines(gate: Program, tmp_path: Path, running: list[Running]) -> None:
    """Ten MiB each, in flat memory."""
    source, copy = tmp_path / "source", tmp_path / "copy"
    with source.open("wb") as file:
        for number in range(12):
            file.write(b"%d" % number + b"x" * (10 * 2**20) + b"\n" + b"short\n" * 3)
    reader = start(running, "read", gate.url, "long", str(copy), "--json")
    start(running, "write", gate.url, "long", str(source), "--json").end()
    reader.end()
    assert copy.read_bytes() == source.read_bytes()


def test_a_line_over_the_limit(start_gate: StartGate) -> None:
    """The gate's limit is told; what came before is in."""
    gate = start_gate({"gate": {"store": "memory:", "max_body": "1KiB"}})
    done = jobgate("write", gate.url, "q", "-", stdin=lines(100) + b"x" * 1025 + b"\n")
    assert done.returncode == 3
    assert done.stderr.startswith(b"jobgate: after 100 lines: body-too-large: ")


def test_a_small_queue(start_gate: StartGate, tmp_path: Path, running: list[Running]) -> None:
    """The writer waits for the reader."""
    gate = start_gate({"gate": {"store": "memory:"}, "queues": {"q": {"max_backlog": 50}}})
    source, copy = tmp_path / "source", tmp_path / "copy"
    source.write_bytes(lines(400))
    writer = start(running, "write", gate.url, "q", str(source), "--json")
    eventually(lambda: gate.queue("q")["depth"] > 20, 20, "it is full")
    start(running, "read", gate.url, "q", str(copy), "--json").end()
    assert writer.end()["repeated"] > 0
    assert copy.read_bytes() == source.read_bytes()


def free_port() -> int:
    """A port that a gate can have, and have again."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.mark.parametrize("first", ["read", "write"])
def test_a_gate_that_is_killed(tmp_path: Path, running: list[Running], first: str) -> None:
    """Again and again, while both are at work: nothing is lost, nothing is doubled."""
    source, copy = tmp_path / "source", tmp_path / "copy"
    source.write_bytes(lines(15_000))
    gate = Program(tmp_path, {}, ("-p", str(free_port())))
    try:
        gate.start()
        write = ("write", gate.url, "q", str(source), "--json")
        read = ("read", gate.url, "q", str(copy), "--json")
        commands = {command[0]: command for command in (write, read)}
        both = {first: start(running, *commands.pop(first))}
        for name, command in commands.items():
            both[name] = start(running, *command)
        size = source.stat().st_size
        for part in (0.05, 0.3, 0.6, 0.9):
            eventually(
                lambda part=part: copy.exists() and copy.stat().st_size > part * size,
                120,
                f"{part} of it is there",
            )
            gate.signal(signal.SIGKILL)
            gate.wait()
            gate.start()
        read_at_last = both["read"].end()
        assert both["write"].end()["lines"] == read_at_last["lines"] == 15_000
        assert read_at_last["repeated"] > 0
        assert copy.read_bytes() == source.read_bytes()
        gate.stop()
    finally:
        gate.end_by_force()


class Proxy:
    """
    A way to the gate on which connections break: after some bytes, in either direction.

    Args:
        port: The gate's.
        seed: Of chance.
    """

    def __init__(self, port: int, seed: int) -> None:
        self.broken = 0
        self._random = Random(seed)
        self._port = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._over = False
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                ours, _ = self._listener.accept()
                theirs = socket.create_connection(("127.0.0.1", self._port))
                for one, other in ((ours, theirs), (theirs, ours)):
                    left = self._random.choice((0, 100, 3000, 100_000, 10**7, 10**7))
                    threading.Thread(
                        target=self._carry, args=(one, other, left), daemon=True
                    ).start()

    def _carry(self, source: socket.socket, sink: socket.socket, left: int) -> None:
        """Pass bytes on, up to so many; then cut both ways."""
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data[:left])
                left -= len(data)
                if left < 0:
                    self.broken += 1
                    break
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def close(self) -> None:
        self._listener.close()


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_connections_that_break(
    gate: Program, tmp_path: Path, running: list[Running], seed: int
) -> None:
    """Inside requests and inside answers."""
    source, copy = tmp_path / "source", tmp_path / "copy"
    source.write_bytes(lines(12_000, seed))
    proxy = Proxy(int(gate.url.rpartition(":")[2]), seed)
    reader = start(running, "read", proxy.url, f"broken-{seed}", str(copy), "--json")
    start(running, "write", proxy.url, f"broken-{seed}", str(source), "--json").end()
    assert reader.end()["lines"] == 12_000
    assert copy.read_bytes() == source.read_bytes()
    assert proxy.broken > 3
    proxy.close()


# --- push, pull, jobs, graph


def test_push_and_pull(gate: Program) -> None:
    """One command, or lines; what is pulled is gone."""
    done = jobgate("push", gate.url, "letters", "a", "--content-type", "text/plain")
    assert (done.returncode, done.stderr) == (0, b"")
    number = done.stdout.decode().strip()
    done = jobgate("pull", gate.url, "letters", "--json")
    told = json.loads(done.stdout)
    assert (told["id"], told["body"], told["content_type"]) == (number, "a", "text/plain")
    done = jobgate("push", gate.url, "letters", "--each-line", stdin=b"b\n\nc")
    assert done.stdout == b"3\n"
    done = jobgate("pull", gate.url, "letters", "--max", "10")
    assert done.stdout == b"b\n\nc\n"
    done = jobgate("pull", gate.url, "letters", "--wait", "0.1")
    assert (done.returncode, done.stdout, done.stderr) == (6, b"", b"")
    done = jobgate("push", gate.url, "letters", "x", "--json")
    assert json.loads(done.stdout)["queue"] == "letters"
    done = jobgate("pull", gate.url, "letters", "--lease", "60", "--max", "3", "--json")
    told = json.loads(done.stdout)
    assert len(told["ids"]) == 1
    assert told["lease"]


def test_the_same_push_twice(gate: Program) -> None:
    """Under one key it is one."""
    options = ("--idempotency-key", "k1")
    first, second = (jobgate("push", gate.url, "once", "a", *options) for _ in range(2))
    assert first.stdout == second.stdout
    done = jobgate("push", gate.url, "once", "b", *options)
    assert done.returncode == 3
    assert done.stderr.startswith(b"jobgate: unprocessable: ")


def test_jobs(start_gate: StartGate) -> None:
    """Listed, shown, waited for, cancelled and run again."""
    actor = {"command": sdk("actor"), "workers": 1, "attempts": 1}
    gate = start_gate({"gate": {"store": "memory:"}, "queues": {"actor": actor, "idle": {}}})

    def pushed(queue: str, body: str) -> str:
        return jobgate("push", gate.url, queue, body).stdout.decode().strip()

    good = pushed("actor", '[["reply", "fine"]]')
    bad = pushed("actor", '[["fail", ["sad", "so it is", 422, false]]]')
    waits = pushed("idle", "x")
    done = jobgate("jobs", gate.url, good, "--result", "--wait", "20")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"fine", b"")
    done = jobgate("jobs", gate.url, bad, "--result", "--wait", "20")
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.startswith(b"jobgate: command-failed: sad: so it is")
    done = jobgate("jobs", gate.url, waits, "--result")
    assert (done.returncode, done.stdout) == (6, b"")
    assert done.stderr.startswith(b"jobgate: queued: ")
    rows = [line.split("\t") for line in jobgate("jobs", gate.url).stdout.decode().splitlines()]
    assert [row[0] for row in rows] == ["id", waits, bad, good]
    told = [json.loads(x) for x in jobgate("jobs", gate.url, "--json").stdout.splitlines()]
    assert [job["state"] for job in told] == ["queued", "failed", "succeeded"]
    done = jobgate("jobs", gate.url, "--queue", "actor", "--state", "failed", "--limit", "1")
    assert [line.split("\t")[0] for line in done.stdout.decode().splitlines()] == ["id", bad]
    done = jobgate("jobs", gate.url, good)
    assert f"id        {good}\nqueue     actor\nstate     succeeded\n" in done.stdout.decode()
    assert jobgate("jobs", gate.url, waits, "--cancel").returncode == 0
    assert jobgate("jobs", gate.url, waits, "--cancel").returncode == 3
    assert jobgate("jobs", gate.url, bad, "--retry").returncode == 0
    assert jobgate("jobs", gate.url, "nothing").returncode == 3
    assert jobgate("jobs", gate.url, "--cancel").returncode == 2
