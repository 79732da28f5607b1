"""
Graphs as they are submitted: read, checked, and made jobs of (contract 4.3).

A document is `{"jobs": {NAME: {"queue": …, "needs": [NAME, …], …}}}`. What a worker says to
make its own graph grow is formed the same. Pure: must not know stores, tokens or HTTP; it is
told which queues there are. A complaint begins with the path of what is wrong.
"""

from __future__ import annotations

import re
from difflib import get_close_matches
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, NoReturn, Protocol

import msgspec
from msgspec import UNSET, Meta, UnsetType

from jobgate.errors import BadRequest, Unprocessable
from jobgate.jobs.job import TERMINAL, State
from jobgate.wire.lines import one_line

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from jobgate.jobs.job import NewJob

__all__ = [
    "MAX_JOBS",
    "MAX_NAME",
    "MAX_NEEDS",
    "MakeJob",
    "Node",
    "check",
    "jobs",
    "outcome",
    "path",
    "read",
    "read_growth",
]

MAX_JOBS: Final = 100_000
"""Jobs of one graph, those that it grows included."""
MAX_NEEDS: Final = 1_000_000
"""Needs of all jobs of one document together."""
MAX_NAME: Final = 200
"""Characters of a job's name."""

_SHOWN_OF_CYCLE = 8
_UNKNOWN = re.compile(r"Object contains unknown field `(.*)`\Z", re.DOTALL)
_CHOICE = re.compile(r"Invalid enum value '(.*)'\Z", re.DOTALL)
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_-]+\Z")


class Node(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """
    A job as a document describes it.

    Attributes:
        queue: Where it is to wait.
        body: The work, as JSON; it is handed on as it is written.
        body_base64: The work, as any bytes.
        content_type: What the body is.
        needs: Names of the jobs that must have ended before it starts.
        when: How they must have ended.
        priority: 0 (first) to 7.
        delay: Seconds until it may start.
    """

    queue: str
    body: msgspec.Raw | UnsetType = UNSET
    body_base64: bytes | UnsetType = UNSET
    content_type: str | UnsetType = UNSET
    needs: tuple[str, ...] = ()
    when: Literal["succeeded", "finished"] = "succeeded"
    priority: Annotated[int, Meta(ge=0, le=7)] = 3
    delay: Annotated[float, Meta(ge=0, le=1e9)] = 0.0


class MakeJob(Protocol):
    """Makes a job as its queue's configuration wants it."""

    def __call__(
        self,
        queue: str,
        id: str,  # noqa: A002 (the contract's word)
        body: bytes,
        content_type: str,
        priority: int,
        delay: float,
        name: str,
        needs: tuple[str, ...],
        when: str,
    ) -> NewJob:
        """What is put into the store."""


class _Name:
    """A key that equals no other, so that a name that is used twice does not go unseen."""

    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        self.text = text


class _Document(msgspec.Struct, forbid_unknown_fields=True):
    jobs: dict[_Name, msgspec.Raw]


def _read_key(_: type, value: object) -> _Name:
    return _Name(str(value))


_read_document = msgspec.json.Decoder(_Document, dec_hook=_read_key).decode
_read_jobs = msgspec.json.Decoder(dict[_Name, msgspec.Raw], dec_hook=_read_key).decode
_read_node = msgspec.json.Decoder(Node).decode


# --- reading


def read(data: bytes) -> dict[str, Node]:
    """
    The jobs of a submitted document, by name, in its order.

    Raises:
        BadRequest: It is not JSON.
        Unprocessable: It is not formed as it should be.
    """
    try:
        return _nodes(_read_document(_utf8(data)).jobs)
    except msgspec.ValidationError as error:
        _complain("", error, ("jobs",))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequest(f"body: wanted JSON; {error}") from None


def read_growth(data: bytes) -> dict[str, Node]:
    """
    The jobs that a worker answered with, by name, in its order.

    Raises:
        BadRequest: It is not JSON.
        Unprocessable: It is not formed as it should be.
    """
    try:
        return _nodes(_read_jobs(_utf8(data)))
    except msgspec.ValidationError as error:
        _complain("jobs", error, ())
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequest(f"jobs: wanted JSON; {error}") from None


def _utf8(data: bytes) -> bytes:
    """The same; bodies are handed on unread, so nobody else would see what is not UTF-8."""
    data.decode()
    return data


def _nodes(named: dict[_Name, msgspec.Raw]) -> dict[str, Node]:
    nodes: dict[str, Node] = {}
    for key, raw in named.items():
        name = key.text
        if not (0 < len(name) <= MAX_NAME and name.isprintable()):
            _refuse(path(name), name, f"a name of 1 to {MAX_NAME} printable characters")
        if name in nodes:
            _refuse(path(name), name, "a name that no other job has")
        try:
            nodes[name] = _read_node(raw)
        except msgspec.MsgspecError as error:
            _complain(path(name), error, Node.__struct_fields__)
    return nodes


# --- checking


def check(
    nodes: Mapping[str, Node], protocols: Mapping[str, str], *, known: Collection[str] = ()
) -> None:
    """
    Check that these jobs can be carried out.

    Args:
        nodes: By name.
        protocols: What the workers of each queue speak, by its name.
        known: Names that may be needed, too: of the graph that these jobs are added to.

    Raises:
        Unprocessable: They cannot; the message names the path.
    """
    if not nodes:
        _refuse("jobs", {}, "at least one job")
    if len(nodes) > MAX_JOBS:
        _refuse("jobs", len(nodes), f"at most {MAX_JOBS} jobs")
    edges = 0
    ordered = True
    before: set[str] = set()
    for name, node in nodes.items():
        queue, needs = node.queue, node.needs
        if queue not in protocols:
            _refuse(path(name, "queue"), queue, "the name of a queue of this gate", protocols)
        if needs:
            edges += len(needs)
            if protocols[queue] == "lines":
                _refuse(
                    path(name, "needs"),
                    list(needs),
                    f"none: the queue {queue!r} speaks lines, which cannot take inputs",
                )
            different = set(needs)
            if len(different) < len(needs) or not different <= before:
                ordered = False
                _check_needs(name, needs, nodes, known)
        before.add(name)
    if edges > MAX_NEEDS:
        _refuse("jobs", edges, f"at most {MAX_NEEDS} needs in all")
    # Whoever needs only what comes before it in the document cannot be part of a cycle.
    cycle = [] if ordered else _cycle(nodes)
    if cycle:
        shown = cycle if len(cycle) <= _SHOWN_OF_CYCLE else [*cycle[:4], "…", *cycle[-3:]]
        message = f"{path(cycle[0], 'needs')}: found a cycle, {' -> '.join(shown)}"
        raise Unprocessable(message, path=path(cycle[0], "needs"), cycle=cycle[:1000])


def _check_needs(
    name: str, needs: tuple[str, ...], nodes: Mapping[str, Node], known: Collection[str]
) -> None:
    """Every need is a job of this graph, and named once."""
    seen: set[str] = set()
    for place, need in enumerate(needs):
        where = path(name, f"needs[{place}]")
        if need in seen:
            _refuse(where, need, "every need once")
        seen.add(need)
        if need not in nodes and need not in known:
            _refuse(where, need, "the name of a job of this graph", (*nodes, *known))


def _cycle(nodes: Mapping[str, Node]) -> list[str]:
    """A cycle among these, its first name again at its end; empty if there is none."""
    left: dict[str, int] = {}
    dependents: dict[str, list[str]] = {}
    for name, node in nodes.items():
        inside = [need for need in node.needs if need in nodes]
        left[name] = len(inside)
        for need in inside:
            dependents.setdefault(need, []).append(name)
    free = [name for name, count in left.items() if not count]
    for name in free:  # it grows meanwhile
        for dependent in dependents.get(name, ()):
            left[dependent] -= 1
            if not left[dependent]:
                free.append(dependent)
    if len(free) == len(nodes):
        return []
    # Whoever is still not free needs another who is not: walk until one comes a second time.
    name = next(name for name, count in left.items() if count)
    walked: dict[str, int] = {}
    while name not in walked:
        walked[name] = len(walked)
        name = next(need for need in nodes[name].needs if left.get(need))
    return [*list(walked)[walked[name] :], name]


# --- making


def jobs(
    nodes: Mapping[str, Node],
    protocols: Mapping[str, str],
    ids: Mapping[str, str],
    make: MakeJob,
    max_body: int,
) -> list[NewJob]:
    """
    What is put into the store for jobs that have been checked.

    Args:
        nodes: By name.
        protocols: As for `check`.
        ids: The id of each of them, and of whatever else they need, by name.
        make: Makes each.
        max_body: Bytes that a body may have.

    Raises:
        Unprocessable: A body or a content type is not as it must be; the message names the path.
    """
    made = []
    for name, node in nodes.items():
        body, content_type = _body(name, node)
        if len(body) > max_body:
            _refuse(path(name, "body"), f"{len(body)} bytes", f"at most {max_body}")
        if protocols[node.queue] == "lines":
            try:
                body = one_line(body, content_type)
            except ValueError as error:
                where = path(name, "body")
                raise Unprocessable(f"{where}: {error}", path=where) from None
        made.append(
            make(
                node.queue,
                ids[name],
                body,
                content_type,
                node.priority,
                node.delay,
                name,
                tuple([ids[need] for need in node.needs]),
                node.when,
            )
        )
    return made


def _body(name: str, node: Node) -> tuple[bytes, str]:
    content_type = node.content_type
    if node.body is not UNSET:
        if node.body_base64 is not UNSET:
            _refuse(path(name), "body and body_base64", "one of them")
        body, usual = bytes(node.body), "application/json"
    else:
        body, usual = node.body_base64 or b"", "application/octet-stream"
    if content_type is UNSET:
        return body, usual
    if not (content_type and content_type.isascii() and content_type.isprintable()):
        _refuse(path(name, "content_type"), content_type, "a media type")
    return body, content_type


# --- what becomes of it


def outcome(states: Iterable[State]) -> State:
    """
    The state of a graph whose jobs are in these states.

    While any of them has not ended, it is `RUNNING` once one has started, and before that
    `QUEUED`, or `SCHEDULED` if all that could start are delayed. Then it is `FAILED` if one
    of them failed or is dead, else `CANCELLED` if one was cancelled, else `SUCCEEDED`.
    """
    found = set(states)
    waiting = {state for state in found if state < TERMINAL}
    if not waiting:
        if found & {State.FAILED, State.DEAD}:
            return State.FAILED
        return State.CANCELLED if State.CANCELLED in found else State.SUCCEEDED
    if State.RUNNING in waiting or found - waiting:
        return State.RUNNING
    return State.QUEUED if State.QUEUED in waiting else State.SCHEDULED


# --- complaints


def path(name: str, member: str = "") -> str:
    """Where something stands in the document."""
    shown = name if len(name) <= MAX_NAME else name[:MAX_NAME] + "…"
    start = f"jobs.{shown}" if _PLAIN_NAME.match(shown) else f"jobs[{_show(shown)}]"
    return f"{start}.{member}" if member else start


def _show(value: Any) -> str:  # noqa: ANN401 (whatever JSON can hold)
    text = msgspec.json.encode(value).decode()
    return text if len(text) <= 120 else text[:120] + "…"


def _refuse(where: str, found: object, wanted: str, near: Iterable[str] = ()) -> NoReturn:
    guess = ""
    if isinstance(found, str):
        close = get_close_matches(found, [*near][:1000], n=1)
        guess = f" ({_show(close[0])} perhaps)" if close else ""
    raise Unprocessable(f"{where}: found {_show(found)}, wanted {wanted}{guess}", path=where)


def _complain(start: str, error: msgspec.MsgspecError, members: Collection[str]) -> NoReturn:
    """Say in our words what msgspec does not like, with the path from the document's top."""
    text, _, place = str(error).partition(" - at `$")
    place = place.rstrip("`")
    unknown = _UNKNOWN.match(text)
    if unknown:
        where = f"{start}.{unknown[1]}".lstrip(".")
        _refuse(where, unknown[1], f"one of the members {', '.join(members)}", members)
    where = (start + place).lstrip(".") or "body"
    choice = _CHOICE.match(text)
    if choice:
        _refuse(where, choice[1], '"succeeded" or "finished"')
    raise Unprocessable(f"{where}: {text[:1].lower()}{text[1:]}", path=where)
