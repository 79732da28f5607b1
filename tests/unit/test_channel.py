"""
`jobgate.web.channel`: the front door, against everything a caller may send.
"""

from __future__ import annotations

import re
import socket
import struct
from select import select
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st
from twisted.internet.main import CONNECTION_DONE, CONNECTION_LOST
from twisted.internet.tcp import Server
from twisted.internet.testing import MemoryReactorClock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from jobgate.config import GateConfig, GateSettings
from jobgate.errors import WorkerDied, WorkerTimeout
from jobgate.gate import Gate
from jobgate.stream import Hold, ReplyStream
from jobgate.testing import SpawningReactor, inline_journal
from jobgate.web.exchange import Exchange, Response
from jobgate.web.server import HTTPServer
from tests.unit.fakes import FakeTransport

GET = b"GET /echo HTTP/1.1\r\nHost: localhost\r\n\r\n"
POST = b"POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED = (
    b"POST /echo HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"3\r\nhel\r\n2;ext=1\r\nlo\r\n0\r\nTrailer: x\r\n\r\n"
)


def responses(data: bytes, heads: int = 0) -> list[tuple[int, dict[str, str], bytes]]:
    """What has been sent, parsed; the last `heads` are to HEAD requests."""
    found = []
    while data:
        head, separator, data = data.partition(b"\r\n\r\n")
        assert separator, f"no end of headers in {head!r}"
        first, *lines = head.decode("latin-1").split("\r\n")
        match = re.fullmatch(r"HTTP/1\.1 (\d{3}) [A-Za-z -]+", first)
        assert match, first
        status = int(match[1])
        named = {}
        for line in lines:
            name, _, value = line.partition(": ")
            assert name.lower() not in named, f"{name} twice"
            named[name.lower()] = value
        if status == 100:
            found.append((status, named, b""))
            continue
        if "content-length" in named and not heads:
            size = int(named["content-length"])
            body, data = data[:size], data[size:]
        elif named.get("transfer-encoding") == "chunked":
            body = b""
            while True:
                size_text, _, data = data.partition(b"\r\n")
                size = int(size_text, 16)
                body, data = body + data[:size], data[size:]
                assert data[:2] == b"\r\n"
                data = data[2:]
                if not size:
                    break
        else:
            body, data = (b"", data) if heads else (data, b"")
        found.append((status, named, body))
    return found


class DoorCase(SynchronousTestCase):
    """Connections to a server whose requests the test answers."""

    def setUp(self) -> None:
        self.build()

    def build(self, **changes: Any) -> None:
        self.reactor = SpawningReactor()
        self.reactor.advance(1000)
        config = GateConfig(gate=GateSettings(**changes))
        self.server = HTTPServer(Gate(config, self.reactor, inline_journal(self.reactor)))
        self.served: list[Exchange] = []
        self.hold = False
        self.server.serve = self.serve  # type: ignore[method-assign]

    def serve(self, exchange: Exchange) -> None:
        self.served.append(exchange)
        if not self.hold:
            self.answer(exchange)

    def answer(self, exchange: Exchange) -> None:
        said = exchange.head.method + b" " + exchange.head.target + b" " + exchange.body
        exchange.answer(Response(200, "text/plain", said))

    def connect(self, room: float = float("inf")) -> tuple[Any, FakeTransport]:
        transport = FakeTransport(room)
        door = self.server.buildProtocol(None)
        transport.protocol = door
        door.makeConnection(transport)
        return door, transport

    def wait(self, seconds: float) -> None:
        """Time passes, and the sweep looks as it does."""
        for _ in range(int(seconds * 2)):
            self.reactor.advance(0.5)
            self.server._look()

    def send(
        self, *data: bytes, heads: int = 0
    ) -> tuple[list[tuple[int, dict[str, str], bytes]], FakeTransport]:
        """Send on a new connection; returns the responses and the transport."""
        door, transport = self.connect()
        for piece in data:
            door.dataReceived(piece)
        return responses(transport.sent, heads), transport

    def refused(self, *data: bytes, status: int = 400) -> None:
        """
        Sent on a new connection, this gets one problem and a close, every time; nothing is served.
        """
        before = len(self.served)
        for turn in ("first", "second"):
            found, transport = self.send(*data)
            self.assertEqual([one[0] for one in found], [status], (turn, data, found))
            _, named, _ = found[0]
            self.assertEqual(named["content-type"], "application/problem+json")
            self.assertEqual(named["connection"], "close")
            self.assertTrue(transport.closed)
            self.assertEqual(len(self.served), before, data)
            self.end(transport)

    def end(self, transport: FakeTransport) -> None:
        transport._lost()
        self.assertEqual(self.server.ledger.held, 0)
        self.assertEqual(self.server._connections, set())


class RequestTests(DoorCase):
    """What comes in."""

    def test_get_and_post(self) -> None:
        """A request is served with its method, target and body, and the connection goes on."""
        found, transport = self.send(GET, POST, CHUNKED)
        self.assertEqual(
            [one[2] for one in found], [b"GET /echo ", b"POST /echo hello", b"POST /echo hello"]
        )
        self.assertEqual([one[0] for one in found], [200] * 3)
        self.assertFalse(transport.closed)
        for _, named, _ in found:
            self.assertNotIn("connection", named)
            self.assertEqual((named["server"], "date" in named), ("jobgate", True))
        self.end(transport)

    @given(
        st.lists(st.sampled_from([GET, POST, CHUNKED, b"\r\n" + GET]), min_size=1, max_size=5),
        st.lists(st.integers(1, 400), min_size=1, max_size=6),
    )
    @settings(max_examples=80)
    def test_any_split(self, requests: list[bytes], sizes: list[int]) -> None:
        """However requests are cut into packets, they are answered the same, in order."""
        self.served.clear()
        data = b"".join(requests)
        pieces, turn = [], 0
        while data:
            size = sizes[turn % len(sizes)]
            pieces.append(data[:size])
            data, turn = data[size:], turn + 1
        found, transport = self.send(*pieces)
        self.assertEqual(
            [one[2] for one in found],
            [b"GET /echo " if b"GET" in one else b"POST /echo hello" for one in requests],
        )
        self.assertFalse(transport.closed)
        self.end(transport)

    def test_repeated_heads(self) -> None:
        """A head that has been seen before is read the same again, whatever body follows."""
        head = b"POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\n\r\n"
        for body in (b"aaaa", b"\r\n\r\n", b"GET ", b"bbbb"):
            found, transport = self.send(head + body)
            self.assertEqual([one[2] for one in found], [b"POST /echo " + body])
            self.end(transport)
        found, transport = self.send(head + b"aa", b"aa" + head + b"bbbb" + GET)
        self.assertEqual([one[2][-4:] for one in found], [b"aaaa", b"bbbb", b"cho "])
        self.end(transport)

    def test_repeated_fields(self) -> None:
        """Known fields behind another first line are what they were; an odd line is looked at."""
        fields = b"\r\nHost: localhost\r\nContent-Length: 2\r\n\r\nhi"
        for line in (b"POST /leases/%d/ack HTTP/1.1" % number for number in (1, 2, 3)):
            found, transport = self.send(line + fields)
            self.assertEqual([one[2] for one in found], [line[:-8] + b"hi"])
            self.end(transport)
        self.assertEqual((len(self.server.heads), len(self.server.fields)), (0, 1))
        found, transport = self.send(b"GET /echo HTTP/1.1" + fields)
        self.assertEqual([one[2] for one in found], [b"GET /echo hi"])
        self.assertEqual(len(self.server.heads), 1)
        self.end(transport)
        for line in (
            b"POST /echo HTTP/1.2",
            b"POST /echo HTTP/2.0",
            b"POST /ec ho HTTP/1.1",
            b"PO\x00ST /echo HTTP/1.1",
            b"POST /echo",
        ):
            found, transport = self.send(line + fields)
            self.assertEqual([one[0] for one in found], [400], line)
            self.end(transport)
        found, transport = self.send(b"POST /echo HTTP/1.0" + fields)
        self.assertEqual((found[0][0], transport.closed), (200, True))
        self.end(transport)

    def test_repeated_head_with_less_or_more(self) -> None:
        """
        A known head followed by less than its body waits for it; by more, the rest is the next
        request.
        """
        _, transport = self.send(POST)
        self.end(transport)
        found, transport = self.send(POST[:-1])
        self.assertEqual(found, [])
        self.end(transport)
        found, transport = self.send(POST + POST[:-5])
        self.assertEqual(len(found), 1)
        self.end(transport)

    def test_pipelining(self) -> None:
        """
        Answers go out in the order of the requests; the next is served when the last is answered.
        """
        self.hold = True
        door, transport = self.connect()
        door.dataReceived(GET + POST + GET)
        self.assertEqual(len(self.served), 1)
        self.answer(self.served[0])
        self.assertEqual(len(self.served), 2)
        door.dataReceived(CHUNKED)
        self.answer(self.served[1])
        self.answer(self.served[2])
        self.answer(self.served[3])
        self.assertEqual(
            [one[2] for one in responses(transport.sent)],
            [b"GET /echo ", b"POST /echo hello", b"GET /echo ", b"POST /echo hello"],
        )
        self.end(transport)

    def test_deep_pipelining(self) -> None:
        """Thousands of requests in one packet are answered without deep recursion."""
        found, transport = self.send(GET * 3000)
        self.assertEqual(len(found), 3000)
        self.end(transport)

    def test_pipelining_is_bounded(self) -> None:
        """Who sends on without reading answers is not read any further, and again later."""
        self.hold = True
        door, transport = self.connect()
        door.dataReceived(GET)
        for _ in range(80):
            door.dataReceived(POST * 20)
            if transport.paused:
                break
        self.assertTrue(transport.paused)
        self.hold = False
        self.answer(self.served[0])
        self.assertFalse(transport.paused)
        self.assertEqual(len(responses(transport.sent)), len(self.served))
        self.end(transport)

    def test_answers_only_once(self) -> None:
        """A second answer to the same request goes nowhere."""
        self.hold = True
        door, transport = self.connect()
        door.dataReceived(GET)
        self.answer(self.served[0])
        self.answer(self.served[0])
        door.dataReceived(GET)
        self.answer(self.served[0])
        self.assertEqual(len(responses(transport.sent)), 1)
        self.end(transport)

    def test_the_caller_leaves(self) -> None:
        """A caller that hangs up is told to whoever serves it, once; a late answer goes nowhere."""
        self.hold = True
        door, transport = self.connect()
        door.dataReceived(POST + POST)
        left: list[int] = []
        self.served[0].on_lost = lambda: left.append(1)
        self.end(transport)
        self.assertEqual(left, [1])
        self.answer(self.served[0])
        self.assertEqual((transport.sent, len(self.served)), (b"", 1))

    def test_head(self) -> None:
        """HEAD gets the headers of the answer, its length included, and no body."""
        found, transport = self.send(GET.replace(b"GET", b"HEAD"), heads=1)
        self.assertEqual((found[0][1]["content-length"], found[0][2]), ("11", b""))
        self.assertTrue(transport.sent.endswith(b"\r\n\r\n"))

    def test_bodiless(self) -> None:
        """204 and 304 have neither body nor length."""
        self.hold = True
        door, transport = self.connect()
        for status in (204, 304):
            door.dataReceived(GET)
            self.served[-1].answer(Response(status, "text/plain", b"never"))
        self.assertNotIn(b"never", transport.sent)
        self.assertNotIn(b"ontent-", transport.sent)
        self.end(transport)

    def test_absolute_form(self) -> None:
        """An absolute target is taken for its path (RFC 9112, 3.2.2)."""
        for target, wanted in (
            (b"http://localhost/a?b", b"/a?b"),
            (b"http://localhost", b"/"),
            (b"HTTP://localhost/x//y", b"/x//y"),
        ):
            found, _ = self.send(b"GET " + target + b" HTTP/1.1\r\nHost: localhost\r\n\r\n")
            self.assertEqual(found[0][2], b"GET " + wanted + b" ")

    def test_http10(self) -> None:
        """HTTP/1.0 needs no Host, and is closed after its answer unless it asks otherwise."""
        found, transport = self.send(b"GET /echo HTTP/1.0\r\n\r\n")
        self.assertEqual(
            (found[0][0], found[0][1]["connection"], transport.closed), (200, "close", True)
        )
        found, transport = self.send(b"GET /echo HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        self.assertEqual((found[0][1]["connection"], transport.closed), ("keep-alive", False))

    def test_connection_close(self) -> None:
        """`Connection: close` is kept: nothing after it is served."""
        request = b"GET /echo HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        found, transport = self.send(request + GET)
        self.assertEqual(
            (len(found), found[0][1]["connection"], transport.closed), (1, "close", True)
        )

    def test_upgrade_is_not_taken(self) -> None:
        """An offer to upgrade is answered as if it were not there, and the next request as well."""
        offer = b"GET /echo HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"  # noqa: E501
        found, transport = self.send(offer + GET, GET)
        self.assertEqual([one[0] for one in found], [200, 200, 200])
        self.end(transport)

    def test_expect(self) -> None:
        """
        `Expect: 100-continue` is answered before the body comes, and only for what will be read.
        """
        request = b"POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n"  # noqa: E501
        door, transport = self.connect()
        door.dataReceived(request)
        self.assertEqual(transport.sent, b"HTTP/1.1 100 Continue\r\n\r\n")
        door.dataReceived(b"hello")
        self.assertEqual([one[0] for one in responses(transport.sent)], [100, 200])
        self.end(transport)
        self.refused(request.replace(b"100-continue", b"the-unexpected"))
        self.build(max_body=4)
        self.refused(request, status=413)

    def test_expect_twice_on_one_connection(self) -> None:
        """A head that expects is never taken for one that was seen before."""
        request = b"POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n"  # noqa: E501
        for _ in range(2):
            found, transport = self.send(request, b"hello")
            self.assertEqual([one[0] for one in found], [100, 200])
            self.end(transport)


class LimitTests(DoorCase):
    """What is too much."""

    def test_content_length(self) -> None:
        """A body over `max_body` is refused at its header, before a byte of it is read."""
        self.build(max_body=5)
        found, transport = self.send(POST)
        self.assertEqual(found[0][0], 200)
        self.end(transport)
        self.refused(POST.replace(b": 5", b": 6")[:-5], status=413)
        self.refused(POST.replace(b": 5", b": 99999999999999999999"), status=400)
        self.refused(POST.replace(b": 5", b": 999999999999"), status=413)

    def test_chunked(self) -> None:
        """A chunked body is refused as soon as it is over, whatever its chunks say."""
        self.build(max_body=5)
        found, transport = self.send(CHUNKED)
        self.assertEqual(found[0][0], 200)
        self.end(transport)
        self.refused(CHUNKED.replace(b"3\r\nhel", b"4\r\nhell"), status=413)
        self.refused(CHUNKED.partition(b"3\r\n")[0], b"ffff\r\n" + b"x" * 6, status=413)

    def test_buffered(self) -> None:
        """
        Bodies over `max_buffered` together are refused with 503; room comes back with the end of
        others.
        """
        self.build(max_buffered=8, max_body=100)
        door, transport = self.connect()
        door.dataReceived(POST[:-5])
        self.assertEqual(self.server.ledger.held, 5)
        found, other = self.send(POST)
        self.assertEqual(
            (found[0][0], "retry-after" in found[0][1], b"gate-full" in found[0][2]),
            (503, True, True),
        )
        other._lost()
        self.assertEqual(self.server.ledger.held, 5)
        door.dataReceived(b"hello")
        self.assertEqual(self.server.ledger.held, 0)
        self.end(transport)

    def test_buffered_chunks(self) -> None:
        """Chunked bodies count as they come."""
        self.build(max_buffered=4)
        found, transport = self.send(CHUNKED)
        self.assertEqual(found[0][0], 503)
        self.end(transport)

    def test_hang_up_in_the_body(self) -> None:
        """A caller that leaves in the middle of its body gives its room back."""
        door, transport = self.connect()
        door.dataReceived(POST[:-2])
        self.assertEqual(self.server.ledger.held, 5)
        self.end(transport)

    def test_headers(self) -> None:
        """At most 100 headers, and at most 64 KiB of them, however they come."""
        many = b"".join(b"X-%d: y\r\n" % n for n in range(99))
        found, transport = self.send(GET[:-2] + many + b"\r\n")
        self.assertEqual(found[0][0], 200)
        self.end(transport)
        self.refused(GET[:-2] + many + b"X: y\r\n\r\n")
        self.refused(GET[:-2] + b"X: " + b"y" * 70_000)
        self.refused(b"GET /" + b"a" * 70_000)
        self.refused(*[GET[:-2] + b"X: ", *[b"y" * 1000] * 70])

    def test_endless_chunk_extensions(self) -> None:
        """A body that costs far more on the wire than it holds ends."""
        self.build(max_body=1000)
        head = CHUNKED.partition(b"3\r\n")[0]
        self.hold = True
        door, transport = self.connect()
        door.dataReceived(head)
        for _ in range(200):
            door.dataReceived(b"1;" + b"e" * 1000 + b"\r\nx\r\n")
            if transport.closed:
                break
        self.assertTrue(transport.closed)
        self.end(transport)

    def test_connections(self) -> None:
        """Over `max_connections` a caller is told so and closed; the others go on."""
        self.build(max_connections=1)
        _, first = self.connect()
        found, second = self.send()
        self.assertEqual((found[0][0], second.closed), (503, True))
        self.assertFalse(first.closed)
        second._lost()
        first._lost()
        _, third = self.connect()
        self.assertFalse(third.closed)

    def test_connections_that_were_turned_away(self) -> None:
        """They take nobody's place, however long they take to go."""
        self.build(max_connections=1)
        _, first = self.connect()
        away = [self.connect()[1] for _ in range(3)]
        self.assertEqual([responses(one.sent)[0][0] for one in away], [503] * 3)
        first._lost()
        _, second = self.connect()
        self.assertEqual(second.sent, b"")
        self.assertEqual(responses(self.connect()[1].sent)[0][0], 503)


class DeadlineTests(DoorCase):
    """What takes too long."""

    def test_idle(self) -> None:
        """A connection without a request is closed after `idle_timeout`, without an answer."""
        self.build(idle_timeout=10)
        door, transport = self.connect()
        self.wait(9)
        door.dataReceived(GET)
        self.wait(9)
        self.assertFalse(transport.closed)
        self.wait(2)
        self.assertTrue(transport.closed)
        self.assertEqual(len(responses(transport.sent)), 1)

    def test_headers(self) -> None:
        """Headers that trickle in are cut off after `header_timeout` in all, with 408."""
        self.build(header_timeout=5, idle_timeout=100)
        door, transport = self.connect()
        for place in range(12):
            door.dataReceived(GET[place : place + 1])
            self.wait(0.5)
        self.assertEqual(responses(transport.sent)[0][0], 408)
        self.assertTrue(transport.closed)

    def test_body(self) -> None:
        """A body has `body_timeout` from the end of its headers, and then gets 408."""
        self.build(header_timeout=5, body_timeout=8)
        door, transport = self.connect()
        door.dataReceived(POST[:-5])
        self.wait(7)
        door.dataReceived(b"hel")
        self.assertFalse(transport.closed)
        self.wait(2)
        self.assertEqual(responses(transport.sent)[0][0], 408)
        self.assertEqual(self.served, [])
        self.end(transport)

    def test_none_while_it_runs(self) -> None:
        """While a request is served the caller may be silent as long as it takes."""
        self.build(idle_timeout=2, header_timeout=2, body_timeout=2)
        self.hold = True
        door, transport = self.connect()
        door.dataReceived(GET)
        self.wait(60)
        self.assertFalse(transport.closed)
        self.answer(self.served[0])
        self.assertEqual(len(responses(transport.sent)), 1)

    def test_slow_reader(self) -> None:
        """
        A reader that takes nothing of its answer for `body_timeout` is cut off; one that does, is
        not.
        """
        self.build(body_timeout=5)
        self.hold = True
        door, transport = self.connect(room=100)
        door.dataReceived(GET)
        self.served[0].answer(Response(200, "text/plain", b"x" * 2_000_000))
        self.assertGreater(self.server.ledger.held, 0)
        for _ in range(6):
            self.wait(3)
            transport.reads(300_000)
        self.assertFalse(transport.aborted)
        self.wait(12)
        self.assertTrue(transport.aborted or not self.server.ledger.held)
        self.end(transport)

    def test_reader_that_takes_nothing(self) -> None:
        """Likewise when it never takes a byte."""
        self.build(body_timeout=5)
        self.hold = True
        door, transport = self.connect(room=0)
        door.dataReceived(GET)
        self.served[0].answer(Response(200, "text/plain", b"x" * 2_000_000))
        self.wait(13)
        self.assertTrue(transport.aborted)
        self.end(transport)

    def test_lingering(self) -> None:
        """After a refusal the connection is half closed, and closed whole soon after."""
        found, transport = self.send(b"garbage\r\n\r\n")
        self.assertEqual(found[0][0], 400)
        self.assertTrue(transport.write_closed)
        self.wait(3)
        self.assertTrue(transport.aborted)


class AnswerTests(DoorCase):
    """What goes out."""

    def setUp(self) -> None:
        super().setUp()
        self.hold = True

    def streamed(
        self,
        *,
        events: bool = False,
        room: float = float("inf"),
        request: bytes = GET,
        hold: Hold | None = None,
    ) -> tuple[Any, FakeTransport, ReplyStream]:
        door, transport = self.connect(room)
        door.dataReceived(request)
        response = Response(200, "text/plain")
        response.stream = ReplyStream(hold)
        response.events = events
        self.served[-1].answer(response)
        return door, transport, response.stream

    def test_a_stream_that_ends_while_it_is_held(self) -> None:
        """Its worker is let go at once; the reader still gets what there is, and how it ended."""
        holds: list[bool] = []

        def hold(*, on: bool) -> bool:
            holds.append(on)
            return True

        for events in (False, True):
            holds.clear()
            _, transport, stream = self.streamed(events=events, room=50, hold=hold)
            for _ in range(20):
                stream.chunk(b"x" * 100_000)
            self.assertEqual(holds, [True])
            stream.end(Failure(WorkerTimeout("too long")))
            self.assertEqual(holds, [True, False])
            self.wait(1.5)
            self.assertFalse(transport.aborted)
            transport.reads()
            self.assertEqual(transport.sent.count(b"event: error"), events)
            self.assertEqual(holds, [True, False])
            self.end(transport)

    def test_a_stream_that_has_ended_holds_nobody(self) -> None:
        """Who comes to read it then, and is slow, holds up what its worker says to others."""
        holds: list[bool] = []

        def hold(*, on: bool) -> bool:
            holds.append(on)
            return True

        door, transport = self.connect(room=50)
        door.dataReceived(GET)
        response = Response(200, "text/plain")
        response.stream = ReplyStream(hold)
        for _ in range(20):
            response.stream.chunk(b"x" * 100_000)
        response.stream.end()
        self.served[-1].answer(response)
        self.assertEqual(holds, [])
        self.wait(1.5)
        transport.reads()
        self.assertEqual(len(responses(transport.sent)[0][2]), 2_000_000)
        self.end(transport)

    def test_slow_reader_pipelined(self) -> None:
        """
        Answers to a slow reader arrive whole and in order, also when the next is sent before it has
        read.
        """
        for size in (10, 5_000, 100_000, 700_000):
            self.build()
            self.hold = True
            door, transport = self.connect(room=50)
            door.dataReceived(GET * 4)
            for number in range(4):
                while len(self.served) <= number:
                    transport.reads(10_000)
                self.served[number].answer(Response(200, "text/plain", bytes([65 + number]) * size))
            transport.reads()
            self.assertEqual(
                [one[2] for one in responses(transport.sent)],
                [bytes([65 + n]) * size for n in range(4)],
            )
            self.end(transport)

    def test_ledger_of_a_slow_reader(self) -> None:
        """What a reader has not taken is counted, and no longer when it leaves."""
        door, transport = self.connect(room=50)
        door.dataReceived(GET)
        self.served[0].answer(Response(200, "text/plain", b"x" * 1_000_000))
        self.assertGreater(self.server.ledger.held, 500_000)
        self.end(transport)

    def test_stream(self) -> None:
        """A streamed reply is sent part by part as chunks, and ended; the connection goes on."""
        door, transport, stream = self.streamed()
        stream.chunk(b"one")
        self.assertTrue(transport.sent.endswith(b"3\r\none\r\n"))
        stream.chunk(b"two" * 20_000)
        stream.end()
        door.dataReceived(GET)
        self.answer(self.served[1])
        found = responses(transport.sent)
        self.assertEqual([one[2] for one in found], [b"one" + b"two" * 20_000, b"GET /echo "])
        self.end(transport)

    def test_stream_without_its_parts(self) -> None:
        """HEAD gets the head alone, and nobody goes on making parts for it."""
        left: list[str] = []
        door, transport = self.connect()
        door.dataReceived(GET.replace(b"GET", b"HEAD", 1))
        response = Response(200, "text/event-stream")
        response.stream = stream = ReplyStream()
        self.served[0].on_lost = lambda: left.append("left")
        self.served[0].answer(response)
        stream.chunk(b"one")
        stream.end()
        self.assertTrue(transport.sent.endswith(b"Transfer-Encoding: chunked\r\n\r\n"))
        self.assertEqual(left, ["left"])
        door.dataReceived(GET)
        self.answer(self.served[1])
        self.assertTrue(transport.sent.endswith(b"GET /echo "))
        self.end(transport)

    def test_stream_http10(self) -> None:
        """To HTTP/1.0 a stream goes until the connection's end."""
        _, transport, stream = self.streamed(
            request=b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"
        )
        stream.chunk(b"one")
        stream.end()
        found = responses(transport.sent)
        self.assertEqual((found[0][2], transport.closed), (b"one", True))
        self.assertNotIn("transfer-encoding", found[0][1])

    def test_stream_that_breaks(self) -> None:
        """A failure after the first part ends the connection without the last chunk."""
        _, transport, stream = self.streamed()
        stream.chunk(b"one")
        stream.end(Failure(WorkerDied("x")))
        self.assertTrue(transport.closed)
        self.assertFalse(transport.sent.endswith(b"0\r\n\r\n"))
        self.end(transport)

    def test_events(self) -> None:
        """As server-sent events each part is an event, and a failure the event `error`."""
        _, transport, stream = self.streamed(events=True)
        stream.chunk(b"one\ntwo")
        stream.end(Failure(WorkerDied("why")))
        body = responses(transport.sent)[0][2]
        self.assertTrue(body.startswith(b"data: one\ndata: two\n\nevent: error\ndata: {"), body)
        self.assertIn(b"worker-died", body)
        self.assertFalse(transport.closed)
        self.end(transport)

    def test_stream_to_a_slow_reader(self) -> None:
        """Parts for a reader that lags arrive whole and in order."""
        _, transport, stream = self.streamed(room=100)
        parts = [bytes([65 + n % 26]) * 5000 for n in range(100)]
        for number, part in enumerate(parts):
            stream.chunk(part)
            if number % 7 == 0:
                transport.reads(20_000)
        stream.end()
        transport.reads()
        self.assertEqual(responses(transport.sent)[0][2], b"".join(parts))
        self.end(transport)

    def test_stream_to_one_that_does_not_read(self) -> None:
        """Over 1 MiB unread that caller is cut off, and whoever serves it is told."""
        _, transport, stream = self.streamed(room=100)
        left: list[int] = []
        self.served[0].on_lost = lambda: left.append(1)
        for _ in range(40):
            stream.chunk(b"x" * 100_000)
            if transport.aborted:
                break
        self.assertTrue(transport.aborted)
        self.end(transport)
        self.assertEqual(left, [1])

    def test_bodiless_stream(self) -> None:
        """
        A streamed reply with a status that forbids a body sends none: not one byte of its parts.
        """
        for status in (204, 304):
            door, transport = self.connect()
            door.dataReceived(GET)
            response = Response(status, "text/plain")
            response.stream = ReplyStream()
            self.served[-1].answer(response)
            response.stream.chunk(b"HTTP/1.1 200 OK")
            response.stream.end()
            self.assertTrue(transport.sent.endswith(b"\r\n\r\n"))
            self.assertNotIn(b"200 OK", transport.sent)
            self.assertNotIn(b"0\r\n\r\n", transport.sent)
            self.end(transport)

    def test_bodiless_stream_that_fails(self) -> None:
        """Not one byte of an event either: the next answer would begin with it."""
        for status in (204, 304):
            door, transport = self.connect()
            door.dataReceived(GET)
            response = Response(status, "text/plain")
            response.stream = ReplyStream()
            response.events = True
            self.served[-1].answer(response)
            response.stream.chunk(b"")
            response.stream.end(Failure(WorkerTimeout("too long")))
            self.assertTrue(transport.sent.endswith(b"\r\n\r\n"))
            self.assertNotIn(b"event", transport.sent)
            self.assertTrue(transport.aborted)
            self.end(transport)

    def test_closing(self) -> None:
        """While the server stops every answer says `Connection: close`, and idle connections go."""
        _, idle = self.connect()
        door, transport = self.connect()
        door.dataReceived(GET)
        stopped = self.server.stop()
        self.assertTrue(idle.closed)
        self.assertFalse(transport.closed)
        self.answer(self.served[0])
        self.assertEqual(responses(transport.sent)[0][1]["connection"], "close")
        self.assertTrue(transport.closed)
        transport._lost()
        idle._lost()
        self.successResultOf(stopped)

    def test_a_bug_in_serving(self) -> None:
        """
        Whatever goes wrong behind the door, the caller gets an answer and the connection goes on.
        """

        def serve(_: Exchange) -> None:
            raise ZeroDivisionError

        self.server.serve = serve  # type: ignore[method-assign]
        found, transport = self.send(GET, GET)
        self.assertEqual([one[0] for one in found], [500, 500])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 2)
        self.end(transport)


class SmugglingTests(DoorCase):
    """What two servers could read differently is refused."""

    def test_shapes(self) -> None:
        """Every shape of an ambiguous request gets 400 and a close, and nothing of it is served."""
        head = b"POST /echo HTTP/1.1\r\nHost: localhost\r\n"
        inner = b"GET /evil HTTP/1.1\r\nHost: localhost\r\n\r\n"
        chunked = b"0\r\n\r\n" + inner
        shapes = [
            head + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked,
            head + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n" + chunked,
            head + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
            head + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
            head + b"Content-Length: 5, 5\r\n\r\nhello",
            *[
                head + b"Content-Length: " + length + b"\r\n\r\nhello"
                for length in (b"+5", b"-5", b"0x5", b"5a", b"5 5", b"5.0", b"five", b"5,", b"\xb2")
            ],
            *[
                head + b"Transfer-Encoding: " + coding + b"\r\n\r\n" + chunked
                for coding in (
                    b"xchunked",
                    b"chunked, identity",
                    b"identity",
                    b"gzip, chunked",
                    b"chunked, chunked",
                    b"chunked;q=1",
                    b"\x0bchunked",
                    b"chunk",
                    b"",
                    b"'chunked'",
                    b"chunked,",
                )
            ],
            head + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n" + chunked,
            head + b"Transfer-Encoding : chunked\r\n\r\n" + chunked,
            head + b"Content-Length : 5\r\n\r\nhello",
            head + b" Content-Length: 5\r\n\r\nhello",
            head + b"X: a\r\n folded\r\n\r\n",
            head + b"X: a\r\n\tfolded: 5\r\n\r\n",
            head + b"X: a\nContent-Length: 5\r\n\r\nhello",
            head + b"X: a\rContent-Length: 5\r\n\r\nhello",
            head + b"X: a\x00b\r\n\r\n",
            head + b"X\x00: a\r\n\r\n",
            head + b": a\r\n\r\n",
            head + b"no colon\r\n\r\n",
            head + b"X: a\r\n\n",
            head.replace(b"\r\n", b"\n") + b"\n",
            head + b"Transfer-Encoding: chunked\r\n\r\n5\nhello\n0\n\n" + inner,
            head + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello0\r\n\r\n" + inner,
            head + b"Transfer-Encoding: chunked\r\n\r\n0x5\r\nhello\r\n0\r\n\r\n",
            head + b"Transfer-Encoding: chunked\r\n\r\n-1\r\nhello\r\n0\r\n\r\n",
            head + b"Transfer-Encoding: chunked\r\n\r\n 5\r\nhello\r\n0\r\n\r\n",
            head + b"Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\nhello\r\n0\r\n\r\n",
            b"POST /echo HTTP/1.0\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
            + chunked,
            b"GET /echo\r\nHost: localhost\r\n\r\n",
            b"GET /e cho HTTP/1.1\r\nHost: localhost\r\n\r\n",
            b"GET /echo HTTP/1.1 \r\nHost: localhost\r\n\r\n",
            b"GET /echo HTTP/2.0\r\nHost: localhost\r\n\r\n",
            b"GET /echo HTTP/1.2\r\nHost: localhost\r\n\r\n",
            b"GET /echo HTTP/0.9\r\nHost: localhost\r\n\r\n",
            b"GET /echo HTTP/11.1\r\nHost: localhost\r\n\r\n",
            b"get /echo HTTP/1.1\r\nHost: localhost\r\n\r\n",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        ]
        passed = []
        for shape in shapes:
            half = len(shape) // 2
            for pieces in ([shape], [shape[:half], shape[half:]]):
                try:
                    self.refused(*pieces)
                except self.failureException:
                    passed.append(pieces)
                    self.build()
        self.assertEqual(passed, [])

    def test_hosts(self) -> None:
        """No Host, two of them, or a doubled header that must be single: 400."""
        self.refused(b"GET /echo HTTP/1.1\r\n\r\n")
        self.refused(b"GET /echo HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n")
        self.refused(b"GET /echo HTTP/1.1\r\nHost: localhost\r\nHOST: evil\r\n\r\n")
        for name in (b"Authorization", b"Content-Type", b"Jobgate-Key", b"Jobgate-Timeout"):
            self.refused(GET[:-2] + name + b": a\r\n" + name.lower() + b": a\r\n\r\n")

    def test_lists_are_joined(self) -> None:
        """Other headers that are repeated are one list."""
        self.send(GET[:-2] + b"Accept: a\r\naccept: b\r\n\r\n")
        self.assertEqual(self.served[0].head.headers[b"accept"], b"a, b")

    def test_good_requests_before_a_bad_one(self) -> None:
        """What came whole before the bad one is answered; after it nothing is."""
        found, transport = self.send(GET + POST + b"BAD\r\n\r\n" + GET)
        self.assertEqual([one[0] for one in found], [200, 200, 400])
        self.assertTrue(transport.closed)
        self.assertEqual(len(self.served), 2)
        self.end(transport)

    def test_nothing_after_a_refusal(self) -> None:
        """The body of a refused request is never taken for the next one."""
        self.build(max_body=10)
        self.refused(POST.replace(b": 5", b": 50")[:-5] + GET, status=413)

    @given(st.binary(max_size=60))
    @example(b"\x00")
    @example(b"\r\n")
    @example(b"\n\n\n")
    @settings(max_examples=150)
    def test_garbage(self, data: bytes) -> None:
        """Any bytes: nothing yet, or 400 and a close; never anything else, and nothing is held."""
        found, transport = self.send(data)
        self.assertIn([one[0] for one in found], ([], [400]))
        self.assertEqual(transport.closed, bool(found))
        self.end(transport)

    @given(
        st.sampled_from([GET, POST, CHUNKED]),
        st.lists(
            st.tuples(st.integers(0, 200), st.integers(0, 3), st.binary(max_size=3)),
            min_size=1,
            max_size=3,
        ),
    )
    @settings(max_examples=200)
    def test_mutations(self, request: bytes, changes: list[tuple[int, int, bytes]]) -> None:
        """
        Good requests with anything changed in them are served or refused, and nothing is held.
        """
        for place, length, put in changes:
            place %= len(request)  # noqa: PLW2901
            request = request[:place] + put + request[place + length :]
        found, transport = self.send(request)
        statuses = [one[0] for one in found]
        self.assertTrue(set(statuses) <= {200, 400, 403, 413}, statuses)
        self.assertTrue(all(status == 200 for status in statuses[:-1]), statuses)
        if statuses and statuses[-1] != 200:
            self.assertTrue(transport.closed)
        self.end(transport)

    def test_refused_once_is_refused_again(self) -> None:
        """A head that was refused is not remembered as a good one."""
        self.build(max_body=10)
        bad = [
            b"POST /echo HTTP/1.1\r\nHost: evil.example\r\nContent-Length: 2\r\n\r\nhi",
            b"POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 12\r\n\r\nhello, world",
            b"POST /echo HTTP/1.1\r\nContent-Length: 2\r\n\r\nhi",
            b"GET /echo HTTP/1.1\r\nHost: localhost\r\nSec-Fetch-Site: cross-site\r\n\r\n",
        ]
        for data in bad:
            for _ in range(3):
                found, transport = self.send(data)
                self.assertGreaterEqual(found[0][0], 400, data)
                self.end(transport)
        self.assertEqual(self.served, [])

    def test_foreign_host(self) -> None:
        """Without tokens a Host that is not loopback is refused before the body is read."""
        self.refused(POST.replace(b"localhost", b"evil.example"), status=403)


class SocketTests(DoorCase):
    """What comes over TCP is read without a detour."""

    def setUp(self) -> None:
        super().setUp()
        with socket.create_server(("127.0.0.1", 0)) as listening:
            self.caller = socket.create_connection(listening.getsockname())
            accepted, peer = listening.accept()
        self.addCleanup(self.caller.close)
        self.addCleanup(accepted.close)
        accepted.setblocking(False)
        self.door = self.server.buildProtocol(None)
        self.transport = Server(accepted, self.door, peer, None, 1, MemoryReactorClock())
        self.door.makeConnection(self.transport)

    def come(self) -> BaseException | None:
        """What is said of the next bytes, or of the end, once they are there."""
        select([self.transport.socket], [], [], 5)
        return self.transport.doRead()

    def test_a_request(self) -> None:
        """Nothing, some bytes, a request: all leave the connection open."""
        self.assertIsNone(self.transport.doRead())
        for part in (POST[:10], POST[10:]):
            self.caller.sendall(part)
            self.assertIsNone(self.come())
        [[status, _, body]] = responses(self.caller.recv(10_000))
        self.assertEqual((status, body), (200, b"POST /echo hello"))

    def test_the_end(self) -> None:
        """The caller's FIN ends it; nothing keeps the connection's two halves together."""
        self.caller.close()
        self.assertIs(self.come(), CONNECTION_DONE)
        self.transport.connectionLost(Failure(CONNECTION_DONE))
        self.assertNotIn("doRead", vars(self.transport))

    def test_a_reset(self) -> None:
        """So does its RST."""
        self.caller.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.caller.close()
        self.assertIs(self.come(), CONNECTION_LOST)

    def test_alive(self) -> None:
        """A caller with nothing, or more, to say is there; nothing is taken by looking."""
        self.assertTrue(self.door.alive())
        self.caller.sendall(POST)
        select([self.transport.socket], [], [], 5)
        self.assertTrue(self.door.alive())
        self.assertIsNone(self.come())
        self.assertTrue(self.caller.recv(10_000).startswith(b"HTTP/1.1 200"))

    def test_a_fin_that_was_not_read(self) -> None:
        """Whoever has ended his side is gone before anybody has read that, also behind bytes."""
        self.caller.sendall(POST[:10])
        self.caller.shutdown(socket.SHUT_WR)
        select([self.transport.socket], [], [], 5)
        self.assertFalse(self.door.alive())
        self.assertIsNone(self.come())
        self.assertFalse(self.door.alive())
        self.assertIs(self.come(), CONNECTION_DONE)
        self.transport.connectionLost(Failure(CONNECTION_DONE))
        self.assertFalse(self.door.alive())
