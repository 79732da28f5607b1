"""
How fast is a call? The benchmark of jobgate's main road, against baselines in the same run.

``python benchmarks/call.py`` starts every server as a child process, measures them in
interleaved rounds, prints a table of rows and of claims, and ends with 0 if no claim is below
its floor, 1 if one is, 2 if the run itself failed. ``README.md`` beside this file explains the
rows and how to read them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING

import growth
from checks import Bar, Check, ratio_checks
from footprint import start_once, wait_in_line
from measure import measure, probe, spread_of
from processes import BenchmarkError, end_on_signals
from report import MEBI, Result, document, table
from rows import SERVERS, Bodies, Row, groups
from servers import ROOT, version_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from servers import Running, Starter

CALLERS = 10_000
WARM_UP = 1.0
"""Seconds each row is run before the rounds, not counted."""


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """
    Read the command line.
    """
    parser = argparse.ArgumentParser(description="Measure a call, beside baselines.")
    parser.add_argument("--rounds", type=int, default=5, help="rounds (5)")
    parser.add_argument("--seconds", type=float, default=4, help="of each measurement, whole (4)")
    parser.add_argument(
        "--only",
        nargs="+",
        default=["*"],
        metavar="NAME",
        help="rows, or start, waiting, growth; shell patterns will do",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there")
    parser.add_argument("--svg", type=Path, metavar="FILE", help="draw the ratios there")
    parser.add_argument("--quick", action="store_true", help="one round of a second: a smoke test")
    options = parser.parse_args(arguments)
    if options.quick:
        options.rounds, options.seconds = 1, 1
    if options.rounds < 1 or options.seconds < 1:
        parser.error("--rounds and --seconds are at least 1")
    return options


def say(text: str) -> None:
    """
    Tell how far the run has come; the table alone goes to stdout.
    """
    sys.stderr.write(f"{text}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Run what was asked for.

    Returns:
        The exit status.
    """
    options = parse(arguments)
    end_on_signals()
    try:
        result = run(options)
        sys.stdout.write(f"{table(result)}\n")
        if options.json:
            options.json.write_text(json.dumps(document(result), indent=1) + "\n")
        if options.svg:
            draw(result, options.svg)
    except BenchmarkError as error:
        say(f"failed: {error}")
        return 2
    except KeyboardInterrupt:
        say("interrupted")
        return 130
    return 0 if result.passed else 1


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
    )
    picture.draw(result.checks, result.about, note, target)


def run(options: argparse.Namespace) -> Result:
    """
    Measure everything that ``--only`` names.
    """
    result = Result(options.rounds, options.seconds)
    with tempfile.TemporaryDirectory(prefix="jobgate-benchmark-") as name:
        folder = Path(name)
        for number, group in enumerate(groups(Bodies.make(folder))):
            rows = chosen(group, options.only, result)
            if rows:
                run_group(rows, folder / str(number), result)
        result.checks += ratio_checks(result.samples)
        for section in (start_checks, waiting_checks, growth_checks):
            if wanted(section.__name__.removesuffix("_checks"), options.only):
                result.checks += section(folder, result.rounds)
    if not result.samples and not result.checks:
        raise BenchmarkError(f"nothing is called {' or '.join(options.only)}")
    return result


def wanted(name: str, patterns: Sequence[str]) -> bool:
    """
    Say whether ``--only`` names this.
    """
    return any(fnmatch(name, pattern) for pattern in patterns)


def chosen(group: Sequence[Row], patterns: Sequence[str], result: Result) -> list[Row]:
    """
    Return the rows to measure; without mosec, its rows are skipped, and that is noted.
    """
    rows = [row for row in group if wanted(row.name, patterns)]
    if version_of("mosec") is None:
        lost = [row.name for row in rows if row.server == "mosec"]
        result.skipped += [f"{name}: mosec is not installed (the extra `bench`)" for name in lost]
        rows = [row for row in rows if row.server != "mosec"]
    return rows


def run_group(
    rows: Sequence[Row], folder: Path, result: Result, starters: Mapping[str, Starter] = SERVERS
) -> None:
    """
    Start the servers of some rows, all at once, and measure: A B C, C B A, A B C ...
    """
    with contextlib.ExitStack() as stack:
        servers: dict[str, Running] = {}
        for key in dict.fromkeys(row.server for row in rows):
            say(f"starting {key}")
            servers[key] = starters[key](folder / key.replace(" ", "-"))
            stack.enter_context(servers[key].child)
        for row in rows:
            url = servers[row.server].url
            probe(url, row.load, row.expected)
            measure(servers[row.server].child, url, row.load, WARM_UP)
            result.about[row.name] = row.about
            result.samples[row.name] = []
        for number in range(result.rounds):
            for row in rows if number % 2 == 0 else reversed(rows):
                running = servers[row.server]
                sample = measure(running.child, running.url, row.load, result.seconds)
                result.samples[row.name].append(sample)
                say(
                    f"round {number + 1}/{result.rounds}  {row.name:15}"
                    f"{sample.rate:10,.0f}/s {sample.cpu:10,.1f} us CPU"
                )
        for row in rows:
            probe(servers[row.server].url, row.load, row.expected)


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
    sys.path.insert(0, str(ROOT))  # as for the servers: the checkout is what is measured
    yield from growth.checks(rounds)


if __name__ == "__main__":
    sys.exit(main())
