"""
The worker SDK in a real child, over real pipes: the gate's side is spoken here with `struct`.
"""

from __future__ import annotations

import json
import os
import pty
import random
import select
import struct
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import pytest
from program import eventually

import jobgate

if TYPE_CHECKING:
    from collections.abc import Iterator

HEADER = struct.Struct(">IBBHII")
HELLO, WELCOME, COMMAND, REPLY, FAIL, CHUNK, PROGRESS = 1, 2, 3, 4, 5, 6, 7
CANCEL, DECLINE, PING, PONG, DRAIN, BATCH = 8, 9, 10, 11, 12, 13
FINAL = {REPLY, FAIL, DECLINE}
DEADLINE = 20.0  # seconds for anything to happen, on a machine that is busy with other things

OCTETS = {"content_type": "application/octet-stream"}
TEXT = {"content_type": "text/plain; charset=utf-8"}
JSON = {"content_type": "application/json"}


class Frame(NamedTuple):
    """One frame as read from the child."""

    kind: int
    number: int
    meta: dict[str, Any]
    body: bytes


def pack(kind: int, number: int, meta: dict[str, Any] | None = None, body: bytes = b"") -> bytes:
    """One frame as the gate sends it."""
    text = b"" if meta is None else json.dumps(meta).encode()
    return HEADER.pack(12 + len(text) + len(body), 1, kind, 0, number, len(text)) + text + body


class Child:
    """
    A worker made of `source`, and the gate's end of its pipes.

    Every read has a deadline, and whatever happens the child is gone afterwards.
    """

    def __init__(self, source: str, *, welcome: dict[str, Any] | None = None) -> None:
        # Nothing of our own environment may change how the child's Python buffers.
        env = {name: value for name, value in os.environ.items() if name[:6] != "PYTHON"}
        self.log = tempfile.TemporaryFile()  # noqa: SIM115 - __exit__ closes it
        self.process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(source)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            bufsize=0,
            env={**env, "PYTHONPATH": str(Path(jobgate.__file__).parents[1])},
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.stdin = self.process.stdin
        self.stdout = self.process.stdout
        self.data = bytearray()
        self.prelude = b""
        self.welcome = {"worker": "w-1", "max_frame": 64 << 20} if welcome is None else welcome

    def __enter__(self) -> Self:
        """Meet the worker; text before HELLO is allowed, and kept as `prelude`."""
        try:
            while (at := self.data.find(b"\1\1\0\0") - 4) < 0:
                self._more()
            self.prelude, self.data = bytes(self.data[:at]), self.data[at:]
            assert self.read() == (HELLO, 0, {"protocol": 1, "ordered": True}, b"")
            self.send(WELCOME, 0, self.welcome)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait(DEADLINE)
        for file in (self.stdin, self.stdout, self.log):
            file.close()

    def _more(self, deadline: float = DEADLINE) -> None:
        ready, _, _ = select.select([self.stdout], [], [], deadline)
        assert ready, f"the worker said nothing for {deadline} s; stderr: {self.stderr()}"
        data = os.read(self.stdout.fileno(), 1 << 18)
        assert data, f"the worker closed its stdout; stderr: {self.stderr()}"
        self.data += data

    def stderr(self) -> str:
        """What the worker has written to stderr so far."""
        return os.pread(self.log.fileno(), 1 << 20, 0).decode()

    def read(self, deadline: float = DEADLINE) -> Frame:
        """Wait for the next frame; anything that is none is an error."""
        while len(self.data) < 16 or len(self.data) < 4 + HEADER.unpack_from(self.data)[0]:
            self._more(deadline)
        length, version, kind, flags, number, meta = HEADER.unpack_from(self.data)
        assert (version, flags) == (1, 0), bytes(self.data[:200])
        frame = bytes(self.data[16 : 4 + length])
        del self.data[: 4 + length]
        return Frame(kind, number, json.loads(frame[:meta] or b"{}"), frame[meta:])

    def silent(self, seconds: float) -> bool:
        """Whether nothing comes for so long."""
        return not self.data and not select.select([self.stdout], [], [], seconds)[0]

    def write(self, data: bytes) -> None:
        """Write all of it, in one go."""
        view = memoryview(data)
        while view:
            view = view[os.write(self.stdin.fileno(), view) :]

    def send(
        self, kind: int, number: int, meta: dict[str, Any] | None = None, body: bytes = b""
    ) -> None:
        """Write one frame."""
        self.write(pack(kind, number, meta, body))

    def call(self, body: bytes = b"", number: int = 1, **meta: object) -> Frame:
        """Send one command and wait for one frame."""
        self.send(COMMAND, number, {"id": f"g-{number}", "queue": "q", **meta}, body)
        return self.read()

    def end(self) -> int:
        """Close its stdin, and wait for it to exit without another word."""
        self.stdin.close()
        return self.gone()

    def gone(self) -> int:
        """Wait for it to exit without another word."""
        status = self.process.wait(DEADLINE)
        assert not self.data
        assert os.read(self.stdout.fileno(), 1 << 16) == b""
        return status


ECHO = """
from jobgate.worker import serve
serve(lambda command: command.body)
"""


def test_echo_and_end_of_input() -> None:
    """The plainest worker: bytes come back as bytes, and the end of input ends it."""
    with Child(ECHO) as child:
        for number in (1, 2, 0, 0xFFFFFFFF):
            assert child.call(b"\0\xff" * number if number < 9 else b"", number) == (
                REPLY,
                number,
                OCTETS,
                b"\0\xff" * number if number < 9 else b"",
            )
        assert child.end() == 0
        assert child.stderr() == ""


def test_every_kind_of_value() -> None:
    """What a handler returns decides how it travels."""
    source = """
    from jobgate.worker import Decline, Fail, Reply, serve

    VALUES = {
        "bytes": lambda: b"b",
        "bytearray": lambda: bytearray(b"ba"),
        "memoryview": lambda: memoryview(b"xmvx")[1:3],
        "str": lambda: "ü",
        "json": lambda: {"a": [1, None, "ü"]},
        "none": lambda: None,
        "reply": lambda: Reply(b"<svg/>", "image/svg+xml", 201),
        "reply-status": lambda: Reply({"a": 1}, status=404),
        "decline": lambda: Decline(),
        "fail": lambda: Fail("no such size", "it is 0", 422, False),
        "iterator": lambda: iter(["a", "b"]),
    }
    serve(lambda command: VALUES[command.body.decode()]())
    """
    reply = {"content_type": "image/svg+xml", "status": 201}
    fail = {"title": "no such size", "detail": "it is 0", "status": 422, "retry": False}
    with Child(source) as child:
        assert child.call(b"bytes") == (REPLY, 1, OCTETS, b"b")
        assert child.call(b"bytearray") == (REPLY, 1, OCTETS, b"ba")
        assert child.call(b"memoryview") == (REPLY, 1, OCTETS, b"mv")
        assert child.call(b"str") == (REPLY, 1, TEXT, "ü".encode())
        assert child.call(b"json") == (REPLY, 1, JSON, '{"a":[1,null,"ü"]}'.encode())
        assert child.call(b"none") == (REPLY, 1, JSON, b"null")
        assert child.call(b"reply") == (REPLY, 1, reply, b"<svg/>")
        assert child.call(b"reply-status") == (REPLY, 1, {**JSON, "status": 404}, b'{"a":1}')
        assert child.call(b"decline") == (DECLINE, 1, {}, b"")
        assert child.call(b"fail") == (FAIL, 1, fail, b"")
        assert child.call(b"iterator") == (CHUNK, 1, TEXT, b"a")
        assert child.read() == (CHUNK, 1, {}, b"b")
        assert child.read() == (REPLY, 1, {}, b"")
        assert child.end() == 0


def test_everything_that_can_be_raised() -> None:
    """An exception fails its command, tells the log where, and hurts no other command."""
    source = """
    from jobgate.worker import Decline, Fail, Reply, serve

    def handler(command):
        match command.body:
            case b"decline":
                raise Decline
            case b"fail":
                raise Fail("full", retry=True)
            case b"unicode":
                raise ValueError("größer als\\n \\udcff ☃")
            case b"long":
                raise ValueError("x" * 100_000)
            case b"set":
                return {1}
            case b"status":
                return Reply(b"", status=99)
            case b"json":
                return command.json()
            case b"deep":
                return handler(command)
            case b"async":
                async def later():
                    pass
                later.__qualname__ = "later"
                coroutine = later()
                coroutine.close()
                return coroutine

    serve(handler)
    """
    with Child(source) as child:
        assert child.call(b"decline") == (DECLINE, 1, {}, b"")
        assert child.call(b"fail") == (FAIL, 1, {"title": "full", "retry": True}, b"")
        assert child.call(b"unicode") == (FAIL, 1, {"title": "ValueError: größer als ? ☃"}, b"")
        assert "in handler" in child.stderr()
        assert "ValueError: größer als" in child.stderr()
        assert len(child.call(b"long").meta["title"]) == 500
        value = child.call(b"set")
        assert value.kind == FAIL
        assert value.meta["detail"] == "TypeError: Object of type set is not JSON serializable"
        assert child.call(b"status").meta["title"].startswith("ValueError: status 99 is not")
        bad = child.call(b"json")
        assert (bad.kind, bad.meta["status"], bad.meta["retry"]) == (FAIL, 400, False)
        assert child.call(b"deep").meta["title"].startswith("RecursionError: ")
        assert "coroutine" in child.call(b"async").meta["detail"]
        assert child.call(b"other") == (REPLY, 1, JSON, b"null")
        assert child.end() == 0


def test_system_exit_ends_the_worker() -> None:
    """A handler may end its process, with the status it wants."""
    with Child("""
    import sys
    from jobgate.worker import serve
    serve(lambda command: sys.exit(3))
    """) as child:
        child.send(COMMAND, 1)
        assert child.gone() == 3


def test_the_command_as_the_handler_sees_it() -> None:
    """Everything in the meta is there, the inputs are apart from the body, the time runs."""
    with Child("""
    import time
    from jobgate.worker import serve

    def handler(command):
        first = command.remaining
        time.sleep(0.05)
        return {
            "body": command.body.decode(), "content_type": command.content_type,
            "id": command.id, "attempt": command.attempt, "queue": command.queue,
            "headers": command.headers, "cancelled": command.cancelled,
            "inputs": {n: [i.content_type, i.body.decode()] for n, i in command.inputs.items()},
            "remaining": first if first < 1e9 else None,
            "slept": first - command.remaining if first < 1e9 else None,
        }

    serve(handler)
    """) as child:
        meta = {
            "id": "gate-42",
            "queue": "thumbs",
            "content_type": "text/csv",
            "attempt": 3,
            "remaining_ms": 5000,
            "headers": {"traceparent": "00-ab", "jobgate-key": "k"},
            "inputs": [
                {"name": "b", "content_type": "text/plain", "length": 3},
                {"name": "a", "content_type": "image/png", "length": 0},
            ],
        }
        child.send(COMMAND, 9, meta, b"ownone")
        seen = json.loads(child.read().body)
        assert 4 < seen.pop("remaining") <= 5
        assert 0.05 <= seen.pop("slept") < 1
        assert seen == {
            **{key: meta[key] for key in ("id", "queue", "content_type", "attempt", "headers")},
            "body": "own",
            "cancelled": False,
            "inputs": {"b": ["text/plain", "one"], "a": ["image/png", ""]},
        }
        child.send(COMMAND, 10)
        seen = json.loads(child.read().body)
        assert seen["remaining"] is None
        assert (seen["id"], seen["attempt"], seen["inputs"]) == ("10", 1, {})


def test_a_worker_of_bytes_reads_no_meta_and_imports_next_to_nothing() -> None:
    """Meta is looked at only when asked for: rubbish in it harms nobody."""
    with Child("""
    import sys
    from jobgate.worker import serve
    heavy = {"asyncio", "collections", "json", "logging", "re", "threading", "typing"}
    serve(lambda command: " ".join(sorted(heavy & set(sys.modules))).encode())
    """) as child:
        child.write(HEADER.pack(12 + 9, 1, COMMAND, 0, 5, 9) + b"not JSON!")
        assert child.read() == (REPLY, 5, OCTETS, b"")
        assert child.end() == 0


def test_progress() -> None:
    """It may be told from any thread, in any type of number, and never breaks a frame."""
    with Child("""
    import fractions, threading
    from jobgate.worker import serve

    def handler(command):
        command.progress(0)
        command.progress(fractions.Fraction(1, 2), 2.0, "half\\nway")
        def tell():
            for n in range(200):
                command.progress(n, 200, "ü" * 1000)
        threads = [threading.Thread(target=tell) for _ in range(4)]
        for thread in threads:
            thread.start()
        command.progress(True)
        for thread in threads:
            thread.join()
        handler.last = command
        return b"x" * 3_000_000

    def late(command):
        if command.body == b"late":
            handler.last.progress(1)
            return b""
        return handler(command)

    serve(late)
    """) as child:
        assert child.call() == (PROGRESS, 1, {"done": 0}, b"")
        assert child.read().meta == {"done": 0.5, "total": 2, "note": "half way"}
        frames = [child.read() for _ in range(801)]
        assert {frame.kind for frame in frames} == {PROGRESS}
        assert sum(frame.meta["done"] for frame in frames) == 4 * sum(range(200)) + 1
        assert len(child.read().body) == 3_000_000
        assert child.call(b"late", 2).kind == REPLY  # too late to tell: nothing is sent
        assert child.end() == 0


def test_frames_of_several_threads_stay_whole() -> None:
    """A thread that tells progress while the reply is on its way does not break into it."""
    body = random.Random(4).randbytes(10 << 20)
    with Child("""
    import threading, time
    from jobgate.worker import serve

    def handler(command):
        def tell():
            while not done.wait(0.001):
                command.progress(1)
        done.clear()
        threading.Thread(target=tell, daemon=True).start()
        return command.body

    done = threading.Event()
    serve(lambda command: handler(command) if command.body else done.set())
    """) as child:
        for number in range(3):
            child.send(COMMAND, number, None, body)
            assert not child.silent(0.5)  # the reply is stuck in the pipe, half of it unread
            time.sleep(0.1)
            while (frame := child.read()).kind == PROGRESS:
                pass
            assert frame == (REPLY, number, OCTETS, body)
            child.send(COMMAND, 100)
            while (frame := child.read()).number != 100:
                assert frame == (PROGRESS, number, {"done": 1}, b"")
        assert child.end() == 0


def test_streams() -> None:
    """A CHUNK for every item that is not empty; the first says what it is."""
    with Child("""
    from jobgate.worker import Decline, Fail, Reply, serve

    def handler(command):
        match command.body:
            case b"text":
                yield "a"
                yield ""
                yield "b"
            case b"json":
                yield {"n": 1}
                yield None
                return {"n": 2}
            case b"typed":
                yield Reply(b"", "text/event-stream", 203)
                yield b"data"
                return b"end"
            case b"nothing":
                return
            case b"value":
                return {"n": 1}
            case b"breaks":
                yield "a"
                raise ValueError("broke")
            case b"bad":
                try:
                    yield "a"
                    yield {1}
                finally:
                    print("closed")
            case b"fail":
                return Fail("in the end", status=409)
            case b"grow":
                yield "a"
                return Reply("b", jobs={"more": {"queue": "q"}})
            case b"early":
                yield Reply("a", jobs={"more": {"queue": "q"}})

    serve(handler)
    """) as child:
        assert child.call(b"text") == (CHUNK, 1, TEXT, b"a")
        assert child.read() == (CHUNK, 1, {}, b"b")
        assert child.read() == (REPLY, 1, {}, b"")
        lines = {"content_type": "application/x-ndjson"}
        assert child.call(b"json") == (CHUNK, 1, lines, b'{"n":1}\n')
        assert child.read() == (CHUNK, 1, {}, b"null\n")
        assert child.read() == (REPLY, 1, {}, b'{"n":2}\n')
        typed = {"content_type": "text/event-stream", "status": 203}
        assert child.call(b"typed") == (CHUNK, 1, typed, b"data")
        assert child.read() == (REPLY, 1, {}, b"end")
        assert child.call(b"nothing") == (REPLY, 1, OCTETS, b"")
        assert child.call(b"value") == (REPLY, 1, JSON, b'{"n":1}')
        assert child.call(b"breaks") == (CHUNK, 1, TEXT, b"a")
        assert child.read() == (FAIL, 1, {"title": "ValueError: broke"}, b"")
        assert child.call(b"bad").kind == CHUNK
        assert child.read().meta["detail"].startswith("TypeError: Object of type set")
        assert child.call(b"fail") == (FAIL, 1, {"title": "in the end", "status": 409}, b"")
        assert child.call(b"grow") == (CHUNK, 1, TEXT, b"a")
        assert child.read() == (REPLY, 1, {**TEXT, "jobs": {"more": {"queue": "q"}}}, b"b")
        assert child.call(b"early").kind == FAIL
        assert child.end() == 0
        assert "closed" in child.stderr()


def test_nothing_that_prints_or_reads_can_touch_the_frames() -> None:
    """Python, a C library, descriptor 1 itself, and grandchildren: all of it goes to stderr."""
    with Child("""
    import ctypes, os, subprocess, sys
    from jobgate.worker import serve

    def handler(command):
        print("from print")
        sys.stdout.buffer.write(b"from buffer\\n")
        sys.stdout.flush()
        os.write(1, b"from write\\n")
        libc = ctypes.CDLL(None)
        libc.puts(b"from puts")
        libc.fflush(None)
        subprocess.run(["sh", "-c", "echo from sh; cat; cat <&0"], check=True, timeout=10)
        subprocess.run(["ls", "-l", "/proc/self/fd"], check=True)
        assert sys.stdin.read() == ""
        assert os.read(0, 10) == b""
        return command.body

    print("banner")
    sys.stdout.write("unfinished")
    serve(handler)
    """) as child:
        assert child.prelude == b"banner\nunfinished"
        for number in range(3):
            # The second command is in the pipe while the first one's children read.
            child.write(pack(COMMAND, number, None, b"a") + pack(COMMAND, number, None, b"b"))
            assert child.read() == (REPLY, number, OCTETS, b"a")
            assert child.read() == (REPLY, number, OCTETS, b"b")
        assert child.end() == 0
        told = child.stderr()
        for line in ("from print", "from buffer", "from write", "from puts", "from sh"):
            assert told.count(line + "\n") == 6, told
        # Nor do grandchildren hold a pipe to the gate open.
        assert "/dev/null" in told
        assert "pipe:" not in told


def test_prints_are_line_buffered() -> None:
    """The log has the line while the handler still runs."""
    with Child("""
    import time
    from jobgate.worker import serve

    def handler(command):
        print("begun")
        while not command.cancelled:
            time.sleep(0.01)

    serve(handler)
    """) as child:
        child.send(COMMAND, 1)
        end = time.monotonic() + DEADLINE
        while child.stderr() != "begun\n":
            assert time.monotonic() < end
            time.sleep(0.01)
        child.send(CANCEL, 1)
        assert child.read().kind == REPLY


def test_a_forked_child_has_no_say() -> None:
    """Even one that returns into the SDK's own loop answers nobody and reads nothing."""
    with Child("""
    import os, warnings
    from jobgate.worker import serve
    warnings.simplefilter("ignore", DeprecationWarning)

    def handler(command):
        pid = os.fork()
        if pid:
            assert os.waitpid(pid, 0)[1] == 0
            return b"parent"
        command.progress(1)
        return b"child"

    serve(handler)
    """) as child:
        child.write(b"".join(pack(COMMAND, n) for n in range(3)))
        for number in range(3):
            assert child.read() == (REPLY, number, OCTETS, b"parent")
        assert child.end() == 0


def test_torn_frames() -> None:
    """Frames may come a byte at a time."""
    with Child(ECHO) as child:
        for byte in b"".join(pack(COMMAND, n, {"id": "x"}, b"body" * n) for n in range(5)):
            child.write(bytes([byte]))
        for number in range(5):
            assert child.read() == (REPLY, number, OCTETS, b"body" * number)


def test_large_bodies() -> None:
    """10 MiB there and back, also with the meta torn in two, and many small ones in one read."""
    body = random.Random(1).randbytes(10 << 20)
    with Child("""
    from jobgate.worker import serve
    def handler(command):
        assert type(command.body) is bytes
        return command.body
    serve(handler)
    """) as child:

        def write() -> None:
            for number in range(3):
                child.send(COMMAND, number, {"id": "x" * 100}, body)
            torn = pack(COMMAND, 3, {"id": "x" * 100_000}, body)
            child.write(torn[:50])
            time.sleep(0.05)
            child.write(torn[50:])
            child.write(b"".join(pack(COMMAND, n, None, b"%d" % n) for n in range(4, 1000)))

        writer = threading.Thread(target=write)
        writer.start()
        for number in range(4):
            assert child.read() == (REPLY, number, OCTETS, body)
        for number in range(4, 1000):
            assert child.read() == (REPLY, number, OCTETS, b"%d" % number)
        writer.join(DEADLINE)


def test_a_reply_larger_than_a_frame() -> None:
    """It fails in words, and the next command is answered."""
    source = """
    from jobgate.worker import serve
    serve(lambda command: bytes(int(command.body)))
    """
    fits = (64 << 20) - 12 - len('{"content_type":"application/octet-stream"}')
    with Child(source) as child:
        assert len(child.call(b"%d" % fits).body) == fits
        fail = child.call(b"%d" % (fits + 1))
        assert fail.kind == FAIL
        assert fail.meta["title"] == "the worker's reply is larger than a frame"
        assert str(64 << 20) in fail.meta["detail"]
        assert child.call(b"1") == (REPLY, 1, OCTETS, b"\0")
    with Child(source, welcome={"max_frame": 100_000}) as child:
        assert child.call(b"99000").kind == REPLY
        assert child.call(b"100000").kind == FAIL


def test_ping() -> None:
    """An idle worker answers, with the same id."""
    with Child(ECHO) as child:
        child.send(PING, 0xABCDEF)
        assert child.read() == (PONG, 0xABCDEF, {}, b"")
        child.send(BATCH, 1, {"count": 1})  # says nothing to a worker that takes one at a time
        child.send(200, 1)  # nor does what only a later version knows
        assert child.call(b"x").body == b"x"


def test_drain_finishes_what_it_holds() -> None:
    """All that came before DRAIN is answered; then it exits with 0, its stdin still open."""
    with Child("""
    import time
    from jobgate.worker import serve
    serve(lambda command: time.sleep(0.1))
    print("after serve")
    """) as child:
        child.write(b"".join(pack(COMMAND, n) for n in range(4)) + pack(DRAIN, 0))
        assert [child.read().number for _ in range(4)] == [0, 1, 2, 3]
        assert child.gone() == 0
        assert child.stderr() == "after serve\n"
    with Child(ECHO) as child:
        child.send(DRAIN, 0)
        assert child.gone() == 0


def test_end_of_input_with_work_in_hand() -> None:
    """What came before the end is answered."""
    with Child("""
    import time
    from jobgate.worker import serve
    def handler(command):
        time.sleep(0.1)
        return command.body
    serve(handler)
    """) as child:
        child.write(b"".join(pack(COMMAND, n) for n in range(3)) + pack(COMMAND, 3)[:-1])
        child.stdin.close()
        assert [child.read().number for _ in range(3)] == [0, 1, 2]
        assert child.gone() == 0


def test_a_gate_that_is_gone() -> None:
    """Nobody reads the replies any more: the worker leaves without a traceback."""
    with Child(ECHO) as child:
        child.stdout.close()
        child.send(COMMAND, 1)
        assert child.process.wait(DEADLINE) == 0
        assert child.stderr() == ""


def test_what_is_no_frame_ends_the_worker() -> None:
    """It says on stderr what it was sent."""
    with Child(ECHO) as child:
        child.write(pack(COMMAND, 1) + b"GET / HTTP/1.1\r\n\r\n")
        assert child.read().number == 1
        assert child.gone() == 1
        assert "no frame: b'GET / HTTP" in child.stderr()


BUSY = """
import time
from jobgate.worker import serve

def handler(command):
    print("begun")
    match command.body:
        case b"spin":
            end = time.monotonic() + 20
            while not command.cancelled and time.monotonic() < end:
                sum(range(1000))
        case b"hold":  # C code that keeps the interpreter to itself, and looks in between
            end = time.monotonic() + 20
            while not command.cancelled and time.monotonic() < end:
                sum(range(1_000_000))
        case b"sleep":
            end = time.monotonic() + 20
            while not command.cancelled and time.monotonic() < end:
                time.sleep(0.01)
        case b"chunks":
            return chunks()
    return command.cancelled

def chunks():
    try:
        while True:
            yield "tick"
            time.sleep(0.01)
    finally:
        print("closed")

serve(handler)
"""


@pytest.mark.parametrize("body", [b"spin", b"hold", b"sleep"])
def test_cancel_is_seen_while_the_handler_runs(body: bytes) -> None:
    """Whatever the handler does between two looks."""
    with Child(BUSY) as child:
        for number in range(5):
            child.send(COMMAND, number, None, body)
            eventually(lambda n=number: child.stderr().count("begun") > n, DEADLINE, "it runs")
            assert child.silent(0.1 if number % 2 else 0.005)
            child.send(CANCEL, number)
            assert child.read() == (REPLY, number, JSON, b"true")
        child.send(CANCEL, 4)  # long answered: means nothing, also to the next of that id
        assert child.call(b"", 4) == (REPLY, 4, JSON, b"false")


def test_cancel_while_waiting() -> None:
    """A command that is cancelled in the worker's hands is never run, and answered in its turn."""
    with Child("""
    import time
    from jobgate.worker import serve
    def handler(command):
        print("handled")
        time.sleep(0.2)
        return command.body
    serve(handler)
    """) as child:
        child.write(b"".join(pack(COMMAND, n, None, b"ran") for n in range(4)))
        child.write(pack(CANCEL, 2) + pack(CANCEL, 3))
        assert [child.read().body for _ in range(2)] == [b"ran", b"ran"]
        assert child.read() == (FAIL, 2, {"title": "cancelled"}, b"")
        assert child.read() == (FAIL, 3, {"title": "cancelled"}, b"")
        assert child.call(b"ran", 2).body == b"ran"
        assert child.stderr() == "handled\n" * 3


def test_cancel_of_a_stream() -> None:
    """The generator is closed, and the last word is empty."""
    with Child(BUSY) as child:
        child.send(COMMAND, 1, None, b"chunks")
        assert child.read() == (CHUNK, 1, TEXT, b"tick")
        child.send(CANCEL, 1)
        while (frame := child.read()).kind == CHUNK:
            pass
        assert frame == (REPLY, 1, {}, b"")
        assert child.stderr() == "begun\nclosed\n"


def test_it_reads_ahead_while_a_handler_runs() -> None:
    """All 4 MiB of the second command are taken while the first one runs; a pipe holds far less."""
    body = random.Random(2).randbytes(4 << 20)
    with Child("""
    import time
    from jobgate.worker import serve
    def handler(command):
        if command.body == b"slow":
            time.sleep(0.5)
        return command.body
    serve(handler)
    """) as child:
        for number in range(0, 6, 2):
            begun = time.monotonic()
            child.send(COMMAND, number, None, b"slow")
            child.send(COMMAND, number + 1, None, body)
            assert time.monotonic() - begun < 0.45
            assert child.silent(0.01)
            assert child.read() == (REPLY, number, OCTETS, b"slow")
            assert child.read() == (REPLY, number + 1, OCTETS, body)


def test_it_reads_while_a_large_reply_waits_to_be_read() -> None:
    """A peer that writes everything before it reads anything is not locked out."""
    body = random.Random(3).randbytes(5 << 20)
    with Child(ECHO) as child:
        for number in range(4):
            child.send(COMMAND, number, None, body)
        for number in range(4):
            assert child.read() == (REPLY, number, OCTETS, body)


def test_a_death_is_blamed_on_the_command_that_ran() -> None:
    """The reply before it is with the gate, to the last byte, when the next handler starts."""
    with Child("""
    import os
    from jobgate.worker import serve
    def handler(command):
        if command.body == b"die":
            os._exit(9)
        return b"x" * int(command.body)
    serve(handler)
    """) as child:
        child.write(b"".join(pack(COMMAND, n, None, b"%d" % 10**n) for n in range(7)))
        child.write(pack(COMMAND, 7, None, b"die") + pack(COMMAND, 8, None, b"1"))
        for number in range(7):
            assert child.read() == (REPLY, number, OCTETS, b"x" * 10**number)
        assert child.gone() == 9


def test_reading_ahead_is_bounded(tmp_path: Path) -> None:
    """Beyond 64 MiB that wait, the rest stays where it is; and nothing is lost."""
    body = bytes(8 << 20)
    go = tmp_path / "go"
    with Child(f"""
    import time
    from pathlib import Path
    from jobgate.worker import serve
    def handler(command):
        while command.body == b"wait" and not Path({str(go)!r}).exists():
            time.sleep(0.01)
        return len(command.body)
    serve(handler)
    """) as child:
        child.send(COMMAND, 0, None, b"wait")
        written: list[int] = []

        def write() -> None:
            for number in range(1, 15):
                child.send(COMMAND, number, None, body)
                written.append(number)

        writer = threading.Thread(target=write)
        writer.start()
        eventually(lambda: len(written) >= 8, DEADLINE, "eight are read")
        writer.join(0.5)  # time enough to read more, were it not for the bound
        assert len(written) < 11
        status = Path(f"/proc/{child.process.pid}/status").read_text()
        rss = int(status.split("VmRSS:")[1].split()[0]) >> 10
        assert rss < 64 + 2 * 8 + 20, f"{rss} MiB"
        go.touch()
        assert child.read() == (REPLY, 0, JSON, b"4")
        for number in range(1, 15):
            assert child.read() == (REPLY, number, JSON, b"%d" % len(body))
        writer.join(DEADLINE)


def test_an_idle_worker_sleeps() -> None:
    """No thread of it wakes up while there is nothing to do, and work wakes it at once."""

    def switches() -> int:
        total = 0
        for task in Path(f"/proc/{child.process.pid}/task").iterdir():
            text = (task / "status").read_text()
            total += int(text.split("\nvoluntary_ctxt_switches:")[1].split()[0])
        return total

    with Child(ECHO) as child:
        for number in range(10):
            child.call(b"x", number)

        def quiet() -> bool:
            before = switches()
            time.sleep(0.5)
            return switches() == before

        eventually(quiet, DEADLINE, "nothing wakes up for half a second")
        assert child.call(b"x").body == b"x"


def scenario(seed: int) -> Iterator[tuple[str, bytes]]:
    """What each of some commands is to do."""
    dice = random.Random(seed)
    for _ in range(150):
        what = dice.choice(
            ["bytes", "large", "json", "raise", "fail", "decline", "stream", "broken", "slow"],
        )
        yield what, what.encode()


MIX = """
import time
from jobgate.worker import Decline, Fail, serve

def stream(broken):
    for n in range(3):
        yield f"{n}"
    if broken:
        raise ValueError(n)
    return "end"

def handler(command):
    match command.body.decode():
        case "bytes": return b"b"
        case "large": return b"l" * 200_000
        case "json": return {"id": command.id}
        case "raise": raise KeyError("k")
        case "fail": raise Fail("no")
        case "decline": return Decline()
        case "stream": return stream(False)
        case "broken": return stream(True)
        case "slow":
            for n in range(3):
                time.sleep(0.01)
                command.progress(n, 3)
                if command.cancelled:
                    break
            return "slow"

serve(handler)
"""


@pytest.mark.parametrize("seed", range(6))
def test_every_command_has_one_outcome_in_the_order_given(seed: int) -> None:
    """Whatever is mixed, cancelled and torn: one last word for each, in order, and then silence."""
    dice = random.Random(seed)
    wanted = {
        "bytes": REPLY,
        "large": REPLY,
        "json": REPLY,
        "raise": FAIL,
        "fail": FAIL,
        "decline": DECLINE,
        "stream": REPLY,
        "broken": FAIL,
        "slow": REPLY,
    }
    plan = list(scenario(seed))
    cancelled: set[int] = set()
    data = bytearray()
    for number, (_, body) in enumerate(plan):
        data += pack(COMMAND, number, {"id": f"g-{number}"}, body)
        if dice.random() < 0.2:
            data += pack(PING, number)
        if dice.random() < 0.2:
            victim = dice.randint(max(0, number - 5), number)
            cancelled.add(victim)
            data += pack(CANCEL, victim)
    with Child(MIX) as child:

        def write() -> None:
            at = 0
            while at < len(data):
                size = dice.choice([1, 7, 100, 1000, 5000])
                child.write(bytes(data[at : at + size]))
                at += size
                if dice.random() < 0.1:
                    time.sleep(dice.random() * 0.03)
            child.stdin.close()

        writer = threading.Thread(target=write)
        writer.start()
        for number, (what, _) in enumerate(plan):
            while True:
                frame = child.read()
                if frame.kind == PONG:
                    continue
                assert frame.number == number
                if frame.kind in FINAL:
                    break
                assert frame.kind in {CHUNK, PROGRESS}
            if number not in cancelled:
                assert frame.kind == wanted[what]
            elif frame.kind != wanted[what]:
                assert frame.meta == {"title": "cancelled"} or what == "broken"
        writer.join(DEADLINE)
        while True:  # pings behind the last command are answered too
            try:
                assert child.read().kind == PONG
            except AssertionError:
                break
        assert child.gone() == 0


def test_started_by_hand() -> None:
    """On a terminal it says what it is and how it is started, and exits with 2."""
    master, terminal = pty.openpty()
    try:
        done = subprocess.run(
            [sys.executable, "-c", ECHO],
            stdin=terminal,
            capture_output=True,
            timeout=DEADLINE,
            check=False,
            env={**os.environ, "PYTHONPATH": str(Path(jobgate.__file__).parents[1])},
        )
    finally:
        os.close(master)
        os.close(terminal)
    assert done.returncode == 2
    assert done.stdout == b""
    assert done.stderr.count(b"\n") == 1
    assert b"twistd -n jobgate --worker 'python " in done.stderr


def bundled(name: str) -> Child:
    """One of the workers of `--demo`."""
    path = Path(jobgate.__file__).with_name("demo") / name
    return Child(f"import runpy; runpy.run_path({str(path)!r}, run_name='__main__')")


def test_bundled_mandelbrot() -> None:
    """It draws what is asked for, tells how far it is, and says what it cannot draw."""
    with bundled("mandelbrot.py") as child:
        frame = child.call(b'{"width": 65, "height": 40}')
        assert frame == (PROGRESS, 1, {"done": 0, "total": 40, "note": "rows"}, b"")
        while frame.kind == PROGRESS:
            frame = child.read()
        assert frame.meta == {"content_type": "image/png"}
        assert frame.body.startswith(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0A\0\0\0(")
        for body in (b"[]", b'{"width": 0}', b'{"size": 1}', b'{"steps": 1e3}', b'{"x": NaN}'):
            frame = child.call(body)
            assert (frame.kind, frame.meta["status"]) == (FAIL, 422)
        assert child.call(b"{").meta["status"] == 400


def test_bundled_words() -> None:
    """It counts, in any language that puts spaces between words."""
    with bundled("words.py") as child:
        counts = json.loads(child.call("Der Hund, der Hund!\nUnd it\u2019s mine.".encode()).body)
        assert counts["words"] == 7
        assert counts["most_common"]["hund"] == 2
        assert child.call(b"\xff").meta["status"] == 422


def test_bundled_ticker() -> None:
    """It streams a line a step."""
    with bundled("ticker.py") as child:
        assert child.call(b'{"start": 2, "delay": 0}') == (CHUNK, 1, TEXT, b"0: 2\n")
        assert child.read() == (CHUNK, 1, {}, b"1: 1\n")
        assert child.read() == (REPLY, 1, {}, b"")
        assert child.call(b'{"start": 0}').meta["status"] == 422


def test_bundled_calc() -> None:
    """One line out for every line in, at once, whatever is in it."""
    cases = {
        "(2 ** 61 - 1) % 97 + sqrt(2)": "44.41421356237309",
        "1_000 / 3 * -1": "-333.3333333333333",
        "9**9**9": "error: too large",
        "(2**4000)**(2**4000)": "error: too large",
        "round(5, -10**9)": "error: a function does not take these",
        "(-8)**0.5": "error: not a real number",
        "1/0": "error: division by zero",
        "__import__('os').abort()": "error: only arithmetic, please",
        "": "error: not an expression",
        "1\r2": "error: not an expression",
        "\0": "error: not an expression",
        "9" * 5000: "error: over 1000 characters",
    }
    done = subprocess.run(
        [sys.executable, str(Path(jobgate.__file__).with_name("demo") / "calc.py")],
        input="".join(f"{line}\n" for line in cases).encode() + b"\xff\n" + b"(" * 999,
        capture_output=True,
        timeout=DEADLINE,
        check=True,
    )
    *answers, odd, deep, end = done.stdout.decode().split("\n")
    assert answers == [*cases.values()]
    assert odd.startswith("error: ")
    assert deep.startswith("error: ")
    assert end == ""
