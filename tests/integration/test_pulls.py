"""
Pullers, on both ways in: commands for good, under leases, as lines; and who else is there.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from asking import ended, job, key, pull, push, result, steps, until
from background import background
from background import result as outcome_of
from program import at_rest, eventually, sdk

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conftest import StartGate
    from program import Program
    from raw_http import Answer

pytestmark = pytest.mark.timeout(120)

SOON = {"first": 0.05, "factor": 1.0, "jitter": 0}
QUEUES: dict[str, Any] = {
    "p": {"backoff": SOON, "attempts": 3},
    "calls": {"timeout": 5},
    "quick": {"timeout": 0.5},
    "once": {"retry": "never"},
    "mixed": {"command": sdk("actor"), "workers": 1},
}


@pytest.fixture(scope="module", params=["fast", "klein"])
def gate(start_shared_gate: StartGate, request: pytest.FixtureRequest) -> Iterator[Program]:
    """A gate on each way in, which the tests share; at the end it has lost count of nothing."""
    program = start_shared_gate(
        {"gate": {"store": "sqlite:jobs.db", "long_poll_timeout": 0.3}, "queues": QUEUES},
        front=request.param,
    )
    yield program
    program.conserved()


def lease_of(answer: Answer) -> dict[str, str]:
    """The header that whoever has the lease sends."""
    return {"Jobgate-Lease": answer["Jobgate-Lease"]}


def stale(gate: Program) -> float:
    """How many late replies there have been."""
    text = gate.get("/metrics").body.decode()
    [line] = [x for x in text.splitlines() if x.startswith("jobgate_stale_replies_total ")]
    return float(line.split()[1])


# --- for good


def test_one(gate: Program) -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    name = push(gate, "p", b"\x00body", {"Content-Type": "a/b", "traceparent": trace})
    answer = pull(gate, "p")
    assert (answer.status, answer.body, answer["Content-Type"]) == (200, b"\x00body", "a/b")
    assert (answer["Jobgate-Id"], answer["Jobgate-Attempt"]) == (name, "1")
    assert answer["Cache-Control"] == "no-store"
    assert answer["traceparent"] == trace
    assert "Jobgate-Lease" not in answer
    eventually(lambda: job(gate, name)["state"] == "succeeded", 10, "it is gone")
    late = gate.post(f"/jobs/{name}/reply", b"x")
    assert (late.status, late.slug) == (409, "stale-attempt")
    assert pull(gate, "p").status == 204


def test_by_post_and_by_head(gate: Program) -> None:
    name = push(gate, "p")
    answer = gate.request("HEAD", "/pull/p?wait=0")
    assert (answer.status, answer["Allow"]) == (405, "GET, POST")
    assert job(gate, name)["state"] == "queued"
    assert gate.post("/pull/p?wait=0")["Jobgate-Id"] == name


def test_waits(gate: Program) -> None:
    began = time.monotonic()
    assert pull(gate, "p", "").status == 204
    assert time.monotonic() - began >= 0.25, "long_poll_timeout is the default"
    waiting = background(pull, gate, "p", "wait=20")
    eventually(lambda: gate.queue("p") and not waiting.done(), 5)
    name = push(gate, "p")
    assert outcome_of(waiting)["Jobgate-Id"] == name


def test_delayed(gate: Program) -> None:
    waiting = background(pull, gate, "p", "wait=20")
    name = push(gate, "p", b"", {"Jobgate-Delay": "0.3"})
    assert outcome_of(waiting)["Jobgate-Id"] == name


def test_hung_up(gate: Program) -> None:
    """Pullers that leave take nothing with them, however many."""
    connections = [gate.connect() for _ in range(20)]
    for connection in connections:
        connection.send(b"GET /pull/p?wait=60 HTTP/1.1\r\nHost: localhost\r\n\r\n")
    for connection in connections[::2]:
        connection.close()
    for connection in connections[1::2]:
        connection.reset()
    names = [push(gate, "p", b"%d" % number) for number in range(5)]
    got = [pull(gate, "p", "wait=5")["Jobgate-Id"] for _ in names]
    assert sorted(got) == sorted(names)
    assert pull(gate, "p").status == 204


@pytest.mark.parametrize(
    "query",
    [
        "wait=x",
        "wait=-1",
        "lease=0",
        "lease=x",
        "lease=9999999",
        "max=0&each=line",
        "max=x&each=line",
        "max=2",
        "max=1001&each=line",
        "max=0000000012500&each=line",
        "max=000000001" + "0" * 4300 + "&each=line",
        "each=word",
        "max=2&min=3&each=line",
        "what=1",
        "wait=1&wait=2",
    ],
)
def test_bad_pulls(gate: Program, query: str) -> None:
    answer = pull(gate, "p", query)
    assert (answer.status, answer.slug) == (400, "bad-request"), answer


# --- lines


def test_lines(gate: Program) -> None:
    gate.post("/push/p?each=line", b"a\nb\r\n\nd")
    names = [each["id"] for each in gate.get("/jobs?queue=p&state=queued").json["jobs"]]
    answer = pull(gate, "p", "wait=0&max=3&each=line")
    assert answer.body == b"a\nb\r\n\n"
    assert answer["Jobgate-Ids"].split(", ") == names[:0:-1]
    answer = pull(gate, "p", "wait=0&max=3&each=line")
    assert (answer.body, answer["Jobgate-Ids"]) == (b"d\n", names[0])
    assert pull(gate, "p", "wait=0&max=3&each=line").status == 204


def test_a_newline_comes_alone(gate: Program) -> None:
    for body in (b"a", b"b\nb", b"c", b"d\n"):
        push(gate, "p", body)
    for wanted in (b"a\n", b"b\nb", b"c\n", b"d\n"):
        answer = pull(gate, "p", "wait=0&max=10&each=line")
        assert answer.body == wanted
        assert ("Jobgate-Id" in answer) == (b"\n" in wanted[:-1] or wanted == b"d\n")
    assert pull(gate, "p").status == 204


def test_at_least(gate: Program) -> None:
    push(gate, "p", b"a")
    waiting = background(pull, gate, "p", "wait=20&min=3&max=5&each=line")
    push(gate, "p", b"b")
    assert not waiting.done()
    push(gate, "p", b"c")
    assert outcome_of(waiting).body == b"a\nb\nc\n"
    push(gate, "p", b"d")
    assert pull(gate, "p", "wait=0.2&min=3&max=5&each=line").body == b"d\n"


# --- leases


def test_lease_and_reply(gate: Program) -> None:
    name = push(gate, "p", b"work")
    answer = pull(gate, "p", "wait=0&lease=20")
    assert (answer.status, answer["Jobgate-Id"]) == (200, name)
    assert job(gate, name)["state"] == "running"
    before = stale(gate)
    wrong = gate.post(f"/jobs/{name}/reply", b"x", {"Jobgate-Lease": "another"})
    assert (wrong.status, wrong.slug) == (409, "stale-attempt")
    headers = {**lease_of(answer), "Content-Type": "a/b", "Jobgate-Status": "201"}
    assert gate.post(f"/jobs/{name}/reply", b"done", headers).status == 200
    found = result(gate, name)
    assert (found.status, found.body, found["Content-Type"]) == (201, b"done", "a/b")
    again = gate.post(f"/jobs/{name}/reply", b"x", headers)
    assert (again.status, again.slug) == (409, "stale-attempt")
    assert stale(gate) == before + 2
    gate.conserved()


def test_lapse(gate: Program) -> None:
    """A lease that runs out: the next attempt is another's, and the late reply is refused."""
    name = push(gate, "p")
    first = pull(gate, "p", "wait=0&lease=0.2")
    second = pull(gate, "p", "wait=10&lease=20")
    assert (second["Jobgate-Id"], second["Jobgate-Attempt"]) == (name, "2")
    assert gate.post(f"/jobs/{name}/reply", b"1", lease_of(first)).slug == "stale-attempt"
    assert gate.post(f"/jobs/{name}/extend", b"", lease_of(first)).slug == "stale-attempt"
    assert gate.post(f"/jobs/{name}/reply", b"2", lease_of(second)).status == 200
    assert result(gate, name).body == b"2"
    assert job(gate, name)["attempt"] == 2


def test_extend(gate: Program) -> None:
    name = push(gate, "p")
    answer = pull(gate, "p", "wait=0&lease=2")
    granted = time.monotonic()
    for _ in range(3):
        extended = gate.post(f"/jobs/{name}/extend?lease=60", b"", lease_of(answer))
        assert (extended.status, extended.json["lease"]) == (200, answer["Jobgate-Lease"])
        # The last time it would have been over long since.
        time.sleep(max(0.0, granted + 2.2 - time.monotonic()))
    assert gate.post(f"/jobs/{name}/extend?lease=0.05", b"", lease_of(answer)).status == 200
    again = pull(gate, "p", "wait=5")
    assert (again["Jobgate-Id"], again["Jobgate-Attempt"]) == (name, "2")


def test_fail(gate: Program) -> None:
    """Failed by its puller it is tried again; after three attempts it is dead."""
    name = push(gate, "p")
    for attempt in "123":
        answer = pull(gate, "p", "wait=10&lease=20")
        assert answer["Jobgate-Attempt"] == attempt
        body = b'{"title": "broken", "detail": "why", "status": 507}'
        assert gate.post(f"/jobs/{name}/fail", body, lease_of(answer)).status == 200
    shown = ended(gate, name)
    assert (shown["state"], shown["error"]["title"]) == ("dead", "broken")
    assert gate.get(f"/jobs/{name}/result").status == 507
    assert len(shown["tries"]) == 3


def test_fail_for_good(gate: Program) -> None:
    name = push(gate, "p")
    answer = pull(gate, "p", "wait=0&lease=20")
    assert gate.post(f"/jobs/{name}/fail", b"no json", lease_of(answer)).status == 400
    gate.post(f"/jobs/{name}/fail", b'{"retry": false}', lease_of(answer))
    assert job(gate, name)["state"] == "failed"


def test_cancelled_under_a_lease(gate: Program) -> None:
    name = push(gate, "p")
    answer = pull(gate, "p", "wait=0&lease=20")
    assert gate.request("DELETE", f"/jobs/{name}").json["state"] == "cancelled"
    assert gate.post(f"/jobs/{name}/reply", b"x", lease_of(answer)).slug == "stale-attempt"


def test_once_lapses(gate: Program) -> None:
    name = push(gate, "once")
    pull(gate, "once", "wait=0&lease=0.1")
    shown = ended(gate, name)
    assert (shown["state"], shown["attempt"]) == ("dead", 1)


def test_ack_of_a_lot(gate: Program) -> None:
    gate.post("/push/p?each=line", b"a\nb\nc\n")
    answer = pull(gate, "p", "wait=0&lease=20&max=10&each=line")
    names, lease = answer["Jobgate-Ids"].split(", "), answer["Jobgate-Lease"]
    assert {job(gate, name)["state"] for name in names} == {"running"}
    assert gate.post(f"/leases/{lease}/extend?lease=30").status == 200
    for _ in range(2):
        assert gate.post(f"/leases/{lease}/ack").status == 200
    assert {job(gate, name)["state"] for name in names} == {"succeeded"}
    for verb in ("extend", "fail"):
        assert gate.post(f"/leases/{lease}/{verb}").status == 409
    for verb in ("ack", "extend", "fail"):
        answer = gate.post(f"/leases/nobody/{verb}")
        assert (answer.status, answer.slug) == (409, "stale-attempt")


def test_fail_of_a_lot(gate: Program) -> None:
    gate.post("/push/p?each=line", b"a\nb\n")
    answer = pull(gate, "p", "wait=0&lease=20&max=10&each=line")
    assert gate.post(f"/leases/{answer['Jobgate-Lease']}/fail").status == 200
    assert pull(gate, "p", "wait=5&min=2&max=2&each=line").body == b"a\nb\n"


def test_partly_replied_lot(gate: Program) -> None:
    """Of a lot each may be answered alone; an ack ends the others."""
    gate.post("/push/p?each=line", b"a\nb\n")
    answer = pull(gate, "p", "wait=0&lease=20&max=10&each=line")
    one, two = answer["Jobgate-Ids"].split(", ")
    assert gate.post(f"/jobs/{one}/reply", b"A", lease_of(answer)).status == 200
    assert gate.post(f"/leases/{answer['Jobgate-Lease']}/ack").status == 200
    assert (result(gate, one).body, result(gate, two).body) == (b"A", b"")


def test_repeated_pull(gate: Program) -> None:
    """With a key a repeated pull gets the same commands while their lease lives."""
    gate.post("/push/p?each=line", b"a\nb\nc\n")
    headers = key()
    query = "wait=0&lease=20&max=2&each=line"
    first, again = pull(gate, "p", query, headers), pull(gate, "p", query, headers)
    assert (again.body, again["Jobgate-Ids"]) == (first.body, first["Jobgate-Ids"])
    assert again["Jobgate-Lease"] == first["Jobgate-Lease"]
    assert again["Idempotency-Replayed"] == "true"
    gate.post(f"/leases/{first['Jobgate-Lease']}/ack")
    third = pull(gate, "p", query, headers)
    assert third.body == b"c\n"
    gate.post(f"/leases/{third['Jobgate-Lease']}/ack")


def test_reply_and_next(gate: Program) -> None:
    one, two = push(gate, "p", b"1"), push(gate, "p", b"2")
    answer = pull(gate, "p", "wait=0&lease=20")
    path = f"/jobs/{one}/reply?next=p&lease=20&wait=5"
    following = gate.post(path, b"first", lease_of(answer))
    assert (following.status, following["Jobgate-Id"], following.body) == (200, two, b"2")
    assert result(gate, one).body == b"first"
    late = gate.post(path, b"again", lease_of(answer))
    assert late.slug == "stale-attempt"
    last = gate.post(f"/jobs/{two}/reply?next=p&wait=0", b"second", lease_of(following))
    assert (last.status, last.body) == (204, b"")
    assert result(gate, two).body == b"second"


def test_leases_live_on(start_gate: StartGate) -> None:
    """A lease survives the gate, whose absence does not count against it."""
    gate = start_gate({"gate": {"store": "sqlite:jobs.db"}, "queues": QUEUES})
    name = push(gate, "p")
    headers = key()
    answer = pull(gate, "p", "wait=0&lease=3", headers)
    gate.kill()
    time.sleep(3.2)
    gate.start()
    shown = job(gate, name)
    assert (shown["state"], shown["attempt"]) == ("running", 1)
    again = pull(gate, "p", "wait=0&lease=3", headers)
    assert again["Jobgate-Lease"] == answer["Jobgate-Lease"]
    gate.conserved()
    assert gate.post(f"/jobs/{name}/reply", b"x", lease_of(answer)).status == 200
    assert result(gate, name).body == b"x"
    gate.conserved()


# --- calls


def test_call_served_by_a_puller(gate: Program) -> None:
    calling = background(gate.call, "calls", b"hello", {"Content-Type": "a/b"})
    command = pull(gate, "calls", "wait=10")
    assert (command.body, command["Content-Type"]) == (b"hello", "a/b")
    headers = {"Content-Type": "c/d"}
    assert gate.post(f"/jobs/{command['Jobgate-Id']}/reply", b"world", headers).status == 200
    answer = outcome_of(calling)
    assert (answer.status, answer.body, answer["Content-Type"]) == (200, b"world", "c/d")
    assert answer["Jobgate-Id"] == command["Jobgate-Id"]
    late = gate.post(f"/jobs/{command['Jobgate-Id']}/reply", b"x")
    assert (late.status, late.slug) == (409, "stale-attempt")
    at_rest(gate, "calls")


def test_leased_call(gate: Program) -> None:
    calling = background(gate.call, "calls", b"hello")
    command = pull(gate, "calls", "wait=10&lease=10")
    path = f"/jobs/{command['Jobgate-Id']}"
    assert gate.post(f"{path}/reply", b"x").slug == "stale-attempt"
    assert gate.post(f"{path}/extend?lease=10", b"", lease_of(command)).status == 200
    body = b'{"title": "no", "status": 418}'
    assert gate.post(f"{path}/fail", body, lease_of(command)).status == 200
    answer = outcome_of(calling)
    assert (answer.status, answer.slug) == (418, "command-failed")


def test_lapsed_call(gate: Program) -> None:
    calling = background(gate.call, "calls", b"hello")
    pull(gate, "calls", "wait=10&lease=0.2")
    answer = outcome_of(calling)
    assert (answer.status, answer.slug, answer.json["executed"]) == (502, "worker-died", "maybe")


def test_slow_puller(gate: Program) -> None:
    """The queue's `timeout` bounds pullers as it does workers."""
    calling = background(gate.call, "quick", b"hello")
    command = pull(gate, "quick", "wait=10")
    answer = outcome_of(calling)
    assert (answer.status, answer.slug) == (504, "worker-timeout")
    late = gate.post(f"/jobs/{command['Jobgate-Id']}/reply", b"x")
    assert (late.status, late.slug) == (409, "stale-attempt")


def test_keyed_call(gate: Program) -> None:
    """A call with a key is served by a puller and kept like any other."""
    headers = key()
    calling = background(gate.call, "calls", b"hello", headers)
    command = pull(gate, "calls", "wait=10")
    assert job(gate, command["Jobgate-Id"])["state"] == "running"
    gate.post(f"/jobs/{command['Jobgate-Id']}/reply", b"world")
    first, again = outcome_of(calling), gate.call("calls", b"hello", headers)
    assert (first.body, again.body) == (b"world", b"world")
    assert again["Idempotency-Replayed"] == "true"


def test_beside_workers(gate: Program) -> None:
    """A puller takes what a busy worker leaves waiting."""
    slow = push(gate, "mixed", steps(("sleep", 1), ("reply", 1)))
    until(gate, slow, "running")
    other = push(gate, "mixed", steps(("reply", 2)))
    answer = pull(gate, "mixed", "wait=0&lease=20")
    assert answer["Jobgate-Id"] == other
    gate.post(f"/jobs/{other}/reply", b"pulled", lease_of(answer))
    assert result(gate, other).body == b"pulled"
    assert result(gate, slow).json == 1


def test_everything_once(gate: Program) -> None:
    """Many pushers, many pullers, some of whom fall silent: each is finished exactly once."""
    finished: list[str] = []
    over = threading.Event()

    def drain(number: int) -> None:
        with gate.connect() as connection:
            while not over.is_set():
                answer = connection.request("GET", "/pull/p?wait=0.2&lease=0.5")
                if answer.status == 204:
                    continue
                if (number + int(answer["Jobgate-Attempt"])) % 7 == 0:
                    continue
                name = answer["Jobgate-Id"]
                lease = {"Jobgate-Lease": answer["Jobgate-Lease"]}
                said = connection.request("POST", f"/jobs/{name}/reply", answer.body, lease)
                if said.status == 200:
                    finished.append(name)

    pullers = [background(drain, number) for number in range(6)]
    pushed = [push(gate, "p", b"%d" % number) for number in range(60)]
    try:
        for number, name in enumerate(pushed):
            shown = ended(gate, name)
            if shown["state"] == "succeeded":
                assert result(gate, name).body == b"%d" % number
    finally:
        over.set()
    for each in pullers:
        outcome_of(each)
    assert len(finished) == len(set(finished))
    states = [job(gate, name)["state"] for name in pushed]
    assert states.count("succeeded") == len(finished)
    assert set(states) <= {"succeeded", "dead"}
    gate.conserved()
