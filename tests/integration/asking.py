"""
What tests of jobs and pulls ask of a gate.
"""

from __future__ import annotations

import itertools
import json
from typing import TYPE_CHECKING, Any

from program import eventually

if TYPE_CHECKING:
    from collections.abc import Mapping

    from program import Program
    from raw_http import Answer

ENDS = ("succeeded", "failed", "cancelled", "dead")
_keys = itertools.count()


def steps(*what: tuple[str, Any]) -> bytes:
    """The body that has the `actor` worker take these steps."""
    return json.dumps(what).encode()


def key(**more: str) -> dict[str, str]:
    """Headers with an idempotency key of its own."""
    return {"Idempotency-Key": f"key-{next(_keys)}", **more}


def push(
    gate: Program, queue: str, body: bytes = b"", headers: Mapping[str, str] | None = None
) -> str:
    """Push; the job's id."""
    answer = gate.post(f"/push/{queue}", body, headers)
    assert answer.status == 202, answer
    name: str = answer.json["id"]
    return name


def job(gate: Program, name: str) -> dict[str, Any]:
    """Its state document."""
    answer = gate.get(f"/jobs/{name}")
    assert answer.status == 200, answer
    found: dict[str, Any] = answer.json
    return found


def until(gate: Program, name: str, *states: str, within: float = 20.0) -> dict[str, Any]:
    """Wait until it is there and in one of these states."""

    def document() -> dict[str, Any] | None:
        answer = gate.get(f"/jobs/{name}")
        there = answer.status == 200 and answer.json["state"] in states
        return answer.json if there else None

    found: dict[str, Any] = eventually(document, within, f"{name} is {states}")
    return found


def ended(gate: Program, name: str) -> dict[str, Any]:
    """Wait for its end."""
    return until(gate, name, *ENDS)


def result(gate: Program, name: str, wait: float = 20.0) -> Answer:
    """Its outcome, once there is one."""
    return gate.get(f"/jobs/{name}/result?wait={wait}")


def pull(
    gate: Program, queue: str, query: str = "wait=0", headers: Mapping[str, str] | None = None
) -> Answer:
    """`GET /pull/<queue>`."""
    return gate.get(f"/pull/{queue}?{query}", headers)
