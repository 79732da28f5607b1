"""
Whatever a worker does, every caller gets one right answer in bounded time.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
import pytest_twisted
from background import background, result
from program import Program, alive, at_rest, eventually, lines_of, sdk

from jobgate import errors

if TYPE_CHECKING:
    from collections.abc import Callable

    from program import Answer

DEATH_IS_KNOWN_WITHIN = 0.1
"""Seconds: the contract's own number."""


def steps(*taken: tuple[str, Any]) -> bytes:
    """A body for `workers/actor.py`."""
    return json.dumps(taken).encode()


def actor(**settings: Any) -> dict[str, Any]:
    """A queue with one `workers/actor.py`."""
    return {"command": sdk("actor"), "workers": 1, "kill_timeout": 0.5, **settings}


def raw(*arguments: str, **settings: Any) -> dict[str, Any]:
    """A queue with one `workers/raw.py`."""
    return {"command": sdk("raw", *arguments), "workers": 1, "kill_timeout": 0.5, **settings}


def liner(*arguments: str, **settings: Any) -> dict[str, Any]:
    """A queue with one `workers/liner.py`."""
    command = sdk("liner", *arguments)
    return {"command": command, "workers": 1, "protocol": "lines", "kill_timeout": 0.5, **settings}


QUEUES = {
    "plain": actor(),
    "two": actor(workers=2),
    "safe": actor(retry="safe", attempts=3),
    "never": actor(retry="never"),
    "brief": actor(timeout=0.5),
    "drop": actor(cancel="drop"),
    "polite": actor(cancel="cooperative"),
    "kill": actor(cancel="kill"),
    "kill-ahead": actor(cancel="kill", in_flight=2),
    "ahead": actor(in_flight=8),
    "ahead-safe": actor(in_flight=8, retry="safe"),
    "ahead-never": actor(in_flight=8, retry="never"),
    "raw": raw(),
    "raw-brief": raw(timeout=0.5),
    "raw-two": raw("--in-flight", "2", "--gather", "2", in_flight=2),
    "raw-late": raw("--in-flight", "4", in_flight=4),
    "raw-three": raw("--in-flight", "3", "--gather", "3", in_flight=3),
    "raw-three-safe": raw("--in-flight", "3", "--gather", "3", in_flight=3, retry="safe"),
    "noisy": raw("--noise", "Loading the model...\nno newline at the end"),
    "lines": liner(),
    "lines-loud": liner(),
    "lines-brief": liner(timeout=0.5),
    "lines-until": liner("--end", "{ready}", until="{ready}"),
    "lines-regex": liner("--end", "bestmove e2e4", until_regex="^bestmove"),
    "lines-boot": liner("--banner", "Welcome!\nready.", boot_until="ready.", reply_type="text/x"),
    "lines-boot-regex": liner("--banner", "v1.2\nuciok 7", boot_until_regex="^uciok"),
    "lines-send": liner(send="twice {line}\n", until_regex="."),
}


@pytest.fixture(scope="module")
def shared(start_shared_gate: Callable[..., Program]) -> Program:
    """A gate with all of these queues."""
    return start_shared_gate({"queues": QUEUES})


def healthy(gate: Program, queue: str, body: bytes = b"", expected: bytes | None = None) -> Answer:
    """The next caller is served as if nothing had happened."""
    answer = gate.call(queue, body)
    assert answer.status == 200, answer
    if expected is not None:
        assert answer.body == expected
    return answer


# --- death


def test_kill_in_mid_command_is_told_within_100_ms(shared: Program) -> None:
    """`kill -9`: 502 `worker-died` with signal and attempt, at once; and the worker is replaced."""
    delays = []
    for _ in range(5):
        shared.ready("plain")
        [pid] = shared.worker_pids("plain")

        def call() -> tuple[Answer, float]:
            return shared.call("plain", steps(("sleep", 30))), time.monotonic()

        caller = background(call)
        shared.running("plain")
        killed = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        answer, answered = result(caller)
        delays.append(answered - killed)
        assert answer.status == 502
        assert answer.slug == "worker-died"
        assert answer.json["signal"] == "SIGKILL"
        assert answer.json["attempt"] == 1
        assert answer.json["executed"] == "maybe"
        assert "exit_status" not in answer.json
        assert answer["Jobgate-Id"] == answer.json["id"]
        assert answer["Jobgate-Worker"] == "plain-1"
    assert statistics.median(delays) < DEATH_IS_KNOWN_WITHIN, delays
    assert healthy(shared, "plain").json["pid"] != pid


def test_exit_in_mid_command_gives_the_exit_status(shared: Program) -> None:
    """An exit is told as one."""
    answer = shared.call("plain", steps(("exit", 7)))
    assert (answer.status, answer.slug) == (502, "worker-died")
    assert answer.json["exit_status"] == 7
    assert "signal" not in answer.json
    healthy(shared, "plain")


def test_exit_with_status_0_in_mid_command_is_a_death(shared: Program) -> None:
    """A worker that leaves with a command in hand has died, however nicely."""
    answer = shared.call("plain", steps(("exit", 0)))
    assert (answer.status, answer.slug) == (502, "worker-died")
    assert answer.json["exit_status"] == 0


def test_with_retry_safe_the_caller_sees_only_the_success(shared: Program, tmp_path: Path) -> None:
    """Two deaths, one reply, at the third start."""
    seen = tmp_path / "seen"
    answer = shared.call("safe", steps(("note-attempt", str(seen)), ("kill-first", 2)))
    assert answer.status == 200, answer
    assert answer["Jobgate-Attempt"] == "3"
    assert answer.json["attempt"] == 3
    assert [line.split()[0] for line in lines_of(seen)] == ["1", "2", "3"]
    assert len({line.split()[1] for line in lines_of(seen)}) == 3


def test_without_retry_safe_a_command_that_began_runs_once(shared: Program, tmp_path: Path) -> None:
    """The default and `never` do not run it again."""
    for queue in ("plain", "never"):
        seen = tmp_path / queue
        answer = shared.call(queue, steps(("note-attempt", str(seen)), ("kill", 9)))
        assert answer.slug == "worker-died"
        healthy(shared, queue)
        assert len(lines_of(seen)) == 1


def test_a_poison_command_is_found_out_and_kept_out(shared: Program, tmp_path: Path) -> None:
    """`attempts` deaths alone: `poison-command`; then it is refused without a worker seeing it."""
    seen = tmp_path / "seen"
    body = steps(("note-attempt", str(seen)), ("kill", 9))
    first = shared.call("safe", body)
    assert (first.status, first.slug, first.json["executed"]) == (502, "poison-command", "maybe")
    assert first.json["attempt"] == 3
    again = shared.call("safe", body)
    assert (again.status, again.slug, again.json["executed"]) == (502, "poison-command", "no")
    assert len(lines_of(seen)) == 3
    # Another content type is another command.
    other = shared.call("safe", body, {"Content-Type": "application/json"})
    assert other.json["executed"] == "maybe"
    assert len(lines_of(seen)) == 6
    # A reload forgets.
    assert shared.post("/queues/safe/reload").status == 202
    assert shared.call("safe", body).json["executed"] == "maybe"
    healthy(shared, "safe")


def test_death_between_commands_harms_nobody(shared: Program) -> None:
    """An idle worker is killed: the next caller notices nothing."""
    shared.ready("two", 2)
    for pid in shared.worker_pids("two"):
        os.kill(pid, signal.SIGKILL)
        # Before that is known, the kernel may still hand a command to the dying process.
        eventually(lambda pid=pid: pid not in shared.worker_pids("two"), 5, every=0.001)
        healthy(shared, "two")
    shared.ready("two", 2)


def test_a_stopped_worker_is_killed_at_the_timeout(shared: Program) -> None:
    """SIGSTOP: 504 at the queue's `timeout`, and the worker, deaf to SIGTERM, is replaced."""
    shared.ready("brief")
    [pid] = shared.worker_pids("brief")
    os.kill(pid, signal.SIGSTOP)
    started = time.monotonic()
    answer = shared.call("brief")
    took = time.monotonic() - started
    assert (answer.status, answer.slug) == (504, "worker-timeout")
    assert answer.json["executed"] == "maybe"
    assert 0.4 < took < 1.5
    assert healthy(shared, "brief").json["pid"] != pid
    eventually(lambda: not alive(pid), 5, "the stopped worker is gone")


def test_a_loop_that_ignores_sigterm_is_killed(shared: Program) -> None:
    """SIGKILL follows after `kill_timeout`; the next caller does not wait for that."""
    [pid] = shared.worker_pids("brief")
    answer = shared.call("brief", steps(("stubborn", 0)))
    assert (answer.status, answer.slug) == (504, "worker-timeout")
    healthy(shared, "brief")
    eventually(lambda: not alive(pid), 5, "the stubborn worker is gone")


def test_the_timeout_of_a_queue_does_not_run_while_waiting(shared: Program) -> None:
    """Two short commands behind each other may take longer together than `timeout`."""
    callers = [background(shared.call, "brief", steps(("sleep", 0.3))) for _ in range(3)]
    assert [result(caller).status for caller in callers] == [200] * 3


# --- frames broken


@pytest.mark.parametrize(
    "body",
    [
        "garbage",
        "garbage-in-header",
        "huge",
        "over-the-limit",
        "long-meta",
        "wrong-version",
        "wrong-type",
        "gate-type",
        "second-hello",
        "bad-meta",
        "bad-status 199",
        "bad-status 600",
        "bad-type",
        "torn-closed",
        "close-stdout",
    ],
)
def test_a_broken_frame_ends_that_worker_alone(shared: Program, body: str) -> None:
    """502 `worker-protocol-error` to the caller; the next one has a new worker."""
    shared.ready("raw")
    [pid] = shared.worker_pids("raw")
    started = time.monotonic()
    answer = shared.call("raw", body.encode())
    assert (answer.status, answer.slug) == (502, "worker-protocol-error"), answer
    assert answer.json["executed"] == "maybe"
    assert answer.json["detail"]
    assert time.monotonic() - started < 5
    healthy(shared, "raw", b"fine", b"fine")
    assert shared.worker_pids("raw") != [pid]
    report = eventually(lambda: _report_of(shared, "raw-1", pid), 5, "the report is there")
    assert report["running"] == [answer["Jobgate-Id"]]
    assert report["cause"]


def _report_of(gate: Program, worker: str, pid: int) -> dict[str, Any] | None:
    answer = gate.get(f"/workers/{worker}/report")
    if answer.status != 200 or answer.json["pid"] != pid:
        return None
    report: dict[str, Any] = answer.json
    return report


def test_a_whole_reply_and_then_garbage(shared: Program) -> None:
    """The reply counts; the worker goes."""
    shared.ready("raw")
    [pid] = shared.worker_pids("raw")
    healthy(shared, "raw", b"good-then-garbage", b"good")
    eventually(lambda: _report_of(shared, "raw-1", pid), 5, "the worker has been ended")
    healthy(shared, "raw", b"fine", b"fine")


def test_torn_frame_then_eof(shared: Program) -> None:
    """The worker is gone in the middle of its reply: it has died, and nobody gets half a reply."""
    answer = shared.call("raw", b"torn-eof")
    assert answer.status == 502
    assert answer.slug in ("worker-died", "worker-protocol-error")
    healthy(shared, "raw", b"fine", b"fine")


def test_torn_frame_then_silence(shared: Program) -> None:
    """The queue's `timeout` ends it."""
    answer = shared.call("raw-brief", b"torn-silence")
    assert (answer.status, answer.slug) == (504, "worker-timeout")
    healthy(shared, "raw-brief", b"fine", b"fine")


def test_a_frame_that_comes_byte_by_byte(shared: Program) -> None:
    """Slow is not broken."""
    answer = shared.call("raw", b"bytewise")
    assert (answer.status, answer.body) == (201, b"slowly")


def test_the_wrong_id_is_dropped_and_counted(shared: Program) -> None:
    """It reaches nobody; the right one that follows does."""
    before = shared.metrics()["raw"]["stray_replies_total"]
    assert shared.call("raw", b"wrong-id").body == b"good"
    assert shared.call("raw", b"stray-chunk").body == b"good"
    assert shared.metrics()["raw"]["stray_replies_total"] == before + 3


def test_only_a_wrong_id(shared: Program) -> None:
    """Without the right one the caller gets the timeout, not somebody else's reply."""
    answer = shared.call("raw-brief", b"wrong-id-only")
    assert (answer.status, answer.slug) == (504, "worker-timeout")


def test_a_reply_twice(shared: Program) -> None:
    """The second is dropped and counted, and is not the next caller's."""
    before = shared.metrics()["raw"]["stray_replies_total"]
    assert shared.call("raw", b"twice").body == b"good"
    healthy(shared, "raw", b"mine", b"mine")
    assert shared.metrics()["raw"]["stray_replies_total"] == before + 1


def test_a_reply_after_the_deadline_never_reaches_the_next_caller(shared: Program) -> None:
    """The late reply comes together with another caller's own."""
    late = shared.call("raw-late", b"late", {"Jobgate-Timeout": "0.2"})
    assert (late.status, late.slug) == (504, "worker-timeout")
    healthy(shared, "raw-late", b"flush-late", b"good")
    healthy(shared, "raw-late", b"mine", b"mine")


def test_stdin_closed_while_alive(shared: Program) -> None:
    """It can be given nothing any more, and the one it had ends at the timeout at the latest."""
    answer = shared.call("raw-brief", b"close-stdin")
    assert answer.status in (502, 504)
    healthy(shared, "raw-brief", b"fine", b"fine")


def test_garbage_before_hello_is_logged_and_then_it_works(shared: Program) -> None:
    """Text before HELLO is a worker's own business."""
    healthy(shared, "noisy", b"fine", b"fine")
    shared.logged(r"noisy-1.*Loading the model\.\.\.", 3)


def test_garbage_before_hello_is_logged_to_its_last_line(shared: Program) -> None:
    """HELLO ends it, with or without a newline."""
    healthy(shared, "noisy", b"fine", b"fine")
    shared.logged(r"noisy-1.*no newline at the end", 3)


def test_a_chunk_and_then_garbage(shared: Program) -> None:
    """What has begun as a stream ends by a cut connection."""
    with shared.connect() as caller:
        answer = caller.request("POST", "/call/raw", b"chunk-then-garbage")
    assert answer.status == 200
    assert not answer.whole
    healthy(shared, "raw", b"fine", b"fine")


# --- noise and grandchildren


def test_100_mb_on_stderr_while_others_are_served(shared: Program) -> None:
    """A flood costs the others nothing much, and not the log everything."""
    flood = background(shared.call, "plain", steps(("flood", 100 * 1024 * 1024)), timeout=60)
    slowest, served = 0.0, 0
    while not flood.done():
        started = time.monotonic()
        healthy(shared, "two")
        slowest = max(slowest, time.monotonic() - started)
        served += 1
    assert result(flood).status == 200
    assert served
    assert slowest < 5
    assert len(shared.log) < 20 * 1024 * 1024

    def told_how_many() -> bool:
        # It is said with the first line of another second.
        shared.call("plain", steps(("complain", "and one more\n")))
        return "more lines were not logged" in shared.log

    eventually(told_how_many, 10, every=0.2)


def test_prints_never_harm_the_frames(shared: Program) -> None:
    """The SDK moves stdout aside, for the worker and for its children."""
    answer = shared.call("polite", steps(("print", "a print"), ("grandchild", 0.1)))
    assert answer.status == 200
    shared.logged(r"polite-1 \[.*\]: a print", 3)
    shared.logged(r"polite-1 \[.*\]: from a child of the worker", 3)


def test_stderr_is_logged_with_worker_and_command(shared: Program) -> None:
    """So that one can tell whose complaint it is."""
    answer = shared.call("drop", steps(("complain", "out of ideas\n")))
    shared.logged(rf"drop-1 \[{answer['Jobgate-Id']}\]: out of ideas", 3)


def test_a_grandchild_that_holds_the_pipes(shared: Program) -> None:
    """The worker's death is seen although stdout and stderr stay open; the grandchild goes too."""
    answer = shared.call("plain", steps(("grandchild", 60)))
    grandchild, pid = answer.json["grandchild"], answer.json["pid"]
    caller = background(shared.call, "plain", steps(("sleep", 30)))
    shared.running("plain")
    killed = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    assert result(caller).slug == "worker-died"
    assert time.monotonic() - killed < 2
    eventually(lambda: not alive(grandchild), 5, "the grandchild is gone")
    healthy(shared, "plain")


def test_a_grandchild_that_holds_stdout_of_a_worker_that_leaves(
    start_gate: Callable[..., Program],
) -> None:
    """A program that forks and exits before HELLO has died, whoever holds its stdout."""
    gate = start_gate(
        {"queues": {"q": {"command": ["sh", "-c", "sleep 60 & exit 3"], "workers": 1}}}
    )
    answer = gate.call("q", timeout=15)
    assert answer.slug == "no-worker"


# --- starting


def test_a_command_that_is_not_there(start_gate: Callable[..., Program]) -> None:
    """`no-worker` that names it; the gate itself is up."""
    gate = start_gate({"queues": {"q": {"command": ["no-such-program"], "workers": 1}}})
    eventually(lambda: gate.get("/readyz").json["queues"].get("q", "").count("no-such"), 15)
    answer = gate.call("q")
    assert (answer.status, answer.slug) == (503, "no-worker")
    assert int(answer["Retry-After"]) >= 1
    assert answer.json["executed"] == "no"
    assert "no-such-program" in answer.json["detail"]
    assert gate.get("/healthz").status == 200


def test_a_folder_that_is_not_there(start_gate: Callable[..., Program]) -> None:
    """The same for `cwd`."""
    queue = {"command": sdk("echo"), "workers": 1, "cwd": "no-such-folder"}
    gate = start_gate({"queues": {"q": queue}})
    eventually(lambda: "no-such-folder" in gate.get("/readyz").json["queues"].get("q", ""), 15)


def test_a_crash_loop_is_told_and_ends_when_the_program_is_mended(
    start_gate: Callable[..., Program], tmp_path: Path
) -> None:
    """/readyz says why; callers get `no-worker` with Retry-After; then it recovers by itself."""
    mended = tmp_path / "mended"
    gate = start_gate(
        {
            "queues": {
                "q": {"command": sdk("broken", str(mended)), "workers": 2},
                "fine": {"command": sdk("echo"), "workers": 1},
            }
        }
    )
    waiting = background(gate.call, "q", b"early")

    def why() -> str:
        answer = gate.get("/readyz")
        return answer.json["queues"].get("q", "") if answer.status == 503 else ""

    eventually(lambda: "status 7" in why(), 15, "/readyz says why")
    assert "fine" not in gate.get("/readyz").json["queues"]
    assert result(waiting).slug == "no-worker"
    answer = gate.call("q")
    assert (answer.status, answer.slug) == (503, "no-worker")
    assert int(answer["Retry-After"]) >= 1
    assert "this program is broken" in gate.get("/workers/q-1/report").json["output"]
    assert gate.call("fine", b"x").body == b"x"
    # In a crash loop it is not started over and over.
    before = sum(worker["restarts"] for worker in gate.workers("q"))
    time.sleep(0.3)
    assert sum(worker["restarts"] for worker in gate.workers("q")) - before < 10
    mended.touch()
    eventually(lambda: gate.get("/readyz").status == 200, 20, "ready again")
    assert gate.call("q", b"works").body == b"works"


def test_boot_timeout(start_gate: Callable[..., Program]) -> None:
    """A worker that never says HELLO is ended and started again."""
    gate = start_gate(
        {
            "queues": {
                "q": raw("--boot", "60", boot_timeout=0.3),
                "lines": liner("--banner", "not this", boot_until="ready", boot_timeout=0.3),
            }
        }
    )
    for queue in ("q", "lines"):
        report = eventually(
            lambda queue=queue: _report(gate, f"{queue}-1"), 15, "the first has been ended"
        )
        assert "boot_timeout" in report["cause"]


def _report(gate: Program, worker: str) -> dict[str, Any] | None:
    answer = gate.get(f"/workers/{worker}/report")
    report: dict[str, Any] | None = answer.json if answer.status == 200 else None
    return report


def test_a_slow_boot_is_waited_for(start_gate: Callable[..., Program]) -> None:
    """A call that came while the worker boots is served by it; the address is announced after."""
    gate = start_gate({"queues": {"q": raw("--boot", "1")}})
    assert gate.get("/readyz").status == 200
    healthy(gate, "q", b"at once", b"at once")


def test_300_descriptors_open_at_spawn(start_gate: Callable[..., Program], tmp_path: Path) -> None:
    """None of the gate's own descriptors reaches a worker."""
    files = [os.open(tmp_path / f"file-{n}", os.O_CREAT | os.O_RDWR) for n in range(300)]
    try:
        gate = start_gate({"queues": {"q": actor()}}, pass_fds=tuple(files))
    finally:
        for file in files:
            os.close(file)
    connections = [gate.connect() for _ in range(50)]
    try:
        [pid] = gate.worker_pids("q")
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: gate.worker_pids("q") not in ([], [pid]), 10)
        answer = healthy(gate, "q", steps(("descriptors", 0)))
    finally:
        for connection in connections:
            connection.close()
    # 0, 1, 2, the two that the SDK has moved aside, and the one that lists them.
    assert len(answer.json) <= 6, answer.json


def test_no_descriptors_left_for_a_new_worker(start_gate: Callable[..., Program]) -> None:
    """A worker that cannot be started is told, tried again, and there once it can be."""
    gate = start_gate({"queues": {"q": actor()}}, before_exec=_only_60_descriptors)
    [pid] = gate.worker_pids("q")
    first = gate.connect()
    assert first.request("GET", "/healthz").status == 200
    others = [gate.connect(timeout=2) for _ in range(80)]
    try:
        eventually(lambda: len(psutil.Process(gate.pid).net_connections()) > 20, 5)
        os.kill(pid, signal.SIGKILL)
        eventually(
            lambda: first.request("POST", "/call/q", b"[]").status in (502, 503), 10, every=0.2
        )
    finally:
        for connection in others:
            connection.close()
    eventually(lambda: first.request("POST", "/call/q", b"[]").status == 200, 15, every=0.2)
    gate.logged("q-1: cannot start a process: Too many open files")
    first.close()


def _only_60_descriptors() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (60, 60))


def test_the_environment_of_a_worker_is_minimal(start_gate: Callable[..., Program]) -> None:
    """No secret of the gate's own environment gets there; `env` does, PATH begins with ours."""
    gate = start_gate(
        {"queues": {"q": actor(env={"MODEL": "small"})}}, env={"A_SECRET": "of the gate"}
    )
    environment = healthy(gate, "q", steps(("environment", 0))).json
    assert "A_SECRET" not in environment
    assert environment["MODEL"] == "small"
    assert (Path(environment["PATH"].split(os.pathsep)[0]) / "python").exists()


# --- what a worker may say


def test_fail(shared: Program) -> None:
    """The worker's own words and status."""
    answer = shared.call("plain", steps(("fail", ["no such picture", "by that name", 422])))
    assert (answer.status, answer.slug) == (422, "command-failed")
    assert answer.json["title"] == "no such picture"
    assert answer.json["detail"] == "by that name"
    assert answer.json["executed"] == "yes"
    plain = shared.call("plain", steps(("fail", ["no"])))
    assert plain.status == 500
    raised = shared.call("plain", steps(("raise", "a secret <b>of</b> the code")))
    assert (raised.status, raised.slug) == (500, "command-failed")
    assert b"Traceback" not in raised.body


def test_fail_is_never_tried_again(shared: Program, tmp_path: Path) -> None:
    """Not even under `retry = "safe"`."""
    seen = tmp_path / "seen"
    answer = shared.call("safe", steps(("note-attempt", str(seen)), ("fail", ["no", None, 503])))
    assert answer.status == 503
    assert answer.slug == "command-failed"
    assert len(lines_of(seen)) == 1


def test_a_status_and_a_type_of_its_own(shared: Program) -> None:
    """A worker may choose both."""
    step = ("answer", {"body": "made", "type": "text/markdown", "status": 201})
    answer = shared.call("plain", steps(step))
    assert (answer.status, answer["Content-Type"], answer.body) == (201, "text/markdown", b"made")


@pytest.mark.parametrize("status", [204, 304])
def test_statuses_without_a_body(shared: Program, status: int) -> None:
    """A body that must not be there does not become the next response."""
    with shared.connect() as caller:
        answer = caller.request(
            "POST", "/call/plain", steps(("answer", {"body": "not to be sent", "status": status}))
        )
        assert answer.status == status
        assert "Content-Length" not in answer
        assert caller.request("POST", "/call/plain", steps(("reply", 1))).body == b"1"


def test_decline_goes_to_another_worker(shared: Program) -> None:
    """No attempt is counted, and the decliner is not asked again."""
    for _ in range(5):
        answer = shared.call("two", steps(("decline-at", ["two-1"])))
        assert answer.status == 200, answer
        assert answer["Jobgate-Worker"] == "two-2"
        assert answer.json["attempt"] == 1


def test_declined_by_all(shared: Program) -> None:
    """503 `no-worker`."""
    answer = shared.call("two", steps(("decline", 0)))
    assert (answer.status, answer.slug) == (503, "no-worker")
    assert int(answer["Retry-After"]) >= 1
    assert answer.json["executed"] == "no"
    healthy(shared, "two")


def test_progress_does_no_harm(shared: Program) -> None:
    """Nobody sees it yet; the reply comes all the same."""
    answer = shared.call("plain", steps(("progress", [1, 2, "half"]), ("progress", [2])))
    assert answer.status == 200


def test_progress_without_end_is_no_way_to_live(shared: Program) -> None:
    """The timeout counts from the start, not from the last sign of life."""
    taken = [("progress", [n]) for n in range(5)] + [("sleep", 5)]
    assert shared.call("brief", steps(*taken)).slug == "worker-timeout"


# --- callers leave: `cancel`


def _leave_while_it_runs(
    gate: Program, queue: str, body: bytes, has_begun: Callable[[], bool] = lambda: True
) -> None:
    caller = gate.connect()
    caller.send(
        b"POST /call/%b HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%b"
        % (queue.encode(), len(body), body)
    )
    gate.running(queue)
    eventually(has_begun)
    caller.close()


def test_cancel_drop(shared: Program, tmp_path: Path) -> None:
    """The command finishes; its reply is thrown away; nobody else gets it."""
    done = tmp_path / "done"
    [pid] = shared.worker_pids("drop")
    _leave_while_it_runs(
        shared, "drop", steps(("sleep", 0.4), ("note", [str(done), "finished"]), ("reply", "old"))
    )
    answer = healthy(shared, "drop")
    assert answer.json["pid"] == pid
    assert lines_of(done) == ["finished"]


def test_cancel_cooperative(shared: Program, tmp_path: Path) -> None:
    """The SDK sees CANCEL while the handler runs, and the worker lives on."""
    seen = tmp_path / "seen"
    [pid] = shared.worker_pids("polite")
    body = steps(("note", [str(seen), "begun"]), ("cancelled", str(seen)))
    _leave_while_it_runs(shared, "polite", body, lambda: bool(lines_of(seen)))
    assert healthy(shared, "polite").json["pid"] == pid
    assert [line.split()[0] for line in lines_of(seen)] == ["begun", "cancelled"]
    assert at_rest(shared, "polite")["commands_cancelled_total"] >= 1


def test_cancel_cooperative_by_jobgate_timeout(shared: Program, tmp_path: Path) -> None:
    """The caller's own deadline is treated as its leaving, and is not held against the worker."""
    seen = tmp_path / "seen"
    [pid] = shared.worker_pids("polite")
    started = time.monotonic()
    answer = shared.call("polite", steps(("cancelled", str(seen))), {"Jobgate-Timeout": "0.3"})
    assert 0.25 < time.monotonic() - started < 1.3
    assert (answer.status, answer.slug) == (504, "worker-timeout")
    assert healthy(shared, "polite").json["pid"] == pid
    assert len(lines_of(seen)) == 1


def test_cancel_kill(shared: Program, tmp_path: Path) -> None:
    """The worker is killed and replaced."""
    done = tmp_path / "done"
    [pid] = shared.worker_pids("kill")
    _leave_while_it_runs(shared, "kill", steps(("sleep", 5), ("note", [str(done), "finished"])))
    started = time.monotonic()
    assert healthy(shared, "kill").json["pid"] != pid
    assert time.monotonic() - started < 4
    eventually(lambda: not alive(pid), 5)
    assert lines_of(done) == []


def test_cancel_kill_by_jobgate_timeout(shared: Program) -> None:
    """The same for the caller's own deadline."""
    [pid] = shared.worker_pids("kill")
    answer = shared.call("kill", steps(("sleep", 5)), {"Jobgate-Timeout": "0.2"})
    assert (answer.status, answer.slug) == (504, "worker-timeout")
    assert healthy(shared, "kill").json["pid"] != pid


def test_cancel_kill_spares_a_neighbour(shared: Program, tmp_path: Path) -> None:
    """A caller that leaves a worker which runs something for another takes nobody along."""
    go, done = tmp_path / "go", tmp_path / "done"
    first = background(shared.call, "kill-ahead", steps(("until", str(go)), ("reply", "first")))
    shared.running("kill-ahead")
    with shared.connect() as gone:
        body = steps(("note", [str(done), "ran"]))
        gone.send(b"POST /call/kill-ahead HTTP/1.1\r\nHost: localhost\r\n")
        gone.send(b"Content-Length: %d\r\n\r\n%b" % (len(body), body))
        shared.running("kill-ahead", 2)
    shared.running("kill-ahead")
    go.touch()
    answer = result(first)
    assert (answer.status, answer.body) == (200, b"first")
    healthy(shared, "kill-ahead")
    assert lines_of(done) == []


@pytest.mark.parametrize("accept", ["*/*", "text/event-stream"])
def test_a_stream_whose_time_ends_while_nobody_reads(shared: Program, accept: str) -> None:
    """The gate has begun to wait for its reader; the worker does not wait along."""
    # The first part is late, so that the caller's time ends within the second it has to catch up.
    body = steps(("sleep", 0.3), ("chunks", {"count": 400, "size": 50_000}))
    with shared.connect(receive_buffer=4096) as caller:
        caller.send(
            b"POST /call/plain HTTP/1.1\r\nHost: localhost\r\nJobgate-Timeout: 0.6\r\n"
            b"Accept: %b\r\nContent-Length: %d\r\n\r\n%b" % (accept.encode(), len(body), body)
        )
        shared.running("plain")
        healthy(shared, "plain")


# --- several in flight, and a death


@pytest.mark.parametrize("bounds", [{"in_flight": 2}, {"batch": {"size": 2, "linger": "full"}}])
def test_workers_that_die_of_whatever_they_are_given(
    start_gate: Callable[..., Program], bounds: dict[str, Any]
) -> None:
    """Callers are not kept for ever, although nobody has begun what they asked for."""
    queue = raw("--in-flight", "2", "--deaf", queue_timeout=1, **bounds)
    gate = start_gate({"queues": {"q": queue}})
    callers = [background(gate.call, "q", b"%d" % number) for number in range(2)]
    for caller in callers:
        answer = result(caller)
        assert (answer.status, answer.slug) in (
            (502, "worker-died"),
            (503, "no-worker"),
            (504, "queue-timeout"),
        )
        assert answer.json["executed"] == "no"
    at_rest(gate, "q")


def _four(gate: Program, queue: str, tmp_path: Path) -> list[Answer]:
    """One that runs and kills its worker, three handed over behind it."""
    go, seen = tmp_path / "go", tmp_path / "seen"
    bodies = [steps(("note", [str(seen), "0"]), ("until", str(go)), ("kill-first", 1))]
    bodies += [steps(("note", [str(seen), str(n)]), ("reply", n)) for n in (1, 2, 3)]
    callers = []
    for count, body in enumerate(bodies, 1):
        callers.append(background(gate.call, queue, body))
        gate.running(queue, count)
    go.touch()
    return [result(caller) for caller in callers]


def test_ordered_only_the_oldest_is_blamed(shared: Program, tmp_path: Path) -> None:
    """The SDK answers in order: those behind had not begun, and start elsewhere."""
    first, *others = _four(shared, "ahead", tmp_path)
    assert (first.status, first.slug, first.json["executed"]) == (502, "worker-died", "maybe")
    assert [answer.body for answer in others] == [b"1", b"2", b"3"]
    assert {answer["Jobgate-Attempt"] for answer in others} == {"1"}
    # In their order, each once.
    assert lines_of(tmp_path / "seen") == ["0", "1", "2", "3"]


def test_ordered_and_safe_all_succeed(shared: Program, tmp_path: Path) -> None:
    """The blamed one is tried again too."""
    answers = _four(shared, "ahead-safe", tmp_path)
    assert [answer.status for answer in answers] == [200] * 4
    assert [answer["Jobgate-Attempt"] for answer in answers] == ["2", "1", "1", "1"]


def test_ordered_and_never(shared: Program, tmp_path: Path) -> None:
    """`never` is never: but those that had not begun are told so."""
    answers = _four(shared, "ahead-never", tmp_path)
    assert [answer.slug for answer in answers] == ["worker-died"] * 4
    assert [answer.json["executed"] for answer in answers] == ["maybe", "no", "no", "no"]


def test_unordered_all_may_have_begun(shared: Program) -> None:
    """A worker that promises no order may have begun all that it was given."""
    callers = [background(shared.call, "raw-three", b"die-later %d" % n) for n in range(3)]
    answers = [result(caller) for caller in callers]
    assert [answer.slug for answer in answers] == ["worker-died"] * 3
    assert [answer.json["executed"] for answer in answers] == ["maybe"] * 3
    assert [answer.json["attempt"] for answer in answers] == [1] * 3


def test_unordered_and_safe_the_innocent_are_no_poison(shared: Program) -> None:
    """A death in company blames nobody, however often: worker-died, never poison-command."""
    callers = [background(shared.call, "raw-three-safe", b"die-later %d" % n) for n in range(3)]
    answers = [result(caller) for caller in callers]
    assert [answer.slug for answer in answers] == ["worker-died"] * 3
    assert [answer.json["attempt"] for answer in answers] == [3] * 3


def test_unordered_replies_reach_their_own_callers(shared: Program) -> None:
    """Answered in reverse, each caller still gets its own."""
    for _ in range(20):
        callers = {b"%d" % n: background(shared.call, "raw-two", b"%d" % n) for n in range(2)}
        for body, caller in callers.items():
            assert result(caller).body == body


def test_answered_and_then_dead(shared: Program) -> None:
    """A reply that was written before the death counts."""
    callers = [background(shared.call, "raw-two", b"first")]
    shared.running("raw-two")
    callers.append(background(shared.call, "raw-two", b"and-die"))
    assert [result(caller).status for caller in callers] == [200, 200]
    callers = [background(shared.call, "raw-two", b"x") for _ in range(2)]
    assert [result(caller).body for caller in callers] == [b"x", b"x"]


def test_late_binding(shared: Program, tmp_path: Path) -> None:
    """With `in_flight = 1` nobody waits behind a slow neighbour while another worker is idle."""
    go = tmp_path / "go"
    slow = background(shared.call, "two", steps(("until", str(go))))
    shared.running("two")
    started = time.monotonic()
    for _ in range(20):
        healthy(shared, "two")
    assert not slow.done()
    assert time.monotonic() - started < 10
    go.touch()
    assert result(slow).status == 200


# --- reports


def test_the_crash_report(shared: Program) -> None:
    """Signal, last output, and what it was running."""
    shared.ready("plain")
    [pid] = shared.worker_pids("plain")
    answer = shared.call("plain", steps(("complain", "these are my last words\n"), ("kill", 11)))
    assert answer.json["signal"] == "SIGSEGV"
    report = eventually(lambda: _report_of(shared, "plain-1", pid), 5)
    assert report["signal"] == "SIGSEGV"
    assert report["exit_status"] is None
    assert report["running"] == [answer["Jobgate-Id"]]
    assert "these are my last words" in report["output"]
    assert shared.workers("plain")[0]["last_crash"] == "killed by SIGSEGV"
    assert len(report["output"].encode()) <= 64 * 1024


def test_the_report_keeps_the_last_64_kib(shared: Program) -> None:
    """The end is what counts."""
    shared.ready("plain")
    [pid] = shared.worker_pids("plain")
    shared.call(
        "plain",
        steps(("flood", 1024 * 1024), ("complain", "the very end\n"), ("exit", 9)),
    )
    report = eventually(lambda: _report_of(shared, "plain-1", pid), 5)
    assert report["exit_status"] == 9
    assert report["output"].endswith("the very end\n")
    assert 60 * 1024 <= len(report["output"]) <= 64 * 1024


def test_no_report_of_a_worker_that_has_not_died(shared: Program) -> None:
    """404."""
    assert shared.get("/workers/lines-send-1/report").status == 404
    assert shared.get("/workers/nobody/report").status == 404


# --- lines


def test_lines(shared: Program) -> None:
    """One line in, one line out, with the configured type and without its newline."""
    answer = healthy(shared, "lines", b"hello", b"HELLO")
    assert answer["Content-Type"] == "text/plain; charset=utf-8"
    healthy(shared, "lines", b"", b"")
    healthy(shared, "lines", "größer".encode(), "GRÖSSER".encode())


def test_lines_json_is_compacted(shared: Program) -> None:
    """Pretty-printed JSON fits a line, and its numbers keep their digits."""
    body = b'{\n  "a": [1, 2.50, 12345678901234567890123],\n  "b": "x"\n}\n'
    expected = b'{"A":[1,2.50,12345678901234567890123],"B":"X"}'
    for headers in ({"Content-Type": "application/json"}, {"Content-Type": "application/x+json"}):
        answer = shared.call("lines", body, headers)
        assert answer.body == expected


def test_lines_a_newline_in_the_body(shared: Program) -> None:
    """400 `bad-request`, and no worker sees it."""
    answer = shared.call("lines", b"one\ntwo", {"Content-Type": "text/plain"})
    assert (answer.status, answer.slug, answer.json["executed"]) == (400, "bad-request", "no")
    answer = shared.call("lines", b"{not json", {"Content-Type": "application/json"})
    assert (answer.status, answer.slug) == (400, "bad-request")
    healthy(shared, "lines", b"fine", b"FINE")


def test_lines_a_carriage_return_is_kept(shared: Program) -> None:
    """It is no newline for a `\\n` program's input."""
    assert shared.call("lines", b"a b\r").status == 200
    healthy(shared, "lines", b"fine", b"FINE")


def test_lines_until(shared: Program) -> None:
    """All lines before the one that equals it."""
    assert healthy(shared, "lines-until", b"many 3").body == b"line 0\nline 1\nline 2"
    assert healthy(shared, "lines-until", b"many 0").body == b""
    assert healthy(shared, "lines-until", b"many 50000").body.endswith(b"\nline 49999")


def test_lines_until_regex(shared: Program) -> None:
    """All lines up to and with the one that matches."""
    assert healthy(shared, "lines-regex", b"x").body == b"X\nbestmove e2e4"


def test_lines_boot_until(shared: Program) -> None:
    """The banner is logged, not answered."""
    answer = healthy(shared, "lines-boot", b"x", b"X")
    assert answer["Content-Type"] == "text/x"
    shared.logged("lines-boot-1.*Welcome!")
    healthy(shared, "lines-boot-regex", b"x", b"X")


def test_lines_send(shared: Program) -> None:
    """`send` with `{line}` replaced; a second line is one too many, and only the next is served."""
    assert shared.call("lines-send", b"a").body == b"a"
    assert shared.call("lines-send", b"b").body == b"b"


@pytest.mark.parametrize("body", [b"two", b"later"])
def test_lines_left_over_output_is_nobodys_answer(shared: Program, body: bytes) -> None:
    """It ends the worker, and the next caller gets its own line from a new one."""
    shared.ready("lines")
    [pid] = shared.worker_pids("lines")
    healthy(shared, "lines", body, b"first")
    # What comes while nothing runs is seen at once; no gate could tell it from a reply later.
    report = eventually(lambda: _report_of(shared, "lines-1", pid), 5, "the worker has been ended")
    for n in range(5):
        healthy(shared, "lines", b"after %d" % n, b"AFTER %d" % n)
    assert report["cause"]
    assert shared.worker_pids("lines") != [pid]


def test_lines_a_line_too_much_under_load(shared: Program) -> None:
    """The next caller's own line is asked for at once, and still is its own."""
    for n in range(3):
        callers = [background(shared.call, "lines-loud", b"two")]
        callers += [background(shared.call, "lines-loud", b"after %d" % k) for k in range(5)]
        answers = [result(caller) for caller in callers]
        # Right after another command's answer, nobody can tell whose these two lines are.
        if answers[0].status == 200:
            assert answers[0].body == b"first", n
        else:
            assert answers[0].slug == "worker-protocol-error", n
        bodies = [answer.body for answer in answers[1:]]
        assert bodies == [b"AFTER %d" % k for k in range(5)], n


def test_lines_death_and_half_a_line(shared: Program) -> None:
    """Half a line is no reply."""
    answer = shared.call("lines", b"die")
    assert (answer.slug, answer.json["exit_status"]) == ("worker-died", 3)
    answer = shared.call("lines", b"half")
    assert answer.status == 502
    healthy(shared, "lines", b"fine", b"FINE")


def test_lines_timeout(shared: Program) -> None:
    """A program that cannot be told is killed at the timeout."""
    assert shared.call("lines-brief", b"sleep 5").slug == "worker-timeout"
    healthy(shared, "lines-brief", b"fine", b"FINE")


def test_lines_a_caller_that_leaves_does_not_shift_the_replies(shared: Program) -> None:
    """Its late line is not the next caller's."""
    _leave_while_it_runs(shared, "lines", b"sleep 0.3")
    for n in range(3):
        healthy(shared, "lines", b"after %d" % n, b"AFTER %d" % n)


# --- after all that


def test_after_all_that_everything_is_accounted_for(shared: Program) -> None:
    """Conservation, no traceback, everybody ready."""
    for queue in QUEUES:
        at_rest(shared, queue)
    eventually(lambda: shared.get("/readyz").status == 200, 20, "everything is ready")
    shared.no_traceback()


# --- embedded


@pytest_twisted.ensureDeferred
async def test_embedded_call(embed: Any) -> None:
    """A Gate without HTTP, under the running reactor."""
    gate = await embed({"queues": {"q": actor(workers=2), "raw": raw()}})
    reply = await gate.call("q", steps(("reply", "hi")))
    assert (reply.status, reply.body) == (200, b"hi")
    with pytest.raises(errors.UnknownQueue):
        await gate.call("nothing", b"")
    with pytest.raises(errors.WorkerDied) as died:
        await gate.call("q", steps(("kill", 9)))
    assert died.value.extra["signal"] == "SIGKILL"
    with pytest.raises(errors.WorkerProtocolError):
        await gate.call("raw", b"garbage")


@pytest_twisted.ensureDeferred
async def test_embedded_cancel(embed: Any, tmp_path: Path) -> None:
    """Cancelling the Deferred is leaving."""
    from twisted.internet import reactor
    from twisted.internet.defer import CancelledError
    from twisted.internet.task import deferLater

    gate = await embed({"queues": {"q": actor()}})
    seen = tmp_path / "seen"
    running = gate.call("q", steps(("note", [str(seen), "begun"]), ("cancelled", str(seen))))
    for _ in range(500):
        if lines_of(seen):
            break
        await deferLater(reactor, 0.01)
    waiting = gate.call("q", steps(("note", [str(seen), "must not run"])))
    waiting.cancel()
    running.cancel()
    for call in (waiting, running):
        with pytest.raises(CancelledError):
            await call
    assert (await gate.call("q", steps(("reply", 1)))).body == b"1"
    assert [line.split()[0] for line in lines_of(seen)] == ["begun", "cancelled"]


@pytest_twisted.ensureDeferred
async def test_embedded_stop_with_work_in_hand(embed: Any) -> None:
    """Whoever still waits is told."""
    gate = await embed({"queues": {"q": actor()}})
    calls = [gate.call("q", steps(("sleep", 30))) for _ in range(3)]
    stopped = gate.stop(hurry=True)
    for call in calls:
        with pytest.raises(errors.ShuttingDown):
            await call
    await stopped
