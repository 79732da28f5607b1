"""
What is asked of a worker, and what it has to do for it.

A check is given a worker that is ready and says in words what it saw, or raises NotHeld.
Must not know how that is shown.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, NamedTuple

from jobgate.cli.probe import NotHeld
from jobgate.command import Reply
from jobgate.wire import frames

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from jobgate.cli.probe import Probe
    from jobgate.errors import JobgateError
    from jobgate.pool.report import Report

__all__ = ["FRAMES", "LINES", "Check", "Sample"]

_LARGE = 2 * 1024 * 1024
"""Bytes of a large body: more than a pipe holds, even an enlarged one."""
_LONG = 256 * 1024
"""Bytes of a long line."""
_QUIET = 0.2
"""Seconds in which nothing more must be said."""
_NEVER_GIVEN = 0xFFFF_FFF0
"""A frame id that no command has."""


class Sample(NamedTuple):
    """A body to try the worker with, and its content type."""

    body: bytes
    content_type: str


class Check(NamedTuple):
    """
    One promise.

    Attributes:
        name: For the report.
        run: Looks whether it is kept.
        ends: The worker is gone afterwards.
        advice: Not to keep it is no fault, but worth to be known.
    """

    name: str
    run: Callable[[Probe, Sample], Awaitable[str]]
    ends: bool = False
    advice: bool = False


def _said(outcome: Reply | JobgateError) -> str:
    if isinstance(outcome, Reply):
        return f"{outcome.status} {outcome.content_type}, {len(outcome.body)} B"
    return f"FAIL {getattr(outcome, 'status', '')} {outcome.title}".replace("  ", " ")


async def _ask(probe: Probe, body: bytes, content_type: str = "application/octet-stream") -> str:
    command = probe.command(body, content_type)
    probe.give(command)
    return _said((await probe.answered(command))[0])


# --- both protocols


async def _answer(probe: Probe, sample: Sample) -> str:
    """A command gets an answer."""
    return await _ask(probe, *sample)


async def _torn(probe: Probe, sample: Sample) -> str:
    """Input may come in any pieces: here every byte alone."""
    probe.worker.torn = True
    try:
        return await _ask(probe, *sample)
    finally:
        probe.worker.torn = False


async def _quiet(probe: Probe, _: Sample) -> str:
    """Nothing is said that was not asked for."""
    await probe.quiet(_QUIET)
    return f"nothing for {_QUIET:g} s"


async def _end_of_input(probe: Probe, _: Sample) -> str:
    """The end of stdin means that the gate is gone, or wants it gone: it exits."""
    probe.worker.end_input()
    return _exit(await probe.gone())


def _exit(report: Report) -> str:
    return f"{report.cause} after {report.lived:.2f} s"


# --- frames


async def _hello(probe: Probe, _: Sample) -> str:
    """HELLO is the first frame, within `boot_timeout`."""
    conversation = probe.worker.conversation
    room = conversation.capacity
    order = "in order" if conversation.ordered else "in any order"
    return f"ready, takes {room} {'command' if room == 1 else 'commands'} at once, answers {order}"


async def _empty(probe: Probe, _: Sample) -> str:
    """An empty body is a command like any other."""
    return await _ask(probe, b"")


async def _every_byte(probe: Probe, _: Sample) -> str:
    """A body may be any bytes; a FAIL is as good an answer as a REPLY."""
    return await _ask(probe, bytes(range(256)) * 4)


async def _large(probe: Probe, sample: Sample) -> str:
    """A body may be larger than a pipe."""
    return await _ask(probe, _much(sample), sample.content_type)


async def _unread(probe: Probe, sample: Sample) -> str:
    """While the gate does not read, the worker waits, and loses nothing."""
    command = probe.command(_much(sample), sample.content_type)
    probe.worker.hold(on=True)
    probe.give(command)
    await probe.quiet(_QUIET)
    probe.worker.hold(on=False)
    return _said((await probe.answered(command))[0])


def _much(sample: Sample) -> bytes:
    return (sample.body or b"x") * (_LARGE // max(1, len(sample.body)))


async def _strange_meta(probe: Probe, sample: Sample) -> str:
    """A meta is JSON with members that the worker need not know."""
    command = probe.command(sample.body, sample.content_type + '; name="\u00e9 \U0001f600 \\"x\\""')
    command.headers = {"jobgate-key": 'a "key" \\ ', "a-later-one": "\u2028 {}[]" * 100}
    probe.give(command)
    return _said((await probe.answered(command))[0])


async def _joined(probe: Probe, sample: Sample) -> str:
    """Several frames may come in one piece; each command gets its own answer."""
    commands = [probe.command(sample.body, sample.content_type) for _ in range(probe.worker.room)]
    probe.worker.held = True
    probe.give(*commands)
    probe.worker.release()
    answers = await probe.answered(*commands)
    return f"{len(answers)} of {len(commands)} answered"


async def _cancel(probe: Probe, sample: Sample) -> str:
    """A cancelled command still gets exactly one last word; a late CANCEL means nothing."""
    command = probe.command(sample.body, sample.content_type)
    probe.worker.held = True
    probe.give(command)
    probe.worker.conversation.cancel(command)
    probe.worker.release()
    said = _said((await probe.answered(command))[0])
    probe.worker.write(frames.encode(frames.CANCEL, 0), b"", idle=True)
    await probe.quiet(_QUIET)
    return said


async def _unknown(probe: Probe, sample: Sample) -> str:
    """What it need not know, it ignores: ids never given, types of later versions."""
    batch = json.dumps({"count": 1}).encode()
    for frame in (
        frames.encode(frames.CANCEL, _NEVER_GIVEN),
        frames.encode(frames.BATCH + 1, 7, b'{"later": true}', b"body"),
        frames.encode(200),
        frames.encode(frames.BATCH, 0, batch),
    ):
        probe.worker.write(frame, b"", idle=True)
    said = await _ask(probe, *sample)
    await probe.quiet(_QUIET)
    return said


async def _ping(probe: Probe, _: Sample) -> str:
    """PING gets a PONG, also in single bytes."""
    for torn in (False, True):
        probe.worker.torn = torn
        probe.worker.conversation.ping()
        await probe.ponged()
    probe.worker.torn = False
    return "PONG"


async def _drain(probe: Probe, _: Sample) -> str:
    """DRAIN while idle: it exits with status 0."""
    probe.worker.conversation.drain()
    return _clean(await probe.gone())


async def _drain_behind(probe: Probe, sample: Sample) -> str:
    """DRAIN behind a command: that is finished first, its answer comes whole, then exit 0."""
    command = probe.command(_much(sample), sample.content_type)
    probe.worker.held = True
    probe.give(command)
    probe.worker.conversation.drain()
    probe.worker.release()
    report = await probe.gone()
    outcome = probe.outcomes[command.id]
    if outcome is None:
        raise NotHeld(f"{report.cause}, and the command has no answer")
    return f"{_said(outcome)}; {_clean(report)}"


async def _end_inside(probe: Probe, sample: Sample) -> str:
    """The end of stdin inside a frame: it exits, and answers nothing."""
    whole = frames.encode(frames.COMMAND, 0, b"{}", sample.body + b".")
    probe.worker.write(whole[:-1], b"", idle=True)
    probe.worker.end_input()
    report = await probe.gone()
    if probe.strays or probe.worker.breach:
        raise NotHeld(probe.worker.breach or "it answered a command that had not come whole")
    return _exit(report)


def _clean(report: Report) -> str:
    if report.exit_status != 0:
        raise NotHeld(f"{report.cause}, where status 0 is wanted")
    return "exit 0"


FRAMES = (
    Check("hello", _hello),
    Check("answer", _answer),
    Check("empty body", _empty),
    Check("every byte", _every_byte),
    Check("large body", _large),
    Check("gate does not read", _unread),
    Check("strange meta", _strange_meta),
    Check("byte by byte", _torn),
    Check("joined frames", _joined),
    Check("cancel", _cancel),
    Check("unknown frames", _unknown),
    Check("ping", _ping),
    Check("nothing stray", _quiet),
    Check("drain", _drain, ends=True),
    Check("drain behind work", _drain_behind, ends=True),
    Check("end of input", _end_of_input, ends=True),
    Check("end inside a frame", _end_inside, ends=True),
)
"""What a `frames` worker has to do, in the order in which it is asked."""


# --- lines


async def _torn_line(probe: Probe, sample: Sample) -> str:
    """As with frames; but what is answered before all of a `send` is read is left over."""
    if probe.worker.config.send.count("\n") > 1:
        return "not looked at: `send` has several lines"
    return await _torn(probe, sample)


async def _ready(_: Probe, __: Sample) -> str:
    """It starts; where a banner is awaited, that has come."""
    return "ready"


async def _long_line(probe: Probe, sample: Sample) -> str:
    """A line may be long."""
    body = (sample.body or b"x") * (_LONG // max(1, len(sample.body)))
    return await _ask(probe, body, "text/plain")


async def _five(probe: Probe, sample: Sample) -> str:
    """One command after the other: each gets one answer and nothing is left over."""
    for _ in range(5):
        await _ask(probe, *sample)
        await probe.quiet(_QUIET / 10)
    return "5 of 5 answered"


async def _empty_line(probe: Probe, _: Sample) -> str:
    """An empty line is answered too: a caller may send an empty body."""
    return await _ask(probe, b"", "text/plain")


LINES = (
    Check("start", _ready),
    Check("answer", _answer),
    Check("one after the other", _five),
    Check("byte by byte", _torn_line),
    Check("nothing stray", _quiet),
    Check("end of input", _end_of_input, ends=True),
    Check("long line", _long_line, advice=True),
    Check("empty line", _empty_line, advice=True),
)
"""What a `lines` worker has to do."""
