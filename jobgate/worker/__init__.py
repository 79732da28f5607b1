"""
The worker's side of jobgate: what a program calls to be given commands.

    from jobgate.worker import serve

    serve(lambda command: command.body.upper())

This package runs inside the child: `commands` is what a handler sees, `link` the two file
descriptors to the gate, `answers` what is between the two. It must not know Twisted, HTTP, queues
or any other room of jobgate, and it imports only what costs next to nothing: a worker says HELLO a
few milliseconds after its interpreter is up.

The main thread reads commands, runs the handler and writes replies, strictly in the order given.
A reply is in the pipe, to its last byte, before the next handler starts: that is what lets the
gate say, when a worker dies, which command had begun and which had not. While one handler runs
for long, a helper thread reads what follows, so that large bodies travel, a CANCEL is seen and the
next batch is parsed before its turn comes.
"""

from __future__ import annotations

import os
import sys

from jobgate.worker.answers import work
from jobgate.worker.commands import Command, Decline, Fail, Input, Reply
from jobgate.worker.frames import HELLO
from jobgate.worker.link import Link

TYPE_CHECKING = False  # importing typing takes longer than all the rest of this package
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

__all__ = ["Command", "Decline", "Fail", "Input", "Reply", "pull", "serve"]


def serve(
    handler: Callable[[Any], object],
    *,
    batch: bool = False,
    connect: str = "",
    queue: str = "default",
    token: str = "",
    name: str = "",
    certfile: str = "",
    keyfile: str = "",
    cafile: str = "",
) -> None:
    """
    Run commands until the gate drains this worker or goes away.

    With `connect` this process comes to the gate by itself, from wherever it is: it registers
    over a socket, connects again whenever it has to, and ends when it is told to (SIGTERM or
    Ctrl-C: the command under way is finished first). The other arguments are for that alone.

    Moves file descriptors 0 and 1 aside first, so that nothing that prints or reads in this
    process or its children can touch the frames: from here on 1 is stderr, and 0 is empty.
    What is printed before is logged as well.

    Args:
        handler: Called with one `Command` at a time. What it returns is the reply: bytes, str,
            a `Reply`, or anything JSON; an iterator is streamed, item by item. What it raises
            fails the command; `Fail` and `Decline` say more.
        batch: The handler is called with a list of commands instead, and returns a list of as
            many replies, in the same order. One that is an exception fails its command alone.
        connect: Where the gate's `worker_listen` is: `tcp://HOST:PORT`, `tls://HOST:PORT` or
            `unix:///PATH`.
        queue: The queue to work for.
        token: One with the right `work:QUEUE`; by default what `$JOBGATE_TOKEN` says.
        name: What to be called; by default after this host and process.
        certfile: With `tls://`, this worker's certificate (PEM), if the gate wants one.
        keyfile: Its key, if it is not in the same file.
        cafile: The certificates that the gate's must be signed by; by default the system's.

    Raises:
        TypeError: The handler cannot be called.
        ValueError: `connect` is none of these forms.
        SystemExit: There is no gate at the other end (2), or it is gone or speaks no frames;
            or it refuses this worker at its first attempt to register (1).
    """
    if not callable(handler):
        # The types say that this cannot be, but who writes a worker need not check types.
        msg = f"serve() wants a function that takes a Command; found {handler!r}"  # type: ignore[unreachable]
        raise TypeError(msg)
    if connect:
        from jobgate.worker.outside import Outside

        token = token or os.environ.get("JOBGATE_TOKEN", "")
        name = name or _own_name()
        files = certfile, keyfile, cafile
        Outside(connect, queue, token, name, *files, batch=batch).serve(handler)
        return
    if os.isatty(0):
        sys.stderr.write(
            "This is a jobgate worker, for the gate to start: "
            f"twistd -n jobgate --worker 'python {sys.argv[0] or 'x.py'}'\n",
        )
        raise SystemExit(2)
    link = Link(*_move_stdio(), batching=batch)
    os.register_at_fork(after_in_child=link.disown)
    stacks = b', "stacks": true' if _tell_stacks() else b""
    link.send(HELLO, 0, b'{"protocol": 1, "ordered": true%b}' % stacks)
    work(link, handler)
    if link.trouble:
        sys.exit(f"jobgate.worker: {link.trouble}")


def pull(
    handler: Callable[[Command], object],
    url: str,
    queue: str = "default",
    *,
    token: str | None = None,
    lease: float = 60,
    wait: float = 20,
    certfile: str = "",
    keyfile: str = "",
    cafile: str = "",
) -> None:
    """
    Pull commands from a gate over HTTP and run them, until this process is told to end.

    SIGTERM or Ctrl-C: the command under way is finished first. A gate that cannot be reached is
    looked for again and again. Handlers are those of `serve`; a stream's items are joined.

    Args:
        handler: Called with one `Command` at a time, as by `serve`.
        url: Where the gate is: `http://HOST:PORT` or `https://HOST:PORT`.
        queue: The queue to work for.
        token: One with the right `pull:QUEUE`; by default what `$JOBGATE_TOKEN` says.
        lease: Seconds after which the gate gives a command to another if it has not heard from
            this worker; it hears while the handler runs.
        wait: Seconds for which one request waits for a command.
        certfile: With `https://`, this worker's certificate (PEM), if the gate wants one.
        keyfile: Its key, if it is not in the same file.
        cafile: The certificates that the gate's must be signed by; by default the system's.

    Raises:
        TypeError: The handler cannot be called.
        ValueError: `url`, `lease` or `wait` make no sense.
        SystemExit: The gate refuses this worker at its first request (1).
    """
    if not callable(handler):
        # As in `serve`.
        msg = f"pull() wants a function that takes a Command; found {handler!r}"  # type: ignore[unreachable]
        raise TypeError(msg)
    from jobgate.worker.pulling import Puller

    if token is None:
        token = os.environ.get("JOBGATE_TOKEN", "")
    Puller(url, queue, token, lease, wait, (certfile, keyfile, cafile)).serve(handler)


def _own_name() -> str:
    """Return what tells this process from others: names are letters, digits, `.`, `_`, `-`."""
    host = "".join(c if c.isascii() and c.isalnum() else "-" for c in os.uname().nodename)
    return f"{host[:50]}-{os.getpid()}"


def _move_stdio() -> tuple[int, int]:
    """Put the pipes to the gate where only this module finds them, and children never do."""
    for stream in (sys.stdout, sys.stderr):
        if stream:
            stream.flush()  # text from before HELLO belongs before HELLO
    source, sink = os.dup(0), os.dup(1)  # dup makes them close on exec
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(2, 1)
    os.close(null)
    for fd in (source, sink):
        os.set_blocking(fd, True)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(line_buffering=True)
    return source, sink


def _tell_stacks() -> bool:
    """Dump the stacks of all threads to stderr upon the signal that the gate names, if it does."""
    number = os.environ.get("JOBGATE_STACKS", "")
    if not number.isdecimal():
        return False
    import faulthandler

    faulthandler.register(int(number), file=2, all_threads=True)
    return True
