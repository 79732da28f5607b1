"""
The file: its tables, its version, its lock; and which failures are the disk's.

Times are whole milliseconds since the epoch, 0 for none; spans are milliseconds.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
from typing import Final

from jobgate.errors import ConfigError

__all__ = ["FILE_FAULTS", "MEMORY", "attach", "connect", "create", "fault", "lock"]

MEMORY: Final = ":memory:"

_APPLICATION: Final = 0x4A474154
"""`JGAT`, in the file's header."""
_VERSION: Final = 2
_LOG: Final = 4096
"""
Pages of the log after which a commit moves them into the file, unless a rest has come before.

That commit, and all who wait for it, takes as long as ten others; with SQLite's own thousand
pages it was every eightieth.
"""
_HEADER: Final = 100
"""Bytes of a database's header."""

_CHECKED: Final = 128 << 20
"""Bytes of a file up to which all of it is checked at the opening, in about half a second."""

_DDL: Final = """
CREATE TABLE meta (one INTEGER PRIMARY KEY CHECK (one = 1), seen INTEGER NOT NULL) STRICT;
INSERT INTO meta VALUES (1, 0);

-- Narrow, because every change of a state rewrites it. `turn` orders the takers, `alarm` is
-- when time alone changes something. To compare `state` with a parameter would have SQLite plan
-- the statement anew each time, for the partial indices: states stand in statements as numbers.
--
-- A row may be a lot: `size` jobs that came together, are alike in all but id and body, and have
-- had the same fate. It has the first one's id and number, the numbers after that are the others',
-- and its body is theirs, each with a line's end. Whoever touches one of them splits the lot.
CREATE TABLE job (
    seq INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, queue TEXT NOT NULL,
    state INTEGER NOT NULL, turn INTEGER NOT NULL, priority INTEGER NOT NULL,
    attempt INTEGER NOT NULL DEFAULT 0, spent INTEGER NOT NULL DEFAULT 0,
    attempts INTEGER NOT NULL, created INTEGER NOT NULL, due INTEGER NOT NULL,
    started INTEGER NOT NULL DEFAULT 0, finished INTEGER NOT NULL DEFAULT 0,
    alarm INTEGER NOT NULL, expires INTEGER NOT NULL, patience INTEGER NOT NULL,
    keep INTEGER NOT NULL, waits INTEGER NOT NULL, flags INTEGER NOT NULL,
    worker TEXT NOT NULL DEFAULT '', caller TEXT NOT NULL, callback TEXT NOT NULL,
    graph INTEGER NOT NULL, lease INTEGER NOT NULL DEFAULT 0,
    size INTEGER NOT NULL DEFAULT 1
) STRICT;
CREATE TABLE lot (seq INTEGER PRIMARY KEY, stem TEXT NOT NULL, ids TEXT NOT NULL) STRICT;
CREATE INDEX lot_stem ON lot (stem);
CREATE INDEX job_state ON job (queue, state);
CREATE INDEX job_take ON job (queue, turn) WHERE state = 2;
CREATE INDEX job_alarm ON job (alarm) WHERE alarm > 0;
CREATE INDEX job_lease ON job (lease) WHERE lease > 0;
CREATE INDEX job_call ON job (state) WHERE flags & 1;

CREATE TABLE body (
    seq INTEGER PRIMARY KEY, content_type TEXT NOT NULL, headers TEXT NOT NULL, data BLOB NOT NULL
) STRICT;
CREATE TABLE outcome (
    seq INTEGER PRIMARY KEY, status INTEGER, content_type TEXT, data BLOB, error TEXT
) STRICT;
CREATE TABLE try (
    seq INTEGER NOT NULL, attempt INTEGER NOT NULL, worker TEXT NOT NULL,
    started INTEGER NOT NULL, finished INTEGER NOT NULL, error TEXT, output TEXT NOT NULL,
    PRIMARY KEY (seq, attempt)
) STRICT, WITHOUT ROWID;

CREATE TABLE graph (
    seq INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, created INTEGER NOT NULL,
    caller TEXT NOT NULL, size INTEGER NOT NULL, live INTEGER NOT NULL,
    finished INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE TABLE node (
    graph INTEGER NOT NULL, seq INTEGER NOT NULL, name TEXT NOT NULL, PRIMARY KEY (graph, seq)
) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX node_name ON node (graph, name) WHERE name <> '';
CREATE TABLE edge (
    parent INTEGER NOT NULL, child INTEGER NOT NULL, place INTEGER NOT NULL,
    met INTEGER NOT NULL DEFAULT 0, PRIMARY KEY (parent, child)
) STRICT, WITHOUT ROWID;
CREATE INDEX edge_child ON edge (child, place);

CREATE TABLE lease (
    seq INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, until INTEGER NOT NULL,
    ended INTEGER NOT NULL DEFAULT 0, covered TEXT NOT NULL DEFAULT '[]'
) STRICT;
CREATE INDEX lease_until ON lease (until);

CREATE TABLE key (
    scope TEXT PRIMARY KEY, fingerprint TEXT NOT NULL, answer TEXT NOT NULL, target TEXT NOT NULL,
    keep INTEGER NOT NULL, alarm INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX key_target ON key (target);
CREATE INDEX key_alarm ON key (alarm);
"""

_STORAGE: Final = {
    sqlite3.SQLITE_FULL: "the disk is full",
    sqlite3.SQLITE_IOERR: "the disk reports an error",
    sqlite3.SQLITE_READONLY: "the file is read-only",
    sqlite3.SQLITE_CANTOPEN: "the file cannot be opened",
    sqlite3.SQLITE_CORRUPT: "the file is corrupt",
    sqlite3.SQLITE_NOTADB: "the file is not a database any more",
    sqlite3.SQLITE_BUSY: "another program has locked the file",
    sqlite3.SQLITE_LOCKED: "another program has locked the file",
    sqlite3.SQLITE_PERM: "access to the file is denied",
    sqlite3.SQLITE_NOMEM: "there is no memory left",
}
FILE_FAULTS: Final = frozenset(
    {
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_NOTADB,
        sqlite3.SQLITE_PERM,
    }
)
"""Faults that opening the file anew may mend; after the others the connection is still good."""


def fault(error: BaseException) -> tuple[int, str] | None:
    """
    What keeps the store from storing, by its primary code and in words.

    Returns:
        None if the error is not the disk's: a refused value, or a bug.
    """
    if isinstance(error, OSError):
        return sqlite3.SQLITE_CANTOPEN, error.strerror or "the file cannot be opened"
    code = getattr(error, "sqlite_errorcode", None)
    if code is None or code & 0xFF not in _STORAGE:
        return None
    primary = code & 0xFF
    return primary, f"{_STORAGE[primary]} ({error})"


def lock(path: str) -> int:
    """
    Keep other gates away from the file, for as long as the descriptor is open.

    Raises:
        ConfigError: Another gate has it.
        OSError: The lock cannot be made.
    """
    fd = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(fd, 32).decode("ascii", "replace").strip()
        os.close(fd)
        by = f" (process {holder})" if holder else ""
        message = f"{path}: another gate{by} has this store open; give each gate its own"
        raise ConfigError(message) from None
    os.ftruncate(fd, 0)
    os.pwrite(fd, str(os.getpid()).encode(), 0)
    return fd


def attach(path: str) -> sqlite3.Connection:
    """
    Open the file, or make it if there is none.

    Raises:
        ConfigError: It is not ours, of a newer version, or corrupt. It is left as it was.
        sqlite3.Error: The disk is at fault.
    """
    if os.path.exists(path) and os.path.getsize(path) > 0:  # noqa: PTH110, PTH202
        _check_header(path)
    else:
        # Bodies may be secret; SQLite would ask the umask. The log gets the file's mode.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    db = connect(path)
    try:
        # The index of the log in our own RAM, and nobody else in the file while we run:
        # two writing connections can corrupt a database (sqlite.org/wal.html#walresetbug).
        db.execute("PRAGMA locking_mode = EXCLUSIVE")
        db.execute("PRAGMA cache_size = -32768")
        db.execute("PRAGMA temp_store = MEMORY")
        empty = _check(db, path)
        if os.path.getsize(path) <= _CHECKED:  # noqa: PTH202
            _check_all(db, path)
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.execute(f"PRAGMA wal_autocheckpoint = {_LOG}")
        if empty:
            create(db)
    except sqlite3.DatabaseError as error:
        db.close()
        if (error.sqlite_errorcode & 0xFF) in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            raise _corrupt(path, str(error)) from error
        raise
    except BaseException:
        db.close()
        raise
    return db


def connect(path: str) -> sqlite3.Connection:
    """A connection for one thread at a time, whichever it is."""
    return sqlite3.connect(
        path, isolation_level=None, check_same_thread=False, cached_statements=1024, timeout=0.2
    )


def create(db: sqlite3.Connection) -> None:
    """Make the tables."""
    # Not `executescript`, which would commit first: all of it is there, or nothing.
    db.execute("BEGIN IMMEDIATE")
    try:
        for statement in _DDL.split(";"):
            if statement.strip():
                db.execute(statement)
        db.execute(f"PRAGMA application_id = {_APPLICATION}")
        db.execute(f"PRAGMA user_version = {_VERSION}")
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


def _check_header(path: str) -> None:
    """Look before SQLite touches it: what is not ours stays as it is."""
    with open(path, "rb") as file:  # noqa: PTH123
        header = file.read(_HEADER)
    # The number may still be in the log only, while the header says 0.
    number = int.from_bytes(header[68:72], "big")
    if not header.startswith(b"SQLite format 3\0") or number not in (0, _APPLICATION):
        raise _foreign(path)


def _check(db: sqlite3.Connection, path: str) -> bool:
    """Whether it is empty; an error if what is in it is not ours, or too new for us."""
    (tables,) = db.execute("SELECT count(*) FROM sqlite_master").fetchone()
    (application,) = db.execute("PRAGMA application_id").fetchone()
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if tables == application == version == 0:
        return True
    if application != _APPLICATION:
        raise _foreign(path)
    if version != _VERSION:
        message = (
            f"{path}: this store is of version {version}, and this jobgate knows"
            f" {_VERSION}; run the jobgate that made it, or name another file"
        )
        raise ConfigError(message)
    return False


def _check_all(db: sqlite3.Connection, path: str) -> None:
    ((found,),) = db.execute("PRAGMA quick_check(1)").fetchall()
    if found != "ok":
        raise _corrupt(path, found)


def _corrupt(path: str, how: str) -> ConfigError:
    how = " ".join(how.split())
    return ConfigError(
        f"{path}: this store is corrupt ({how}); restore it from a copy, or move it away"
    )


def _foreign(path: str) -> ConfigError:
    return ConfigError(f"{path}: this is no store of jobgate's; name another file, or move it away")
