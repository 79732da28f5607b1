"""
Workers that pull over HTTP, with the SDK: callers must not be able to tell.
"""

from __future__ import annotations

import hashlib
import json
import signal
import socket
import time
from typing import TYPE_CHECKING

import pytest
from asking import ended, job, push
from background import background, result
from program import Program, at_rest, eventually
from raw_http import request_bytes

from jobgate.worker import pull

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from conftest import Employ


@pytest.fixture(scope="module")
def gate(start_shared_gate: Callable[..., Program]) -> Program:
    """A gate with a queue that nobody drains yet; its jobs fail for good after two attempts."""
    soon = {"first": 0.05, "max": 0.05}
    return start_shared_gate(
        {
            "gate": {"store": "memory:", "max_body": "64KiB"},
            "queues": {"q": {"attempts": 2, "backoff": soon}},
        }
    )


# --- what callers get


def test_a_puller_serves_calls(gate: Program, employ: Employ) -> None:
    """Body, type and status of the reply, and the problems, are those of any worker."""
    employ(gate.url)
    answer = gate.call("q", b"reply")
    assert (answer.status, answer.body, answer["Content-Type"]) == (
        201,
        b"<p>made</p>",
        "text/html",
    )
    assert gate.call("q", b"stream 3").body == b"0\n1\n2\n"
    assert gate.call("q", b"\xff\x00").body == b"\xff\x00"
    failed = gate.call("q", b"fail")
    assert (failed.status, failed.json["title"], failed.json["executed"]) == (
        422,
        "no such thing",
        "yes",
    )
    raised = gate.call("q", b"raise colour")
    assert (raised.status, raised.json["title"]) == (500, "KeyError: 'colour'")


def test_a_handler_is_told_what_was_handed_on(gate: Program, employ: Employ) -> None:
    """Queue, content type, `Jobgate-Key` and `traceparent`; of calls and of jobs."""
    employ(gate.url)
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    headers = {"Content-Type": "text/csv", "Jobgate-Key": "ada", "traceparent": trace}
    wanted = {"type": "text/csv", "queue": "q", "jobgate-key": "ada", "traceparent": trace}
    assert gate.call("q", b"headers", headers).json == wanted
    name = gate.post("/push/q", b"headers", headers).json["id"]
    assert gate.get(f"/jobs/{name}/result?wait=20").json == wanted


def test_a_puller_works_on_jobs(gate: Program, employ: Employ) -> None:
    """They succeed, fail for good with `retry=False`, and are dead after their attempts."""
    employ(gate.url)
    fine, never, bad = (
        push(gate, "q", b"attempt"),
        push(gate, "q", b"once"),
        push(gate, "q", b"raise x"),
    )
    assert gate.get(f"/jobs/{fine}/result?wait=20").body == b"1"
    assert ended(gate, fine)["state"] == "succeeded"
    assert (ended(gate, never)["state"], job(gate, never)["attempt"]) == ("failed", 1)
    assert (ended(gate, bad)["state"], job(gate, bad)["attempt"]) == ("dead", 2)
    assert job(gate, bad)["error"]["title"] == "KeyError: 'x'"


def test_a_declined_command_comes_again(gate: Program, employ: Employ, tmp_path: Path) -> None:
    """No attempt is counted against it, be it a call or a job."""
    employ(gate.url)
    called = gate.call("q", b"decline %b" % bytes(tmp_path / "call"))
    assert (called.status, called["Jobgate-Attempt"]) == (200, "1")
    name = push(gate, "q", b"decline %b" % bytes(tmp_path / "job"))
    # Its starts are counted, those that used up an attempt are not shown: three were allowed.
    assert ended(gate, name)["state"] == "succeeded"
    assert gate.metrics()["q"]["commands_declined_total"] >= 1


def test_a_reply_that_is_too_large(gate: Program, employ: Employ) -> None:
    """It fails its command, for good, and the puller goes on."""
    employ(gate.url)
    failed = gate.call("q", b"large 100000")
    assert (failed.status, failed.json["type"]) == (500, "/problems/command-failed")
    assert "larger than the gate takes" in failed.json["title"]
    assert ended(gate, push(gate, "q", b"large 100000"))["state"] == "failed"
    assert gate.call("q", b"hello").body == b"hello"


def test_inputs_are_fetched_when_they_are_asked_for(gate: Program, employ: Employ) -> None:
    """What a job of a graph needed is there by name."""
    employ(gate.url)
    jobs = {
        "left": {"queue": "q", "body": "l"},
        "right/ä": {"queue": "q", "body": "r"},
        "both": {"queue": "q", "body_base64": "aW5wdXRz", "needs": ["left", "right/ä"]},
    }
    headers = {"Content-Type": "application/json", "Prefer": "wait=20"}
    answer = gate.post("/graphs", json.dumps({"jobs": jobs}).encode(), headers)
    assert answer.status == 200, answer
    reply = answer.json["jobs"]["both"]["reply"]
    assert reply == {"left": '"l"', "right/ä": '"r"'}, reply


# --- leases


def test_a_lease_is_extended_while_the_handler_runs(
    gate: Program, employ: Employ, tmp_path: Path
) -> None:
    """It runs for several times as long as its lease, and is not given to anybody else."""
    for _ in range(2):
        employ(gate.url, lease=0.6)
    name = push(gate, "q", b"until %b" % bytes(tmp_path / "go"))
    eventually(lambda: job(gate, name)["state"] == "running", 10)
    long_past = time.monotonic() + 3 * 0.6
    eventually(lambda: time.monotonic() > long_past, 10)
    (tmp_path / "go").touch()
    assert (ended(gate, name)["state"], job(gate, name)["attempt"]) == ("succeeded", 1)


@pytest.mark.parametrize("how", ["a job", "a call"])
def test_a_cancelled_command(gate: Program, employ: Employ, tmp_path: Path, how: str) -> None:
    """Its handler is told at the next extension; what it makes is dropped, and the next comes."""
    worker = employ(gate.url, lease=0.6)
    body = b"cancelled %b" % bytes(tmp_path / "told")
    if how == "a job":
        name = push(gate, "q", body)
        eventually(lambda: job(gate, name)["state"] == "running", 10)
        assert gate.request("DELETE", f"/jobs/{name}").status == 200
    else:
        with gate.connect() as caller:
            caller.send(request_bytes("POST", "/call/q", body))
            gate.running("q")
    eventually((tmp_path / "told").exists, 10)
    assert gate.call("q", b"hello").body == b"hello"
    eventually(lambda: "dropped: This attempt is over" in worker.log, 10)
    at_rest(gate, "q")


def test_a_puller_is_killed(gate: Program, employ: Employ, tmp_path: Path) -> None:
    """Its job goes to another when the lease is over, as another attempt."""
    first = employ(gate.url, lease=0.5)
    name = push(gate, "q", b"until %b" % bytes(tmp_path / "go"))
    eventually(lambda: job(gate, name)["state"] == "running", 10)
    first.end()
    (tmp_path / "go").touch()
    employ(gate.url, lease=0.5)
    assert (ended(gate, name)["state"], job(gate, name)["attempt"]) == ("succeeded", 2)


# --- coming and going


def test_the_gate_is_killed_under_a_handler(
    start_gate: Callable[..., Program], employ: Employ, tmp_path: Path
) -> None:
    """The lease survives; the reply is given to the gate that comes back, as attempt 1."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        port = str(found.getsockname()[1])
    gate = start_gate({"queues": {"q": {}}}, "-p", port)
    worker = employ(gate.url, lease=20)
    name = push(gate, "q", b"until %b" % bytes(tmp_path / "go"))
    eventually(lambda: job(gate, name)["state"] == "running", 10)
    gate.kill()
    (tmp_path / "go").touch()
    eventually(lambda: "trying again" in worker.log, 20)
    gate.killed = False
    gate.start()
    assert (ended(gate, name)["state"], job(gate, name)["attempt"]) == ("succeeded", 1)
    assert gate.call("q", b"hello", timeout=30).body == b"hello"


def test_a_puller_is_told_to_end(gate: Program, employ: Employ, tmp_path: Path) -> None:
    """It finishes what it has; idle, it goes at once, and what comes then waits for another."""
    worker = employ(gate.url)
    caller = background(gate.call, "q", b"until %b" % bytes(tmp_path / "go"))
    gate.running("q")
    worker.process.send_signal(signal.SIGTERM)
    (tmp_path / "go").touch()
    assert result(caller).body == b"done"
    assert worker.process.wait(10) == 0
    idle = employ(gate.url)
    eventually(lambda: "pulling from q" in idle.log, 10)
    idle.process.send_signal(signal.SIGTERM)
    assert idle.process.wait(10) == 0
    name = push(gate, "q", b"attempt")
    employ(gate.url)
    assert gate.get(f"/jobs/{name}/result?wait=20").body == b"1"


def test_tokens(start_gate: Callable[..., Program], employ: Employ) -> None:
    """`pull:q` is all that a puller needs; without it, it ends with status 1 and says why."""
    token, other = "pull-token", "other-token"
    tables = [
        {"name": n, "sha256": hashlib.sha256(t.encode()).hexdigest(), "allow": allow}
        for n, t, allow in (
            ("puller", token, ["pull:q"]),
            ("caller", other, ["call:*", "push:*", "jobs", "admin", "metrics"]),
        )
    ]
    gate = start_gate({"gate": {"store": "memory:"}, "tokens": tables, "queues": {"q": {}}})
    authorized = {"Authorization": f"Bearer {other}"}
    employ(gate.url, token=token, lease=0.5)
    assert gate.call("q", b"sleep 1", authorized).body == b"slept"
    assert gate.call("q", b"fail", authorized).status == 422
    name = gate.post("/push/q", b"inputs", authorized).json["id"]
    assert gate.get(f"/jobs/{name}/result?wait=20", authorized).json == {}
    refused = employ(gate.url, token=other)
    assert refused.process.wait(20) == 1
    assert "the token 'caller' may not pull:q" in refused.log


def test_what_makes_no_sense() -> None:
    """It is said before anything is asked for."""
    with pytest.raises(ValueError, match='wanted "http://HOST:PORT"'):
        pull(print, "gate:8080", "q")
    with pytest.raises(ValueError, match="found lease=0"):
        pull(print, "http://127.0.0.1:8080", "q", lease=0)
    with pytest.raises(TypeError, match="wants a function"):
        pull("resize", "http://127.0.0.1:8080", "q")  # type: ignore[arg-type]


# --- what pullers may say, without the SDK


def test_status_and_decline_over_plain_http(gate: Program) -> None:
    """`Jobgate-Status` is the caller's status, if it is one; `/decline` gives a call back."""
    caller = background(gate.call, "q", b"hi")
    pulled = gate.get("/pull/q?lease=30&wait=20")
    lease = {"Jobgate-Lease": pulled["Jobgate-Lease"]}
    path = f"/jobs/{pulled['Jobgate-Id']}"
    assert gate.post(f"{path}/decline", b"", lease).status == 200
    assert gate.post(f"{path}/reply", b"late", lease).json["type"] == "/problems/stale-attempt"
    pulled = gate.get("/pull/q?lease=30&wait=20")
    assert f"/jobs/{pulled['Jobgate-Id']}" == path
    lease = {"Jobgate-Lease": pulled["Jobgate-Lease"]}
    for bad in ("99", "600", "2000", "x", ""):
        refused = gate.post(f"{path}/reply", b"", {**lease, "Jobgate-Status": bad})
        assert (refused.status, refused.json["type"]) == (400, "/problems/bad-request")
    told = gate.post(f"{path}/reply", b"made", {**lease, "Jobgate-Status": "201"})
    assert told.status == 200
    assert (result(caller).status, result(caller).body) == (201, b"made")
    again = gate.post(f"{path}/reply", b"made", lease)
    assert (again.status, again.json["type"]) == (409, "/problems/stale-attempt")
