"""
How full are the batches? One worker that takes 10 ms a batch, beside mosec in the same run.

``python benchmarks/batch.py`` measures as ``call.py`` does: every server is a child process, rounds
are interleaved, and the exit status is 0 if no claim is below its floor, 1 if one is, 2 if the run
itself failed. ``README.md`` beside this file explains the rows.
"""

from __future__ import annotations

import contextlib
import http.client
import re
import statistics
import sys
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from checks import Bar, Check
from groups import chosen, run_group
from measure import Load, spread_of
from processes import BenchmarkError
from rows import Call
from runs import main, say, wanted
from servers import ROOT, gate, mosec, version_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from report import Result
    from servers import Starter

BATCH_MS = 10.0
"""What a batch takes, however many are in it."""
SIZE = 32
IDEAL = SIZE / BATCH_MS * 1000
"""Commands a second with full batches one upon the other, on one worker."""
CALLERS = (32, 64, 128)
FLOORS = {32: 0.8, 64: 0.95, 128: 0.95}
TAIL = 3.0
"""Batch times that the 99th percentile may take; 128 callers make four batches by themselves."""
COMPANY_MS = 1.5
"""What a lone call may wait for company that does not come."""
LONE = 100
"""Lone calls in a round."""
PATIENCE = 30.0
"""Seconds that one of them may take."""

MODEL = str(ROOT / "examples" / "moderation" / "moderation.py")
MODEL_GAIN = 2.0

STARTERS: dict[str, Starter] = {
    "gate": gate("batch.py", workers=1, in_flight=2, batch={"size": SIZE}),
    "gate single": gate("batch.py", workers=1),
    "mosec": mosec("baseline_mosec_batch.py"),
    "model": gate(MODEL, workers=1, in_flight=2, batch={"size": SIZE}),
    "model single": gate(MODEL, workers=1),
}


def run(result: Result, only: Sequence[str], folder: Path) -> None:
    """
    Measure everything that is asked for; ``--only`` also knows company.
    """
    selected = chosen(rows(folder), only, result)
    models = chosen(model_rows(folder), only, result)
    if models and version_of("alt-profanity-check") is None:
        result.skipped += [
            f"{row.name}: alt-profanity-check is not installed (the extra `examples`)"
            for row in models
        ]
        models = []
    run_group(selected, folder / "sleep", result, STARTERS)
    run_group(models, folder / "model", result, STARTERS)
    if wanted("company", only):
        result.checks.append(company_check(folder / "company", result.rounds))
    result.checks += checks(result)


def company_check(folder: Path, rounds: int) -> Check:
    """
    Call one by one, and read in the answers how long each has waited before it began to run.

    Raises:
        BenchmarkError: An answer does not say.
    """
    say("letting lone callers wait")
    with contextlib.ExitStack() as stack:
        running = STARTERS["gate"](folder)
        stack.enter_context(running.child)
        parts = urlsplit(running.url)
        waits = []
        for _ in range(rounds):
            connection = http.client.HTTPConnection(parts.netloc, timeout=PATIENCE)
            waits.append(statistics.median(waited(connection, parts.path) for _ in range(LONE)))
            connection.close()
    return Check(
        "a lone call waits for company", "ms", spread_of(waits), Bar(COMPANY_MS, more=False)
    )


def waited(connection: http.client.HTTPConnection, path: str) -> float:
    """
    Make one call; return how many milliseconds it was in the queue, as the gate says.
    """
    connection.request("POST", path, b"x" * 100)
    response = connection.getresponse()
    response.read()
    found = re.search(r"queue;dur=([0-9.]+)", response.getheader("Server-Timing", ""))
    if response.status != http.client.OK or found is None:
        raise BenchmarkError(f"{path} answered {response.status} without a Server-Timing")
    return float(found[1])


def model_rows(folder: Path) -> tuple[Call, ...]:
    """
    List the rows of the example with a model, with batches and without.
    """
    text = folder / "text.txt"
    text.write_text("I would like to say that the harbour looked beautiful this morning, friends.")
    load = Load(text, "text/plain", SIZE)
    about = "examples/moderation, 32 callers"
    return (
        Call("model", "model", load, None, f"{about}, batches of {SIZE}"),
        Call("model-single", "model single", load, None, f"{about}, one by one"),
    )


def rows(folder: Path) -> tuple[Call, ...]:
    """
    List the rows: both servers at each number of callers, and a lone caller with and without.
    """
    body = folder / "body.bin"
    body.write_bytes(b"x" * 100)

    def row(name: str, server: str, callers: int, about: str) -> Call:
        load = Load(body, "application/octet-stream", callers)
        return Call(name, server, load, body.read_bytes(), about)

    ours = (row(f"batch-{n}", "gate", n, f"jobgate, {n} callers") for n in CALLERS)
    theirs = (row(f"mosec-{n}", "mosec", n, f"mosec, {n} callers") for n in CALLERS)
    return (
        *(each for pair in zip(ours, theirs, strict=True) for each in pair),
        row("lone", "gate", 1, f"jobgate, 1 caller, batches of {SIZE}"),
        row("lone-single", "gate single", 1, "jobgate, 1 caller, no batches"),
        row("lone-mosec", "mosec", 1, f"mosec, 1 caller, batches of {SIZE}"),
    )


def checks(result: Result) -> Iterator[Check]:
    """
    Judge what was measured.
    """
    samples = result.samples
    for callers in CALLERS:
        ours, theirs = samples.get(f"batch-{callers}"), samples.get(f"mosec-{callers}")
        if ours is None:
            continue
        share = spread_of([sample.rate / IDEAL for sample in ours])
        other = ""
        if theirs is not None:
            reached = spread_of([sample.rate / IDEAL for sample in theirs]).median
            other = f"mosec reaches {reached:.2f}"
        name = f"{callers} callers: rate / {IDEAL:.0f} a second"
        yield Check(name, "x", share, Bar(FLOORS[callers]), other=other)
    for callers in CALLERS[:2]:
        if f"batch-{callers}" in samples:
            tails = [sample.p99 / 1000 / BATCH_MS for sample in samples[f"batch-{callers}"]]
            name = f"{callers} callers: p99 in batch times"
            yield Check(name, "x", spread_of(tails), Bar(TAIL, more=False))
    if "model" in samples and "model-single" in samples:
        pairs = zip(samples["model"], samples["model-single"], strict=True)
        gains = spread_of([batched.rate / single.rate for batched, single in pairs])
        yield Check("a real model: rate with batches / without", "x", gains, Bar(MODEL_GAIN))


if __name__ == "__main__":
    sys.exit(main("Measure batches, beside mosec.", run))
