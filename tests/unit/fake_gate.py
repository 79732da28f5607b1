"""
A gate in memory, as far as `jobgate write` and `jobgate read` know one, and its bad days.

Keeps to contract 4.2: idempotency keys of pushes and pulls, leases fenced by attempt, order, and
bodies that come alone. No sockets, no time: what is waited for has passed.
"""

from __future__ import annotations

import itertools
import json
from collections import deque
from typing import IO, TYPE_CHECKING, Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

from jobgate.cli.client import Answer, Client, Lost

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


class Job(NamedTuple):
    """One command."""

    id: str
    body: bytes
    content_type: str


class FakeGate:
    """
    Queues, leases and keys.

    Attributes:
        queues: What waits, by name.
        leases: Who has what.
        most: Commands that may wait in all.
        max_body: Bytes of a body.
        acked: What is done, in order.
    """

    def __init__(self, most: int = 10**9, max_body: int = 16 * 2**20) -> None:
        self.queues: dict[str, deque[Job]] = {}
        self.leases: dict[str, tuple[str, list[Job]]] = {}
        self.acked: list[Job] = []
        self.most = most
        self.max_body = max_body
        self._done: set[str] = set()
        self._pushed: dict[str, tuple[bytes, Answer]] = {}
        self._pulled: dict[str, tuple[str, Answer, bytes]] = {}
        self._ids = itertools.count()

    def lapse(self) -> None:
        """All leases run out: their commands stand first again, in their order."""
        for queue, jobs in reversed(self.leases.values()):
            self.queues[queue].extendleft(reversed(jobs))
        self.leases.clear()
        self._pulled.clear()

    def handle(
        self, path: str, body: bytes, headers: Mapping[str, str], into: IO[bytes] | None
    ) -> Answer:
        """One request."""
        parts = urlsplit(path)
        _, verb, name, *rest = parts.path.split("/")
        asked = {key: values[0] for key, values in parse_qs(parts.query).items()}
        if verb == "push":
            return self._push(name, asked, body, headers)
        if verb == "pull":
            return self._pull(name, asked, headers, into)
        assert (verb, rest) == ("leases", ["ack"]), path
        if name in self.leases:
            self.acked += self.leases.pop(name)[1]
            self._done.add(name)
        return Answer(200, {}, b"{}") if name in self._done else problem(409, "stale-attempt")

    def _push(
        self, queue: str, asked: Mapping[str, str], body: bytes, headers: Mapping[str, str]
    ) -> Answer:
        key = headers["Idempotency-Key"]
        if key in self._pushed:
            before, answer = self._pushed[key]
            return answer if before == body else problem(422, "unprocessable")
        if len(body) > self.max_body:
            return problem(413, "body-too-large")
        bodies = body.removesuffix(b"\n").split(b"\n") if asked.get("each") == "line" else [body]
        waiting = self.queues.setdefault(queue, deque())
        if len(waiting) + len(bodies) > self.most:
            return problem(503, "queue-full", {"retry-after": "1"})
        kind = headers["Content-Type"]
        waiting += [Job(f"gate-{next(self._ids)}", one, kind) for one in bodies]
        answer = Answer(202, {}, json.dumps({"accepted": len(bodies)}).encode())
        self._pushed[key] = body, answer
        return answer

    def _pull(
        self,
        queue: str,
        asked: Mapping[str, str],
        headers: Mapping[str, str],
        into: IO[bytes] | None,
    ) -> Answer:
        assert into is not None
        assert asked["each"] == "line"
        key = headers["Idempotency-Key"]
        if key in self._pulled and self._pulled[key][0] in self.leases:
            _, answer, data = self._pulled[key]
            into.write(data)
            return answer
        waiting = self.queues.setdefault(queue, deque())
        if not waiting:
            return Answer(204, {}, b"")
        jobs = [waiting.popleft()]
        alone = b"\n" in jobs[0].body
        while not alone and waiting and len(jobs) < int(asked["max"]):
            if b"\n" in waiting[0].body or waiting[0].content_type != jobs[0].content_type:
                break
            jobs.append(waiting.popleft())
        lease = f"lease-{next(self._ids)}"
        self.leases[lease] = queue, jobs
        found = {
            "content-type": jobs[0].content_type,
            "jobgate-lease": lease,
            "jobgate-ids": ", ".join(job.id for job in jobs),
        }
        if alone:
            found["jobgate-id"] = jobs[0].id
        data = jobs[0].body if alone else b"".join(job.body + b"\n" for job in jobs)
        into.write(data)
        answer = Answer(200, found, b"")
        self._pulled[key] = lease, answer, data
        return answer


def problem(status: int, slug: str, headers: Mapping[str, str] | None = None) -> Answer:
    """A refusal."""
    document = {"type": f"/problems/{slug}", "title": slug, "status": status, "executed": "no"}
    kind = {"content-type": "application/problem+json"}
    return Answer(status, {**kind, **(headers or {})}, json.dumps(document).encode())


class FakeClient(Client):
    """
    A client whose connection is a FakeGate.

    Args:
        gate: The gate.
        trouble: Called before and after every request with what is about to happen (the verb) and
            which of the two it is; may raise Lost, change the gate, or return an answer instead.

    Attributes:
        rests: How long it has waited, and why.
    """

    def __init__(
        self,
        gate: FakeGate,
        trouble: Callable[[str, str], Answer | None] = lambda *_: None,
        patience: float = 0,
    ) -> None:
        super().__init__("http://gate:1", patience=patience)
        self.rests: list[tuple[float, str]] = []
        self._gate = gate
        self._trouble = trouble

    def ask(self, method: str, path: str, *request: Any, **named: Any) -> Answer:
        """One try."""
        body, headers = (*request, b"", {})[:2] if request else (b"", {})
        verb = path.split("/")[1]
        instead = self._trouble(verb, "before")
        if instead is not None:
            return instead
        answer = self._gate.handle(path, body, headers or {}, named.get("into"))
        self._trouble(verb, "after")
        return answer

    def rest(self, pause: float, why: str) -> None:
        """Time passes."""
        self.rests.append((pause, why))
        self.repeated += 1


__all__ = ["FakeClient", "FakeGate", "Job", "Lost", "problem"]
