"""
Show queues and workers: on a terminal again and again until Ctrl-C, elsewhere once.
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

from jobgate.cli import target
from jobgate.cli.bodies import write_json
from jobgate.cli.exits import DONE

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from jobgate.cli.client import Client

__all__ = ["arguments", "picture", "run"]

_HOME_AND_CLEAR = "\x1b[H\x1b[J"
_QUEUES = ("queue", "state", "waiting", "running", "workers", "done/s", "failed", "shed", "wait")
_WORKERS = ("worker", "pid", "state", "done", "MiB", "restarts", "command")


def arguments(parser: ArgumentParser) -> None:
    """What it takes."""
    target.expect(parser)
    parser.add_argument("--interval", type=float, default=2, metavar="SECONDS", help="(2)")
    parser.add_argument("--count", type=int, help="look so often (on a terminal: no end)")
    parser.add_argument("--json", action="store_true", help="a document for each look")


def run(args: Namespace) -> int:
    """Do it."""
    target.words(args)
    client = target.client(args, patience=30)
    alive = sys.stdout.isatty() and not args.json
    looks = args.count if args.count is not None else (sys.maxsize if alive else 1)
    before: dict[str, int] = {}
    looked = time.monotonic()
    for number in range(looks):
        if number:
            time.sleep(args.interval)
        found = {**_get(client, "/queues"), **_get(client, "/workers")}
        now = time.monotonic()
        if args.json:
            write_json(found)
        else:
            text = picture(found, before, now - looked)
            sys.stdout.write(_HOME_AND_CLEAR + text if alive else text)
            sys.stdout.flush()
        before, looked = {queue["name"]: _ended(queue) for queue in found["queues"]}, now
    return DONE


def _get(client: Client, path: str) -> dict[str, Any]:
    answer = client.insist("GET", path)
    if answer.status != 200:
        raise answer.error
    document: dict[str, Any] = answer.json()
    return document


def _ended(queue: dict[str, Any]) -> int:
    return int(queue["succeeded"]) + int(queue["failed"])


def picture(found: dict[str, Any], before: dict[str, int], seconds: float) -> str:
    """
    Both tables as text.

    Args:
        found: What the gate says of queues and workers.
        before: How many commands each queue had ended at the look before.
        seconds: How long ago that was.
    """
    queues = [_QUEUES]
    for queue in found["queues"]:
        name = queue["name"]
        rate = (_ended(queue) - before[name]) / seconds if name in before and seconds else None
        wait = queue["expected_wait"]
        queues.append((
            name, queue["state"], queue["depth"], queue["running"], queue["workers"],
            "" if rate is None else f"{rate:.1f}", queue["failed"], queue["shed"],
            "" if wait is None else f"{wait:.1f} s",
        ))  # fmt: skip
    workers = [_WORKERS]
    for worker in found["workers"]:
        rss = worker["rss"]
        workers.append((
            worker["name"], worker["pid"] or worker.get("address") or "", worker["state"],
            worker["done"], "" if rss is None else f"{rss / 2**20:.0f}", worker["restarts"],
            worker["command"] or "",
        ))  # fmt: skip
    return f"{_table(queues)}\n{_table(workers)}"


def _table(rows: list[Any]) -> str:
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = (
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    )
    return "".join(f"{line}\n" for line in lines)
