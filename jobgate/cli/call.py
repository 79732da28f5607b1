"""
Have a command run by QUEUE and print its reply.

BODY is the command; without it, stdin is. The reply goes to stdout as it is, also when its status
is one of failure; with --json everything about it does, as one document.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from jobgate.cli import target
from jobgate.cli.bodies import body_arguments, body_of, document, write_json
from jobgate.cli.exits import DONE, CliError

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

__all__ = ["arguments", "run"]

_NO_END = 24 * 3600.0
"""Seconds to wait where only the queue says how long a call may take."""


def arguments(parser: ArgumentParser) -> None:
    """What it takes."""
    target.expect(parser, "QUEUE", "[BODY]")
    body_arguments(parser)
    parser.add_argument("--timeout", type=float, metavar="SECONDS", help="in all")
    parser.add_argument("--no-queue", action="store_true", help="only if a worker is free now")
    parser.add_argument("--json", action="store_true", help="all about the reply, as JSON")


def run(args: Namespace) -> int:
    """Do it."""
    queue, given = target.words(args)
    body, headers = body_of(args, given)
    if args.timeout is not None:
        headers["Jobgate-Timeout"] = target.plain(args.timeout)
    if args.no_queue:
        headers["Jobgate-No-Queue"] = "?1"
    wait = args.timeout or _NO_END
    path = f"/call/{target.segment(queue)}"
    answer = target.client(args).once("POST", path, body, headers, wait=wait)
    failed = answer.headers.get("content-type", "").startswith("application/problem+json")
    if args.json:
        write_json(document(answer))
    elif not failed:
        sys.stdout.buffer.write(answer.body)
        sys.stdout.buffer.flush()
    if failed:
        raise answer.error
    if answer.status >= 400:
        raise CliError(f"the worker replied with status {answer.status}")
    return DONE
