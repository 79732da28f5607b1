"""
Ends what a killed gate leaves behind.

The gate starts this file as a process of its own and tells it, over a pipe, which
process groups live. When the pipe closes the gate is gone, however it went, and every
group that is still there is killed. A worker's own children are in its group, so they
go with it: the kernel's parent-death signal reaches only the worker itself.

One line a change: `+PGID` for a group that lives, `-PGID` for one that has ended.
"""

import os
import signal
import sys


def watch(pipe: int) -> None:
    """Follow what the gate says until it is gone, then kill what is left."""
    groups: set[int] = set()
    with os.fdopen(pipe, "rb", buffering=0) as lines:
        rest = b""
        while data := lines.read(65536):
            *complete, rest = (rest + data).split(b"\n")
            for line in complete:
                if line.startswith(b"+"):
                    groups.add(int(line[1:]))
                else:
                    groups.discard(int(line[1:]))
    for group in groups:
        try:
            os.killpg(group, signal.SIGKILL)
        except ProcessLookupError:
            continue


if __name__ == "__main__":
    os.setsid()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    watch(0)
    sys.exit(0)
