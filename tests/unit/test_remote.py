"""
Workers from outside: `jobgate.pool.reception`, `remote` and `guests` behind a real Gate, over real
sockets whose other end is the test; and what the SDK adds for them.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import tempfile
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twisted.internet.address import IPv4Address
from twisted.internet.main import CONNECTION_DONE
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from jobgate import errors
from jobgate.config import from_tables
from jobgate.errors import ConfigError
from jobgate.gate import Gate
from jobgate.listening import Ports, endpoint, is_tls
from jobgate.pool import reception
from jobgate.pool.lifecycle import State
from jobgate.pool.remote import RemoteWorker, keep_alive
from jobgate.testing import SpawningReactor, inline_journal
from jobgate.wire import frames
from jobgate.wire.frames import FrameDecoder, encode
from jobgate.worker import _own_name, serve
from jobgate.worker.outside import Outside

if TYPE_CHECKING:
    from twisted.internet.defer import Deferred

    from jobgate.command import Reply

PING_EVERY, PARTING = 4.0, 1.0


class Line:
    """
    A connection: the gate's end is a Twisted transport, the other is the test's.

    Attributes:
        aborted: The gate has cut it.
        half_closed: The gate has ended its side.
        closed: The gate has closed it in good order.
    """

    def __init__(self, visitor: Any) -> None:
        self.socket, self.far = socket.socketpair()
        for sock in (self.socket, self.far):
            sock.setblocking(False)
        self.visitor = visitor
        self.dataBuffer, self.offset, self._tempDataLen = b"", 0, 0
        self.producer: Any = None
        self.aborted = self.half_closed = self.closed = self.reading_stopped = False
        self._over = False
        self.early: list[tuple[int, int, Any, bytes]] = []
        self._decoder = FrameDecoder()
        visitor.makeConnection(self)

    # --- what Twisted's transport does

    def fileno(self) -> int:
        return self.socket.fileno()

    def getPeer(self) -> IPv4Address:
        return IPv4Address("TCP", "192.0.2.7", 4711)

    def doRead(self) -> Any:
        data = self.socket.recv(65536)
        self.visitor.dataReceived(data)
        return None if data else CONNECTION_DONE

    def write(self, data: bytes) -> None:
        self.dataBuffer += bytes(data)
        self.push()

    def writeSequence(self, pieces: Any) -> None:
        self.write(b"".join(pieces))

    def push(self) -> None:
        """What a reactor does when the socket is writable."""
        while self.dataBuffer:
            try:
                count = os.write(self.fileno(), self.dataBuffer)
            except BlockingIOError:
                if self.producer is not None:
                    self.producer.pauseProducing()
                return
            self.dataBuffer = self.dataBuffer[count:]

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        assert streaming
        self.producer = producer

    def unregisterProducer(self) -> None:
        self.producer = None

    def stopReading(self) -> None:
        self.reading_stopped = True

    def startReading(self) -> None:
        self.reading_stopped = False

    def loseConnection(self) -> None:
        self.closed = True

    def loseWriteConnection(self) -> None:
        self.half_closed = True
        self.socket.shutdown(socket.SHUT_WR)

    def abortConnection(self) -> None:
        self.aborted = True

    def connectionLost(self, reason: Failure) -> None:
        self.socket.close()
        self.visitor.connectionLost(reason)

    # --- what the test does

    def turn(self) -> None:
        """The reactor's next turn: read what is there, and end what was cut."""
        while not self._over:
            if self.aborted:
                self.lose()
                return
            try:
                if not self.socket.recv(1, socket.MSG_PEEK):
                    self.lose()
                    return
            except BlockingIOError:
                return
            self.doRead()

    def lose(self, error: OSError | None = None) -> None:
        """The connection ends."""
        if not self._over:
            self._over = True
            worker = self.visitor.worker
            if worker is not None and error is not None:
                worker._stream._output.error = error
            self.connectionLost(Failure(CONNECTION_DONE))

    def say(self, kind: int, number: int = 0, meta: Any = None, body: bytes = b"") -> None:
        text = b"" if meta is None else json.dumps(meta).encode()
        self.far.sendall(encode(kind, number, text, body))
        self.turn()

    def heard(self) -> list[tuple[int, int, Any, bytes]]:
        """Every frame the gate has sent since the last look."""
        found, self.early = self.early, []
        while True:
            try:
                data = self.far.recv(1 << 20)
            except BlockingIOError:
                data = b""
            for kind, number, meta, body in self._decoder.feed(data):
                facts = json.loads(bytes(meta)) if meta else None
                found.append((kind, number, facts, bytes(body)))
            self.push()
            if not data:
                return found

    def discard(self) -> None:
        self.socket.close()
        self.far.close()


class Case(SynchronousTestCase):
    """A gate with a few queues, and whoever comes to work for them."""

    def setUp(self) -> None:
        self.reactor = SpawningReactor()
        self.reactor.advance(1000)
        self.reactor.install()
        self.addCleanup(self.reactor.discard)
        self.gate: Any = None
        self.lines: list[Line] = []

    def build(self, tables: dict[str, Any] | None = None, **queue: Any) -> None:
        tables = {"queues": {"q": queue, "other": {}}, **(tables or {})}
        self.gate = Gate(
            from_tables(tables, "test", Path()), self.reactor, inline_journal(self.reactor)
        )
        self.gate.start()
        self.addCleanup(self.end)

    def end(self) -> None:
        gone = self.gate.stop()
        self.turn()
        self.reactor.advance(PARTING)
        self.turn()
        for child in self.reactor.alive:
            child.exit()
        self.successResultOf(gone)
        self.assertEqual(self.gate.workers(), [])
        for line in self.lines:
            line.discard()

    def turn(self, seconds: float = 0) -> None:
        self.reactor.advance(seconds)
        for line in self.lines:
            line.turn()

    def dial(self) -> Line:
        self.lines.append(Line(self.gate.reception.buildProtocol(None)))
        return self.lines[-1]

    def come(self, **hello: Any) -> tuple[Line, RemoteWorker]:
        line = self.dial()
        line.say(frames.HELLO, 0, {"queue": "q", **hello})
        worker = line.visitor.worker
        assert worker is not None, line.heard()
        welcome, *line.early = line.heard()
        self.assertEqual(welcome[0], frames.WELCOME)
        return line, worker

    def refused(self, line: Line) -> Any:
        [(kind, number, meta, _)] = line.heard()
        self.assertEqual((kind, number, line.closed), (frames.FAIL, 0, True))
        return meta

    def call(self, body: bytes = b"", queue: str = "q") -> Deferred[Reply]:
        made: Deferred[Reply] = self.gate.call(queue, body)
        return made


class ReceptionTests(Case):
    """Who comes in, and who does not."""

    def test_let_in(self) -> None:
        """HELLO makes a worker, shown by its name and address; what follows is run."""
        self.build()
        line, worker = self.come(name="far", ordered=True)
        self.assertEqual(worker.name, "far")
        self.assertEqual((worker.address, worker.pid), ("192.0.2.7:4711", None))
        self.assertIn("far at 192.0.2.7:4711 READY", repr(worker))
        made = self.call(b"work")
        [(kind, number, meta, body)] = line.heard()
        self.assertEqual((kind, body, meta["queue"]), (frames.COMMAND, b"work", "q"))
        line.say(frames.REPLY, number, {"status": 201}, b"done")
        reply = self.successResultOf(made)
        self.assertEqual((reply.status, reply.body), (201, b"done"))

    def test_no_hello_in_time(self) -> None:
        """The longest `boot_timeout` of all queues bounds it."""
        self.build(boot_timeout=7)
        line = self.dial()
        self.turn(29)
        self.assertEqual(line.heard(), [])
        self.turn(1)
        self.assertIn("no HELLO within 30 s", self.refused(line)["detail"])

    def test_a_boot_timeout_of_never_is_none_for_strangers(self) -> None:
        """0 means any time to those that the gate has started itself."""
        self.build({"queues": {"q": {"boot_timeout": 0}}})
        line = self.dial()
        self.turn(30)
        self.refused(line)

    def test_who_does_not_take_the_refusal(self) -> None:
        """He is cut off after a while."""
        self.build()
        line = self.dial()
        line.say(frames.REPLY)
        self.refused(line)
        line.say(frames.HELLO, 0, {"queue": "q"})
        self.assertIsNone(line.visitor.worker)
        self.assertFalse(line.aborted)
        self.turn(5)
        self.assertTrue(line.aborted)

    def test_what_is_said_before_hello_is_bounded(self) -> None:
        """A frame over 16 KiB is refused by its header."""
        self.build()
        line = self.dial()
        line.far.sendall(frames.HEADER.pack(20_000, 1, frames.HELLO, 0, 0, 19_000))
        line.turn()
        self.assertIn("not a frame", self.refused(line)["detail"])

    def test_too_many_strangers(self) -> None:
        """So many may be without a HELLO; one that has said it makes room."""
        self.patch(reception, "_VISITORS", 2)
        self.build()
        first, second, third = self.dial(), self.dial(), self.dial()
        meta = self.refused(third)
        self.assertNotIn("retry", meta)
        third.lose()
        first.say(frames.HELLO, 0, {"queue": "q"})
        second.lose()
        for line in (self.dial(), self.dial()):
            self.assertEqual(line.heard(), [])

    def test_tokens(self) -> None:
        """First the token, then its right, then the queue: a stranger learns nothing."""
        digest = sha256(b"secret").hexdigest()
        tokens = [{"name": "t", "sha256": digest, "allow": ["work:q", "work:gone"]}]
        self.build({"tokens": tokens})
        for hello, title in (
            ({}, errors.Unauthorized.title),
            ({"token": "wrong"}, errors.Unauthorized.title),
            ({"queue": "nope"}, errors.Unauthorized.title),
            ({"token": "secret", "queue": "other"}, errors.Forbidden.title),
            ({"token": "secret", "queue": "gone"}, errors.UnknownQueue.title),
        ):
            line = self.dial()
            line.say(frames.HELLO, 0, {"queue": "q", **hello})
            meta = self.refused(line)
            self.assertEqual((meta["title"], meta["retry"]), (title, False))
        self.come(token="secret")

    def test_a_token_that_is_taken_back(self) -> None:
        """A reload sends those away that it would not let in; who is let in still may stay."""

        def tables(**allow: str) -> dict[str, Any]:
            found = [
                {"name": name, "sha256": sha256(name.encode()).hexdigest(), "allow": [right]}
                for name, right in allow.items()
            ]
            return {"tokens": found, "queues": {"q": {}, "other": {}}}

        self.build(tables(a="work:q", b="work:q", c="work:q"))
        workers = [self.come(token=token)[1] for token in "abc"]
        after = tables(b="work:other", c="work:*")
        self.gate.reconfigure(from_tables(after, "test", Path()))
        states = [worker.state for worker in workers]
        self.assertEqual(states, [State.ENDING, State.ENDING, State.READY])

    def test_a_gate_that_stops(self) -> None:
        """It takes nobody on, and says that it is no fault of the worker."""
        self.build()
        line = self.dial()
        late = self.dial()
        self.gate.supervisor("q")._headcount.close()
        line.say(frames.HELLO, 0, {"queue": "q"})
        self.assertNotIn("retry", self.refused(line))
        self.gate.stop()
        self.assertTrue(late.aborted)

    def test_the_kernel_is_told_to_look(self) -> None:
        """Keepalive and TCP_USER_TIMEOUT on TCP; nothing of it on a UNIX socket."""
        with socket.socket() as tcp, socket.socket(socket.AF_UNIX) as unix:
            for sock in (tcp, unix):
                keep_alive(type("Transport", (), {"socket": sock}))
            got = tcp.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            self.assertEqual(got, 1)
            found = {
                name: tcp.getsockopt(socket.IPPROTO_TCP, getattr(socket, name))
                for name in ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT", "TCP_USER_TIMEOUT")
            }
            idle, every, count, unheard = found.values()
            self.assertLess(idle + every * count, 10)
            self.assertLess(unheard, 10_000)


class GuestsTests(Case):
    """Names and places."""

    def test_names(self) -> None:
        """Each is one of its own; a place that was left is taken up again."""
        self.build(command=["x"], workers=1)
        self.reactor.advance(0)
        self.reactor.workers[0].hello()
        names = [self.come(**hello)[1].name for hello in ({}, {"name": "a"}, {"name": "a"}, {})]
        self.assertEqual(names, ["q~1", "a", "a~2", "q~2"])
        self.assertEqual(self.come(name="q-1")[1].name, "q-1~2")
        self.assertEqual(self.come(name="other-7", queue="other")[1].name, "other-7~2")
        self.assertEqual(self.come(name="a", queue="other")[1].name, "a~3")
        self.lines[1].lose()
        self.assertEqual(self.come(name="a")[1].name, "a")
        _, post = self.gate.post("a")
        self.assertEqual((post.restarts, post.report.commands_done), (1, 0))

    def test_numbers(self) -> None:
        """The lowest free one, so that every shard gets its share."""
        self.build(shards=2)
        runners = self.gate.dispatcher["q"]._runners
        shards = self.gate.dispatcher["q"].shards
        for _ in range(2):
            self.come()
        self.lines[0].lose()
        self.come()
        runners = self.gate.dispatcher["q"]._runners
        self.assertEqual({runner.queue for runner in runners}, set(shards))

    def test_left_places_are_bounded(self) -> None:
        """The last hundred reports are kept."""
        self.build()
        for number in range(130):
            self.come(name=f"n{number}")
            line = self.lines.pop()
            line.lose()
            line.discard()
        posts = self.gate.supervisor("q").guests.posts
        self.assertEqual([post.name for post in posts], [f"n{n}" for n in range(30, 130)])

    def test_reports_are_found_where_the_worker_is(self) -> None:
        """Who has changed his queue is asked after in the new one."""
        self.build()
        self.come(name="a")
        self.lines[0].lose()
        _, worker = self.come(name="a", queue="other")
        self.assertIs(self.gate.post("a")[1].worker, worker)
        self.assertRaises(errors.UnknownWorker, self.gate.post, "b")

    def test_a_change_that_concerns_it(self) -> None:
        """A worker is sent away for what it was told; for what only children know it is not."""
        self.build(in_flight=2)
        line, worker = self.come()
        for change, state in (
            ({"in_flight": 2, "env": {"A": "b"}, "size": 7}, State.READY),
            ({"in_flight": 3}, State.ENDING),
        ):
            config = from_tables({"queues": {"q": change, "other": {}}}, "test", Path())
            self.gate.reconfigure(config)
            self.assertIs(worker.state, state)
        self.assertEqual(line.heard()[-1][0], frames.DRAIN)


class LifeTests(Case):
    """How it is looked after, and how it goes."""

    def test_idle(self) -> None:
        """A PING every four seconds; who has not answered by the next is cut off."""
        self.build()
        line, worker = self.come(name="w")
        for _ in range(3):
            self.turn(PING_EVERY)
            [(kind, number, _, _)] = line.heard()
            self.assertEqual(kind, frames.PING)
            line.say(frames.PONG, number)
        self.turn(PING_EVERY)
        self.assertFalse(line.aborted)
        self.turn(PING_EVERY)
        self.assertTrue(line.aborted)
        self.assertIs(worker.state, State.GONE)
        self.assertIn("no answer to PING within 4 s", self.gate.post("w")[1].report.cause)

    def test_busy(self) -> None:
        """A worker that has a command is not asked; it may be doing it."""
        self.build()
        line, _ = self.come()
        made = self.call()
        for _ in range(5):
            self.turn(PING_EVERY)
        [(kind, number, _, _)] = line.heard()
        self.assertEqual(kind, frames.COMMAND)
        line.say(frames.REPLY, number)
        self.successResultOf(made)

    def test_batches_in_flight(self) -> None:
        """As with a child, `in_flight` is how many batches it may have; those are whole."""
        self.build(in_flight=2, batch={"size": 2, "linger": "full"})
        line, worker = self.come(ordered=True)
        made = [self.call(b"%d" % number) for number in range(6)]
        self.turn()
        bodies = [body for kind, _, _, body in line.heard() if kind == frames.COMMAND]
        self.assertEqual((bodies, worker.room), ([b"0", b"1", b"2", b"3"], 0))
        for number in range(4):
            line.say(frames.REPLY, number)
        self.turn()
        bodies = [body for kind, _, _, body in line.heard() if kind == frames.COMMAND]
        self.assertEqual((bodies, worker.room), ([b"4", b"5"], 1))
        self.assertTrue(all(one.called for one in made[:4]))
        for number in (4, 5):
            line.say(frames.REPLY, number)

    def test_a_slow_reader_is_given_no_more(self) -> None:
        """Room ends with the buffers; what is not handed over waits for somebody else."""
        self.build(in_flight=4)
        line, worker = self.come()
        large = self.call(b"x" * 3_000_000)
        small = self.call(b"small")
        self.assertEqual((worker.room, self.gate.dispatcher["q"].waiting), (0, 1))
        other, _ = self.come()
        [(_, number, _, body)] = other.heard()
        self.assertEqual(body, b"small")
        other.say(frames.REPLY, number)
        self.successResultOf(small)
        more = [self.call(b"%d" % n) for n in range(5)]
        self.assertEqual(self.gate.dispatcher["q"].waiting, 1)
        [(_, number, _, body)] = line.heard()
        self.assertEqual(len(body), 3_000_000)
        line.producer.resumeProducing()
        self.assertEqual(self.gate.dispatcher["q"].waiting, 0)
        self.turn()
        line.say(frames.REPLY, number)
        self.successResultOf(large)
        for side in (line, other):
            for kind, number, _, _ in side.heard():
                self.assertEqual(kind, frames.COMMAND)
                side.say(frames.REPLY, number)
        for made in more:
            self.successResultOf(made)

    def test_who_asks_and_never_reads(self) -> None:
        """PINGs are answered, but not without end to somebody who does not take the answers."""
        self.build()
        line, worker = self.come(name="w")
        worker.pauseProducing()
        for _ in range(1000):
            line.say(frames.PING)
        self.turn()
        self.assertTrue(line.aborted)
        self.assertIn("does not read", self.gate.post("w")[1].report.cause)

    def test_retired(self) -> None:
        """What it has is finished; then DRAIN, our side ends, and it has a second for its own."""
        self.build()
        line, worker = self.come(name="w")
        made = self.call()
        supervisor, post = self.gate.post("w")
        supervisor.recycle(post)
        self.assertIs(worker.state, State.DRAINING)
        [(_, number, _, _)] = line.heard()
        line.say(frames.REPLY, number)
        self.successResultOf(made)
        self.assertEqual([kind for kind, *_ in line.heard()], [frames.DRAIN])
        self.assertTrue(line.half_closed)
        self.turn(PARTING)
        self.assertTrue(line.aborted)
        self.assertEqual((worker.state, post.report), (State.GONE, None))

    def test_it_leaves(self) -> None:
        """DRAIN from the worker: nothing more is given to it, and what it declines goes on."""
        self.build(in_flight=2)
        line, worker = self.come(ordered=True)
        first, second, third = (self.call(b"%d" % n) for n in range(3))
        line.say(frames.DRAIN)
        self.assertIs(worker.state, State.DRAINING)
        line.say(frames.REPLY, 0)
        self.successResultOf(first)
        line.say(frames.DECLINE, 1)
        self.assertEqual([kind for kind, *_ in line.heard()][-1], frames.DRAIN)
        line.far.close()
        self.turn()
        self.assertIs(worker.state, State.GONE)
        self.assertEqual(self.gate.dispatcher["q"].waiting, 2)
        other, _ = self.come()
        self.turn()
        for kind, number, meta, _ in other.heard():
            self.assertEqual((kind, meta["attempt"]), (frames.COMMAND, 1))
            other.say(frames.REPLY, number)
        for made in (second, third):
            self.successResultOf(made)

    def test_the_kind_of_loss(self) -> None:
        """A closed connection may be the command's doing, a silent network may not."""
        self.build(retry="safe", attempts=3)
        for error, slug in (
            (OSError(errno.ECONNRESET, "reset"), "poison-command"),
            (None, "poison-command"),
            (TimeoutError(errno.ETIMEDOUT, "timed out"), "worker-died"),
            (OSError(errno.EHOSTUNREACH, "no route"), "worker-died"),
        ):
            made = self.call(str(error).encode())
            for _ in range(3):
                line, worker = self.come(name="w")
                self.assertIs(worker.state, State.READY)
                line.lose(error)
            self.assertEqual(self.failureResultOf(made, errors.JobgateError).value.slug, slug)
            report = self.gate.post("w")[1].report
            self.assertIn("the connection was lost", report.cause)
            self.assertIn(error.strerror if error else "", report.cause)

    def test_cut_off_at_a_timeout(self) -> None:
        """What it still says is heard by nobody."""
        self.build(timeout=3)
        line, worker = self.come()
        made = self.call()
        for _ in range(4):
            self.turn(1)
        self.failureResultOf(made, errors.WorkerTimeout)
        self.assertTrue(line.aborted)
        self.assertIs(worker.state, State.GONE)

    def test_held_streams(self) -> None:
        """A reader that is too slow stops the worker, not the gate."""
        self.build()
        line, _ = self.come()
        made = self.call()
        [(_, number, _, _)] = line.heard()
        line.say(frames.CHUNK, number, None, b"a")
        stream = self.successResultOf(made).stream
        self.assertTrue(stream.pause())
        self.assertTrue(line.reading_stopped)
        stream.resume()
        self.assertFalse(line.reading_stopped)

    def test_hurry(self) -> None:
        """No DRAIN, no second."""
        self.build()
        line, _ = self.come()
        self.gate.hurry()
        self.assertTrue(line.aborted)


class ListeningTests(SynchronousTestCase):
    """Endpoint strings, and UNIX sockets that somebody has left."""

    def test_strings_that_are_none(self) -> None:
        """Whatever is wrong with one, it is a ValueError."""
        for text in (
            "",
            "nothing",
            "tcp:http",
            "tls:",
            "tls:1",
            "tls:1:privateKey=a",
            "tls:1:privateKey=/no/file:certificate=/no/file",
            "tls:1:2:privateKey=a:certificate=b",
            "tls:1:privateKey=a:certificate=b:clientCert=c",
        ):
            with self.assertRaises(ValueError, msg=text):
                endpoint(SpawningReactor(), text)

    def test_is_tls(self) -> None:
        """Two of them are."""
        found = [kind for kind in ("tcp", "ssl", "tls", "unix", "tcp6") if is_tls(f"{kind}:1")]
        self.assertEqual(found, ["ssl", "tls"])

    def test_unix_sockets(self) -> None:
        """One that is in use, and another kind of file, stay; one that a dead process left goes."""
        reactor = SpawningReactor()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "s"
            ports = Ports(reactor, None)  # type: ignore[arg-type]
            path.write_text("precious")
            error = self.failureResultOf(ports.listen([f"unix:{path}"]), Exception).value
            self.assertIn("another kind of file", str(error.subFailure.value))
            path.unlink()
            with socket.socket(socket.AF_UNIX) as server:
                server.bind(str(path))
                server.listen()
                error = self.failureResultOf(ports.listen([f"unix:{path}:mode=600"])).value
                self.assertIsInstance(error.subFailure.value, ConfigError)
                self.assertIn("in use", str(error.subFailure.value))
            self.successResultOf(ports.listen([f"unix:{path}"]))
            self.assertFalse(path.exists())

    def test_all_or_none(self) -> None:
        """What was opened before the one that failed is closed again."""
        reactor = SpawningReactor()
        ports = Ports(reactor, None)  # type: ignore[arg-type]
        self.failureResultOf(ports.listen(["tcp:1", "nonsense:2"]))
        self.assertEqual(ports.open, {})
        self.successResultOf(ports.listen(["tcp:1", "tcp:2"]))
        self.successResultOf(ports.relisten(["tcp:2", "tcp:3"]))
        self.assertEqual(list(ports.open), ["tcp:2", "tcp:3"])
        self.successResultOf(ports.close())
        self.assertEqual(ports.open, {})


class OutsideTests(SynchronousTestCase):
    """What `serve` says before it connects."""

    def test_connect(self) -> None:
        """Three forms; anything else is named with what is wanted."""
        for good in ("tcp://gate:9000", "tcp://[::1]:9000/", "tls://gate:1", "unix:///run/x.sock"):
            Outside(good, "q", "", "", "", "", "")
        for bad in ("gate:9000", "tcp://gate", "tcp://:9000", "http://gate:80", "unix://", "tls:1"):
            with self.assertRaises(ValueError) as caught:
                serve(bytes, connect=bad)  # type: ignore[arg-type]
            self.assertIn(repr(bad), str(caught.exception))
            self.assertIn("unix:///PATH", str(caught.exception))

    def test_own_name(self) -> None:
        """It is one that the gate takes."""
        name = _own_name()
        self.assertRegex(name, r"\A[A-Za-z0-9._-]{1,64}\Z")
        self.assertTrue(name.endswith(f"-{os.getpid()}"))
