"""
Workers from outside, and the bad network between them and the gate.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import struct
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from program import WORKERS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

_HEADER = struct.Struct(">IBBHII")
HELLO, WELCOME, COMMAND, REPLY, FAIL = range(1, 6)
CANCEL, DECLINE, PING, PONG, DRAIN = range(8, 13)


def dial(address: str, timeout: float = 20.0) -> socket.socket:
    """Connect to what the gate logs, such as `tcp://127.0.0.1:9000`."""
    scheme, _, where = address.partition("://")
    if scheme == "unix":
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(timeout)
        sock.connect(where)
        return sock
    host, _, port = where.rpartition(":")
    return socket.create_connection((host, int(port)), timeout)


class Frame(NamedTuple):
    """What the gate said."""

    kind: int
    id: int
    meta: dict[str, Any]
    body: bytes


class RawWorker:
    """
    A worker of a few lines, as somebody without the SDK would write it.

    Args:
        address: Where the gate takes workers.
        hello: The meta of HELLO; without any, nothing is said.
    """

    def __init__(self, address: str, sock: socket.socket | None = None, **hello: object) -> None:
        self.socket = sock or dial(address)
        self.file = self.socket.makefile("rb")
        if hello:
            self.say(HELLO, 0, {"protocol": 1, **hello})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave without a word."""
        self.file.close()
        self.socket.close()

    def say(self, kind: int, number: int = 0, meta: object = None, body: bytes = b"") -> None:
        """Send a frame."""
        text = json.dumps(meta).encode() if meta is not None else b""
        length = 12 + len(text) + len(body)
        self.socket.sendall(_HEADER.pack(length, 1, kind, 0, number, len(text)) + text + body)

    def hear(self) -> Frame | None:
        """The next frame, PINGs answered; None at the end."""
        while True:
            head = self._exactly(16)
            if head is None:
                return None
            length, version, kind, flags, number, meta = _HEADER.unpack(head)
            assert (version, flags) == (1, 0), head
            rest = self._exactly(length - 12)
            if rest is None:
                return None
            if kind == PING:
                self.say(PONG, number)
                continue
            facts = json.loads(rest[:meta]) if meta else {}
            return Frame(kind, number, facts, rest[meta:])

    def _exactly(self, count: int) -> bytes | None:
        try:
            data = self.file.read(count)
        except ConnectionResetError:
            return None
        return data if len(data) == count else None

    def welcomed(self) -> str:
        """Wait for WELCOME; returns the name it was given."""
        frame = self.hear()
        assert frame is not None
        assert frame.kind == WELCOME, frame
        assert set(frame.meta) == {"worker", "max_frame", "batch"}
        name: str = frame.meta["worker"]
        return name

    def refused(self) -> Frame:
        """Wait for FAIL and the end."""
        frame = self.hear()
        assert frame is not None
        assert (frame.kind, frame.id) == (FAIL, 0), frame
        assert self.hear() is None
        return frame

    def command(self) -> Frame:
        """Wait for a COMMAND."""
        frame = self.hear()
        assert frame is not None
        assert frame.kind == COMMAND, frame
        return frame

    def serve(self, answer: Callable[[Frame], bytes]) -> None:
        """Answer everything until the gate has had enough."""
        while (frame := self.hear()) is not None and frame.kind != DRAIN:
            if frame.kind == COMMAND:
                self.say(REPLY, frame.id, None, answer(frame))


class SdkWorker:
    """
    A process that runs one of `workers/`.

    Args:
        folder: Where its log goes.
        address: Where the gate takes workers; or its URL, to pull.
        script: What it runs.
        settings: Further arguments of `serve`, or of `pull`.
    """

    def __init__(
        self, folder: Path, address: str, script: str = "outside", **settings: object
    ) -> None:
        self.log_path = folder / f"worker-{time.monotonic_ns()}.log"
        where = "url" if address.startswith("http") else "connect"
        facts = json.dumps({where: address, "queue": "q", **settings})
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(WORKERS / f"{script}.py"), facts],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "JOBGATE_WORKER": str(settings.get("name", ""))},
            )

    @property
    def log(self) -> str:
        """What it has printed."""
        return self.log_path.read_text()

    def end(self) -> None:
        """Whatever state it is in."""
        self.process.kill()
        self.process.wait(20)


def _hang_up(sock: socket.socket) -> None:
    """Close it, and wake whoever reads from it."""
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
    sock.close()


class Proxy:
    """
    The network between a worker and the gate: it can be slow, go silent, or be cut.

    Args:
        target: Where the gate takes workers.
        rate: Bytes a second in each direction; 0: as fast as it can.

    Attributes:
        address: Where workers connect to.
        silent: Nothing is passed on any more, and nobody is told.
        connections: How many there have been.
    """

    def __init__(self, target: str, rate: int = 0) -> None:
        self._target = target
        self._rate = rate
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"
        self.silent = False
        self.connections = 0
        self._closing = False
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def cut(self) -> None:
        """Reset every connection."""
        pairs, self._pairs = self._pairs, []
        for pair in pairs:
            for sock in pair:
                with contextlib.suppress(OSError):
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                _hang_up(sock)

    def close(self) -> None:
        """End it."""
        self._closing = True
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
        for thread in self._threads:
            thread.join(20)

    def _accept(self) -> None:
        while not self._closing:
            try:
                inside, _ = self._listener.accept()
                outside = dial(self._target)
            except OSError:
                continue
            self.connections += 1
            self._pairs.append((inside, outside))
            for pair in ((inside, outside), (outside, inside)):
                thread = threading.Thread(target=self._pass_on, args=pair, daemon=True)
                thread.start()
                self._threads.append(thread)

    def _pass_on(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(16384):
                if self._rate:
                    time.sleep(len(data) / self._rate)
                if not self.silent:
                    sink.sendall(data)
        except OSError:
            pass
        if not self.silent:
            _hang_up(source)
            _hang_up(sink)


@contextlib.contextmanager
def proxy(target: str, rate: int = 0) -> Iterator[Proxy]:
    """A Proxy, closed at the end."""
    made = Proxy(target, rate)
    try:
        yield made
    finally:
        made.close()


def readable(sock: socket.socket, within: float) -> bool:
    """Whether anything comes in that time."""
    return bool(select.select([sock], [], [], within)[0])
