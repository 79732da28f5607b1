"""
One queue, drained by two children, a worker in Perl over a socket and an HTTP puller at once.

Its callers must not be able to tell who answers, and when any of these is killed they get
what section 6 of the contract allows and nothing else.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import shutil
import signal
import subprocess
import threading
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest
from program import Program, at_rest, eventually, sdk
from socket_worker import SdkWorker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from raw_http import Answer

PERL = Path(__file__).parents[2] / "examples" / "workers" / "outside.pl"
CALLERS = 12
ANSWERS, KILLS = 30, 3
"""Of each kind of worker, at least."""
KINDS = ("child", "socket", "puller")
LEASE = 0.5


class Mixture:
    """
    The workers of queue "q" that are no children of the gate, and who kills them all.

    Attributes:
        killed: How many of each kind were killed.
    """

    def __init__(self, gate: Program, folder: Path) -> None:
        self._gate = gate
        self._folder = folder
        self.killed: Counter[str] = Counter()
        self._socket = self._start_socket()
        self._puller = self._start_puller()

    def _start_socket(self) -> subprocess.Popen[bytes]:
        port = self._gate.logged(r"workers may register at tcp://127.0.0.1:(\d+)")[1]
        return subprocess.Popen(["perl", str(PERL), "127.0.0.1", port, "q"])

    def _start_puller(self) -> SdkWorker:
        return SdkWorker(self._folder, self._gate.url, "digest", lease=LEASE, wait=5)

    def kill(self, kind: str) -> None:
        """Kill one of a kind; another takes its place."""
        if kind == "socket":
            self._socket.kill()
            self._socket.wait(20)
            self._socket = self._start_socket()
        elif kind == "puller":
            self._puller.end()
            self._puller = self._start_puller()
        else:
            pids = self._gate.worker_pids("q")
            if not pids or not psutil.pid_exists(pids[0]):
                return
            os.kill(pids[0], signal.SIGKILL)
        self.killed[kind] += 1

    def end(self) -> None:
        """Both told to end: they must go by themselves, with status 0."""
        try:
            for process in (self._socket, self._puller.process):
                process.send_signal(signal.SIGTERM)
                assert process.wait(20) == 0
        finally:
            self._socket.kill()
            self._socket.wait(20)
            self._puller.end()


@pytest.fixture
def mix(tmp_path: Path) -> Iterator[Callable[[Program], Mixture]]:
    """Start the workers from outside; none is left."""
    if shutil.which("perl") is None:
        pytest.skip("needs perl")
    mixtures: list[Mixture] = []

    def start(gate: Program) -> Mixture:
        mixtures.append(Mixture(gate, tmp_path))
        return mixtures[-1]

    yield start
    for mixture in mixtures:
        mixture.end()


class Callers:
    """
    Calls from many connections, each with a nonce of its own.

    Attributes:
        answers: Who answered how often: a worker's kind.
        shapes: Status and headers, without what is each call's own, by kind.
        refused: Problems by slug.
        mixed_up: What must never be.
    """

    def __init__(self, gate: Program) -> None:
        self._gate = gate
        self.answers: Counter[str] = Counter()
        self.shapes: dict[str, set[tuple[object, ...]]] = {kind: set() for kind in KINDS}
        self.refused: Counter[str] = Counter()
        self.mixed_up: list[tuple[bytes, Answer]] = []
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._call) for _ in range(CALLERS)]
        for thread in self._threads:
            thread.start()

    def hear_from(self, kind: str) -> None:
        """Wait until that kind of worker has answered some more."""
        enough = self.answers[kind] + ANSWERS
        eventually(lambda: self.answers[kind] > enough, 40, f"{kind} works")

    def stop(self) -> None:
        """Let the last ones come back."""
        self._over.set()
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive(), "a caller still waits"

    def _call(self) -> None:
        with self._gate.connect(timeout=40) as connection:
            while not self._over.is_set():
                nonce = os.urandom(24) * (1 + os.urandom(1)[0] % 100)
                answer = connection.request("POST", "/call/q", nonce)
                if answer.status != 200:
                    self.refused[answer.json["type"].rpartition("/")[2]] += 1
                elif answer.body.decode() != hashlib.sha256(nonce).hexdigest():
                    self.mixed_up.append((nonce, answer))
                else:
                    kind = kind_of(answer["Jobgate-Worker"])
                    self.answers[kind] += 1
                    names = tuple(name for name, _ in answer.fields)
                    self.shapes[kind].add((answer.status, names, answer["Content-Type"]))


def kind_of(worker: str) -> str:
    """What a `Jobgate-Worker` is."""
    if worker == "a puller":
        return "puller"
    return "child" if worker in ("q-1", "q-2") else "socket"


@pytest.mark.parametrize("retry", ["safe", "if-not-started"])
def test_nobody_can_tell_who_answers(
    start_gate: Callable[..., Program], mix: Callable[[Program], Mixture], retry: str
) -> None:
    """Same replies from all; deaths cost what `retry` says; no reply is anybody else's."""
    queue = {
        "command": sdk("digest"),
        "workers": 2,
        "size": 1000,
        "retry": retry,
        "attempts": 50,
    }
    tables = {"worker_listen": ["tcp:0:interface=127.0.0.1"], "store": "memory:"}
    gate = start_gate({"gate": tables, "queues": {"q": queue}})
    mixture = mix(gate)
    gate.ready("q", 3)
    callers = Callers(gate)
    try:
        for kind in itertools.islice(itertools.cycle(KINDS), KILLS * len(KINDS)):
            callers.hear_from(kind)
            mixture.kill(kind)
        for kind in KINDS:
            callers.hear_from(kind)
    finally:
        callers.stop()
    assert callers.mixed_up == []
    assert min(mixture.killed[kind] for kind in KINDS) >= KILLS - 1, mixture.killed
    assert set().union(*callers.shapes.values()) == callers.shapes["child"], callers.shapes
    assert len(callers.shapes["child"]) == 1, callers.shapes
    deaths = sum(mixture.killed.values())
    if retry == "safe":
        assert not callers.refused, callers.refused
    else:
        assert set(callers.refused) <= {"worker-died"}, callers.refused
        assert callers.refused["worker-died"] <= deaths
    numbers = at_rest(gate, "q")
    assert numbers["commands_succeeded_total"] == sum(callers.answers.values())
    assert numbers["commands_failed_total"] == sum(callers.refused.values())
