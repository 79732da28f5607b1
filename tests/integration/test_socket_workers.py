"""
Workers from outside: they register, are run like children, and may be lost in every way.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import signal
import socket
import subprocess
import threading
from typing import TYPE_CHECKING, Any

import pytest
from background import background, result
from certificates import Authority
from program import Program, at_rest, eventually, sdk, twistd
from socket_worker import (
    COMMAND,
    DRAIN,
    HELLO,
    REPLY,
    WELCOME,
    Frame,
    RawWorker,
    dial,
    proxy,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from conftest import Employ
    from raw_http import Answer

TCP = "tcp:0:interface=127.0.0.1"


def sha(token: str) -> str:
    """As the configuration wants it."""
    return hashlib.sha256(token.encode()).hexdigest()


def where(gate: Program, scheme: str = "tcp") -> str:
    """Where it takes workers."""
    return gate.logged(rf"workers may register at ({scheme}://\S+)")[1]


@pytest.fixture
def gate(start_gate: Callable[..., Program], tmp_path: Path) -> Program:
    """A gate with queues that nobody drains yet."""
    return start_gate(
        {
            "gate": {"worker_listen": [TCP, f"unix:{tmp_path / 'w.sock'}"]},
            "queues": {
                "q": {},
                "safe": {"retry": "safe", "attempts": 3},
                "two": {"in_flight": 2},
                "brief": {"timeout": 0.5},
                "polite": {"boot_timeout": 0.5},
            },
        }
    )


def echo(frame: Frame) -> bytes:
    """Its own body."""
    return frame.body


@contextlib.contextmanager
def serving(worker: RawWorker) -> Iterator[RawWorker]:
    """Let a raw worker echo in the background."""
    thread = threading.Thread(target=worker.serve, args=(echo,), daemon=True)
    thread.start()
    try:
        yield worker
    finally:
        with contextlib.suppress(OSError):
            worker.socket.shutdown(socket.SHUT_RDWR)
        thread.join(20)
        worker.close()


# --- coming in


@pytest.mark.parametrize("scheme", ["tcp", "unix"])
def test_a_worker_registers_and_is_run_like_a_child(gate: Program, scheme: str) -> None:
    """HELLO, WELCOME, COMMAND, REPLY; it is in /workers with its address and without a pid."""
    with RawWorker(where(gate, scheme), queue="q", name="ruby-1", ordered=True) as worker:
        assert worker.welcomed() == "ruby-1"
        caller = background(gate.call, "q", b"hello", {"Content-Type": "text/plain"})
        frame = worker.command()
        assert frame.body == b"hello"
        assert (frame.meta["queue"], frame.meta["content_type"]) == ("q", "text/plain")
        [shown] = gate.workers("q")
        assert (shown["name"], shown["pid"], shown["state"]) == ("ruby-1", None, "busy")
        port = worker.socket.getsockname()[1] if scheme == "tcp" else 0
        own = f"127.0.0.1:{port}" if port else "unix:"
        assert shown["address"].startswith(own)
        assert shown["command"] == frame.meta["id"]
        worker.say(REPLY, frame.id, {"content_type": "text/x-ruby", "status": 201}, b"hi")
        answer = result(caller)
        assert (answer.status, answer.body, answer["Content-Type"]) == (201, b"hi", "text/x-ruby")
        assert answer["Jobgate-Worker"] == "ruby-1"
        assert gate.queue("q")["workers"] == 1
    eventually(lambda: not gate.workers("q"), 5, "it has left")
    assert "the connection was lost" in gate.get("/workers/ruby-1/report").json["cause"]


def test_the_reply_and_the_next_command_cross(gate: Program) -> None:
    """Whoever waits is handed over upon the reply itself, in the same exchange."""
    with RawWorker(where(gate), queue="q") as worker:
        worker.welcomed()
        callers = [background(gate.call, "q", b"%d" % n) for n in range(3)]
        first = worker.command()
        gate.waiting("q", 2)
        bodies = {first.body}
        worker.say(REPLY, first.id, None, first.body)
        for _ in range(2):
            frame = worker.command()
            bodies.add(frame.body)
            worker.say(REPLY, frame.id, None, frame.body)
        assert bodies == {b"0", b"1", b"2"}
        assert [result(caller).body for caller in callers] == [b"0", b"1", b"2"]


def test_names_are_distinct(gate: Program) -> None:
    """Two of the same name, two of none, and one that a child might have."""
    with contextlib.ExitStack() as stack:

        def come(**hello: object) -> str:
            worker = stack.enter_context(RawWorker(where(gate), queue="q", **hello))
            return worker.welcomed()

        assert [come(name="gpu"), come(name="gpu"), come(name="gpu")] == ["gpu", "gpu~2", "gpu~3"]
        assert [come(), come()] == ["q~1", "q~2"]
        assert come(name="q-1") == "q-1~2"
        assert len({worker["name"] for worker in gate.workers("q")}) == 6


def test_a_name_comes_again(gate: Program) -> None:
    """Whoever comes again takes up the place that he left, with its report."""
    for number in range(3):
        with RawWorker(where(gate), queue="q", name="gpu") as worker:
            assert worker.welcomed() == "gpu"
            [shown] = gate.workers("q")
            assert shown["restarts"] == number
            assert bool(shown["last_crash"]) is bool(number)
        eventually(lambda: not gate.workers("q"), 5)


@pytest.mark.parametrize(
    ("hello", "title", "detail"),
    [
        ({"queue": "nope"}, "no queue", "'nope'"),
        ({"name": "x"}, "cannot be read", "names no queue"),
        ({"queue": "q", "name": "a b"}, "cannot be read", "'a b'"),
        ({"queue": "q", "protocol": 2}, "cannot be read", "protocol 2"),
        ({"queue": 7}, "cannot be read", "queue"),
    ],
)
def test_a_bad_hello_is_told(gate: Program, hello: Any, title: str, detail: str) -> None:
    """FAIL with id 0 says why, and the log does; nothing else is harmed."""
    with RawWorker(where(gate), **hello) as worker:
        said = worker.refused()
        assert title in said.meta["title"]
        assert detail in said.meta["detail"]
        assert said.meta["retry"] is False
    gate.logged(r"a worker at 127\.0\.0\.1:\d+ was refused: .*" + detail.replace("'", "."))
    assert gate.workers() == []


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\0\0\0\x0c\1\3\0\0\0\0\0\0\0\0\0\0",
        b"\0\1\0\0\1\1\0\0\0\0\0\0\0\0\0\0",
        b"\0\0\0\x0e\1\1\0\0\0\0\0\0\0\0\0\2{[",
    ],
    ids=["http", "command", "too large", "no JSON"],
)
def test_what_is_no_hello(gate: Program, data: bytes) -> None:
    """Text, another frame, a HELLO of 64 KiB and one that is no JSON."""
    with RawWorker(where(gate)) as worker:
        worker.socket.sendall(data)
        assert worker.refused().meta["title"] == "The request cannot be read"


def test_who_says_nothing(start_gate: Callable[..., Program]) -> None:
    """`boot_timeout` is also how long a HELLO may take, also one that never ends."""
    gate = start_gate(
        {"gate": {"worker_listen": [TCP]}, "queues": {"q": {"boot_timeout": 0.4}}},
    )
    with RawWorker(where(gate)) as silent, RawWorker(where(gate)) as slow:
        slow.socket.sendall(b"\0\0\0")
        for worker in (silent, slow):
            said = worker.refused()
            assert "no HELLO within 0.4 s" in said.meta["detail"]
            assert "retry" not in said.meta


def test_hello_byte_by_byte_and_more_behind_it(gate: Program) -> None:
    """However it is torn; and what comes in the same packet is not lost."""
    with RawWorker(where(gate)) as worker:
        hello = b'{"queue":"q","name":"slow"}'
        head = (12 + len(hello)).to_bytes(4, "big") + b"\1\1" + bytes(6)
        for byte in head + len(hello).to_bytes(4, "big") + hello:
            worker.socket.sendall(bytes([byte]))
        assert worker.welcomed() == "slow"
    with RawWorker(where(gate)) as worker:
        both = head + len(hello).to_bytes(4, "big") + hello
        ping = b"\0\0\0\x0c\1\x0a\0\0\0\0\0\x05\0\0\0\0"
        worker.socket.sendall(both + ping)
        worker.welcomed()
        pong = worker.hear()
        assert pong is not None
        assert (pong.kind, pong.id) == (11, 5)


def test_tokens(start_gate: Callable[..., Program], employ: Employ) -> None:
    """`work:QUEUE` lets in; no token, an unknown one and another right do not."""
    gate = start_gate(
        {
            "gate": {"worker_listen": [TCP]},
            "queues": {"q": {}, "other": {}},
            "tokens": [
                {"name": "worker", "sha256": sha("w"), "allow": ["work:q"]},
                {"name": "caller", "sha256": sha("c"), "allow": ["call:*", "metrics", "admin"]},
            ],
        }
    )
    refused = [
        ({"queue": "q"}, "token"),
        ({"queue": "q", "token": "x"}, "known token"),
        ({"queue": "q", "token": "c"}, "may not work:q"),
        ({"queue": "other", "token": "w"}, "may not work:other"),
        ({"queue": "secret", "token": "w"}, "may not work:secret"),
    ]
    for hello, why in refused:
        with RawWorker(where(gate), **hello) as worker:
            assert why in worker.refused().meta["detail"]
    wrong = employ(where(gate), token="x")
    assert wrong.process.wait(20) == 1
    assert "refused this worker: A bearer token is needed" in wrong.log
    employ(where(gate), token="w", name="right")
    answer = gate.call("q", b"hi", {"Authorization": "Bearer c"})
    assert (answer.status, answer.body, answer["Jobgate-Worker"]) == (200, b"hi", "right")
    assert '"w"' not in gate.log


def test_beyond_loopback_only_with_tokens(tmp_path: Path) -> None:
    """The same refusal as for `listen`; and a string that is no endpoint."""
    for endpoint, why in (
        ("tcp:9000", 'gate.worker_listen: found "tcp:9000", wanted an endpoint on a loopback'),
        ("tls:9000:interface=127.0.0.1", "privateKey=FILE:certificate=FILE"),
        ("teleport:1:interface=127.0.0.1", "wanted a Twisted endpoint string"),
    ):
        (tmp_path / "bad.toml").write_text(f'[gate]\nworker_listen = ["{endpoint}"]\n')
        done = twistd("-n", "jobgate", "-c", "bad.toml", cwd=tmp_path)
        assert done.returncode == 1
        assert why in done.stderr


def test_a_port_that_is_taken(gate: Program, tmp_path: Path) -> None:
    """One line that names the key; a UNIX socket at which somebody listens is left alone."""
    port = where(gate).rpartition(":")[2]
    for endpoint, found in (
        (f"tcp:{port}:interface=127.0.0.1", port),
        (f"unix:{tmp_path / 'w.sock'}", "w.sock in use"),
        (f"unix:{tmp_path / 'jobgate.toml'}", "another kind of file"),
        (f"unix:{tmp_path / 'no' / 'w.sock'}", "no/w.sock"),
    ):
        config = f'[gate]\nworker_listen = ["{endpoint}"]\n[queues.q]\n'
        (tmp_path / "second.toml").write_text(config)
        done = twistd("-n", "--pidfile=", "jobgate", "-c", "second.toml", "-p", "0", cwd=tmp_path)
        assert done.returncode == 1, done.stdout
        [line] = done.stderr.splitlines()
        assert "gate.worker_listen: found" in line
        assert found in line
    with RawWorker(where(gate, "unix"), queue="q") as worker:
        worker.welcomed()


# --- a queue without a command


def test_commands_wait_for_a_worker(gate: Program) -> None:
    """Nobody is there: that is no error; the first to come gets what waits."""
    assert gate.get("/readyz").status == 200
    callers = [background(gate.call, "q", b"%d" % n) for n in range(5)]
    gate.waiting("q", 5)
    assert gate.get("/readyz").status == 200
    with serving(RawWorker(where(gate), queue="q")):
        assert [result(caller).body for caller in callers] == [b"0", b"1", b"2", b"3", b"4"]
    gone = gate.call("q", b"", {"Jobgate-Timeout": "0.2"})
    assert (gone.status, gone.slug, gone.json["executed"]) == (504, "queue-timeout", "no")


def test_declined_by_all_that_are_there(gate: Program) -> None:
    """The next one to come is asked, too."""
    with RawWorker(where(gate), queue="q") as worker:
        worker.welcomed()
        caller = background(gate.call, "q", b"mine")
        worker.say(9, worker.command().id)
        gate.waiting("q", 1)
        with serving(RawWorker(where(gate), queue="q")):
            answer = result(caller)
    assert (answer.body, answer["Jobgate-Attempt"]) == (b"mine", "1")


# --- a mixed queue


def test_children_and_others_share_a_queue(
    start_gate: Callable[..., Program], employ: Employ
) -> None:
    """Two children, an SDK worker and one written by hand: callers cannot tell."""
    gate = start_gate(
        {
            "gate": {"worker_listen": [TCP]},
            "queues": {"q": {"command": sdk("echo"), "workers": 2, "size": 1000}},
        }
    )
    employ(where(gate), name="sdk")
    with serving(RawWorker(where(gate), queue="q", name="raw")):
        gate.ready("q", 4)
        seen: dict[str, int] = {}

        def call(number: int) -> None:
            with gate.connect() as caller:
                for turn in range(100):
                    body = b"%d/%d" % (number, turn)
                    answer = caller.request("POST", "/call/q", body)
                    assert (answer.status, answer.body) == (200, body)
                    name = answer["Jobgate-Worker"]
                    seen[name] = seen.get(name, 0) + 1

        callers = [background(call, number) for number in range(12)]
        for caller in callers:
            result(caller)
        assert set(seen) == {"q-1", "q-2", "sdk", "raw"}
        done = {worker["name"]: worker["done"] for worker in gate.workers("q")}
        assert sum(done.values()) == 1200
    numbers = at_rest(gate, "q")
    assert numbers["commands_succeeded_total"] == 1200
    assert numbers["stray_replies_total"] == 0
    states = 'jobgate_workers{queue="q",state="ready"}'
    eventually(lambda: f"{states} 3.0" in gate.get("/metrics").body.decode(), 5)


def test_a_crash_loop_of_the_children_is_none_of_the_others(
    start_gate: Callable[..., Program],
) -> None:
    """As long as somebody can work there is no `no-worker`; afterwards there is."""
    queue = {"command": ["python", "-c", "raise SystemExit(3)"], "workers": 1}
    gate = start_gate({"gate": {"worker_listen": [TCP]}, "queues": {"q": queue}})
    eventually(lambda: gate.call("q").slug == "no-worker", 20)
    with serving(RawWorker(where(gate), queue="q", name="raw")):
        gate.ready("q", 1)
        assert gate.call("q", b"fine").body == b"fine"
        assert gate.get("/readyz").status == 200
    eventually(lambda: gate.get("/readyz").status == 503, 10)
    assert gate.call("q").slug == "no-worker"


# --- being lost


def test_lost_in_mid_command(gate: Program) -> None:
    """502 `worker-died`, `executed: maybe`; its report says what it had."""
    with RawWorker(where(gate), queue="q", name="mortal") as worker:
        worker.welcomed()
        caller = background(gate.call, "q", b"x")
        frame = worker.command()
        worker.socket.shutdown(socket.SHUT_RDWR)
        answer = result(caller)
    assert (answer.status, answer.slug, answer.json["executed"]) == (502, "worker-died", "maybe")
    assert "the connection was lost" in answer.json["detail"]
    assert "exit_status" not in answer.json
    report = gate.get("/workers/mortal/report").json
    assert (report["running"], report["pid"]) == ([frame.meta["id"]], None)


def test_lost_in_mid_reply(gate: Program) -> None:
    """Half a reply reaches nobody."""
    with RawWorker(where(gate), queue="q") as worker:
        worker.welcomed()
        caller = background(gate.call, "q", b"x")
        frame = worker.command()
        head = b"\0\0\0\x70\1\4\0\0" + frame.id.to_bytes(4, "big") + bytes(4)
        worker.socket.sendall(head + b"half")
        worker.socket.shutdown(socket.SHUT_WR)
        answer = result(caller)
    assert (answer.status, answer.slug) == (502, "worker-died")
    gate.says("inside a frame")


def test_lost_with_retry_safe(gate: Program) -> None:
    """Another gets it; three deaths alone are poison."""
    caller = background(gate.call, "safe", b"x")
    for attempt in (1, 2):
        with RawWorker(where(gate), queue="safe") as worker:
            worker.welcomed()
            assert worker.command().meta["attempt"] == attempt
    with serving(RawWorker(where(gate), queue="safe")):
        answer = result(caller)
    assert (answer.status, answer["Jobgate-Attempt"]) == (200, "3")
    caller = background(gate.call, "safe", b"poison")
    for _ in range(3):
        with RawWorker(where(gate), queue="safe") as worker:
            worker.welcomed()
            assert worker.command().body == b"poison"
    assert result(caller).slug == "poison-command"


def test_what_an_ordered_worker_had_not_begun(gate: Program) -> None:
    """Only the oldest has begun; the other goes to the next worker, uncounted."""
    callers = [background(gate.call, "two", b"%d" % n) for n in range(2)]
    gate.waiting("two", 2)
    with RawWorker(where(gate), queue="two", ordered=True) as worker:
        worker.welcomed()
        frames = [worker.command(), worker.command()]
    answers = {frames[n].body: n for n in range(2)}
    with serving(RawWorker(where(gate), queue="two")):
        for number, caller in enumerate(callers):
            answer = result(caller)
            if answers[b"%d" % number] == 0:
                assert (answer.slug, answer.json["executed"]) == ("worker-died", "maybe")
            else:
                assert (answer.status, answer["Jobgate-Attempt"]) == (200, "1")


def test_a_reply_of_an_earlier_connection_never_counts(gate: Program) -> None:
    """The same frame id on another connection is another command, or none."""
    with RawWorker(where(gate), queue="q", name="w") as worker:
        worker.welcomed()
        first = background(gate.call, "q", b"first")
        old = worker.command()
    assert result(first).slug == "worker-died"
    before = gate.metrics()["q"]["stray_replies_total"]
    with RawWorker(where(gate), queue="q", name="w") as worker:
        worker.welcomed()
        worker.say(REPLY, old.id, None, b"late")
        eventually(lambda: gate.metrics()["q"]["stray_replies_total"] == before + 1, 5)
        second = background(gate.call, "q", b"second")
        frame = worker.command()
        assert frame.body == b"second"
        worker.say(REPLY, frame.id, None, b"mine")
        assert result(second).body == b"mine"


def test_a_timeout_cuts_the_connection(gate: Program, employ: Employ, tmp_path: Path) -> None:
    """504; the worker comes back when its handler has ended, and what that made is lost."""
    worker = employ(where(gate), queue="brief", name="slow")
    gate.ready("brief")
    go = tmp_path / "go"
    answer = gate.call("brief", b"until %s" % os.fsencode(go))
    assert (answer.status, answer.slug) == (504, "worker-timeout")
    eventually(lambda: not gate.workers("brief"), 5, "it is no worker of ours any more")
    go.touch()
    assert gate.call("brief", b"again").body == b"again"
    assert worker.process.poll() is None
    assert gate.metrics()["brief"]["stray_replies_total"] == 0


def test_a_handler_hears_that_the_gate_is_gone(
    gate: Program, employ: Employ, tmp_path: Path
) -> None:
    """`command.cancelled` is true once the connection is lost: nobody waits for the reply."""
    seen = tmp_path / "seen"
    with proxy(where(gate)) as network:
        employ(network.address)
        gate.ready("q")
        caller = background(gate.call, "q", b"cancelled %s" % os.fsencode(seen))
        gate.running("q")
        network.cut()
        assert result(caller).slug == "worker-died"
        eventually(seen.exists, 10)
        assert gate.call("q", b"next").body == b"next"


def test_garbage_ends_that_connection(gate: Program) -> None:
    """`worker-protocol-error`, as for a child; DRAIN's own frames are no breach."""
    with RawWorker(where(gate), queue="q") as worker:
        worker.welcomed()
        caller = background(gate.call, "q", b"x")
        worker.command()
        worker.socket.sendall(b"print('a forgotten print')\n")
        answer = result(caller)
        assert (answer.status, answer.slug) == (502, "worker-protocol-error")
        assert worker.hear() is None
    gate.logged("a forgotten print")


# --- half open


@pytest.mark.parametrize("how", ["stopped", "swallowed"])
def test_a_silent_worker_is_found_while_idle(gate: Program, employ: Employ, how: str) -> None:
    """SIGSTOP, or a network that swallows everything: PING finds it; then it comes back."""
    with proxy(where(gate)) as network:
        worker = employ(network.address, name="w")
        gate.ready("q")
        if how == "stopped":
            worker.process.send_signal(signal.SIGSTOP)
        else:
            network.silent = True
        eventually(lambda: not gate.workers("q"), 20, "it has been found out", every=0.1)
        assert "no answer to PING" in gate.get("/workers/w/report").json["cause"]
        caller = background(gate.call, "q", b"patience")
        gate.waiting("q", 1)
        if how == "stopped":
            worker.process.send_signal(signal.SIGCONT)
        else:
            network.silent = False
            network.cut()
        answer = result(caller)
        assert answer.body == b"patience", answer


_CUT_OFF = """
import pathlib, socket, subprocess, sys, time
sys.path[:0] = {path!r}
from socket_worker import RawWorker, dial
folder = pathlib.Path({folder!r})
subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
gate = subprocess.Popen([{twistd!r}, "-n", "--pidfile=", "jobgate"], cwd=folder)
def wait(what):
    until = time.monotonic() + 30
    while time.monotonic() < until:
        try:
            return what()
        except OSError:
            time.sleep(0.05)
    raise SystemExit("timed out")
def call(path, method="POST"):
    s = dial("unix://" + str(folder / "h.sock"), 40)
    s.sendall(f"{{method}} {{path}} HTTP/1.1\\r\\nHost: localhost\\r\\nContent-Length: 0\\r\\n"
              "Connection: close\\r\\n\\r\\n".encode())
    return s
def answer(s):
    data = b""
    while part := s.recv(65536):
        data += part
    return data
try:
    worker = wait(lambda: RawWorker("tcp://127.0.0.1:9000", queue="q", name="far"))
    worker.welcomed()
    caller = call("/call/q")
    worker.command()
    subprocess.run(["ip", "link", "set", "lo", "down"], check=True)
    began = time.monotonic()
    said = answer(caller)
    assert b"502" in said.split(b"\\r\\n")[0] and b"worker-died" in said, said
    assert time.monotonic() - began < 20, "far over the ten seconds"
    print("found after", round(time.monotonic() - began, 1))
finally:
    gate.terminate()
    assert gate.wait(20) == 0
"""


def test_a_cut_cable_is_found_while_busy(tmp_path: Path) -> None:
    """The network goes down in mid-command, without a word: the kernel's probes find it."""
    alone = ["unshare", "--user", "--map-root-user", "--net"]
    if subprocess.run([*alone, "ip", "link"], capture_output=True, check=False).returncode:
        pytest.skip("no network namespaces here")
    from program import TWISTD, WORKERS

    (tmp_path / "jobgate.toml").write_text(
        f'[gate]\nlisten = ["unix:{tmp_path}/h.sock"]\n'
        'worker_listen = ["tcp:9000:interface=127.0.0.1"]\n[queues.q]\n'
    )
    script = _CUT_OFF.format(path=[str(WORKERS.parent)], folder=str(tmp_path), twistd=TWISTD)
    done = subprocess.run(
        [*alone, os.sys.executable, "-c", script],  # type: ignore[attr-defined]
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "found after" in done.stdout


# --- the network at its worst


def test_a_slow_link_holds_up_nobody_else(gate: Program, employ: Employ) -> None:
    """A large body crawls to one worker and back; the others' callers do not notice."""
    body = random.Random(1).randbytes(400_000)
    with proxy(where(gate), rate=200_000) as network:
        employ(network.address, queue="two", name="slow")
        gate.ready("two")
        crawling = background(gate.call, "two", body)
        gate.running("two")
        employ(where(gate), queue="two", name="fast")
        gate.ready("two", 2)
        names = {gate.call("two", b"%d" % n)["Jobgate-Worker"] for n in range(20)}
        assert "fast" in names
        answer = result(crawling)
        assert (answer.status, answer.body) == (200, body)


def test_a_worker_that_does_not_read(gate: Program) -> None:
    """It is given no more than it takes in; what it was not given goes to others."""
    large = os.urandom(4_000_000)
    with RawWorker(where(gate), queue="two") as worker:
        worker.welcomed()
        stuck = background(gate.call, "two", large, {"Jobgate-Timeout": "3"})
        gate.running("two")
        with serving(RawWorker(where(gate), queue="two", name="other")):
            gate.ready("two", 2)
            for number in range(5):
                assert gate.call("two", b"%d" % number)["Jobgate-Worker"] == "other"
        assert result(stuck).slug == "worker-timeout"


@pytest.mark.parametrize("queue", ["q", "safe"])
def test_thirty_cuts_under_load(gate: Program, employ: Employ, queue: str) -> None:
    """Every caller gets one answer, and it is his own; with `retry = safe` always a good one."""
    stop = threading.Event()
    with proxy(where(gate)) as network:
        employ(network.address, queue=queue, name="a")
        employ(network.address, queue=queue, name="b")
        gate.ready(queue, 2)

        def call(number: int) -> list[tuple[bytes, Answer]]:
            answers = []
            with gate.connect() as caller:
                while not stop.is_set():
                    body = b"%d/%d" % (number, len(answers))
                    answers.append((body, caller.request("POST", f"/call/{queue}", body)))
            return answers

        callers = [background(call, number) for number in range(6)]
        for cut in range(30):
            before = gate.metrics()[queue]["commands_succeeded_total"]
            network.cut()
            eventually(
                lambda before=before: (
                    gate.metrics()[queue]["commands_succeeded_total"] > before + 20
                ),
                30,
                f"work goes on after cut {cut}",
            )
        assert network.connections >= 32
        stop.set()
        answers = [answer for caller in callers for answer in result(caller)]
    assert len(answers) > 600
    for body, answer in answers:
        if answer.status == 200:
            assert answer.body == body
        else:
            assert (queue, answer.slug) in {("q", "worker-died"), ("safe", "poison-command")}
    numbers = at_rest(gate, queue)
    assert numbers["commands_accepted_total"] == len(answers)
    assert numbers["commands_succeeded_total"] == sum(a.status == 200 for _, a in answers)


# --- coming and going in good order


def test_a_worker_that_is_told_to_end(gate: Program, employ: Employ, tmp_path: Path) -> None:
    """SIGTERM: it finishes what it has, hands nothing on half done, and exits 0."""
    worker = employ(where(gate), name="old")
    gate.ready("q")
    go = tmp_path / "go"
    caller = background(gate.call, "q", b"until %s" % os.fsencode(go))
    gate.running("q")
    worker.process.terminate()
    eventually(lambda: gate.workers("q")[0]["state"] == "draining", 5)
    waiting = background(gate.call, "q", b"for the next")
    gate.waiting("q", 1)
    go.touch()
    assert result(caller).body == b"done"
    assert worker.process.wait(20) == 0
    employ(where(gate), name="new")
    assert result(waiting).body == b"for the next"
    eventually(lambda: "old has left" in gate.log, 5)
    assert gate.get("/workers/old/report").status == 404


def test_rolling_restarts_under_load(gate: Program, employ: Employ) -> None:
    """Workers are replaced one after the other: no caller notices."""
    stop = threading.Event()

    def call(number: int) -> int:
        count = 0
        with gate.connect() as caller:
            while not stop.is_set():
                body = b"%d/%d" % (number, count)
                answer = caller.request("POST", "/call/two", body)
                assert (answer.status, answer.body) == (200, body)
                count += 1
        return count

    workers = [employ(where(gate), queue="two", name=f"w{n}") for n in range(2)]
    gate.ready("two", 2)
    callers = [background(call, number) for number in range(6)]
    for number in range(2, 8):
        workers.append(employ(where(gate), queue="two", name=f"w{number}"))
        eventually(lambda: gate.queue("two")["workers"] == 3, 15)
        leaving = workers.pop(0)
        leaving.process.terminate()
        assert leaving.process.wait(20) == 0
    stop.set()
    assert sum(result(caller) for caller in callers) > 100
    assert at_rest(gate, "two")["commands_failed_total"] == 0


def test_an_idle_worker_ends_at_once(gate: Program, employ: Employ) -> None:
    """Also by Ctrl-C, and also where there is no gate."""
    for number in (signal.SIGTERM, signal.SIGINT):
        worker = employ(where(gate, "unix"))
        gate.ready("q")
        worker.process.send_signal(number)
        assert worker.process.wait(10) == 0
        eventually(lambda: not gate.workers("q"), 5)
    lost = employ("tcp://127.0.0.1:1")
    eventually(lambda: "trying again" in lost.log, 10)
    lost.process.terminate()
    assert lost.process.wait(10) == 0


def test_recycle(gate: Program, employ: Employ) -> None:
    """It is sent away when it has finished, and comes again under its name."""
    worker = employ(where(gate), name="w")
    gate.ready("q")
    [before] = gate.workers("q")
    assert gate.post("/workers/w/recycle").status == 202
    eventually(
        lambda: [w["address"] for w in gate.workers("q")] not in ([], [before["address"]]), 10
    )
    [after] = gate.workers("q")
    assert (after["name"], after["restarts"], after["last_crash"]) == ("w", 1, None)
    assert gate.call("q", b"x").body == b"x"
    assert worker.process.poll() is None
    assert "sent this worker away" in worker.log
    with RawWorker(where(gate), queue="q", name="raw") as raw:
        raw.welcomed()
        assert gate.post("/queues/q/reload").status == 202
        frame = raw.hear()
        assert frame is not None
        assert frame.kind == DRAIN
        assert raw.hear() is None


def test_reload(start_gate: Callable[..., Program], employ: Employ, tmp_path: Path) -> None:
    """SIGHUP opens and closes endpoints, and sends away those whom a change concerns."""
    config: dict[str, Any] = {
        "gate": {"worker_listen": [TCP]},
        "queues": {"q": {}, "gone": {}, "same": {"timeout": 5}},
    }
    gate = start_gate(config)
    first = where(gate)
    with (
        RawWorker(first, queue="q") as q,
        RawWorker(first, queue="gone") as gone,
        serving(RawWorker(first, queue="same")),
    ):
        for worker in (q, gone):
            worker.welcomed()
        config["gate"]["worker_listen"] = [f"unix:{tmp_path / 'new.sock'}"]
        config["queues"] = {"q": {"timeout": 7}, "same": {"timeout": 5, "size": 7}}
        gate.write_config(config)
        gate.signal(signal.SIGHUP)
        for worker in (q, gone):
            frame = worker.hear()
            assert frame is not None
            assert frame.kind == DRAIN
        second = where(gate, "unix")
        with pytest.raises(ConnectionRefusedError):
            dial(first)
        assert gate.call("same", b"still").body == b"still"
        employ(second)
        assert gate.call("q", b"x").body == b"x"
    # What cannot be opened changes nothing.
    config["gate"]["worker_listen"] = [f"unix:{tmp_path / 'no' / 'new.sock'}"]
    config["queues"] = {}
    gate.write_config(config)
    gate.signal(signal.SIGHUP)
    gate.logged("nothing is changed")
    assert gate.call("q", b"x").body == b"x"


def test_the_gate_drains(start_gate: Callable[..., Program]) -> None:
    """SIGTERM: what was accepted is finished; then DRAIN, and the end of the connection."""
    gate = start_gate({"gate": {"worker_listen": [TCP]}, "queues": {"q": {}}})
    address = where(gate)
    with RawWorker(address, queue="q") as worker:
        worker.welcomed()
        callers = [background(gate.call, "q", b"%d" % n) for n in range(2)]
        frame = worker.command()
        gate.waiting("q", 1)
        gate.signal(signal.SIGTERM)
        worker.say(REPLY, frame.id, None, frame.body)
        frame = worker.command()
        worker.say(REPLY, frame.id, None, frame.body)
        assert [result(caller).body for caller in callers] == [b"0", b"1"]
        last = worker.hear()
        assert last is not None
        assert last.kind == DRAIN
        assert worker.hear() is None
        assert gate.wait() == 0
    with pytest.raises(OSError, match="refused"):
        dial(address)


def test_the_gate_is_killed_and_comes_back(
    start_gate: Callable[..., Program], employ: Employ, tmp_path: Path
) -> None:
    """`kill -9`: the socket it left is replaced, and its workers find it again."""
    sock = tmp_path / "w.sock"
    config = {"gate": {"worker_listen": [f"unix:{sock}"]}, "queues": {"q": {}}}
    gate = start_gate(config)
    workers = [employ(f"unix://{sock}", name=f"w{n}") for n in range(3)]
    gate.ready("q", 3)
    gate.kill()
    assert sock.exists()
    again = start_gate(config)
    again.ready("q", 3)
    assert again.call("q", b"again").body == b"again"
    assert {w["name"] for w in again.workers("q")} == {"w0", "w1", "w2"}
    assert all("at work for q" in worker.log for worker in workers)


# --- TLS


def test_tls_with_client_certificates(
    start_gate: Callable[..., Program], employ: Employ, tmp_path: Path
) -> None:
    """Who has a certificate of the right authority is let in; all else as without TLS."""
    ours, theirs = Authority("ours"), Authority("theirs")
    for authority, name in ((ours, "gate"), (ours, "worker"), (theirs, "stranger")):
        authority.issue(name, tmp_path)
    (tmp_path / "ours.pem").write_bytes(ours.pem)
    files = "privateKey=gate.key:certificate=gate.pem:trustRoots=ours.pem"
    gate = start_gate(
        {
            "gate": {"worker_listen": [f"tls:0:interface=127.0.0.1:{files}"]},
            "queues": {"q": {}},
        }
    )
    address = where(gate, "tls").replace("127.0.0.1", "localhost")
    trust = {"cafile": str(tmp_path / "ours.pem")}

    def own(name: str) -> dict[str, str]:
        return {"certfile": str(tmp_path / f"{name}.pem"), "keyfile": str(tmp_path / f"{name}.key")}

    for settings in (trust, {**trust, **own("stranger")}, own("worker")):
        stranger = employ(address, **settings)
        eventually(lambda stranger=stranger: "trying again" in stranger.log, 15)
        stranger.end()
    assert gate.workers() == []
    worker = employ(address, name="known", **trust, **own("worker"))
    gate.ready("q")
    [shown] = gate.workers("q")
    assert shown["address"].startswith("127.0.0.1:")
    large = random.Random(1).randbytes(3_000_000)
    for body in (b"small", large, b"", large):
        answer = gate.call("q", body)
        assert (answer.status, answer.body) == (200, body)
    assert gate.call("q", b"stream 3").body == b"0\n1\n2\n"
    gate.post("/workers/known/recycle")
    assert gate.call("q", b"after").body == b"after"
    worker.process.terminate()
    assert worker.process.wait(10) == 0


def test_a_worker_that_breaks_off_in_the_tls_handshake(
    start_gate: Callable[..., Program], tmp_path: Path
) -> None:
    """Nobody is harmed."""
    Authority("ours").issue("gate", tmp_path)
    files = "privateKey=gate.key:certificate=gate.pem"
    gate = start_gate(
        {
            "gate": {"worker_listen": [f"tls:0:interface=127.0.0.1:{files}"]},
            "queues": {"q": {"boot_timeout": 0.5}},
        }
    )
    with dial(where(gate, "tls").replace("tls:", "tcp:")) as silent:
        with dial(where(gate, "tls").replace("tls:", "tcp:")) as rude:
            rude.sendall(b"not TLS at all")
            assert rude.recv(100) is not None
        silent.settimeout(20)
        with contextlib.suppress(ConnectionResetError):
            while silent.recv(4096):
                continue
    assert gate.get("/healthz").status == 200


def test_the_constants_of_the_protocol() -> None:
    """The raw worker of these tests speaks what the gate speaks."""
    from jobgate.wire import frames

    assert (HELLO, WELCOME, COMMAND, REPLY, DRAIN) == (
        frames.HELLO,
        frames.WELCOME,
        frames.COMMAND,
        frames.REPLY,
        frames.DRAIN,
    )
