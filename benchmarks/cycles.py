"""
One client that puts work in, takes it out and says that it is done, over and over.

``cycles.py SERVER PORT TUBE COUNT SECONDS``: the server is ``gate`` or ``beanstalkd``; so many
commands go in each cycle, at once where the server can. Prints ``cycles=N seconds=S cpu=S`` of
commands that went all the way, with its own CPU time. The harness starts several of it.
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from callers import Caller, request_bytes
from processes import BenchmarkError

if TYPE_CHECKING:
    from collections.abc import Callable

BODY = b"x" * 100
LEASE = 60


def gate(port: int, tube: str, count: int) -> Callable[[], None]:
    """
    Return one cycle at a gate: push, pull under a lease, ack.
    """
    caller = Caller(f"http://127.0.0.1:{port}")
    query, body = "", BODY
    pull = f"/pull/{tube}?wait=60&lease={LEASE}"
    if count > 1:
        query, body = "?each=line", (BODY + b"\n") * count
        pull += f"&each=line&max={count}&min={count}"
    put_in = request_bytes("POST", f"/push/{tube}{query}", body)
    take_out = request_bytes("GET", pull)

    def cycle() -> None:
        caller.ask(put_in)
        got = caller.ask(take_out)
        if got.body != body:
            raise BenchmarkError(f"{len(got.body)} bytes came back, not {len(body)}")
        lease = got.field(b"Jobgate-Lease").decode()
        caller.ask(request_bytes("POST", f"/leases/{lease}/ack"))

    return cycle


def beanstalkd(port: int, tube: str, count: int) -> Callable[[], None]:
    """
    Return the same at beanstalkd: put, reserve, delete.
    """
    import greenstalk

    client = greenstalk.Client(("127.0.0.1", port), encoding=None, use=tube, watch=tube)

    def cycle() -> None:
        for _ in range(count):
            client.put(BODY, ttr=LEASE)
        for _ in range(count):
            job = client.reserve(timeout=60)
            if job.body != BODY:
                raise BenchmarkError(f"{len(job.body)} bytes came back, not {len(BODY)}")
            client.delete(job)

    return cycle


def main() -> None:
    """
    Cycle until the time is up.
    """
    server, port, tube, count, seconds = sys.argv[1:]
    make = {"gate": gate, "beanstalkd": beanstalkd}[server]
    cycle = make(int(port), tube, int(count))
    cycle()
    began, cpu = time.monotonic(), time.process_time()
    until = began + float(seconds)
    cycles = 0
    while time.monotonic() < until:
        cycle()
        cycles += int(count)
    took, cpu = time.monotonic() - began, time.process_time() - cpu
    sys.stdout.write(f"cycles={cycles} seconds={took:.6f} cpu={cpu:.6f}\n")


if __name__ == "__main__":
    main()
