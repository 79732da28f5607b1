"""
What the benchmarks have in common: the command line, and rounds of rows that measure themselves.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING

from awake import awake
from checks import Bar, Check
from measure import Sample, spread_of
from processes import BenchmarkError, end_on_signals
from report import Result, document, table
from stolen import Stolen

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

__all__ = ["Row", "figure", "interleave", "main", "ratio", "say", "wanted"]

DISTURBED = 0.02
"""The share of the CPUs' time that the host may take before a measurement is made again."""
WARM_UP = 1.0
"""Seconds each row is run before the rounds, not counted."""


@dataclass(frozen=True)
class Row:
    """
    One line of the table.

    Attributes:
        name: What it is called, in the table and for ``--only``.
        about: What it is, in words.
        measure: Takes one measurement, for about so many seconds.
    """

    name: str
    about: str
    measure: Callable[[float], Sample]


def say(text: str) -> None:
    """
    Tell how far the run has come; the table alone goes to stdout.
    """
    sys.stderr.write(f"{text}\n")


def wanted(name: str, patterns: Sequence[str]) -> bool:
    """
    Say whether ``--only`` names this.
    """
    return any(fnmatch(name, pattern) for pattern in patterns)


def interleave(rows: Sequence[Row], result: Result, only: Sequence[str] = ("*",)) -> None:
    """
    Measure the rows that are asked for: A B C, C B A, A B C ...
    """
    chosen = [row for row in rows if wanted(row.name, only)]
    for row in chosen:
        row.measure(WARM_UP)
        result.about[row.name] = row.about
        result.samples[row.name] = []
    for number in range(result.rounds):
        for row in chosen if number % 2 == 0 else reversed(chosen):
            sample = undisturbed(row, result)
            result.samples[row.name].append(sample)
            say(
                f"round {number + 1}/{result.rounds}  {row.name:16}"
                f"{sample.rate:10,.0f}/s {sample.cpu:10,.1f} us CPU"
            )


def undisturbed(row: Row, result: Result) -> Sample:
    """
    Measure a row, and again while the host takes the CPUs away; return what was disturbed least.

    Whether to repeat is decided by the clocks of the CPUs alone, never by the outcome.
    """
    taken: list[tuple[float, Sample]] = []
    while len(taken) <= result.again:
        stolen = Stolen()
        sample = row.measure(result.seconds)
        taken.append((stolen.share, sample))
        if stolen.share <= DISTURBED:
            break
    result.repeated += len(taken) - 1
    share, sample = min(taken, key=lambda each: each[0])
    result.disturbed = max(result.disturbed, share)
    return sample


def ratio(
    result: Result, name: str, row: str, baseline: str, bar: Bar, enough: float = 0
) -> Iterable[Check]:
    """
    Judge the rate of a row by that of another, round by round, if both were measured.

    Args:
        result: What was measured.
        name: What is claimed.
        row: The row in question.
        baseline: The row it is divided by.
        bar: What is asked for.
        enough: A rate that is enough by itself; 0 for none.
    """
    if not (result.samples.get(row) and result.samples.get(baseline)):
        return
    pairs = zip(result.samples[row], result.samples[baseline], strict=True)
    rate = spread_of([sample.rate for sample in result.samples[row]]).median
    yield Check(
        name,
        "x",
        spread_of([one.rate / other.rate for one, other in pairs]),
        bar,
        other=f"{enough:,.0f}/s is enough too: {rate:,.0f}/s" if enough else "",
        passed_otherwise=bool(enough) and rate >= enough,
    )


def figure(
    result: Result, name: str, row: str, unit: str, number: Callable[[Sample], float], bar: Bar
) -> Iterable[Check]:
    """
    Judge a number of a row, if it was measured.
    """
    samples = result.samples.get(row)
    if samples:
        yield Check(name, unit, spread_of([number(sample) for sample in samples]), bar)


def main(
    about: str,
    run: Callable[[Result, Sequence[str], Path], None],
    draw: Callable[[Result, Path], None] | None = None,
) -> int:
    """
    Run a benchmark from the command line.

    Args:
        about: What it does, in a sentence.
        run: Measures everything whose name matches one of the patterns, in a folder.
        draw: Draws what was found into a file, where there is a picture of it.

    Returns:
        The exit status: 0 if every claim holds, 1 if one is below its floor, 2 if the run
        itself failed.
    """
    options = parse(about, picture=draw is not None)
    end_on_signals()
    result = Result(options.rounds, options.seconds, options.again, options.awake)
    try:
        with (
            tempfile.TemporaryDirectory(prefix="jobgate-benchmark-") as folder,
            awake() if options.awake else contextlib.nullcontext(),
        ):
            run(result, options.only, Path(folder))
        sys.stdout.write(f"{table(result)}\n")
        if options.json:
            options.json.write_text(json.dumps(document(result), indent=1) + "\n")
        if draw is not None and options.svg:
            draw(result, options.svg)
    except BenchmarkError as error:
        say(f"failed: {error}")
        return 2
    except KeyboardInterrupt:
        say("interrupted")
        return 130
    if not result.samples and not result.checks:
        say(f"failed: nothing is called {' or '.join(options.only)}")
        return 2
    return 0 if result.passed else 1


def parse(about: str, *, picture: bool) -> argparse.Namespace:
    """
    Read the command line.
    """
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--rounds", type=int, default=5, help="rounds (5)")
    parser.add_argument("--seconds", type=float, default=4, help="of each measurement, whole (4)")
    parser.add_argument(
        "--only", nargs="+", default=["*"], metavar="NAME", help="rows; shell patterns will do"
    )
    parser.add_argument(
        "--again",
        type=int,
        default=2,
        metavar="N",
        help="how often a measurement that the host disturbed is made again (2)",
    )
    parser.add_argument(
        "--awake",
        action="store_true",
        help="keep the CPUs from sleeping, for which a host would give them to others",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there")
    if picture:
        parser.add_argument("--svg", type=Path, metavar="FILE", help="draw the ratios there")
    parser.add_argument("--quick", action="store_true", help="one round of a second: a smoke test")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.seconds, options.again = 1, 1, 0
    if options.rounds < 1 or options.seconds < 1 or options.again < 0:
        parser.error("--rounds and --seconds are at least 1, --again at least 0")
    return options
