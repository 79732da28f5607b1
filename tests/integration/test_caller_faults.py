"""
Whatever a caller does, it harms nobody else and holds nothing for long.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest
from background import background, result
from program import Program, at_rest, eventually, lines_of, sdk
from raw_http import RawConnection, request_bytes

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MAX_BODY = 8_000_000
HEADER_TIMEOUT, BODY_TIMEOUT, IDLE_TIMEOUT = 1.0, 1.5, 2.0
A_MOMENT = 1.5
"""Seconds: a deadline is looked for every half second, and the machine may be busy."""
ECHO = {"command": sdk("echo"), "workers": 1}
ACTOR = {"command": sdk("actor"), "workers": 1, "kill_timeout": 0.5}


def steps(*taken: tuple[str, Any]) -> bytes:
    """A body for `workers/actor.py`."""
    return json.dumps(taken).encode()


@pytest.fixture(scope="module", params=["fast", "klein"])
def gate(request: pytest.FixtureRequest, start_shared_gate: Callable[..., Program]) -> Program:
    """A gate with short times; whatever happens here, it must go on."""
    settings = {
        "max_body": MAX_BODY,
        "header_timeout": HEADER_TIMEOUT,
        "body_timeout": BODY_TIMEOUT,
        "idle_timeout": IDLE_TIMEOUT,
    }
    queues = {"q": ECHO, "actor": ACTOR, "two": {**ACTOR, "workers": 2}, "stream": ACTOR}
    return start_shared_gate({"gate": settings, "queues": queues}, front=request.param)


@pytest.fixture(autouse=True)
def others_are_served(request: pytest.FixtureRequest) -> Any:
    """After every test here another caller is served, and every command is accounted for."""
    yield
    if "gate" in request.fixturenames:
        program: Program = request.getfixturevalue("gate")
        assert program.call("q", b"still here").body == b"still here"
        program.conserved()
        program.no_traceback()


# --- gone


def test_gone_while_queued_never_reaches_a_worker(gate: Program, tmp_path: Path) -> None:
    """The worker writes down what it saw: nothing of those who left."""
    go, seen = tmp_path / "go", tmp_path / "seen"
    before = at_rest(gate, "actor")["commands_cancelled_total"]
    running = background(gate.call, "actor", steps(("until", str(go))))
    gate.running("actor")
    leavers = []
    for n in range(10):
        caller = gate.connect()
        caller.send(request_bytes("POST", "/call/actor", steps(("note", [str(seen), str(n)]))))
        leavers.append(caller)
    gate.waiting("actor", 10)
    stays = background(gate.call, "actor", steps(("note", [str(seen), "stays"])))
    gate.waiting("actor", 11)
    for n, caller in enumerate(leavers):
        caller.reset() if n % 2 else caller.close()
    gate.waiting("actor", 1)
    go.touch()
    assert result(running).status == 200
    assert result(stays).status == 200
    assert lines_of(seen) == ["stays"]
    assert at_rest(gate, "actor")["commands_cancelled_total"] == before + 10


def test_gone_while_running(gate: Program, tmp_path: Path) -> None:
    """Its reply reaches nobody, and the worker is free for the next."""
    seen = tmp_path / "seen"
    caller = gate.connect()
    body = steps(("note", [str(seen), "begun"]), ("cancelled", str(seen)))
    caller.send(request_bytes("POST", "/call/actor", body))
    eventually(lambda: lines_of(seen), 5, "it runs")
    caller.close()
    eventually(lambda: lines_of(seen)[1:], 5, "the worker was told")
    answer = gate.call("actor", steps(("reply", "mine")))
    assert answer.body == b"mine"


def test_gone_in_the_middle_of_a_body(gate: Program) -> None:
    """No command comes of half a body."""
    before = gate.metrics()["q"]["commands_accepted_total"]
    for _ in range(5):
        with gate.connect() as caller:
            caller.send(request_bytes("POST", "/call/q", b"", {"Content-Length": "1000"}) + b"half")
        with gate.connect() as caller:
            headers = {"Transfer-Encoding": "chunked"}
            caller.send(request_bytes("POST", "/call/q", b"", headers) + b"4\r\nhalf\r\n5\r\nha")
    assert gate.metrics()["q"]["commands_accepted_total"] == before


def test_half_closed_is_answered_or_ended(gate: Program) -> None:
    """A caller that closes its sending side may count as gone; it must not be left hanging."""
    with gate.connect(timeout=5) as caller:
        caller.send(request_bytes("POST", "/call/actor", steps(("sleep", 0.2))))
        caller.socket.shutdown(socket.SHUT_WR)
        said = caller.rest()
    assert said == b"" or said.startswith(b"HTTP/1.1 200 ")


# --- slow


def test_slow_readers_slow_nobody(gate: Program) -> None:
    """Big replies unread: others are served; the connection ends within `body_timeout` or so."""
    slow = []
    for _ in range(3):
        caller = gate.connect(receive_buffer=4096)
        caller.send(request_bytes("POST", "/call/two", steps(("big", 30_000_000))))
        slow.append(caller)
    eventually(lambda: gate.metrics()["two"]["commands_running"] == 0, 10)
    started = time.monotonic()
    for n in range(20):
        assert gate.call("two", steps(("reply", n))).json == n
    assert time.monotonic() - started < 2
    for caller in slow:
        # The kernel has some of it; what the gate still held is gone, so it is not whole.
        eventually(
            lambda caller=caller: _peer_is_gone(caller),
            BODY_TIMEOUT + 2 * A_MOMENT,
            "the slow one is cut off",
        )
        assert not caller.answer().whole
        caller.close()


def _peer_is_gone(caller: RawConnection) -> bool:
    """Whether the other side has ended the connection: TCP_INFO, without reading."""
    state = caller.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
    established = 1
    return state != established


def test_a_slow_but_steady_reader_gets_all(gate: Program) -> None:
    """Only one that stands still is cut off."""
    with gate.connect(receive_buffer=65536) as caller:
        caller.send(request_bytes("POST", "/call/two", steps(("big", 6_000_000))))
        started, got = time.monotonic(), 0
        status, fields = caller.head()
        assert status == 200, fields
        while got < 5_000_000:
            data = caller.socket.recv(50_000)
            assert data
            got += len(data)
            time.sleep(0.03)
        took = time.monotonic() - started
        assert took > BODY_TIMEOUT, "too quick to show anything"
        caller.send(b"")


@pytest.mark.parametrize("piece", ["headers", "body", "chunked"])
def test_byte_by_byte(gate: Program, piece: str) -> None:
    """408 or the end, in time; a caller that drips does not win by dripping."""
    first = {
        "headers": b"",
        "body": request_bytes("POST", "/call/q", b"", {"Content-Length": "1000"}),
        "chunked": request_bytes("POST", "/call/q", b"", {"Transfer-Encoding": "chunked"})
        + b"3e8\r\n",
    }[piece]
    drips = b"POST /call/q HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 1000
    limit = HEADER_TIMEOUT if piece == "headers" else BODY_TIMEOUT
    with gate.connect() as caller:
        caller.send(first)
        caller.socket.settimeout(0.05)
        started = time.monotonic()
        said = b""
        for drip in drips:
            try:
                caller.socket.send(bytes([drip]))
                data = caller.socket.recv(65536)
                if not data:
                    break
                said += data
            except TimeoutError:
                pass
            except ConnectionError:
                break
            assert time.monotonic() - started < limit + 2 + A_MOMENT, "still open"
    took = time.monotonic() - started
    assert took >= limit - 0.1
    if said:
        assert said.startswith(b"HTTP/1.1 408 ")
        assert b"request-timeout" in said


def test_silence(gate: Program) -> None:
    """A silent connection ends after `idle_timeout`, before and after a request."""
    silent, after = gate.connect(), gate.connect()
    with silent, after:
        assert after.request("POST", "/call/q", b"x").status == 200
        started = time.monotonic()
        for caller in (silent, after):
            assert caller.ended()
        assert IDLE_TIMEOUT - 0.2 < time.monotonic() - started < IDLE_TIMEOUT + A_MOMENT


def test_the_times_do_not_run_while_a_command_runs(gate: Program) -> None:
    """A caller that waits for its reply is not idle."""
    with gate.connect() as caller:
        assert caller.request("POST", "/call/actor", steps(("sleep", 2.8))).status == 200


# --- bodies too large


def test_too_large_by_content_length(gate: Program) -> None:
    """413 at the header, before the body is read."""
    with gate.connect() as caller:
        caller.send(request_bytes("POST", "/call/q", b"", {"Content-Length": str(MAX_BODY + 1)}))
        answer = caller.answer()
    assert (answer.status, answer.slug) == (413, "body-too-large")
    assert answer["Connection"] == "close"
    assert answer.json["executed"] == "no"


def test_too_large_and_sent_all_the_same(gate: Program) -> None:
    """A caller that sends first and reads later still gets the 413, not a reset."""
    body = b"x" * (MAX_BODY + 1_000_000)
    answer = gate.call("q", body)
    assert (answer.status, answer.slug) == (413, "body-too-large")


def test_too_large_and_chunked(gate: Program) -> None:
    """As soon as it is over; not at its end, which never comes."""
    piece = b"%x\r\n%b\r\n" % (100_000, b"x" * 100_000)
    with gate.connect() as caller:
        caller.send(request_bytes("POST", "/call/q", b"", {"Transfer-Encoding": "chunked"}))
        for _ in range(MAX_BODY // 100_000 + 1):
            caller.send(piece)
        answer = caller.answer()
    assert (answer.status, answer.slug) == (413, "body-too-large")


def test_just_not_too_large(gate: Program) -> None:
    """`max_body` itself is taken, either way."""
    body = os.urandom(MAX_BODY)
    assert gate.call("q", body).body == body
    chunked = b"%x\r\n%b\r\n0\r\n\r\n" % (MAX_BODY, body)
    with gate.connect() as caller:
        caller.send(
            request_bytes("POST", "/call/q", b"", {"Transfer-Encoding": "chunked"}) + chunked
        )
        assert caller.answer().body == body


def test_expect_and_too_large(gate: Program) -> None:
    """413, and no 100 Continue before it."""
    headers = {"Content-Length": str(MAX_BODY + 1), "Expect": "100-continue"}
    with gate.connect() as caller:
        caller.send(request_bytes("POST", "/call/q", b"", headers))
        assert caller.answer().status == 413


def test_expect_accepted(gate: Program) -> None:
    """100 Continue, then the answer."""
    headers = {"Content-Length": "5", "Expect": "100-continue"}
    with gate.connect() as caller:
        for _ in range(2):
            caller.send(request_bytes("POST", "/call/q", b"", headers))
            assert caller.answer().status == 100
            caller.send(b"12345")
            assert caller.answer().body == b"12345"


def test_expect_something_else(gate: Program) -> None:
    """Refused, as is what is no expectation of ours."""
    with gate.connect() as caller:
        caller.send(request_bytes("POST", "/call/q", b"x", {"Expect": "200-ok"}))
        assert caller.answer().status in (400, 417)


# --- pipelining, HTTP/1.0


def test_pipelining_keeps_order(gate: Program) -> None:
    """Calls and other routes mixed, sent in one piece: answered in their order."""
    requests, expected = b"", []
    for n in range(30):
        body = b"%d" % n
        requests += request_bytes("POST", "/call/q", body)
        expected.append((200, body))
        if n % 3 == 0:
            requests += request_bytes("GET", "/healthz")
            expected.append((200, b'{"status":"ok"}'))
        if n % 5 == 0:
            requests += request_bytes("POST", "/call/nothing", b"x")
            expected.append((404, b""))
    with gate.connect() as caller:
        caller.send(requests)
        for status, body in expected:
            answer = caller.answer()
            assert answer.status == status
            if status == 200:
                assert answer.body == body


def test_pipelining_a_slow_one_first(gate: Program) -> None:
    """The quick ones wait for it."""
    with gate.connect() as caller:
        caller.send(
            request_bytes("POST", "/call/actor", steps(("sleep", 0.3), ("reply", "slow")))
            + request_bytes("POST", "/call/q", b"quick")
            + request_bytes("GET", "/healthz")
        )
        assert [caller.answer().body for _ in range(2)] == [b"slow", b"quick"]
        assert caller.answer().status == 200


def test_pipelining_without_end(gate: Program) -> None:
    """More requests than may be held, behind one that runs: reading stops, memory does not grow."""
    with gate.connect(timeout=5) as caller:
        caller.send(request_bytes("POST", "/call/actor", steps(("sleep", 1))))
        more = request_bytes("POST", "/call/q", b"x" * 10_000)
        caller.socket.setblocking(False)
        sent = 0
        try:
            for _ in range(10_000):
                sent += caller.socket.send(more)
        except BlockingIOError:
            pass
        caller.socket.settimeout(10)
        assert sent < 50_000_000
        assert caller.answer().status == 200
        for _ in range(3):
            assert caller.answer().body == b"x" * 10_000


def test_pipelining_and_gone(gate: Program, tmp_path: Path) -> None:
    """Of a caller that leaves, nothing that was pipelined is begun."""
    seen, go = tmp_path / "seen", tmp_path / "go"
    caller = gate.connect()
    caller.send(request_bytes("POST", "/call/actor", steps(("until", str(go)))))
    for n in range(5):
        caller.send(request_bytes("POST", "/call/actor", steps(("note", [str(seen), str(n)]))))
    gate.running("actor")
    caller.close()
    eventually(lambda: gate.queue("actor")["running"] == 0)
    go.touch()
    assert gate.call("actor").status == 200
    assert lines_of(seen) == []


def test_http_1_0(gate: Program) -> None:
    """Without keep-alive the connection ends; with it, it stays."""
    with gate.connect() as caller:
        answer = caller.request("POST", "/call/q", b"x", version="1.0")
        assert (answer.status, answer.body) == (200, b"x")
        assert caller.ended()
    with gate.connect() as caller:
        for path in ("/call/q", "/call/actor"):
            keep = {"Connection": "keep-alive"}
            answer = caller.request("POST", path, b"", keep, version="1.0")
            assert answer["Connection"].lower() == "keep-alive"
    with gate.connect() as caller:
        caller.send(b"POST /call/q HTTP/1.0\r\nContent-Length: 1\r\n\r\nx")
        assert caller.answer().status == 200


def test_http_1_0_streams_until_the_end(gate: Program) -> None:
    """Without chunks, the end of the connection is the end of the reply."""
    with gate.connect() as caller:
        body = steps(("chunks", {"count": 3}))
        answer = caller.request("POST", "/call/stream", body, version="1.0")
    assert "Transfer-Encoding" not in answer
    assert answer.body == b"0:\n1:\n2:\n"


def test_connection_close_is_kept(gate: Program) -> None:
    """One that wants to end it, ends it."""
    with gate.connect() as caller:
        assert caller.request("POST", "/call/q", b"x", {"Connection": "close"}).body == b"x"
        assert caller.ended()


# --- no HTTP


SMUGGLING = {
    "both lengths": b"POST /call/q HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\nG",
    "two lengths": b"POST /call/q HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n"
    b"Content-Length: 2\r\n\r\nxx",
    "a list of lengths": b"POST /call/q HTTP/1.1\r\nHost: localhost\r\n"
    b"Content-Length: 1, 1\r\n\r\nx",
    "a signed length": b"POST /call/q HTTP/1.1\r\nHost: localhost\r\nContent-Length: +1\r\n\r\nx",
    "a negative length": b"POST /call/q HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
    "a huge length": b"POST /call/q HTTP/1.1\r\nHost: localhost\r\nContent-Length: "
    + b"9" * 30
    + b"\r\n\r\n",
    "space before the colon": b"POST /call/q HTTP/1.1\r\nHost: localhost\r\n"
    b"Content-Length : 1\r\n\r\nx",
    "a folded header": b"POST /call/q HTTP/1.1\r\nHost: localhost\r\nX: a\r\n b\r\n"
    b"Content-Length: 1\r\n\r\nx",
    "a bare line feed": b"POST /call/q HTTP/1.1\nHost: localhost\nContent-Length: 1\n\nx",
    "a bare carriage return": b"POST /call/q HTTP/1.1\r\nHost: localhost\r\nX: a\rb\r\n"
    b"Content-Length: 1\r\n\r\nx",
    "a NUL": b"POST /call/q HTTP/1.1\r\nHost: localhost\r\nX: a\0b\r\nContent-Length: 1\r\n\r\nx",
    "chunked twice": b"POST /call/q HTTP/1.1\r\nHost: localhost\r\n"
    b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
    "chunked and another header": b"POST /call/q HTTP/1.1\r\nHost: localhost\r\n"
    b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
    "another coding": b"POST /call/q HTTP/1.1\r\nHost: localhost\r\n"
    b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "an obscured coding": b"POST /call/q HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: xchunked"
    b"\r\n\r\n0\r\n\r\n",
    "chunked in 1.0": b"POST /call/q HTTP/1.0\r\nHost: localhost\r\nTransfer-Encoding: chunked"
    b"\r\n\r\n0\r\n\r\n",
    "a bad chunk size": b"POST /call/q HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked"
    b"\r\n\r\n0x1\r\nx\r\n0\r\n\r\n",
    "a negative chunk size": b"POST /call/q HTTP/1.1\r\nHost: localhost\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n-1\r\nx\r\n0\r\n\r\n",
    "a chunk too long": b"POST /call/q HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked"
    b"\r\n\r\n1\r\nxyz\r\n0\r\n\r\n",
    "an upgrade with both lengths": b"POST /call/q HTTP/1.1\r\nHost: localhost\r\n"
    b"Connection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 5\r\nTransfer-Encoding: chunked"
    b"\r\n\r\n0\r\n\r\nG",
    "CONNECT": b"CONNECT localhost:80 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "no host": b"POST /call/q HTTP/1.1\r\nContent-Length: 1\r\n\r\nx",
    "two hosts": b"POST /call/q HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n"
    b"Content-Length: 1\r\n\r\nx",
    "two idempotency keys": b"POST /push/q HTTP/1.1\r\nHost: localhost\r\nIdempotency-Key: a\r\n"
    b"Idempotency-Key: b\r\nContent-Length: 1\r\n\r\nx",
    "HTTP/0.9": b"GET /healthz\r\n\r\n",
    "HTTP/2.0": b"POST /call/q HTTP/2.0\r\nHost: localhost\r\nContent-Length: 1\r\n\r\nx",
    "HTTP/1.2": b"POST /call/q HTTP/1.2\r\nHost: localhost\r\nContent-Length: 1\r\n\r\nx",
    "HTTP/2's preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "TLS": bytes.fromhex("16030100c8010000c40303") + bytes(100),
    "no method": b" /call/q HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "noise": b"\xff\xfe\xfd" * 50 + b"\r\n\r\n",
    "a very long target": b"GET /" + b"x" * 300_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a very long header": b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: "
    + b"x" * 300_000
    + b"\r\n\r\n",
    "many headers": b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"
    + b"".join(b"X%d: x\r\n" % n for n in range(200))
    + b"\r\n",
    "a path that is not UTF-8": b"GET /queues/%ff HTTP/1.1\r\nHost: localhost\r\n\r\n",
}


@pytest.mark.parametrize("shape", SMUGGLING)
def test_smuggling_shapes(gate: Program, shape: str) -> None:
    """400, once, then the end: nothing of what follows is taken for a request."""
    before = gate.metrics()["q"]["commands_accepted_total"]
    smuggled = request_bytes("POST", "/call/q", b"smuggled")
    with gate.connect(timeout=5) as caller:
        caller.send(SMUGGLING[shape] + (smuggled if "path" not in shape else b""))
        answer = caller.answer()
        assert 400 <= answer.status < 500, answer
        assert answer.slug == "bad-request"
        if "path" not in shape:
            assert caller.ended()
    assert gate.metrics()["q"]["commands_accepted_total"] == before


def test_lone_newlines_before_a_request(gate: Program) -> None:
    """RFC 9112, 2.2: an empty line before the request line is ignored."""
    with gate.connect() as caller:
        caller.send(b"\r\n" + request_bytes("POST", "/call/q", b"x"))
        assert caller.answer().body == b"x"


def test_trailers_and_chunk_extensions(gate: Program) -> None:
    """Taken, and of no effect."""
    with gate.connect() as caller:
        for _ in range(2):
            caller.send(
                request_bytes("POST", "/call/q", b"", {"Transfer-Encoding": "chunked"})
                + b"3;name=value\r\nabc\r\n2\r\nde\r\n0\r\nJobgate-Key: no\r\nX: y\r\n\r\n"
            )
            assert caller.answer().body == b"abcde"


def test_an_upgrade_is_not_taken(gate: Program) -> None:
    """An offer is only an offer."""
    with gate.connect() as caller:
        headers = {"Connection": "Upgrade", "Upgrade": "websocket"}
        answer = caller.request("POST", "/call/q", b"x", headers)
        assert (answer.status, answer.body) == (200, b"x")


@pytest.mark.parametrize("offer", ["websocket", "h2c", "foo/2"])
def test_an_upgrade_and_what_follows(gate: Program, offer: str) -> None:
    """Bodies stay bodies, in pieces as well, and the next request is the next request."""
    headers = {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": offer, "HTTP2-Settings": "AA"}
    body = request_bytes("POST", "/call/q", b"smuggled")
    once = request_bytes("POST", "/call/q", body, headers)
    before = gate.metrics()["q"]["commands_accepted_total"]
    with gate.connect() as caller:
        caller.send(once * 2)
        assert [caller.answer().body for _ in range(2)] == [body, body]
        for piece in (once[:40], once[40:-20], once[-20:]):
            caller.send(piece)
        assert caller.answer().body == body
        chunked = {**headers, "Transfer-Encoding": "chunked"}
        caller.send(request_bytes("POST", "/call/q", b"2\r\nhi\r\n0\r\n\r\n", chunked))
        assert caller.answer().body == b"hi"
        large = body * 10_000
        assert caller.request("POST", "/call/q", large, headers).body == large
        last = {**headers, "Connection": "Upgrade, close"}
        assert caller.request("POST", "/call/q", b"x", last).body == b"x"
        assert caller.ended()
    assert gate.metrics()["q"]["commands_accepted_total"] == before + 6


def test_the_same_head_again_and_again(gate: Program) -> None:
    """Callers repeat themselves; their bodies differ all the same, whole, torn and pipelined."""
    with gate.connect() as caller:
        for round_ in range(3):
            for n in range(10):
                body = b"%04d" % (n + 10 * round_)
                whole = request_bytes("POST", "/call/q", body)
                if n % 3 == 0:
                    caller.send(whole)
                elif n % 3 == 1:
                    caller.send(whole[:-2])
                    time.sleep(0.005)
                    caller.send(whole[-2:])
                else:
                    caller.send(whole + request_bytes("POST", "/call/q", b"next"))
                assert caller.answer().body == body
                if n % 3 == 2:
                    assert caller.answer().body == b"next"


def test_absolute_form(gate: Program) -> None:
    """RFC 9112, 3.2.2."""
    with gate.connect() as caller:
        assert caller.request("POST", "http://localhost/call/q", b"x").body == b"x"


# --- streams


def test_a_stream_comes_as_it_is_made(gate: Program) -> None:
    """Each chunk at once, not all at the end."""
    body = steps(("chunks", {"count": 3, "pause": 0.4}))
    with gate.connect() as caller:
        caller.send(request_bytes("POST", "/call/stream", body))
        status, fields = caller.head()
        assert status == 200
        assert ("Transfer-Encoding", "chunked") in fields
        started = time.monotonic()
        assert caller.chunk() == b"0:\n"
        assert time.monotonic() - started < 0.4
        assert [caller.chunk() for _ in range(3)] == [b"1:\n", b"2:\n", b""]
        assert caller.request("POST", "/call/q", b"next").body == b"next"


def test_a_stream_as_events(gate: Program) -> None:
    """`Accept: text/event-stream`."""
    accept = {"Accept": "text/event-stream"}
    answer = gate.call("stream", steps(("chunks", {"count": 2})), accept)
    assert answer["Content-Type"].startswith("text/event-stream")
    assert answer.body == b"data: 0:\ndata: \n\ndata: 1:\ndata: \n\n"


def test_a_stream_that_is_events_already(gate: Program) -> None:
    """A worker that writes events itself has them passed on as they are; case does not matter."""
    body = steps(("chunks", {"count": 1, "type": "text/event-stream"}))
    answer = gate.call("stream", body, {"Accept": "Text/Event-Stream"})
    assert answer["Content-Type"] == "text/event-stream"
    assert answer.body == b"0:\n"
    answer = gate.call("stream", steps(("chunks", {"count": 1})), {"Accept": "Text/Event-Stream"})
    assert answer.body == b"data: 0:\ndata: \n\n"


def test_a_stream_that_fails(gate: Program) -> None:
    """After the first chunk: a cut connection, or `event: error`."""
    body = steps(("chunks", {"count": 2}), ("fail", ["no more", "of it", 500]))
    with gate.connect() as caller:
        answer = caller.request("POST", "/call/stream", body)
    assert (answer.status, answer.whole) == (200, False)
    answer = gate.call("stream", body, {"Accept": "text/event-stream"})
    assert answer.whole
    found = re.search(rb"event: error\ndata: (.*)\n\n\Z", answer.body)
    assert found, answer.body
    assert json.loads(found[1])["title"] == "no more"
    killed = steps(("chunks", {"count": 2}), ("kill", 9))
    answer = gate.call("stream", killed, {"Accept": "text/event-stream"})
    assert b"/problems/worker-died" in answer.body
    with gate.connect() as caller:
        assert not caller.request("POST", "/call/stream", killed, version="1.1").whole
    assert gate.call("stream").status == 200


def test_a_stream_that_takes_too_long(gate: Program) -> None:
    """The caller's time ends in mid-stream."""
    body = steps(("chunks", {"count": 100, "pause": 0.1}))
    headers = {"Jobgate-Timeout": "0.5", "Accept": "text/event-stream"}
    answer = gate.call("stream", body, headers)
    assert b"event: error" in answer.body
    assert b"worker-timeout" in answer.body
    assert gate.call("stream").status == 200


def test_gone_in_the_middle_of_a_stream(gate: Program, tmp_path: Path) -> None:
    """The command is cancelled, the worker stops and is free again."""
    seen = tmp_path / "seen"
    before = at_rest(gate, "stream")["commands_cancelled_total"]
    body = steps(("chunks", {"count": 1000, "pause": 0.02, "note": str(seen)}))
    with gate.connect() as caller:
        caller.send(request_bytes("POST", "/call/stream", body))
        caller.head()
        assert caller.chunk() == b"0:\n"
    started = time.monotonic()
    assert gate.call("stream").status == 200
    assert time.monotonic() - started < 5
    assert len(lines_of(seen)) < 500
    assert at_rest(gate, "stream")["commands_cancelled_total"] == before + 1


def test_a_stream_that_nobody_reads(gate: Program, tmp_path: Path) -> None:
    """Over 1 MiB unread: cut off, command cancelled, worker free again."""
    seen = tmp_path / "seen"
    chunks = {"count": 20_000, "size": 50_000, "pause": 0.002, "note": str(seen)}
    before = at_rest(gate, "stream")["commands_cancelled_total"]
    with gate.connect(receive_buffer=4096) as caller:
        caller.send(request_bytes("POST", "/call/stream", steps(("chunks", chunks))))
        eventually(lambda: _peer_is_gone(caller), 15, "it is cut off")
        started = time.monotonic()
        assert gate.call("stream").status == 200
        assert time.monotonic() - started < 5
    assert len(lines_of(seen)) < 1000
    assert at_rest(gate, "stream")["commands_cancelled_total"] == before + 1


def test_a_long_and_fast_stream_reaches_a_prompt_reader(gate: Program) -> None:
    """A worker that is faster than the network must not cost a caller that does read its reply."""
    count, size = 400, 100_000
    body = steps(("chunks", {"count": count, "size": size}))
    with gate.connect() as caller:
        answer = caller.request("POST", "/call/stream", body)
    assert answer.whole, f"cut off after {len(answer.body)} bytes"
    assert len(answer.body) == sum(len(f"{n}:\n") + size for n in range(count))


# --- how many


def test_max_connections(start_gate: Callable[..., Program]) -> None:
    """One too many gets 503 `gate-full`; when one leaves there is room again."""
    gate = start_gate({"gate": {"max_connections": 5}, "queues": {"q": ECHO}})
    callers = [gate.connect() for _ in range(5)]
    for caller in callers:
        assert caller.request("POST", "/call/q", b"x").status == 200
    with gate.connect() as late:
        late.send(request_bytes("POST", "/call/q", b"x"))
        answer = late.answer()
        assert (answer.status, answer.slug) == (503, "gate-full")
        assert int(answer["Retry-After"]) >= 1
        assert late.ended()
    callers.pop().close()
    # The refused one lingers for two seconds so that its answer arrives.
    eventually(lambda: _status(gate) == 200, 6, every=0.1)
    for caller in callers:
        assert caller.request("POST", "/call/q", b"x").status == 200
        caller.close()


def _status(gate: Program) -> int:
    try:
        return gate.call("q").status
    except OSError:
        return 0


def test_max_buffered(start_gate: Callable[..., Program]) -> None:
    """Bodies under way are bounded together: 503 `gate-full` at the header; room comes back."""
    settings = {"max_buffered": 1_000_000, "max_body": 900_000}
    gate = start_gate({"gate": settings, "queues": {"q": ECHO}})
    first = gate.connect()
    first.send(request_bytes("POST", "/call/q", b"", {"Content-Length": "800000"}) + b"x")
    eventually(lambda: gate.call("q", b"y" * 300_000).status == 503)
    answer = gate.call("q", b"y" * 300_000)
    assert (answer.status, answer.slug) == (503, "gate-full")
    assert int(answer["Retry-After"]) >= 1
    assert gate.call("q", b"y" * 1000).status == 200
    chunk = b"%x\r\n%b\r\n" % (300_000, b"z" * 300_000)
    with gate.connect() as chunked:
        chunked.send(
            request_bytes("POST", "/call/q", b"", {"Transfer-Encoding": "chunked"}) + chunk
        )
        assert chunked.answer().slug == "gate-full"
    first.close()
    eventually(lambda: gate.call("q", b"y" * 800_000).status == 200)


def test_replies_count_towards_max_buffered(start_gate: Callable[..., Program]) -> None:
    """Replies that nobody reads take room as well, until they are cut off."""
    settings = {"max_buffered": 10_000_000, "body_timeout": 1}
    gate = start_gate({"gate": settings, "queues": {"q": ACTOR}})
    slow = []
    for _ in range(2):
        caller = gate.connect(receive_buffer=4096)
        caller.send(request_bytes("POST", "/call/q", steps(("big", 15_000_000))))
        slow.append(caller)
    eventually(lambda: gate.call("q", b" " * 500_000).slug == "gate-full", 5)
    eventually(lambda: gate.call("q", steps(("reply", 1))).status == 200, 10)
    for caller in slow:
        caller.close()


def test_10_000_at_once_against_a_queue_of_128(start_gate: Callable[..., Program]) -> None:
    """Everyone gets 200, or 503 with Retry-After; nobody hangs, nobody gets another's reply."""
    gate = start_gate({"queues": {"q": {**ECHO, "workers": 2, "size": 128}}})
    outcomes = asyncio.run(_all_at_once(gate.url, 10_000))
    statuses = [status for status, _ in outcomes]
    assert set(statuses) <= {200, 503}, {s: statuses.count(s) for s in set(statuses)}
    assert statuses.count(200) >= 128
    assert [why for _, why in outcomes if why] == []
    numbers = at_rest(gate, "q")
    assert numbers["commands_accepted_total"] == 10_000
    assert numbers["commands_succeeded_total"] == statuses.count(200)
    assert gate.get("/readyz").status == 200


async def _all_at_once(url: str, count: int) -> list[tuple[int, str]]:
    """So many connections, all open before any of them asks."""
    address = urlsplit(url)
    opening = asyncio.Semaphore(500)
    everyone_is_here = asyncio.Event()
    here = 0

    async def call(number: int) -> tuple[int, str]:
        nonlocal here
        async with opening:
            reader, writer = await asyncio.open_connection(address.hostname, address.port)
        here += 1
        if here == count:
            everyone_is_here.set()
        await everyone_is_here.wait()
        body = b"%d" % number
        writer.write(request_bytes("POST", "/call/q", body))
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            length = int(re.search(r"Content-Length: (\d+)", head)[1])  # type: ignore[index]
            said = await reader.readexactly(length)
        finally:
            writer.transport.abort()
        status = int(head[9:12])
        if status == 200:
            return status, "" if said == body else f"{said!r} for {body!r}"
        return status, "" if "Retry-After: " in head else head

    async with asyncio.timeout(60):
        return await asyncio.gather(*map(call, range(count)))


def test_memory_stays_with_many_connections(start_gate: Callable[..., Program]) -> None:
    """Two thousand idle connections cost little each, and are given back."""
    import psutil

    gate = start_gate({"queues": {"q": ECHO}})
    process = psutil.Process(gate.pid)
    before = process.memory_info().rss
    callers = [gate.connect() for _ in range(2000)]
    for caller in callers[::100]:
        assert caller.request("POST", "/call/q", b"x").status == 200
    grown = process.memory_info().rss - before
    for caller in callers:
        caller.close()
    assert grown < 60_000_000, grown
