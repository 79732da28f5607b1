"""
A command that was pulled: what HTTP says of it, and what becomes of that in a handler's hands.

Its inputs are fetched when they are asked for, and what the handler makes is noted (Desk) until it
has ended, to be said in one request (told). It runs in the worker and imports the standard library
only. Must not know when to ask, or how often.
"""

from __future__ import annotations

from collections.abc import Mapping
from time import monotonic
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from jobgate.worker.commands import BYTES, Command, Fail, Input, describe
from jobgate.worker.frames import CHUNK, DECLINE, FAIL, REPLY
from jobgate.worker.line import Answer, Line, Lost
from jobgate.worker.quick_json import loads

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Desk", "Pulled", "told"]


class _Inputs(Mapping[str, Input]):
    """The replies of the jobs that a job needed: each is fetched when it is asked for."""

    def __init__(self, line: Line, path: str) -> None:
        self._line = line
        self._path = f"{path}/inputs"
        self._names: list[str] | None = None
        self._found: dict[str, Input] = {}

    def __getitem__(self, name: str) -> Input:
        if name not in self._known():
            raise KeyError(name)
        if name not in self._found:
            answer = self._get(f"{self._path}/{quote(name, safe='')}")
            kind = answer.headers.get("Content-Type") or BYTES
            self._found[name] = Input(answer.body, kind)
        return self._found[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._known())

    def __len__(self) -> int:
        return len(self._known())

    def _known(self) -> list[str]:
        if self._names is None:
            self._names = list(loads(self._get(self._path).body)["inputs"])
        return self._names

    def _get(self, path: str) -> Answer:
        try:
            answer = self._line.ask("GET", path)
        except Lost as lost:
            title = "an input could not be fetched"
            raise Fail(title, str(lost)) from None
        if answer is None or answer.status != 200:
            title = "an input could not be fetched"
            raise Fail(title, answer.why if answer else None)
        return answer


class Desk:
    """What the gate's end is to a handler: notes what it says, to be sent when it has ended."""

    def __init__(self) -> None:
        self.current: Command | None = None
        self.batch: list[Command] = []
        self.word = 0
        self.meta = b""
        self.body: Any = b""
        self.grows = False
        self._parts: list[bytes] = []

    def glance(self) -> None:
        """The thread that extends the lease hears of a cancellation."""

    def tell(self, kind: int, number: int, meta: bytes = b"") -> None:
        """Progress: the gate takes none of it from pullers."""

    def send(self, kind: int, _number: int, meta: bytes = b"", body: Any = b"") -> None:  # noqa: ANN401
        """Take a part, or the last word."""
        self.meta = self.meta or meta
        if kind == CHUNK:
            self._parts.append(bytes(body))
            return
        self.word = kind
        if kind == REPLY:
            self.grows = b'"jobs"' in meta and "jobs" in loads(meta)
        else:
            self.meta = meta
        self.body = b"".join([*self._parts, body]) if self._parts else body


class Pulled(Command):
    """
    A command with the lease that it is under.

    Attributes:
        lease: The header that says so.
        path: Its address.
        held: Since when the lease runs, at the latest.
    """

    __slots__ = ("_inputs", "held", "lease", "path")

    def __init__(self, desk: Desk, line: Line, queue: str, answer: Answer) -> None:
        self.held = monotonic()
        super().__init__(desk, 0, b"", answer.body, self.held)  # type: ignore[arg-type]
        said = answer.headers
        self.id = said["Jobgate-Id"]
        self.queue = queue
        self.content_type = said.get("Content-Type") or BYTES
        self.attempt = int(said["Jobgate-Attempt"])
        names = "traceparent", "jobgate-key"
        self.headers = {name: said[name] for name in names if name in said}
        self._deadline = float("inf")
        self.lease = {"Jobgate-Lease": said["Jobgate-Lease"]}
        self.path = f"/jobs/{quote(self.id, safe='')}"
        self._inputs = _Inputs(line, self.path)

    @property
    def inputs(self) -> Mapping[str, Input]:  # type: ignore[override]
        """The replies of the jobs that this one needed, by name; fetched when asked for."""
        return self._inputs


def told(desk: Desk) -> tuple[str, Any, dict[str, str]]:
    """What is to be said of a command: the last part of the address, a body and headers."""
    if desk.word == DECLINE:
        return "decline", b"", {}
    if desk.grows:
        fail = Fail("a worker that pulls cannot make its graph grow", retry=False)
        return "fail", describe(fail), {"Content-Type": "application/json"}
    if desk.word == FAIL:
        return "fail", desk.meta, {"Content-Type": "application/json"}
    facts = loads(desk.meta)
    headers = {"Content-Type": facts["content_type"]}
    if "status" in facts:
        headers["Jobgate-Status"] = str(facts["status"])
    return "reply", desk.body, headers
