"""
One measurement with wrk, and what a list of measurements says.

Knows what a running server's address is, not which server it is.
"""

from __future__ import annotations

import http.client
import json
import re
import statistics
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from processes import BenchmarkError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from processes import Child

__all__ = ["Load", "Sample", "Spread", "measure", "probe", "spread_of"]

SCRIPT = Path(__file__).with_name("post.lua")
PATIENCE = 30.0
"""Seconds that wrk may take longer than it was told, or a single probe may take."""


@dataclass(frozen=True)
class Load:
    """
    What is asked of a server.

    Attributes:
        body: The file that is posted.
        content_type: What it is said to be.
        connections: How many callers there are, each with one request at a time.
    """

    body: Path
    content_type: str
    connections: int


@dataclass(frozen=True)
class Sample:
    """
    The outcome of one measurement.

    Attributes:
        rate: Requests a second.
        cpu: CPU of the server and all its descendants, microseconds per request.
        p50: Median latency, microseconds.
        p99: 99th percentile of latency, microseconds.
        requests: How many requests wrk counted.
    """

    rate: float
    cpu: float
    p50: float
    p99: float
    requests: int

    @property
    def tail(self) -> float:
        """
        How many times the median latency the 99th percentile is.
        """
        return self.p99 / self.p50

    def as_dict(self) -> dict[str, float]:
        """
        Return the sample for a JSON document.
        """
        return asdict(self)


@dataclass(frozen=True)
class Spread:
    """
    A median, and how far the values lie apart.
    """

    median: float
    low: float
    high: float


def spread_of(values: Sequence[float]) -> Spread:
    """
    Return the median of some values with the lowest and the highest.
    """
    return Spread(statistics.median(values), min(values), max(values))


def probe(url: str, load: Load, expected: bytes | None) -> None:
    """
    Make one call and look at the answer: a fast wrong answer is worth nothing.

    Args:
        url: Where to post.
        load: What to post.
        expected: The answer's body (JSON is compared as JSON), or None if any will do.

    Raises:
        BenchmarkError: It was not 200, or not what was expected.
    """
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=PATIENCE)
    try:
        headers = {"Content-Type": load.content_type}
        connection.request("POST", parts.path, load.body.read_bytes(), headers)
        response = connection.getresponse()
        body = response.read()
    finally:
        connection.close()
    if response.status != http.client.OK:
        raise BenchmarkError(f"{parts.path} answered {response.status}: {body[:500]!r}")
    if expected is not None and body != expected and not same_json(body, expected):
        raise BenchmarkError(f"{parts.path} answered {body[:100]!r}, not {expected[:100]!r}")


def same_json(body: bytes, expected: bytes) -> bool:
    """
    Say whether two bodies are the same JSON document, however written.
    """
    try:
        return bool(json.loads(body) == json.loads(expected))
    except ValueError:
        return False


def measure(child: Child, url: str, load: Load, seconds: float) -> Sample:
    """
    Let wrk loose on a server for some seconds.

    Raises:
        BenchmarkError: wrk failed, or saw an answer that is not a success, or a socket error.
    """
    before = child.cpu()
    counts = run_wrk(url, load, seconds)
    cpu = child.cpu() - before
    requests = counts["requests"]
    return Sample(
        rate=requests / (counts["duration_us"] / 1e6),
        cpu=cpu * 1e6 / requests,
        p50=counts["p50_us"],
        p99=counts["p99_us"],
        requests=requests,
    )


def run_wrk(url: str, load: Load, seconds: float) -> dict[str, int]:
    """
    Run wrk and return the numbers of its result line.

    wrk takes whole seconds only, so a shorter time is one second.

    Raises:
        BenchmarkError: As in `measure`.
    """
    argv = ["wrk", "-t1", f"-c{load.connections}", f"-d{max(1, round(seconds))}s", "--latency"]
    # A late answer is late: wrk itself would take two seconds for an error.
    argv += ["--timeout", f"{PATIENCE:g}s"]
    argv += ["-s", str(SCRIPT), url, "--", str(load.body), load.content_type]
    try:
        done = subprocess.run(
            argv, capture_output=True, text=True, timeout=seconds + PATIENCE, check=False
        )
    except FileNotFoundError as error:
        raise BenchmarkError("wrk is not installed") from error
    except subprocess.TimeoutExpired as error:
        raise BenchmarkError(f"wrk did not end:\n{error.output}") from error
    line = re.search(r"^RESULT (.*)$", done.stdout, re.MULTILINE)
    if done.returncode or line is None:
        raise BenchmarkError(f"wrk failed ({done.returncode}):\n{done.stdout}{done.stderr}")
    counts = {name: int(value) for name, value in re.findall(r"(\w+)=(-?\d+)", line[1])}
    check(counts, done.stdout)
    return counts


def check(counts: dict[str, int], output: str) -> None:
    """
    Refuse a run in which anything went wrong.

    Raises:
        BenchmarkError: An answer that is no success, a socket error, or no answer at all.
    """
    errors = {name: counts[name] for name in ("connect", "read", "write", "status", "timeout")}
    if any(errors.values()) or "Non-2xx" in output or not counts["requests"]:
        raise BenchmarkError(f"wrk saw errors: {errors}\n{output}")
