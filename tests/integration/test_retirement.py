"""
Workers that come and go, with callers at work: nobody may notice; and what is known of them.
"""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING, Any

import pytest
import pytest_twisted
from background import background, result
from callers import Callers
from program import Program, alive, at_rest, eventually, sdk
from prometheus_client.parser import text_string_to_metric_families
from twisted.internet.task import deferLater

from jobgate.pool.machine import Machine

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from conftest import Embed

ECHO = {"command": sdk("echo"), "workers": 1}
ACTOR = {"command": sdk("actor"), "workers": 1, "kill_timeout": 0.5}


def steps(*taken: tuple[str, Any]) -> bytes:
    """A body for `workers/actor.py`."""
    return json.dumps(taken).encode()


def causes(gate: Program, queue: str = "q") -> dict[str, int]:
    """How often workers of a queue were replaced, by why."""
    numbers: dict[str, int] = {}
    for family in text_string_to_metric_families(gate.get("/metrics").body.decode()):
        for sample in family.samples:
            if sample.name == "jobgate_worker_restarts_by_cause_total":
                assert sample.labels["queue"] == queue
                numbers[sample.labels["cause"]] = int(sample.value)
    return numbers


def settled(gate: Program, count: int) -> bool:
    """Whether exactly so many workers live, all of them in service."""
    return [w["state"] in ("ready", "busy") for w in gate.workers()] == [True] * count


def reload_state(gate: Program) -> str:
    found = gate.queue("q")["reload"]
    return "" if found is None else str(found["state"])


# --- replaced without anybody noticing


@pytest.mark.timeout(400)
def test_200_recycles_and_20_reloads_under_load(start_gate: Callable[..., Program]) -> None:
    """Not one call fails, and in the end everything is as it was."""
    gate = start_gate({"queues": {"q": {**ECHO, "workers": 4}}})
    gate.ready("q", 4)
    with Callers(gate, ["q"], 4) as callers:
        for _ in range(20):
            assert gate.post("/queues/q/reload").status == 202
            eventually(lambda: reload_state(gate) == "done", 30, "the reload is done")
            for count in (4, 4, 2):
                eventually(lambda: settled(gate, 4), 30, "four workers")
                for post in range(count):
                    assert gate.post(f"/workers/q-{post + 1}/recycle").status == 202
        eventually(lambda: settled(gate, 4), 30, "four workers")
        callers.some_more()
    callers.all_well()
    assert causes(gate) == {"reload": 20 * 4, "recycle": 200}
    numbers = at_rest(gate, "q")
    assert numbers["commands_succeeded_total"] == numbers["commands_accepted_total"]


@pytest.mark.parametrize("bound", ["max_commands", "max_age"])
def test_served_for_long_enough(start_gate: Callable[..., Program], bound: str) -> None:
    """Each bound replaces workers again and again, and no call fails."""
    value = {"max_commands": 30, "max_age": 0.4}[bound]
    gate = start_gate({"queues": {"q": {**ECHO, "workers": 2, bound: value}}})
    with Callers(gate, ["q"], 3) as callers:
        eventually(lambda: causes(gate).get(bound, 0) >= 6, 40, f"six by {bound}")
        callers.some_more()
    callers.all_well()
    assert set(causes(gate)) == {bound}
    assert gate.get("/workers/q-1/report").status == 404


def test_memory(start_gate: Callable[..., Program]) -> None:
    """Over the soft limit it is replaced after the command; over twice that it is killed."""
    gate = start_gate({"queues": {"q": {**ACTOR, "max_memory": "100MiB"}}})
    [first] = gate.worker_pids("q")
    assert gate.call("q", steps(("hoard", 120 << 20), ("reply", "kept"))).body == b"kept"
    eventually(lambda: settled(gate, 1) and gate.worker_pids("q") != [first], 15, "another")
    eventually(lambda: not alive(first), 15, "the first one is gone")
    assert (causes(gate), gate.get("/workers/q-1/report").status) == ({"max_memory": 1}, 404)

    body = steps(("hoard", 300 << 20), ("sleep", 30))
    answer = gate.call("q", body)
    assert (answer.status, answer.slug) == (502, "worker-died")
    assert "max_memory" in answer.json["detail"]
    assert gate.call("q", steps(("reply", "well"))).body == b"well"
    eventually(lambda: gate.get("/workers/q-1/report").status == 200, 10)
    report = gate.get("/workers/q-1/report").json
    assert (report["kind"], report["signal"]) == ("memory", "SIGKILL")
    assert report["usage"]["max_rss"] > 200 << 20
    # It may have been seen on its way from the one bound to the other, and been replaced by then.
    assert set(causes(gate)) <= {"max_memory", "memory"}


# --- a reload that is a mistake

GOOD = """
from jobgate.worker import serve
serve(lambda command: command.body)
"""
SICK = """
import os
from jobgate.worker import serve
serve(lambda command: os._exit(7))
"""


def test_a_canary_that_fails(start_gate: Callable[..., Program], tmp_path: Path) -> None:
    """It does not boot, or dies on its first commands: the old ones stay, and it is told why."""
    program = tmp_path / "version.py"
    program.write_text(GOOD)
    queue = {"command": ["python", str(program)], "workers": 3, "retry": "safe", "attempts": 3}
    gate = start_gate({"queues": {"q": queue}})
    gate.ready("q", 3)
    old = sorted(gate.worker_pids("q"))
    with Callers(gate, ["q"], 4) as callers:
        for version, why in (("raise SystemExit(5)", "status 5"), (SICK, "status 7")):
            program.write_text(version)
            gate.post("/queues/q/reload")
            eventually(lambda: reload_state(gate) == "stopped", 20, "it stops")
            assert why in gate.queue("q")["reload"]["why"]
            callers.some_more()
            eventually(lambda: sorted(gate.worker_pids("q")) == old, 10, "the old ones stay")
        assert gate.get("/readyz").status == 200
        program.write_text(GOOD)
        gate.post("/queues/q/reload")
        eventually(lambda: reload_state(gate) == "done", 20, "it is mended")
        callers.some_more()
    callers.all_well()
    eventually(lambda: settled(gate, 3), 10)
    assert not set(old) & set(gate.worker_pids("q"))


# --- as many as are needed


@pytest_twisted.ensureDeferred
async def test_workers_follow_the_load(embed: Embed, monkeypatch: pytest.MonkeyPatch) -> None:
    """From nobody to `max` and back, one by one; every call is answered."""
    from twisted.internet import reactor

    monkeypatch.setattr(Machine, "spare", lambda _: True)
    scale = {"min": 0, "max": 3, "up_after": 0.1, "down_after": 0.3}
    gate = await embed({"queues": {"q": {**ACTOR, "workers": scale, "retry": "safe"}}})
    supervisor = gate.supervisor("q")
    seen = {supervisor.wanted}
    assert (supervisor.wanted, gate.dispatcher["q"].refusal()) == (0, "")
    for _ in range(2):
        calls = [gate.call("q", steps(("sleep", 0.2))) for _ in range(20)]
        most = 0
        for reply in calls:
            while not reply.called:
                seen.add(supervisor.wanted)
                most = max(most, len(supervisor.alive))
                await deferLater(reactor, 0.01)  # type: ignore[arg-type]
            await reply
        assert most == 3
        for _ in range(1000):
            seen.add(supervisor.wanted)
            if not supervisor.workers:
                break
            await deferLater(reactor, 0.01)  # type: ignore[arg-type]
        assert (supervisor.wanted, supervisor.workers) == (0, [])
    assert seen == {0, 1, 2, 3}


def test_the_first_on_demand(start_gate: Callable[..., Program]) -> None:
    """With `min = 0` a queue is ready without a worker, and the first call starts one."""
    queue = {"command": sdk("echo"), "workers": {"min": 0, "max": 2}, "idle_shutdown": 0.3}
    gate = start_gate({"queues": {"q": queue}})
    for _ in range(2):
        assert gate.get("/readyz").status == 200
        assert (gate.queue("q")["state"], gate.workers("q")) == ("open", [])
        assert gate.call("q", b"x").body == b"x"
        assert gate.queue("q")["wanted"] == 1
        eventually(lambda: not gate.workers("q"), 10, "it goes when nothing is to be done")
    gate.conserved()


def test_on_demand_but_broken(start_gate: Callable[..., Program]) -> None:
    """A program that cannot run is a crash loop as soon as somebody needs it, and says so."""
    queue = {"command": ["no-such-program"], "workers": {"min": 0, "max": 2}}
    gate = start_gate({"queues": {"q": queue}})
    assert gate.get("/readyz").status == 200
    answer = gate.call("q", b"x")
    assert (answer.status, answer.slug) == (503, "no-worker")
    assert gate.get("/readyz").status == 503


def test_callers_hammer_while_workers_come_and_go(start_gate: Callable[..., Program]) -> None:
    """Rests so short that workers go between two calls: no call is lost to that."""
    queue = {"command": sdk("echo"), "workers": {"min": 0, "max": 3}, "idle_shutdown": 0.05}
    gate = start_gate({"queues": {"q": queue}})
    pids = set()
    pause = threading.Event()
    for number in range(12):
        answer = gate.call("q", b"%d" % number)
        assert (answer.status, answer.body) == (200, b"%d" % number)
        pids |= set(gate.worker_pids("q"))
        pause.wait(number * 0.02)
    with Callers(gate, ["q"], 3) as callers:
        callers.some_more(200)
    callers.all_well()
    assert len(pids) > 1


def test_reload_of_the_bounds(start_gate: Callable[..., Program]) -> None:
    """SIGHUP: from a number to bounds and back; who serves stays."""
    import signal

    gate = start_gate({"queues": {"q": {**ECHO, "workers": 2}}})
    gate.ready("q", 2)
    before = gate.worker_pids("q")
    changes: list[tuple[Any, int]] = [({"min": 3, "max": 5}, 3), (1, 1), ({"min": 0, "max": 1}, 1)]
    with Callers(gate, ["q"], 2) as callers:
        for workers, count in changes:
            gate.write_config({"queues": {"q": {**ECHO, "workers": workers}}})
            gate.signal(signal.SIGHUP)
            eventually(lambda count=count: settled(gate, count), 15, f"{count} workers")
            callers.some_more()
    callers.all_well()
    assert set(gate.worker_pids("q")) <= set(before)


# --- knowing


def test_the_stacks_of_a_slow_worker(start_gate: Callable[..., Program]) -> None:
    """They are in its report while it runs on, and the command ends well."""
    gate = start_gate({"queues": {"q": {**ACTOR, "soft_timeout": 0.2}}})
    assert gate.call("q", steps(("reply", "quick"))).status == 200
    [pid] = gate.worker_pids("q")
    slow = background(gate.call, "q", steps(("sleep", 2), ("reply", "done")))
    report = eventually(lambda: (a := gate.get("/workers/q-1/report")).status == 200 and a.json, 10)
    assert not slow.done()
    assert (report["kind"], report["pid"], report["slow"]["pid"]) == ("slow", pid, pid)
    assert "actor.py" in report["slow"]["stacks"]
    assert "in perform" in report["slow"]["stacks"]
    assert report["slow"]["ran"] >= 0.2
    answer = result(slow)
    assert (answer.body, answer["Jobgate-Id"]) == (b"done", report["slow"]["command"])
    assert gate.worker_pids("q") == [pid]
    assert gate.workers("q")[0]["last_crash"] is None


def test_a_slow_worker_that_cannot_tell(start_gate: Callable[..., Program]) -> None:
    """A program that knows nothing of jobgate is left alone, and noted all the same."""
    code = "import sys, time\nfor l in sys.stdin: time.sleep(1); print(l, end='', flush=True)"
    queue = {"command": ["python", "-c", code], "protocol": "lines", "workers": 1}
    gate = start_gate({"queues": {"q": {**queue, "soft_timeout": 0.2}}})
    assert gate.call("q", b"x").body == b"x"
    report = gate.get("/workers/q-1/report").json
    assert (report["kind"], report["slow"]["stacks"]) == ("slow", "")


def test_the_command_a_worker_died_with(start_gate: Callable[..., Program]) -> None:
    """Its body can be had again, to be tried by hand; and what the process used is known."""
    gate = start_gate({"queues": {"q": ACTOR}})
    assert gate.get("/workers/q-1/report/command").status == 404
    body = steps(("complain", "oh\n"), ("exit", 3))
    answer = gate.call("q", body, {"Content-Type": "application/x-steps"})
    assert answer.status == 502
    eventually(lambda: gate.get("/workers/q-1/report").status == 200, 10)
    report = gate.get("/workers/q-1/report").json
    assert (report["kind"], report["exit_status"]) == ("died", 3)
    assert report["command"] == answer["Jobgate-Id"]
    assert report["usage"]["user"] + report["usage"]["system"] > 0
    found = gate.get("/workers/q-1/report/command")
    assert (found.status, found.body) == (200, body)
    assert found["Content-Type"] == "application/x-steps"
    assert found["Jobgate-Id"] == answer["Jobgate-Id"]
    assert found["Content-Disposition"] == "attachment"
    gate.ready("q")
    [worker] = gate.workers("q")
    assert worker["restarts_by_cause"] == {"died": 1}


def test_utilisation(start_gate: Callable[..., Program]) -> None:
    """How much of its time a worker had work, and how long each command took."""
    gate = start_gate({"queues": {"q": ACTOR}})
    for _ in range(3):
        gate.call("q", steps(("sleep", 0.2)))
    [worker] = gate.workers("q")
    assert worker["service_time"] >= 0.2
    assert 0 < worker["utilisation"] <= 1
    text = gate.get("/metrics").body.decode()
    [line] = [x for x in text.splitlines() if x.startswith("jobgate_worker_busy_seconds_total{")]
    assert float(line.split()[-1]) >= 0.6
    assert 'jobgate_worker_commands_total{queue="q",worker="q-1"} 3.0' in text
