"""
How fast are jobs? Pushed, kept, run, found again; beside calls in the same run.

``python benchmarks/jobs.py`` starts every gate as a child process, with its store in a file and
synced as by default, measures in interleaved rounds, prints a table of rows and of claims, and
ends as ``call.py`` does. ``README.md`` beside this file explains the rows and how to read them.
"""

from __future__ import annotations

import functools
import itertools
import json
import statistics
import sys
import time
from typing import TYPE_CHECKING

from arrivals import send_at
from callers import Caller, metric, push_lines, request_bytes, wait_for_metric
from checks import Bar, Check
from measure import Load, Sample, measure, spread_of
from processes import BenchmarkError
from report import MEBI, Result
from rows import Bodies
from runs import Row, figure, interleave, main, ratio, say, wanted
from servers import gate, script

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from servers import Running

CALLERS = 64
SOME = 8
LINES = 100
UNFINISHED = 100_000
BACKLOG = 1_000_000
LAYERS = 100
NODES = 10_000
NEEDS = 2
"""Of a node of the graph, all of them in the layer before it."""
WORK = 4.0
"""Milliseconds that the work of the baseline takes: one process can do 250 a second."""
ARRIVALS = 350.0
"""And so many arrive."""
LESS = False


def run(result: Result, only: Sequence[str], folder: Path) -> None:
    """
    Measure everything that is asked for.
    """
    bodies = Bodies.make(folder)
    lines = folder / "lines"
    lines.write_bytes((bodies.small.read_bytes() + b"\n") * LINES)
    single = Load(bodies.small, "application/json", CALLERS)
    several = Load(lines, "application/json", SOME)
    running = gate("echo_bytes.py", workers=2, in_flight=8)(folder / "gate")
    with running.child:
        call = functools.partial(measure, running.child, running.at("/call/bench"), single)
        push = functools.partial(keep, running, itertools.count(), single)
        lots = functools.partial(keep, running, itertools.count(), several, query="?each=line")
        rows = (
            Row("call", "calls, in_flight 8, 64 callers", call),
            Row("push", "pushes, 64 callers", push),
            Row("push-lines", f"pushes of {LINES} lines, 8 callers", lots),
            Row("job", "jobs, from push to succeeded", functools.partial(through, running, single)),
            Row(
                "job-lines",
                f"the same, pushed {LINES} at a time",
                functools.partial(through, running, several, each=LINES, query="?each=line"),
            ),
        )
        interleave(rows, result, only)
        if result.samples.get("call"):
            result.checks += store_checks(running, single)
    result.checks += claims(result)
    for section in (graph_checks, restart_checks, backlog_checks, baseline_checks):
        name = section.__name__.removesuffix("_checks")
        if wanted(name, only):
            result.checks += section(folder, bodies.small.read_bytes(), result)


def keep(
    running: Running, numbers: Iterator[int], load: Load, seconds: float, *, query: str = ""
) -> Sample:
    """
    Push to a queue that nobody drains, each time another: none grows to its `max_backlog`.
    """
    url = running.at(f"/push/kept-{load.connections}-{next(numbers)}{query}")
    return measure(running.child, url, load, seconds)


def through(
    running: Running, load: Load, seconds: float, *, each: int = 1, query: str = ""
) -> Sample:
    """
    Push for some seconds, then wait until the last job has succeeded; all of that time counts.
    """
    name = "jobgate_commands_succeeded_total"
    before = metric(running.url, name, "bench")
    began, cpu = time.monotonic(), running.child.cpu()
    pushed = measure(running.child, running.at(f"/push/bench{query}"), load, seconds)
    jobs = pushed.requests * each
    wait_for_metric(running.url, name, "bench", before + jobs)
    took, cpu = time.monotonic() - began, running.child.cpu() - cpu
    # wrk does not count what it has sent and not heard of: a few more may have run.
    jobs = int(metric(running.url, name, "bench") - before)
    return Sample(jobs / took, cpu * 1e6 / jobs, pushed.p50, pushed.p99, jobs)


def claims(result: Result) -> Iterator[Check]:
    """
    Judge the rows.
    """
    name = "push: rate / calls at in_flight 8"
    yield from ratio(result, name, "push", "call", Bar(0.6), enough=20_000)
    yield from figure(result, "push: p99", "push", "ms", p99, Bar(15, more=LESS))
    name = f"push of {LINES} lines: jobs a second"
    yield from figure(result, name, "push-lines", "/s", lambda one: one.rate * LINES, Bar(100_000))
    # What a request for each of them costs is judged above.
    name = "push to succeeded: jobs a second"
    yield from figure(result, name, "job-lines", "/s", lambda one: one.rate, Bar(8_000))


def p99(sample: Sample) -> float:
    """
    Return the tail in milliseconds.
    """
    return sample.p99 / 1000


def store_checks(running: Running, load: Load) -> Iterator[Check]:
    """
    Count what calls write into the store.
    """
    before = settled(running)
    calls = measure(running.child, running.at("/call/bench"), load, 1).requests
    writes = metric(running.url, "jobgate_store_writes_total") - before
    name = f"store writes of {calls:,} calls without a key"
    yield Check(name, "", spread_of([writes]), Bar(0, more=LESS))


def settled(running: Running) -> float:
    """
    Wait until the jobs that are left have ended; return the count of writes then.
    """
    before, now = -1.0, metric(running.url, "jobgate_store_writes_total")
    while now != before:
        time.sleep(1.0)
        before, now = now, metric(running.url, "jobgate_store_writes_total")
    return now


def graph_checks(folder: Path, line: bytes, result: Result) -> Iterator[Check]:
    """
    Submit a large graph, let two workers go through it, and fetch its result.
    """
    width = NODES // LAYERS
    jobs = {
        f"{layer}-{at}": {
            "queue": "bench",
            "body": json.loads(line),
            "needs": [f"{layer - 1}-{(at + k) % width}" for k in range(NEEDS)] if layer else [],
        }
        for layer in range(LAYERS)
        for at in range(width)
    }
    graph = json.dumps({"jobs": jobs}).encode()
    running = gate("echo_bytes.py", workers=2, in_flight=8)(folder / "graph")
    costs, rates = [], []
    with running.child, Caller(running.url) as caller:
        for _ in range(result.rounds):
            say(f"a graph of {NODES:,} nodes in {LAYERS} layers")
            before, began = running.child.own_cpu(), time.monotonic()
            name = json.loads(caller.ask(request_bytes("POST", "/graphs", graph)).body)["id"]
            ask = request_bytes("GET", f"/graphs/{name}/result?wait=30")
            while (answer := caller.ask(ask)).status == 202:
                continue
            costs.append((running.child.own_cpu() - before) * 1e6 / NODES)
            rates.append(NODES / (time.monotonic() - began))
            if json.loads(answer.body)["state"] != "succeeded":
                raise BenchmarkError(f"the graph ended so: {answer.body[:1000]!r}")
    yield Check(
        f"a graph of {NODES:,} nodes in {LAYERS} layers: CPU of the gate a node",
        "us",
        spread_of(costs),
        Bar(300, more=LESS),
        other=f"{spread_of(rates).median:,.0f} nodes/s",
    )


def restart_checks(folder: Path, line: bytes, result: Result) -> Iterator[Check]:
    """
    Kill a gate that has many unfinished jobs, half of them of a queue with workers; start anew.
    """
    say(f"keeping {UNFINISHED:,} jobs, then starting anew")
    start = gate("sleep.py", workers=1)
    running = start(folder / "restart")
    with running.child:
        for queue in ("bench", "kept"):
            push_lines(running.url, queue, line, UNFINISHED // 2)
        running.child.process.kill()
    seconds = []
    for _ in range(result.rounds):
        running = start(folder / "restart")
        with running.child:
            seconds.append(running.ready_after)
            running.child.process.kill()
    name = f"ready again with {UNFINISHED:,} unfinished jobs"
    yield Check(name, "s", spread_of(seconds), Bar(3.0, more=LESS))


def backlog_checks(folder: Path, line: bytes, _result: Result) -> Iterator[Check]:
    """
    Measure the RAM of a gate whose store holds very many jobs that wait for a busy worker.
    """
    say(f"pushing {BACKLOG:,} jobs")
    running = gate("sleep.py", workers=1)(folder / "backlog")
    with running.child:
        push_lines(running.url, "bench", line, BACKLOG)
        rss = spread_of([running.child.rss() / MEBI])
        running.child.process.kill()
    name = f"RSS of the gate with {BACKLOG:,} jobs waiting"
    yield Check(name, "MiB", rss, Bar(400, more=LESS))


def baseline_checks(folder: Path, _line: bytes, result: Result) -> Iterator[Check]:
    """
    Let more arrive than one process can do, at one that does it itself and at a gate.
    """
    work = f"{WORK:g}"
    seconds = max(2.0, result.seconds)
    inline, pushed = [], []
    for number in range(result.rounds):
        for name, start, path, times in (
            ("inline", script("baseline_inline.py", work), "/", inline),
            ("pushed", gate("spin.py", work, workers=1), "/push/bench", pushed),
        ):
            running = start(folder / f"{name}-{number}")
            with running.child:
                say(f"{ARRIVALS:g} arrivals a second, {work} ms of work each: {name}")
                times.append(statistics.median(send_at(running.at(path), ARRIVALS, seconds)) * 1000)
                running.child.process.kill()
    alone = spread_of(inline)
    yield Check(
        f"{ARRIVALS:g}/s of {work} ms each: median until answered, pushed / done inline",
        "x",
        spread_of([one / other for one, other in zip(pushed, inline, strict=True)]),
        Bar(0.1, more=LESS),
        other=f"inline {alone.median:,.0f} ms and rising, pushed {spread_of(pushed).median:.1f} ms",
    )


if __name__ == "__main__":
    sys.exit(main("Measure jobs, beside calls and a process that does the work itself.", run))
