"""
The short way and the Klein way give the same answers.

Every request here is sent, byte for byte the same, to a gate with `front = "fast"` and to
one with `front = "klein"`; what is expected of both is said once.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from background import background, result
from program import Program, eventually, sdk
from raw_http import Answer, request_bytes

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

JSON, PROBLEM, OCTETS = "application/json", "application/problem+json", "application/octet-stream"
_TOLD = re.compile(rb'"(id|first|last)":"[^"]*"')
_NUMBERS = re.compile(rb"\d+(\.\d+)?")


def steps(*taken: tuple[str, Any]) -> bytes:
    """A body for `workers/actor.py`."""
    return json.dumps(taken).encode()


@pytest.fixture(scope="module")
def both(start_shared_gate: Callable[..., Program]) -> list[Program]:
    """Two gates that differ only in their front."""
    config = {
        "gate": {"max_body": 100_000},
        "queues": {
            "q": {"command": sdk("echo"), "workers": 1},
            "actor": {"command": sdk("actor"), "workers": 1, "kill_timeout": 0.5},
            "lines": {"command": sdk("liner"), "workers": 1, "protocol": "lines"},
            "full": {"command": sdk("actor"), "workers": 1, "size": 0},
            "Odd.name_-9": {"command": sdk("echo"), "workers": 1},
            "nobody": {"queue_timeout": 0.2},
            "kept": {},
            "empty": {},
            "brief": {"command": sdk("actor"), "workers": 1, "timeout": 0.3, "kill_timeout": 0.3},
        },
    }
    return [start_shared_gate(config, front=front) for front in ("fast", "klein")]


class Case(NamedTuple):
    """
    A request and what both fronts answer.

    Attributes:
        request: As it goes over the wire.
        status: The status expected.
        body: The body expected: all of it, or the slug of a problem.
        fields: Headers expected; None: must not be there.
    """

    request: bytes
    status: int
    body: bytes | str | None = None
    fields: dict[str, str | None] = {}  # noqa: RUF012 (a NamedTuple's default)


def post(path: str, body: bytes = b"", version: str = "1.1", **headers: str) -> bytes:
    """POST; header names with `_` for `-`."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return request_bytes("POST", path, body, named, version=version)


def get(path: str, method: str = "GET", **headers: str) -> bytes:
    """GET, or another method without a body."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return request_bytes(method, path, b"", named)


LARGE = bytes(range(256)) * 300
CASES = {
    "a call": Case(
        post("/call/q", b"hi"), 200, b"hi", {"Content-Type": OCTETS, "Connection": None}
    ),
    "an empty body": Case(post("/call/q"), 200, b"", {"Content-Length": "0"}),
    "no length at all": Case(b"POST /call/q HTTP/1.1\r\nHost: localhost\r\n\r\n", 200, b""),
    "a large body": Case(post("/call/q", LARGE), 200, LARGE),
    "chunked": Case(
        post("/call/q", b"2\r\nhi\r\n0\r\n\r\n", Transfer_Encoding="chunked"), 200, b"hi"
    ),
    "close": Case(post("/call/q", b"x", Connection="close"), 200, b"x", {"Connection": "close"}),
    "1.0": Case(post("/call/q", b"x", "1.0"), 200, b"x", {"Connection": "close"}),
    "1.0 keep-alive": Case(
        post("/call/q", b"x", "1.0", Connection="keep-alive"),
        200,
        b"x",
        {"Connection": "keep-alive"},
    ),
    "a status and a type": Case(
        post("/call/actor", steps(("answer", {"body": "x", "type": "a/b", "status": 207}))),
        207,
        b"x",
        {"Content-Type": "a/b"},
    ),
    "an odd status": Case(
        post("/call/actor", steps(("answer", {"body": "x", "status": 299}))), 299, b"x"
    ),
    "204": Case(
        post("/call/actor", steps(("answer", {"body": "", "status": 204}))),
        204,
        b"",
        {"Content-Length": None},
    ),
    "JSON": Case(
        post("/call/actor", steps(("reply", {"a": 1}))), 200, b'{"a":1}', {"Content-Type": JSON}
    ),
    "text": Case(
        post("/call/actor", steps(("reply", "ü"))),
        200,
        "ü".encode(),
        {"Content-Type": "text/plain; charset=utf-8"},
    ),
    "FAIL": Case(post("/call/actor", steps(("fail", ["no", "why", 418]))), 418, "command-failed"),
    "raised": Case(post("/call/actor", steps(("raise", "x"))), 500, "command-failed"),
    "a death": Case(
        post("/call/actor", steps(("kill", 9))),
        502,
        "worker-died",
        {"Jobgate-Attempt": "1", "Jobgate-Worker": "actor-1"},
    ),
    "a decline": Case(
        post("/call/actor", steps(("decline", 0))), 503, "no-worker", {"Retry-After": "1"}
    ),
    "a stream": Case(
        post("/call/actor", steps(("chunks", {"count": 2}))),
        200,
        b"0:\n1:\n",
        {"Transfer-Encoding": "chunked", "Content-Length": None, "Content-Type": OCTETS},
    ),
    "a stream of events": Case(
        post("/call/actor", steps(("chunks", {"count": 1})), Accept="text/event-stream"),
        200,
        b"data: 0:\ndata: \n\n",
        {"Content-Type": "text/event-stream", "Cache-Control": "no-store"},
    ),
    "too long": Case(post("/call/brief", steps(("sleep", 5))), 504, "worker-timeout"),
    "waited too long": Case(post("/call/nobody"), 504, "queue-timeout"),
    "the caller's time": Case(post("/call/nobody", Jobgate_Timeout="0.05"), 504, "queue-timeout"),
    "lines": Case(post("/call/lines", b"x"), 200, b"X"),
    "a newline": Case(post("/call/lines", b"a\nb"), 400, "bad-request"),
    "too large": Case(
        post("/call/q", b"x" * 100_001), 413, "body-too-large", {"Connection": "close"}
    ),
    "no such queue": Case(post("/call/nothing"), 404, "unknown-queue"),
    "an empty queue name": Case(post("/call/"), 404, "not-found"),
    "no queue name": Case(post("/call"), 404, "not-found"),
    "an odd queue name": Case(post("/call/Odd.name_-9", b"x"), 200, b"x"),
    "percent-encoded": Case(post("/call/%71", b"x"), 200, b"x"),
    "percent-encoded odd": Case(post("/call/Odd%2Ename%5f-9", b"x"), 200, b"x"),
    "a percent-encoded slash": Case(post("/call/q%2F", b"x"), 404, None),
    "a broken percent sign": Case(post("/call/q%zz", b"x"), 404, "unknown-queue"),
    "percent not UTF-8": Case(post("/call/%ff", b"x"), 400, "bad-request"),
    "percent NUL": Case(post("/call/%00", b"x"), 404, "unknown-queue"),
    "a query": Case(post("/call/q?a=b&c", b"x"), 200, b"x"),
    "an empty query": Case(post("/call/q?", b"x"), 200, b"x"),
    "a fragment": Case(post("/call/q#f", b"x"), None, None),  # type: ignore[arg-type]
    "a trailing slash": Case(post("/call/q/", b"x"), 404, "not-found"),
    "two slashes": Case(post("//call/q", b"x"), 404, "not-found"),
    "two slashes within": Case(post("/call//q", b"x"), 404, "not-found"),
    "dots": Case(post("/call/../call/q", b"x"), 404, "not-found"),
    "a longer path": Case(post("/call/q/more", b"x"), 404, "not-found"),
    "another case": Case(post("/CALL/q", b"x"), 404, "not-found"),
    "the absolute form": Case(post("http://localhost/call/q", b"x"), 200, b"x"),
    "a star": Case(get("*", "OPTIONS"), 200, b""),
    "GET": Case(get("/call/q"), 405, "method-not-allowed", {"Allow": "POST"}),
    "HEAD": Case(get("/call/q", "HEAD"), 405, None, {"Allow": "POST"}),
    "PUT": Case(
        request_bytes("PUT", "/call/q", b"x"), 405, "method-not-allowed", {"Allow": "POST"}
    ),
    "PATCH": Case(request_bytes("PATCH", "/call/q", b"x"), 405, "method-not-allowed"),
    "DELETE": Case(get("/call/q", "DELETE"), 405, "method-not-allowed"),
    "OPTIONS": Case(get("/call/q", "OPTIONS"), 405, "method-not-allowed", {"Allow": "POST"}),
    "an unknown method": Case(get("/call/q", "BREW"), None, None),  # type: ignore[arg-type]
    "a lower-case method": Case(get("/call/q", "post"), None, None),  # type: ignore[arg-type]
    "TRACE": Case(get("/call/q", "TRACE"), 405, "method-not-allowed"),
    "lower-case names": Case(
        b"POST /call/q HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1\r\njobgate-key: k\r\n"
        b"content-type: a/b\r\n\r\nx",
        200,
        b"x",
    ),
    "upper-case names": Case(
        b"POST /call/q HTTP/1.1\r\nHOST: localhost\r\nCONTENT-LENGTH: 1\r\n\r\nx", 200, b"x"
    ),
    "a repeated harmless header": Case(
        b"POST /call/q HTTP/1.1\r\nHost: localhost\r\nX: 1\r\nX: 2\r\nContent-Length: 1\r\n\r\nx",
        200,
        b"x",
    ),
    "two content types": Case(
        b"POST /call/q HTTP/1.1\r\nHost: localhost\r\nContent-Type: a/b\r\nContent-Type: c/d\r\n"
        b"Content-Length: 1\r\n\r\nx",
        400,
        "bad-request",
    ),
    "two priorities": Case(
        b"POST /call/q HTTP/1.1\r\nHost: localhost\r\nPriority: u=1\r\nPriority: i\r\n"
        b"Content-Length: 1\r\n\r\nx",
        200,
        b"x",
    ),
    "two timeouts": Case(
        b"POST /call/q HTTP/1.1\r\nHost: localhost\r\nJobgate-Timeout: 1\r\nJobgate-Timeout: 2\r\n"
        b"Content-Length: 1\r\n\r\nx",
        400,
        "bad-request",
    ),
    "a length with zeros in front": Case(
        b"POST /call/q HTTP/1.1\r\nHost: localhost\r\n"
        b"Content-Length: " + b"0" * 5000 + b"1\r\n\r\nx",
        200,
        b"x",
    ),
    "a length of zeros": Case(
        b"POST /call/q HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0000\r\n\r\n", 200, b""
    ),
    "what is white behind values": Case(
        b"POST /call/q HTTP/1.1\r\nHost: localhost \r\nContent-Length: 1\t\r\n"
        b"Jobgate-Timeout: 5 \t\r\nJobgate-No-Queue: ?1 \r\n\r\nx",
        200,
        b"x",
    ),
    "white behind chunked": Case(
        b"POST /call/q HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked \r\n\r\n"
        b"1\r\nx\r\n0\r\n\r\n",
        200,
        b"x",
    ),
    "an empty content type": Case(post("/call/q", b"x", Content_Type=""), 200, b"x"),
    "a foreign host": Case(post("/call/q", b"x", Host="evil.example"), 403, "forbidden"),
    "a foreign origin": Case(post("/call/q", b"x", Origin="http://evil.example"), 403, "forbidden"),
    "Jobgate-No-Queue": Case(post("/call/q", b"x", Jobgate_No_Queue="?1"), 200, b"x"),
    "Jobgate-No-Queue, nobody free": Case(
        post("/call/nobody", Jobgate_No_Queue="?1"), 503, "queue-full", {"Retry-After": "1"}
    ),
    "health": Case(get("/healthz"), 200, b'{"status":"ok"}', {"Content-Type": JSON}),
    "HEAD of health": Case(get("/healthz", "HEAD"), 200, b""),
    "POST of health": Case(post("/healthz"), 405, "method-not-allowed"),
    "a problem page": Case(get("/problems/queue-full"), 200),
    "no such page": Case(get("/problems/nothing"), 404, "not-found"),
    "openapi": Case(get("/openapi.json"), 200),
    "no such route": Case(get("/nothing"), 404, "not-found"),
    "the root": Case(get("/"), 404, "not-found"),
    "a queue": Case(get("/queues/nobody"), 200),
    "no such queue's state": Case(get("/queues/nothing"), 404, "unknown-queue"),
    "an upgrade": Case(post("/call/q", b"x", Connection="Upgrade", Upgrade="h2c"), 200, b"x"),
    "a push": Case(post("/push/kept", b"x"), 202, None, {"Content-Type": JSON}),
    "a push with a query": Case(post("/push/kept?each=line", b"a\nb\n"), 202),
    "a push to a queue that is made": Case(post("/push/made", b"x"), 202),
    "a push that asks for too much": Case(post("/push/kept?each=word"), 400, "bad-request"),
    "a push, percent-encoded": Case(post("/push/%6bept", b"x"), 202),
    "GET of a push": Case(get("/push/kept"), 405, "method-not-allowed", {"Allow": "POST"}),
    "a push to a bad name": Case(post("/push/a~b", b"x"), 404, "unknown-queue"),
    "a pull of nothing": Case(
        get("/pull/empty?wait=0"), 204, b"", {"Cache-Control": "no-store", "Content-Length": None}
    ),
    "a pull by POST": Case(post("/pull/empty?wait=0"), 204, b""),
    "a pull of nothing, under a lease": Case(get("/pull/empty?wait=0&lease=5"), 204, b""),
    "a pull, percent-encoded": Case(get("/pull/empt%79?wait=0"), 204, b""),
    "a pull that waits": Case(get("/pull/empty?wait=0.1"), 204, b""),
    "a pull of a bad name": Case(get("/pull/a~b?wait=0"), 404, "unknown-queue"),
    "a pull of a long name": Case(get(f"/pull/{'a' * 65}?wait=0"), 404, "unknown-queue"),
    "a pull of no name": Case(get("/pull/"), 404, "not-found"),
    "a pull with a longer path": Case(get("/pull/empty/more"), 404, "not-found"),
    "a pull, wait": Case(get("/pull/empty?wait=x"), 400, "bad-request"),
    "a pull, twice": Case(get("/pull/empty?wait=0&wait=0"), 400, "bad-request"),
    "a pull, unknown": Case(get("/pull/empty?wait=0&what=1"), 400, "bad-request"),
    "a pull, many without lines": Case(get("/pull/empty?max=2"), 400, "bad-request"),
    "a pull, an odd query": Case(get("/pull/empty?wait=0?lease=1"), 400, "bad-request"),
    "a pull, a foreign host": Case(
        get("/pull/empty?wait=0", Host="evil.example"), 403, "forbidden"
    ),
    "HEAD of a pull": Case(get("/pull/empty", "HEAD"), 405, None, {"Allow": "GET, POST"}),
    "PUT of a pull": Case(
        request_bytes("PUT", "/pull/empty", b"x"),
        405,
        "method-not-allowed",
        {"Allow": "GET, POST"},
    ),
    "a reply to nothing": Case(post("/jobs/none/reply", b"x"), 404, "unknown-job"),
    "a reply, an odd id": Case(post("/jobs/a~b/reply", b"x"), 404, "unknown-job"),
    "GET of a reply": Case(get("/jobs/none/reply"), 405, "method-not-allowed", {"Allow": "POST"}),
    "a reply with a query": Case(post("/jobs/none/reply?what=1", b"x"), 400, "bad-request"),
    "an ack of nothing": Case(post("/leases/none/ack"), 409, "stale-attempt"),
    "GET of an ack": Case(get("/leases/none/ack"), 405, "method-not-allowed", {"Allow": "POST"}),
    "no expectation of ours": Case(post("/call/q", b"x", Expect="x"), 400, "bad-request"),
}
for wrong in ("0", "-1", "abc", "nan", "inf", "1e400", "", "1 2", "0x1", "1_0", "1e1"):
    CASES[f"Jobgate-Timeout: {wrong!r}"] = Case(
        post("/call/q", b"x", Jobgate_Timeout=wrong), 400, "bad-request"
    )
for right in ("5", "2.5", "0.5", "2.4894953279981564"):
    CASES[f"Jobgate-Timeout: {right!r}"] = Case(
        post("/call/q", b"x", Jobgate_Timeout=right), 200, b"x"
    )
for wrong in ("u=8", "u=-1", "u=abc", "u", "u=1.5"):
    CASES[f"Priority: {wrong!r}"] = Case(post("/call/q", b"x", Priority=wrong), 400, "bad-request")
for right in ("u=0", "u=7", "i", "", "u=2, i", "i;u=9", "v=9"):
    CASES[f"Priority: {right!r}"] = Case(post("/call/q", b"x", Priority=right), 200, b"x")
for wrong in ("wait=x", "wait", "wait=-1", "wait=1.5"):
    CASES[f"Prefer: {wrong!r}"] = Case(post("/call/q", b"x", Prefer=wrong), 400, "bad-request")
for right in (
    "wait=5",
    "return=minimal",
    "wait=5, return=minimal",
    "",
    ";;,=",
    'wait="5"',
    "WAIT=5",
):
    CASES[f"Prefer: {right!r}"] = Case(post("/call/q", b"x", Prefer=right), 200, b"x")
for wrong in ("1", "true", "?2", "", "yes"):
    CASES[f"Jobgate-No-Queue: {wrong!r}"] = Case(
        post("/call/q", b"x", Jobgate_No_Queue=wrong), 400, "bad-request"
    )
for wrong in ("", "x" * 257, "ü", "a\tb"):
    CASES[f"Jobgate-Key: {wrong[:9]!r}"] = Case(
        post("/call/q", b"x", Jobgate_Key=wrong), 400, "bad-request"
    )


def likeness(answer: Answer) -> tuple[object, ...]:
    """An answer without what may differ: date, ids, timings."""
    varies = {"date", "jobgate-id", "jobgate-ids", "jobgate-lease", "location", "server-timing"}
    fields = sorted(
        (name.lower(), value) for name, value in answer.fields if name.lower() not in varies
    )
    there = sorted(name.lower() for name, _ in answer.fields if name.lower() in varies)
    body = _TOLD.sub(b"", answer.body)
    if answer.get("Content-Type") == PROBLEM:
        # How long it took, as the detail tells it; and with it the length.
        body = _NUMBERS.sub(b"0", body)
        fields = [field for field in fields if field[0] != "content-length"]
    return answer.status, fields, there, body


def ask(gate: Program, request: bytes) -> Answer:
    """Send a request as it is."""
    with gate.connect(timeout=15) as caller:
        caller.send(request)
        return caller.answer(request.partition(b" ")[0].decode())


@pytest.mark.parametrize("name", CASES)
def test_both_fronts_answer_alike(both: list[Program], name: str) -> None:
    """The expected answer, from both, and the same down to the headers."""
    case = CASES[name]
    answers = [ask(gate, case.request) for gate in both]
    for answer in answers:
        if case.status is not None:
            assert answer.status == case.status, answer
        assert answer.status < 500 or answer.slug, answer
        if isinstance(case.body, bytes):
            assert answer.body == case.body
        elif case.body is not None:
            assert answer.slug == case.body
            assert answer.json["status"] == answer.status
            assert answer.json["title"]
            assert answer.json["executed"] in ("no", "maybe", "yes")
        for field, value in case.fields.items():
            assert answer.get(field) == value, (field, answer)
        assert "Date" in answer
        assert "Server" in answer
    assert likeness(answers[0]) == likeness(answers[1])


def test_the_same_in_one_go(both: list[Program]) -> None:
    """All that keeps a connection open, pipelined on one: the same answers in the same order."""
    requests = [
        case.request
        for name, case in CASES.items()
        if case.status in (200, 404, 405)
        and b"Connection: close" not in case.request
        and b"HTTP/1.0" not in case.request
        and b"event-stream" not in case.request
        and name not in ("openapi", "a large body", "a queue", "an upgrade")
    ]
    found = []
    for gate in both:
        with gate.connect(timeout=20) as caller:
            caller.send(b"".join(requests))
            found.append([likeness(caller.answer(r.partition(b" ")[0].decode())) for r in requests])
    assert found[0] == found[1]


@pytest.mark.parametrize("lease", ["", "&lease=60"])
def test_pulled_alike(both: list[Program], lease: str) -> None:
    """One, and several as lines, and what becomes of them under a lease."""
    found = []
    for gate in both:
        said = []
        with gate.connect() as caller:
            for path, body in (
                ("/push/pulled", b"one"),
                (f"/pull/pulled?wait=5{lease}", b""),
                ("/push/pulled?each=line", b"a\nb\n"),
                (f"/pull/pulled?wait=5&max=9&min=2&each=line{lease}", b""),
            ):
                answer = caller.request("POST", path, body)
                said.append(likeness(answer))
                if "Jobgate-Lease" not in answer:
                    continue
                name, held = answer.get("Jobgate-Id"), {"Jobgate-Lease": answer["Jobgate-Lease"]}
                done = f"/jobs/{name}/reply" if name else f"/leases/{answer['Jobgate-Lease']}/ack"
                said += [likeness(caller.request("POST", done, b"r", held)) for _ in range(2)]
        found.append(said)
    assert found[0] == found[1]
    bodies = [body for *_, body in found[0]]
    assert bodies[1] == b"one"
    assert b"a\nb\n" in bodies


def test_what_the_worker_is_given(both: list[Program]) -> None:
    """The same command, whichever way it came."""
    given = []
    for gate in both:
        headers = {
            "Content-Type": "text/x; a=b",
            "Jobgate-Key": "key",
            "traceparent": "00-" + "a" * 32 + "-" + "b" * 16 + "-01",
            "X-Other": "not handed on",
        }
        # An empty list of steps: the worker tells what it has.
        told = gate.call("actor", b"[]", headers).json
        for varies in ("pid", "id", "remaining"):
            del told[varies]
        given.append(told)
    assert given[0] == given[1]
    assert given[0]["content_type"] == "text/x; a=b"


def test_no_length_is_an_empty_body(both: list[Program]) -> None:
    """And what follows is the next request."""
    for gate in both:
        with gate.connect() as caller:
            caller.send(b"POST /call/q HTTP/1.1\r\nHost: localhost\r\n\r\n" * 2)
            assert [caller.answer().status for _ in range(2)] == [200, 200]


def test_queue_full_alike(both: list[Program], tmp_path: Path) -> None:
    """`size = 0`: nobody waits."""
    found = []
    for number, gate in enumerate(both):
        go = tmp_path / f"go-{number}"
        running = background(gate.call, "full", steps(("until", str(go))))
        gate.running("full")
        found.append(likeness(gate.call("full")))
        go.touch()
        assert result(running).status == 200
        eventually(lambda gate=gate: gate.call("full").status == 200)
    assert found[0] == found[1]
    assert found[0][0] == 503


def test_draining_alike(start_gate: Callable[..., Program], front: str) -> None:
    """503 `shutting-down`, `Connection: close`."""
    gate = start_gate({"queues": {"q": {"command": sdk("actor"), "workers": 1}}}, front=front)
    running = background(gate.call, "q", steps(("sleep", 1)))
    gate.running("q")
    with gate.connect() as caller:
        gate.process.terminate()
        gate.logged("draining")
        answer = caller.request("POST", "/call/q", b"x")
    assert (answer.status, answer.slug, answer["Connection"]) == (503, "shutting-down", "close")
    assert int(answer["Retry-After"]) >= 1
    assert result(running).status == 200
    assert gate.wait() == 0
