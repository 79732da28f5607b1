"""
Submit jobs that need each other, as JSON from FILE (or - for stdin), and print the graph's id.

With --wait it prints what has become of them; with --id it asks about a graph that is there.
"""

from __future__ import annotations

import sys
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobgate.cli import target
from jobgate.cli.bodies import write_json
from jobgate.cli.exits import DONE, FAILED, NOTHING, USAGE, CliError
from jobgate.cli.jobs import result

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

__all__ = ["arguments", "run"]


def arguments(parser: ArgumentParser) -> None:
    """What it takes."""
    target.expect(parser, "[FILE]")
    parser.add_argument("--id", help="of a graph that was submitted before")
    parser.add_argument("--cancel", action="store_true", help="cancel that one")
    parser.add_argument("--wait", type=float, metavar="SECONDS", help="for all jobs to end")
    parser.add_argument(
        "--patience", type=float, default=30, metavar="SECONDS", help="for a gate to answer (30)"
    )
    parser.add_argument("--json", action="store_true", help="the whole document, as JSON")


def run(args: Namespace) -> int:
    """Do it."""
    (name,) = target.words(args)
    if bool(name) == bool(args.id):
        raise CliError("found no graph, wanted either FILE or --id", USAGE)
    if args.cancel and not args.id:
        raise CliError("found --cancel, wanted --id with it", USAGE)
    client = target.client(args, args.patience)
    graph = args.id
    if not graph:
        headers = {"Content-Type": "application/json", "Idempotency-Key": uuid.uuid4().hex}
        answer = client.insist("POST", "/graphs", _body(name), headers)
        if answer.status != 202:
            raise answer.error
        graph = answer.json()["id"]
        if args.wait is None:
            if args.json:
                write_json(answer.json())
            else:
                sys.stdout.write(f"{graph}\n")
            return DONE
    path = f"/graphs/{target.segment(graph)}"
    if args.cancel:
        answer = client.once("DELETE", path)
    elif args.wait is not None:
        answer = result(client, f"{path}/result", args.wait)
    else:
        answer = client.once("GET", path)
    if answer.status not in (200, 202):
        raise answer.error
    found = answer.json()
    _show(found, as_json=args.json)
    if args.cancel or args.wait is None:
        return DONE
    if answer.status == 202:
        return NOTHING
    return DONE if found.get("state") == "succeeded" else FAILED


def _body(name: str) -> bytes:
    if name == "-":
        return sys.stdin.buffer.read()
    try:
        return Path(name).read_bytes()
    except OSError as error:
        raise CliError(f"{name}: {error.strerror}") from None


def _show(graph: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        write_json(graph)
        return
    sys.stdout.write(f"{graph['id']}\t{graph.get('state', '')}\n")
    for name, job in graph.get("jobs", {}).items():
        told = job if isinstance(job, dict) else {"id": job}
        sys.stdout.write(f"{name}\t{told.get('state', '')}\t{told['id']}\n")
