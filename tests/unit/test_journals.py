"""
Every store, held to `journal_suite`.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hypothesis import HealthCheck, settings
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from jobgate.testing import inline_journal
from tests.unit.journal_suite import Promises, machine_for

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from twisted.internet.defer import Deferred

    from jobgate.jobs.job import Change
    from jobgate.jobs.sqlite import SqliteJournal


class InlinePlace:
    """A store in this thread: in a file, or in memory."""

    def __init__(self, durable: bool) -> None:
        self.durable = durable
        self.clock = Clock()
        self.clock.advance(50.0)
        self.wall = 1e9
        self.folder = Path(tempfile.mkdtemp(prefix="jobgate-")) if durable else None
        self.generation = 0
        self.open_ones: list[SqliteJournal] = []
        self.listener: Callable[[Sequence[Change]], None] = print

    @property
    def path(self) -> str:
        return str(self.folder / f"{self.generation}.db") if self.folder else ":memory:"

    def open(
        self, listener: Callable[[Sequence[Change]], None]
    ) -> tuple[SqliteJournal, dict[str, Any]]:
        journal = inline_journal(self.clock, self.path, epoch=self.wall)
        self.listener = listener
        counts = self.wait(journal.open(self.changed))
        self.open_ones.append(journal)
        return journal, counts

    def changed(self, changes: Sequence[Change]) -> None:
        self.listener(changes)

    def tell(self, listener: Callable[[Sequence[Change]], None]) -> None:
        self.listener = listener

    def crash(self) -> None:
        """Go on with what is in the files now; the connection to the old ones goes at the end."""
        if self.folder is None:
            return
        old = self.path
        self.generation += 1
        for end in ("", "-wal"):
            if Path(old + end).exists():
                shutil.copy(old + end, self.path + end)

    def advance(self, seconds: float) -> None:
        self.clock.advance(seconds)

    def set_wall(self, seconds: float) -> None:
        self.wall += seconds

    def wait(self, deferred: Deferred[Any]) -> Any:
        results: list[Any] = []
        deferred.addBoth(results.append)
        (result,) = results
        if isinstance(result, Failure):
            result.raiseException()
        return result

    def hold(self) -> None:
        self.open_ones[-1]._writer.hold()  # type: ignore[attr-defined]

    def release(self) -> None:
        self.open_ones[-1]._writer.release()  # type: ignore[attr-defined]

    def done(self) -> None:
        for journal in self.open_ones:
            journal.close().addErrback(lambda _: None)
        if self.folder is not None:
            shutil.rmtree(self.folder)


SETTINGS = settings(
    max_examples=40,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


class MemoryPromises(Promises, SynchronousTestCase):
    """In memory."""

    def make_place(self) -> InlinePlace:
        return InlinePlace(durable=False)


class FilePromises(Promises, SynchronousTestCase):
    """In a file."""

    def make_place(self) -> InlinePlace:
        return InlinePlace(durable=True)


MemoryMachine = machine_for(lambda: InlinePlace(durable=False))
MemoryTests = MemoryMachine.TestCase
MemoryTests.settings = SETTINGS
FileMachine = machine_for(lambda: InlinePlace(durable=True))
FileTests = FileMachine.TestCase
FileTests.settings = SETTINGS
