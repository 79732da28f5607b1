"""
Bodies of commands: where a command line takes them from, and how JSON shows them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobgate.cli.exits import USAGE, CliError

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from jobgate.cli.client import Answer

__all__ = ["as_json", "body_arguments", "body_of", "document", "write_json"]

_SHOWN = {"jobgate-id": "id", "jobgate-attempt": "attempt", "jobgate-worker": "worker",
          "jobgate-lease": "lease", "content-type": "content_type"}  # fmt: skip
"""Response headers that are members of a document."""


def body_arguments(parser: ArgumentParser) -> None:
    """The options of what is sent."""
    parser.add_argument("--file", "-f", metavar="FILE", help="take the body from here")
    parser.add_argument("--content-type", "-t", help="what the body is")
    parser.add_argument("--priority", type=int, choices=range(8), help="0 first, 7 last")
    parser.add_argument("--key", help="the same key goes to the same shard")
    parser.add_argument("--idempotency-key", metavar="KEY", help="the same key runs once")


def body_of(args: Namespace, given: str) -> tuple[bytes, dict[str, str]]:
    """
    The body and the headers that those options ask for.

    Raises:
        CliError: There are two bodies, or the file cannot be read.
    """
    asked = {
        "Content-Type": args.content_type,
        "Priority": None if args.priority is None else f"u={args.priority}",
        "Jobgate-Key": args.key,
        "Idempotency-Key": args.idempotency_key,
    }
    headers = {name: value for name, value in asked.items() if value is not None}
    if args.file is not None and given:
        raise CliError("found a BODY and --file, wanted one of them", USAGE)
    if args.file not in (None, "-"):
        try:
            return Path(args.file).read_bytes(), headers
        except OSError as error:
            raise CliError(f"{args.file}: {error.strerror}") from None
    if given:
        # What the shell gave as bytes that are no text comes through as it was.
        return given.encode("utf-8", "surrogateescape"), headers
    return sys.stdin.buffer.read(), headers


def document(answer: Answer) -> dict[str, Any]:
    """All about an answer."""
    known: dict[str, Any] = {
        name: answer.headers[key] for key, name in _SHOWN.items() if key in answer.headers
    }
    if known.get("attempt", "").isdecimal():
        known["attempt"] = int(known["attempt"])
    return {"status": answer.status, **known, **as_json(answer.body)}


def as_json(body: bytes) -> dict[str, str]:
    """A body as a member of a JSON document: `body` if it is text, else `body_base64`."""
    try:
        return {"body": body.decode()}
    except UnicodeDecodeError:
        from base64 import b64encode

        return {"body_base64": b64encode(body).decode()}


def write_json(value: object) -> None:
    """One document as one line on stdout."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False) + "\n")
    sys.stdout.flush()
