"""
The end of a job reaches who asked for it, through whatever happens on the way.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
import tomllib
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import asking
import pytest
import pytest_twisted
from asking import job, until
from certificates import Authority
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hmac import HMAC
from example_gate import EXAMPLES
from program import sdk, twistd
from receiver import Received, Receiver

from jobgate import errors
from jobgate.command import Command
from jobgate.config import CallbackSettings
from jobgate.gate.foreman import Foreman
from jobgate.gate.road import Road
from jobgate.jobs.callbacks import QUEUE, Callbacks
from jobgate.jobs.job import State, callback
from jobgate.testing import Recorder

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from program import Program

    StartGate = Callable[..., Program]

pytestmark = pytest.mark.timeout(90)

KEY = bytes(range(32))
SECRET = "whsec_" + base64.b64encode(KEY).decode()
LOCAL = ["127.0.0.0/8"]


def tables(**callbacks: Any) -> dict[str, Any]:
    """A gate with a store, one queue and callbacks to this machine."""
    return {
        "gate": {"store": "sqlite:jobs.db", "drain_timeout": 5},
        "callbacks": {"secret": SECRET, "allow": LOCAL, **callbacks},
        "queues": {"q": {"command": sdk("actor"), "workers": 2, "attempts": 1}},
    }


def push(gate: Program, url: str, *steps: tuple[str, Any], queue: str = "q") -> str:
    """Push a job whose end is to be told there; its id."""
    return asking.push(gate, queue, asking.steps(*steps), {"Jobgate-Callback": url})


def verify(received: Received, key: bytes = KEY) -> None:
    """Standard Webhooks, worked out by other hands than ours."""
    name, sent = received.headers["webhook-id"], received.headers["webhook-timestamp"]
    assert abs(time.time() - int(sent)) < 60
    mac = HMAC(key, SHA256())
    mac.update(name.encode() + b"." + sent.encode() + b"." + received.body)
    version, _, signature = received.headers["webhook-signature"].partition(",")
    assert version == "v1"
    mac.verify(base64.b64decode(signature, validate=True))


def test_every_end_is_told(start_gate: StartGate) -> None:
    """The receiver gets the state document of a job that has ended, signed, once."""
    gate = start_gate(tables())
    with Receiver() as receiver:
        good = push(gate, receiver.url("/a?b=c"), ("reply", "x"))
        told = receiver.next()
        assert told.path == "/a?b=c"
        assert told.headers["content-type"] == "application/json"
        assert told.headers["webhook-id"] == f"{good}-succeeded"
        verify(told)
        document = json.loads(told.body)
        assert (document["id"], document["state"]) == (good, "succeeded")
        assert document == job(gate, good)

        bad = push(gate, receiver.url(), ("fail", ["No", "why", 422, False]))
        told = receiver.next()
        verify(told)
        assert told.headers["webhook-id"] == f"{bad}-failed"
        assert json.loads(told.body)["error"]["title"] == "No"

        dead = push(gate, receiver.url(), ("exit", 3))
        told = receiver.next()
        assert told.headers["webhook-id"] == f"{dead}-dead"

        for name in (f"{good}-succeeded", f"{bad}-failed", f"{dead}-dead"):
            assert until(gate, name, "succeeded")["attempt"] == 1
            assert gate.get(f"/jobs/{name}/result").json == {"status": 204}
        assert len(receiver.requests) == 3
        numbers = gate.conserved()["~callbacks"]
        assert (numbers["commands_accepted_total"], numbers["commands_succeeded_total"]) == (3, 3)


def test_a_cancelled_job_is_told(start_gate: StartGate) -> None:
    """A cancelled job has ended, too."""
    gate = start_gate(tables())
    with Receiver() as receiver:
        answer = gate.post(
            "/push/q", b"[]", {"Jobgate-Callback": receiver.url(), "Jobgate-Delay": "600"}
        )
        name = answer.json["id"]
        assert gate.request("DELETE", f"/jobs/{name}").status == 200
        told = receiver.next()
        assert told.headers["webhook-id"] == f"{name}-cancelled"
        assert json.loads(told.body)["state"] == "cancelled"


def test_tried_again(start_gate: StartGate) -> None:
    """A receiver that is in trouble is asked again, with the same id and a new time."""
    gate = start_gate(tables())
    with Receiver(500, 503) as receiver:
        name = push(gate, receiver.url())
        first, second, third = (receiver.next() for _ in range(3))
        for told in (first, second, third):
            verify(told)
            assert told.headers["webhook-id"] == f"{name}-succeeded"
            assert told.body == first.body
        assert int(third.headers["webhook-timestamp"]) > int(first.headers["webhook-timestamp"])
        document = until(gate, f"{name}-succeeded", "succeeded")
        assert (document["attempt"], document["attempts"]) == (3, 10)


def test_a_receiver_that_wants_no_more(start_gate: StartGate) -> None:
    """410 Gone ends it at once."""
    gate = start_gate(tables())
    with Receiver(410) as receiver:
        name = push(gate, receiver.url())
        document = until(gate, f"{name}-succeeded", "failed")
        assert document["error"]["type"] == "/problems/command-failed"
        assert "answered 410" in document["error"]["detail"]
        assert len(receiver.requests) == 1


def test_no_redirects(start_gate: StartGate) -> None:
    """Where a receiver sends us is not where its sender wanted it."""
    gate = start_gate(tables())
    with (
        Receiver() as other,
        Receiver(*[307] * 20, headers={"Location": other.url()}) as receiver,
    ):
        name = push(gate, receiver.url())
        document = until(gate, f"{name}-succeeded", "scheduled")
        at = f"127.0.0.1:{receiver.port}"
        wanted = f"{at} answered 307, wanted 200 to 299; redirects are not followed"
        assert [one["error"]["detail"] for one in document["tries"]] == [wanted]
        assert document["why"].startswith("back-off after attempt 1")
        receiver.next()
        receiver.next()
        assert other.requests == []


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.1", "[::ffff:127.0.0.1]"])
def test_private_addresses(start_gate: StartGate, host: str) -> None:
    """Unless the operator allows it, nobody reaches through the gate what they cannot reach."""
    gate = start_gate(tables(allow=[]))
    with Receiver() as receiver:
        name = push(gate, receiver.url(host=host))
        document = until(gate, f"{name}-succeeded", "failed")
        assert "(loopback)" in document["error"]["detail"]
        assert "[callbacks] allow" in document["error"]["detail"]
        assert job(gate, name)["state"] == "succeeded"
        assert receiver.requests == []


def test_without_a_secret(start_gate: StartGate) -> None:
    """They have an id and a time then, and no signature."""
    gate = start_gate(tables(secret=""))
    with Receiver() as receiver:
        name = push(gate, receiver.url())
        told = receiver.next()
        assert told.headers["webhook-id"] == f"{name}-succeeded"
        assert "webhook-signature" not in told.headers


@pytest.mark.parametrize(
    "url", ["ftp://example.com/", "http://user@example.com/", "x", "http://a/ b", "http://\xfc/"]
)
def test_bad_urls(shared: Program, url: str) -> None:
    """They are refused when the job is pushed, with the field's name."""
    answer = shared.post("/push/q", b"", {"Jobgate-Callback": url})
    assert answer.status == 400
    assert answer.json["type"] == "/problems/bad-request"
    assert "Jobgate-Callback" in answer.json["detail"]


@pytest.fixture(scope="module")
def shared(start_shared_gate: StartGate) -> Program:
    """A gate that tests share which change nothing."""
    return start_shared_gate(tables())


@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/push/{}"), ("POST", "/call/{}"), ("GET", "/pull/{}?wait=0")]
)
def test_the_queue_is_ours(shared: Program, method: str, path: str) -> None:
    """Nobody puts callbacks of their own there, nor takes ours."""
    with Receiver() as receiver:
        name = push(shared, receiver.url())
        receiver.next()
        until(shared, f"{name}-succeeded", "succeeded")
        notice = callback(name, State.DEAD, receiver.url("/stolen")).body
        answer = shared.request(method, path.format("~callbacks"), notice)
        assert answer.status == 404, answer
        assert answer.json["type"] in ("/problems/unknown-queue", "/problems/not-found")
        assert len(receiver.requests) == 1


def test_one_that_hangs_holds_up_nobody(start_gate: StartGate) -> None:
    """While a receiver says nothing, calls and other callbacks go on; at the end it is left."""
    gate = start_gate(
        {**tables(runners=2), "gate": {"store": "sqlite:jobs.db", "drain_timeout": 0.5}}
    )
    with socket.create_server(("127.0.0.1", 0)) as silent, Receiver() as receiver:
        hanging = push(gate, f"http://127.0.0.1:{silent.getsockname()[1]}/")
        until(gate, f"{hanging}-succeeded", "running")
        for _ in range(3):
            push(gate, receiver.url())
            verify(receiver.next())
        assert gate.call("q", b'[["reply", "x"]]').status == 200
        gate.stop()


def test_operators(shared: Program) -> None:
    """Its queue can be looked at, paused and resumed; a delivery can be cancelled."""
    with Receiver() as receiver, socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(20)
        hanging = push(shared, f"http://127.0.0.1:{silent.getsockname()[1]}/")
        connection, _ = silent.accept()
        connection.settimeout(20)
        assert shared.request("DELETE", f"/jobs/{hanging}-succeeded").status == 200
        with connection, suppress(ConnectionResetError):
            while connection.recv(65536):
                continue
        assert job(shared, f"{hanging}-succeeded")["state"] == "cancelled"

        assert shared.post("/queues/~callbacks/pause").status == 200
        name = push(shared, receiver.url())
        document = until(shared, f"{name}-succeeded", "queued")
        assert document["why"] == "its queue is paused, until somebody resumes it"
        assert receiver.requests == []
        resumed = shared.post("/queues/~callbacks/resume").json
        assert (resumed["state"], resumed["workers"]) == ("open", 8)
        assert receiver.next().headers["webhook-id"] == f"{name}-succeeded"


def test_survives_the_gate(start_gate: StartGate) -> None:
    """A gate that is killed between a job's end and its callback delivers it afterwards."""
    gate = start_gate(tables())
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    name = push(gate, f"http://127.0.0.1:{port}/")
    document = until(gate, f"{name}-succeeded", "scheduled")
    assert "cannot be connected to" in document["error"]["detail"]
    gate.kill()
    with Receiver(port=port) as receiver:
        gate = start_gate(tables())
        told = receiver.next()
        verify(told)
        assert told.headers["webhook-id"] == f"{name}-succeeded"
        assert json.loads(told.body)["state"] == "succeeded"
        document = until(gate, f"{name}-succeeded", "succeeded")
        assert document["attempt"] >= 2


def test_reload(start_gate: StartGate) -> None:
    """SIGHUP brings another secret and other addresses."""
    gate = start_gate(tables(allow=[]))
    with Receiver() as receiver:
        refused = push(gate, receiver.url())
        until(gate, f"{refused}-succeeded", "failed")
        other = bytes(32)
        gate.write_config(tables(secret="whsec_" + base64.b64encode(other).decode()))
        gate.signal(signal.SIGHUP)
        gate.logged("was reread")
        push(gate, receiver.url())
        verify(receiver.next(), other)
        # What was refused can be tried again by hand.
        assert gate.post(f"/jobs/{refused}-succeeded/retry").status == 202
        told = receiver.next()
        assert told.headers["webhook-id"] == f"{refused}-succeeded"


def test_tls(start_gate: StartGate, tmp_path: Path) -> None:
    """An https receiver must have a certificate that is trusted, and for its host."""
    ours, theirs = Authority("ours"), Authority("theirs")
    contexts = []
    for authority, name in ((ours, "good"), (theirs, "bad")):
        authority.issue(name, tmp_path)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tmp_path / f"{name}.pem", tmp_path / f"{name}.key")
        contexts.append(context)
    (tmp_path / "trusted.pem").write_bytes(ours.pem)
    gate = start_gate(tables(), env={"SSL_CERT_FILE": str(tmp_path / "trusted.pem")})
    good, bad = contexts
    with (
        Receiver(tls=good) as receiver,
        Receiver(tls=bad) as impostor,
        Receiver(tls=good, host="127.0.0.2") as elsewhere,
        Receiver() as plain,
    ):
        push(gate, receiver.url(host="localhost", scheme="https"))
        verify(receiver.next())
        push(gate, receiver.url(scheme="https"))
        verify(receiver.next())
        for url, wrong in (
            (impostor.url(host="localhost", scheme="https"), "TLS: certificate verify failed"),
            (elsewhere.url(host="127.0.0.2", scheme="https"), "certificate is for another host"),
            (plain.url(scheme="https"), "TLS: wrong version number"),
        ):
            name = push(gate, url)
            document = until(gate, f"{name}-succeeded", "scheduled")
            assert wrong in document["error"]["detail"]
        assert impostor.requests == elsewhere.requests == []


def test_the_secret_is_not_shown(start_gate: StartGate, tmp_path: Path) -> None:
    """Neither `--check` nor the log has it."""
    gate = start_gate(tables())
    with Receiver(500) as receiver:
        push(gate, receiver.url())
        receiver.next()
        receiver.next()
    done = twistd("-n", "jobgate", "--config", str(gate.config_path), "--check", cwd=tmp_path)
    assert done.returncode == 0
    assert 'secret = "***"' in done.stdout
    for text in (done.stdout, done.stderr, gate.log):
        assert SECRET not in text
        assert SECRET.removeprefix("whsec_") not in text


def test_the_example(start_gate: StartGate, tmp_path: Path) -> None:
    """The receiver of the docs believes the gate whose secret it has, and nobody else."""
    example = EXAMPLES / "callbacks"
    shutil.copy(example / "words.py", tmp_path)
    config = (example / "jobgate.toml").read_text()
    secret = tomllib.loads(config)["callbacks"]["secret"]
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}/"
    with (tmp_path / "received").open("wb") as said:
        receiver = subprocess.Popen(
            [sys.executable, str(example / "receiver.py"), url.strip("/").rpartition(":")[2]],
            stdout=said,
            env={**os.environ, "JOBGATE_SECRET": secret},
        )
    try:
        gate = start_gate(config)
        name = push(gate, url, queue="words")
        until(gate, f"{name}-succeeded", "succeeded")
        assert gate.get(f"/jobs/{name}/result").json == {"words": 1}
        gate.write_config(config.replace(secret, SECRET))
        gate.signal(signal.SIGHUP)
        gate.logged("was reread")
        other = push(gate, url, queue="words")
        document = until(gate, f"{other}-succeeded", "scheduled")
        assert "answered 401" in document["error"]["detail"]
        assert (tmp_path / "received").read_text() == f"{name} succeeded\n"
    finally:
        receiver.terminate()
        receiver.wait(10)


# --- those who deliver, alone: what would take half a minute otherwise


@pytest_twisted.ensureDeferred
async def test_no_patience_without_end() -> None:
    """A receiver that hangs has the queue's time; then its connection is closed."""
    from msgspec.structs import replace
    from twisted.internet import reactor, threads
    from twisted.internet.defer import succeed

    clock: Any = reactor
    road = Road(replace(QUEUE, timeout=0.3), clock, None)
    settings = CallbackSettings(allow=tuple(LOCAL), runners=1)
    callbacks = Callbacks(settings, clock)
    callbacks.tell(lambda _: succeed(b"{}"))
    foreman: Any = Foreman(road, Recorder())  # type: ignore[arg-type]
    callbacks.work_for(foreman)
    silent = socket.create_server(("127.0.0.1", 0))
    silent.settimeout(20)
    try:
        made = callback("j", State.DEAD, f"http://127.0.0.1:{silent.getsockname()[1]}/")
        now = clock.seconds()
        command = Command(made.queue, made.id, made.body, "", 3, now, float("inf"))
        road.submit(command)
        accepted, _ = await threads.deferToThread(silent.accept)
        accepted.settimeout(20)
        with pytest.raises(errors.WorkerTimeout):
            await command.reply

        def rest() -> bytes:
            said = b""
            try:
                while more := accepted.recv(65536):
                    said += more
            except ConnectionResetError:
                pass
            return said

        said = await threads.deferToThread(rest)
        assert said.endswith(b"\r\n\r\n{}")
        accepted.close()
    finally:
        callbacks.stop()
        road.close()
        silent.close()
