"""
`jobgate.pool`: lifecycle, back-off, whose turn it is in a rollout, and what a worker says aside.
"""

from __future__ import annotations

from random import Random
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from jobgate.pool.backoff import Backoff
from jobgate.pool.lifecycle import TABLE, Event, IllegalEventError, State, after
from jobgate.pool.post import Post
from jobgate.pool.report import Output
from jobgate.pool.rollout import Rollouts

S, E = State, Event


class LifecycleTests(SynchronousTestCase):
    """The table."""

    def test_every_pair(self) -> None:
        """Every state with every event: either what the picture says, or illegal."""
        legal = {
            (S.STARTING, E.READY): S.READY,
            (S.STARTING, E.RETIRE): S.ENDING,
            (S.READY, E.RETIRE): S.DRAINING,
            (S.DRAINING, E.RETIRE): S.DRAINING,
            (S.DRAINING, E.DRAINED): S.ENDING,
            (S.ENDING, E.RETIRE): S.ENDING,
            (S.GONE, E.RETIRE): S.GONE,
            (S.GONE, E.KILL): S.GONE,
        }
        legal |= {(state, E.KILL): S.ENDING for state in S if state is not S.GONE}
        legal |= {(state, E.EXIT): S.GONE for state in S if state is not S.GONE}
        for state in S:
            for event in E:
                if (state, event) in legal:
                    self.assertIs(after(state, event), legal[state, event])
                else:
                    self.assertRaises(IllegalEventError, after, state, event)
        self.assertEqual(TABLE, legal)

    def test_nobody_comes_back(self) -> None:
        """From ENDING the only way is out; GONE is for ever."""
        self.assertEqual(
            {to for (state, _), to in TABLE.items() if state is S.ENDING}, {S.ENDING, S.GONE}
        )
        self.assertEqual({to for (state, _), to in TABLE.items() if state is S.GONE}, {S.GONE})

    def test_the_message_says_both(self) -> None:
        """An illegal event names state and event."""
        error = self.assertRaises(IllegalEventError, after, S.GONE, E.READY)
        self.assertIn("gone", str(error))
        self.assertIn("ready", str(error))


class BackoffTests(SynchronousTestCase):
    """Deaths in, seconds out."""

    def test_five_in_a_row(self) -> None:
        """Four deaths cost nothing; the fifth in a row makes a crash loop and a wait."""
        backoff = Backoff()
        self.assertEqual([backoff.died() for _ in range(4)], [0.0] * 4)
        self.assertFalse(backoff.looping)
        self.assertGreater(backoff.died(), 0)
        self.assertTrue(backoff.looping)

    @given(st.integers(0, 2**32))
    def test_growth(self, seed: int) -> None:
        """Half a second, doubling up to half a minute, with a fifth of jitter either way."""
        backoff = Backoff(Random(seed))
        for _ in range(4):
            backoff.died()
        for number in range(40):
            wanted = min(30.0, 0.5 * 2**number)
            self.assertTrue(0.8 * wanted <= backoff.died() <= 1.2 * wanted)

    def test_days(self) -> None:
        """A worker that has been broken for days overflows nothing."""
        backoff = Backoff()
        for _ in range(5000):
            wait = backoff.died()
        self.assertLessEqual(wait, 36)

    def test_lived(self) -> None:
        """One that lives ends the row."""
        backoff = Backoff()
        for _ in range(9):
            backoff.died()
        backoff.lived()
        self.assertFalse(backoff.looping)
        self.assertEqual(backoff.died(), 0.0)


class Hand:
    """A worker of which only its terms are known."""

    def __init__(self, config: object, generation: int = 0) -> None:
        self.config = config
        self.generation = generation


class RolloutsTests(SynchronousTestCase):
    """Who is stale, and whose turn it is."""

    def setUp(self) -> None:
        """Three posts, each with a worker of the first terms."""
        terms: Any = "old"
        self.rollouts = Rollouts(terms)
        self.posts = [Post(number, f"q-{number + 1}") for number in range(3)]
        for post in self.posts:
            post.worker = self.hand("old")

    def hand(self, terms: object, generation: int = 0) -> Any:
        """A worker that was started so."""
        return Hand(terms, generation)

    def turn(self, *wanted: int) -> int | None:
        """The number of the post whose turn it is."""
        post = self.rollouts.turn(self.posts, wanted or range(3))
        return None if post is None else post.number

    def begin(self, cause: str = "config") -> bool:
        """Begin a rollout for all of them."""
        return self.rollouts.begin(cause, self.posts, range(3))

    def replace(self, number: int) -> None:
        """Somebody of the present terms takes over."""
        rollouts = self.rollouts
        self.posts[number].worker = self.hand(rollouts.terms, rollouts.generation)

    def test_nobody_is_stale(self) -> None:
        """Then nothing is begun, and it is nobody's turn."""
        self.assertEqual((self.begin(), self.turn(), self.rollouts.last), (False, None, None))

    def test_a_canary_then_one_by_one(self) -> None:
        """While the canary is on trial, or somebody is being started, nobody else's turn comes."""
        self.rollouts.generation += 1
        self.assertTrue(self.begin("reload"))
        self.assertEqual((self.turn(), self.rollouts.cause), (0, "reload"))
        self.assertTrue(self.rollouts.wants_canary)
        self.posts[0].next = canary = self.hand("old", 1)
        self.assertEqual(self.turn(), None)
        self.rollouts.put_on_trial(canary)
        self.assertEqual((self.rollouts.trial, self.rollouts.wants_canary), (canary, False))
        self.assertEqual(self.turn(), None)
        self.rollouts.passed()
        self.posts[0].worker, self.posts[0].next = canary, None
        self.assertEqual((self.turn(), self.turn(0, 2)), (1, 2))
        self.replace(1)
        self.replace(2)
        self.assertEqual(self.turn(), None)
        assert self.rollouts.last is not None
        self.assertEqual((self.rollouts.last.state, self.rollouts.last.total), ("done", 3))

    def test_a_failure_is_the_end(self) -> None:
        """Whoever is stale stays so; what fails later changes nothing about the reason."""
        self.rollouts.terms = "new"  # type: ignore[assignment]
        self.begin()
        self.rollouts.failed("q-1: no")
        self.rollouts.failed("q-2: no")
        assert self.rollouts.last is not None
        self.assertEqual((self.rollouts.last.state, self.rollouts.last.why), ("stopped", "q-1: no"))
        self.assertEqual(self.turn(), None)

    def test_a_canary_of_the_terms_that_hold(self) -> None:
        """It is the next rollout's, too; one of others is not, nor one that was sent away."""
        for terms, kept in (("new", True), ("newer", False)):
            self.rollouts.terms = "new"  # type: ignore[assignment]
            self.begin()
            canary = self.hand("new")
            self.rollouts.put_on_trial(canary)
            self.rollouts.terms = terms  # type: ignore[assignment]
            self.begin()
            self.assertEqual(self.rollouts.trial, canary if kept else None)
            if kept:
                self.rollouts.withdrawn()
            self.assertTrue(self.rollouts.wants_canary)


class Log:
    """Keeps what is logged."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.warnings: list[str] = []

    def info(self, text: str, **named: object) -> None:
        self.lines.append(text.format(**named))

    def warn(self, text: str, **named: object) -> None:
        self.warnings.append(text.format(**named))


class OutputTests(SynchronousTestCase):
    """What a worker prints."""

    def setUp(self) -> None:
        self.build()

    def build(self) -> None:
        self.log = Log()
        self.now = 100.0
        self.running = ""
        self.patch(Output, "_log", self.log)
        self.output = Output("w-1", lambda: self.running, lambda: self.now)

    @given(
        st.lists(st.binary(max_size=20).map(lambda line: line.replace(b"\n", b"")), max_size=8),
        st.lists(st.integers(1, 30), min_size=1, max_size=5),
    )
    def test_lines(self, lines: list[bytes], sizes: list[int]) -> None:
        """However output is cut, each line is logged once, with worker and command."""
        self.build()
        self.running = "id-7"
        data = b"".join(line + b"\n" for line in lines)
        place, turn = 0, 0
        while place < len(data):
            size = sizes[turn % len(sizes)]
            self.output.take(data[place : place + size])
            place, turn = place + size, turn + 1
        wanted = [f"w-1 [id-7]: {line.decode('utf-8', 'replace')}" for line in lines]
        self.assertEqual(self.log.lines, wanted)
        self.assertEqual(self.output.text(), data.decode("utf-8", "replace"))

    def test_the_last_line_without_its_end(self) -> None:
        """A line without a newline is logged when nothing more comes, once."""
        self.output.take(b"Segmentation")
        self.assertEqual(self.log.lines, [])
        self.output.end()
        self.output.end()
        self.assertEqual(self.log.lines, ["w-1 [-]: Segmentation"])

    def test_long_lines(self) -> None:
        """A line without end is logged in bounded pieces, not kept."""
        for _ in range(100):
            self.output.take(b"x" * 1000)
        self.assertTrue(self.log.lines)
        self.assertTrue(all(len(line) < 4200 for line in self.log.lines))
        self.assertLess(len(self.output._rest), 5001)

    @given(st.lists(st.integers(0, 90_000), max_size=8))
    def test_the_last_64_kib(self, sizes: list[int]) -> None:
        """The last 64 KiB are kept, whatever pieces they came in, and not much more."""
        self.build()
        data = b""
        for number, size in enumerate(sizes):
            piece = bytes([65 + number]) * size
            data += piece
            self.output.take(piece)
        self.assertEqual(self.output.text(), data[-65536:].decode())
        self.assertLess(sum(map(len, self.output._kept)), 2 * 65536 + 1)

    def test_small_pieces_are_bounded(self) -> None:
        """A million bytes one by one keep no more than 64 KiB."""
        for _ in range(100_000):
            self.output.take(b"x")
        self.assertEqual(len(self.output.text()), 65536)

    def test_rate(self) -> None:
        """At most 200 lines a second are logged; the next second tells how many were not."""
        for number in range(500):
            self.output.take(b"%d\n" % number)
        self.assertEqual(len(self.log.lines), 200)
        self.now += 1
        self.output.take(b"later\n")
        self.assertEqual(self.log.lines[-1], "w-1 [-]: later")
        self.assertEqual(self.log.warnings, ["w-1: 300 more lines were not logged"])
        self.now += 1
        self.output.take(b"last\n")
        self.assertEqual(len(self.log.warnings), 1)

    def test_rate_is_told_at_the_end(self) -> None:
        """If nothing more comes, how many were not logged is still told."""
        for number in range(201):
            self.output.take(b"%d\n" % number)
        self.output.end()
        self.assertEqual(self.log.warnings, ["w-1: 1 more lines were not logged"])
