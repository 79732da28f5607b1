"""
The `jobgate` command against a real gate, and without one.
"""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from background import background, result
from command_line import JOBGATE, jobgate
from example_gate import EXAMPLES, need
from program import Program, alive, eventually, sdk, to_toml

import jobgate as package
from jobgate.cli import COMMANDS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conftest import StartGate

ECHO = {"command": sdk("echo"), "workers": 2}
ACTOR = {"command": sdk("actor"), "workers": 1, "cancel": "kill"}
WITH_WORKERS = {"check", "check-worker", "run"}
"""Commands that need more than the standard library."""


def steps(*taken: object) -> str:
    """A body for `workers/actor.py`."""
    return json.dumps(taken)


@pytest.fixture(scope="module")
def gate(start_shared_gate: StartGate) -> Program:
    """A gate with two queues."""
    return start_shared_gate({"queues": {"echo": ECHO, "actor": ACTOR}})


@pytest.mark.parametrize("name", sorted(set(COMMANDS) - WITH_WORKERS))
def test_client_commands_need_the_standard_library_only(name: str) -> None:
    """Nothing that was installed can even be found, and nothing of the gate is loaded."""
    root = Path(package.__file__).parent.parent
    code = (
        f"import sys; sys.path.insert(0, {str(root)!r})\n"
        "from jobgate.cli import main\n"
        f"try: main([{name!r}, '--help'])\n"
        "except SystemExit: pass\n"
        "found = sorted(m for m in sys.modules if m.startswith('jobgate'))\n"
        "print(*[m for m in found if not m.startswith('jobgate.cli')], file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code], capture_output=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: jobgate {name}".encode())
    assert done.stderr == b"jobgate\n"


# --- call


def test_call(gate: Program) -> None:
    """Bytes in, bytes out, from wherever they come."""
    body = bytes(range(256)) * 1000
    done = jobgate("call", gate.url, "echo", stdin=body)
    assert (done.returncode, done.stdout, done.stderr) == (0, body, b"")
    done = jobgate("call", "echo", "sähr", env={"JOBGATE_URL": gate.url + "/"})
    assert (done.returncode, done.stdout) == (0, "sähr".encode())
    script = Path(__file__)
    done = jobgate("call", gate.url, "echo", "--file", str(script))
    assert (done.returncode, done.stdout) == (0, script.read_bytes())
    done = jobgate("call", "--content-type", "text/x", "--json", gate.url, "echo", "a")
    told = json.loads(done.stdout)
    assert (told["status"], told["body"], told["attempt"]) == (200, "a", 1)
    assert re.fullmatch(r"echo-[12]", told["worker"])
    done = jobgate("call", gate.url, "echo", "--json", stdin=b"\xff")
    assert json.loads(done.stdout)["body_base64"] == "/w=="


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (("actor", steps(("fail", ["so sorry", "no", 503]))), 1, "command-failed: so sorry: no"),
        (("actor", steps(("exit", 3))), 1, "worker-died: "),
        (("actor", steps(("sleep", 60)), "--timeout", "0.3"), 1, "worker-timeout: "),
        (("nothing", "x"), 3, "unknown-queue: There is no queue of this name: "),
        (("echo", "x", "--timeout", "0"), 3, "bad-request: "),
    ],
)
def test_calls_that_fail(gate: Program, arguments: tuple[str, ...], status: int, said: str) -> None:
    """One line for people, the exit status for scripts, the problem for both."""
    for more in ((), ("--json",)):
        done = jobgate("call", gate.url, *arguments, *more)
        assert done.returncode == status, done.stderr
        assert done.stderr.decode().startswith(f"jobgate: {said}")
        assert done.stderr.count(b"\n") == 1
        if more:
            body = json.loads(json.loads(done.stdout)["body"])
            assert said.startswith(body["type"].removeprefix("/problems/"))
        else:
            assert done.stdout == b""


def test_a_full_queue_is_busy(start_gate: StartGate) -> None:
    """Nothing was started, so a script may try again."""
    gate = start_gate({"queues": {"q": {**ACTOR, "size": 0}}})
    with subprocess.Popen([*JOBGATE, "call", gate.url, "q", steps(("sleep", 3))]) as first:
        gate.running("q")
        done = jobgate("call", gate.url, "q", "[]", "--no-queue")
        assert (done.returncode, done.stdout) == (4, b"")
        assert done.stderr.startswith(b"jobgate: queue-full: ")
        assert done.stderr.rstrip().endswith(b"(executed: no)")
        assert first.wait(30) == 0


def test_tokens(start_gate: StartGate) -> None:
    """JOBGATE_TOKEN is shown, and nothing else helps."""
    sha = "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb"  # of "a"
    tokens = [{"name": "ci", "sha256": sha, "allow": ["call:echo"]}]
    gate = start_gate({"queues": {"echo": ECHO}, "tokens": tokens})
    for token, status in (("", 3), ("b", 3), ("a", 0), ("a\n", 2)):
        done = jobgate("call", gate.url, "echo", "x", env={"JOBGATE_TOKEN": token})
        assert done.returncode == status, (token, done.stderr)
    assert b"found a JOBGATE_TOKEN that is not" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("call",), "found nothing, wanted [URL] QUEUE [BODY]"),
        (("call", "a", "b", "c"), "found 'a' 'b' 'c', wanted [URL] QUEUE [BODY]"),
        (("call", "http://", "q", "b"), "found the URL 'http://', wanted http://HOST:PORT"),
        (("call", "http://h:port", "q", "b"), "found the URL 'http://h:port', wanted"),
        (("call", "http://[h", "q", "b"), "found the URL 'http://[h', wanted"),
        (("call", "http://h/?a", "q", "b"), "found the URL 'http://h/?a', wanted it without"),
        (("call", "q", "b", "--file", "c"), "found a BODY and --file, wanted one of them"),
        (("run",), "found no worker, wanted either --worker or --config"),
        (("generate", "-1"), "found -1 lines, wanted 0 or more"),
    ],
)
def test_command_lines_that_make_no_sense(arguments: tuple[str, ...], said: str) -> None:
    """Status 2, and what was wanted."""
    done = jobgate(*arguments)
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.decode().startswith(f"jobgate: {said}")


def test_no_gate() -> None:
    """Nobody listens there."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        done = jobgate("call", url, "q", "x")
    assert done.returncode == 5
    assert done.stderr == f"jobgate: {url}: Connection refused\n".encode()


class Liar:
    """A server that says what a test wants, to one connection after the other, then hangs up."""

    def __init__(self, *answers: bytes) -> None:
        self._answers = answers
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        for answer in self._answers:
            connection, _ = self._listener.accept()
            with connection:
                connection.settimeout(20)
                connection.recv(65536)
                connection.sendall(answer)

    def close(self) -> None:
        self._thread.join(20)
        self._listener.close()


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf",
        b"HTTP/1.1 200 OK\r\nServer: job",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhalf",
        b"SSH-2.0-OpenSSH_9.6\r\n",
    ],
)
def test_half_an_answer_is_none(answer: bytes) -> None:
    """A call is not sent again: it may have been done."""
    liar = Liar(answer)
    done = jobgate("call", liar.url, "q", "x")
    assert (done.returncode, done.stdout) == (5, b"")
    liar.close()


# --- top


def test_top(gate: Program) -> None:
    """Not on a terminal: once, as a table or as JSON."""
    done = jobgate("top", gate.url)
    assert done.returncode == 0, done.stderr
    queues, workers = (
        [line.split() for line in table.splitlines()]
        for table in done.stdout.decode().split("\n\n")
    )
    assert [row[0] for row in queues] == ["queue", "echo", "actor"]
    assert [row[0] for row in workers] == ["worker", "echo-1", "echo-2", "actor-1"]
    done = jobgate("top", gate.url, "--json", "--count", "2", "--interval", "0.05")
    looks = [json.loads(line) for line in done.stdout.splitlines()]
    assert [sorted(look) for look in looks] == [["queues", "workers"]] * 2


def test_top_on_a_terminal(gate: Program) -> None:
    """Again and again, until Ctrl-C."""
    ours, theirs = pty.openpty()
    arguments = [*JOBGATE, "top", gate.url, "--interval", "0.05"]
    with subprocess.Popen(arguments, stdout=theirs, stderr=subprocess.PIPE) as process:
        os.close(theirs)
        seen = b""
        deadline = time.monotonic() + 30
        while seen.count(b"\x1b[H\x1b[J") < 3:
            assert time.monotonic() < deadline, seen
            seen += os.read(ours, 65536)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
        assert process.stderr is not None
        assert process.stderr.read() == b""
    os.close(ours)


# --- generate


def test_generate() -> None:
    """Numbered lines, as many as were asked for."""
    wanted = "".join(f"{number}\n" for number in range(1, 25_001))
    assert jobgate("generate", "25000").stdout.decode() == wanted
    assert jobgate("generate", "0").stdout == b""
    assert jobgate("generate", "3", "--first", "9", "--size", "4").stdout == b"9...\n10..\n11..\n"


def test_generate_for_a_reader_that_leaves() -> None:
    """It ends quietly."""
    with subprocess.Popen(
        [*JOBGATE, "generate", "100000000"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"1\n"
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(30) == 141


# --- run


WORDS = b"".join(b"%d words of a line\n" % number for number in range(1, 3001))


def run(*arguments: str, stdin: bytes = b"", timeout: float = 60) -> tuple[int, bytes, bytes]:
    done = jobgate("run", *arguments, stdin=stdin, timeout=timeout)
    return done.returncode, done.stdout, done.stderr


def worker(name: str, *arguments: str) -> str:
    """A worker of the tests, as a shell would be told."""
    return " ".join(sdk(name, *arguments))


def test_run_keeps_the_order(tmp_path: Path) -> None:
    """Several workers, of which some are slower than others."""
    path = tmp_path / "words"
    path.write_bytes(WORDS)
    assert run("--worker", worker("echo"), "--workers", "3", str(path)) == (0, WORDS, b"")
    assert run("--worker", worker("echo"), stdin=WORDS) == (0, WORDS, b"")
    lines = [steps(("sleep", 0.05 * (number % 3)), ("reply", str(number))) for number in range(20)]
    done = run("--worker", worker("actor"), "--workers", "4", stdin="\n".join(lines).encode())
    assert done == (0, b"".join(b"%d\n" % number for number in range(20)), b"")


def test_run_leaves_a_store_alone(tmp_path: Path) -> None:
    """A gate that was started in the same folder keeps its jobs there."""
    store = tmp_path / "jobgate.db"
    store.write_bytes(b"not to be touched")
    words = jobgate("run", "--worker", worker("echo"), cwd=tmp_path, stdin=WORDS)
    assert (words.returncode, words.stdout, words.stderr) == (0, WORDS, b"")
    assert store.read_bytes() == b"not to be touched"
    assert list(tmp_path.iterdir()) == [store]


def test_run_in_batches(tmp_path: Path) -> None:
    """As many lines at a time as were wanted; those that are over are not kept waiting."""
    of_twos = ["--worker", worker("batcher"), "--workers", "1", "--batch-size", "2"]
    status, replies, said = run(*of_twos, stdin=b"a\nb\nc\n")
    found = [json.loads(line) for line in replies.splitlines()]
    assert (status, said, [reply["body"] for reply in found]) == (0, b"", ["a", "b", "c"])
    assert max(reply["together"] for reply in found) == 2
    config = tmp_path / "jobgate.toml"
    queue = {"command": sdk("batcher"), "workers": 1, "batch": {"size": 2, "linger": "full"}}
    config.write_text(to_toml({"queues": {"q": queue}}))
    status, replies, said = run("--config", str(config), stdin=b"a\nb\nc\n")
    assert (status, said, replies.count(b"\n")) == (0, b"", 3)


def test_run_with_odd_lines() -> None:
    """No line, empty lines, no last newline, bytes that are no text, one that is long."""
    assert run("--worker", worker("echo")) == (0, b"", b"")
    odd = b"\n\r\n\xff\x00\n" + b"x" * 3_000_000 + b"\n\nlast"
    assert run("--worker", worker("echo"), stdin=odd) == (0, odd + b"\n", b"")


def test_run_tells_of_lines_that_fail() -> None:
    """Each leaves an empty line, the others are done; with --stop they are not."""
    lines = [
        steps(("reply", "a")),
        steps(("fail", ["no"])),
        steps(("exit", 3)),
        steps(("reply", "b")),
    ]
    stdin = "\n".join(lines).encode()
    status, out, err = run("--worker", worker("actor"), "--workers", "1", stdin=stdin)
    assert (status, out) == (1, b"a\n\n\nb\n")
    assert b"jobgate: line 2: command-failed: no\n" in err
    assert b"jobgate: line 3: worker-died: " in err
    status, out, err = run("--worker", worker("actor"), "--stop", stdin=stdin)
    assert (status, out) == (1, b"a\n\n")
    assert err.endswith(b"jobgate: ended at line 2\n")
    status, out, err = run("--worker", worker("actor"), "--workers", "1", "--json", stdin=stdin)
    told = [json.loads(line) for line in out.splitlines()]
    assert [document["line"] for document in told] == [1, 2, 3, 4]
    assert [document.get("body") for document in told] == ["a", None, None, "b"]
    assert told[1]["error"]["type"] == "/problems/command-failed"
    assert (told[2]["error"]["executed"], told[0]["status"]) == ("maybe", 200)


def test_run_with_a_worker_that_cannot_live() -> None:
    """It gives up, and says why."""
    status, out, err = run("--worker", "false", stdin=b"a\nb\n")
    assert (status, out) == (1, b"\n")
    assert b"jobgate: line 1: no-worker: " in err
    assert err.endswith(b"jobgate: ended at line 1\n")


def test_run_without_lines(tmp_path: Path) -> None:
    """What cannot be read is not taken for a file without lines."""
    for path, why in ((tmp_path, "Is a directory"), (tmp_path / "nothing", "No such file")):
        status, out, err = run("--worker", worker("echo"), str(path))
        assert (status, out) == (1, b"")
        assert err.decode().startswith(f"jobgate: {path}: {why}")


def test_run_with_a_configuration() -> None:
    """A queue of a file, with all that it says of its workers."""
    need("bc", "bc")
    config = str(EXAMPLES / "bc" / "jobgate.toml")
    assert run("--config", config, stdin=b"2^10\n6*7\n") == (0, b"1024\n42\n", b"")
    status, _, err = run("--config", config, "--queue", "nothing", stdin=b"1\n")
    assert (status, err.count(b"\n")) == (1, 1)


def test_run_shows_what_workers_print() -> None:
    """On stderr, by worker."""
    stdin = steps(("print", "hello")).encode()
    status, _, err = run("--worker", worker("actor"), "--workers", "1", stdin=stdin)
    assert status == 0, err
    assert b"run-1: hello\n" in err


def test_run_does_not_read_on_while_nobody_reads_it() -> None:
    """What is in between is bounded, and all of it comes in the end."""
    with subprocess.Popen(
        [*JOBGATE, "run", "--worker", worker("echo")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        stdin, stdout = process.stdin, process.stdout
        assert stdin is not None
        assert stdout is not None
        enough = threading.Event()
        written = 0

        def write() -> None:
            nonlocal written
            with stdin:
                while not enough.is_set():
                    stdin.write(b"y" * 100_000 + b"\n")
                    written += 1

        writer = background(write)

        def stuck() -> bool:
            before = written
            return before > 0 and not enough.wait(1) and written == before

        eventually(stuck, 60, "it reads no more")
        assert written < 2000
        enough.set()
        lines = 0
        while piece := stdout.read(2**20):
            lines += piece.count(b"\n")
        result(writer)
        assert lines == written
        assert process.wait(20) == 0


@pytest.fixture
def interrupted() -> Iterator[subprocess.Popen[bytes]]:
    """A run that would last for long."""
    arguments = [*JOBGATE, "run", "--worker", worker("actor"), "--workers", "1"]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(f"{steps()}\n{steps(('sleep', 60))}\n".encode())
        process.stdin.flush()
        yield process
        process.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_run_leaves_nobody_behind(
    interrupted: subprocess.Popen[bytes], number: signal.Signals
) -> None:
    """However it ends, its workers end."""
    assert interrupted.stdout is not None
    child = json.loads(interrupted.stdout.readline())["pid"]
    assert alive(child)
    interrupted.send_signal(number)
    wanted = -9 if number == signal.SIGKILL else 128 + number
    assert interrupted.wait(20) == wanted
    eventually(lambda: not alive(child), 10, "its worker is gone")
