"""
The rows of the table: which server, under which load, beside which others.
"""

from __future__ import annotations

import base64
import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from measure import Load
from servers import gate, mosec, outside_gate, script

if TYPE_CHECKING:
    from pathlib import Path

    from servers import Starter

__all__ = ["SERVERS", "Bodies", "Call", "groups", "outside_rows"]

SMALL = 100
LARGE = 2**20
MANY, SOME, ONE = 32, 8, 1
"""Callers at once."""
WORKERS = 2

SERVERS: dict[str, Starter] = {
    "klein": script("baseline_klein.py"),
    "front": script("baseline_front.py"),
    "mosec": mosec("baseline_mosec.py"),
    "gate bytes 1": gate("echo_bytes.py", workers=WORKERS, in_flight=1),
    "gate bytes 8": gate("echo_bytes.py", workers=WORKERS, in_flight=8),
    "gate outside 1": outside_gate(WORKERS, in_flight=1),
    "gate outside 8": outside_gate(WORKERS, in_flight=8),
    "gate json 1": gate("echo_json.py", workers=WORKERS, in_flight=1),
    "gate json 2": gate("echo_json.py", workers=WORKERS, in_flight=2),
    "gate json 8": gate("echo_json.py", workers=WORKERS, in_flight=8),
    "gate constant": gate("constant.py", workers=WORKERS, in_flight=1),
}


@dataclass(frozen=True)
class Call:
    """
    One line of the table: calls to a server.

    Attributes:
        name: What it is called, in the table and for ``--only``.
        server: The key of its server.
        load: What is asked of it.
        expected: The answer's body, None where the size is all that matters.
        about: What it is, in words.
    """

    name: str
    server: str
    load: Load
    expected: bytes | None
    about: str


@dataclass(frozen=True)
class Bodies:
    """
    What is posted, in files that wrk can read.

    Attributes:
        small: A JSON document of 100 bytes.
        large: A JSON document of 1 MiB: an image, as base64.
        opaque: 1 MiB of random bytes.
    """

    small: Path
    large: Path
    opaque: Path

    @classmethod
    def make(cls, folder: Path) -> Bodies:
        """
        Write the three files.
        """
        bodies = cls(folder / "small.json", folder / "large.json", folder / "opaque.bin")
        job = {"id": 4711, "source": "photos/2026/harbour.jpg", "width": 320, "height": 200}
        bodies.small.write_bytes(padded({**job, "note": ""}, SMALL))
        image = base64.b64encode(os.urandom(LARGE // 2)).decode()
        bodies.large.write_bytes(padded({**job, "image": image, "note": ""}, LARGE))
        bodies.opaque.write_bytes(os.urandom(LARGE))
        return bodies


def padded(document: dict[str, object], size: int) -> bytes:
    """
    Write a document with its last field, a string, filled up to an exact size in bytes.
    """
    missing = size - len(json.dumps(document))
    last = list(document)[-1]
    return json.dumps({**document, last: "x" * missing}).encode()


def groups(bodies: Bodies) -> tuple[tuple[Call, ...], ...]:
    """
    List the rows, in groups: all servers of a group are alive while any of it is measured.
    """
    return small_rows(bodies), large_rows(bodies)


def small_rows(bodies: Bodies) -> tuple[Call, ...]:
    """
    List the rows with 100-byte bodies, at 32 callers and at one.
    """
    many = Load(bodies.small, "application/json", MANY)
    one = Load(bodies.small, "application/json", ONE)
    body = bodies.small.read_bytes()
    return (
        Call("klein", "klein", many, None, "stock Klein, constant answer"),
        Call("bytes-1", "gate bytes 1", many, body, "jobgate, bytes, in_flight 1"),
        Call("bytes-8", "gate bytes 8", many, body, "jobgate, bytes, in_flight 8"),
        Call("mosec", "mosec", many, body, "mosec, JSON"),
        Call("json-1", "gate json 1", many, body, "jobgate, JSON, in_flight 1"),
        Call("json-8", "gate json 8", many, body, "jobgate, JSON, in_flight 8"),
        Call("klein-c1", "klein", one, None, "stock Klein, constant, 1 caller"),
        Call("bytes-1-c1", "gate bytes 1", one, body, "jobgate, bytes, 1 caller"),
    )


def outside_rows(bodies: Bodies) -> tuple[Call, ...]:
    """
    List the rows that compare workers from outside with children.
    """
    many = Load(bodies.small, "application/json", MANY)
    body = bodies.small.read_bytes()
    return tuple(
        Call(f"{name}-{depth}", f"gate {server} {depth}", many, body, f"{about}, in_flight {depth}")
        for depth in (1, 8)
        for name, server, about in (
            ("child", "bytes", "calls, two workers of the gate's own"),
            ("outside", "outside", "calls, two workers over sockets"),
        )
    )


def large_rows(bodies: Bodies) -> tuple[Call, ...]:
    """
    List the rows with 1 MiB bodies, at 8 callers.
    """
    document = Load(bodies.large, "application/json", SOME)
    opaque = Load(bodies.opaque, "application/octet-stream", SOME)
    small = Load(bodies.small, "application/json", SOME)
    parsed, raw = bodies.large.read_bytes(), bodies.opaque.read_bytes()
    return (
        Call("large-mosec", "mosec", document, parsed, "mosec, 1 MiB JSON"),
        Call("large-json", "gate json 1", document, parsed, "jobgate, 1 MiB JSON, in_flight 1"),
        Call("large-json-2", "gate json 2", document, parsed, "jobgate, 1 MiB JSON, in_flight 2"),
        Call("large-bytes", "gate bytes 1", opaque, raw, "jobgate, 1 MiB bytes, in_flight 1"),
        Call("large-front", "front", opaque, None, "bare front, 1 MiB in and out"),
        Call("large-constant", "gate constant", small, None, "jobgate, 100 B in, 1 MiB out"),
    )
