"""
A crash at every single write of the store, and a power cut, too.

A script of steps runs on a disk that records each write and sync; for every point between two
of them the files as a crash would leave them are opened anew. What was acknowledged by then is
there, to the last field, and the step under way has happened as a whole or not at all.
"""

from __future__ import annotations

from copy import deepcopy
from functools import partial
from hashlib import blake2b
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from jobgate.jobs.job import Ending, Reply, State
from jobgate.jobs.journal import Key, LeaseTerms
from jobgate.jobs.lots import singles
from jobgate.testing import inline_journal
from tests.unit.disk import Disk, after_kill, after_power_loss, lay_out
from tests.unit.journal_suite import (
    DEAD,
    FAILED,
    LATER,
    OK,
    TERMINAL,
    Model,
    jobs_of,
    new,
    together,
)

if TYPE_CHECKING:
    from jobgate.jobs.sqlite import SqliteJournal

PAGE = 4096
BODY = bytes(range(256)) * 40
"""Longer than a page, so that a job is more than one write."""
PAGES = 12
"""Of the log, after which they are copied to the database: often, so that crashes hit it."""


def toss(random: Random, odds: float) -> bool:
    """Whether something survives."""
    return random.random() < odds


class Script:
    """Steps of every kind, each done by the store and by the model."""

    def __init__(self, journal: SqliteJournal, clock: Clock, disk: Disk) -> None:
        self.journal = journal
        self.clock = clock
        self.disk = disk
        self.model = Model()
        self.note()

    def note(self) -> None:
        """What was asked for has been acknowledged."""
        self.disk.note(deepcopy(self.model))

    def now(self) -> int:
        return int(self.journal.now() * 1000)

    def put(self, *jobs: Any, claim: int = 0, graph: str = "", key: Key | None = None) -> None:
        self.journal.put(jobs, claim=claim, graph=graph, key=key)
        self.model.put([each for job in jobs for each in singles(job)], self.now(), claim, graph)
        self.note()

    def take(self, count: int) -> None:
        for fact in self.model.takeable("q", self.now())[:count]:
            fact.held = True
        self.journal.take("q", count, 1 << 20)
        self.note()

    def start(self, *names: str) -> None:
        self.journal._writer.hold()  # type: ignore[attr-defined]
        for name in names:
            fact = self.model.jobs[name]
            self.model.start(fact)
            self.journal.start(name, fact.attempt, "w-1")
        self.journal._writer.release()  # type: ignore[attr-defined]
        self.note()

    def finish(self, name: str, ending: Ending) -> None:
        fact = self.model.jobs[name]
        self.journal.finish(name, fact.attempt, ending)
        children = [c for c in self.model.jobs.values() if name in c.unmet]
        if ending.jobs:
            self.model.put(ending.jobs, self.now(), graph=fact.graph)
            for child in children:
                child.needs += [job.id for job in ending.jobs]
                child.unmet |= {job.id for job in ending.jobs}
        self.model.finish(fact, ending, self.now())
        self.note()

    def run(self) -> None:
        self.put(new("a"), new("b", body=BODY), claim=2, key=Key("scope", "print", "answer"))
        self.journal._groups._home.ledger.db.execute(f"PRAGMA wal_autocheckpoint = {PAGES}")
        self.put(*(new(f"m{n}", priority=n % 8, headers='{"a":1}') for n in range(20)))
        line = BODY.replace(b"\n", b"")
        self.put(together([new(f"kin-{n:032}", body=line) for n in range(4)]))
        self.start("a", "b")
        self.finish("a", Ending(State.SUCCEEDED, Reply(200, "t/p", BODY)))
        self.finish("b", LATER)
        self.put(
            new("g1", name="n1"),
            new("g2", name="n2", needs=("g1",)),
            new("g3", name="n3", needs=("g1",), when="finished", callback="http://h/"),
            new("g4", name="n4", needs=("g2", "g3")),
            claim=1,
            graph="G",
        )
        self.start("g1")
        more = (new("g5", name="n5"), new("g6", name="n6", needs=("g5",)))
        self.finish("g1", Ending(State.SUCCEEDED, OK.reply, jobs=more))
        self.put(new("c", call=True), new("o", once=True), new("d", callback="http://h/"), claim=3)
        self.start("c", "o", "d")
        self.finish("d", DEAD)
        self.take(5)
        held = [fact for fact in self.model.jobs.values() if fact.held]
        lots = [([f.new.id], f.attempt + 1) for f in held[:2]]
        self.journal.lease(lots, LeaseTerms("L", 500.0))
        self.model.leases["L"] = self.now() + 500_000
        for fact in held[:2]:
            self.model.start(fact, "L")
        self.note()
        self.journal.finish_lease("L", FAILED)
        for fact in held[:2]:
            self.model.finish(fact, FAILED, self.now())
        self.note()
        self.journal.retry("d")
        fact = self.model.jobs["d"]
        fact.state, fact.spent, fact.finished = State.QUEUED, 0, 0
        self.note()
        for name in ("g5", f"kin-{2:032}"):
            self.journal.cancel(name, "why")
            self.model.end(self.model.jobs[name], State.CANCELLED, self.now())
            self.note()
        self.journal.give_back([[f.new.id] for f in held])
        for fact in held:
            fact.held = False
        self.note()
        self.clock.advance(6.0)
        self.journal.sweep()
        self.model.jobs["b"].state, self.model.jobs["b"].due = State.QUEUED, 0
        self.note()
        self.journal.cancel("G", "all of it")
        for fact in list(self.model.jobs.values()):
            if fact.graph == "G" and fact.state < TERMINAL:
                self.model.end(fact, State.CANCELLED, self.now())
        self.note()
        self.clock.advance(7200.0)
        self.journal.sweep()
        for fact in self.model.jobs.values():
            fact.gone = fact.state >= TERMINAL and fact.state is not State.DEAD
        self.note()
        self.journal.close()


class CrashPointTests(SynchronousTestCase):
    """Every point of one script."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.path = str(Path(self.mktemp()).absolute())
        self.seen: set[bytes] = set()
        self.points = 0
        with Disk() as disk:
            journal = inline_journal(self.clock, self.path)
            journal.open(lambda _: None)
            Script(journal, self.clock, disk).run()
        self.events = disk.events
        self.models = [event.data for event in disk.events if event.kind == "done"]
        for model in self.models:
            model.crash(0, 0)

    def test_the_script_is_worth_it(self) -> None:
        """It writes a lot, syncs each step, and copies the log back while it runs."""
        kinds = [(event.kind, event.path.removeprefix(self.path)) for event in self.events]
        self.assertGreater(kinds.count(("write", "-wal")), 300)
        self.assertGreater(kinds.count(("sync", "-wal")), 20)
        self.assertGreater(kinds.count(("sync", "")), 5)
        self.assertEqual(kinds.count(("delete", "-wal")), 1)

    def test_kill(self) -> None:
        """The gate is killed between two writes."""
        for point in range(len(self.events) + 1):
            self.check(after_kill(self.events[:point]), point)
        self.assertGreater(self.points, 400)

    def test_torn(self) -> None:
        """The gate is killed in the middle of a page."""
        for point, event in enumerate(self.events):
            if event.kind == "write" and len(event.data) > PAGE // 2:
                half = event._replace(data=event.data[: len(event.data) // 2])
                self.check(after_kill([*self.events[:point], half]), point)
        self.assertGreater(self.points, 200)

    def test_power_loss(self) -> None:
        """The power goes: what was not synced is there in part, in any order."""
        random = Random(4)
        for point in range(len(self.events) + 1):
            coin = partial(toss, random, random.choice([0.0, 0.5, 0.9]))
            files = after_power_loss(self.events[:point], coin)
            self.check(files, point)
        self.assertGreater(self.points, 200)

    def wanted(self, point: int) -> list[Model]:
        """What may be found: all that was acknowledged, or the step under way as well."""
        done = sum(event.kind == "done" for event in self.events[:point])
        return self.models[done - 1 : done + 1]

    def check(self, files: dict[str, bytes], point: int) -> None:
        if not any(event.kind == "done" for event in self.events[:point]):
            return
        print_ = blake2b(repr(point).encode() if not files else b"")
        for path in sorted(files):
            print_.update(path.encode() + files[path])
        done = sum(event.kind == "done" for event in self.events[:point])
        print_.update(bytes([done]))
        if print_.digest() in self.seen:
            return
        self.seen.add(print_.digest())
        self.points += 1
        folder = Path(self.mktemp())
        folder.mkdir()
        path = str(folder / "db")
        lay_out(files, self.path, path)
        with Disk():
            self.check_folder(files, path, point)

    def check_folder(self, files: dict[str, bytes], path: str, point: int) -> None:
        journal = inline_journal(self.clock, path, epoch=2e9)
        self.successResultOf(journal.open(lambda _: None))
        try:
            if files:
                db = journal._groups._home.ledger.db
                self.assertEqual(db.execute("PRAGMA integrity_check").fetchall(), [("ok",)])
            found = self.successResultOf(journal.page("", None, 1000, ""))[0]
            differences = []
            for model in self.wanted(point):
                difference = self.compare(model, found)
                if not difference:
                    self.finish_all(journal, model)
                    return
                differences.append(difference)
            self.fail(f"at {point}, {self.events[point - 1][:3]}: {differences}")
        finally:
            self.successResultOf(journal.close())

    def compare(self, model: Model, found: list[Any]) -> str:
        jobs = {job.id: job for job in found}
        if set(jobs) != set(model.jobs):
            return f"jobs {set(jobs) ^ set(model.jobs)}"
        for name, fact in model.jobs.items():
            job = jobs[name]
            want = (fact.state, fact.attempt, fact.spent, fact.gone, bool(fact.lease))
            have = (job.state, job.attempt, job.spent, job.gone, bool(job.until))
            if want != have:
                return f"{name}: wanted {want}, found {have}"
        return ""

    def finish_all(self, journal: SqliteJournal, model: Model) -> None:
        """Whatever is left can be run to its end, by attempts that rise."""
        journal._writer.hold()  # type: ignore[attr-defined]
        replies = {name: journal.result(name) for name in model.jobs}
        journal._writer.release()  # type: ignore[attr-defined]
        for name, fact in model.jobs.items():
            reply = self.successResultOf(replies[name])
            self.assertEqual(reply is not None, fact.replied and not fact.gone, name)
            if fact.lease:
                self.assertTrue(self.successResultOf(journal.finish(name, fact.attempt, OK)))
        self.clock.advance(1.0)
        self.successResultOf(journal.sweep())
        while True:
            taken = self.successResultOf(journal.take("q", 100, 1 << 20))
            if not taken:
                break
            journal._writer.hold()  # type: ignore[attr-defined]
            ends = []
            for job in jobs_of(taken):
                fact = model.jobs[job.id]
                self.assertEqual((job.attempt, job.body), (fact.attempt, fact.new.body))
                journal.start(job.id, job.attempt + 1, "w")
                ends.append(journal.finish(job.id, job.attempt + 1, OK))
            journal._writer.release()  # type: ignore[attr-defined]
            self.assertTrue(all(self.successResultOf(end) for end in ends))
        for job in self.successResultOf(journal.page("q", None, 1000, ""))[0]:
            self.assertTrue(job.state >= TERMINAL or job.due, job)
