"""
List jobs, newest first; or with an ID show that one, cancel it, run it again or print its result.
"""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from jobgate.cli import target
from jobgate.cli.bodies import document, write_json
from jobgate.cli.exits import DONE, FAILED, NOTHING, USAGE, CliError

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from jobgate.cli.client import Answer, Client

__all__ = ["arguments", "result", "run"]

_POLL = 60.0
"""Seconds for which one request may wait."""
_PAGE = 100
_GOOD = (200, 202)
_STATES = ["blocked", "scheduled", "queued", "running", "succeeded", "failed", "cancelled", "dead"]
_WIDTH = 8
_COLUMNS = ("id", "queue", "state", "attempt", "created", "why")


def arguments(parser: ArgumentParser) -> None:
    """What it takes."""
    target.expect(parser, "[ID]")
    parser.add_argument("--queue", help="jobs of this queue only")
    parser.add_argument("--state", choices=_STATES, help="jobs in this state only")
    parser.add_argument("--limit", type=int, default=20, help="how many (20)")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--result", action="store_true", help="print the reply of ID")
    what.add_argument("--cancel", action="store_true", help="cancel ID")
    what.add_argument("--retry", action="store_true", help="run ID again: it is dead or failed")
    parser.add_argument("--wait", type=float, default=0, metavar="SECONDS", help="for a result")
    parser.add_argument("--json", action="store_true", help="documents as JSON, one a line")


def run(args: Namespace) -> int:
    """Do it."""
    (name,) = target.words(args)
    client = target.client(args)
    if not name:
        if args.result or args.cancel or args.retry:
            raise CliError("found no ID, wanted the one to do that with", USAGE)
        return _list(client, args)
    path = f"/jobs/{target.segment(name)}"
    if args.result:
        return _result(client, path, args)
    if args.cancel:
        answer = client.once("DELETE", path)
    elif args.retry:
        answer = client.once("POST", f"{path}/retry")
    else:
        answer = client.once("GET", path)
    if answer.status not in _GOOD:
        raise answer.error
    _show(answer.json(), as_json=args.json)
    return DONE


def _list(client: Client, args: Namespace) -> int:
    left, after = args.limit, ""
    if not args.json:
        sys.stdout.write("\t".join(_COLUMNS) + "\n")
    while left > 0:
        asked = {"queue": args.queue, "state": args.state, "limit": min(left, _PAGE)}
        query = {name: value for name, value in {**asked, "after": after}.items() if value}
        answer = client.once("GET", f"/jobs?{urlencode(query)}")
        if answer.status != 200:
            raise answer.error
        page = answer.json()
        for job in page["jobs"]:
            if args.json:
                write_json(job)
            else:
                cells = ("" if job.get(name) is None else str(job[name]) for name in _COLUMNS)
                sys.stdout.write("\t".join(cells) + "\n")
        left -= len(page["jobs"])
        after = page.get("after")
        if not after or not page["jobs"]:
            break
    return DONE


def _show(job: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        write_json(job)
        return
    for name, value in job.items():
        if name != "links" and value not in (None, {}, []):
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            sys.stdout.write(f"{name:{_WIDTH}}  {text}\n")


def _result(client: Client, path: str, args: Namespace) -> int:
    answer = result(client, f"{path}/result", args.wait)
    failed = answer.headers.get("content-type", "").startswith("application/problem+json")
    if args.json:
        write_json(document(answer))
    elif answer.status == 202:
        job = answer.json()
        sys.stderr.write(f"jobgate: {job['state']}: {job.get('why') or 'no result yet'}\n")
    elif not failed:
        sys.stdout.buffer.write(answer.body)
        sys.stdout.buffer.flush()
    if answer.status == 202:
        return NOTHING
    if failed:
        error = answer.error
        # What the job ended with is the job's failure, not the request's.
        ended = answer.slug not in ("unknown-job", "bad-request", "unauthorized", "forbidden")
        raise CliError(str(error), FAILED if ended else error.status)
    return DONE


def result(client: Client, path: str, wait: float) -> Answer:
    """The outcome of a job or a graph; status 202 if it has none within so many seconds."""
    deadline = time.monotonic() + wait
    while True:
        left = min(max(deadline - time.monotonic(), 0), _POLL)
        answer = client.once("GET", f"{path}?wait={target.plain(left)}", wait=left)
        if answer.status != 202 or time.monotonic() >= deadline:
            return answer
