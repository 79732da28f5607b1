"""
Leave a command for QUEUE and print the id of its job; it runs when its turn comes.

BODY is the command; without it, stdin is. A connection that is lost before the answer has come is
made again: every push has a key of its own, so nothing is pushed twice.
"""

from __future__ import annotations

import sys
import uuid
from typing import TYPE_CHECKING

from jobgate.cli import target
from jobgate.cli.bodies import body_arguments, body_of, write_json
from jobgate.cli.exits import DONE

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

__all__ = ["arguments", "run"]


def arguments(parser: ArgumentParser) -> None:
    """What it takes."""
    target.expect(parser, "QUEUE", "[BODY]")
    body_arguments(parser)
    parser.add_argument("--each-line", action="store_true", help="every line is a command")
    parser.add_argument("--delay", type=float, metavar="SECONDS", help="not before that")
    parser.add_argument("--callback", metavar="URL", help="POST the outcome there")
    parser.add_argument(
        "--patience", type=float, default=30, metavar="SECONDS", help="for a gate to answer (30)"
    )
    parser.add_argument("--json", action="store_true", help="the whole answer, as JSON")


def run(args: Namespace) -> int:
    """Do it."""
    queue, given = target.words(args)
    body, headers = body_of(args, given)
    headers.setdefault("Idempotency-Key", uuid.uuid4().hex)
    if args.delay is not None:
        headers["Jobgate-Delay"] = target.plain(args.delay)
    if args.callback is not None:
        headers["Jobgate-Callback"] = args.callback
    path = f"/push/{target.segment(queue)}{'?each=line' if args.each_line else ''}"
    answer = target.client(args, args.patience).insist("POST", path, body, headers)
    if answer.status != 202:
        raise answer.error
    found = answer.json()
    if args.json:
        write_json(found)
    elif args.each_line:
        sys.stdout.write(f"{found['accepted']}\n")
    else:
        sys.stdout.write(f"{found['id']}\n")
    return DONE
