"""
What workers say in the metas of their frames (contract section 5.1): read, and held to its bounds.

Must not know commands, nor what follows from what is said.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from jobgate.errors import CommandFailed
from jobgate.wire.frames import WireError

__all__ = [
    "OCTETS",
    "Hello",
    "Progress",
    "read_failure",
    "read_hello",
    "read_progress",
    "read_said",
]

OCTETS = "application/octet-stream"
"""The content type of what says none."""
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_NOTHING = (b"", b"{}", b"null")
_NO_JOBS = msgspec.Raw(b"")


class Hello(msgspec.Struct):
    """
    The meta of HELLO.

    Attributes:
        protocol: Which version of the protocol is spoken.
        name: What the worker would like to be called.
        queue: The queue it wants to work for, over a socket.
        in_flight: How many commands it takes at once; 0: as many as the queue gives.
        ordered: It answers in the order given.
        token: What it may do, over a socket.
        stacks: It dumps its stacks when told to.
    """

    protocol: int = 1
    name: str = ""
    queue: str = ""
    in_flight: int = 0
    ordered: bool = False
    token: str = ""
    stacks: bool = False


class _Said(msgspec.Struct):
    """The meta of REPLY and CHUNK."""

    content_type: str | None = None
    status: int | None = None
    jobs: msgspec.Raw = _NO_JOBS


class _Failed(msgspec.Struct):
    """The meta of FAIL."""

    title: str | None = None
    detail: str | None = None
    status: int | None = None
    retry: bool | None = None


class Progress(msgspec.Struct):
    """
    The meta of PROGRESS.

    Attributes:
        done: How much of it, if the worker counts.
        total: Of how much, if that is known.
        note: What is being done, in words.
    """

    done: float | None = None
    total: float | None = None
    note: str | None = None


_read_object = msgspec.json.Decoder(dict[str, Any]).decode
_read_said = msgspec.json.Decoder(_Said).decode
_read_failed = msgspec.json.Decoder(_Failed).decode
_read_progress = msgspec.json.Decoder(Progress).decode


def read_hello(meta: bytes) -> Hello:
    """
    What a worker says first.

    Raises:
        WireError: It cannot be read, or speaks another protocol.
    """
    try:
        said = _read_object(meta or b"{}").items()
        # A null says no more than a member that is not there: some languages write all they have.
        hello = msgspec.convert({name: what for name, what in said if what is not None}, Hello)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        message = f"HELLO with meta {meta[:200]!r}: {error}"
        raise WireError(message) from None
    if hello.protocol != 1:
        message = f"protocol {hello.protocol} is not spoken here, only 1"
        raise WireError(message)
    return hello


def read_said(meta: bytes) -> tuple[str, int, bytes]:
    """
    What a REPLY or CHUNK says of its body.

    Returns:
        Content type, status, and the jobs that it lets a graph grow by; empty without any.

    Raises:
        WireError: It is outside the contract's bounds; so it is with all of these.
        msgspec.MsgspecError: It is no such meta; likewise.
    """
    said = _read_said(meta)
    kind = said.content_type or OCTETS
    if _CONTROL.search(kind) or not kind.isascii():
        message = f"content type {kind!r}, where visible ASCII is wanted"
        raise WireError(message)
    jobs = bytes(said.jobs)
    return kind, _status(said.status, 200), b"" if jobs in _NOTHING else jobs


def read_failure(meta: bytes) -> CommandFailed:
    """What a FAIL means for the caller."""
    said = _read_failed(meta or b"{}")
    return CommandFailed(
        said.title or "The worker could not do it",
        said.detail or "",
        _failure(_status(said.status, 500)),
        again=said.retry is not False,
    )


def read_progress(meta: bytes) -> Progress:
    """How far a worker says that it is."""
    return _read_progress(meta or b"{}")


def _status(said: int | None, default: int) -> int:
    """
    The HTTP status a worker chose.

    Raises:
        WireError: It is outside the contract's bounds.
    """
    if said is None:
        return default
    if not 200 <= said <= 599:
        message = f"status {said}, where 200 to 599 is wanted"
        raise WireError(message)
    return said


def _failure(status: int) -> int:
    """A failure is never told as a success."""
    return status if status >= 400 else 500
