"""
What must hold: each claim as a ratio of two rows of one run, with its bar.

Pure: numbers in, verdicts out. A ratio is taken inside each round, where both rows met the same
weather, and the median of the rounds is what counts; so a machine that slows down in mid-run
shifts no verdict.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from measure import Sample, Spread, spread_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    Samples = Mapping[str, Sequence[Sample]]

__all__ = ["Bar", "Check", "ratio_checks"]


@dataclass(frozen=True)
class Bar:
    """
    Where a value must lie.

    Attributes:
        floor: The value that must be reached.
        stretch: The value that is hoped for, if another.
        more: Whether more is better.
    """

    floor: float
    stretch: float | None = None
    more: bool = True

    def reached(self, value: float, bar: float) -> bool:
        """
        Say whether a value is on the right side of a bar.
        """
        return value >= bar if self.more else value <= bar

    def verdict(self, value: float) -> str:
        """
        Say how a value stands: ``stretch``, ``PASS`` or ``below``.
        """
        if self.stretch is not None and self.reached(value, self.stretch):
            return "stretch"
        return "PASS" if self.reached(value, self.floor) else "below"


@dataclass(frozen=True)
class Check:
    """
    One claim, measured.

    Attributes:
        name: What is claimed.
        unit: Of the value; ``x`` for a ratio.
        value: What was measured.
        bar: What was asked for.
        baseline: What a ratio's denominator is, empty if it is no ratio between servers.
        row: The row that a ratio is about.
        what: Which number of the rows was divided.
        other: Another way to pass, met or not, in words; empty if there is none.
        passed_otherwise: Whether that other way was met.
    """

    name: str
    unit: str
    value: Spread
    bar: Bar
    baseline: str = ""
    row: str = ""
    what: str = ""
    other: str = ""
    passed_otherwise: bool = False

    @property
    def verdict(self) -> str:
        """
        Say how it stands: ``stretch``, ``PASS`` or ``below``.
        """
        verdict = self.bar.verdict(self.value.median)
        return "PASS" if verdict == "below" and self.passed_otherwise else verdict


@dataclass(frozen=True)
class Claim:
    """
    A ratio that is promised.

    Attributes:
        name: What is claimed.
        row: The row in question.
        baseline: The row it is divided by.
        what: Which number of a sample: a key of `NUMBERS`.
        bar: What is asked for.
        enough: A rate, requests a second, that is enough by itself; 0 for none.
    """

    name: str
    row: str
    baseline: str
    what: str
    bar: Bar
    enough: float = 0


LESS = False
CLAIMS = (
    Claim("bytes, in_flight 1: rate / Klein constant", "bytes-1", "klein", "rate", Bar(3.5, 4.0)),
    Claim("bytes, in_flight 8: rate / Klein constant", "bytes-8", "klein", "rate", Bar(6.0, 7.0)),
    Claim("JSON, in_flight 1: rate / mosec", "json-1", "mosec", "rate", Bar(1.8, 2.5)),
    Claim("JSON, in_flight 8: rate / mosec", "json-8", "mosec", "rate", Bar(2.8, 3.5)),
    Claim("JSON, in_flight 8: CPU / mosec", "json-8", "mosec", "cpu", Bar(0.5, more=LESS)),
    Claim("1 caller: p50 / Klein constant", "bytes-1-c1", "klein-c1", "p50", Bar(0.65, more=LESS)),
    Claim("1 MiB JSON: rate / mosec", "large-json", "large-mosec", "rate", Bar(1.0)),
    Claim("1 MiB bytes: rate / bare front", "large-bytes", "large-front", "rate", Bar(0.4), 400),
)
NUMBERS: dict[str, tuple[str, Callable[[Sample], float]]] = {
    "rate": ("calls/s", lambda sample: sample.rate),
    "cpu": ("CPU a call", lambda sample: sample.cpu),
    "p50": ("median latency", lambda sample: sample.p50),
}
"""The numbers that are compared: how they are called, and how they are had."""
TAIL = Bar(4.0, more=False)
TAIL_ROWS = ("bytes-1", "bytes-8", "json-1", "json-8")


def ratio_checks(samples: Samples) -> Iterator[Check]:
    """
    Judge all claims whose rows were measured.
    """
    for claim in CLAIMS:
        if claim.row in samples and claim.baseline in samples:
            yield judge(claim, samples)
    for row in TAIL_ROWS:
        if row in samples:
            tails = spread_of([sample.tail for sample in samples[row]])
            yield Check(f"{row}: p99 / p50 at 32 callers", "x", tails, TAIL)


def judge(claim: Claim, samples: Samples) -> Check:
    """
    Divide, round by round.
    """
    what, number = NUMBERS[claim.what]
    pairs = zip(samples[claim.row], samples[claim.baseline], strict=True)
    value = spread_of([number(row) / number(baseline) for row, baseline in pairs])
    rate = spread_of([sample.rate for sample in samples[claim.row]]).median
    return Check(
        claim.name,
        "x",
        value,
        claim.bar,
        baseline=claim.baseline,
        row=claim.row,
        what=what,
        other=f"{claim.enough:g}/s is enough too: {rate:.0f}/s" if claim.enough else "",
        passed_otherwise=bool(claim.enough) and rate >= claim.enough,
    )
