"""
Operations run in groups: one transaction, one sync.

Owns the connection, the clock and the trouble. Must not know threads or Deferreds: who
calls `run` does so from one thread only.
"""

from __future__ import annotations

import os
import sqlite3
from enum import Enum, auto
from errno import EIO
from typing import TYPE_CHECKING, Any, Final

import msgspec
from twisted.logger import Logger
from twisted.python.failure import Failure

from jobgate.enums import plain
from jobgate.errors import ConfigError, JobgateError, StoreUnavailable
from jobgate.jobs.job import TERMINAL
from jobgate.jobs.sqlite import entering, schema, upkeep
from jobgate.jobs.sqlite.ledger import Ledger, TablesNeeded

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from twisted.internet.defer import Deferred

    from jobgate.jobs.job import Change

__all__ = ["RETRY", "Groups", "Kind", "Operation"]

RETRY: Final = 1.0
"""Seconds after which what could not be stored is tried again."""
_PAUSE: Final = 0.1
"""Seconds after a failure in which nothing is tried, however much arrives."""
_SEEN: Final = 1000
"""Milliseconds after which a group that stores something stores the time, too."""
_IDLE: Final = 10_000
"""And after which a sweep does though there is nothing else to store."""
_PROBE: Final = "INSERT OR REPLACE INTO outcome VALUES (0, NULL, NULL, zeroblob(65536), NULL)"
"""What must find room before the store calls itself well again."""


@plain
class Kind(Enum):
    """What an operation asks of the store."""

    READ = auto()
    WRITE = auto()
    LASTING = auto()
    """It is tried until it is stored."""
    HOLD = auto()
    """It stores nothing, but what follows it will."""
    UPKEEP = auto()
    """It often finds nothing to store."""


class Operation:
    """
    One operation on its way through the store.

    Attributes:
        step: What is called with the ledger and `args`.
        kind: What it asks of the store.
        deferred: Whom to tell, if anybody.
        size: Bytes it keeps in RAM.
        outcome: What it came to.
    """

    __slots__ = ("args", "deferred", "kind", "outcome", "size", "step")

    def __init__(
        self,
        step: Callable[..., object],
        args: tuple[object, ...],
        kind: Kind,
        deferred: Deferred[Any] | None,
        size: int = 0,
    ) -> None:
        self.step = step
        self.args = args
        self.kind = kind
        self.deferred = deferred
        self.size = size
        self.outcome: object = None

    def __repr__(self) -> str:
        return f"<Operation {self.step.__name__} {self.args[:1]}>"


class Groups:
    """
    A store, used by one thread.

    Args:
        path: The file, or `:memory:`.
        clock: Seconds that never go back.
        wall: Seconds since the epoch; asked once, at the opening.

    Attributes:
        trouble: Why it cannot store now; empty while it can.
        writes: Operations stored so far.
        restless: Something has been stored since the last rest.
    """

    _log = Logger()

    def __init__(self, path: str, clock: Callable[[], float], wall: Callable[[], float]) -> None:
        self.trouble = ""
        self.writes = 0
        self.restless = False
        self._path = path
        self._clock = clock
        self._wall = wall
        self._offset = wall() - clock()
        self._ledger = Ledger(schema.connect(schema.MEMORY))
        self._made = self._in_ram = path == schema.MEMORY
        self._lock = -1
        self._file: tuple[int, int] | None = None
        self._looked = 0.0
        self._failed = float("-inf")
        self._reopen = False
        self._seen = 0

    # --- its life

    def now(self) -> float:
        """The store's time."""
        return self._clock() + self._offset

    def open(self) -> tuple[dict[str, list[int]], list[Change]]:
        """
        Open the file if there is one.

        Returns:
            How many jobs there are, by queue and state, and what ended by the opening.

        Raises:
            ConfigError: It cannot be used.
        """
        if self._made or not os.path.exists(self._path):  # noqa: PTH110
            folder = os.path.dirname(self._path) or "."  # noqa: PTH120
            if not self._made and not os.path.isdir(folder):  # noqa: PTH112
                message = f"{self._path}: there is no folder {folder} to make the store in"
                raise ConfigError(message)
            # Until the first job is put, an empty store in RAM answers for the file.
            schema.create(self._ledger.db)
            return {}, []
        try:
            self._attach()
            return self._recover()
        except (OSError, sqlite3.Error) as error:
            self._release()
            cause = schema.fault(error)
            why = str(error) if cause is None else cause[1]
            message = f"{self._path}: the store cannot be opened: {why}"
            raise ConfigError(message) from error
        except BaseException:
            self._release()
            raise

    def close(self) -> None:
        """Nothing more will be run."""
        if self._file is not None and not self._reopen:
            try:
                self._ledger.db.execute("UPDATE meta SET seen = ?", (int(self.now() * 1000),))
            except sqlite3.Error as error:
                self._log.warn("the store could not be told the time: {error}", error=error)
        self._release()

    # --- its work

    def run(self, group: Sequence[Operation]) -> tuple[list[Change], list[Operation]]:
        """
        Run operations, each of which gets its outcome.

        Returns:
            What has changed, and the lasting ones that could not be stored.
        """
        # Whoever asks, and then waits to be told of what changes, must not miss what is between.
        if len(group) > 1:
            reads = [operation for operation in group if operation.kind is Kind.READ]
            if reads:
                others = [operation for operation in group if operation.kind is not Kind.READ]
                group = others + reads
        if self._in_ram and not self.trouble:
            return self._run_in_ram(group)
        return self._run_in_tables(group)

    def _run_in_ram(self, group: Sequence[Operation]) -> tuple[list[Change], list[Operation]]:
        """
        Where nothing outlives the process, the tables can wait for what RAM knows.

        A step that needs them finds all in them, and is a transaction of its own.
        """
        ledger = self._ledger
        ledger.now = int(self.now() * 1000)
        changes: list[Change] = []
        for index, operation in enumerate(group):
            ledger.in_ram = True
            try:
                operation.outcome = operation.step(ledger, *operation.args)
            except JobgateError:
                # Steps refuse before they change anything.
                operation.outcome = Failure()
            except TablesNeeded:
                ledger.in_ram = False
                changes += self._write_out()
                more, left = self._run_in_tables(group[index : index + 1])
                changes += more
                if left:
                    return changes, [*left, *group[index + 1 :]]
                continue
            except Exception as error:  # noqa: BLE001 (it is the operation's outcome)
                operation.outcome = Failure(error)
            finally:
                ledger.in_ram = False
            changes += self._write_out() if ledger.owes else ledger.keep()
            self.writes += operation.kind in (Kind.WRITE, Kind.LASTING)
        return changes, []

    def _write_out(self) -> list[Change]:
        """Let the tables have what RAM alone knows; what has changed by that."""
        ledger = self._ledger
        try:
            ledger.db.execute("BEGIN")
            return ledger.commit()
        except Exception as error:  # noqa: BLE001 (there is no memory left, or a bug)
            self._log.failure("jobs in memory were lost")
            self._note(error)
            return []

    def _run_in_tables(self, group: Sequence[Operation]) -> tuple[list[Change], list[Operation]]:
        if self.trouble and (
            self._clock() - self._failed < _PAUSE
            or all(operation.kind is Kind.HOLD for operation in group)
        ):
            return [], self._refuse(group)
        try:
            return self._transaction(group), []
        except Exception as error:  # noqa: BLE001 (whatever it was, nothing is stored)
            if self._note(error):
                return self._without_the_plain(group)
        # One of them cannot be carried out: each on its own, so that it fails alone.
        changes: list[Change] = []
        self._ledger.careful = True
        try:
            for index, operation in enumerate(group):
                try:
                    changes += self._transaction([operation])
                except Exception as error:  # noqa: BLE001 (it is the operation's outcome)
                    if self._note(error):
                        more, left = self._without_the_plain(group[index:])
                        return changes + more, left
                    operation.outcome = Failure(error)
        finally:
            self._ledger.careful = False
        return changes, []

    def rest(self) -> None:
        """Nobody waits: move the log into the file now, and not while somebody does."""
        self.restless = False
        try:
            self._ledger.db.execute("PRAGMA wal_checkpoint")
        except sqlite3.Error as error:
            if not self._note(error):
                self._log.failure("the store's log could not be moved into its file")

    def probe(self) -> None:
        """See whether the trouble is over."""
        try:
            self._prepare(make=False)
            db = self._ledger.db
            for statement in (
                _PROBE,
                "DELETE FROM outcome WHERE seq = 0",
            ):
                db.execute(statement)
        except Exception as error:  # noqa: BLE001 (whatever it is, the trouble goes on)
            if not self._note(error):
                self._log.failure("the store could not be probed")
        else:
            self._well()

    # --- inside

    def _transaction(self, group: Sequence[Operation]) -> list[Change]:
        make = not self._made and any(each.step is entering.put for each in group)
        self._prepare(make=make)
        ledger = self._ledger
        ledger.now = now = int(self.now() * 1000)
        # Not IMMEDIATE: a file that cannot be written can still be asked.
        ledger.db.execute("BEGIN")
        writes = plain = 0
        for operation in group:
            try:
                operation.outcome = operation.step(ledger, *operation.args)
            except JobgateError:
                # Steps refuse before they change anything.
                operation.outcome = Failure()
            kind = operation.kind
            if kind is Kind.WRITE:
                plain += 1
            elif kind is Kind.LASTING:
                writes += 1
        writes += plain
        old = now - self._seen
        if (writes and old >= _SEEN) or (old >= _IDLE and group[0].kind is Kind.UPKEEP):
            ledger.db.execute("UPDATE meta SET seen = ?", (now,))
            changes = ledger.commit()
            self._seen = now
        else:
            changes = ledger.commit()
        self.writes += writes
        self.restless = self.restless or writes > 0
        if plain and self.trouble:
            self._well()
        return changes

    def _without_the_plain(
        self, group: Sequence[Operation]
    ) -> tuple[list[Change], list[Operation]]:
        """After a failure: what lasts is tried once more, since something large may be at fault."""
        left = self._refuse(group)
        if left and len(left) < len(group) and not self._reopen:
            try:
                return self._transaction(left), []
            except Exception as error:  # noqa: BLE001 (it is tried again, and then each alone)
                self._note(error)
        return [], left

    def _refuse(self, group: Sequence[Operation]) -> list[Operation]:
        """Nothing can be stored: say so, answer what only asks; those that must wait."""
        left = []
        for operation in group:
            if operation.kind is Kind.LASTING:
                left.append(operation)
                continue
            if operation.kind is Kind.READ:
                try:
                    self._transaction([operation])
                    continue
                except Exception as error:  # noqa: BLE001 (then it is not answered)
                    self._note(error)
            operation.outcome = Failure(
                StoreUnavailable(f"the store cannot be used: {self.trouble}", retry_after=RETRY)
            )
        return left

    def _note(self, error: BaseException) -> bool:
        """Roll back; True if the disk is at fault, which is noted."""
        self._ledger.rollback()
        cause = schema.fault(error)
        if cause is None:
            return False
        code, why = cause
        self._failed = self._clock()
        self._reopen = self._reopen or code in schema.FILE_FAULTS
        if not self.trouble:
            self._log.error("jobs cannot be stored in {path}: {why}", path=self._path, why=why)
        self.trouble = why
        return True

    def _well(self) -> None:
        if self.trouble:
            self.trouble = ""
            self._log.info("jobs can be stored in {path} again", path=self._path)

    def _prepare(self, *, make: bool) -> None:
        """The file is there, and is the one we know."""
        if self._file is None:
            if make:
                self._make()
            return
        if self._reopen:
            self._same_file()
            self._ledger.rows.clear()
            self._ledger.lendings.clear()
            self._ledger.db.close()
            # Until then nothing is open: after a failure there is to be something to roll back.
            self._ledger.db = schema.connect(schema.MEMORY)
            try:
                self._ledger.db = schema.attach(self._path)
            except ConfigError as error:
                # Who opens a store is told so; to those who use it the disk is at fault.
                raise OSError(EIO, str(error)) from None
            self._reopen = False
        elif self._clock() - self._looked >= 1.0:
            self._looked = self._clock()
            self._same_file()

    def _same_file(self) -> None:
        try:
            found = os.stat(self._path)  # noqa: PTH116
        except FileNotFoundError:
            raise FileNotFoundError(2, "the file is gone; put it back, or start anew") from None
        if (found.st_dev, found.st_ino) != self._file:
            raise FileNotFoundError(
                2, "another file has taken its place; put it back, or start anew"
            )

    def _make(self) -> None:
        """The first job has come: from now on the file is the store."""
        # Once the lock is ours, the file is what an earlier attempt has left.
        if self._lock < 0 and os.path.exists(self._path):  # noqa: PTH110
            raise FileExistsError(17, "another program has made the file; start this gate anew")
        self._attach()
        self._recover()

    def _attach(self) -> None:
        if self._lock < 0:
            self._lock = schema.lock(self._path)
        db = schema.attach(self._path)
        found = os.stat(self._path)  # noqa: PTH116
        self._file = (found.st_dev, found.st_ino)
        self._ledger.db.close()
        self._ledger = Ledger(db)
        self._made = True

    def _recover(self) -> tuple[dict[str, list[int]], list[Change]]:
        ledger = self._ledger
        (seen,) = ledger.db.execute("SELECT seen FROM meta").fetchone()
        end, created = ledger.db.execute(
            "SELECT seq + size, created FROM job ORDER BY seq DESC LIMIT 1"
        ).fetchone() or (1, 0)
        # It never goes back, whatever has been done to the clock on the wall.
        self._offset = max(self._wall(), seen / 1000, created / 1000) - self._clock()
        ledger.number_from(end)
        ledger.now = int(self.now() * 1000)
        ledger.db.execute("BEGIN")
        counts = upkeep.recover(ledger, seen)
        ledger.db.execute("UPDATE meta SET seen = ?", (ledger.now,))
        ended = {change.id: change for change in ledger.commit() if change.state >= TERMINAL}
        self._seen = ledger.now
        ledger.waiting = {queue: sum(by_state[:3]) for queue, by_state in counts.items()}
        return counts, [
            msgspec.structs.replace(each, before=None, claimed=False) for each in ended.values()
        ]

    def _release(self) -> None:
        try:
            self._ledger.db.close()
        except sqlite3.Error as error:
            self._log.warn("the store was closed badly: {error}", error=error)
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1
