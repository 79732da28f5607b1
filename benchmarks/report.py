"""
What a run found, as a table for people and as a document for programs.
"""

from __future__ import annotations

import datetime as dt
import os
import platform
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

from measure import spread_of
from servers import compiled, version_of
from stolen import Stolen

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from checks import Check
    from measure import Sample, Spread

__all__ = ["Result", "document", "table"]

PACKAGES = ("jobgate", "twisted", "klein", "httptools", "mosec")
MEBI = 2**20


@dataclass
class Result:
    """
    All that a run found.

    Attributes:
        rounds: How many rounds were run.
        seconds: How long each measurement took.
        again: How often a measurement that the host disturbed is made again.
        awake: Whether the CPUs are kept from sleeping.
        about: What each row is, in words.
        samples: The measurements of each row, one a round.
        checks: The claims, judged.
        skipped: What was left out, and why.
        repeated: How many measurements were thrown away because the host disturbed them.
        disturbed: The share of the CPUs' time that was taken in the worst of those that count.
        stolen: Knows how much the host had of the whole run.
    """

    rounds: int
    seconds: float
    again: int
    awake: bool
    about: dict[str, str] = field(default_factory=dict)
    samples: dict[str, list[Sample]] = field(default_factory=dict)
    checks: list[Check] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    repeated: int = 0
    disturbed: float = 0.0
    stolen: Stolen = field(default_factory=Stolen)

    @property
    def passed(self) -> bool:
        """
        Whether no claim is below its floor.
        """
        return all(check.verdict != "below" for check in self.checks)


def table(result: Result) -> str:
    """
    Write the rows, then the claims, as plain text.
    """
    how = f"{result.rounds} interleaved rounds of {result.seconds:g} s; medians (lowest - highest)."
    if result.awake:
        how += " The CPUs were kept awake."
    how += " jobgate is compiled." if compiled() else " jobgate is plain Python."
    parts = [f"{how} Absolute values belong to this machine and this minute; ratios last longer."]
    if result.samples:
        parts.append(aligned(row_lines(result)))
    if result.checks:
        parts.append(aligned(check_lines(result.checks)))
    parts.append(
        f"stolen by the host: {result.stolen.share:.1%} of the time of all CPUs, at most"
        f" {result.disturbed:.1%} in a measurement above; {result.repeated} were made again"
    )
    parts += [f"skipped: {reason}" for reason in result.skipped]
    return "\n\n".join(parts)


def row_lines(result: Result) -> Iterable[Sequence[str]]:
    """
    Yield the cells of each row.
    """
    yield ("row", "requests/s", "CPU us/req", "p50 ms", "p99 ms", "what")
    for name, samples in result.samples.items():

        def cell(number: Callable[[Sample], float], form: str, of: list[Sample] = samples) -> str:
            return ranged(spread_of([number(sample) for sample in of]), form)

        yield (
            name,
            cell(lambda sample: sample.rate, ",.0f"),
            cell(lambda sample: sample.cpu, ",.1f"),
            cell(lambda sample: sample.p50 / 1000, ".2f"),
            cell(lambda sample: sample.p99 / 1000, ".2f"),
            result.about[name],
        )


def check_lines(checks: Iterable[Check]) -> Iterable[Sequence[str]]:
    """
    Yield the cells of each claim.
    """
    yield ("claim", "measured", "floor", "stretch", "verdict", "")
    for check in checks:
        sign = ">=" if check.bar.more else "<="
        stretch = "" if check.bar.stretch is None else f"{sign} {check.bar.stretch:g}"
        measured = f"{ranged(check.value, '.2f')} {check.unit}"
        floor = f"{sign} {check.bar.floor:g}"
        yield (check.name, measured, floor, stretch, check.verdict, check.other)


def ranged(spread: Spread, form: str) -> str:
    """
    Write a median with its spread.
    """
    return f"{spread.median:{form}} ({spread.low:{form}} - {spread.high:{form}})"


def aligned(lines: Iterable[Sequence[str]]) -> str:
    """
    Put cells into columns, with a rule under the first line.
    """
    rows = [list(line) for line in lines]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, ["-" * width for width in widths])
    padded = ("  ".join(map(str.ljust, row, widths)) for row in rows)
    return "\n".join(line.rstrip() for line in padded)


def document(result: Result) -> dict[str, object]:
    """
    Return everything for a JSON file; nothing in it names the machine.
    """
    return {
        "when": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "machine": {
            "cpus": os.cpu_count(),
            "system": platform.system(),
            "kernel": platform.release(),
            "python": platform.python_version(),
            "load": os.getloadavg()[0],
        },
        "versions": {package: version_of(package) for package in PACKAGES},
        "compiled": compiled(),
        "rounds": result.rounds,
        "seconds": result.seconds,
        "awake": result.awake,
        "stolen": round(result.stolen.share, 4),
        "disturbed": round(result.disturbed, 4),
        "repeated": result.repeated,
        "rows": {
            name: {"about": result.about[name], "samples": [one.as_dict() for one in samples]}
            for name, samples in result.samples.items()
        },
        "checks": [{**asdict(check), "verdict": check.verdict} for check in result.checks],
        "skipped": result.skipped,
        "passed": result.passed,
    }
