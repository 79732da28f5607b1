"""
Arrivals that do not wait for answers, as those of many independent callers.
"""

from __future__ import annotations

import contextlib
import select
import time
from collections import deque

from callers import PATIENCE, Caller, request_bytes
from processes import BenchmarkError

__all__ = ["send_at"]


def send_at(url: str, rate: float, seconds: float) -> list[float]:
    """
    Send so many small requests a second, evenly, whatever becomes of them.

    Returns:
        Seconds from the moment at which each was to be sent until it was answered.

    Raises:
        BenchmarkError: One was not answered, or with no success.
    """
    request = request_bytes("POST", "/" + url.split("/", 3)[3], b"x" * 100)
    count = int(rate * seconds)
    times: list[float] = []
    with contextlib.ExitStack() as stack:
        free: deque[Caller] = deque()
        busy: dict[int, tuple[Caller, float]] = {}
        poller = select.poll()
        began = time.monotonic()
        sent = 0
        while len(times) < count:
            due = began + sent / rate
            now = time.monotonic()
            if now > began + seconds + PATIENCE:
                raise BenchmarkError(f"{count - len(times)} requests were not answered")
            if sent < count and now >= due:
                if not free:
                    caller = stack.enter_context(Caller(url))
                    poller.register(caller.socket, select.POLLIN)
                else:
                    caller = free.popleft()
                caller.socket.sendall(request)
                busy[caller.socket.fileno()] = caller, due
                sent += 1
                continue
            for number, _ in poller.poll(max(0.0, due - now) * 1000 if sent < count else 100):
                caller, due = busy.pop(number)
                caller.answer()
                times.append(time.monotonic() - due)
                free.append(caller)
    return times
