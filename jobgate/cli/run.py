"""
Without a gate: every line of FILE (or of stdin) is a command, and the replies come out in the order
of the lines, one behind the other, each with a newline behind it.

    seq 10 | jobgate run --worker 'python square.py' --workers 4

A line that fails is told on stderr and leaves an empty line; the exit status is 1 then.
"""

from __future__ import annotations

import fcntl
import os
import sys
from errno import EISDIR
from stat import S_ISDIR
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace
from twisted.logger import ILogObserver, LogLevel, formatEvent, globalLogBeginner
from zope.interface import implementer

from jobgate.cli.exits import BROKEN_PIPE, DONE, FAILED, USAGE, CliError
from jobgate.cli.meter import Meter
from jobgate.cli.stream import Stream
from jobgate.cli.turning import turn
from jobgate.config import (
    FULL,
    Bytes,
    GateConfig,
    GateSettings,
    Linger,
    QueueConfig,
    Seconds,
)
from jobgate.gate import Gate
from jobgate.options import Options

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from twisted.logger import LogEvent

__all__ = ["arguments", "run"]

_WINDOW = 1000
"""Lines that may be under way at once, or done but not yet their turn to be written."""
_NO_BOUND = Bytes(1 << 50)
_OPTIONS = ("worker", "workers", "protocol", "batch-size", "timeout", "config", "queue")


def arguments(parser: ArgumentParser) -> None:
    """What it takes."""
    parser.add_argument("file", nargs="?", default="-", metavar="FILE", help="the lines (stdin)")
    parser.add_argument("--worker", "-w", metavar="COMMAND", help="split as a shell would")
    parser.add_argument("--workers", metavar="N", help=f"how many (one a core: {_cores()})")
    parser.add_argument("--protocol", help="frames or lines")
    parser.add_argument("--batch-size", metavar="N", help="so many lines at a time, at most")
    parser.add_argument("--timeout", help='for one line: seconds, or "500ms", "2m"')
    parser.add_argument("--config", "-c", metavar="FILE", help="take the worker from here")
    parser.add_argument("--queue", "-q", metavar="NAME", help="the queue in that file")
    parser.add_argument(
        "--retry", choices=["never", "if-not-started", "safe"], help="after a worker's death"
    )
    parser.add_argument("--content-type", default="text/plain", help="of each line")
    parser.add_argument("--stop", action="store_true", help="at the first line that fails")
    parser.add_argument("--json", action="store_true", help="a JSON document for each line")


def run(args: Namespace) -> int:
    """Do it."""
    # A store in this folder would be some gate's, with its jobs.
    config = GateConfig(gate=GateSettings(store="memory:"), queues={"run": _queue(args)})
    source = _open(args.file)
    total = os.fstat(source).st_size or None
    flags = {fd: fcntl.fcntl(fd, fcntl.F_GETFL) for fd in (source, 1)}
    ending: list[bool] = []
    _tell_of_workers(ending)
    with Meter("run", "lines", total, shown=not sys.stdout.isatty()) as meter:

        async def main(reactor: Any) -> Stream:  # noqa: ANN401 (IReactorTime and -Process)
            gate = Gate(config, reactor)
            stream = Stream(gate, "run", args.content_type, _WINDOW, meter, as_json=args.json)
            try:
                await gate.start()
                await stream.run(source, stop=args.stop)
            finally:
                ending.append(True)
                await gate.stop()
            return stream

        try:
            stream = turn(main)
        finally:
            # A terminal is shared with the shell, which does not expect it to be non-blocking.
            for fd, before in flags.items():
                fcntl.fcntl(fd, fcntl.F_SETFL, before)
    if stream.unread:
        return BROKEN_PIPE
    if stream.over:
        raise CliError(stream.over)
    return FAILED if stream.failed else DONE


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2


def _queue(args: Namespace) -> QueueConfig:
    """What the options say, read as `twistd jobgate` reads them; nothing is ever refused here."""
    if bool(args.worker) == bool(args.config):
        raise CliError("found no worker, wanted either --worker or --config", USAGE)
    if args.worker and args.workers is None:
        args.workers = str(_cores())
    options = Options()
    given: list[str] = []
    for name in _OPTIONS:
        value = getattr(args, name.replace("-", "_"))
        if value is not None:
            given += [f"--{name}", value]
    options.parseOptions(given)
    assert options.configuration is not None, "set by parseOptions"
    queues = options.configuration.queues
    name = args.queue or next(iter(queues), "")
    if name not in queues or (len(queues) > 1 and not args.queue):
        raise CliError(f"found {len(queues)} queues, wanted --queue with one of them", USAGE)
    if not queues[name].command:
        raise CliError(f"found no command for the queue {name!r}, wanted one", USAGE)
    batch = queues[name].batch
    if batch.linger == FULL:
        # What waits is as much as there may be, and at the end there is no more to come.
        batch = replace(batch, linger=Linger(0))
    return replace(
        queues[name],
        name="run",
        batch=batch,
        retry=args.retry or queues[name].retry,
        shards=1,
        size=_WINDOW,
        queue_timeout=Seconds(0),
        max_waiting_bytes=_NO_BOUND,
    )


def _open(name: str) -> int:
    if name == "-":
        return 0
    try:
        source = os.open(name, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise CliError(f"{name}: {error.strerror}") from None
    if S_ISDIR(os.fstat(source).st_mode):
        # Found out later, it would look like the end of the lines.
        raise CliError(f"{name}: {os.strerror(EISDIR)}")
    return source


def _tell_of_workers(ending: list[bool]) -> None:
    """What workers print, and what goes wrong with them before the end, is for stderr."""

    @implementer(ILogObserver)
    def observe(event: LogEvent) -> None:
        if "line" in event:
            sys.stderr.write(f"{event['worker']}: {event['line']}\n")
        elif event["log_level"] >= LogLevel.warn and not ending:
            sys.stderr.write(f"jobgate: {formatEvent(event)}\n")

    globalLogBeginner.beginLoggingTo([observe], redirectStandardIO=False)
