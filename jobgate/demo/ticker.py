"""
Follow a number down to 1 as Collatz did, and send every step as it is taken.

    curl -N -X POST http://127.0.0.1:8080/call/ticker
    curl -N http://127.0.0.1:8080/call/ticker -d '{"start": 97, "delay": 0.05}'
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from jobgate.worker import Command, Fail, serve

if TYPE_CHECKING:
    from collections.abc import Iterator

LARGEST = 10**18
SLOWEST = 5.0  # seconds between two steps


def tick(command: Command) -> Iterator[str]:
    """
    Check what is asked for before the first line goes out, then stream.
    """
    wanted = command.json() if command.body else {}
    if not isinstance(wanted, dict) or wanted.keys() - {"start", "delay"}:
        raise Fail("impossible option", "wanted: {'start': 27, 'delay': 0.2}", 422, retry=False)
    start, delay = wanted.get("start", 27), wanted.get("delay", 0.2)
    if type(start) is not int or not 1 <= start <= LARGEST:
        detail = f"start: found {start!r:.50}, wanted a whole number from 1 to {LARGEST}"
        raise Fail("impossible option", detail, 422, retry=False)
    if type(delay) not in {int, float} or not 0 <= delay <= SLOWEST:
        detail = f"delay: found {delay!r:.50}, wanted seconds from 0 to {SLOWEST}"
        raise Fail("impossible option", detail, 422, retry=False)
    return steps(command, start, delay)


def steps(command: Command, number: int, delay: float) -> Iterator[str]:
    """
    Yield a line for each step; jobgate stops asking when the caller has gone.
    """
    count = 0
    yield f"{count}: {number}\n"
    while number != 1:
        if command.remaining < 2 * delay:
            yield "no time left\n"
            return
        time.sleep(delay)
        number = number // 2 if number % 2 == 0 else 3 * number + 1
        count += 1
        yield f"{count}: {number}\n"


if __name__ == "__main__":
    serve(tick)
