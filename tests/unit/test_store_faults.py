"""
A store whose disk is full, fails or goes away: what it says, what it keeps, how it comes back.
"""

from __future__ import annotations

import errno
import os
import sqlite3
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twisted.internet.task import Clock
from twisted.logger import globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from jobgate.errors import ConfigError, QueueFull, StoreUnavailable
from jobgate.jobs.job import Change, Ending, State
from jobgate.jobs.sqlite import journal as face
from jobgate.jobs.sqlite import schema
from jobgate.testing import inline_journal
from tests.unit.disk import FULL, IOERR_FSYNC, IOERR_WRITE, Disk, Event, after_kill, lay_out
from tests.unit.journal_suite import OK, new

if TYPE_CHECKING:
    from jobgate.jobs.sqlite import SqliteJournal


def fail_at(left: list[int], kind: str, code: int, event: Event) -> int:
    """The fault at the event of a kind to which so many are left."""
    left[0] -= event.kind == kind
    return code if left[0] == 0 and event.kind == kind else 0


def throw(error: Exception, *_: object) -> None:
    raise error


class FaultCase(SynchronousTestCase):
    """A store in a file on a disk that can fail."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.path = str(Path(self.mktemp()).absolute())
        self.changes: list[tuple[str, State]] = []
        self.log: list[str] = []
        globalLogPublisher.addObserver(self.logged)
        self.addCleanup(globalLogPublisher.removeObserver, self.logged)
        self.disk = Disk()
        self.disk.__enter__()
        self.addCleanup(self.disk.__exit__)
        self.journal = self.open()

    def logged(self, event: dict[str, Any]) -> None:
        if event.get("log_namespace", "").startswith("jobgate.jobs"):
            self.log.append(event["log_format"].format(**event))

    def open(self) -> SqliteJournal:
        journal = inline_journal(self.clock, self.path)
        self.successResultOf(journal.open(self.changed))
        self.addCleanup(lambda: journal.close().addErrback(lambda _: None))
        return journal

    def changed(self, changes: list[Change]) -> None:
        self.changes += [(change.id, change.state) for change in changes]

    def refused(self, name: str = "refused", body: bytes = b"") -> StoreUnavailable:
        failure = self.failureResultOf(self.journal.put([new(name, body=body)]), StoreUnavailable)
        error = failure.value
        assert isinstance(error, StoreUnavailable)
        return error

    def ids(self) -> list[str]:
        jobs, _ = self.successResultOf(self.journal.page("", None, 100, ""))
        return [job.id for job in jobs]

    def fail_with(self, code: int, *kinds: str) -> None:
        self.disk.fault = lambda event: code if event.kind in kinds else 0

    def heal(self) -> None:
        self.disk.fault = lambda _: 0


class RestTests(FaultCase):
    """The log is moved into the file when nobody waits."""

    def test_moved(self) -> None:
        """What was only in the log is in the file then."""
        groups = self.journal._groups
        self.assertFalse(groups.restless)
        self.successResultOf(self.journal.put([new("a", body=b"needle")]))
        self.assertTrue(groups.restless)
        self.assertNotIn(b"needle", Path(self.path).read_bytes())
        groups.rest()
        self.assertFalse(groups.restless)
        self.assertIn(b"needle", Path(self.path).read_bytes())

    def test_not_moved(self) -> None:
        """Where it cannot be, the store says so, and nothing is lost."""
        self.successResultOf(self.journal.put([new("a", body=b"needle")]))
        self.fail_with(FULL, "write")
        self.journal._groups.rest()
        self.assertIn("disk is full", self.journal.trouble)
        self.heal()
        self.clock.advance(1.0)
        self.successResultOf(self.journal.put([new("b")]))
        self.assertEqual(self.journal.trouble, "")
        self.assertEqual(self.ids(), ["b", "a"])


class FullDiskTests(FaultCase):
    """Nothing more can be written."""

    def test_full_and_well_again(self) -> None:
        """Pushes are refused, what has happened waits, questions are answered; then all is well."""
        journal = self.journal
        journal.put([new("a"), new("b")], claim=2)
        self.changes.clear()
        self.fail_with(FULL, "write")
        error = self.refused()
        self.assertIn("disk is full", error.detail)
        self.assertEqual(error.retry_after, 1.0)
        self.assertIn("disk is full", journal.trouble)
        started = journal.start("a", 1, "w")
        finished = journal.finish("a", 1, OK)
        stale = journal.finish("a", 1, OK)
        other = journal.start("b", 1, "w")
        self.assertEqual(self.ids(), ["b", "a"])
        for _ in range(3):
            self.clock.advance(1.0)
            for lasting in (started, finished, stale, other):
                self.assertNoResult(lasting)
        self.assertEqual(self.changes, [])
        self.heal()
        self.clock.advance(1.0)
        self.assertIsNone(self.successResultOf(started))
        self.assertEqual(self.successResultOf(finished), True)
        self.assertEqual(self.successResultOf(stale), False)
        self.assertIsNone(self.successResultOf(other))
        self.assertEqual(
            self.changes,
            [("a", State.RUNNING), ("a", State.SUCCEEDED), ("b", State.RUNNING)],
        )
        self.clock.advance(1.0)
        self.assertEqual(journal.trouble, "")
        # What was tried and taken back has left no trace in the counts.
        self.successResultOf(journal.put([new("c")], limits={"q": 1}))
        self.failureResultOf(journal.put([new("d")], limits={"q": 1}), QueueFull)
        self.assertEqual(self.ids(), ["c", "b", "a"])
        self.assertEqual(len([line for line in self.log if "cannot be stored" in line]), 1)
        self.assertEqual(len([line for line in self.log if "can be stored" in line]), 1)

    def test_well_again_without_being_asked(self) -> None:
        """A gate that is not ready gets no work: the store looks for itself."""
        self.journal.put([new("a")])
        self.fail_with(FULL, "write")
        self.refused()
        self.clock.advance(1.0)
        self.assertNotEqual(self.journal.trouble, "")
        self.heal()
        self.clock.advance(1.0)
        self.assertEqual(self.journal.trouble, "")

    def test_a_success_frees_what_waits(self) -> None:
        """The first thing that can be stored brings all that waited before it."""
        self.journal.put([new("a")], claim=1)
        self.fail_with(FULL, "write")
        started = self.journal.start("a", 1, "w")
        self.heal()
        self.assertNoResult(started)
        self.clock.advance(0.2)
        put = self.journal.put([new("b")])
        self.assertIsNone(self.successResultOf(started))
        self.successResultOf(put)

    def test_no_storm(self) -> None:
        """However much arrives, a disk that has just failed is left alone for a moment."""
        self.journal.put([new("a")])
        tried: list[Event] = []
        self.disk.fault = lambda event: tried.append(event) or FULL  # type: ignore[func-returns-value]
        for _ in range(50):
            self.refused()
        self.assertLess(len(tried), 10)

    def test_what_is_small_still_fits(self) -> None:
        """A large push does not take the end of a job down with it."""
        self.journal.put([new("a")], claim=1)
        self.journal.start("a", 1, "w")
        room = Path(self.path + "-wal").stat().st_size + 100_000
        self.disk.fault = lambda event: FULL if event.at > room else 0
        writer: Any = self.journal._writer
        writer.hold()
        put = self.journal.put([new("large", body=bytes(200_000))])
        finished = self.journal.finish("a", 1, OK)
        writer.release()
        self.failureResultOf(put, StoreUnavailable)
        self.assertEqual(self.successResultOf(finished), True)

    def test_full_while_it_is_made(self) -> None:
        """The file cannot be made: the first push is refused, a later one makes it."""
        self.fail_with(FULL, "write")
        self.refused()
        self.clock.advance(5.0)
        self.refused()
        self.heal()
        self.clock.advance(1.0)
        self.successResultOf(self.journal.put([new("a")]))
        self.assertEqual(self.ids(), ["a"])

    def test_closed_while_full(self) -> None:
        """Who waits is told when the store is closed."""
        self.journal.put([new("a")], claim=1)
        self.fail_with(FULL, "write")
        started = self.journal.start("a", 1, "w")
        self.successResultOf(self.journal.close())
        self.failureResultOf(started, StoreUnavailable)
        self.failureResultOf(self.journal.put([new("b")]), StoreUnavailable)
        self.failureResultOf(self.journal.close(), StoreUnavailable)


class FailingDiskTests(FaultCase):
    """Writes and syncs fail."""

    def test_every_write_and_sync(self) -> None:
        """Whichever fails, the push is refused and has not happened, and the next one is kept."""
        self.journal.put([new("first", body=bytes(9000))])
        kept = ["first"]
        for code, kind in [(IOERR_WRITE, "write"), (IOERR_FSYNC, "sync"), (FULL, "write")]:
            for nth in range(1, 14):
                left = [nth]
                self.disk.fault = partial(fail_at, left, kind, code)
                name = f"{kind}-{code}-{nth}"
                put = self.journal.put([new(name, body=bytes(9000))])
                if left[0] > 0:
                    self.successResultOf(put)
                    kept.append(name)
                    continue
                self.failureResultOf(put, StoreUnavailable)
                self.assertNotIn(name, self.ids())
                self.heal()
                self.clock.advance(1.0)
                self.assertEqual(self.journal.trouble, "")
                self.successResultOf(self.journal.put([new(f"{name}-ok")]))
                kept.append(f"{name}-ok")
        self.assertEqual(self.ids(), kept[::-1][:100])
        self.assertGreater(len([name for name in kept if name.endswith("ok")]), 12)
        # What was refused does not come back from the dead, either.
        lay_out(after_kill(self.disk.events), self.path, f"{self.path}.killed")
        killed = inline_journal(self.clock, f"{self.path}.killed")
        self.successResultOf(killed.open(lambda _: None))
        jobs, _ = self.successResultOf(killed.page("", None, 1000, ""))
        self.successResultOf(killed.close())
        self.assertEqual([job.id for job in jobs], kept[::-1])


class OpenedAnewTests(FaultCase):
    """Some faults may be mended by opening the file anew; that may fail, too."""

    def setUp(self) -> None:
        super().setUp()
        self.journal.put([new("a")], claim=1)
        self.fail_with(sqlite3.SQLITE_READONLY, "write")
        self.assertIn("read-only", self.refused().detail)
        self.finished = self.journal.finish_waiting("a", Ending(State.CANCELLED))
        self.heal()

    def well_again(self) -> None:
        # What must last first, then the probe.
        self.clock.pump([1.0, 1.0])
        self.assertEqual(self.journal.trouble, "")
        self.assertTrue(self.successResultOf(self.finished))
        self.successResultOf(self.journal.put([new("b")]))
        self.assertEqual(self.ids(), ["b", "a"])

    def test_at_once(self) -> None:
        """Then all is well."""
        self.well_again()

    def test_not_yet(self) -> None:
        """It is tried until it can be opened; what must last waits as long."""
        for error, why in (
            (OSError(errno.EMFILE, "too many files are open"), "too many files"),
            (ConfigError("the store is corrupt"), "is corrupt"),
        ):
            patch = self.patch(schema, "attach", partial(throw, error))
            for _ in range(2):
                self.clock.advance(1.0)
                self.assertIn(why, self.journal.trouble)
                self.assertIn(why, self.refused().detail)
                asked = self.failureResultOf(self.journal.get("a"), StoreUnavailable)
                self.assertIn(why, asked.value.detail)
                self.assertNoResult(self.finished)
            patch.restore()
        self.well_again()


class OtherFileTests(FaultCase):
    """The file is not what it should be."""

    def refuse(self, *words: str) -> None:
        before = Path(self.path).read_bytes()
        journal = inline_journal(self.clock, self.path)
        error = self.failureResultOf(journal.open(lambda _: None), ConfigError).value
        for word in (self.path, *words):
            self.assertIn(word, str(error))
        self.assertEqual(Path(self.path).read_bytes(), before)
        log = Path(self.path + "-wal")
        self.assertFalse(log.exists() and log.stat().st_size)

    def fill(self) -> bytearray:
        self.journal.put([new(f"j{n}", body=bytes(2000)) for n in range(50)])
        self.successResultOf(self.journal.close())
        return bytearray(Path(self.path).read_bytes())

    def test_garbage(self) -> None:
        """A text is left alone."""
        Path(self.path).write_text("shopping list: eggs, more eggs" * 100)
        self.refuse("no store of jobgate's")

    def test_another_database(self) -> None:
        """Another program's database is left alone."""
        db = sqlite3.connect(self.path)
        db.execute("CREATE TABLE photos (name)")
        db.close()
        self.refuse("no store of jobgate's")
        db = sqlite3.connect(self.path)
        db.execute("PRAGMA application_id = 7")
        db.close()
        self.refuse("no store of jobgate's")

    def test_a_newer_version(self) -> None:
        """It is not guessed at."""
        self.fill()
        db = sqlite3.connect(self.path)
        db.execute("PRAGMA user_version = 99")
        db.execute("PRAGMA journal_mode = DELETE")
        db.close()
        self.refuse("version 99", "knows 2")

    def test_corrupt(self) -> None:
        """Wherever a page is damaged that is needed to start, it does not start."""
        good = self.fill()
        for at in (100, 4096, 8192, 20 * 4096):
            bad = good.copy()
            bad[at : at + 64] = os.urandom(64)
            Path(self.path).write_bytes(bad)
            self.refuse("corrupt")
        Path(self.path).write_bytes(good[: len(good) // 2])
        self.refuse("corrupt")
        Path(self.path).write_bytes(good)
        self.journal = self.open()
        self.assertEqual(len(self.ids()), 50)

    def test_a_folder(self) -> None:
        """Something else is in its place."""
        Path(self.path).mkdir()
        journal = inline_journal(self.clock, self.path)
        error = self.failureResultOf(journal.open(lambda _: None), ConfigError).value
        self.assertIn(self.path, str(error))

    def test_empty(self) -> None:
        """An empty file is as good as none."""
        Path(self.path).touch()
        journal = inline_journal(self.clock, self.path)
        self.assertEqual(self.successResultOf(journal.open(lambda _: None)), {})
        self.successResultOf(journal.put([new("a")]))
        self.successResultOf(journal.close())

    def test_gone(self) -> None:
        """A file that is deleted takes nothing more, until it is put back."""
        self.journal.put([new("a")])
        Path(self.path).rename(self.path + ".away")
        self.clock.advance(1.0)
        self.assertIn("gone", self.refused().detail)
        self.clock.advance(1.0)
        self.assertIn("gone", self.journal.trouble)
        Path(self.path).write_bytes(b"another")
        self.clock.advance(1.0)
        self.assertIn("another file", self.journal.trouble)
        Path(self.path + ".away").rename(self.path)
        self.clock.advance(1.0)
        self.assertEqual(self.journal.trouble, "")
        self.successResultOf(self.journal.put([new("b")]))
        self.assertEqual(self.ids(), ["b", "a"])

    def test_made_when_first_needed(self) -> None:
        """Asking makes no file, nor does the first job that belongs to another program's."""
        journal = self.journal
        self.assertEqual(self.ids(), [])
        self.successResultOf(journal.sweep())
        self.assertEqual(self.successResultOf(journal.take("q", 5, 100)), [])
        self.assertEqual(list(Path(self.path).parent.iterdir()), [])
        Path(self.path).write_bytes(b"")
        self.assertIn("another program has made the file", self.refused().detail)
        Path(self.path).unlink()
        self.clock.advance(1.0)
        self.successResultOf(journal.put([new("a")]))
        for end in ("", "-wal", ".lock"):
            mode = Path(self.path + end).stat().st_mode
            self.assertEqual(mode & 0o777, 0o600, end)

    def test_no_folder(self) -> None:
        """It could never be made, or not now; when it can be, it is."""
        folder = Path(self.mktemp()).absolute()
        self.path = str(folder / "db")
        never = inline_journal(self.clock, self.path)
        error = self.failureResultOf(never.open(lambda _: None), ConfigError).value
        self.assertIn(f"there is no folder {folder}", str(error))
        self.successResultOf(never.close())
        folder.mkdir()
        self.journal = self.open()
        folder.rmdir()
        self.assertIn(os.strerror(errno.ENOENT), self.refused().detail)
        folder.mkdir()
        self.clock.advance(1.0)
        self.successResultOf(self.journal.put([new("a")]))


class BoundsTests(FaultCase):
    """It holds no more than it may."""

    def test_bounds(self) -> None:
        """Too many operations, or too many bytes, under way: say so; what lasts is let in."""
        self.patch(face, "_OPERATIONS", 3)
        self.patch(face, "_BYTES", 1000)
        self.journal.put([new("a")], claim=1)
        writer: Any = self.journal._writer
        writer.hold()
        large = self.journal.put([new("large", body=bytes(5000))])
        self.failureResultOf(self.journal.put([new("more")]), StoreUnavailable)
        self.assertNoResult(large)
        asked = [self.journal.get("a") for _ in range(2)]
        self.failureResultOf(self.journal.get("a"), StoreUnavailable)
        started = self.journal.start("a", 1, "w")
        writer.release()
        self.successResultOf(large)
        self.successResultOf(started)
        for each in asked:
            self.successResultOf(each)
        self.successResultOf(self.journal.put([new("more")]))

    def test_a_listener_that_fails(self) -> None:
        """It is logged, and nobody waits for ever."""

        def fail(_: object) -> None:
            raise ZeroDivisionError

        self.journal._listener = fail
        self.successResultOf(self.journal.put([new("a")]))
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
