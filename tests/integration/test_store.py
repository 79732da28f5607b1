"""
The store under a real gate: on a disk that is really full, in the wrong file, killed.
"""

from __future__ import annotations

import ctypes
import errno
import os
import random
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from program import Program, eventually, sdk, twistd

if TYPE_CHECKING:
    from collections.abc import Callable

    StartGate = Callable[..., Program]

CONFIG = {
    "gate": {"store": "sqlite:store/jobs.db"},
    "queues": {"echo": {"command": sdk("echo")}, "kept": {}},
}
SIZE = 3 << 20
"""Bytes of the disk."""
CLONE_NEWNS, CLONE_NEWUSER = 0x20000, 0x10000000
KILLS = 12


def _in_a_namespace(mount: Path) -> None:
    """In the child: see a small disk of one's own at `mount`, without being root outside."""
    libc = ctypes.CDLL(None, use_errno=True)
    user, group = os.getuid(), os.getgid()
    if libc.unshare(CLONE_NEWUSER | CLONE_NEWNS):
        raise OSError(ctypes.get_errno(), "unshare")
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {user} 1")
    Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    if libc.mount(b"none", bytes(mount), b"tmpfs", 0, b"size=%d" % SIZE):
        raise OSError(ctypes.get_errno(), "mount")


def _allowed() -> bool:
    probe = subprocess.run(
        ["unshare", "-Urm", "mount", "-t", "tmpfs", "none", "/mnt"],
        capture_output=True,
        check=False,
    )
    return probe.returncode == 0


class SmallDisk:
    """A gate whose store is on a disk of three megabytes."""

    def __init__(self, start_gate: StartGate, folder: Path) -> None:
        self.mount = folder / "store"
        self.mount.mkdir()
        self.gate = start_gate(CONFIG, before_exec=lambda: _in_a_namespace(self.mount))
        self.seen = Path(f"/proc/{self.gate.pid}/root{self.mount}")

    def fill(self) -> None:
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
            (self.seen / "ballast").write_bytes(bytes(SIZE))

    def free(self) -> None:
        (self.seen / "ballast").unlink()

    def remount(self, how: str) -> None:
        inside = ["nsenter", "-t", str(self.gate.pid), "-U", "-m", "--preserve-credentials"]
        subprocess.run([*inside, "mount", "-o", f"remount,{how}", str(self.mount)], check=True)


@pytest.fixture
def small_disk(start_gate: StartGate, tmp_path: Path) -> SmallDisk:
    """A gate on a small disk, where that can be had."""
    if not _allowed():
        pytest.skip("no user namespaces here")
    return SmallDisk(start_gate, tmp_path)


def _unavailable(gate: Program, body: bytes) -> dict[str, Any]:
    answer = gate.post("/push/kept", body)
    assert answer.status == 503, answer
    problem: dict[str, Any] = answer.json
    assert problem["type"] == "/problems/store-unavailable", problem
    assert problem["executed"] == "no"
    assert int(answer["Retry-After"]) >= 1
    # Calls go on.
    assert gate.post("/call/echo", b"still here").body == b"still here"
    return problem


def _all_kept(gate: Program, ids: list[str]) -> None:
    for id_ in ids:
        assert gate.get(f"/jobs/{id_}").json["state"] == "queued"


def _pushed(gate: Program, body: bytes = b"work") -> str:
    answer = gate.post("/push/kept", body)
    assert answer.status == 202, answer
    return str(answer.json["id"])


def test_a_full_disk(small_disk: SmallDisk) -> None:
    """Pushes are refused and calls go on; with room again, so is all the rest."""
    gate = small_disk.gate
    ids = [_pushed(gate)]
    small_disk.fill()
    while True:
        answer = gate.post("/push/kept", bytes(50_000))
        if answer.status != 202:
            break
        ids.append(answer.json["id"])
    for _ in range(3):
        assert "disk is full" in _unavailable(gate, bytes(50_000))["detail"]
    ready = gate.get("/readyz")
    assert (ready.status, ready.json["status"]) == (503, "not ready")
    assert "disk is full" in ready.json["store"]
    pulled = gate.get("/pull/nothing-there?wait=0")
    assert (pulled.status, pulled.slug) == (503, "store-unavailable")
    _all_kept(gate, ids)
    small_disk.free()
    eventually(lambda: gate.get("/readyz").status == 200, what="it is well again by itself")
    ids.append(_pushed(gate, bytes(50_000)))
    _all_kept(gate, ids)


def test_a_read_only_disk(small_disk: SmallDisk) -> None:
    """The file cannot be made when it is first needed; as soon as it can be, it is."""
    gate = small_disk.gate
    small_disk.remount("ro")
    assert gate.get("/readyz").status == 200
    for _ in range(2):
        _unavailable(gate, b"work")
    assert "read-only" in gate.get("/readyz").json["store"].lower()
    small_disk.remount("rw")
    eventually(lambda: gate.get("/readyz").status == 200, what="it is well again by itself")
    assert gate.get("/pull/nothing-there?wait=0").status == 204
    _all_kept(gate, [_pushed(gate)])


def _refused(folder: Path, store: str) -> str:
    (folder / "other.toml").write_text(f'[gate]\nstore = "sqlite:{store}"\n')
    done = twistd("-n", "--pidfile=", "jobgate", "-c", "other.toml", "-p", "0", cwd=folder)
    assert done.returncode == 1, (done.stdout, done.stderr)
    assert done.stderr.count("\n") == 1, done.stderr
    assert "listening" not in done.stdout
    assert store in done.stderr
    return done.stderr


def test_a_second_gate(start_gate: StartGate, tmp_path: Path) -> None:
    """One line, exit 1, and the first gate does not notice."""
    (tmp_path / "store").mkdir()
    gate = start_gate(CONFIG)
    ids = [_pushed(gate)]
    line = _refused(tmp_path, "store/jobs.db")
    assert f"another gate (process {gate.pid})" in line
    ids.append(_pushed(gate))
    _all_kept(gate, ids)


def test_wrong_files(tmp_path: Path) -> None:
    """What is no store of ours stays as it is."""
    (tmp_path / "notes.txt").write_text("do not lose this\n" * 1000)
    assert "no store of jobgate's" in _refused(tmp_path, "notes.txt")
    assert (tmp_path / "notes.txt").read_text() == "do not lose this\n" * 1000
    db = sqlite3.connect(tmp_path / "photos.db")
    db.execute("CREATE TABLE photo (name)")
    db.close()
    assert "no store of jobgate's" in _refused(tmp_path, "photos.db")
    assert "no-such-folder" in _refused(tmp_path, "no-such-folder/jobs.db")


WRITER = """
import os, sys
from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from jobgate.jobs.job import Ending, NewJob, Reply, State
from jobgate.jobs.sqlite import SqliteJournal

journal = SqliteJournal(sys.argv[1], reactor)
say = lambda *words: os.write(1, (" ".join(map(str, words)) + "\\n").encode())

async def push(who):
    for n in range(10**9):
        id = f"{sys.argv[2]}-{who}-{n}"
        await journal.put([NewJob(id, "q", id.encode(), "t")], claim=n % 2)
        say("put", id)
        if n % 2:
            started = journal.start(id, 1, "w")
            done = journal.finish(id, 1, Ending(State.SUCCEEDED, Reply(200, "t", id.encode())))
            await started
            say("started", id, 1)
            assert await done
            say("done", id)

async def drain():
    while True:
        for job in await journal.take("q", 5, 1000):
            attempt = job.attempt + 1
            await journal.start(job.id, attempt, "w")
            say("started", job.id, attempt)
            ending = Ending(State.SUCCEEDED, Reply(200, "t", job.body))
            assert await journal.finish(job.id, attempt, ending)
            say("done", job.id)
        await journal.sweep()

async def main():
    await journal.open(lambda changes: None)
    say("open")
    await gatherResults([Deferred.fromCoroutine(push(k)) for k in range(8)]
        + [Deferred.fromCoroutine(drain())])

def failed(failure):
    failure.printTraceback()
    os._exit(3)

reactor.callWhenRunning(lambda: Deferred.fromCoroutine(main()).addErrback(failed))
reactor.run()
"""


def _live_and_die(path: Path, life: str, enough: int) -> list[str]:
    """Start a writer and kill it when it has said enough; what it has said."""
    said = path.with_name(f"said-{life}")
    with said.open("wb") as out:
        writer = subprocess.Popen([sys.executable, "-c", WRITER, path, life], stdout=out)
        try:
            eventually(lambda: said.stat().st_size > enough or writer.poll() is not None, 60)
        finally:
            writer.send_signal(signal.SIGKILL)
            assert writer.wait() == -signal.SIGKILL
    return said.read_text().split("\n")[:-1]


def test_killed_again_and_again(tmp_path: Path) -> None:
    """What a writer said it had done is there after `kill -9`; attempts rise, ends stay."""
    path = tmp_path / "jobs.db"
    seed = random.randrange(1 << 32)
    chance = random.Random(seed)
    put: set[str] = set()
    done: set[str] = set()
    attempts: dict[str, int] = {}
    for life in range(KILLS):
        # So many bytes of words: some hundred steps, and never the same.
        lines = _live_and_die(path, str(life), chance.randrange(2_000, 40_000))
        for words in map(str.split, lines):
            match words:
                case ["put", name]:
                    put.add(name)
                case ["started", name, attempt]:
                    # An end is for ever, and an attempt is never had twice.
                    assert name not in done, (seed, name)
                    assert int(attempt) > attempts.get(name, 0), (seed, name)
                    attempts[name] = int(attempt)
                case ["done", name]:
                    done.add(name)
    assert len(put) > 50 * KILLS
    assert len(done) > 20 * KILLS
    db = sqlite3.connect(path)
    try:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        rows = {
            name: (state, attempt, reply)
            for name, state, attempt, reply in db.execute(
                "SELECT id, state, attempt, outcome.data FROM job LEFT JOIN outcome USING (seq)"
            )
        }
    finally:
        db.close()
    assert put <= set(rows), (seed, put - set(rows))
    for name in done:
        assert rows[name][0] == 4, (seed, name, rows[name])
        assert rows[name][2] == name.encode(), (seed, name, rows[name])
    for name, attempt in attempts.items():
        assert rows[name][1] >= attempt, (seed, name, rows[name])
