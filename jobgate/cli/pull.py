"""
Take commands from QUEUE and print them: one, or with --max several as lines.

What is taken is gone, unless --lease says for how long it may come back: then --json shows the
lease, and the job is ended with a POST to /jobs/ID/reply or /leases/LEASE/ack.
"""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, Any

from jobgate.cli import target
from jobgate.cli.bodies import document, write_json
from jobgate.cli.exits import DONE, NOTHING

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

__all__ = ["arguments", "run"]

_LONG_POLL = 60.0
"""Seconds that a gate may be configured to hold a pull back, where --wait does not say."""


def arguments(parser: ArgumentParser) -> None:
    """What it takes."""
    target.expect(parser, "QUEUE")
    parser.add_argument("--wait", type=float, metavar="SECONDS", help="for one to come")
    parser.add_argument("--max", type=int, metavar="N", help="up to so many, as lines")
    parser.add_argument("--lease", type=float, metavar="SECONDS", help="it comes back after that")
    parser.add_argument("--json", action="store_true", help="all about them, as JSON")


def run(args: Namespace) -> int:
    """Do it."""
    (queue,) = target.words(args)
    asked = {"wait": args.wait, "max": args.max, "lease": args.lease}
    query = [f"{name}={target.plain(value)}" for name, value in asked.items() if value is not None]
    if args.max is not None:
        query.append("each=line")
    path = f"/pull/{target.segment(queue)}{'?' if query else ''}{'&'.join(query)}"
    wait = _LONG_POLL if args.wait is None else args.wait
    answer = target.client(args).once("POST", path, wait=wait)
    if answer.status == 204:
        return NOTHING
    if answer.status != 200:
        raise answer.error
    if args.json:
        found: dict[str, Any] = document(answer)
        if "jobgate-ids" in answer.headers:
            found["ids"] = re.findall(r"[^\s,]+", answer.headers["jobgate-ids"])
        write_json(found)
    else:
        sys.stdout.buffer.write(answer.body)
        sys.stdout.buffer.flush()
    return DONE
