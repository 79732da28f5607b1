"""
How fast is work done from outside? Lines, cycles, workers over sockets, and many who wait.

``python benchmarks/pull.py`` starts every server as a child process, measures in interleaved
rounds, prints a table of rows and of claims, and ends as ``call.py`` does. ``README.md`` beside
this file explains the rows and how to read them.
"""

from __future__ import annotations

import contextlib
import functools
import re
import select
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from callers import PATIENCE, Caller, push_lines, request_bytes
from checks import Bar, Check
from groups import chosen, run_group
from measure import Sample, spread_of
from processes import BenchmarkError, Child, raise_descriptor_limit
from report import MEBI, Result
from rows import SERVERS, Bodies, outside_rows
from runs import Row, figure, interleave, main, ratio, say, wanted
from servers import Running, free_port, gate, version_of, wait_for_port

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

LINE = b"x" * 100
AT_ONCE = 100
"""Lines of one pull, and commands of one cycle in batches."""
CLIENTS = 4
"""Processes that go through cycles, or connections that pull."""
ALONE = "-c1"
KINDS = (("", CLIENTS, 1), (ALONE, 1, 1), ("-100", CLIENTS, AT_ONCE))
"""Rows of cycles: what their names end with, how many clients, commands at once."""
EXPECTED = 100_000
"""Lines a second: so many are put there for each second."""
PULLERS = 10_000
SPARE = 200
CHUNK = 32
PUSHES = 200
IDLE = 5.0
LESS = False
HERE = Path(__file__).resolve().parent


def run(result: Result, only: Sequence[str], folder: Path) -> None:
    """
    Measure everything that is asked for.
    """
    with contextlib.ExitStack() as stack:
        rows = []
        for name, store in (("memory", "memory:"), ("durable", "")):
            running = gate("echo_bytes.py", workers=1, store=store)(folder / name)
            stack.enter_context(running.child)
            drain = functools.partial(drained, running)
            rows.append(Row(f"lines-{name}", f"lines pulled, {AT_ONCE} at once, {name}", drain))
            for kind, clients, count in KINDS:
                cycle = functools.partial(cycles, running, "gate", clients, count)
                about = f"push, pull, ack, {count} at once, {name}, {many(clients)}"
                rows.append(Row(f"cycle-{name}{kind}", about, cycle))
        for name, options in (("beanstalkd", ()), ("beanstalkd-f0", ("-b", ".", "-f", "0"))):
            if shutil.which("beanstalkd") is None or version_of("greenstalk") is None:
                result.skipped.append(f"{name}: beanstalkd and greenstalk are needed")
                continue
            running = start_beanstalkd(folder / name, options)
            stack.enter_context(running.child)
            for kind, clients in (("", CLIENTS), (ALONE, 1)):
                cycle = functools.partial(cycles, running, "beanstalkd", clients, 1)
                about = "put, reserve, delete" + (", each synced" if options else "")
                rows.append(Row(f"{name}{kind}", f"{about}, {many(clients)}", cycle))
        interleave(rows, result, only)
    calls = chosen(outside_rows(Bodies.make(folder)), only, result)
    if calls:
        run_group(calls, folder / "outside", result, SERVERS)
    result.checks += claims(result)
    if wanted("waiting", only):
        result.checks += waiting_checks(folder)


def claims(result: Result) -> Iterator[Check]:
    """
    Judge the rows.
    """
    for name, floor in (("memory", 100_000), ("durable", 50_000)):
        row = f"lines-{name}"
        title = f"lines pulled a second, {name}"
        yield from figure(result, title, row, "/s", lambda one: one.rate, Bar(floor))
    for name, baseline in (("memory", "beanstalkd"), ("durable", "beanstalkd-f0")):
        for kind, beside, floor in (("", "", 0.4), (ALONE, ALONE, 0.4), ("-100", "", 1.0)):
            row, other = f"cycle-{name}{kind}", f"{baseline}{beside}"
            yield from ratio(result, f"{row}: rate / {other}", row, other, Bar(floor))
    for depth in (1, 8):
        row, other = f"outside-{depth}", f"child-{depth}"
        yield from ratio(result, f"{row}: rate / {other}", row, other, Bar(0.85))


# --- lines out of a queue


def drained(running: Running, seconds: float) -> Sample:
    """
    Fill a queue with lines, then time how long it takes to pull them all; one line is one request.
    """
    count = int(EXPECTED * seconds)
    push_lines(running.url, "lines", LINE, count)
    target = f"/pull/lines?max={AT_ONCE}&each=line&wait=0"
    began, cpu = time.monotonic(), running.child.cpu()
    times, lines = pull_all(running, request_bytes("GET", target))
    took, cpu = time.monotonic() - began, running.child.cpu() - cpu
    if lines != count:
        raise BenchmarkError(f"{lines} lines were pulled of {count}")
    times.sort()
    return Sample(
        count / took,
        cpu * 1e6 / count,
        times[len(times) // 2] * 1e6,
        times[len(times) * 99 // 100] * 1e6,
        count,
    )


def pull_all(running: Running, request: bytes) -> tuple[list[float], int]:
    """
    Pull on several connections until there is nothing more.

    Returns:
        Seconds that each pull took, and the number of lines.
    """
    times: list[float] = []
    lines: list[int] = []

    def pull() -> None:
        with Caller(running.url) as caller:
            while True:
                began = time.monotonic()
                answer = caller.ask(request)
                if not answer.body:
                    return
                times.append(time.monotonic() - began)
                lines.append(answer.body.count(b"\n"))

    threads = [threading.Thread(target=pull) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return times, sum(lines)


# --- cycles


def many(clients: int) -> str:
    """
    Say how many there are.
    """
    return "1 client" if clients == 1 else f"{clients} clients"


def cycles(running: Running, server: str, number: int, count: int, seconds: float) -> Sample:
    """
    Let so many clients put in, take out and confirm, so many commands at once.
    """
    port = running.url.rpartition(":")[2].partition("/")[0]
    cpu = running.child.cpu()
    script, load = str(HERE / "cycles.py"), (str(count), str(seconds))
    clients = [
        subprocess.Popen(
            [sys.executable, script, server, port, f"cycle-{place}", *load],
            stdout=subprocess.PIPE,
            text=True,
        )
        for place in range(number)
    ]
    found = []
    for client in clients:
        output, _ = client.communicate(timeout=seconds + PATIENCE)
        match = re.search(r"cycles=(\d+) seconds=(\S+) cpu=(\S+)", output)
        if client.returncode or match is None:
            raise BenchmarkError(f"a client of {server} failed ({client.returncode})")
        found.append((int(match[1]), float(match[2]), float(match[3])))
    cpu = running.child.cpu() - cpu
    done = sum(cycled for cycled, _, _ in found)
    rate = sum(cycled / took for cycled, took, _ in found)
    own = sum(spent for _, _, spent in found) * 1e6 / done
    say(f"clients of {server}: {own:.1f} us CPU a command of their own")
    each = 1e6 * count * number / rate
    return Sample(rate, cpu * 1e6 / done, each, each, done)


def start_beanstalkd(folder: Path, options: Sequence[str]) -> Running:
    """
    Start beanstalkd in a folder of its own.
    """
    port = free_port()
    argv = ["beanstalkd", "-l", "127.0.0.1", "-p", str(port), *options]
    child = Child.start(argv, folder)
    try:
        wait_for_port(child, port)
    except BaseException:
        child.stop()
        raise
    return Running(child, f"http://127.0.0.1:{port}", time.monotonic() - child.began)


# --- many who wait


def waiting_checks(folder: Path) -> Iterator[Check]:
    """
    Let many pullers wait, look at the idle gate, then push: one is answered, and how soon.
    """
    say(f"letting {PULLERS:,} pullers wait")
    raise_descriptor_limit(PULLERS + SPARE)
    running = gate("echo_bytes.py", workers=1, store="memory:")(folder / "waiting")
    request = request_bytes("GET", "/pull/waited?wait=60")
    with running.child, contextlib.ExitStack() as stack:
        waiting: dict[int, Caller] = {}
        poller = stack.enter_context(select.epoll())
        for begin in range(0, PULLERS, CHUNK):
            for _ in range(min(CHUNK, PULLERS - begin)):
                caller = stack.enter_context(Caller(running.url))
                caller.socket.sendall(request)
                poller.register(caller.socket, select.EPOLLIN)
                waiting[caller.socket.fileno()] = caller
        time.sleep(1.0)
        cpu = running.child.cpu()
        time.sleep(IDLE)
        idle = (running.child.cpu() - cpu) / IDLE * 100
        rss = running.child.rss() / MEBI
        times = [push_one(running, poller, waiting, request) for _ in range(PUSHES)]
        rest = poller.poll(0.1)
        if rest:
            raise BenchmarkError(f"{len(rest)} pullers more were answered than pushes made")
        running.child.process.kill()
    times.sort()
    tail = spread_of(times[PUSHES * 99 // 100 : PUSHES * 99 // 100 + 1])
    name = f"{PULLERS:,} pullers wait"
    yield Check(f"{name}: idle CPU", "% of a core", spread_of([idle]), Bar(2.0, more=LESS))
    yield Check(f"{name}: RSS of the gate", "MiB", spread_of([rss]), Bar(400, more=LESS))
    yield Check(
        f"{name}: push until the one is answered, p99",
        "ms",
        tail,
        Bar(20, more=LESS),
        other=f"median {times[PUSHES // 2]:.2f} ms",
    )


def push_one(
    running: Running, poller: select.epoll, waiting: dict[int, Caller], request: bytes
) -> float:
    """
    Push one command; return the milliseconds until a puller has it.

    Raises:
        BenchmarkError: Nobody was answered, or more than one.
    """
    push = request_bytes("POST", "/push/waited", LINE)
    with Caller(running.url) as pusher:
        began = time.monotonic()
        pusher.socket.sendall(push)
        events = poller.poll(PATIENCE)
        took = time.monotonic() - began
        pusher.answer()
    events += poller.poll(0.005)
    answered = {number for number, _ in events}
    if len(answered) != 1:
        raise BenchmarkError(f"one push, and {len(answered)} pullers were answered")
    caller = waiting[answered.pop()]
    if caller.answer().body != LINE:
        raise BenchmarkError("a puller was answered with something else")
    caller.socket.sendall(request)
    return took * 1000


if __name__ == "__main__":
    sys.exit(main("Measure work that is done from outside, beside beanstalkd and children.", run))
