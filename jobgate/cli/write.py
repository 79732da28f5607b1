"""
Push every line of FILE into QUEUE, in order, and mark the end of the file.

A full queue, a gate that restarts and a lost connection are waited for, for up to --patience
seconds without progress; nothing is pushed twice. FILE may be - for stdin.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import uuid
from typing import IO, TYPE_CHECKING

from jobgate.cli import target
from jobgate.cli.exits import DONE, FAILED, REFUSED, CliError
from jobgate.cli.lines import END_TYPE, LINE_TYPE, Batch, End, LineTooLong, batches, halves
from jobgate.cli.meter import Meter

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from jobgate.cli.client import Answer, Client

__all__ = ["Writer", "arguments", "run"]

_SIZE = 256 * 1024
"""Bytes of a batch: large enough that a request costs little, small enough for any gate."""
_MOST = 10_000
"""Lines of a batch."""
_FULL = "queue-full"
_ACCEPTED, _TOO_LARGE = 202, 413


def arguments(parser: ArgumentParser) -> None:
    """What it takes."""
    target.expect(parser, "QUEUE", "FILE")
    parser.add_argument("--content-type", default=LINE_TYPE, help="of each line")
    parser.add_argument("--priority", type=int, choices=range(8), help="0 first, 7 last")
    parser.add_argument(
        "--patience", type=float, default=300, metavar="SECONDS", help="without progress (300)"
    )
    parser.add_argument("--no-mark", action="store_true", help="do not mark the end of the file")
    parser.add_argument("--json", action="store_true", help="a summary as JSON on stdout")


def run(args: Namespace) -> int:
    """Do it."""
    queue, name = target.words(args)
    with _open(name) as file:
        stat = os.fstat(file.fileno())
        # A pipe's size is not known, and 0 of a regular file is.
        total = stat.st_size if stat.st_size or not name.startswith("-") else None
        with Meter("write", "lines", total, shown=not args.json) as meter:
            client = target.client(args, args.patience, meter.say)
            writer = Writer(client, queue, meter, args.content_type, args.priority)
            end = writer.write(file, mark=not args.no_mark)
    if args.json:
        told = {**end._asdict(), "seconds": round(meter.seconds, 3), "repeated": client.repeated}
        sys.stdout.write(json.dumps(told) + "\n")
    return DONE


def _open(name: str) -> IO[bytes]:
    if name == "-":
        return sys.stdin.buffer
    try:
        return open(name, "rb")  # noqa: PTH123 (the caller's `with` closes it)
    except OSError as error:
        raise CliError(f"{name}: {error.strerror}", FAILED) from None


class Writer:
    """
    Pushes one file.

    Args:
        client: The gate.
        queue: The queue's name.
        meter: Told of what has been accepted.
        content_type: Of each line.
        priority: Of each command, or None.
    """

    def __init__(
        self,
        client: Client,
        queue: str,
        meter: Meter,
        content_type: str = LINE_TYPE,
        priority: int | None = None,
    ) -> None:
        self._client = client
        self._path = f"/push/{target.segment(queue)}"
        self._meter = meter
        self._headers = {} if priority is None else {"Priority": f"u={priority}"}
        self._content_type = content_type
        self._run = uuid.uuid4().hex
        self._pushes = 0
        self._at_once = _MOST

    def write(self, file: IO[bytes], *, mark: bool = True) -> End:
        """
        Push all lines, then the mark; returns what it says.

        Raises:
            CliError: It cannot be done; how many lines have been accepted is in the message.
        """
        digest = hashlib.sha256()
        last = b"\n"
        # What a pipe has is sent on at once; of a regular file it is all that was asked for.
        read = getattr(file, "read1", file.read)
        try:
            for batch in batches(read, _SIZE, _MOST):
                digest.update(batch.data)
                last = batch.data[-1:]
                self._push(batch)
        except LineTooLong:
            error = CliError("the next line is longer than any gate takes", REFUSED)
            raise self._told(error) from None
        end = End(self._meter.count, self._meter.size, digest.hexdigest(), last == b"\n")
        if mark:
            answer = self._send(self._path, end.encode(), END_TYPE)
            if answer.status != _ACCEPTED:
                raise self._told(answer.error)
        return end

    def _push(self, batch: Batch) -> None:
        """Push a batch, in smaller ones if the gate has no room for all of it."""
        waiting = [batch]
        while waiting:
            batch = waiting.pop()
            if batch.lines <= self._at_once:
                several = batch.lines > 1
                path = f"{self._path}?each=line"
                answer = self._send(path, batch.data, self._content_type, split=several)
                if answer.status == _ACCEPTED:
                    self._count(batch, answer)
                    continue
                full = answer.slug == _FULL
                # Where a try has been lost, these lines may be in: they must stay together.
                if not several or answer.lost_before or not (full or answer.status == _TOO_LARGE):
                    raise self._told(answer.error)
                self._at_once = (batch.lines + 1) // 2
                if full:
                    self._client.rest(answer.retry_after, str(answer.error))
            waiting += reversed(halves(batch))

    def _count(self, batch: Batch, answer: Answer) -> None:
        found = answer.json().get("accepted")
        if found != batch.lines:
            message = f"pushed {batch.lines} lines, and the gate says it has accepted {found}"
            raise self._told(CliError(message, FAILED))
        self._at_once = min(self._at_once * 2, _MOST)
        self._meter.say("")
        self._meter.moved(batch.lines, len(batch.data))

    def _send(self, path: str, body: bytes, content_type: str, *, split: bool = False) -> Answer:
        """Push something once, under a key that no other push has, however often it is sent."""
        self._pushes += 1
        headers = {
            **self._headers,
            "Content-Type": content_type,
            "Idempotency-Key": f"{self._run}-{self._pushes}",
        }
        also = (_FULL,) if split else ()
        return self._client.insist("POST", path, body, headers, also=also)

    def _told(self, error: CliError) -> CliError:
        """The error, with how far it has come."""
        return CliError(f"after {self._meter.count} lines: {error}", error.status)
