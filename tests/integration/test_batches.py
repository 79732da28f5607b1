"""
Batches through the whole program: many commands at a time, and each caller its own answer.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from background import background, result
from program import Program, at_rest, eventually, sdk
from raw_http import Answer, request_bytes
from test_no_mix_up import Crowd, run_crowd
from test_socket_workers import TCP, where

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future
    from pathlib import Path


def batcher(*arguments: str, **settings: Any) -> dict[str, Any]:
    """A queue with one `workers/batcher.py`."""
    command = sdk("batcher", *arguments)
    return {"command": command, "workers": 1, "kill_timeout": 0.5, **settings}


def batch(size: int, linger: float | str = 0.0, **more: Any) -> dict[str, Any]:
    """The key of a queue."""
    return {"size": size, "linger": linger, **more}


def raw(*arguments: str, **settings: Any) -> dict[str, Any]:
    """A queue with one `workers/rawbatcher.py`."""
    return {"command": sdk("rawbatcher", *arguments), "workers": 1, **settings}


def liner(**settings: Any) -> dict[str, Any]:
    """A queue with one `workers/liner.py`."""
    return {"command": sdk("liner"), "workers": 1, "protocol": "lines", **settings}


QUEUES = {
    "full": batcher(batch=batch(4, "full")),
    "two": batcher(workers=2, batch=batch(2, 1.0)),
    "brief": batcher(batch=batch(4, "full"), timeout=1.0),
    "bytes": batcher(batch=batch(4, "full", max_bytes=1000)),
    "ahead": batcher(batch=batch(4, "full"), in_flight=2),
    "kill": batcher(batch=batch(4, "full"), cancel="kill"),
    "kill-one": batcher(batch=batch(4), cancel="kill"),
    "auto": batcher("0.002", batch=batch(16, "auto", target="500ms"), in_flight=2),
    "safe": batcher(batch=batch(32, "full"), retry="safe", attempts=3, in_flight=2),
    "safe-wide": batcher(batch=batch(32, "full"), workers=3, retry="safe", attempts=3),
    "safe-raw": raw(batch=batch(4, "full"), retry="safe", timeout=2),
    "raw": raw(batch=batch(4, "full"), timeout=2),
    "raw-ordered": raw("--ordered", batch=batch(2, "full"), in_flight=2, timeout=30),
    "lines": liner(batch=batch(4, "full")),
    "lines-one": liner(batch=batch(4, 0.01)),
}


@pytest.fixture(scope="module")
def shared(start_shared_gate: Callable[..., Program]) -> Program:
    """A gate with all of these queues."""
    return start_shared_gate({"queues": QUEUES})


def calls(gate: Program, queue: str, *bodies: bytes, **how: Any) -> list[Future[Any]]:
    """Calls that are all under way when this returns, oldest first where they wait."""
    before = gate.queue(queue)["accepted"]
    started = []
    for number, body in enumerate(bodies, 1):
        started.append(background(gate.call, queue, body, **how))
        eventually(lambda n=number: gate.queue(queue)["accepted"] >= before + n)
    return started


def together(futures: list[Future[Any]]) -> list[int]:
    """How many were with each of them."""
    answers = [result(future) for future in futures]
    assert [answer.status for answer in answers] == [200] * len(answers), answers
    return [answer.json["together"] for answer in answers]


# --- going


def test_four_go_together(shared: Program) -> None:
    """Each gets its own answer, and everything is counted."""
    before = shared.metrics()["full"]
    assert together(calls(shared, "full", b"a", b"b", b"c", b"d")) == [4] * 4
    after = at_rest(shared, "full")
    assert after["batch_size_sum"] - before["batch_size_sum"] == 4
    assert after["batch_size_count"] - before["batch_size_count"] == 1
    assert after["batch_limit"] == 4
    assert after["batch_linger_seconds"] == float("inf")
    shown = shared.queue("full")["batch"]
    assert (shown["size"], shown["linger"]) == (4, None)
    assert shown["sent"] == after["batch_size_count"]
    assert shared.queue("safe-raw")["batch"]["mean"] is None or shown["mean"] > 0


def test_answers_are_their_callers_own(shared: Program) -> None:
    """By id, in whatever order they come."""
    bodies = [b"a%d" % n for n in range(8)]
    futures = [background(shared.call, "full", body) for body in bodies]
    answers = [result(future) for future in futures]
    assert [answer.json["body"].encode() for answer in answers] == bodies
    ids = {answer["Jobgate-Id"] for answer in answers}
    assert len(ids) == 8


def test_each_its_own_outcome(shared: Program) -> None:
    """One member's failure is its own."""
    error, fail, good, stream = calls(shared, "full", b"error", b"fail", b"good", b"stream")
    assert (result(error).status, result(error).slug) == (500, "command-failed")
    assert result(error).json["title"] == "ValueError: its own"
    assert (result(fail).status, result(fail).slug) == (404, "command-failed")
    assert result(good).json["together"] == 4
    assert result(stream).body == b"ab"
    at_rest(shared, "full")


def test_declined_alone(shared: Program) -> None:
    """The other worker is asked, too; the neighbour has had its answer."""
    declined, good = calls(shared, "two", b"decline", b"good")
    assert result(good).json["together"] == 2
    assert result(declined).slug == "no-worker"
    assert result(declined).json["executed"] == "no"
    assert shared.metrics()["two"]["commands_declined_total"] == 2


def test_a_handler_that_raises(shared: Program) -> None:
    """What it raises is said about all, and the worker lives on."""
    pids = shared.worker_pids("full")
    answers = [result(f) for f in calls(shared, "full", b"a", b"b", b"boom", b"d")]
    assert {(a.status, a.json["title"]) for a in answers} == {(500, "ValueError: boom")}
    assert shared.worker_pids("full") == pids


def test_a_handler_that_returns_too_few(shared: Program) -> None:
    """Whose answer is whose cannot be known: nobody gets another's."""
    answers = [result(f) for f in calls(shared, "full", b"a", b"short", b"c", b"d")]
    assert {a.status for a in answers} == {500}
    assert "3 replies to 4 commands" in answers[0].json["title"]


def test_bytes(shared: Program) -> None:
    """A batch is full by its bodies, too."""
    assert together(calls(shared, "bytes", b"x" * 600, b"y" * 400)) == [2, 2]
    [alone] = calls(shared, "bytes", b"z" * 5000)
    assert together([alone]) == [1]


def test_sent_ahead(shared: Program, tmp_path: Path) -> None:
    """The next batch is with the worker while one runs; both are shown."""
    until = b"until %s" % os.fsencode(tmp_path / "go")
    futures = calls(shared, "ahead", until, *[b"x"] * 7)
    worker = eventually(lambda: next(w for w in shared.workers("ahead") if len(w["batches"]) == 2))
    assert worker["batches"] == [4, 4]
    assert len(worker["commands"]) == 8
    assert [command["since"] is not None for command in worker["commands"]] == [True] * 4 + [
        False
    ] * 4
    (tmp_path / "go").touch()
    assert together(futures) == [4] * 8


def test_a_deadline_forces_it(shared: Program) -> None:
    """Where only full batches go, whoever is in a hurry goes in time."""

    def in_time() -> Answer | None:
        # A worker that the machine leaves too little CPU needs more than the gate allows for.
        answer = shared.call("full", b"hasty", {"Jobgate-Timeout": "1.5"})
        return answer if answer.status == 200 else None

    assert eventually(in_time, 15).json["together"] == 1


def test_priorities(shared: Program, tmp_path: Path) -> None:
    """The most urgent go first."""
    until = b"until %s" % os.fsencode(tmp_path / "go")
    first = calls(shared, "full", until, b"b", b"c", b"d")
    late = calls(shared, "full", b"late", headers={"Priority": "u=6"})
    urgent = calls(shared, "full", *[b"u"] * 4, headers={"Priority": "u=1"})
    (tmp_path / "go").touch()
    assert together(first + urgent) == [4] * 8
    shared.waiting("full", 1)
    assert together([*late, *calls(shared, "full", b"1", b"2", b"3")]) == [4] * 4


def test_cancelled_before_it_goes(shared: Program) -> None:
    """It leaves the batch, and another takes its place."""
    with shared.connect() as connection:
        connection.send(request_bytes("POST", "/call/full", b"gone"))
        shared.waiting("full", 1)
    shared.waiting("full", 0)
    assert together(calls(shared, "full", b"a", b"b", b"c", b"d")) == [4] * 4


@pytest.mark.parametrize("queue", ["full", "kill"])
def test_cancelled_after_it_went(shared: Program, queue: str, tmp_path: Path) -> None:
    """It is ignored: its neighbours get their answers, even where `cancel = "kill"`."""
    until = b"until %s" % os.fsencode(tmp_path / "go")
    pids = shared.worker_pids(queue)
    with shared.connect() as connection:
        connection.send(request_bytes("POST", f"/call/{queue}", b"gone"))
        shared.waiting(queue, 1)
        futures = calls(shared, queue, until, b"b", b"c")
        shared.running(queue, 4)
    shared.running(queue, 3)
    (tmp_path / "go").touch()
    # The SDK may have heard of it before it began.
    assert together(futures) in ([4] * 3, [3] * 3)
    assert shared.worker_pids(queue) == pids
    at_rest(shared, queue)


def test_kill_when_nobody_is_left(shared: Program) -> None:
    """With the last caller the batch has nobody to harm."""
    pids = shared.worker_pids("kill-one")
    with shared.connect() as connection:
        connection.send(request_bytes("POST", "/call/kill-one", b"until /nonexistent/file"))
        shared.running("kill-one", 1)
    eventually(lambda: shared.worker_pids("kill-one") not in ([], pids))
    shared.ready("kill-one")


def test_too_long(shared: Program) -> None:
    """A batch that runs too long has done so for all of its members; the next is served."""
    answers = [
        result(f) for f in calls(shared, "brief", b"until /nonexistent/file", b"b", b"c", b"d")
    ]
    assert {(a.status, a.slug) for a in answers} == {(504, "worker-timeout")}
    assert together(calls(shared, "brief", b"a", b"b", b"c", b"d")) == [4] * 4


def test_auto(shared: Program) -> None:
    """It measures and grows."""
    for _ in range(8):
        for future in [background(shared.call, "auto", b"x") for _ in range(32)]:
            assert result(future).status == 200
    shown = shared.queue("auto")["batch"]
    assert shown["size"] > 2
    assert shown["base"] + shown["each"] > 0.001
    assert shown["linger"] is not None
    assert shown["sent"] >= 16


# --- deaths


@pytest.mark.parametrize("queue", ["safe", "safe-wide"])
@pytest.mark.parametrize("place", [0, 17, 31])
def test_poison_among_31(shared: Program, queue: str, place: int) -> None:
    """31 replies, one `poison-command`, at most 11 deaths; and it is kept out from then on."""
    poison = b"die %s %d" % (queue.encode(), place)
    bodies = [b"good%d" % n for n in range(32)]
    bodies[place] = poison
    before = shared.metrics()[queue]["worker_restarts_total"]
    futures = [background(shared.call, queue, body) for body in bodies]
    answers = [result(future) for future in futures]
    bad = answers.pop(place)
    assert (bad.status, bad.slug) == (502, "poison-command")
    assert [a.status for a in answers] == [200] * 31
    bodies.pop(place)
    assert [a.json["body"].encode() for a in answers] == bodies
    shared.ready(queue, QUEUES[queue]["workers"])
    deaths = shared.metrics()[queue]["worker_restarts_total"] - before
    assert 8 <= deaths <= 11
    assert shared.call(queue, poison).slug == "poison-command"
    at_rest(shared, queue)


def test_death_without_safe(shared: Program) -> None:
    """Section 6: whoever may have begun is told so; whoever waited is served."""
    shared.ready("ahead")
    futures = calls(shared, "ahead", b"a", b"die", b"c", b"d")
    answers = [result(future) for future in futures]
    assert {(a.status, a.slug, a.json["signal"]) for a in answers} == {
        (502, "worker-died", "SIGKILL")
    }
    assert {a.json["executed"] for a in answers} == {"maybe"}
    shared.ready("ahead")
    assert together(calls(shared, "ahead", b"a", b"b", b"c", b"d")) == [4] * 4


def test_the_batch_behind_a_death(shared: Program, tmp_path: Path) -> None:
    """It had not begun: it runs again, and nobody notices."""
    shared.ready("ahead")
    until = b"until %s" % os.fsencode(tmp_path / "never")
    dying = calls(shared, "ahead", until, b"b", b"c", b"d")
    behind = calls(shared, "ahead", b"e", b"f", b"g", b"h")
    shared.running("ahead", 8)
    [pid] = shared.worker_pids("ahead")
    os.kill(pid, signal.SIGKILL)
    assert {result(future).slug for future in dying} == {"worker-died"}
    answers = [result(future) for future in behind]
    assert {(a.status, a.json["attempt"]) for a in answers} == {(200, 1)}


# --- workers that do not keep to it


def test_welcome_tells_the_size(shared: Program) -> None:
    """And replies may come in any order."""
    answers = [result(f) for f in calls(shared, "raw", b"a", b"b", b"c", b"d")]
    assert [a.body for a in answers] == [b"4 of 4: " + x for x in (b"a", b"b", b"c", b"d")]


def test_replies_are_sent_on_as_they_come(shared: Program, tmp_path: Path) -> None:
    """Whoever is answered first need not wait for the slowest."""
    pause = b"pause %s" % os.fsencode(tmp_path / "go")
    futures = calls(shared, "raw", b"a", b"b", pause, b"d")
    assert result(futures[3]).status == 200
    assert result(futures[2]).status == 200
    assert not futures[0].done()
    assert not futures[1].done()
    (tmp_path / "go").touch()
    assert result(futures[0]).status == result(futures[1]).status == 200


def test_an_unknown_id(shared: Program) -> None:
    """It reaches nobody, is counted, and harms nobody."""
    before = shared.metrics()["raw"]["stray_replies_total"]
    answers = [result(f) for f in calls(shared, "raw", b"a", b"stray", b"c", b"d")]
    assert [a.status for a in answers] == [200] * 4
    assert b"astray" not in b"".join(a.body for a in answers)
    assert shared.metrics()["raw"]["stray_replies_total"] == before + 1


@pytest.mark.parametrize("queue", ["raw", "safe-raw"])
def test_a_missing_id(shared: Program, queue: str) -> None:
    """Only its own caller waits in vain."""
    answers = [result(f) for f in calls(shared, queue, b"a", b"skip", b"c", b"d")]
    assert [a.status for a in answers] == [200, 504, 200, 200]
    assert answers[1].slug == "worker-timeout"
    shared.ready(queue)
    answers = [result(f) for f in calls(shared, queue, b"a", b"b", b"c", b"d")]
    assert [a.status for a in answers] == [200] * 4


def test_a_missing_id_before_the_next_batch(shared: Program, tmp_path: Path) -> None:
    """A worker that keeps the order will not answer it any more: its caller is told at once."""
    pause = b"pause %s" % os.fsencode(tmp_path / "go")
    futures = calls(shared, "raw-ordered", b"skip", pause, b"c", b"d")
    (tmp_path / "go").touch()
    answers = [result(future) for future in futures]
    assert [a.status for a in answers] == [502, 200, 200, 200]
    assert answers[0].slug == "worker-protocol-error"
    at_rest(shared, "raw-ordered")


# --- lines


def test_lines(shared: Program) -> None:
    """So many lines in, as many lines out."""
    bodies = [b"one", b"deux", b"three", b"four"]
    answers = [result(future) for future in calls(shared, "lines", *bodies)]
    assert [a.body for a in answers] == [b"ONE", b"DEUX", b"THREE", b"FOUR"]
    assert shared.queue("lines")["batch"]["mean"] == 4.0


def test_lines_that_linger(shared: Program) -> None:
    """A partial batch, and many of them."""
    assert shared.call("lines-one", b"alone").body == b"ALONE"
    bodies = [b"x%d" % n for n in range(40)]
    futures = [background(shared.call, "lines-one", body) for body in bodies]
    assert [result(future).body for future in futures] == [body.upper() for body in bodies]


@pytest.mark.parametrize("place", [0, 3])
def test_a_line_too_many(shared: Program, place: int) -> None:
    """Whose answer is whose cannot be known: the worker ends, and nobody gets another's."""
    bodies = [b"a", b"b", b"c"]
    bodies.insert(place, b"two")
    answers = [result(future) for future in calls(shared, "lines", *bodies)]
    assert {a.slug for a in answers} == {"worker-protocol-error"}
    shared.ready("lines")
    answers = [result(f) for f in calls(shared, "lines", b"a", b"b", b"c", b"d")]
    assert [a.body for a in answers] == [b"A", b"B", b"C", b"D"]


def test_lines_that_die(shared: Program) -> None:
    """An answer counts when all have come."""
    answers = [result(f) for f in calls(shared, "lines", b"a", b"die", b"c", b"d")]
    assert {a.slug for a in answers} == {"worker-died"}
    shared.ready("lines")


def test_jobs_beyond_size(start_gate: Callable[..., Program]) -> None:
    """`size` bounds calls: jobs wait in any number, and leave calls their places."""
    gate = start_gate({"queues": {"q": batcher(batch=batch(4, 0.01), size=8)}})
    assert gate.post("/queues/q/pause").status == 200
    singles = [gate.post("/push/q", b"%d" % number) for number in range(30)]
    assert [answer.status for answer in singles] == [202] * 30
    lines = b"".join(b"line %d\n" % number for number in range(300))
    assert gate.post("/push/q?each=line", lines).json["accepted"] == 300
    waiting = calls(gate, "q", *[b"call %d" % number for number in range(8)])
    assert gate.call("q", b"one too many").slug == "queue-full"
    assert gate.post("/queues/q/resume").status == 200
    assert [result(each).status for each in waiting] == [200] * 8
    for answer in singles:
        assert gate.get(f"/jobs/{answer.json['id']}/result?wait=20").status == 200
    assert at_rest(gate, "q")["commands_succeeded_total"] == 338


# --- options, reload, and the whole crowd


def test_options(start_gate: Callable[..., Program]) -> None:
    """`--batch-size` and `--batch-linger`, then a reload that changes them."""
    queue = batcher()
    gate = start_gate(
        {"queues": {"q": queue}}, "-p", "0", "--batch-size", "2", "--batch-linger", "full"
    )
    assert together(calls(gate, "q", b"a", b"b")) == [2, 2]
    pids = gate.worker_pids("q")
    gate.write_config({"queues": {"q": {**queue, "batch": batch(7, max_bytes="1MiB")}}})
    gate.signal(signal.SIGHUP)
    # The options still win over the file, so only what they do not say has changed.
    gate.logged("(?i)reload|configuration|reread")
    assert together(calls(gate, "q", b"a", b"b")) == [2, 2]
    assert gate.worker_pids("q") == pids


@pytest.mark.parametrize("linger", ["full", 25])
def test_sigterm(start_gate: Callable[..., Program], linger: Any) -> None:
    """Nobody new comes in, so nobody waits for company any more."""
    gate = start_gate({"queues": {"q": batcher(batch=batch(4, linger))}})
    waiting = calls(gate, "q", b"a", b"b")
    gate.waiting("q", 2)
    gate.signal(signal.SIGTERM)
    assert together(waiting) == [2, 2]
    # Less than any of the two could wait: they need not have.
    assert gate.wait(within=15) == 0


def test_reload(start_gate: Callable[..., Program]) -> None:
    """Another size replaces the workers, another linger does not; nobody is lost."""
    gate = start_gate({"queues": {"q": batcher(batch=batch(2, "full"))}})
    waiting = calls(gate, "q", b"waits")
    [pid] = gate.worker_pids("q")
    gate.write_config({"queues": {"q": batcher(batch=batch(2, 0.05))}})
    gate.signal(signal.SIGHUP)
    assert together(waiting) == [1]
    assert gate.worker_pids("q") == [pid]
    gate.write_config({"queues": {"q": batcher()}})
    gate.signal(signal.SIGHUP)
    eventually(lambda: gate.queue("q")["batch"] is None)
    assert gate.call("q", b"x").json["together"] == 1
    gate.write_config({"queues": {"q": batcher(batch=batch(3, "full"))}})
    gate.signal(signal.SIGHUP)
    eventually(lambda: gate.queue("q")["batch"])
    assert together(calls(gate, "q", b"a", b"b", b"c")) == [3] * 3


@pytest.mark.parametrize(
    ("in_flight", "limits"),
    [(1, batch(16)), (2, batch(16)), (2, batch(8, 0.003)), (2, batch(32, "auto"))],
)
def test_no_mix_up(start_gate: Callable[..., Program], in_flight: int, limits: Any) -> None:
    """Thousands of callers, some of whom leave, and workers that are killed with their batches."""
    queue = {
        "command": sdk("batcher", "0.003"),
        "workers": 3,
        "in_flight": in_flight,
        "batch": limits,
        "size": 1000,
        "retry": "safe",
        "attempts": 50,
    }
    gate = start_gate({"queues": {"q": queue}})
    run_crowd(gate, Crowd(gate, "q", seed=in_flight, prefix=b"digest "))
    assert gate.queue("q")["batch"]["mean"] > 1


def test_a_worker_from_outside(start_gate: Callable[..., Program]) -> None:
    """It is given batches as any other, and told to go it finishes what it has."""
    tables = {"q": {"batch": batch(4, "full"), "in_flight": 2}}
    gate = start_gate({"gate": {"worker_listen": [TCP]}, "queues": tables})
    settings = json.dumps({"connect": where(gate), "queue": "q"})
    environment = {**os.environ, "OUTSIDE": settings}
    with subprocess.Popen(
        [sys.executable, *sdk("batcher", "0.05")[1:]], env=environment, stderr=subprocess.DEVNULL
    ) as worker:
        try:
            gate.ready("q")
            assert together(calls(gate, "q", *[b"x%d" % n for n in range(8)])) == [4] * 8
            futures = calls(gate, "q", b"a", b"b", b"c", b"d")
            worker.terminate()
            assert together(futures) == [4] * 4
            assert worker.wait(20) == 0
        finally:
            worker.kill()
