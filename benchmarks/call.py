"""
How fast is a call? The benchmark of jobgate's main road, against baselines in the same run.

``python benchmarks/call.py`` starts every server as a child process, measures them in
interleaved rounds, prints a table of rows and of claims, and ends with 0 if no claim is below
its floor, 1 if one is, 2 if the run itself failed. ``README.md`` beside this file explains the
rows and how to read them.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import growth
from checks import Bar, Check, ratio_checks
from footprint import start_once, wait_in_line
from groups import chosen, run_group
from measure import spread_of
from processes import BenchmarkError
from report import MEBI, Result
from rows import SERVERS, Bodies, groups
from runs import main, say, wanted
from servers import compiled, version_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

CALLERS = 10_000


def run(result: Result, only: Sequence[str], folder: Path) -> None:
    """
    Measure everything that is asked for; ``--only`` also knows start, waiting and growth.
    """
    for number, group in enumerate(groups(Bodies.make(folder))):
        calls = chosen(group, only, result)
        if calls:
            run_group(calls, folder / str(number), result, SERVERS)
    result.checks += ratio_checks(result.samples)
    for section in (start_checks, waiting_checks, growth_checks):
        if wanted(section.__name__.removesuffix("_checks"), only):
            result.checks += section(folder, result.rounds)


def draw(result: Result, target: Path) -> None:
    """
    Draw the picture, if matplotlib is there.

    Raises:
        BenchmarkError: It is not.
    """
    if version_of("matplotlib") is None:
        raise BenchmarkError("--svg needs matplotlib (the extra `bench`)")
    import picture

    note = (
        "wrk -t1; 100-byte JSON bodies from 32 callers, 1 MiB from 8; two worker processes; "
        f"{result.rounds} interleaved rounds of {result.seconds:g} s"
        f"{'; jobgate compiled' if compiled() else ''}"
    )
    picture.draw(result.checks, result.about, note, target)


def start_checks(folder: Path, rounds: int) -> Iterator[Check]:
    """
    Measure how soon the gate is ready, and its RAM at rest.
    """
    say("starting a gate, several times")
    start_once(folder / "start-warm-up")
    starts = [start_once(folder / f"start-{number}") for number in range(rounds)]
    seconds = spread_of([ready_after for ready_after, _ in starts])
    rss = spread_of([rss / MEBI for _, rss in starts])
    yield Check("start until the listening line", "s", seconds, Bar(1.0, more=False))
    yield Check("RSS of the gate at rest", "MiB", rss, Bar(70, more=False))


def waiting_checks(folder: Path, _rounds: int) -> Iterator[Check]:
    """
    Measure the RAM of a gate at which many callers wait.
    """
    say(f"letting {CALLERS} callers wait")
    before, after = wait_in_line(folder / "waiting", CALLERS)
    rss = spread_of([after / MEBI])
    each = f"{(after - before) / CALLERS / 1024:.1f} KiB each"
    yield Check(f"RSS with {CALLERS} calls waiting", "MiB", rss, Bar(300, more=False), other=each)


def growth_checks(_folder: Path, rounds: int) -> Iterator[Check]:
    """
    Measure how the cost of a command grows with the queue.
    """
    say("growing a queue")
    yield from growth.checks(rounds)


if __name__ == "__main__":
    sys.exit(main("Measure a call, beside baselines.", run, draw))
