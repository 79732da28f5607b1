"""
Pull lines from QUEUE into FILE until the mark that `jobgate write` put behind them.

Without a mark it stops after --retries empty polls. Every line is written once, whatever becomes
of the connection or the gate in between, and what was read is compared with what the mark says was
written. FILE may be - for stdout.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import uuid
from contextlib import contextmanager
from os import SEEK_END
from tempfile import SpooledTemporaryFile
from typing import IO, TYPE_CHECKING

from jobgate.cli import target
from jobgate.cli.exits import DONE, FAILED, CliError
from jobgate.cli.lines import END_TYPE, End
from jobgate.cli.meter import Meter

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Iterator

    from jobgate.cli.client import Answer, Client

__all__ = ["Reader", "arguments", "run"]

_MOST = 500
"""Lines of a pull: their ids come in one header, which is to stay under 64 KiB."""
_SPOOL = 8 * 1024 * 1024
"""Bytes of an answer that are kept in memory; beyond, it goes through a temporary file."""
_PIECE = 256 * 1024
_LONG_POLL = 60.0
"""Seconds that a gate may be configured to hold a pull back, where --wait does not say."""
_GONE = (404, 409, 410)
"""What an ack gets for a lease that has run out."""


def arguments(parser: ArgumentParser) -> None:
    """What it takes."""
    target.expect(parser, "QUEUE", "FILE")
    parser.add_argument("--max", type=int, default=_MOST, help=f"lines of a pull ({_MOST})")
    parser.add_argument("--wait", type=float, help="seconds of a poll (as the gate has it)")
    parser.add_argument("--retries", type=int, default=3, help="empty polls before it stops (3)")
    parser.add_argument("--lease", type=float, default=60, help="seconds to write a pull (60)")
    parser.add_argument(
        "--patience", type=float, default=300, metavar="SECONDS", help="without any answer (300)"
    )
    parser.add_argument("--no-check", action="store_true", help="a part of a file is good, too")
    parser.add_argument("--json", action="store_true", help="a summary as JSON, see the docs")


def run(args: Namespace) -> int:
    """Do it."""
    queue, name = target.words(args)
    to_stdout = name == "-"
    shown = not args.json and not (to_stdout and sys.stdout.isatty())
    with _open(name) as file, Meter("read", "lines", None, shown=shown) as meter:
        client = target.client(args, args.patience, meter.say)
        reader = Reader(client, queue, file, meter, args.max, args.lease, args.wait)
        end = reader.read(args.retries)
    if args.json:
        told = {
            "lines": meter.count,
            "size": meter.size,
            "sha256": reader.sha256,
            "mark": None if end is None else end._asdict(),
            "seconds": round(meter.seconds, 3),
            "repeated": client.repeated,
        }
        (sys.stderr if to_stdout else sys.stdout).write(json.dumps(told) + "\n")
    if end is not None and not args.no_check:
        reader.compare(end)
    return DONE


@contextmanager
def _open(name: str) -> Iterator[IO[bytes]]:
    if name == "-":
        yield sys.stdout.buffer
        return
    try:
        file = open(name, "wb")  # noqa: PTH123, SIM115 (closed below)
    except OSError as error:
        raise CliError(f"{name}: {error.strerror}", FAILED) from None
    with file:
        yield file


class Reader:
    """
    Pulls one file.

    What is pulled stays leased until it is written; only then it is acknowledged. A pull or an
    acknowledgement whose answer is lost is asked for again: under its own key a pull gives the same
    lease and the same lines while the lease lives. If it has run out before it could be
    acknowledged, its lines will come again: their ids are remembered, and they are not written
    twice.

    Args:
        client: The gate.
        queue: The queue's name.
        file: Where the lines go.
        meter: Told of what has been written.
        most: Lines of a pull.
        lease: Seconds from a pull to its acknowledgement.
        wait: Seconds of a poll; None: as the gate has it.
    """

    def __init__(
        self,
        client: Client,
        queue: str,
        file: IO[bytes],
        meter: Meter,
        most: int = _MOST,
        lease: float = 60,
        wait: float | None = None,
    ) -> None:
        self._client = client
        self._file = file
        self._meter = meter
        self._path = (
            f"/pull/{target.segment(queue)}?max={most}&each=line&lease={target.plain(lease)}"
        )
        self._wait = _LONG_POLL if wait is None else wait
        if wait is not None:
            self._path += f"&wait={target.plain(wait)}"
        self._run = uuid.uuid4().hex
        self._pulls = 0
        self._digest = hashlib.sha256()
        self._newline_due = False
        self._written_before: set[str] = set()

    @property
    def sha256(self) -> str:
        """The digest of what has been written."""
        return self._digest.hexdigest()

    def read(self, retries: int) -> End | None:
        """
        Pull and write until the mark, which is returned, or until so many polls were empty.

        Raises:
            CliError: It cannot be done; how many lines have been written is in the message.
        """
        empty = 0
        with SpooledTemporaryFile(_SPOOL) as spool:
            while empty < retries:
                answer = self._pull(spool)
                if answer.status == 204:
                    empty += 1
                    continue
                empty = 0
                end = self._take(answer, spool)
                if end is not None:
                    return end
        self._finish(newline=True)
        return None

    def compare(self, end: End) -> None:
        """
        Raises:
            CliError: What was written is not what the mark says.
        """
        lines, size = self._meter.count, self._meter.size
        if (end.lines, end.size, end.sha256) != (lines, size, self.sha256):
            raise CliError(
                f"read {lines} lines ({size} bytes, sha256 {self.sha256}), but"
                f" {end.lines} lines ({end.size} bytes, sha256 {end.sha256}) were written:"
                " does somebody else read from this queue, or write to it?",
                FAILED,
            )

    def _pull(self, spool: IO[bytes]) -> Answer:
        # Another key for each pull that has had its answer, the same while it has not.
        self._pulls += 1
        headers = {"Idempotency-Key": f"{self._run}-{self._pulls}"}
        spool.seek(0)
        spool.truncate()
        answer = self._client.insist("POST", self._path, b"", headers, wait=self._wait, into=spool)
        if answer.status not in (200, 204):
            raise self._told(answer.error)
        return answer

    def _take(self, answer: Answer, spool: IO[bytes]) -> End | None:
        """Write what was pulled, then acknowledge it; returns the mark if it was that."""
        ids = re.findall(r"[^\s,]+", answer.headers.get("jobgate-ids", ""))
        lease = answer.headers.get("jobgate-lease", "")
        if not ids or not lease:
            raise self._told(CliError("found no Jobgate-Ids and Jobgate-Lease: is this a gate?"))
        end = None
        if answer.headers.get("content-type", "").partition(";")[0] == END_TYPE:
            spool.seek(0)
            try:
                end = End.decode(spool.read())
            except ValueError as error:
                raise self._told(CliError(str(error))) from None
            self._finish(newline=end.newline)
        elif self._written_before.isdisjoint(ids):
            self._copy(spool, len(ids), whole="jobgate-id" in answer.headers)
        else:
            self._copy_new(spool, ids, whole="jobgate-id" in answer.headers)
        self._file.flush()
        self._acknowledge(lease, ids)
        return end

    def _acknowledge(self, lease: str, ids: list[str]) -> None:
        answer = self._client.insist("POST", f"/leases/{target.segment(lease)}/ack")
        if answer.status in _GONE:
            self._written_before.update(ids)
        elif answer.status >= 300:
            raise self._told(answer.error)
        else:
            self._written_before.difference_update(ids)

    def _copy(self, spool: IO[bytes], count: int, *, whole: bool) -> None:
        """
        Write an answer of so many lines, however long it is.

        Each comes with its newline, but `whole` is one body that is no line, as it was pushed.
        """
        length = spool.seek(0, SEEK_END)
        left = length if whole else length - 1
        self._begin_line()
        spool.seek(0)
        while left > 0:
            piece = spool.read(min(_PIECE, left))
            left -= len(piece)
            self._write(piece)
        self._meter.moved(count, 0)

    def _copy_new(self, spool: IO[bytes], ids: list[str], *, whole: bool) -> None:
        """The same, without the lines that have been written before."""
        spool.seek(0)
        bodies = [spool.read()] if whole else spool.read().split(b"\n")[:-1]
        for name, body in zip(ids, bodies, strict=True):
            if name not in self._written_before:
                self._begin_line()
                self._write(body)
                self._meter.moved(1, 0)

    def _begin_line(self) -> None:
        """Whether the last line ends with a newline is not known before the mark has come."""
        if self._newline_due:
            self._write(b"\n")
        self._newline_due = True

    def _finish(self, *, newline: bool) -> None:
        if self._newline_due and newline:
            self._write(b"\n")
        self._newline_due = False

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._digest.update(data)
        self._meter.moved(0, len(data))

    def _told(self, error: CliError) -> CliError:
        """The error, with how far it has come."""
        return CliError(f"after {self._meter.count} lines: {error}", error.status)
