"""
What the gate costs before it does anything: time to start, RAM at rest, RAM of those who wait.
"""

from __future__ import annotations

import contextlib
import http.client
import re
import select
import socket
import time
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from processes import BenchmarkError, raise_descriptor_limit
from servers import gate

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from servers import Running

__all__ = ["start_once", "wait_in_line"]

SETTLE = 1.0
"""Seconds between the listening line and the look at the RAM."""
PATIENCE = 120.0
"""Seconds until all callers must be waiting."""
CHUNK = 32
"""Connections opened before the requests on them are sent: fewer than a listen backlog."""
SPARE = 200
"""Descriptors besides the callers' connections."""
LONG = 3600
"""Seconds after which the gate may give up on a caller."""


def start_once(folder: Path) -> tuple[float, int]:
    """
    Start a gate with one trivial worker.

    Returns:
        Seconds from the start of the program until its listening line (so, with its worker
        ready), and the RSS of the gate's own process at rest, in bytes.
    """
    running = gate("echo_bytes.py", workers=1)(folder)
    with running.child:
        time.sleep(SETTLE)
        return running.ready_after, running.child.rss()


def wait_in_line(folder: Path, callers: int) -> tuple[int, int]:
    """
    Let many callers wait for one worker that is busy for ever.

    Returns:
        RSS of the gate's own process before the first caller came and with all of them waiting,
        in bytes.

    Raises:
        BenchmarkError: One was answered, or not all were waiting in time.
    """
    raise_descriptor_limit(callers + SPARE)
    running = gate(
        "sleep.py", workers=1, in_flight=1, size=callers + 1, queue_timeout=LONG, timeout=LONG
    )(folder)
    with running.child, contextlib.ExitStack() as stack:
        time.sleep(SETTLE)
        before = running.child.rss()
        callers_at_once = [stack.enter_context(each) for each in call_all(running, callers)]
        wait_until_waiting(running, callers - 1)
        refuse_answers(callers_at_once)
        time.sleep(SETTLE)
        after = running.child.rss()
        running.child.process.kill()  # nobody is left to drain for
        return before, after


def call_all(running: Running, callers: int) -> Iterator[socket.socket]:
    """
    Open the connections and send one call on each, without waiting for any answer.
    """
    parts = urlsplit(running.url)
    body = b'{"id":' + b"7" * 93 + b"}"
    request = (
        f"POST {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    ).encode() + body
    for begin in range(0, callers, CHUNK):
        size = min(CHUNK, callers - begin)
        chunk = [socket.create_connection((parts.hostname, parts.port), 10) for _ in range(size)]
        for connection in chunk:
            connection.sendall(request)
        yield from chunk


def wait_until_waiting(running: Running, wanted: int) -> None:
    """
    Watch the gate's own metrics until so many commands wait.

    Raises:
        BenchmarkError: They do not, in time.
    """
    give_up = time.monotonic() + PATIENCE
    while (waiting := commands_waiting(running)) < wanted:
        if time.monotonic() > give_up:
            raise BenchmarkError(f"{waiting:g} of {wanted} commands wait:\n{running.child.tail()}")
        time.sleep(0.1)


def commands_waiting(running: Running) -> float:
    """
    Read one number from the metrics page.
    """
    parts = urlsplit(running.url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=PATIENCE)
    try:
        connection.request("GET", "/metrics")
        page = connection.getresponse().read().decode()
    finally:
        connection.close()
    line = r'^jobgate_commands_waiting\{[^}]*queue="bench"[^}]*\} (\S+)'
    found = re.search(line, page, re.MULTILINE)
    return float(found[1]) if found else 0.0


def refuse_answers(connections: list[socket.socket]) -> None:
    """
    Make sure that nobody was answered or cut off.

    Raises:
        BenchmarkError: Somebody was; with the answer.
    """
    poller = select.poll()
    for connection in connections:
        poller.register(connection, select.POLLIN)
    answered = poller.poll(0)
    if answered:
        first = next(each for each in connections if each.fileno() == answered[0][0])
        raise BenchmarkError(f"{len(answered)} callers were answered: {first.recv(500)!r}")
