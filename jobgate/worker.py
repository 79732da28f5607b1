"""
The worker's side of jobgate: what a program calls to be given commands.

    from jobgate.worker import serve

    serve(lambda command: command.body.upper())

This module runs inside the child. It knows frames (contract 5.1), two file descriptors and one
handler. It must not know Twisted, HTTP, queues or any other room of jobgate, and it imports only
what costs next to nothing: a worker says HELLO a few milliseconds after its interpreter is up.

The main thread reads commands, runs the handler and writes replies, strictly in the order given.
A reply is in the pipe, to its last byte, before the next handler starts: that is what lets the
gate say, when a worker dies, which command had begun and which had not. While one handler runs
for long, a helper thread reads what follows, so that large bodies travel and a CANCEL is seen.
"""

from __future__ import annotations

import _thread
import os
import sys
from io import BytesIO
from select import PIPE_BUF, POLLIN, poll
from struct import Struct
from time import monotonic, sleep

TYPE_CHECKING = False  # importing typing takes longer than all the rest of this module
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

__all__ = ["Command", "Decline", "Fail", "Input", "Reply", "pull", "serve"]

# Frame types, contract 5.1. A handler that takes one command is asked for them one by one,
# whatever BATCH says.
_HELLO, _WELCOME, _COMMAND, _REPLY, _FAIL, _CHUNK, _PROGRESS = 1, 2, 3, 4, 5, 6, 7
_CANCEL, _DECLINE, _PING, _PONG, _DRAIN, _BATCH = 8, 9, 10, 11, 12, 13

_HEADER = Struct(">IBBHII")  # length of what follows it, version, type, flags, id, meta length
_pack, _unpack = _HEADER.pack, _HEADER.unpack_from
_HEADER_SIZE = 16
_MAX_FRAME = 64 * 1024 * 1024  # the largest length that a header may give
# glibc maps and unmaps an allocation of 128 KiB or more each time, which costs more than the read.
_READ = 64 * 1024
_GATHER = 256 * 1024  # bytes of a batch's replies that are written at once
_READ_AHEAD = 64 * 1024 * 1024  # bytes of waiting bodies beyond which the helper stops reading
_TICK = 0.02  # seconds that a handler runs before the helper reads in its place
_QUIET = 50  # ticks without work after which the helper sleeps until there is some
_GLANCE = 0.001  # seconds between two looks at the pipe, however often `cancelled` is asked

_LINE, _DETAIL = 500, 10_000  # characters of a title and of a detail that the caller gets

_BYTES = "application/octet-stream"
_TEXT = "text/plain; charset=utf-8"
_JSON = "application/json"
_JSON_LINES = "application/x-ndjson"
# The metas that nearly every reply has, so that answering bytes costs no JSON at all.
_METAS = {
    kind: b'{"content_type":"%b"}' % kind.encode() for kind in (_BYTES, _TEXT, _JSON, _JSON_LINES)
}
_BYTES_META = _METAS[_BYTES]


class Decline(Exception):
    """Raise or return it to hand a command back: the gate gives it to another worker."""


class Fail(Exception):
    """
    Raise or return it to fail a command with words and a status of your own.

    Args:
        title: One line that says what went wrong; the caller reads it.
        detail: More of the same, for this one occurrence.
        status: The HTTP status for the caller, 400 to 599; by default the gate says 500.
        retry: False tells the gate that trying again is useless (contract 6).

    Raises:
        ValueError: The status is none that a failure can have.
    """

    def __init__(
        self,
        title: str,
        detail: str | None = None,
        status: int | None = None,
        retry: bool | None = None,  # noqa: FBT001 - the order is part of the contract
    ) -> None:
        super().__init__(title)
        _check_status(status, 400)
        self.title = title
        self.detail = detail
        self.status = status
        self.retry = retry


class Reply:
    """
    A reply that says its own content type or status, or makes its graph grow.

    Args:
        body: bytes, str, or anything JSON.
        content_type: What the body is; by default, what its Python type suggests.
        status: The HTTP status for the caller, 200 to 599; by default the gate says 200.
        jobs: Further jobs for the graph of the command's job (contract 4.3), as `POST /graphs`
            takes them: by name, each a dict with `queue` and so on.

    Raises:
        ValueError: Content type or status would not survive the way to the caller.
    """

    __slots__ = ("body", "content_type", "jobs", "status")

    def __init__(
        self,
        body: object,
        content_type: str | None = None,
        status: int | None = None,
        jobs: dict[str, dict[str, Any]] | None = None,
    ) -> None:
        # The gate ends a worker over these (contract 5.1): better to fail the one command here.
        _check_status(status, 200)
        plain = str(content_type or "")
        if not (plain.isascii() and plain.isprintable()):
            msg = f"content type {content_type!r} is not printable ASCII"
            raise ValueError(msg)
        self.body = body
        self.content_type = plain or None
        self.status = status
        self.jobs = jobs


class Input:
    """
    The reply of a job that this command needed (contract 4.3).

    Attributes:
        body: Its bytes.
        content_type: What they are.
    """

    __slots__ = ("body", "content_type")

    def __init__(self, body: bytes, content_type: str) -> None:
        self.body = body
        self.content_type = content_type


class Command:
    """
    One piece of work, as the handler sees it.

    Attributes:
        body: The bytes that the caller sent.
        content_type: What the caller says they are.
        id: The `Jobgate-Id`.
        queue: The queue it came through.
        attempt: Which start of this command this is, from 1.
        headers: What was handed on from the request: `traceparent`, `jobgate-key`.
        inputs: The replies of the jobs that this one needed, by name.
    """

    # Read from the meta when the first is asked for: many handlers want the body only.
    _LATER = ("content_type", "id", "queue", "attempt", "headers", "inputs", "_deadline")
    __slots__ = (*_LATER, "_cancelled", "_link", "_meta", "_number", "_received", "body")
    body: bytes
    content_type: str
    id: str
    queue: str
    attempt: int
    headers: dict[str, str]
    inputs: dict[str, Input]
    _deadline: float

    def __init__(self, link: _Link, number: int, meta: bytes, body: bytes, received: float) -> None:
        self._link = link
        self._number = number
        self._meta = meta
        self.body = body
        self._received = received
        self._cancelled = False

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - it is JSON
        if name not in Command._LATER:
            msg = f"a Command has no {name!r}"
            raise AttributeError(msg)
        self._parse()
        return getattr(self, name)

    def _parse(self) -> None:
        """Set what the meta says, and part the inputs from the body, which they follow."""
        facts = _loads(self._meta) if self._meta else {}
        self.id = str(facts.get("id") or self._number)
        self.queue = str(facts.get("queue") or "")
        self.content_type = str(facts.get("content_type") or _BYTES)
        self.attempt = int(facts.get("attempt") or 1)
        self.headers = dict(facts.get("headers") or {})
        remaining = facts.get("remaining_ms")
        seconds = float("inf" if remaining is None else remaining) / 1000
        self._deadline = self._received + seconds
        inputs, end = {}, len(self.body)
        for entry in reversed(facts.get("inputs") or ()):
            start = end - entry["length"]
            kind = str(entry.get("content_type") or _BYTES)
            inputs[entry["name"]] = Input(self.body[start:end], kind)
            end = start
        self.inputs = dict(reversed(inputs.items()))
        self.body = self.body[:end]

    @property
    def remaining(self) -> float:
        """Seconds until nobody waits for the reply any more; infinite without a deadline."""
        return max(0.0, self._deadline - monotonic())

    @property
    def cancelled(self) -> bool:
        """Whether the caller has gone or the time is up: a long handler looks now and then."""
        if not self._cancelled:
            self._link.glance()
        return self._cancelled

    def json(self) -> Any:  # noqa: ANN401 - it is JSON
        """
        Parse the body as JSON.

        Raises:
            Fail: It is not JSON; left alone, the caller gets status 400.
        """
        try:
            return _loads(self.body)
        except (ValueError, RecursionError) as error:
            title = "the body is not JSON"
            raise Fail(title, _line(error), 400, retry=False) from None

    def progress(self, done: float, total: float | None = None, note: str | None = None) -> None:
        """
        Tell those who watch the job how far it is. May be called from any thread.

        Args:
            done: How much is done, in units of the handler's choice.
            total: How much there is in all, if known.
            note: A line for people.
        """
        facts: dict[str, object] = {"done": _number(done)}
        if total is not None:
            facts["total"] = _number(total)
        if note is not None:
            facts["note"] = _line(note)
        meta = _dumps(facts)
        # A thread that outlives its command has nobody to tell.
        if self._link.current is self or self in self._link.batch:
            self._link.tell(_PROGRESS, self._number, meta)


class _Link:
    """
    The two file descriptors to the gate, and what has been read from them but not yet run.

    Two locks, taken in this order if both: `reading` guards all that reading touches, and the main
    thread holds it for as long as it waits for work; `writing` keeps frames whole. Frames of up to
    PIPE_BUF bytes are whole by themselves, so that most replies need no lock.
    """

    def __init__(self, source: int, sink: int, *, batching: bool = False) -> None:
        self.source = source
        self.sink = sink
        self.reading = _thread.allocate_lock()
        self.writing = _thread.allocate_lock()
        self.current: Command | None = None  # the one that is run; None: waiting for work
        self.batch: list[Command] = []  # all that are run together with it, if they are
        self.inbox: list[Command] = []  # what waits, oldest first
        self.batching = batching  # whether the handler takes batches
        self._taken = 0  # how many have left the inbox; counted for batches only
        self._batches: list[tuple[int, int]] = []  # how many came before a batch, and its size
        self.draining = False  # leave once the inbox is empty
        self.ended = False  # nothing more can be read
        self.trouble = ""  # what the gate sent that is no frame
        self._welcome = b""
        self._limit = PIPE_BUF  # larger frames wait for a look at WELCOME's max_frame
        self._poll = poll()
        self._poll.register(source, POLLIN)
        self._glanced = 0.0
        self._rest = b""  # the beginning of a frame
        # A frame larger than one read is filled in place instead, straight from the pipe:
        self._large: BytesIO | None = None
        self._missing = 0  # bytes of it still to come
        self._head = (0, 0, b"", 0)  # its type, id, meta, and how many bytes of meta are in _large

    def take(self) -> Command | None:
        """Wait for the next command; None when there will be no more."""
        with self.reading:
            if not self.inbox:
                self.current = None
                while not self.inbox:
                    if self.draining or self.ended:
                        self.ended = True
                        return None
                    self._read()
            self.current = command = self.inbox.pop(0)
        return command

    def take_batch(self) -> list[Command]:
        """Wait for all of the next batch; what came without one is a batch of its own."""
        with self.reading:
            self.batch = []
            self.current = None
            while len(self.inbox) < (size := self._next_size()):
                if self.ended or (self.draining and not self.inbox):
                    self.ended = True
                    return []
                self._read()
            if self._batches and self._batches[0][0] == self._taken:
                self._batches.pop(0)
            batch, self.inbox = self.inbox[:size], self.inbox[size:]
            self._taken += size
            self.batch = batch
            self.current = batch[0]
        return batch

    def _next_size(self) -> int:
        """Return how many commands the next batch has, as far as is known."""
        if self._batches and self._batches[0][0] == self._taken:
            return self._batches[0][1]
        return 1

    def glance(self) -> None:
        """Take in what the pipe holds, unless another thread is at it or has just been."""
        now = monotonic()
        if now - self._glanced > _GLANCE and self.reading.acquire(blocking=False):
            try:
                self._glanced = now
                self._read_if_any()
            finally:
                self.reading.release()

    def read_ahead(self) -> None:
        """
        Read in place of the main thread while that is busy with one handler: the helper thread.

        While handlers are quick it only looks up at every tick, and the main thread does nothing
        for it. Without work it sleeps on the `reading` lock, which the main thread then holds.
        """
        quiet = 0
        ready = poll()
        ready.register(self.source, POLLIN)
        while not self.ended:
            before = self.current
            sleep(_TICK)
            quiet = 0 if before else quiet + 1
            if quiet > _QUIET:
                with self.reading:
                    quiet = 0
            while before and self.current is before and not self.ended:
                ready.poll(1000)
                with self.reading:
                    took = self.current is before and self._read_if_any()
                if not took:
                    sleep(_TICK)

    def _read_if_any(self) -> bool:
        """Read once if that does not wait, and there is room. The caller holds `reading`."""
        held = sum(len(command.body) for command in self.inbox)
        if self.ended or held > _READ_AHEAD or not self._readable():
            return False
        self._read()
        return True

    # What carries the bytes: these three, `send` and `_write` are another's over a socket.

    def _readable(self) -> bool:
        """Whether reading would not wait."""
        return bool(self._poll.poll(0))

    def _receive(self) -> bytes:
        """Read some bytes, waiting if need be; none at the end."""
        return os.read(self.source, _READ)

    def _receive_into(self, view: memoryview) -> int:
        """Read into a buffer; returns how many bytes, 0 at the end."""
        return os.readv(self.source, [view])

    def _read(self) -> None:
        """Read once, waiting if need be, and take in what came. The caller holds `reading`."""
        try:
            if self._large:
                self._read_large(self._large)
                return
            data = self._receive()
        except ConnectionError:  # a socket may end like this
            data = b""
        if not data:
            self.ended = True
            return
        now = monotonic()
        if self._rest:
            data = self._rest + data
        at, end = 0, len(data)
        while end - at >= _HEADER_SIZE:
            length, version, kind, flags, number, meta = _unpack(data, at)
            if version != 1 or flags or length > _MAX_FRAME or meta > length - 12:
                self.ended, self.trouble = True, f"no frame: {data[at : at + _HEADER_SIZE]!r}"
                return
            middle = at + 16 + meta
            stop = at + 4 + length
            if stop > end:
                if length > _READ:
                    self._begin_large(kind, number, meta, data[at + 16 :], stop - end)
                    return
                break
            if kind == _COMMAND:
                command = Command(self, number, data[at + 16 : middle], data[middle:stop], now)
                self.inbox.append(command)
            else:
                self._control(kind, number, data[at + 16 : middle])
            at = stop
        self._rest = data[at:]

    def _begin_large(self, kind: int, number: int, meta: int, part: bytes, missing: int) -> None:
        """Make room for a frame that comes in many reads; `part` of it is here."""
        cut = 0 if len(part) >= meta else meta  # rarely is the meta itself torn
        self._head = (kind, number, b"" if cut else part[:meta], cut)
        # BytesIO hands out its own buffer in the end: bytes, without a second copy of the body.
        self._large = BytesIO()
        filled = self._large.write(part if cut else part[meta:])
        self._large.seek(filled + missing - 1)
        self._large.write(b"\0")
        self._missing = missing
        self._rest = b""

    def _read_large(self, large: BytesIO) -> None:
        """Read once into a large frame, and no further."""
        with large.getbuffer() as view, view[-self._missing :] as rest:
            got = self._receive_into(rest)
        self._missing -= got
        self.ended = not got
        if self._missing:
            return
        self._large = None
        kind, number, meta, cut = self._head
        body = large.getvalue()
        if cut:
            meta, body = body[:cut], body[cut:]
        if kind == _COMMAND:
            self.inbox.append(Command(self, number, meta, body, monotonic()))
        else:
            self._control(kind, number, meta)

    def _control(self, kind: int, number: int, meta: bytes) -> None:
        """Do what a frame other than COMMAND asks; unknown types are for later versions."""
        if kind == _CANCEL:
            for command in (self.current, *self.batch, *self.inbox):
                if command and command._number == number:  # noqa: SLF001 - family
                    command._cancelled = True  # noqa: SLF001
        elif kind == _PING:
            self.tell(_PONG, number)
        elif kind == _DRAIN:
            self.draining = True
        elif kind == _BATCH and self.batching:
            count = int(_loads(meta).get("count") or 0) if meta else 0
            if count > 0:
                self._batches.append((self._taken + len(self.inbox), count))
        elif kind == _WELCOME:
            self._welcome = meta

    def tell(self, kind: int, number: int, meta: bytes = b"") -> None:
        """Write one frame of at most PIPE_BUF bytes, from any thread."""
        with self.writing:
            self.send(kind, number, meta)

    def send(self, kind: int, number: int, meta: bytes = b"", body: Any = b"") -> None:  # noqa: ANN401
        """
        Write one frame, to its last byte. `body` is bytes, or a buffer of bytes.

        Raises:
            Fail: The frame is larger than the gate takes; nothing has been written.
            SystemExit: The gate is gone.
        """
        length = 12 + len(meta) + len(body)
        head = _pack(length, 1, kind, 0, number, len(meta)) + meta
        try:
            if length <= PIPE_BUF - 4:
                os.write(self.sink, head + body)
                return
            if length > self._limit:
                self._check_length(length)
            with self.writing:
                written = os.writev(self.sink, (head, body))
                while written < length + 4:  # a signal came in between
                    rest = memoryview(b"".join((head, body)))[written:]
                    written += os.write(self.sink, rest)
        except ConnectionError:
            raise SystemExit(0) from None

    def send_all(self, frames: list[tuple[int, int, bytes, Any]]) -> None:
        """
        Write many frames, as `send` takes them, with few writes. All are in the pipe at the end.

        Raises:
            SystemExit: The gate is gone.
        """
        gathered: list[bytes] = []
        size = 0
        for kind, number, meta, body in frames:
            length = 12 + len(meta) + len(body)
            if size + length > _GATHER or length > self._limit:
                self._write(b"".join(gathered))
                gathered, size = [], 0
            if length > self._limit:
                try:
                    self.send(kind, number, meta, body)
                except Fail as fail:
                    self.send(_FAIL, number, _describe(fail))
                continue
            gathered += (_pack(length, 1, kind, 0, number, len(meta)), meta, body)
            size += length
        self._write(b"".join(gathered))

    def _write(self, data: bytes) -> None:
        """Write whole frames, to the last byte."""
        try:
            with self.writing:
                rest = memoryview(data)
                while rest:
                    rest = rest[os.write(self.sink, rest) :]
        except ConnectionError:
            raise SystemExit(0) from None

    def _check_length(self, length: int) -> None:
        """Refuse a frame that the gate would not take; its limit is read when first needed."""
        if self._limit == PIPE_BUF:
            told = _loads(self._welcome).get("max_frame") if self._welcome else None
            self._limit = min(told or _MAX_FRAME, _MAX_FRAME)
        if length > self._limit:
            title = "the worker's reply is larger than a frame"
            raise Fail(title, f"{length} bytes; a frame holds {self._limit}", retry=False)

    def disown(self) -> None:
        """In a forked child: let go of the gate, whose frames belong to the parent alone."""
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, self.source, inheritable=False)
        os.dup2(null, self.sink, inheritable=False)
        os.close(null)
        # The helper may have held them; it lives in the parent only.
        self.reading = _thread.allocate_lock()
        self.writing = _thread.allocate_lock()


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
        from jobgate.outside import Outside

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
    link = _Link(*_move_stdio(), batching=batch)
    os.register_at_fork(after_in_child=link.disown)
    stacks = b', "stacks": true' if _tell_stacks() else b""
    link.send(_HELLO, 0, b'{"protocol": 1, "ordered": true%b}' % stacks)
    _work(link, handler)
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
    from jobgate.pulling import Puller

    if token is None:
        token = os.environ.get("JOBGATE_TOKEN", "")
    Puller(url, queue, token, lease, wait, (certfile, keyfile, cafile)).serve(handler)


def _work(link: _Link, handler: Callable[[Any], object]) -> None:
    """Run commands until there will be no more."""
    take: Any = link.take_batch if link.batching else link.take
    answer: Any = _answer_batch if link.batching else _answer
    work = take()
    if work:
        # Not threading.Thread: importing that takes longer than many a first command.
        _thread.start_new_thread(link.read_ahead, ())
    while work:
        answer(link, handler, work)
        work = take()


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


def _answer(link: _Link, handler: Callable[[Command], object], command: Command) -> None:
    """Run the handler and send the one REPLY, FAIL or DECLINE that the command is owed."""
    number = command._number  # noqa: SLF001 - family
    try:
        if command._cancelled:  # noqa: SLF001 - it has waited until nobody wanted it
            title = "cancelled"
            raise Fail(title)  # noqa: TRY301
        if b'"inputs"' in command._meta:  # noqa: SLF001
            command._parse()  # noqa: SLF001
        value = handler(command)
        if type(value) is bytes:
            meta, body = _BYTES_META, value
        elif hasattr(type(value), "__next__"):
            meta, body = _stream(link, command, value)
        else:
            meta, body = _encode(value, _JSON)
        link.send(_REPLY, number, meta, body)
    except Decline:
        link.send(_DECLINE, number)
    except Fail as fail:
        link.send(_FAIL, number, _describe(fail))
    except Exception as error:  # noqa: BLE001 - a command's failure is not its worker's
        from traceback import print_exc

        print_exc()  # to stderr, which the gate logs under the worker's name
        link.send(_FAIL, number, _describe(Fail(_line(error))))


def _answer_batch(
    link: _Link, handler: Callable[[list[Command]], object], batch: list[Command]
) -> None:
    """Run the handler and send what each of the commands is owed."""
    wanted = batch
    frames: list[tuple[int, int, bytes, Any]] = []
    if any([command._cancelled for command in batch]):  # noqa: C419, SLF001 - a list is quicker
        wanted = []
        for command in batch:
            if command._cancelled:  # noqa: SLF001
                frames.append(_word(link, command, Fail("cancelled")))
            else:
                wanted.append(command)
    if wanted:
        frames += [
            (_REPLY, command._number, _BYTES_META, value)  # noqa: SLF001
            if type(value) is bytes
            else _word(link, command, value)
            for command, value in zip(wanted, _values(handler, wanted), strict=True)
        ]
    link.send_all(frames)


def _values(
    handler: Callable[[list[Command]], object], commands: list[Command]
) -> Iterable[object]:
    """Return what the handler says about each command; what it raises is said about all."""
    try:
        for command in commands:
            if b'"inputs"' in command._meta:  # noqa: SLF001 - family
                command._parse()  # noqa: SLF001
        # The handler may keep or change its list.
        values: Any = handler(list(commands))
        if isinstance(values, (str, bytes, dict)) or not hasattr(values, "__iter__"):
            title = "the worker's handler returned no list of replies"
            raise Fail(title, _line(type(values)), retry=False)  # noqa: TRY301
        values = list(values)
        if len(values) != len(commands):
            title = (
                f"the worker's handler returned {len(values)} replies to {len(commands)} commands"
            )
            raise Fail(title, retry=False)  # noqa: TRY301
    except (Decline, Fail) as error:
        return [error] * len(commands)
    except Exception as error:  # noqa: BLE001 - the commands' failure is not their worker's
        from traceback import print_exc

        print_exc()  # to stderr, which the gate logs under the worker's name
        return [error] * len(commands)
    return values  # type: ignore[no-any-return]


def _word(link: _Link, command: Command, value: object) -> tuple[int, int, bytes, Any]:
    """Return the frame that is the last word on one command of a batch."""
    number = command._number  # noqa: SLF001 - family
    try:
        if isinstance(value, Exception) and not isinstance(value, (Fail, Decline)):
            return _FAIL, number, _describe(Fail(_line(value))), b""
        if hasattr(type(value), "__next__"):
            meta, body = _stream(link, command, value)
        else:
            meta, body = _encode(value, _JSON)
    except Decline:
        return _DECLINE, number, b"", b""
    except Fail as fail:
        return _FAIL, number, _describe(fail), b""
    except Exception as error:  # noqa: BLE001 - an iterator's: as in _answer
        from traceback import print_exc

        print_exc()
        return _FAIL, number, _describe(Fail(_line(error))), b""
    return _REPLY, number, meta, body


def _stream(link: _Link, command: Command, items: Any) -> tuple[bytes, Any]:  # noqa: ANN401
    """Send a CHUNK for each item of an iterator; return meta and body of the last word."""
    head: bytes | None = None  # the first item says what the whole is
    last: object = None
    try:
        while not command.cancelled:
            try:
                item = next(items)
            except StopIteration as stop:
                last = stop.value
                break
            if isinstance(item, Reply) and item.jobs:
                title = "jobs belong to what a stream returns at its end, not to an item of it"
                raise Fail(title, retry=False)
            meta, body = _encode(item, _JSON_LINES)
            if head is None:
                head = meta
            if len(body):
                link.send(_CHUNK, command._number, head, body)  # noqa: SLF001
                head = b""
    finally:
        close = getattr(items, "close", None)
        if close:
            close()
    if last is None:
        return _BYTES_META if head is None else head, b""
    meta, body = _encode(last, _JSON if head is None else _JSON_LINES)
    grows = isinstance(last, Reply) and last.jobs
    return meta if head is None or grows else head, body


def _encode(value: object, json: str) -> tuple[bytes, Any]:
    """
    Return meta and body for what a handler returned or yielded; JSON is sent as type `json`.

    Raises:
        Fail: It is neither bytes nor text nor JSON; or it is a Fail.
        Decline: It is a Decline.
    """
    given = status = jobs = None
    if isinstance(value, (Fail, Decline)):
        raise value
    if isinstance(value, Reply):
        given, status, jobs = value.content_type, value.status, value.jobs
        value = value.body
    kind, body = _BYTES, value
    if isinstance(value, memoryview):
        flat = value.contiguous and value.format == "B" and value.nbytes > PIPE_BUF
        body = value if flat else value.tobytes()
    elif not isinstance(value, (bytes, bytearray)):
        if isinstance(value, str):
            kind, body = _TEXT, _strictly(str.encode, value)
        else:
            kind, body = json, _strictly(_dumps, value) + b"\n" * (json is _JSON_LINES)
    if given is None and status is None and not jobs:
        return _METAS[kind], body
    facts: dict[str, object] = {"content_type": given or kind}
    if status is not None:
        facts["status"] = status
    if jobs:
        facts["jobs"] = jobs
    return _strictly(_dumps, facts), body


def _strictly(encode: Callable[..., bytes], value: object) -> bytes:
    """Encode without replacing anything; raises Fail for what cannot be encoded."""
    try:
        return encode(value, errors="strict")
    except (TypeError, ValueError, RecursionError) as error:
        title = "the worker's handler returned what cannot be sent"
        raise Fail(title, _line(error), retry=False) from None


def _describe(fail: Fail) -> bytes:
    """Return the meta of a FAIL frame."""
    detail = None if fail.detail is None else str(fail.detail)[:_DETAIL]
    facts = {"detail": detail, "status": fail.status, "retry": fail.retry}
    given = {name: value for name, value in facts.items() if value is not None}
    return _dumps({"title": _line(fail.title), **given})


def _line(said: object) -> str:
    """Return one short line for the caller, from an exception or a title."""
    try:
        text = " ".join(str(said).split())
    except Exception:  # noqa: BLE001 - somebody's __str__; the type still tells something
        text = ""
    if isinstance(said, Exception):
        text = f"{type(said).__name__}: {text}" if text else type(said).__name__
    return text[:_LINE]


def _number(amount: float) -> float:
    """Return an amount as JSON likes it, whatever number type it has (NumPy's, for one)."""
    value = float(amount)
    return int(value) if value.is_integer() else value


def _check_status(status: int | None, least: int) -> None:
    """Raise ValueError for a status that the gate would end this worker over."""
    if status is not None and not (isinstance(status, int) and least <= status <= 599):
        msg = f"status {status!r} is not a whole number from {least} to 599"
        raise ValueError(msg)


# Made when first needed. What `json.loads` and `json.dumps` do around these takes longer than the
# parsing and writing of a small document; on any doubt they get it themselves.
_scan: Callable[[str, int], tuple[Any, int]] | None = None
_chunks: Callable[[object, int], tuple[str, ...]] | None = None


def _loads(data: bytes) -> Any:  # noqa: ANN401
    global _scan  # noqa: PLW0603
    if not _scan:
        from json import JSONDecoder

        _scan = JSONDecoder().scan_once  # type: ignore[attr-defined]
    try:
        text = data.decode()
        value, end = _scan(text, 0)
    except (ValueError, StopIteration):
        end, text = 0, " "
    if end == len(text):
        return value
    from json import loads

    return loads(data)


def _dumps(value: object, errors: str = "replace") -> bytes:
    global _chunks  # noqa: PLW0603
    if not _chunks:
        _chunks = _encoder()
    return "".join(_chunks(value, 0)).encode("utf-8", errors)


def _encoder() -> Callable[[object, int], tuple[str, ...]]:
    """Return what writes compact JSON: `json`'s C code, or all of `json` where there is none."""
    from json import JSONEncoder, encoder

    whole = JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    make: Any = getattr(encoder, "c_make_encoder", None)
    if make is None:
        return lambda value, _: (whole.encode(value),)
    quote: Any = encoder.encode_basestring
    no = False
    chunks: Callable[[object, int], tuple[str, ...]] = make(
        None, whole.default, quote, None, ":", ",", no, no, no
    )
    return chunks
