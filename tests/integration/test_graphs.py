"""
Graphs as their submitters see them, with real workers in real queues.
"""

from __future__ import annotations

import hashlib
import json
import time
from base64 import b64decode, b64encode
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

import pytest
from program import at_rest, eventually, lines_of, sdk

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import StartGate
    from program import Program
    from raw_http import Answer

pytestmark = pytest.mark.timeout(120)

NODE = {"command": sdk("node"), "workers": 2, "backoff": {"first": 0.05, "jitter": 0}}
LINE = {"command": ["python", "-u", "-c", "while 1: print(input()[::-1])"], "protocol": "lines"}
QUEUES = {"node": NODE, "other": {**NODE, "workers": 1}, "line": {**LINE, "workers": 1}}
MEMORY = {"gate": {"store": "memory:"}, "queues": QUEUES}
WAIT = {"Prefer": "wait=30"}


@pytest.fixture(scope="module")
def gate(start_shared_gate: StartGate) -> Program:
    """A gate that the tests share which need none of their own."""
    return start_shared_gate(MEMORY)


def job(queue: str = "node", *needs: str, **told: Any) -> dict[str, Any]:
    """A job as it is submitted; `when` and `delay` are its own, all else is for the worker."""
    own = {key: told.pop(key) for key in ("when", "delay", "priority") if key in told}
    return {"queue": queue, "body": told, "needs": list(needs), **own}


def submit(gate: Program, jobs: dict[str, Any], headers: dict[str, str] | None = None) -> Answer:
    """`POST /graphs`."""
    return gate.post("/graphs", json.dumps({"jobs": jobs}).encode(), headers)


def whole(gate: Program, jobs: dict[str, Any]) -> dict[str, Any]:
    """Submit, wait, and return the results."""
    answer = submit(gate, jobs, WAIT)
    assert answer.status == 200, (answer.status, answer.body)
    found: dict[str, Any] = answer.json
    return found


def states(gate: Program, name: str) -> dict[str, str]:
    """The state of each job of a graph."""
    return {n: its["state"] for n, its in gate.get(f"/graphs/{name}").json["jobs"].items()}


def inputs(result: dict[str, Any]) -> dict[str, Any]:
    """What a node was handed, by name: parsed if it is JSON."""
    found = {}
    for name, kind, text in result["reply"]["inputs"]:
        found[name] = json.loads(text) if kind.endswith("json") else text
    return found


def problem(answer: Answer) -> tuple[int, str, str]:
    """Status, slug and detail of a problem."""
    document = answer.json
    return answer.status, document["type"].removeprefix("/problems/"), document["detail"]


def test_a_whole_graph_in_one_answer(start_gate: StartGate, front: str) -> None:
    """One request, jobs in three queues, one answer with everything that came of it."""
    gate = start_gate(MEMORY, front=front)
    jobs = {
        "text": {"queue": "line", "body_base64": b64encode(b"desserts").decode()},
        "raw/1": {"queue": "node", "body_base64": b64encode(b"{}").decode()},
        "left": job("node", "text", "raw/1", side="left"),
        "right": job("other", "text", side="right"),
        "join": {"queue": "other", "needs": ["right", "left", "text"]},
    }
    answer = submit(gate, jobs, {**WAIT, "traceparent": f"00-{'a' * 32}-{'b' * 16}-01"})
    assert answer.status == 200
    assert answer["preference-applied"] == "wait=30"
    found = answer.json
    assert answer["location"] == f"/graphs/{found['id']}"
    assert found["state"] == "succeeded"
    assert list(found["jobs"]) == list(jobs)
    assert {its["state"] for its in found["jobs"].values()} == {"succeeded"}
    results = found["jobs"]
    assert results["text"]["reply"] == "stressed"
    assert results["text"]["content_type"] == "text/plain; charset=utf-8"
    assert results["left"]["reply"]["told"] == {"side": "left"}
    assert results["left"]["reply"]["headers"] == {"traceparent": f"00-{'a' * 32}-{'b' * 16}-01"}
    assert list(inputs(results["left"])) == ["text", "raw/1"]
    handed = inputs(results["join"])
    assert list(handed) == ["right", "left", "text"]
    assert handed["text"] == "stressed"
    assert handed["left"] == results["left"]["reply"]

    again = gate.get(f"/graphs/{found['id']}/result")
    assert (again.status, again.json) == (200, found)
    state = gate.get(f"/graphs/{found['id']}").json
    assert (state["state"], state["counts"]) == ("succeeded", {"succeeded": 5})
    assert state["finished"] >= state["created"]
    assert state["jobs"]["join"]["needs"] == dict.fromkeys(["right", "left", "text"], "succeeded")
    one = gate.get(f"/jobs/{results['join']['id']}").json
    assert one["links"]["graph"] == f"/graphs/{found['id']}"
    for name in ("left", "raw%2F1", "raw/1"):
        handed_out = gate.get(f"/jobs/{results['left']['id']}/inputs/{name}")
        wanted = 404 if name == "left" else 200
        assert handed_out.status == wanted, name
    assert handed_out.json == results["raw/1"]["reply"]
    gate.conserved()


def test_bytes(gate: Program) -> None:
    """Any bytes go in, through and out; what is no text comes as base64."""
    size = 1_000_000
    found = whole(gate, {"a": job(size=size), "b": job("other", "a")})["jobs"]
    assert b64decode(found["a"]["reply_base64"]) == bytes(size)
    assert "reply" not in found["a"]
    assert found["a"]["content_type"] == "application/octet-stream"
    ((name, kind, text),) = found["b"]["reply"]["inputs"]
    assert (name, kind, text) == ("a", "application/octet-stream", "\0" * size)


def test_text_of_no_type(start_gate: StartGate) -> None:
    """What a worker sends back as bytes can be read, if it is text."""
    gate = start_gate({"queues": {"echo": {"command": sdk("echo"), "workers": 1}}})
    sent = {"text": "größer\n".encode(), "latin": b"gr\xf6\xdfer", "nothing": b""}
    jobs = {
        name: {"queue": "echo", "body_base64": b64encode(body).decode()}
        for name, body in sent.items()
    }
    found = whole(gate, jobs)["jobs"]
    assert {name: b64decode(job["reply_base64"]) for name, job in found.items()} == sent
    replies = {name: job["reply"] for name, job in found.items() if "reply" in job}
    assert replies == {"text": "größer\n", "nothing": ""}


def test_growth(gate: Program) -> None:
    """Jobs bring jobs, which bring jobs; what needed the first waits for all of them."""
    leaf = job()
    branch = job(jobs={"1.1": leaf, "1.2": job("other", "1.1"), "1.3": job("node", "start")})
    start = job(jobs={"1": branch, "2": job(n=2), "line": {"queue": "line", "body": "ab"}})
    found = whole(gate, {"start": start, "end": job("other", "start"), "beside": job()})
    assert found["state"] == "succeeded"
    assert list(found["jobs"]) == [
        *("start", "end", "beside"),
        *("1", "2", "line"),
        *("1.1", "1.2", "1.3"),
    ]
    handed = inputs(found["jobs"]["end"])
    assert list(handed) == ["start", "1", "2", "line", "1.1", "1.2", "1.3"]
    assert handed["line"] == '"ba"'
    assert list(inputs(found["jobs"]["1.2"])) == ["1.1"]
    assert inputs(found["jobs"]["1.3"])["start"] == found["jobs"]["start"]["reply"]
    assert inputs(found["jobs"]["beside"]) == {}


@pytest.mark.parametrize(
    ("jobs", "words"),
    [
        ({"x": {"queue": "nowhere"}}, ["jobs.x.queue", "nowhere"]),
        ({"start": job()}, ["jobs.start", "already"]),
        ({"x": job("node", "ghost")}, ["jobs.x.needs[0]", "ghost"]),
        ({"x": job("node", "end")}, ["cycle"]),
        ({"x": job("node", "y"), "y": job("node", "x")}, ["x -> y -> x"]),
        ([1], ["jobs"]),
    ],
)
def test_growth_that_cannot_be(gate: Program, jobs: Any, words: list[str]) -> None:
    """The job that brought it fails and says why; its worker lives; nothing of it is stored."""
    before = gate.worker_pids("node")
    found = whole(gate, {"start": job(jobs=jobs), "end": job("other", "start")})
    assert found["state"] == "failed"
    error = found["jobs"]["start"]["error"]
    assert (error["type"], error["executed"]) == ("/problems/worker-protocol-error", "yes")
    for word in words:
        assert word in error["detail"]
    assert found["jobs"]["end"]["state"] == "cancelled"
    assert list(found["jobs"]) == ["start", "end"]
    assert gate.worker_pids("node") == before


def test_growth_outside_of_graphs(start_gate: StartGate) -> None:
    """For a call or a pushed job there is nothing to grow: the worker has broken the protocol."""
    gate = start_gate(MEMORY)
    body = json.dumps({"jobs": {"x": job()}}).encode()
    assert problem(gate.call("node", body))[:2] == (502, "worker-protocol-error")
    pushed = gate.post("/push/node", body).json["id"]
    assert problem(gate.get(f"/jobs/{pushed}/result?wait=20"))[:2] == (502, "worker-protocol-error")
    gate.conserved()


def test_failure(gate: Program) -> None:
    """What cannot run is cancelled with the reason; what need not care is handed the problem."""
    found = whole(
        gate,
        {
            "bad": job(fail="it went wrong"),
            "next": job("node", "bad"),
            "last": job("node", "next"),
            "tidy": job("other", "bad", "next", "good", when="finished"),
            "good": job(),
            "after": job("node", "good"),
        },
    )
    results = found["jobs"]
    assert found["state"] == "failed"
    assert {name: its["state"] for name, its in results.items()} == {
        "bad": "failed",
        "next": "cancelled",
        "last": "cancelled",
        "tidy": "succeeded",
        "good": "succeeded",
        "after": "succeeded",
    }
    assert (results["bad"]["error"]["title"], results["bad"]["error"]["status"]) == (
        "it went wrong",
        409,
    )
    assert results["next"]["error"]["detail"] == "it needed bad, which is failed"
    assert results["last"]["error"]["detail"] == "it needed next, which is cancelled"
    assert results["next"]["error"]["executed"] == "no"
    handed = inputs(results["tidy"])
    assert handed["bad"]["type"] == "/problems/command-failed"
    assert handed["next"]["type"] == "/problems/cancelled"
    assert handed["good"] == results["good"]["reply"]


def test_a_worker_dies(gate: Program) -> None:
    """Jobs of graphs are tried again as any job is, and the graph goes on."""
    found = whole(gate, {"a": job(kill=1), "b": job("other", "a"), "c": job(kill=9)})
    assert {name: its["state"] for name, its in found["jobs"].items()} == {
        "a": "succeeded",
        "b": "succeeded",
        "c": "dead",
    }
    assert found["state"] == "failed"


def test_refusals(start_gate: StartGate) -> None:
    """What is wrong is named by its path, and nothing is stored."""
    gate = start_gate(MEMORY)

    def refused(document: bytes | dict[str, Any], *words: str, status: int = 422) -> None:
        body = document if isinstance(document, bytes) else json.dumps(document).encode()
        answer = gate.post("/graphs", body, WAIT)
        found, slug, detail = problem(answer)
        assert (found, slug) == (status, "unprocessable" if status == 422 else "bad-request")
        for word in words:
            assert word in detail, detail

    refused(b"{", "JSON", status=400)
    refused(b"\xff", "JSON", status=400)
    refused({"jobs": {}}, "jobs", "at least one")
    refused({"job": {}}, "job")
    refused({"jobs": {"a": job(), "b": job("nowhere")}}, "jobs.b.queue", "nowhere")
    refused({"jobs": {"a": job(), "b": job("node", "c")}}, "jobs.b.needs[0]", '"c"')
    cycle = {"a": job("node", "c"), "b": job("node", "a"), "c": job("node", "b"), "d": job()}
    refused({"jobs": cycle}, "jobs.a.needs", "a -> c -> b -> a")
    refused({"jobs": {"a": job(), "b": job("line", "a")}}, "jobs.b.needs", "line")
    refused({"jobs": {"a": {"queue": "node", "body_base64": "?"}}}, "jobs.a.body_base64")
    assert gate.get("/jobs").json["jobs"] == []
    assert gate.conserved()["node"]["commands_accepted_total"] == 0
    assert problem(gate.get("/graphs/gate-1"))[:2] == (404, "unknown-job")
    assert problem(gate.get("/graphs/gate-1.svg"))[:2] == (404, "unknown-job")
    assert gate.get("/graphs").status == 405
    pushed = gate.post("/push/node", b"{}").json["id"]
    assert gate.get(f"/graphs/{pushed}").status == 404


def test_not_in_time(gate: Program, tmp_path: Path) -> None:
    """Who cannot wait for so long gets 202 and comes back; a wait ends with the graph."""
    go = tmp_path / "go"
    jobs = {"a": job(until=str(go)), "b": job("other", "a")}
    answer = submit(gate, jobs, {"Prefer": "wait=0"})
    assert answer.status == 202
    assert set(answer.json) == {"id", "jobs"}
    assert list(answer.json["jobs"]) == ["a", "b"]
    name = answer.json["id"]
    early = gate.get(f"/graphs/{name}/result?wait=0.05")
    assert (early.status, early.json["state"]) == (202, "running")
    assert states(gate, name)["b"] == "blocked"
    with ThreadPoolExecutor(4) as pool:
        paths = [f"/graphs/{name}/result?wait=60"] * 3
        asked = time.monotonic()
        waiting = [pool.submit(gate.get, path) for path in paths]
        time.sleep(0.05)
        go.touch()
        answers = [future.result() for future in waiting]
    assert time.monotonic() - asked < 50
    assert [answer.status for answer in answers] == [200] * 3
    assert answers[0].json["state"] == "succeeded"
    for bad in ("wait=x", "wait=-1", "other=1"):
        assert gate.get(f"/graphs/{name}/result?{bad}").status == 400


def test_cancel(start_gate: StartGate, tmp_path: Path) -> None:
    """All that has not ended ends, what runs is told, and its late reply changes nothing."""
    gate = start_gate(MEMORY)
    jobs = {
        "done": job(),
        "runs": job("other", "done", until=str(tmp_path / "never")),
        "waits": job("node", "runs", when="finished"),
    }
    name = submit(gate, jobs).json["id"]
    eventually(lambda: states(gate, name)["runs"] == "running", what="it runs")
    cancelled = gate.request("DELETE", f"/graphs/{name}")
    assert (cancelled.status, cancelled.json["state"]) == (200, "cancelled")
    assert {n: its["state"] for n, its in cancelled.json["jobs"].items()} == {
        "done": "succeeded",
        "runs": "cancelled",
        "waits": "cancelled",
    }
    found = gate.get(f"/graphs/{name}/result").json
    assert "cancelled by request" in found["jobs"]["waits"]["error"]["detail"]
    assert found["jobs"]["runs"]["error"]["executed"] == "maybe"
    assert problem(gate.request("DELETE", f"/graphs/{name}"))[:2] == (409, "wrong-state")
    at_rest(gate, "other")
    assert whole(gate, {"a": job("other")})["state"] == "succeeded"
    assert states(gate, name)["runs"] == "cancelled"
    gate.conserved()


def test_one_job_is_cancelled(gate: Program, tmp_path: Path) -> None:
    """What needs it cannot run any more; the rest of the graph goes on."""
    go = tmp_path / "go"
    jobs = {"a": job(until=str(go)), "b": job("other", "a"), "c": job("other", "b"), "d": job()}
    made = submit(gate, jobs).json
    assert gate.request("DELETE", f"/jobs/{made['jobs']['b']}").status == 200
    go.touch()
    found = gate.get(f"/graphs/{made['id']}/result?wait=30").json
    assert [its["state"] for its in found["jobs"].values()] == [
        *("succeeded", "cancelled", "cancelled", "succeeded"),
    ]
    assert found["state"] == "cancelled"


def test_the_gate_is_killed(start_gate: StartGate, tmp_path: Path) -> None:
    """After `kill -9` in the middle every graph ends as it would have, and nothing runs twice."""
    notes, go, begin = tmp_path / "notes", tmp_path / "go", tmp_path / "begin"
    config = {"gate": {"store": "sqlite:jobs.db"}, "queues": QUEUES}
    gate = start_gate(config)
    graphs = {}
    for number in range(8):
        # None is done before the last graph has come: what the first two grow to holds both workers
        first = job(note=[str(notes), f"{number} first"], until=str(begin))
        grows = job(
            "other",
            "first",
            note=[str(notes), f"{number} grows"],
            jobs={"more": job("node", "grows", until=str(go)), "line": {"queue": "line"}},
        )
        last = job("node", "grows", note=[str(notes), f"{number} last"])
        graphs[number] = submit(gate, {"first": first, "grows": grows, "last": last}).json["id"]
    begin.touch()

    def ended() -> set[str]:
        """What the gate says has succeeded, in the words of the notes."""
        return {
            f"{number} {key}"
            for number, name in graphs.items()
            for key, state in states(gate, name).items()
            if state == "succeeded"
        }

    eventually(
        lambda: sum("grows" in line for line in ended()) >= 3, 30, "three have grown", every=0
    )
    finished = ended()
    gate.kill()
    before = lines_of(notes)
    go.touch()
    gate = start_gate(config)
    for name in graphs.values():
        found = gate.get(f"/graphs/{name}/result?wait=60")
        assert found.status == 200, found.body
        assert found.json["state"] == "succeeded"
        results = found.json["jobs"]
        assert list(results) == ["first", "grows", "last", "more", "line"]
        assert list(inputs(results["last"])) == ["grows", "more", "line"]
        assert inputs(results["grows"])["first"] == results["first"]["reply"]
    gate.conserved()
    after = lines_of(notes)
    assert after[: len(before)] == before
    # What the store had not yet seen end may have run twice; nothing else may.
    assert not [line for line in finished if after.count(line) > 1]
    assert max(after.count(line) for line in after) <= 2
    assert {line for line in after if line.endswith("last")} == {f"{n} last" for n in range(8)}


def test_idempotency_key(gate: Program) -> None:
    """The same key stands for the same graph, whatever it grows to; another body is refused."""
    jobs = {"a": job(jobs={"b": job()})}
    headers = {"Idempotency-Key": '"once"'}
    first = submit(gate, jobs, headers)
    name = first.json["id"]
    assert gate.get(f"/graphs/{name}/result?wait=30").status == 200
    again = submit(gate, jobs, headers)
    assert (again.status, again.body) == (202, first.body)
    assert again["idempotency-replayed"] == "true"
    results = submit(gate, jobs, {**headers, **WAIT})
    assert (results.status, results.json["id"]) == (200, name)
    assert list(results.json["jobs"]) == ["a", "b"]
    assert results["idempotency-replayed"] == "true"
    other = submit(gate, {"a": job()}, headers)
    assert problem(other)[:2] == (422, "unprocessable")
    assert "Idempotency-Key" in other.json["detail"]


def test_tokens(start_gate: StartGate) -> None:
    """A graph needs the right to push to all its queues, its growth too; others see nothing."""
    rights = {
        "all": ["push:*"],
        "some": ["push:node", "push:other"],
        "puller": ["pull:other"],
        "reader": ["jobs"],
    }
    tokens = [
        {"name": name, "sha256": hashlib.sha256(name.encode()).hexdigest(), "allow": allow}
        for name, allow in rights.items()
    ]
    gate = start_gate({**MEMORY, "tokens": tokens})

    def of(name: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {name}"}

    jobs = {"a": job(), "b": job("other", "a")}
    assert problem(submit(gate, jobs, of("reader")))[:2] == (403, "forbidden")
    assert submit(gate, jobs).status == 401
    lines = {**jobs, "c": {"queue": "line"}}
    assert "push:line" in problem(submit(gate, lines, of("some")))[2]
    made = submit(gate, jobs, {**of("some"), **WAIT})
    assert made.status == 200
    name, second = made.json["id"], made.json["jobs"]["b"]["id"]
    for path in (f"/graphs/{name}", f"/graphs/{name}/result", f"/graphs/{name}.svg"):
        assert gate.get(path, of("some")).status == 200
        assert gate.get(path, of("reader")).status == 200
        assert gate.get(path, of("all")).status == 403
        assert gate.get(path).status == 401
    assert gate.request("DELETE", f"/graphs/{name}", None, of("all")).status == 403
    assert gate.get(f"/jobs/{second}/inputs/a", of("puller")).status == 200
    assert gate.get(f"/jobs/{second}/inputs/a", of("some")).status == 200
    assert gate.get(f"/jobs/{second}/inputs/a", of("all")).status == 403

    grows = {"a": job(jobs={"x": {"queue": "line", "body": "ab"}})}
    refused = submit(gate, grows, {**of("some"), **WAIT}).json["jobs"]["a"]["error"]
    assert "may not push to 'line'" in refused["detail"]
    allowed = submit(gate, grows, {**of("all"), **WAIT}).json
    assert allowed["jobs"]["x"]["state"] == "succeeded"


def test_pullers_take_part(start_gate: StartGate) -> None:
    """Who pulls a job fetches its inputs by name, and the graph goes on with the reply."""
    gate = start_gate({**MEMORY, "queues": {**QUEUES, "pulled": {}}})
    jobs = {"in/1": job(n=1), "bad": job(fail="no"), "mid": job("pulled", "in/1", n=2)}
    jobs["any"] = {**job("pulled", "bad", n=3), "when": "finished"}
    jobs["end"] = job("other", "mid")
    made = submit(gate, jobs).json
    for _ in range(2):
        pulled = gate.get("/pull/pulled?lease=30&wait=20")
        assert pulled.status == 200
        name = pulled["jobgate-id"]
        if pulled.json == {"n": 2}:
            assert name == made["jobs"]["mid"]
            fetched = gate.get(f"/jobs/{name}/inputs/in%2F1")
            assert (fetched.status, fetched.json["told"]) == (200, {"n": 1})
        else:
            fetched = gate.get(f"/jobs/{name}/inputs/bad")
            assert fetched.json["type"] == "/problems/command-failed"
            assert fetched["content-type"] == "application/problem+json"
        assert gate.get(f"/jobs/{name}/inputs/none").status == 404
        lease = {"Jobgate-Lease": pulled["jobgate-lease"], "Content-Type": "text/plain"}
        assert gate.post(f"/jobs/{name}/reply", b"pulled", lease).status == 200
    results = gate.get(f"/graphs/{made['id']}/result?wait=30").json["jobs"]
    assert results["mid"]["reply"] == "pulled"
    assert inputs(results["end"])["mid"] == "pulled"


def test_graphs_make_no_queues(gate: Program) -> None:
    """Not even where a push would."""
    answer = submit(gate, {"a": job("made-up")})
    assert problem(answer)[:2] == (422, "unprocessable")
    assert "made-up" not in {queue["name"] for queue in gate.get("/queues").json["queues"]}


def test_inputs_over_the_limit(start_gate: StartGate) -> None:
    """What cannot be handed over fails with 422, before its worker has seen anything of it."""
    gate = start_gate(MEMORY)
    size = 33 * 1024 * 1024
    jobs = {"a": job(size=size), "b": job(size=size), "join": job("other", "a", "b")}
    found = whole(gate, {**jobs, "one": job("other", "a", size=1)})
    error = found["jobs"]["join"]["error"]
    assert (error["status"], error["type"]) == (422, "/problems/unprocessable")
    assert found["jobs"]["join"]["state"] == "failed"
    assert found["jobs"]["one"]["state"] == "succeeded"
    # A reply that is too large to stand in the answer is only linked to.
    link = found["jobs"]["a"]["link"]
    assert "reply_base64" not in found["jobs"]["a"]
    assert len(gate.get(link).body) == size


def test_delay(gate: Program) -> None:
    """A delay counts from the submission; what is needed must end all the same."""
    begun = time.monotonic()
    found = whole(gate, {"a": job(), "b": job("other", "a", delay=0.8), "c": job("other", "b")})
    assert time.monotonic() - begun >= 0.8
    assert found["state"] == "succeeded"


def test_picture(gate: Program) -> None:
    """An SVG that any XML parser reads, with a box for each job."""
    names = {"a", "b&<c>", 'd"e'}
    found = whole(gate, {name: job() for name in names})
    answer = gate.get(f"/graphs/{found['id']}.svg")
    assert (answer.status, answer["content-type"]) == (200, "image/svg+xml")
    assert "default-src 'none'" in answer["content-security-policy"]
    root = ET.fromstring(answer.body)
    texts = {text.text for text in root.iter("{http://www.w3.org/2000/svg}text")}
    assert names <= texts


def test_a_large_graph(gate: Program) -> None:
    """Thousands of jobs in layers, each with inputs from the layer before."""
    layers, width = 20, 100
    jobs = {}
    for layer in range(layers):
        for n in range(width):
            above = [f"{layer - 1}-{(n + k) % width}" for k in range(3)] if layer else []
            told = {} if layer == layers - 1 else {"text": f"{layer} {n}"}
            jobs[f"{layer}-{n}"] = job("node", *above, **told)
    document = json.dumps({"jobs": jobs}).encode()
    found = gate.post("/graphs", document, {"Prefer": "wait=100"}, timeout=110).json
    assert found["state"] == "succeeded"
    assert len(found["jobs"]) == layers * width
    last = inputs(found["jobs"][f"{layers - 1}-0"])
    assert last == {f"{layers - 2}-{k}": f"{layers - 2} {k}" for k in range(3)}
    picture = gate.get(f"/graphs/{found['id']}.svg")
    assert "2,000 jobs, succeeded" in picture.body.decode()
    gate.conserved()


def test_outcomes_go(start_gate: StartGate) -> None:
    """Past `result_ttl` it is only known that there was a graph."""
    queues = {"node": {**NODE, "result_ttl": 0.3}}
    gate = start_gate({**MEMORY, "queues": queues})
    name = whole(gate, {"a": job(), "b": job("node", "a")})["id"]
    eventually(lambda: gate.get(f"/graphs/{name}/result").status == 410, what="it is gone")
    assert states(gate, name) == {"a": "succeeded", "b": "succeeded"}
