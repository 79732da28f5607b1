"""
Jobs as their callers see them, on both ways in.
"""

from __future__ import annotations

import json
import re
import signal
import time
from base64 import b64encode
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import pytest
from asking import ended, job, key, pull, push, result, steps, until
from background import background
from background import result as outcome_of
from program import at_rest, eventually, lines_of, sdk

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from conftest import StartGate
    from program import Program
    from raw_http import RawConnection

pytestmark = pytest.mark.timeout(120)

SOON = {"first": 0.05, "factor": 1.0, "jitter": 0}
ACTOR = {"command": sdk("actor"), "workers": 1, "backoff": SOON}
QUEUES: dict[str, Any] = {
    "q": {**ACTOR, "workers": 2},
    "one": ACTOR,
    "once": {**ACTOR, "retry": "never"},
    "drop": {**ACTOR, "cancel": "drop"},
    "short": {**ACTOR, "result_ttl": 0.5},
    "impatient": {**ACTOR, "timeout": 0.3, "attempts": 2},
    "line": {
        "command": ["python", "-u", "-c", "while 1: print(input()[::-1])"],
        "protocol": "lines",
    },
    "p": {},
    "small": {"max_backlog": 2},
    "full429": {"max_backlog": 1, "full_status": 429},
    "late": {"expires": 0.3},
}
RFC3339 = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"


@pytest.fixture(scope="module", params=["fast", "klein"])
def gate(start_shared_gate: StartGate, request: pytest.FixtureRequest) -> Iterator[Program]:
    """A gate on each way in, which the tests share; at the end it has lost count of nothing."""
    program = start_shared_gate(
        {"gate": {"store": "sqlite:jobs.db", "max_auto_queues": 3}, "queues": QUEUES},
        front=request.param,
    )
    yield program
    program.conserved()


@pytest.fixture(scope="module")
def one(start_shared_gate: StartGate) -> Program:
    """One gate for what does not depend on the way in."""
    return start_shared_gate({"gate": {"store": "memory:"}, "queues": QUEUES})


# --- push


def test_push(gate: Program) -> None:
    answer = gate.post("/push/q", steps(("reply", "done")))
    name = answer.json["id"]
    assert answer.status == 202
    assert answer["Location"] == f"/jobs/{name}"
    assert answer.json == {"id": name, "state": "queued", "queue": "q"}
    assert name.startswith("gate-")
    assert "Jobgate-Durability" not in answer
    found = result(gate, name)
    assert (found.status, found.body, found["Jobgate-Id"]) == (200, b"done", name)
    assert found["Jobgate-Attempt"] == "1"
    assert found["Jobgate-Worker"].startswith("q-")
    assert found["Server-Timing"].startswith("queue;dur=")


def test_memory_says_so(one: Program) -> None:
    answer = one.post("/push/p", b"x")
    assert (answer.status, answer["Jobgate-Durability"]) == (202, "memory")
    assert pull(one, "p").body == b"x"
    body = steps(("reply", "done"))
    graph = {"jobs": {"a": {"queue": "one", "body_base64": b64encode(body).decode()}}}
    for path, asked, sent in (
        ("/call/one", {"Prefer": "respond-async, wait=20"}, body),
        ("/call/one", {"Idempotency-Key": "memory"}, body),
        ("/graphs", {"Prefer": "wait=20"}, json.dumps(graph).encode()),
    ):
        answer = one.post(path, sent, asked)
        assert (answer.status, answer["Jobgate-Durability"]) == (200, "memory")
    assert "Jobgate-Durability" not in one.post("/call/one", body)


@pytest.mark.parametrize(
    ("body", "lines"),
    [
        (b"", []),
        (b"\n", [b""]),
        (b"a", [b"a"]),
        (b"a\nb\n", [b"a", b"b"]),
        (b"a\r\n\n\rb\r", [b"a\r", b"", b"\rb\r"]),
        (b"\x00\xff\n\xe2\x80\xa8\x0b", [b"\x00\xff", b"\xe2\x80\xa8\x0b"]),
    ],
)
def test_each_line(gate: Program, body: bytes, lines: list[bytes]) -> None:
    answer = gate.post("/push/p?each=line", body)
    assert answer.status == 202, answer
    assert answer.json["accepted"] == len(lines)
    got = [pull(gate, "p") for _ in lines]
    assert [each.body for each in got] == lines
    if lines:
        assert got[0]["Jobgate-Id"] == answer.json["first"]
        assert got[-1]["Jobgate-Id"] == answer.json["last"]
    assert pull(gate, "p").status == 204


def test_all_lines_or_none(gate: Program) -> None:
    """A lot that does not go in whole leaves nothing behind."""
    answer = gate.post("/push/small?each=line", b"1\n2\n3\n")
    assert (answer.status, answer.slug, answer.json["executed"]) == (503, "queue-full", "no")
    assert int(answer["Retry-After"]) >= 1
    assert pull(gate, "small").status == 204
    assert gate.post("/push/small?each=line", b"1\n2\n").status == 202
    assert gate.post("/push/small", b"3").slug == "queue-full"
    for wanted in (b"1", b"2"):
        assert pull(gate, "small").body == wanted
    numbers = gate.conserved()["small"]
    assert numbers["commands_shed_total"] == 4


def test_full_status(gate: Program) -> None:
    gate.post("/push/full429", b"1")
    assert gate.post("/push/full429", b"2").status == 429
    graph = {"jobs": {"a": {"queue": "late"}, "b": {"queue": "full429"}}}
    assert gate.post("/graphs", json.dumps(graph).encode()).status == 429
    pull(gate, "full429")


def test_too_many_lines(one: Program) -> None:
    answer = one.post("/push/p?each=line", b"\n" * 250_001)
    assert (answer.status, answer.slug) == (422, "unprocessable")


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/push/p?each=word", {}, 400),
        ("/push/p?every=line", {}, 400),
        ("/push/p", {"Jobgate-Delay": "soon"}, 400),
        ("/push/p", {"Jobgate-Delay": "-1"}, 400),
        ("/push/p", {"Priority": "u=9"}, 400),
        ("/push/p", {"Jobgate-Key": ""}, 400),
        ("/push/p", {"Idempotency-Key": ""}, 400),
        ("/push/no%20name", {}, 404),
        ("/push/" + "x" * 65, {}, 404),
    ],
)
def test_bad_pushes(gate: Program, path: str, headers: dict[str, str], status: int) -> None:
    answer = gate.post(path, b"x", headers)
    assert (answer.status, answer.json["executed"]) == (status, "no"), answer
    assert pull(gate, "p").status == 204


def test_lines_queue(gate: Program) -> None:
    assert result(gate, push(gate, "line", b"abc")).body == b"cba"
    compact = {"Content-Type": "application/json"}
    assert result(gate, push(gate, "line", b'{"a":\n1}', compact)).body == b'}1:"a"{'
    assert gate.post("/push/line", b"a\nb").status == 400


def test_what_the_worker_gets(gate: Program) -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    headers = {"Content-Type": "a/b", "traceparent": trace, "Jobgate-Key": "k"}
    told = result(gate, push(gate, "q", b"", headers)).json
    assert (told["content_type"], told["attempt"]) == ("a/b", 1)
    assert told["headers"] == {"traceparent": trace, "jobgate-key": "k"}


def test_reply_of_any_kind(gate: Program) -> None:
    answer = {"body": "x", "type": "text/x", "status": 418}
    found = result(gate, push(gate, "q", steps(("answer", answer))))
    assert (found.status, found["Content-Type"], found.body) == (418, "text/x", b"x")


def test_auto_queues(gate: Program) -> None:
    """Any name is a queue; there are so many at once as may be, and idle ones make room."""
    for number in range(5):
        assert pull(gate, f"auto{number}").status == 204
    for number in range(3):
        push(gate, f"full{number}")
    assert gate.post("/push/full3").slug == "unknown-queue"
    for number in range(3):
        assert pull(gate, f"full{number}").status == 200
    name = push(gate, "full3")
    assert job(gate, name)["queue"] == "full3"
    assert pull(gate, "full3").status == 200
    assert gate.call("not-by-a-call").slug == "unknown-queue"


def test_order_and_priority(gate: Program) -> None:
    for body, urgency in ((b"d", 7), (b"b", 3), (b"a", 0), (b"c", 3)):
        push(gate, "p", body, {"Priority": f"u={urgency}"})
    assert [pull(gate, "p").body for _ in range(4)] == [b"a", b"b", b"c", b"d"]


def test_delay(gate: Program) -> None:
    answer = gate.post("/push/q", steps(("reply", 1)), {"Jobgate-Delay": "0.6"})
    pushed = time.monotonic()
    assert answer.json["state"] == "scheduled"
    shown = job(gate, answer.json["id"])
    assert shown["state"] == "scheduled"
    assert "delay" in shown["why"]
    assert result(gate, answer.json["id"]).json == 1
    assert time.monotonic() - pushed >= 0.5


# --- the state document


def test_document(gate: Program, tmp_path: Path) -> None:
    go = tmp_path / "go"
    body = steps(("progress", [1, 4, "well"]), ("until", str(go)), ("reply", "x"))
    name = push(gate, "one", body, {"Priority": "u=1"})
    shown = until(gate, name, "running")
    eventually(lambda: job(gate, name)["progress"], 10, "its progress is told")
    shown = job(gate, name)
    assert shown["progress"] == {"done": 1.0, "total": 4.0, "note": "well"}
    assert (shown["id"], shown["queue"], shown["why"]) == (name, "one", None)
    assert (shown["attempt"], shown["attempts"], shown["priority"]) == (1, 3, 1)
    assert shown["worker"].startswith("one-")
    assert shown["finished"] is None
    assert shown["error"] is None
    assert shown["needs"] == {}
    assert shown["links"]["self"] == f"/jobs/{name}"
    waiting = push(gate, "one", steps(("reply", "y")))
    shown = job(gate, waiting)
    assert shown["state"] == "queued"
    assert "busy" in shown["why"]
    assert "0 ahead" in shown["why"]
    assert "1 ahead" in job(gate, push(gate, "one"))["why"]
    answer = gate.get(f"/jobs/{waiting}/result")
    assert (answer.status, answer.json["state"]) == (202, "queued")
    go.touch()
    shown = ended(gate, name)
    for when in ("created", "started", "finished"):
        assert re.fullmatch(RFC3339, shown[when]), shown
    assert shown["created"] <= shown["started"] <= shown["finished"]
    assert ended(gate, waiting)["state"] == "succeeded"


def test_why(gate: Program) -> None:
    name = push(gate, "p")
    assert "pull" in job(gate, name)["why"]
    gate.post("/queues/p/pause")
    assert "paused" in job(gate, name)["why"]
    gate.post("/queues/p/resume")
    assert pull(gate, "p")["Jobgate-Id"] == name
    assert job(gate, name)["why"] is None


def test_unknown(gate: Program) -> None:
    for method, path in (
        ("GET", ""),
        ("DELETE", ""),
        ("GET", "/result"),
        ("GET", "/events"),
        ("POST", "/retry"),
        ("POST", "/reply"),
        ("POST", "/fail"),
        ("POST", "/extend"),
    ):
        answer = gate.request(method, f"/jobs/nobody{path}")
        assert (answer.status, answer.slug) == (404, "unknown-job"), (method, path)


def test_wait(gate: Program, tmp_path: Path) -> None:
    go = tmp_path / "go"
    name = push(gate, "q", steps(("until", str(go)), ("reply", "x")))
    assert gate.get(f"/jobs/{name}/result?wait=0.2").status == 202
    waiting = background(result, gate, name)
    until(gate, name, "running")
    go.touch()
    assert outcome_of(waiting).body == b"x"
    assert gate.get(f"/jobs/{name}/result?wait=long").status == 400


def test_kept_for_a_time(gate: Program) -> None:
    """After `result_ttl` the outcome is gone, for good and for bad."""
    names = [push(gate, "short", body) for body in (b"", steps(("fail", ["no", "", 400, False])))]
    for name in names:
        ended(gate, name)
        gone = eventually(
            lambda name=name: (a := gate.get(f"/jobs/{name}/result")).status == 410 and a,
            20,
            "it is gone",
        )
        assert gone.slug == "gone"
        assert job(gate, name)["state"] in ("succeeded", "failed")
        assert gate.post(f"/jobs/{name}/retry").status == 409


# --- ends


def test_fails_and_is_dead(gate: Program, tmp_path: Path) -> None:
    """Three starts, then dead, with what each was about; a retry has all attempts anew."""
    log, go = tmp_path / "log", tmp_path / "go"
    said = [("complain", "last words\n"), ("note-attempt", str(log))]
    name = push(gate, "q", steps(*said, ("fail", ["broken", "why", 501])))
    shown = ended(gate, name)
    assert (shown["state"], shown["attempt"]) == ("dead", 3)
    assert (shown["error"]["title"], shown["error"]["detail"]) == ("broken", "why")
    assert [each["attempt"] for each in shown["tries"]] == [1, 2, 3]
    assert "last words" in shown["tries"][-1]["output"]
    answer = gate.get(f"/jobs/{name}/result")
    assert (answer.status, answer.slug, answer.json["executed"]) == (501, "command-failed", "yes")
    assert gate.request("DELETE", f"/jobs/{name}").status == 409
    again = gate.post(f"/jobs/{name}/retry")
    assert (again.status, again.json["state"]) in ((202, "queued"), (202, "running"))
    eventually(lambda: len(lines_of(log)) == 6, 20, "six starts")
    assert [line.split()[0] for line in lines_of(log)] == list("123456")
    assert ended(gate, name)["state"] == "dead"
    assert not go.exists()


def test_fails_for_good(gate: Program) -> None:
    name = push(gate, "q", steps(("fail", ["never", "", 422, False])))
    shown = ended(gate, name)
    assert (shown["state"], shown["attempt"]) == ("failed", 1)
    assert gate.get(f"/jobs/{name}/result").status == 422
    assert gate.post(f"/jobs/{name}/retry").status == 202
    assert ended(gate, name)["attempt"] == 2


def test_worker_dies(gate: Program) -> None:
    name = push(gate, "q", steps(("kill-first", 1), ("reply", "at last")))
    shown = ended(gate, name)
    assert (shown["state"], shown["attempt"]) == ("succeeded", 2)
    assert shown["tries"] is None or shown["tries"][0]["error"]["signal"] == "SIGKILL"


def test_poison(gate: Program) -> None:
    name = push(gate, "q", steps(("complain", "aargh"), ("kill", 11), ("reply", "poison")))
    shown = ended(gate, name)
    assert shown["state"] == "dead"
    assert shown["error"]["type"] == "/problems/poison-command"
    assert [each["error"]["signal"] for each in shown["tries"][:2]] == ["SIGSEGV"] * 2
    assert "aargh" in shown["tries"][0]["output"]
    again = push(gate, "q", steps(("complain", "aargh"), ("kill", 11), ("reply", "poison")))
    shown = ended(gate, again)
    assert (shown["state"], shown["attempt"]) == ("dead", 0)
    gate.post("/queues/q/reload")


def test_times_out(gate: Program) -> None:
    name = push(gate, "impatient", steps(("sleep", 30)))
    shown = ended(gate, name)
    assert (shown["state"], shown["attempt"]) == ("dead", 2)
    assert gate.get(f"/jobs/{name}/result").slug == "worker-timeout"


def test_expires(gate: Program) -> None:
    name = push(gate, "late")
    shown = ended(gate, name)
    assert shown["state"] == "dead"
    answer = gate.get(f"/jobs/{name}/result")
    assert (answer.status, answer.slug, answer.json["executed"]) == (504, "expired", "no")
    assert pull(gate, "late").status == 204


def test_once(gate: Program) -> None:
    """`retry = never`: started once, whatever comes of it."""
    assert result(gate, push(gate, "once", steps(("reply", 1)))).json == 1
    for body in (steps(("kill", 9)), steps(("fail", ["no"]))):
        shown = ended(gate, push(gate, "once", body))
        assert (shown["state"], shown["attempt"]) == ("dead", 1)
    assert shown["error"]["executed"] == "yes"


def test_once_behind_a_call(one: Program, tmp_path: Path) -> None:
    go = tmp_path / "go"
    calling = background(one.call, "once", steps(("until", str(go)), ("reply", 1)))
    one.running("once")
    name = push(one, "once", steps(("reply", 2)))
    go.touch()
    assert outcome_of(calling).json == 1
    assert result(one, name).json == 2


# --- cancel, purge, pause


def test_cancel_waiting(gate: Program) -> None:
    name = push(gate, "p", b"x")
    answer = gate.request("DELETE", f"/jobs/{name}")
    assert (answer.status, answer.json["state"]) == (200, "cancelled")
    again = gate.request("DELETE", f"/jobs/{name}")
    assert (again.status, again.slug) == (409, "wrong-state")
    assert pull(gate, "p").status == 204
    answer = gate.get(f"/jobs/{name}/result")
    assert (answer.status, answer.slug, answer.json["executed"]) == (409, "cancelled", "no")
    assert gate.post(f"/jobs/{name}/retry").status == 409


def test_cancel_running(gate: Program, tmp_path: Path) -> None:
    begun, log = tmp_path / "begun", tmp_path / "log"
    name = push(gate, "one", steps(("note", [str(begun), "it runs"]), ("cancelled", str(log))))
    # What its worker has, but has not begun, never runs.
    eventually(begun.exists, 10, "its handler runs")
    until(gate, name, "running")
    answer = gate.request("DELETE", f"/jobs/{name}")
    assert (answer.status, answer.json["state"]) == (200, "cancelled")
    eventually(lambda: lines_of(log) == [f"cancelled {name}"], 10, "the worker knows")
    assert gate.get(f"/jobs/{name}/result").json["executed"] == "maybe"
    at_rest(gate, "one")


def test_cancel_drop(one: Program, tmp_path: Path) -> None:
    """`cancel = drop`: it is let finish, and its reply is dropped."""
    go, log = tmp_path / "go", tmp_path / "log"
    name = push(one, "drop", steps(("until", str(go)), ("note", [str(log), "ran"])))
    until(one, name, "running")
    assert one.request("DELETE", f"/jobs/{name}").json["state"] == "cancelled"
    go.touch()
    eventually(lambda: lines_of(log) == ["ran"], 10, "it has run")
    assert result(one, push(one, "drop", steps(("reply", 1)))).json == 1
    assert job(one, name)["state"] == "cancelled"


def test_purge(gate: Program) -> None:
    names = [push(gate, "p", b"%d" % number) for number in range(3)]
    names.append(push(gate, "p", b"", {"Jobgate-Delay": "60"}))
    assert gate.post("/queues/p/purge").json == {"purged": 4}
    assert {job(gate, name)["state"] for name in names} == {"cancelled"}
    assert gate.get(f"/jobs/{names[0]}/result").slug == "purged"
    gate.conserved()


def test_pause(gate: Program) -> None:
    gate.post("/queues/one/pause")
    name = push(gate, "one", steps(("reply", 1)))
    assert job(gate, name)["state"] == "queued"
    gate.conserved()
    gate.post("/queues/one/resume")
    assert result(gate, name).json == 1


# --- lists


def test_list(gate: Program) -> None:
    names = [push(gate, "p", b"%d" % number) for number in range(5)]
    first = gate.get("/jobs?queue=p&state=queued&limit=2").json
    assert [each["id"] for each in first["jobs"]] == names[:2:-1]
    second = gate.get(f"/jobs?queue=p&state=queued&limit=2&after={first['after']}").json
    assert [each["id"] for each in second["jobs"]] == names[2:0:-1]
    third = gate.get(f"/jobs?queue=p&state=queued&limit=2&after={second['after']}").json
    assert [each["id"] for each in third["jobs"]] == names[:1]
    assert third["after"] is None
    gate.post("/queues/p/purge")
    states = {each["state"] for each in gate.get("/jobs?queue=p&limit=1000").json["jobs"]}
    assert "queued" not in states
    numbers = [f"limit={n}" for n in ("0", "1001", "x", "0000000001001", f"{10**30}", "1" * 5000)]
    for query in ("state=gone", *numbers, "after=x", "what=1"):
        answer = gate.get(f"/jobs?{query}")
        assert (answer.status, answer.slug) == (400, "bad-request"), query


# --- events


def events(connection: RawConnection, count: int) -> list[dict[str, str]]:
    """The next events of a stream, comments left out."""
    found: list[dict[str, str]] = []
    text = ""
    while len(found) < count:
        chunk = connection.chunk()
        if not chunk:
            break
        text += chunk.decode()
        *whole, text = text.split("\n\n")
        for each in whole:
            lines = [line for line in each.split("\n") if not line.startswith(":")]
            if lines:
                found.append(dict(line.split(": ", 1) for line in lines))
    return found


def test_events(gate: Program, tmp_path: Path) -> None:
    go = tmp_path / "go"
    body = steps(
        ("until", str(go)), ("progress", [1, 2, None]), ("chunks", {"count": 2, "size": 3})
    )
    name = push(gate, "one", body)
    until(gate, name, "running")
    with gate.connect() as connection:
        connection.send(f"GET /jobs/{name}/events HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        status, fields = connection.head()
        assert (status, dict(fields)["Content-Type"]) == (200, "text/event-stream")
        [first] = events(connection, 1)
        assert (first["event"], json.loads(first["data"])["state"]) == ("state", "running")
        go.touch()
        rest = events(connection, 5)
        kinds = [each["event"] for each in rest]
        assert kinds == ["progress", "chunk", "chunk", "state"], rest
        assert json.loads(rest[0]["data"]) == {"done": 1.0, "total": 2.0, "note": None}
        assert json.loads(rest[-1]["data"])["state"] == "succeeded"
    last = {"Last-Event-ID": rest[-1]["id"]}
    assert b"event" not in gate.get(f"/jobs/{name}/events", last).body
    assert b"succeeded" in gate.get(f"/jobs/{name}/events", {"Last-Event-ID": first["id"]}).body


# --- Prefer: respond-async


def test_respond_async(gate: Program, tmp_path: Path) -> None:
    go = tmp_path / "go"
    body = steps(("until", str(go)), ("reply", "x"))
    asked = {"Prefer": "respond-async, wait=0", "Idempotency-Key": "async"}
    answer = gate.call("q", body, asked)
    assert (answer.status, answer.json["queue"]) == (202, "q")
    assert answer["Location"] == f"/jobs/{answer.json['id']}"
    assert answer["Preference-Applied"].startswith("respond-async")
    eventually(lambda: job(gate, answer.json["id"])["state"] == "running")
    again = gate.call("q", body, asked)
    assert again.json == {"id": answer.json["id"], "state": "running", "queue": "q"}
    assert (again["Location"], again["Idempotency-Replayed"]) == (answer["Location"], "true")
    go.touch()
    assert result(gate, answer.json["id"]).body == b"x"


def test_respond_async_in_time(gate: Program) -> None:
    answer = gate.call("q", steps(("reply", "x")), {"Prefer": "respond-async, wait=20"})
    assert (answer.status, answer.body) == (200, b"x")
    assert job(gate, answer["Jobgate-Id"])["state"] == "succeeded"


def test_respond_async_fails(gate: Program) -> None:
    body = steps(("fail", ["never", "", 422, False]))
    answer = gate.call("q", body, {"Prefer": "respond-async, wait=20"})
    assert (answer.status, answer.slug) == (422, "command-failed")


def test_wait_alone_is_a_timeout(gate: Program) -> None:
    answer = gate.call("q", steps(("sleep", 5)), {"Prefer": "wait=1"})
    assert (answer.status, answer.slug) == (504, "worker-timeout")


# --- Idempotency-Key


def test_push_with_a_key(gate: Program) -> None:
    """The same key and body: the same job; another body: 422."""
    headers = key()
    first = gate.post("/push/p", b"x", headers)
    again = gate.post("/push/p", b"x", headers)
    assert (first.status, again.status) == (202, 202)
    assert first.body == again.body
    assert "Idempotency-Replayed" not in first
    assert again["Idempotency-Replayed"] == "true"
    assert again["Location"] == first["Location"]
    other = gate.post("/push/p", b"y", headers)
    assert (other.status, other.slug) == (422, "unprocessable")
    kind = gate.post("/push/p", b"x", {**headers, "Content-Type": "a/b"})
    assert kind.status == 422
    assert gate.post("/push/p?each=line", b"x", headers).body == first.body, "the path is the same"
    assert pull(gate, "p").body == b"x"
    assert pull(gate, "p").status == 204


def test_lines_with_a_key(gate: Program) -> None:
    headers = key()
    first = gate.post("/push/p?each=line", b"a\nb\n", headers)
    assert gate.post("/push/p?each=line", b"a\nb\n", headers).body == first.body
    assert [pull(gate, "p").status for _ in range(3)] == [200, 200, 204]


def test_call_with_a_key(gate: Program, tmp_path: Path) -> None:
    """It runs once; the same answer, byte for byte but for the date."""
    log = tmp_path / "log"
    headers = key()
    answer = {"body": "x", "type": "text/x", "status": 201}
    body = steps(("note", [str(log), "ran"]), ("answer", answer))
    first = gate.call("q", body, headers)
    again = gate.call("q", body, headers)
    assert (first.status, first.body) == (201, b"x")
    assert lines_of(log) == ["ran"]
    assert again["Idempotency-Replayed"] == "true"
    varies = {"date", "idempotency-replayed"}
    assert [f for f in again.fields if f[0].lower() not in varies] == [
        f for f in first.fields if f[0].lower() not in varies
    ]
    assert again.body == first.body
    assert gate.call("q", body + b" ", headers).status == 422
    assert gate.call("one", body, headers).status == 201, "another path is another key"


def test_calls_join(gate: Program, tmp_path: Path) -> None:
    go, log = tmp_path / "go", tmp_path / "log"
    headers = key()
    body = steps(("note", [str(log), "ran"]), ("until", str(go)), ("reply", "x"))
    calls = [background(gate.call, "q", body, headers) for _ in range(4)]
    gate.running("q")
    short = gate.call("q", body, {**headers, "Jobgate-Timeout": "0.3"})
    assert (short.status, short.slug) == (504, "worker-timeout")
    go.touch()
    answers = [outcome_of(each) for each in calls]
    assert {answer.body for answer in answers} == {b"x"}
    assert len({answer["Jobgate-Id"] for answer in answers}) == 1
    assert sorted(answer.get("Idempotency-Replayed") or "" for answer in answers) == [
        "",
        "true",
        "true",
        "true",
    ]
    assert lines_of(log) == ["ran"]
    gate.conserved()


def test_survives_its_callers_hang_up(gate: Program, tmp_path: Path) -> None:
    go, log = tmp_path / "go", tmp_path / "log"
    headers = key()
    body = steps(("until", str(go)), ("note", [str(log), "ran"]), ("reply", "x"))
    connection = gate.connect()
    fields = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    connection.send(
        f"POST /call/q HTTP/1.1\r\nHost: localhost\r\n{fields}"
        f"Content-Length: {len(body)}\r\n\r\n".encode()
        + body
    )
    gate.running("q")
    connection.reset()
    go.touch()
    answer = gate.call("q", body, headers)
    assert (answer.status, answer.body, answer["Idempotency-Replayed"]) == (200, b"x", "true")
    assert lines_of(log) == ["ran"]


def test_failures_are_kept(gate: Program, tmp_path: Path) -> None:
    log = tmp_path / "log"
    headers = key()
    body = steps(("note", [str(log), "ran"]), ("fail", ["no", "", 418]))
    first, again = gate.call("q", body, headers), gate.call("q", body, headers)
    assert (first.status, again.status) == (418, 418)
    assert first.body == again.body
    assert lines_of(log) == ["ran"]


def test_what_was_not_run_is_not_kept(gate: Program, tmp_path: Path) -> None:
    """A refusal or a time-out in the queue: the same key may be used anew."""
    go, log = tmp_path / "go", tmp_path / "log"
    busy = background(gate.call, "one", steps(("until", str(go))))
    gate.running("one")
    headers = key()
    body = steps(("note", [str(log), "ran"]), ("reply", "x"))
    refused = gate.call("one", body, {**headers, "Jobgate-No-Queue": "?1"})
    assert (refused.status, refused.slug, refused.json["executed"]) == (503, "queue-full", "no")
    late = gate.call("one", body, {**headers, "Jobgate-Timeout": "0.2"})
    assert (late.status, late.slug, late.json["executed"]) == (504, "queue-timeout", "no")
    assert gate.get(f"/jobs/{late['Jobgate-Id']}").status == 404
    go.touch()
    outcome_of(busy)
    answer = gate.call("one", body, headers)
    assert (answer.status, answer.body) == (200, b"x")
    assert "Idempotency-Replayed" not in answer
    assert lines_of(log) == ["ran"]
    gate.conserved()


def test_keyed_calls_count_as_calls(one: Program) -> None:
    before = one.conserved()["q"]
    headers = key()
    for _ in range(2):
        one.call("q", steps(("reply", 1)), headers)
    after = one.conserved()["q"]
    assert after["commands_succeeded_total"] - before["commands_succeeded_total"] == 1


# --- tokens


def test_tokens(start_gate: StartGate) -> None:
    """Who may push may read and cancel what is its own; keys are each token's own."""
    rights = {
        "ann": ["push:q", "call:q"],
        "bob": ["push:q"],
        "eve": ["call:other"],
        "boss": ["jobs"],
        "taker": ["pull:p"],
    }
    gate = start_gate(
        {
            "gate": {"store": "memory:"},
            "tokens": [
                {"name": name, "sha256": sha256(name.encode()).hexdigest(), "allow": allow}
                for name, allow in rights.items()
            ],
            "queues": {"q": {}, "p": {}},
        }
    )

    def as_(name: str, **more: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {name}", **more}

    assert gate.post("/push/q", b"").status == 401
    assert gate.post("/push/q", b"", as_("eve")).status == 403
    same = {"Idempotency-Key": "same"}
    ids = [
        gate.post("/push/q", who.encode(), as_(who, **same)).json["id"] for who in ("ann", "bob")
    ]
    assert len(set(ids)) == 2
    mine, other = (f"/jobs/{name}" for name in ids)
    assert gate.get(mine, as_("ann")).status == 200
    assert gate.get(mine, as_("boss")).status == 200
    for who in ("bob", "eve", "taker"):
        for path in (mine, f"{mine}/result", f"{mine}/events"):
            assert gate.get(path, as_(who)).status == 403, (who, path)
        assert gate.request("DELETE", mine, None, as_(who)).status == 403
    assert gate.get("/jobs", as_("ann")).status == 403
    assert len(gate.get("/jobs", as_("boss")).json["jobs"]) == 2
    assert gate.request("DELETE", mine, None, as_("ann")).json["state"] == "cancelled"
    assert gate.request("DELETE", other, None, as_("boss")).json["state"] == "cancelled"
    assert gate.get("/pull/q?wait=0", as_("taker")).status == 403
    assert gate.get("/pull/p?wait=0", as_("taker")).status == 204
    assert gate.post(f"{other}/reply", b"", as_("taker")).status == 403


# --- restarts


def test_restart_keeps_all(start_gate: StartGate, tmp_path: Path) -> None:
    """After `kill -9` every job is there, runs to its end, and is counted; so after a drain."""
    config = {
        "gate": {"store": "sqlite:jobs.db", "drain_timeout": 20},
        "queues": {**QUEUES, "q": ACTOR},
    }
    gate = start_gate(config)
    go, log = tmp_path / "go", tmp_path / "log"
    note = ("note-attempt", str(log))
    running = push(gate, "q", steps(note, ("until", str(go)), ("reply", "ran")))
    once = push(gate, "once", steps(("until", str(go)), ("reply", "once")))
    waiting = push(gate, "q", steps(note, ("reply", "waited")))
    late = push(gate, "p", b"late", {"Jobgate-Delay": "300"})
    there = push(gate, "p", b"there")
    done = push(gate, "one", steps(("reply", "done")))
    assert result(gate, done).body == b"done"
    asked = key()
    body = steps(("until", str(go)), ("reply", "call"))
    calling = background(gate.call, "one", body, asked)
    for queue in ("q", "once", "one"):
        gate.running(queue)
    gate.kill()
    with pytest.raises((OSError, AssertionError)):
        outcome_of(calling)
    gate.start()
    gate.conserved()
    assert result(gate, done).body == b"done"
    assert job(gate, late)["state"] == "scheduled"
    assert pull(gate, "p")["Jobgate-Id"] == there
    shown = ended(gate, once)
    assert (shown["state"], shown["attempt"]) == ("dead", 1)
    assert shown["error"]["executed"] == "maybe"
    died = gate.call("one", body, asked)
    assert (died.status, died.slug, died.json["executed"]) == (502, "worker-died", "maybe")
    assert died["Idempotency-Replayed"] == "true"
    until(gate, running, "running")
    gate.conserved()
    gate.signal(signal.SIGTERM)
    gate.logged("draining")
    go.touch()
    assert gate.wait() == 0
    gate.start()
    for name, wanted in ((running, "ran"), (waiting, "waited")):
        assert result(gate, name).body == wanted.encode()
    assert [line.split()[0] for line in lines_of(log)][:2] == ["1", "2"]
    shown = job(gate, running)
    assert shown["attempt"] == 2
    gate.conserved()


def test_drain(start_gate: StartGate, tmp_path: Path) -> None:
    """Long polls and event streams are answered at once, what runs is finished, the rest kept."""
    gate = start_gate({"gate": {"store": "sqlite:jobs.db"}, "queues": {"q": ACTOR, "p": {}}})
    go = tmp_path / "go"
    running = push(gate, "q", steps(("until", str(go)), ("reply", "x")))
    waiting = push(gate, "q", steps(("reply", "y")))
    until(gate, running, "running")
    polls = [
        background(gate.get, path)
        for path in (
            f"/jobs/{waiting}/result?wait=60",
            f"/jobs/{waiting}/events",
            "/pull/p?wait=60",
        )
    ]
    asked = key()
    calls = [background(gate.call, "q", steps(("reply", "z")), asked) for _ in range(2)]
    eventually(lambda: gate.queue("q")["depth"] == 2, 10, "the call waits")
    with gate.connect() as connection:
        connection.request("GET", "/healthz")
        gate.signal(signal.SIGTERM)
        gate.logged("draining")
        assert connection.request("POST", "/push/q", b"").slug == "shutting-down"
    for poll, status in zip(polls, (202, 200, 204), strict=True):
        assert outcome_of(poll, 10).status == status
    go.touch()
    assert {outcome_of(each).body for each in calls} == {b"z"}
    assert gate.wait() == 0
    gate.no_traceback()
    gate.start()
    assert result(gate, running).body == b"x"
    assert result(gate, waiting).body == b"y"


def test_trouble_of_the_store(start_gate: StartGate, tmp_path: Path) -> None:
    """While it cannot store: push 503, calls go on, readyz says why; then it mends itself."""
    gate = start_gate({"gate": {"store": "sqlite:jobs.db"}, "queues": {"q": ACTOR}})
    push(gate, "q", steps(("reply", 1)))
    store = gate.folder / "jobs.db"
    away = gate.folder / "away.db"
    store.rename(away)
    time.sleep(1.1)  # it looks whether its file is there once a second
    answer = gate.post("/push/q", b"")
    assert (answer.status, answer.slug) == (503, "store-unavailable"), answer
    assert int(answer["Retry-After"]) >= 1
    assert gate.call("q", steps(("reply", 2))).json == 2
    assert gate.call("q", b"", key()).slug == "store-unavailable"
    ready = gate.get("/readyz")
    assert (ready.status, "gone" in ready.json["store"]) == (503, True), ready
    away.rename(store)
    eventually(lambda: gate.get("/readyz").status == 200, 10, "it is well again")
    assert result(gate, push(gate, "q", steps(("reply", 3)))).json == 3
