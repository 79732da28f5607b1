"""
What is said between the gate and one worker when commands go in batches.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hypothesis import given
from hypothesis import strategies as st

from jobgate.command import RUNNING, Batch, Command, Input
from jobgate.config import BatchConfig
from jobgate.errors import Unprocessable, WorkerProtocolError
from jobgate.pool.lines import LinesConversation
from jobgate.testing import Recorder
from jobgate.wire import frames
from tests.unit.fakes import command
from tests.unit.test_conversation import FramesCase, LinesTests

if TYPE_CHECKING:
    from jobgate.pool.conversation import Conversation
    from tests.unit.test_conversation import Case

    Base = Case
else:
    Base = object


class MarkingTaker(Recorder):
    """Notes when a command begins, as a Road does."""

    def began(self, made: Command, now: float) -> None:
        made.began = now
        self.events.append(("began", made, now))


class Together(Base):
    """What it takes to hand over batches."""

    def prepare(self, conversation: Conversation) -> None:
        super().prepare(conversation)
        self.taker = conversation.taker = MarkingTaker()  # type: ignore[assignment]

    def give_batch(self, *bodies: bytes, suspect: bool = False) -> Batch:
        batch = Batch([], suspect=suspect)
        for body in bodies:
            made = command(body, now=self.clock.seconds())
            made.state, made.attempt, made.batch = RUNNING, 1, batch
            batch.members.append(made)
        batch.left = len(batch.members)
        self.assertTrue(self.conversation.send_batch(batch))
        return batch

    @property
    def room(self) -> int:
        talk = self.conversation
        return talk.capacity + talk.company - len(talk.in_hand)

    def told(self, name: str) -> list[Command]:
        return [event[0] for event in self.taker.of(name)]


class FramesTests(Together, FramesCase):
    """The `frames` protocol."""

    def test_welcome(self) -> None:
        """The worker is told how many it may be given."""
        self.build({"protocol": 1}, batch=BatchConfig(size=32))
        [(_, _, welcome, _)] = self.sent()
        self.assertEqual(welcome["batch"], 32)

    def test_as_it_goes(self) -> None:
        """BATCH says how many COMMANDs follow; all of it is written at once."""
        self.ready(ordered=True)
        self.carrier.sent = b""
        self.give_batch(b"a", b"b", b"c")
        kinds = [(kind, number, body) for kind, number, _, body in self.sent()]
        self.assertEqual(
            kinds,
            [
                (frames.BATCH, 0, b""),
                (frames.COMMAND, 0, b"a"),
                (frames.COMMAND, 1, b"b"),
                (frames.COMMAND, 2, b"c"),
            ],
        )
        self.assertEqual(self.sent()[0][2], {"count": 3})

    @given(st.lists(st.sampled_from([0, 10, 65535, 65536, 200_000]), min_size=1, max_size=5))
    def test_large_bodies(self, sizes: list[int]) -> None:
        """However long they are, they arrive whole, and it is known how far each reaches."""
        self.ready(ordered=True)
        self.carrier.sent = b""
        batch = self.give_batch(*(bytes([65 + n]) * size for n, size in enumerate(sizes)))
        bodies = [body for kind, _, _, body in self.sent() if kind == frames.COMMAND]
        self.assertEqual(bodies, [made.body for made in batch.members])
        for made, after in zip(batch.members, [*batch.members[1:], None], strict=True):
            self.assertTrue(self.carrier.sent[: made.offered].endswith(made.body))
            end = len(self.carrier.sent) if after is None else after.offered
            self.assertLessEqual(made.offered, end)
        self.assertEqual(batch.members[-1].offered, len(self.carrier.sent))

    def test_inputs(self) -> None:
        """They follow the body of whose they are; who is too long for a frame leaves the batch."""
        self.ready(ordered=True)
        self.carrier.sent = b""
        members = [command(body, now=50.0) for body in (b"a", b"b", b"c")]
        members[1].inputs = (Input("x", "text/plain", b"in" * 50_000),)
        members[2].inputs = (Input("y", "text/plain", bytes(frames.MAX_FRAME)),)
        batch = Batch(members)
        self.assertTrue(self.conversation.send_batch(batch))
        sent = self.sent()
        self.assertEqual(sent[0][2], {"count": 2})
        self.assertEqual([body for _, _, _, body in sent[1:]], [b"a", b"b" + b"in" * 50_000])
        self.assertEqual(sent[2][2]["inputs"][0]["name"], "x")
        self.assertEqual((len(batch.members), batch.left), (2, 2))
        self.assertIsInstance(self.taker.of("unfit")[0][1], Unprocessable)

    def test_places(self) -> None:
        """A batch takes one place until its last member is answered."""
        self.ready(2, ordered=True)
        self.assertEqual(self.room, 2)
        self.give_batch(b"a", b"b", b"c")
        self.assertEqual(self.room, 1)
        self.give_batch(b"d", b"e")
        self.assertEqual(self.room, 0)
        for number in (2, 0):
            self.say(frames.REPLY, number)
            self.assertEqual(self.room, 0)
        self.say(frames.FAIL, 1, {"title": "no"})
        self.assertEqual(self.room, 1)
        self.say(frames.DECLINE, 3)
        self.say(frames.REPLY, 4)
        self.assertEqual((self.room, self.conversation.in_hand), (2, {}))
        self.assertEqual(self.carrier.of("broken"), [])

    def test_any_order_within(self) -> None:
        """The order is that of batches: all of the oldest have begun, none of the next."""
        self.ready(2, ordered=True)
        first = self.give_batch(b"a", b"b")
        second = self.give_batch(b"c", b"d")
        self.assertEqual(self.told("began"), first.members)
        self.say(frames.REPLY, 1)
        self.assertEqual(self.told("replied"), [first.members[1]])
        self.assertEqual(self.told("began"), first.members)
        self.say(frames.REPLY, 0)
        self.assertEqual(self.told("began"), first.members + second.members)

    def test_without_order_all_have_begun(self) -> None:
        """Whoever promises nothing may run them all at once."""
        self.ready(2)
        first, second = self.give_batch(b"a", b"b"), self.give_batch(b"c")
        self.assertEqual(self.told("began"), first.members + second.members)

    def test_blame(self) -> None:
        """With an ordered worker the oldest batch has begun; and none that it cannot have read."""
        self.ready(2, ordered=True)
        first, second = self.give_batch(b"a", b"b", b"c"), self.give_batch(b"d")
        self.carrier.seen = first.members[1].offered
        self.assertEqual(
            self.conversation.take_all(),
            [
                (first.members[0], True),
                (first.members[1], True),
                (first.members[2], False),
                (second.members[0], False),
            ],
        )

    def test_left_out(self) -> None:
        """Who was left out of a batch is told when the next is answered; nobody else is harmed."""
        self.ready(2, ordered=True)
        first, second = self.give_batch(b"a", b"b", b"c"), self.give_batch(b"d", b"e")
        self.say(frames.REPLY, 1)
        self.say(frames.REPLY, 3)
        self.assertEqual(self.told("failed"), [first.members[0], first.members[2]])
        self.assertIsInstance(self.taker.of("failed")[0][1], WorkerProtocolError)
        self.assertEqual(self.told("began")[3:], second.members)
        self.assertEqual(self.told("replied"), [first.members[1], second.members[0]])
        self.assertEqual(self.room, 1)
        self.say(frames.REPLY, 4)
        self.assertEqual((self.room, self.carrier.of("broken")), (2, []))

    def test_left_out_beside_single_commands(self) -> None:
        """Where single commands are concerned the order is the order."""
        self.ready(2, ordered=True)
        self.give(b"a")
        self.give_batch(b"b", b"c")
        self.say(frames.REPLY, 1)
        self.assertIn("out of order", self.broken())

    def test_suspects(self) -> None:
        """A worker that runs several batches at once has no room beside suspects."""
        self.ready(3)
        self.give_batch(b"a", b"b", suspect=True)
        self.assertEqual(self.room, 0)
        self.say(frames.REPLY, 0)
        self.assertEqual(self.room, 0)
        self.say(frames.REPLY, 1)
        self.assertEqual(self.room, 3)
        self.ready(3, ordered=True)
        self.give_batch(b"a", b"b", suspect=True)
        self.assertEqual(self.room, 2)

    def test_an_unknown_id(self) -> None:
        """It is counted, and nothing is taken for it."""
        self.ready(2, ordered=True)
        self.give_batch(b"a", b"b")
        self.say(frames.REPLY, 7)
        self.assertEqual((len(self.taker.of("stray")), self.told("replied")), (1, []))

    @given(st.lists(st.integers(1, 4), min_size=1, max_size=6), st.booleans(), st.data())
    def test_no_place_is_ever_lost(self, sizes: list[int], ordered: bool, data: Any) -> None:
        """Whatever is answered in whatever order, in the end all places are free."""
        self.ready(8, ordered=ordered)
        for size in sizes:
            self.give_batch(*[b"x"] * size, suspect=ordered and data.draw(st.booleans()))
        self.assertEqual(self.room, 8 - len(sizes))
        start = 0
        if ordered:
            order: list[int] = []
            for size in sizes:
                order += data.draw(st.permutations(range(start, start + size)))
                start += size
        else:
            order = data.draw(st.permutations(range(sum(sizes))))
        for number in order:
            self.say(frames.REPLY, number)
        self.assertEqual((self.room, self.conversation.company), (8, 0))
        self.assertEqual(self.conversation.done, sum(sizes))


class BatchedLinesTests(Together, LinesTests):
    """The `lines` protocol: all that holds of single lines, and batches."""

    def test_as_many_out(self) -> None:
        """All lines go at once; a moment after the last answer each gets its own."""
        batch = self.give_batch(b"a", b"b", b"c")
        self.assertEqual(self.carrier.sent, b"a\nb\nc\n")
        self.assertEqual((self.told("began"), self.room), (batch.members, 0))
        self.conversation.receive(b"1\n2")
        self.conversation.receive(b"\n")
        self.assertEqual(self.told("replied"), [])
        self.conversation.receive(b"3\n")
        self.assertEqual(self.told("replied"), [])
        [(apart, _)] = self.carrier.of("soon")
        apart()
        self.assertEqual(
            [(made, reply.body) for made, reply, _ in self.taker.of("replied")],
            list(zip(batch.members, (b"1", b"2", b"3"), strict=True)),
        )
        self.assertFalse(self.conversation.is_ready)
        _, (rest,) = self.carrier.of("soon")
        rest()
        self.assertEqual((self.conversation.is_ready, self.room), (True, 1))

    def test_one_too_many_at_once_but_apart(self) -> None:
        """It comes right behind the others, whether that is seen by itself or by looking."""
        for seen in (False, True):
            self.build()
            self.give_batch(b"a", b"b")
            self.conversation.receive(b"1\n2\n")
            if seen:
                self.conversation.receive(b"3\n")
            else:
                self.carrier.to_look = b"3\n"
            self.carrier.of("soon")[-1][0]()
            self.assertEqual(self.told("replied"), [])
            self.assertIn("belongs to no command", self.broken())

    def test_answers_before_its_end(self) -> None:
        """A program that ends when it has answered has answered."""
        batch = self.give_batch(b"a", b"b")
        self.conversation.receive(b"1\n2\n")
        self.assertIsNone(self.conversation.ended())
        self.assertEqual(self.told("replied"), batch.members)
        for then, *_ in self.carrier.of("soon"):
            then()
        self.assertEqual(len(self.told("replied")), 2)

    def test_one_too_many(self) -> None:
        """Then nobody knows whose is whose."""
        self.give_batch(b"a", b"b")
        self.conversation.receive(b"1\n2\n3\n")
        self.assertEqual(self.told("replied"), [])
        self.assertIn("belongs to no command", self.broken())

    def test_before_it_was_read(self) -> None:
        """What comes before the program has read the line is no answer to it."""
        batch = self.give_batch(b"a", b"b")
        self.carrier.seen = batch.members[0].offered
        self.conversation.receive(b"1\n")
        self.conversation.receive(b"2\n")
        self.assertEqual(self.told("replied"), [])
        self.assertIn("belongs to no command", self.broken())

    def test_unfit_members(self) -> None:
        """Who cannot be written as a line is told so; the others go."""
        batch = self.give_batch(b"a", b"no\nline", b"c")
        self.assertEqual(self.carrier.sent, b"a\nc\n")
        self.assertEqual([made.body for made in self.told("unfit")], [b"no\nline"])
        self.assertEqual((len(batch.members), batch.left), (2, 2))
        self.conversation.receive(b"1\n2\n")
        self.carrier.of("soon")[0][0]()
        self.assertEqual(self.told("replied"), batch.members)
        self.build()
        self.give_batch(b"no\nline")
        self.assertEqual((self.carrier.sent, self.room), (b"", 1))

    def test_unready(self) -> None:
        """A program that has said too much is given nothing."""
        self.carrier.to_look = b"too much\n"
        self.assertFalse(self.conversation.send_batch(Batch([command(b"a")])))
        self.assertIsInstance(self.conversation, LinesConversation)
        self.assertEqual(self.carrier.sent, b"")
