"""
Between the link and the handler: take what came, have it run, and say what became of it.

What a handler returns, raises or yields becomes the frames that its commands are owed, exactly
one last word for each.
"""

from __future__ import annotations

import _thread
from select import PIPE_BUF

from jobgate.worker.commands import BYTES, Command, Decline, Fail, Reply, describe, line
from jobgate.worker.frames import CHUNK, DECLINE, FAIL, REPLY, pack
from jobgate.worker.quick_json import dumps

TYPE_CHECKING = False  # as in `jobgate.worker`
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from jobgate.worker.link import Link

__all__ = ["BYTES_META", "JSON", "JSON_LINES", "encode", "run_one", "stream", "work"]

_TEXT = "text/plain; charset=utf-8"
JSON = "application/json"
JSON_LINES = "application/x-ndjson"
# The metas that nearly every reply has, so that answering bytes costs no JSON at all.
_METAS = {
    kind: b'{"content_type":"%b"}' % kind.encode() for kind in (BYTES, _TEXT, JSON, JSON_LINES)
}
BYTES_META = _METAS[BYTES]
_META = len(BYTES_META)
_FRAMED = 12 + _META  # what a reply's length field counts besides its body, if that is bytes
_AHEAD = 4  # replies to a batch that are sent before the others are packed
_SMALL = PIPE_BUF - 4 - _FRAMED  # bytes of a body whose frame needs no look at any limit


def work(link: Link, handler: Callable[[Any], object]) -> None:
    """Run commands until there will be no more."""
    take: Any = link.take_batch if link.batching else link.take
    run: Any = _run_batch if link.batching else run_one
    given = take()
    if given:
        # Not threading.Thread: importing that takes longer than many a first command.
        _thread.start_new_thread(link.read_ahead, ())
    while given:
        run(link, handler, given)
        given = take()


def run_one(link: Link, handler: Callable[[Command], object], command: Command) -> None:
    """Run the handler and send the one REPLY, FAIL or DECLINE that the command is owed."""
    number = command._number  # noqa: SLF001 - family
    try:
        if command._cancelled:  # noqa: SLF001 - it has waited until nobody wanted it
            title = "cancelled"
            raise Fail(title)  # noqa: TRY301
        if b'"inputs"' in command._meta:  # noqa: SLF001
            command._parse()  # noqa: SLF001
        value = handler(command)
        if type(value) is bytes:
            meta, body = BYTES_META, value
        elif hasattr(type(value), "__next__"):
            meta, body = stream(link, command, value)
        else:
            meta, body = encode(value, JSON)
        link.send(REPLY, number, meta, body)
    except Decline:
        link.send(DECLINE, number)
    except Fail as fail:
        link.send(FAIL, number, describe(fail))
    except Exception as error:  # noqa: BLE001 - a command's failure is not its worker's
        from traceback import print_exc

        print_exc()  # to stderr, which the gate logs under the worker's name
        link.send(FAIL, number, describe(Fail(line(error))))


def _run_batch(
    link: Link, handler: Callable[[list[Command]], object], batch: list[Command]
) -> None:
    """Run the handler and send what each of the commands is owed."""
    wanted = batch
    if not link.plain:
        wanted = []
        for command in batch:
            if command._cancelled:  # noqa: SLF001 - family
                link.send_all([_word(link, command, Fail("cancelled"))])
            else:
                wanted.append(command)
    if not wanted:
        return
    values = _values(link, handler, wanted)
    # What is done here for each is done while the next batch waits. The first few go ahead: the
    # gate wakes up over them while the others are still being packed.
    for some in slice(_AHEAD), slice(_AHEAD, None):
        frames = [
            pack(_FRAMED + len(value), 1, REPLY, 0, command._number, _META)  # noqa: SLF001
            + BYTES_META
            + value
            if type(value) is bytes and len(value) <= _SMALL
            else _word(link, command, value)
            for command, value in zip(wanted[some], values[some], strict=True)
        ]
        if frames:
            link.send_all(frames)


def _values(
    link: Link, handler: Callable[[list[Command]], object], commands: list[Command]
) -> list[Any]:
    """Return what the handler says about each command; what it raises is said about all."""
    try:
        if not link.plain:
            for command in commands:
                if b'"inputs"' in command._meta:  # noqa: SLF001 - family
                    command._parse()  # noqa: SLF001
        # The handler may keep or change its list.
        values: Any = handler(list(commands))
        if isinstance(values, (str, bytes, dict)) or not hasattr(values, "__iter__"):
            title = "the worker's handler returned no list of replies"
            raise Fail(title, line(type(values)), retry=False)  # noqa: TRY301
        values = list(values)
        if len(values) != len(commands):
            title = (
                f"the worker's handler returned {len(values)} replies to {len(commands)} commands"
            )
            raise Fail(title, retry=False)  # noqa: TRY301
    except (Decline, Fail) as error:
        return [error] * len(commands)
    except Exception as error:  # noqa: BLE001 - the commands' failure is not their worker's
        from traceback import print_exc

        print_exc()  # to stderr, which the gate logs under the worker's name
        return [error] * len(commands)
    return values  # type: ignore[no-any-return]


def _word(link: Link, command: Command, value: object) -> tuple[int, int, bytes, Any]:
    """Return the frame that is the last word on one command of a batch."""
    number = command._number  # noqa: SLF001 - family
    try:
        if isinstance(value, Exception) and not isinstance(value, (Fail, Decline)):
            return FAIL, number, describe(Fail(line(value))), b""
        if hasattr(type(value), "__next__"):
            meta, body = stream(link, command, value)
        else:
            meta, body = encode(value, JSON)
    except Decline:
        return DECLINE, number, b"", b""
    except Fail as fail:
        return FAIL, number, describe(fail), b""
    except Exception as error:  # noqa: BLE001 - an iterator's: as in answer
        from traceback import print_exc

        print_exc()
        return FAIL, number, describe(Fail(line(error))), b""
    return REPLY, number, meta, body


def stream(link: Link, command: Command, items: Any) -> tuple[bytes, Any]:  # noqa: ANN401
    """Send a CHUNK for each item of an iterator; return meta and body of the last word."""
    head: bytes | None = None  # the first item says what the whole is
    last: object = None
    try:
        while not command.cancelled:
            try:
                item = next(items)
            except StopIteration as stop:
                last = stop.value
                break
            if isinstance(item, Reply) and item.jobs:
                title = "jobs belong to what a stream returns at its end, not to an item of it"
                raise Fail(title, retry=False)
            meta, body = encode(item, JSON_LINES)
            if head is None:
                head = meta
            if len(body):
                link.send(CHUNK, command._number, head, body)  # noqa: SLF001
                head = b""
    finally:
        close = getattr(items, "close", None)
        if close:
            close()
    if last is None:
        return BYTES_META if head is None else head, b""
    meta, body = encode(last, JSON if head is None else JSON_LINES)
    grows = isinstance(last, Reply) and last.jobs
    return meta if head is None or grows else head, body


def encode(value: object, json: str) -> tuple[bytes, Any]:
    """
    Return meta and body for what a handler returned or yielded; JSON is sent as type `json`.

    Raises:
        Fail: It is neither bytes nor text nor JSON; or it is a Fail.
        Decline: It is a Decline.
    """
    given = status = jobs = None
    if isinstance(value, (Fail, Decline)):
        raise value
    if isinstance(value, Reply):
        given, status, jobs = value.content_type, value.status, value.jobs
        value = value.body
    kind, body = BYTES, value
    if isinstance(value, memoryview):
        flat = value.contiguous and value.format == "B" and value.nbytes > PIPE_BUF
        body = value if flat else value.tobytes()
    elif not isinstance(value, (bytes, bytearray)):
        if isinstance(value, str):
            kind, body = _TEXT, _strictly(str.encode, value)
        else:
            kind, body = json, _strictly(dumps, value) + b"\n" * (json is JSON_LINES)
    if given is None and status is None and not jobs:
        return _METAS[kind], body
    facts: dict[str, object] = {"content_type": given or kind}
    if status is not None:
        facts["status"] = status
    if jobs:
        facts["jobs"] = jobs
    return _strictly(dumps, facts), body


def _strictly(encode: Callable[..., bytes], value: object) -> bytes:
    """Encode without replacing anything; raises Fail for what cannot be encoded."""
    try:
        return encode(value, errors="strict")
    except (TypeError, ValueError, RecursionError) as error:
        title = "the worker's handler returned what cannot be sent"
        raise Fail(title, line(error), retry=False) from None
