"""
Thousands of concurrent callers, some of whom leave, and workers that are killed: each
reply must be the hash of its caller's own nonce, and in the end everything adds up.
"""

from __future__ import annotations

import asyncio
import os
import random
import re
import signal
from hashlib import sha256
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest
from program import Program, at_rest, eventually, sdk
from raw_http import request_bytes

if TYPE_CHECKING:
    from collections.abc import Callable

CALLS, CONNECTIONS = 3000, 200
LEAVE_EVERY = 15
KILL_EVERY = 0.25
KILLS, SCRAPES = 2, 5
"""How many there must be at least while the crowd calls."""


class Crowd:
    """
    Callers that send nonces and check what comes back.

    Attributes:
        sent: Calls, at least CALLS of them.
        matched: Replies that were their nonce's own hash.
        left: Calls whose callers left before the answer.
        problems: Answers that were neither, by what they were.
        mixed_up: What must never be.
    """

    def __init__(self, gate: Program, queue: str, seed: int, prefix: bytes = b"") -> None:
        address = urlsplit(gate.url)
        self._gate = gate
        self._queue = queue
        self._prefix = prefix
        self._host, self._port = address.hostname, address.port
        self._random = random.Random(seed)
        self.sent = 0
        self.matched = 0
        self.left = 0
        self.problems: dict[str, int] = {}
        self.mixed_up: list[tuple[bytes, bytes]] = []
        self.kills = 0
        self.scrapes = 0

    async def run(self) -> None:
        """All callers, until everybody has had an answer; with kills and scrapes meanwhile."""
        killer = asyncio.create_task(self._kill())
        scraper = asyncio.create_task(self._scrape())
        try:
            async with asyncio.timeout(100):
                await asyncio.gather(*(self._caller() for _ in range(CONNECTIONS)))
        finally:
            for task in (killer, scraper):
                task.cancel()
            outcomes = await asyncio.gather(killer, scraper, return_exceptions=True)
        bugs = [o for o in outcomes if not isinstance(o, asyncio.CancelledError)]
        assert not bugs, bugs

    async def _caller(self) -> None:
        writer = None
        try:
            # On a quick machine the calls go on until enough has been killed and looked at.
            while self.sent < CALLS or self.kills < KILLS or self.scrapes < SCRAPES:
                self.sent += 1
                if writer is None:
                    reader, writer = await asyncio.open_connection(self._host, self._port)
                nonce = self._prefix + os.urandom(self._random.randrange(16, 200))
                if self._random.randrange(20) == 0:
                    nonce *= 1000
                writer.write(request_bytes("POST", f"/call/{self._queue}", nonce))
                if self._random.randrange(LEAVE_EVERY) == 0:
                    await asyncio.sleep(self._random.random() * 0.05)
                    writer.transport.abort()
                    writer = None
                    self.left += 1
                    continue
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                length = int(re.search(r"Content-Length: (\d+)", head)[1])  # type: ignore[index]
                self._check(head, nonce, await reader.readexactly(length))
        finally:
            if writer is not None:
                writer.transport.abort()

    def _check(self, head: str, nonce: bytes, body: bytes) -> None:
        if head.startswith("HTTP/1.1 200 "):
            if body == sha256(nonce).hexdigest().encode():
                self.matched += 1
            else:
                self.mixed_up.append((nonce[:64], body[:200]))
            return
        kind = re.search(rb'"type":"/problems/([a-z-]+)"', body)
        name = kind[1].decode() if kind else head
        self.problems[name] = self.problems.get(name, 0) + 1

    async def _kill(self) -> None:
        while True:
            await asyncio.sleep(KILL_EVERY)
            workers = await asyncio.to_thread(self._gate.workers, self._queue)
            pids = [worker["pid"] for worker in workers if worker["state"] in ("ready", "busy")]
            if pids:
                try:
                    os.kill(self._random.choice(pids), signal.SIGKILL)
                    self.kills += 1
                except ProcessLookupError:
                    continue

    async def _scrape(self) -> None:
        while True:
            await asyncio.to_thread(self._gate.conserved)
            self.scrapes += 1
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("front", ["fast", "klein"])
@pytest.mark.parametrize("in_flight", [1, 8])
def test_no_mix_up(start_gate: Callable[..., Program], front: str, in_flight: int) -> None:
    """With SDK workers, which answer in order."""
    queue = {
        "command": sdk("digest"),
        "workers": 3,
        "in_flight": in_flight,
        "size": 1000,
        "retry": "safe",
        "attempts": 50,
    }
    gate = start_gate({"queues": {"q": queue}}, front=front)
    run_crowd(gate, Crowd(gate, "q", seed=in_flight))


def test_no_mix_up_without_order(start_gate: Callable[..., Program]) -> None:
    """With workers that answer in whatever order."""
    queue = {
        "command": sdk("disorder"),
        "workers": 3,
        "in_flight": 8,
        "size": 1000,
        "retry": "safe",
        "attempts": 50,
    }
    gate = start_gate({"queues": {"q": queue}})
    run_crowd(gate, Crowd(gate, "q", seed=3))


def run_crowd(gate: Program, crowd: Crowd) -> None:
    """Let them all call a queue "q" with three workers; then everything must add up."""
    gate.ready("q", 3)
    asyncio.run(crowd.run())
    assert crowd.mixed_up == []
    assert crowd.problems == {}
    assert crowd.matched + crowd.left == crowd.sent >= CALLS
    assert crowd.left > crowd.sent / LEAVE_EVERY / 2
    numbers = at_rest(gate, "q")
    # Of those who left at once, some were not even heard.
    assert crowd.matched <= numbers["commands_succeeded_total"] <= crowd.sent
    assert numbers["commands_failed_total"] == numbers["commands_shed_total"] == 0
    assert numbers["commands_accepted_total"] <= crowd.sent
    eventually(lambda: gate.get("/readyz").status == 200)
    eventually(
        lambda: [w["state"] for w in gate.workers("q") if w["commands"] == []] == ["ready"] * 3
    )
