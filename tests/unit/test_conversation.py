"""
`jobgate.pool.conversation`: what is said between the gate and one worker.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from jobgate.command import DONE, RUNNING, Command, Input
from jobgate.config import WorkerConfig
from jobgate.errors import BadRequest, Unprocessable
from jobgate.pool.frames import FramesConversation
from jobgate.pool.lines import LinesConversation
from jobgate.testing import Recorder
from jobgate.wire import frames
from jobgate.wire.frames import encode
from tests.unit.fakes import command

if TYPE_CHECKING:
    from jobgate.pool.conversation import Conversation


class FakeCarrier(Recorder):
    """A Transport that keeps what is written; the test says how much the worker has seen."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = b""
        self.seen: int | None = None
        self.conversation: Conversation | None = None
        self.to_look: bytes = b""

    def write(self, head: bytes, body: bytes, *, idle: bool) -> int:
        self.sent += head + bytes(body)
        return len(self.sent)

    def written(self) -> int:
        return len(self.sent) if self.seen is None else self.seen

    def look(self) -> None:
        data, self.to_look = self.to_look, b""
        if data and self.conversation is not None:
            self.conversation.receive(data)

    def broken(self, why: str) -> None:
        self.events.append(("broken", why))
        if self.conversation is not None:
            self.conversation.take_all()


class Case(SynchronousTestCase):
    """A conversation between a recorder as Taker and a recorder as Transport."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(50.0)

    def prepare(self, conversation: Conversation) -> None:
        self.conversation = self.carrier.conversation = conversation
        self.taker = Recorder()
        conversation.taker = self.taker  # type: ignore[assignment]

    def broken(self) -> str:
        found = self.carrier.of("broken")
        self.assertEqual(len(found), 1, self.carrier.events)
        return str(found[0][0])

    def give(self, body: bytes = b"", **how: Any) -> Command:
        made = command(body, now=self.clock.seconds(), **how)
        made.state = RUNNING
        made.attempt = 1
        self.assertTrue(self.conversation.send(made))
        return made


class FramesCase(Case):
    """With the `frames` protocol."""

    def setUp(self) -> None:
        super().setUp()
        self.build()

    def build(self, hello: dict[str, object] | None = None, **config: Any) -> None:
        self.carrier = FakeCarrier()
        self.config = WorkerConfig(**config)
        self.prepare(
            FramesConversation(self.config, self.carrier, self.clock.seconds, "q-1", "q")  # type: ignore[arg-type]
        )
        if hello is not None:
            self.say(frames.HELLO, 0, hello)
            self.carrier.events.clear()

    def ready(self, in_flight: int = 4, **hello: object) -> None:
        self.build({"protocol": 1, **hello}, in_flight=in_flight)

    def say(self, kind: int, number: int = 0, meta: object = None, body: bytes = b"") -> None:
        text = (
            meta if isinstance(meta, bytes) else b"" if meta is None else json.dumps(meta).encode()
        )
        self.conversation.receive(encode(kind, number, text, body))

    def sent(self) -> list[tuple[int, int, Any, bytes]]:
        found = frames.FrameDecoder().feed(self.carrier.sent)
        return [(k, n, json.loads(bytes(m)) if m else None, bytes(b)) for k, n, m, b in found]


class HelloTests(FramesCase):
    """How a worker becomes ready."""

    def test_welcome(self) -> None:
        """HELLO is answered with WELCOME, and the worker is ready once."""
        self.say(frames.HELLO, 0, {"protocol": 1})
        self.assertEqual(
            self.sent(),
            [
                (
                    frames.WELCOME,
                    0,
                    {"worker": "q-1", "max_frame": frames.MAX_FRAME, "batch": 1},
                    b"",
                )
            ],
        )
        self.assertEqual(self.carrier.names, ["ready"])

    def test_empty_hello(self) -> None:
        """HELLO without meta is HELLO."""
        self.say(frames.HELLO)
        self.assertEqual(self.carrier.names, ["ready"])

    def test_nulls(self) -> None:
        """A null is as good as a member that is not there."""
        nulls = dict.fromkeys(("name", "queue", "in_flight", "ordered", "token"))
        self.say(frames.HELLO, 0, {"protocol": 1, **nulls})
        self.assertEqual(self.carrier.names, ["ready"])

    def test_unknown_members(self) -> None:
        """What is not known in a meta is ignored, for workers of a later day."""
        self.say(frames.HELLO, 0, {"protocol": 1, "sdk": "x/2", "more": [1]})
        self.assertEqual(self.carrier.names, ["ready"])

    def test_in_flight(self) -> None:
        """A worker may ask for less than configured, never more, and at least one."""
        for asked, got in ((None, 4), (2, 2), (9, 4), (0, 4), (-3, 1)):
            self.build({} if asked is None else {"in_flight": asked}, in_flight=4)
            self.assertEqual(self.conversation.capacity, got)

    def test_ordered(self) -> None:
        """Only a worker that says so is taken to answer in order."""
        self.ready()
        self.assertFalse(self.conversation.ordered)
        self.ready(ordered=True)
        self.assertTrue(self.conversation.ordered)

    def test_wrong_hello(self) -> None:
        """Another protocol, a wrong type or no JSON in HELLO ends the worker."""
        for meta in (
            {"protocol": 2},
            {"protocol": "1"},
            {"in_flight": "many"},
            b"{",
            b"[]",
            b"\xff",
        ):
            self.build()
            self.say(frames.HELLO, 0, meta)
            self.broken()
            self.assertNotIn("ready", self.carrier.names)

    def test_hello_twice(self) -> None:
        """A second HELLO breaks the protocol."""
        self.ready()
        self.say(frames.HELLO)
        self.assertIn("HELLO", self.broken())

    def test_another_frame_first(self) -> None:
        """Nothing but HELLO comes first."""
        for kind in (
            frames.REPLY,
            frames.FAIL,
            frames.CHUNK,
            frames.PONG,
            frames.PING,
            frames.DECLINE,
        ):
            self.build()
            self.say(kind)
            self.assertIn(f"type {kind}", self.broken())

    @given(
        st.binary(max_size=50).map(lambda t: bytes(b | 0x20 for b in t)),
        st.lists(st.integers(1, 9), min_size=1),
    )
    def test_text_before_hello(self, text: bytes, sizes: list[int]) -> None:
        """Text before HELLO is logged, wherever the pieces are cut."""
        self.build()
        data = text + encode(frames.HELLO, 0, b'{"protocol":1}')
        place, turn = 0, 0
        while place < len(data):
            size = sizes[turn % len(sizes)]
            self.conversation.receive(data[place : place + size])
            place, turn = place + size, turn + 1
        self.assertEqual(b"".join(said for (said,) in self.carrier.of("aside")), text)
        self.assertEqual(len(self.carrier.of("ready")), 1)

    def test_too_much_text_before_hello(self) -> None:
        """64 KiB of text before HELLO pass; a byte more ends the worker."""
        self.conversation.receive(b"x" * 65536)
        self.assertEqual(self.carrier.of("broken"), [])
        self.conversation.receive(b"x")
        self.broken()

    def test_text_after_hello(self) -> None:
        """Text after HELLO ends the worker, and shows what it was."""
        self.ready()
        self.conversation.receive(b"Traceback (most recent call last)")
        self.assertIn("Traceback", self.broken())
        self.assertIn(b"Traceback", self.carrier.of("aside")[0][0])


class CommandTests(FramesCase):
    """What is sent, and what comes back."""

    def test_command(self) -> None:
        """A COMMAND has the contract's meta, and the body as it is."""
        self.ready()
        self.give(b"\x00body", id="g-1", content_type='text/"x"', timeout=2.5)
        kind, number, meta, body = self.sent()[-1]
        self.assertEqual((kind, number, body), (frames.COMMAND, 0, b"\x00body"))
        self.assertEqual(
            meta,
            {
                "id": "g-1",
                "queue": "q",
                "content_type": 'text/"x"',
                "attempt": 1,
                "remaining_ms": 2500,
                "headers": {},
            },
        )

    def test_remaining(self) -> None:
        """`remaining_ms` is the lesser of the queue's timeout and what the caller has left."""
        for timeout, left, wanted in (
            (60, 5.0, 5000),
            (3, 5.0, 3000),
            (0, 5.0, 5000),
            (0, float("inf"), None),
        ):
            self.build({}, timeout=timeout)
            self.give(timeout=left)
            self.assertEqual(self.sent()[-1][2]["remaining_ms"], wanted)

    def test_remaining_absurd(self) -> None:
        """A caller's timeout of any size is told without failing."""
        self.build({}, timeout=0)
        for timeout in (1e15, 1e300, 1.7e308):
            self.give(timeout=timeout)

    def test_headers_do_not_stick(self) -> None:
        """Headers and deadlines of one command never appear with the next of its type."""
        self.ready()
        for headers, timeout in (
            ({"traceparent": "t"}, 1.0),
            (None, float("inf")),
            ({"jobgate-key": "k"}, float("inf")),
        ):
            made = command(now=50.0, timeout=timeout)
            made.headers = headers
            self.conversation.send(made)
            meta = self.sent()[-1][2]
            self.assertEqual(meta["headers"], headers or {})
            self.assertEqual(meta["remaining_ms"], 1000 if timeout == 1.0 else 60000)

    def test_many_content_types(self) -> None:
        """However many content types callers invent, each command has its own."""
        self.build({}, in_flight=256)
        for number in range(600):
            self.give(content_type=f"x/{number}")
            self.assertEqual(self.sent()[-1][2]["content_type"], f"x/{number}")
            if number % 100 == 0:
                self.carrier.sent = b""

    def test_reply(self) -> None:
        """REPLY reaches the taker with body, type and status; octets and 200 without a meta."""
        self.ready()
        made = self.give()
        self.say(frames.REPLY, 0, {"content_type": "image/png", "status": 201}, b"png")
        [(got, reply, now)] = self.taker.of("replied")
        self.assertIs(got, made)
        self.assertEqual(
            (bytes(reply.body), reply.content_type, reply.status), (b"png", "image/png", 201)
        )
        self.assertEqual(now, 50.0)
        self.give()
        self.say(frames.REPLY, 1)
        self.give()
        self.say(frames.REPLY, 2, {"content_type": ""})
        for _, reply, _ in self.taker.of("replied")[1:]:
            self.assertEqual((reply.content_type, reply.status), ("application/octet-stream", 200))
        self.assertEqual((self.conversation.done, len(self.conversation.in_hand)), (3, 0))

    def test_replies_out_of_order(self) -> None:
        """A worker that runs several at once may answer in any order; ids decide."""
        self.ready()
        made = [self.give() for _ in range(3)]
        for number in (2, 0, 1):
            self.say(frames.REPLY, number, None, b"%d" % number)
        self.assertEqual([c for c, _, _ in self.taker.of("replied")], [made[2], made[0], made[1]])

    def test_ordered_worker_answers_out_of_order(self) -> None:
        """
        A worker that promised order and breaks it is never measured from a start it did not have.
        """
        self.ready(ordered=True)
        self.give()
        second = self.give()
        self.say(frames.REPLY, 1)
        began = [c for c, _ in self.taker.of("began")]
        replied = [c for c, _, _ in self.taker.of("replied")]
        self.assertTrue(self.carrier.of("broken") or second not in replied or second in began)

    def test_unknown_ids(self) -> None:
        """A reply to nothing in flight, a second reply, or a late one is counted and dropped."""
        self.ready()
        self.say(frames.REPLY, 99, None, b"who?")
        self.give()
        self.say(frames.REPLY, 0)
        self.say(frames.REPLY, 0)
        self.say(frames.FAIL, 0)
        self.say(frames.DECLINE, 0)
        self.say(frames.CHUNK, 0)
        self.assertEqual(len(self.taker.of("replied")), 1)
        self.assertEqual(len(self.taker.of("stray")), 5)
        self.assertEqual(self.carrier.of("broken"), [])

    def test_status_bounds(self) -> None:
        """A status of 200 to 599 passes; any other ends the worker and nobody is answered."""
        for status, good in (
            (200, True),
            (599, True),
            (199, False),
            (600, False),
            (-1, False),
            (10**30, False),
            (True, False),
            ("200", False),
            (200.5, False),
        ):
            for kind in (frames.REPLY, frames.FAIL, frames.CHUNK):
                self.ready()
                self.give()
                self.say(kind, 0, {"status": status})
                self.assertEqual(bool(self.carrier.of("broken")), not good, (status, kind))
                answered = (
                    self.taker.of("replied") + self.taker.of("failed") + self.taker.of("streaming")
                )
                self.assertEqual(bool(answered), good)

    def test_content_type_with_control_characters(self) -> None:
        """A content type that could write header lines of its own ends the worker."""
        for kind in ("a\r\nSet-Cookie: x", "a\nb", "a\x00", "a\x7f", "a\tb", "é", "\u2028"):
            self.ready()
            self.give()
            self.say(frames.REPLY, 0, {"content_type": kind})
            self.broken()
            self.assertEqual(self.taker.of("replied"), [])

    @given(
        st.sampled_from([frames.REPLY, frames.FAIL, frames.CHUNK, frames.PROGRESS, frames.HELLO]),
        st.binary(max_size=30)
        | st.sampled_from(
            [b'{"content_type":"\xff"}', b'{"title":"\xff"}', b'{"x":"\xff"}', b'{"note":"\xff"}']
        ),
    )
    def test_any_meta(self, kind: int, meta: bytes) -> None:
        """
        Whatever bytes a meta is made of: understood, or the worker is ended; never an exception.
        """
        self.ready()
        self.give()
        self.say(kind, 0, meta)
        if self.carrier.of("broken"):
            self.assertEqual(self.taker.of("replied"), [])

    def test_meta_that_is_not_utf8(self) -> None:
        """A meta that is JSON but not UTF-8 ends the worker."""
        self.ready()
        self.give()
        self.say(frames.REPLY, 0, b'{"content_type":"\xff"}')
        self.broken()

    def test_deep_meta(self) -> None:
        """A meta nested deeper than can be read ends the worker."""
        self.ready()
        self.give()
        self.say(frames.REPLY, 0, b'{"x":' + b"[" * 200_000)
        self.broken()

    def test_fail(self) -> None:
        """FAIL has title, detail and status; 500 and some title without."""
        self.ready()
        self.give()
        self.give()
        self.say(
            frames.FAIL, 0, {"title": "No", "detail": "too big", "status": 413, "retry": False}
        )
        self.say(frames.FAIL, 1)
        (_, first, _), (_, second, _) = self.taker.of("failed")
        self.assertEqual(
            (first.title, first.detail, first.status, first.executed), ("No", "too big", 413, "yes")
        )
        self.assertEqual((second.status, bool(second.title)), (500, True))
        self.assertEqual((first.again, second.again), (False, True))

    def test_decline(self) -> None:
        """DECLINE frees the place and is told."""
        self.ready()
        made = self.give()
        self.say(frames.DECLINE, 0)
        self.assertEqual(self.taker.of("declined"), [(made,)])
        self.assertEqual((len(self.conversation.in_hand), self.conversation.done), (0, 0))

    def test_decline_after_a_chunk(self) -> None:
        """Who has begun to answer cannot decline: the caller has a part of the reply already."""
        self.ready()
        self.give()
        self.say(frames.CHUNK, 0, None, b"part")
        self.say(frames.DECLINE, 0)
        self.assertEqual(self.taker.of("declined"), [])
        self.broken()

    def test_wrong_types(self) -> None:
        """What only the gate sends is a breach when a worker sends it."""
        for kind in (frames.WELCOME, frames.COMMAND, frames.CANCEL, frames.BATCH):
            self.ready()
            self.say(kind)
            self.assertIn(f"type {kind}", self.broken())

    def test_leaving(self) -> None:
        """DRAIN from a worker says that it is about to go; what it has in hand it still answers."""
        self.ready()
        made = self.give()
        self.say(frames.DRAIN)
        self.assertEqual(self.carrier.names.count("leaving"), 1)
        self.say(frames.REPLY, 0)
        self.assertIs(self.taker.of("replied")[0][0], made)

    def test_nothing_after_a_breach(self) -> None:
        """What follows a breach is ignored, in the same read too."""
        self.ready()
        self.give()
        self.conversation.receive(encode(frames.CANCEL) + encode(frames.REPLY, 0))
        self.say(frames.REPLY, 0)
        self.broken()
        self.assertEqual(self.taker.of("replied"), [])

    def test_frames_before_a_breach_count(self) -> None:
        """A reply that came whole before garbage in the same read is a reply."""
        self.ready()
        self.give()
        self.conversation.receive(encode(frames.REPLY, 0) + b"garbage")
        self.assertEqual(len(self.taker.of("replied")), 1)
        self.broken()


class GraphTests(FramesCase):
    """What jobs of graphs are given besides their body, and what they may answer."""

    def given(self, *inputs: Input, body: bytes = b"own") -> Command:
        made = command(body, now=self.clock.seconds())
        made.state, made.attempt, made.graph, made.inputs = RUNNING, 1, "g", inputs
        self.assertTrue(self.conversation.send(made))
        return made

    def test_inputs(self) -> None:
        """Their bytes follow the body in the order of the meta, and count as offered."""
        self.ready()
        for sizes in ((0, 3, 5), (700_000, 700_000, 1), (2_000_000,)):
            self.carrier.sent = b""
            bodies = [bytes([65 + n]) * size for n, size in enumerate(sizes)]
            made = self.given(
                *(Input(f'n"{n}', "image/png", its) for n, its in enumerate(bodies)), body=b"own"
            )
            ((kind, _, meta, body),) = self.sent()
            self.assertEqual(kind, frames.COMMAND)
            self.assertEqual(body, b"own" + b"".join(bodies))
            self.assertEqual(
                meta["inputs"],
                [
                    {"name": f'n"{n}', "content_type": "image/png", "length": size}
                    for n, size in enumerate(sizes)
                ],
            )
            self.assertEqual((meta["id"], meta["queue"], meta["attempt"]), ("c", "q", 1))
            self.assertEqual(made.offered, len(self.carrier.sent))

    def test_no_inputs(self) -> None:
        """A command without any has no such member: plain commands pay nothing for graphs."""
        self.ready()
        self.given()
        self.assertNotIn("inputs", self.sent()[-1][2])

    def test_large_inputs_are_not_copied(self) -> None:
        """Each is written from where it is."""
        self.ready()
        written: list[bytes] = []
        self.carrier.write = lambda head, body, idle: written.extend((head, body))  # type: ignore[assignment, misc]
        large = bytes(900_000)
        self.given(Input("a", "x/y", large), Input("b", "x/y", large))
        self.assertEqual([piece is large for piece in written if piece].count(True), 2)

    def test_inputs_over_the_limit(self) -> None:
        """They cannot be handed over, and nothing is written; the worker keeps its place."""
        self.ready()
        large = bytes(frames.MAX_FRAME // 2)
        before = self.carrier.sent
        made = self.given(Input("a", "x/y", large), Input("b", "x/y", large))
        ((told, error),) = self.taker.of("unfit")
        self.assertIs(told, made)
        self.assertIsInstance(error, Unprocessable)
        self.assertIn(str(frames.MAX_FRAME), error.detail)
        self.assertEqual((self.carrier.sent, self.conversation.in_hand), (before, {}))

    def test_growth(self) -> None:
        """The jobs of a REPLY reach the taker as they were written; nothing is remembered."""
        for jobs in (b'{"a": {"queue":"q"}}', b'{"b":1}', b"[1]", b'"x"'):
            self.ready()
            for number in range(2):
                self.given()
                self.say(frames.REPLY, number, b'{"jobs":' + jobs + b',"content_type":"a/b"}')
            for _, reply, _ in self.taker.of("replied"):
                self.assertEqual((reply.jobs, reply.content_type), (jobs, "a/b"))
            self.given()
            self.say(frames.REPLY, 2, {"content_type": "a/b"})
            self.assertEqual(self.taker.of("replied")[-1][1].jobs, b"")

    def test_growth_by_nothing(self) -> None:
        """No jobs at all are no growth, for anybody."""
        self.ready()
        for number, meta in enumerate((b'{"jobs":{}}', b'{"jobs":null}', b"{}")):
            self.give()
            self.say(frames.REPLY, number, meta)
            self.assertEqual(self.taker.of("replied")[-1][1].jobs, b"")

    def test_growth_after_chunks(self) -> None:
        """The last word on a streamed reply may bring jobs; they are there when it ends."""
        self.ready()
        made = self.given()
        self.say(frames.CHUNK, 0, None, b"part")
        self.say(frames.REPLY, 0, b'{"jobs":{"a":{}}}')
        assert made.stream is not None
        self.assertEqual(made.stream.jobs, b'{"a":{}}')

    def test_growth_in_a_chunk(self) -> None:
        """A CHUNK brings none: they would be lost."""
        self.ready()
        self.given()
        self.say(frames.CHUNK, 0, b'{"jobs":{"a":{}}}', b"part")
        self.assertIn("CHUNK", self.broken())

    def test_growth_outside_of_graphs(self) -> None:
        """There is nothing that could grow: the worker has broken the protocol, blamed for it."""
        self.ready()
        self.give()
        self.say(frames.REPLY, 0, b'{"jobs":{"a":{}}}')
        self.assertIn("no graph", self.broken())
        self.assertEqual(self.taker.of("replied"), [])

    def test_growth_of_what_is_not_in_flight(self) -> None:
        """A stray reply is dropped, whatever it brings."""
        self.ready()
        self.say(frames.REPLY, 7, b'{"jobs":{"a":{}}}')
        self.assertEqual(self.taker.names, ["stray"])


class StreamTests(FramesCase):
    """CHUNK, PROGRESS, CANCEL, PING, DRAIN."""

    def setUp(self) -> None:
        super().setUp()
        self.ready()
        self.made = self.give()

    def test_chunks(self) -> None:
        """The first CHUNK opens the stream with its type and status; REPLY is the last part."""
        self.say(frames.CHUNK, 0, {"content_type": "text/csv", "status": 206}, b"a")
        [(made, reply)] = self.taker.of("streaming")
        self.assertIs(made, self.made)
        self.assertEqual((reply.content_type, reply.status, reply.body), ("text/csv", 206, b""))
        got: list[bytes] = []
        reply.stream.read(lambda data: got.append(bytes(data)), lambda _: None)
        self.say(frames.CHUNK, 0, {"content_type": "ignored"}, b"b")
        self.say(frames.REPLY, 0, None, b"c")
        self.assertEqual(got, [b"a", b"b", b"c"])
        self.assertEqual(len(self.taker.of("replied")), 1)
        self.assertEqual(self.taker.of("replied")[0][1].body, b"")
        self.assertEqual(len(self.taker.of("streaming")), 1)

    def test_chunks_for_nobody(self) -> None:
        """Chunks of a command that is settled are dropped."""
        self.made.state = DONE
        self.say(frames.CHUNK, 0, None, b"a")
        self.assertEqual(self.taker.of("streaming"), [])
        self.say(frames.REPLY, 0)
        self.assertEqual(len(self.conversation.in_hand), 0)

    def test_progress(self) -> None:
        """PROGRESS is taken, with any numbers; on an unknown id it is a stray."""
        self.say(frames.PROGRESS, 0, {"done": 1, "total": 2.5, "note": "half"})
        self.say(frames.PROGRESS, 0, {"done": None, "total": None, "note": None})
        self.say(frames.PROGRESS, 7, {"done": 1})
        self.assertEqual(len(self.taker.of("stray")), 1)
        self.assertEqual(self.carrier.of("broken"), [])

    def test_progress_is_told_as_one_kind_of_number(self) -> None:
        """Nothing done yet is 0.0, as one is 1.0, whether the worker counts or not."""
        told: list[float] = []
        self.made.on_progress = lambda _, done, *__: told.append(done)
        for meta in ({"done": 0}, {}, {"done": 1}):
            self.say(frames.PROGRESS, 0, meta)
        self.assertEqual(list(map(repr, told)), ["0.0", "0.0", "1.0"])

    def test_cancel(self) -> None:
        """CANCEL carries the command's id; the place is free only with the worker's last word."""
        self.conversation.cancel(self.made)
        self.assertEqual(self.sent()[-1], (frames.CANCEL, 0, None, b""))
        self.assertEqual(len(self.conversation.in_hand), 1)
        self.conversation.cancel(command())
        self.assertEqual(len(self.sent()), 3)
        self.say(frames.DECLINE, 0)
        self.assertEqual(len(self.conversation.in_hand), 0)

    def test_ping(self) -> None:
        """PING of either side is answered with PONG."""
        self.say(frames.PING, 5)
        self.assertEqual(self.sent()[-1], (frames.PONG, 5, None, b""))
        self.assertTrue(self.conversation.answered_ping)
        self.assertTrue(self.conversation.ping())
        self.assertEqual(self.sent()[-1][0], frames.PING)
        self.assertFalse(self.conversation.answered_ping)
        self.say(frames.PONG)
        self.assertTrue(self.conversation.answered_ping)

    def test_drain(self) -> None:
        """DRAIN is sent to a worker that has said HELLO, and to no other."""
        self.conversation.drain()
        self.assertEqual(self.sent()[-1][0], frames.DRAIN)
        self.build()
        self.conversation.drain()
        self.assertEqual(self.carrier.sent, b"")

    def test_ended(self) -> None:
        """An output that ends inside a frame says so."""
        self.assertIsNone(self.conversation.ended())
        self.conversation.receive(encode(frames.REPLY, 0, b"", b"x" * 100)[:-1])
        self.assertIn("inside a frame", str(self.conversation.ended()))

    def test_long_reply_in_place(self) -> None:
        """A long reply that is read into its own buffer is the same reply."""
        body = bytes(range(256)) * 1000
        data = memoryview(encode(frames.REPLY, 0, b'{"status":202}', body))
        self.conversation.receive(bytes(data[:100]))
        data = data[100:]
        while data:
            view = self.conversation.wanted()
            assert view is not None
            count = min(len(view), 70_000)
            with view:
                view[:count] = data[:count]
            self.conversation.filled(count)
            data = data[count:]
        [(_, reply, _)] = self.taker.of("replied")
        self.assertEqual((bytes(reply.body), reply.status), (body, 202))


class BlameTests(FramesCase):
    """Who had begun when a worker was lost."""

    def taken(self) -> list[tuple[Command, bool]]:
        return self.conversation.take_all()

    def test_unordered(self) -> None:
        """All that were handed over whole may have begun, oldest first."""
        self.ready()
        made = [self.give() for _ in range(3)]
        self.assertEqual(self.taken(), [(one, True) for one in made])
        self.assertEqual((len(self.conversation.in_hand), self.conversation.is_ready), (0, False))

    def test_ordered(self) -> None:
        """Of an ordered worker's commands only the oldest has begun."""
        self.ready(ordered=True)
        made = [self.give() for _ in range(3)]
        self.say(frames.REPLY, 0)
        self.assertEqual(self.taken(), [(made[1], True), (made[2], False)])

    def test_not_written(self) -> None:
        """What the worker cannot have seen whole has not begun, ordered or not."""
        for ordered in (False, True):
            self.ready(ordered=ordered)
            first = self.give(b"x" * 100)
            seen = len(self.carrier.sent)
            second = self.give(b"y" * 100)
            self.carrier.seen = seen + 50
            self.assertEqual(self.taken(), [(first, True), (second, False)])
            self.ready(ordered=ordered)
            self.carrier.seen = len(self.carrier.sent)
            alone = self.give()
            self.assertEqual(self.taken(), [(alone, False)])

    def test_began_of_an_ordered_worker(self) -> None:
        """
        An ordered worker's next command begins with the reply before it, not when it is handed
        over.
        """
        self.ready(ordered=True)
        first, second = self.give(), self.give()
        self.assertEqual(self.taker.of("began"), [(first, 50.0)])
        self.clock.advance(5)
        self.say(frames.REPLY, 0)
        self.assertEqual(self.taker.of("began"), [(first, 50.0), (second, 55.0)])

    def test_began_of_another(self) -> None:
        """Any other worker's commands begin when they are handed over."""
        self.ready()
        made = [self.give() for _ in range(2)]
        self.assertEqual([c for c, _ in self.taker.of("began")], made)

    def test_a_cancelled_one_is_still_the_oldest(self) -> None:
        """A command whose caller left still runs: the one behind it has not begun."""
        self.ready(ordered=True)
        first, second = self.give(), self.give()
        first.state = DONE
        self.assertEqual(self.taken(), [(first, True), (second, False)])


class LinesTests(Case):
    """The `lines` protocol."""

    def setUp(self) -> None:
        super().setUp()
        self.build()

    def build(self, *, started: bool = True, **config: Any) -> None:
        self.carrier = FakeCarrier()
        self.prepare(
            LinesConversation(
                WorkerConfig(protocol="lines", **config), self.carrier, self.clock.seconds
            )  # type: ignore[arg-type]
        )
        if started:
            self.conversation.started()

    def test_ready_once_started(self) -> None:
        """Without a banner to wait for a program is ready once it runs."""
        self.assertEqual(self.carrier.names, ["ready"])
        self.assertEqual((self.conversation.capacity, self.conversation.ordered), (1, True))

    def test_one_line(self) -> None:
        """A line goes out, a line comes back, with the configured type."""
        made = self.give(b"2+2")
        self.assertEqual(self.carrier.sent, b"2+2\n")
        self.conversation.receive(b"4")
        self.assertEqual(self.taker.of("replied"), [])
        self.conversation.receive(b"\n")
        [(got, reply, _)] = self.taker.of("replied")
        self.assertIs(got, made)
        self.assertEqual(
            (reply.body, reply.content_type, reply.status), (b"4", "text/plain; charset=utf-8", 200)
        )

    def test_let_in_for_another_protocol(self) -> None:
        """What is no line is refused even here, and JSON becomes one: nothing else is written."""
        made = self.give(b"one\ntwo")
        ((told, error),) = self.taker.of("unfit")
        self.assertEqual((told, self.carrier.sent), (made, b""))
        self.assertIsInstance(error, BadRequest)

    def test_inputs(self) -> None:
        """A program that knows nothing of us cannot be given any."""
        made = command(b"1", now=self.clock.seconds())
        made.inputs = (Input("a", "text/plain", b"x"),)
        self.assertTrue(self.conversation.send(made))
        ((told, error),) = self.taker.of("unfit")
        self.assertEqual((told, self.carrier.sent), (made, b""))
        self.assertIsInstance(error, Unprocessable)
        self.assertEqual(self.conversation.in_hand, {})
        self.give(b'{\n"a": 1}')
        self.assertEqual(self.carrier.sent, b'{"a":1}\n')

    def test_exiftool(self) -> None:
        """`send` with several lines and `until`: the contract's exiftool."""
        self.build(send="-j\n{line}\n-execute\n", until="{ready}", reply_type="application/json")
        self.give(b"a.jpg")
        self.assertEqual(self.carrier.sent, b"-j\na.jpg\n-execute\n")
        self.conversation.receive(b'[{\n  "a": 1\n}]\n{rea')
        self.conversation.receive(b"dy}\n")
        self.assertEqual(self.taker.of("replied")[0][1].body, b'[{\n  "a": 1\n}]')

    def test_chess(self) -> None:
        """`until_regex` and `boot_until`: a chess engine."""
        self.build(until_regex="^bestmove", boot_until="uciok")
        self.assertEqual(self.carrier.events, [])
        self.conversation.receive(b"Stockfish\nuci")
        self.conversation.receive(b"ok\n")
        self.assertEqual(self.carrier.names, ["aside", "ready"])
        self.assertIn(b"Stockfish", self.carrier.of("aside")[0][0])
        self.give(b"go")
        self.conversation.receive(b"info 1\nbestmove e2e4\n")
        self.assertEqual(self.taker.of("replied")[0][1].body, b"info 1\nbestmove e2e4")

    def test_answers_while_it_reads(self) -> None:
        """A filter begins to answer before it has the whole line; what ends too early is none."""
        self.give(b"x" * 100)
        self.carrier.seen = 50
        self.conversation.receive(b"x" * 49)
        self.carrier.seen = None
        self.conversation.receive(b"x" * 51 + b"\n")
        self.assertEqual(self.taker.of("replied")[0][1].body, b"x" * 100)
        self.carrier.of("soon")[0][0]()
        self.give(b"y" * 100)
        self.carrier.seen = 101
        self.conversation.receive(b"y")
        self.broken()
        self.build()
        self.give(b"z" * 100)
        self.carrier.seen = 50
        self.conversation.receive(b"z\n")
        self.broken()
        self.assertEqual(len(self.taker.of("replied")), 0)

    def test_left_over_after_a_reply(self) -> None:
        """More than the reply: the caller gets its reply, the worker ends, nobody gets the rest."""
        self.give(b"x")
        self.conversation.receive(b"mine\nstray")
        self.assertEqual(self.taker.of("replied")[0][1].body, b"mine")
        self.broken()
        self.assertFalse(self.conversation.is_ready)

    def test_left_over_of_the_command_before(self) -> None:
        """Of two lines at once the first may be late, if the program had not read on at once."""
        self.give(b"x")
        self.conversation.receive(b"mine\n")
        self.clock.advance(0.1)
        self.carrier.of("soon")[0][0]()
        self.give(b"y").began = self.clock.seconds()
        self.clock.advance(0.3)
        self.conversation.receive(b"late\nyours\n")
        self.broken()
        self.assertEqual(len(self.taker.of("replied")), 1)

    def test_left_over_while_idle(self) -> None:
        """Output while nothing runs ends the worker."""
        self.conversation.receive(b"surprise\n")
        self.assertIn("surprise", self.broken())

    def test_left_over_found_by_looking(self) -> None:
        """What came while nothing ran is found before the next command is written."""
        self.carrier.to_look = b"late\n"
        made = command()
        self.assertFalse(self.conversation.send(made))
        self.broken()
        self.assertEqual((self.carrier.sent, len(self.conversation.in_hand)), (b"", 0))

    def test_left_over_after_the_banner(self) -> None:
        """More than the banner ends the worker before it is ready."""
        self.build(boot_until="ready")
        self.conversation.receive(b"ready\nand more\n")
        self.broken()
        self.assertNotIn("ready", self.carrier.names)

    def test_nothing_while_being_told(self) -> None:
        """A reply with leftovers is passed on when the worker can take no more commands already."""
        rooms: list[bool] = []
        self.taker = Recorder()

        class Taker(Recorder):
            def replied(inner, *_: object) -> None:  # noqa: N805
                rooms.append(self.conversation.is_ready)

        self.conversation.taker = Taker()  # type: ignore[assignment]
        self.give(b"x")
        self.conversation.receive(b"mine\nstray")
        self.assertEqual(rooms, [False])

    def test_ended_inside_a_reply(self) -> None:
        """An output that ends in the middle of a reply says so."""
        self.give(b"x")
        self.conversation.receive(b"half")
        self.assertIn("inside a reply", str(self.conversation.ended()))

    def test_lost(self) -> None:
        """Its one command had begun if its line was written whole."""
        made = self.give(b"x")
        self.assertEqual(self.conversation.take_all(), [(made, True)])
        self.build()
        self.carrier.seen = 0
        made = self.give(b"x")
        self.assertEqual(self.conversation.take_all(), [(made, False)])
        self.conversation.receive(b"too late\n")
        self.assertEqual(self.taker.of("replied"), [])

    def test_no_ping_no_drain(self) -> None:
        """A program that knows nothing of us is told nothing."""
        made = self.give(b"x")
        self.assertFalse(self.conversation.ping())
        self.assertTrue(self.conversation.answered_ping)
        self.conversation.drain()
        self.conversation.cancel(made)
        self.assertEqual(self.carrier.sent, b"x\n")
