"""
A disk that can be watched, and that can fail: a layer under SQLite's own files.

SQLite does all its input and output through a VFS. This one hands everything on to the real
one, records each change in order, and asks a fault function first. It is registered in the very
library that Python's `sqlite3` uses, so the code under test is the code that runs.
"""

from __future__ import annotations

import _sqlite3
import ctypes
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

FULL = 13
IOERR_WRITE = 10 | 3 << 8
IOERR_FSYNC = 10 | 4 << 8

_SECTOR = 512

_Pointer = ctypes.c_void_p
_int = ctypes.c_int
_int64 = ctypes.c_int64
_Write = ctypes.CFUNCTYPE(_int, _Pointer, _Pointer, _int, _int64)
_Truncate = ctypes.CFUNCTYPE(_int, _Pointer, _int64)
_Sync = ctypes.CFUNCTYPE(_int, _Pointer, _int)
_Close = ctypes.CFUNCTYPE(_int, _Pointer)
# The path as a pointer: SQLite keeps it for as long as the file is open.
_Open = ctypes.CFUNCTYPE(_int, _Pointer, _Pointer, _Pointer, _int, _Pointer)
_Delete = ctypes.CFUNCTYPE(_int, _Pointer, ctypes.c_char_p, _int)


class _Methods(ctypes.Structure):
    """`sqlite3_io_methods`, version 3."""

    _fields_ = (
        ("version", _int),
        ("close", _Close),
        ("read", _Pointer),
        ("write", _Write),
        ("truncate", _Truncate),
        ("sync", _Sync),
        *((f"other{n}", _Pointer) for n in range(13)),
    )


class _Vfs(ctypes.Structure):
    """`sqlite3_vfs`, version 3."""

    _fields_ = (
        ("version", _int),
        ("file_size", _int),
        ("max_path", _int),
        ("next", _Pointer),
        ("name", ctypes.c_char_p),
        ("data", _Pointer),
        ("open", _Open),
        ("delete", _Delete),
        *((f"other{n}", _Pointer) for n in range(14)),
    )


class Event(NamedTuple):
    """
    One change of a file.

    Attributes:
        kind: `write`, `truncate`, `sync` or `delete`; or `done`, noted by the test itself.
        path: Which file; for `done`, nothing.
        at: Offset of a write, or the size truncated to.
        data: What was written; for `done`, whatever the test wants to remember.
    """

    kind: str
    path: str
    at: int = 0
    data: Any = b""


class Disk:
    """
    While it is entered, all of SQLite's new files are on it.

    Attributes:
        events: What has happened, in order.
        fault: Asked before each event; what it returns, if not 0, is SQLite's error.
    """

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.fault: Callable[[Event], int] = lambda _: 0
        # Also finds the library that the module is linked with.
        self._library = ctypes.CDLL(_sqlite3.__file__)
        self._library.sqlite3_vfs_find.restype = ctypes.POINTER(_Vfs)
        self._files: dict[int, tuple[str, _Methods]] = {}
        self._methods: dict[int, tuple[_Methods, _Methods]] = {}

    def __enter__(self) -> Self:
        self._below = self._library.sqlite3_vfs_find(None)
        self._vfs = _Vfs.from_buffer_copy(self._below.contents)
        self._vfs.name = b"jobgate-test"
        self._vfs.open = _Open(self._open)
        self._vfs.delete = _Delete(self._delete)
        assert self._library.sqlite3_vfs_register(ctypes.byref(self._vfs), 1) == 0
        return self

    def __exit__(self, *_: object) -> None:
        assert not self._files, "a connection is still open on this disk"
        self._library.sqlite3_vfs_unregister(ctypes.byref(self._vfs))
        self._library.sqlite3_vfs_register(self._below, 1)

    def note(self, fact: object) -> None:
        """Something is known to be done at this point."""
        self.events.append(Event("done", "", 0, fact))

    # --- what SQLite calls

    def _open(self, _: int, path: int | None, file: int, flags: int, out: int) -> int:
        result = self._below.contents.open(
            ctypes.cast(self._below, _Pointer).value, path, file, flags, out
        )
        pointer = ctypes.cast(file, ctypes.POINTER(_Pointer))
        address = pointer[0]
        if result == 0 and address and path:
            if address not in self._methods:
                below = ctypes.cast(address, ctypes.POINTER(_Methods)).contents
                ours = _Methods.from_buffer_copy(below)
                ours.write = _Write(self._write)
                ours.truncate = _Truncate(self._truncate)
                ours.sync = _Sync(self._sync)
                ours.close = _Close(self._close)
                self._methods[address] = below, ours
            below, ours = self._methods[address]
            self._files[file] = os.fsdecode(ctypes.string_at(path)), below
            pointer[0] = ctypes.addressof(ours)
        return int(result)

    def _delete(self, _: int, path: bytes, sync: int) -> int:
        return self._happen(
            Event("delete", os.fsdecode(path)),
            lambda: self._below.contents.delete(
                ctypes.cast(self._below, _Pointer).value, path, sync
            ),
        )

    def _write(self, file: int, data: int, size: int, at: int) -> int:
        path, below = self._files[file]
        return self._happen(
            Event("write", path, at, ctypes.string_at(data, size)),
            lambda: below.write(file, data, size, at),
        )

    def _truncate(self, file: int, size: int) -> int:
        path, below = self._files[file]
        return self._happen(Event("truncate", path, size), lambda: below.truncate(file, size))

    def _sync(self, file: int, flags: int) -> int:
        path, _ = self._files[file]
        # A real one only costs time: no test pulls the plug.
        return self._happen(Event("sync", path), lambda: 0)

    def _close(self, file: int) -> int:
        _, below = self._files.pop(file)
        return int(below.close(file))

    def _happen(self, event: Event, act: Callable[[], int]) -> int:
        fault = self.fault(event)
        if fault:
            return fault
        result = int(act())
        if result == 0:
            self.events.append(event)
        return result


def after_kill(events: Iterable[Event]) -> dict[str, bytes]:
    """The files after `kill -9`: what was written is there."""
    files: dict[str, bytearray] = {}
    for event in events:
        _apply(files, event)
    return {path: bytes(data) for path, data in files.items()}


def after_power_loss(events: Iterable[Event], survives: Callable[[], bool]) -> dict[str, bytes]:
    """
    The files after the power went: what was synced is there, of the rest whatever survives.

    Args:
        events: What had happened.
        survives: Decides for each sector that was written and not synced.
    """
    files: dict[str, bytearray] = {}
    loose: list[Event] = []
    synced: set[str] = set()
    for event in events:
        if event.kind != "sync":
            loose.append(event)
            continue
        # The first sync of a new file syncs its folder, too (unixSync in SQLite's os_unix.c).
        folder = event.path not in synced
        synced.add(event.path)
        still = []
        for each in loose:
            if each.path == event.path or (folder and each.kind == "delete"):
                _apply(files, each)
                if each.kind == "delete":
                    synced.discard(each.path)
            else:
                still.append(each)
        loose = still
    for event in loose:
        if event.kind != "write":
            if survives():
                _apply(files, event)
            continue
        for start in range(0, len(event.data), _SECTOR):
            if survives():
                piece = event.data[start : start + _SECTOR]
                _apply(files, event._replace(at=event.at + start, data=piece))
    return {path: bytes(data) for path, data in files.items()}


def lay_out(files: dict[str, bytes], old: str, new: str) -> None:
    """Write files under another name."""
    for path, data in files.items():
        Path(path.replace(old, new)).write_bytes(data)


def _apply(files: dict[str, bytearray], event: Event) -> None:
    if event.kind == "write":
        data = files.setdefault(event.path, bytearray())
        if len(data) < event.at:
            data.extend(bytes(event.at - len(data)))
        data[event.at : event.at + len(event.data)] = event.data
    elif event.kind == "truncate":
        data = files.setdefault(event.path, bytearray())
        del data[event.at :]
    elif event.kind == "delete":
        files.pop(event.path, None)
