"""
Operations run in groups: one transaction, one sync.

Owns the trouble: what is refused, what waits, what is tried again. Must not know threads or
Deferreds: who calls `run` does so from one thread only; nor what keeps a file one gate's own.
"""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING, ClassVar, Final

from twisted.logger import Logger
from twisted.python.failure import Failure

from jobgate.errors import JobgateError, StoreUnavailable
from jobgate.jobs.sqlite import entering, schema
from jobgate.jobs.sqlite.home import Home
from jobgate.jobs.sqlite.ledger import TablesNeeded
from jobgate.jobs.sqlite.operations import Kind

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from jobgate.jobs.job import Change
    from jobgate.jobs.sqlite.ledger import Ledger
    from jobgate.jobs.sqlite.operations import Operation

__all__ = ["RETRY", "Groups"]

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


class Groups:
    """
    A store, used by one thread.

    Args:
        path: The file, or `:memory:`.
        clock: Seconds that never go back.
        wall: Seconds since the epoch; asked once, at the opening.

    Attributes:
        now: The store's time.
        trouble: Why it cannot store now; empty while it can.
        writes: Operations stored so far.
        restless: Something has been stored since the last rest.
    """

    _log: ClassVar = Logger()

    def __init__(self, path: str, clock: Callable[[], float], wall: Callable[[], float]) -> None:
        self.trouble = ""
        self.writes = 0
        self.restless = False
        self._path = path
        self._clock = clock
        self._home = Home(path, clock, wall)
        self.now = self._home.now
        self._failed = float("-inf")

    # --- its life

    def open(self) -> tuple[dict[str, list[int]], list[Change]]:
        """
        Open the file if there is one.

        Returns:
            How many jobs there are, by queue and state, and what ended by the opening.

        Raises:
            ConfigError: It cannot be used.
        """
        return self._home.open()

    def close(self) -> None:
        """Nothing more will be run."""
        self._home.close()

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
        if self._home.in_ram and not self.trouble:
            return self._run_in_ram(group)
        return self._run_in_tables(group)

    def _run_in_ram(self, group: Sequence[Operation]) -> tuple[list[Change], list[Operation]]:
        """
        Where nothing outlives the process, the tables can wait for what RAM knows.

        A step that needs them finds all in them, and is a transaction of its own.
        """
        ledger = self._home.ledger
        ledger.moves.now = int(self.now() * 1000)
        changes: list[Change] = []
        for index, operation in enumerate(group):
            if self._needs_no_tables(ledger, operation):
                changes += self._write_out() if ledger.owes else ledger.moves.keep()
                self.writes += operation.kind in (Kind.WRITE, Kind.LASTING)
                continue
            changes += self._write_out()
            more, left = self._run_in_tables(group[index : index + 1])
            changes += more
            if left:
                return changes, [*left, *group[index + 1 :]]
        return changes, []

    @staticmethod
    def _needs_no_tables(ledger: Ledger, operation: Operation) -> bool:
        """Run one without them; False, and nothing is changed, if it cannot be."""
        ledger.in_ram = True
        try:
            operation.outcome = operation.step(ledger, *operation.args)
        except TablesNeeded:
            return False
        except JobgateError:
            # Steps refuse before they change anything.
            operation.outcome = Failure()
        except Exception as error:  # noqa: BLE001 (it is the operation's outcome)
            operation.outcome = Failure(error)
        finally:
            ledger.in_ram = False
        return True

    def _write_out(self) -> list[Change]:
        """Let the tables have what RAM alone knows; what has changed by that."""
        ledger = self._home.ledger
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
        self._home.ledger.careful = True
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
            self._home.ledger.careful = False
        return changes, []

    def rest(self) -> None:
        """Nobody waits: move the log into the file now, and not while somebody does."""
        self.restless = False
        try:
            self._home.ledger.db.execute("PRAGMA wal_checkpoint")
        except sqlite3.Error as error:
            if not self._note(error):
                self._log.failure("the store's log could not be moved into its file")

    def probe(self) -> None:
        """See whether the trouble is over."""
        try:
            self._home.prepare(make=False)
            db = self._home.ledger.db
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
        home = self._home
        make = not home.made and any(each.step is entering.put for each in group)
        home.prepare(make=make)
        ledger = home.ledger
        ledger.moves.now = now = int(self.now() * 1000)
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
        old = now - home.seen
        if (writes and old >= _SEEN) or (old >= _IDLE and group[0].kind is Kind.UPKEEP):
            ledger.db.execute("UPDATE meta SET seen = ?", (now,))
            changes = ledger.commit()
            home.seen = now
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
        if left and len(left) < len(group) and not self._home.doubtful:
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
        self._home.ledger.rollback()
        cause = schema.fault(error)
        if cause is None:
            return False
        code, why = cause
        self._failed = self._clock()
        if code in schema.FILE_FAULTS:
            self._home.doubtful = True
        if not self.trouble:
            self._log.error("jobs cannot be stored in {path}: {why}", path=self._path, why=why)
        self.trouble = why
        return True

    def _well(self) -> None:
        if self.trouble:
            self.trouble = ""
            self._log.info("jobs can be stored in {path} again", path=self._path)
