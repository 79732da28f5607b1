"""
Where a store lives: in a file of its own, or in memory.

Owns the file's lock, the connection, the ledger over it, and the time, which the file helps to
keep from going back. Must not know what is asked of the store, nor what to do about trouble.
"""

from __future__ import annotations

import os
import sqlite3
from errno import EIO
from typing import TYPE_CHECKING, ClassVar, Final

import msgspec
from twisted.logger import Logger

from jobgate.errors import ConfigError
from jobgate.jobs.job import TERMINAL
from jobgate.jobs.sqlite import schema, upkeep
from jobgate.jobs.sqlite.ledger import Ledger

if TYPE_CHECKING:
    from collections.abc import Callable

    from jobgate.jobs.job import Change

__all__ = ["Home"]

_LOOK: Final = 1.0
"""Seconds after which it is looked whether the file is still in its place."""


class Home:
    """
    A file, or memory, and the ledger over what is in it.

    Args:
        path: The file, or `:memory:`.
        clock: Seconds that never go back.
        wall: Seconds since the epoch; asked once, at the opening.

    Attributes:
        ledger: What steps are given; another one once the file has been made.
        in_ram: It is in memory, and nothing of it outlives the process.
        made: There is nothing to be made, any more, when the first job is put.
        doubtful: The file may be at fault: it is opened anew before anything else.
        seen: When the file was last told that this gate lives; milliseconds.
    """

    _log: ClassVar = Logger()

    def __init__(self, path: str, clock: Callable[[], float], wall: Callable[[], float]) -> None:
        self.ledger = Ledger(schema.connect(schema.MEMORY))
        self.made = self.in_ram = path == schema.MEMORY
        self.doubtful = False
        self.seen = 0
        self._path = path
        self._clock = clock
        self._wall = wall
        self._offset = wall() - clock()
        self._lock = -1
        self._file: tuple[int, int] | None = None
        self._looked = 0.0

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
        if self.made or not os.path.exists(self._path):  # noqa: PTH110
            folder = os.path.dirname(self._path) or "."  # noqa: PTH120
            if not self.made and not os.path.isdir(folder):  # noqa: PTH112
                message = f"{self._path}: there is no folder {folder} to make the store in"
                raise ConfigError(message)
            # Until the first job is put, an empty store in RAM answers for the file.
            schema.create(self.ledger.db)
            return {}, []
        try:
            self._attach()
            return self._recover()
        except (OSError, sqlite3.Error) as error:
            self.release()
            cause = schema.fault(error)
            why = str(error) if cause is None else cause[1]
            message = f"{self._path}: the store cannot be opened: {why}"
            raise ConfigError(message) from error
        except BaseException:
            self.release()
            raise

    def prepare(self, *, make: bool) -> None:
        """
        The file is to be there, and the one we know.

        Args:
            make: Make it if it is not there yet.

        Raises:
            OSError: It is not, or cannot be opened.
            sqlite3.Error: The disk is at fault.
            ConfigError: What is to be made is another gate's.
        """
        if self._file is None:
            if make:
                self._make()
        elif self.doubtful:
            self._same_file()
            self._reopen()
        elif self._clock() - self._looked >= _LOOK:
            self._looked = self._clock()
            self._same_file()

    def close(self) -> None:
        """Tell the file the time, and leave it."""
        if self._file is not None and not self.doubtful:
            try:
                self.ledger.db.execute("UPDATE meta SET seen = ?", (int(self.now() * 1000),))
            except sqlite3.Error as error:
                self._log.warn("the store could not be told the time: {error}", error=error)
        self.release()

    def release(self) -> None:
        """Leave the file as it is to whoever comes next."""
        try:
            self.ledger.db.close()
        except sqlite3.Error as error:
            self._log.warn("the store was closed badly: {error}", error=error)
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    # --- inside

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
        self.ledger.db.close()
        self.ledger = Ledger(db)
        self.made = True

    def _recover(self) -> tuple[dict[str, list[int]], list[Change]]:
        """Put right what the last gate has left."""
        ledger = self.ledger
        (seen,) = ledger.db.execute("SELECT seen FROM meta").fetchone()
        end, created = ledger.db.execute(
            "SELECT seq + size, created FROM job ORDER BY seq DESC LIMIT 1"
        ).fetchone() or (1, 0)
        # It never goes back, whatever has been done to the clock on the wall.
        self._offset = max(self._wall(), seen / 1000, created / 1000) - self._clock()
        ledger.ids.next_seq = end
        ledger.moves.now = now = int(self.now() * 1000)
        ledger.db.execute("BEGIN")
        counts = upkeep.recover(ledger, seen)
        ledger.db.execute("UPDATE meta SET seen = ?", (now,))
        ended = {change.id: change for change in ledger.commit() if change.state >= TERMINAL}
        self.seen = now
        ledger.moves.waiting = {queue: sum(by_state[:3]) for queue, by_state in counts.items()}
        return counts, [
            msgspec.structs.replace(each, before=None, claimed=False) for each in ended.values()
        ]

    def _reopen(self) -> None:
        # Nothing is open meanwhile: after a failure there is to be something to roll back.
        self.ledger.reach(schema.connect(schema.MEMORY))
        try:
            self.ledger.reach(schema.attach(self._path))
        except ConfigError as error:
            # Who opens a store is told so; to those who use it the disk is at fault.
            raise OSError(EIO, str(error)) from None
        self.doubtful = False

    def _same_file(self) -> None:
        try:
            found = os.stat(self._path)  # noqa: PTH116
        except FileNotFoundError:
            raise FileNotFoundError(2, "the file is gone; put it back, or start anew") from None
        if (found.st_dev, found.st_ino) != self._file:
            raise FileNotFoundError(
                2, "another file has taken its place; put it back, or start anew"
            )
