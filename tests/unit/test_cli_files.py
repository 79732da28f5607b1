"""
A file through a queue: as it was, whatever is in it and whatever happens on the way.
"""

from __future__ import annotations

import io
from hashlib import sha256
from random import Random
from typing import TYPE_CHECKING
from unittest.mock import patch

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from jobgate.cli import read, write
from jobgate.cli.exits import CliError
from jobgate.cli.lines import END_TYPE, LINE_TYPE, End, LineTooLong, batches, halves
from jobgate.cli.meter import Meter
from tests.unit.fake_gate import FakeClient, FakeGate, Job, Lost, problem

if TYPE_CHECKING:
    from collections.abc import Callable

    from jobgate.cli.client import Answer

FILES = st.lists(
    st.sampled_from([b"\n", b"a\n", b"\r\n", b"\r", b"\x00", b"x" * 40 + b"\n", b"y" * 25])
).map(b"".join)


def meter() -> Meter:
    return Meter("test", "lines", None, shown=False)


def put(client: FakeClient, data: bytes, *, mark: bool = True) -> End:
    return write.Writer(client, "q", meter()).write(io.BytesIO(data), mark=mark)


def get(client: FakeClient, most: int = 7, retries: int = 3) -> tuple[bytes, End | None]:
    out = io.BytesIO()
    reader = read.Reader(client, "q", out, meter(), most)
    end = reader.read(retries)
    if end is not None:
        reader.compare(end)
    return out.getvalue(), end


class BatchesTests(SynchronousTestCase):
    """Whole lines, and all of them."""

    @settings(max_examples=300)
    @given(FILES, st.integers(1, 30), st.integers(1, 6), st.randoms(use_true_random=False))
    def test_whole_lines(self, data: bytes, size: int, most: int, random: Random) -> None:
        file = io.BytesIO(data)
        found = list(batches(lambda wanted: file.read(random.randint(1, wanted)), size, most))
        self.assertEqual(b"".join(batch.data for batch in found), data)
        for number, batch in enumerate(found, 1):
            ended = batch.data.endswith(b"\n")
            self.assertTrue(ended or number == len(found))
            self.assertEqual(batch.lines, batch.data.count(b"\n") + (not ended))
            self.assertLessEqual(batch.lines, most)
            self.assertTrue(batch.lines == 1 or len(batch.data) <= 2 * size)
            if batch.lines > 1:
                first, second = halves(batch)
                self.assertEqual(first.data + second.data, batch.data)
                self.assertEqual(first.lines + second.lines, batch.lines)
                self.assertIn(first.lines - second.lines, (0, 1))

    def test_too_long(self) -> None:
        for data in (b"ab\n" + b"x" * 50, b"ab\n" + b"x" * 50 + b"\n", b"x" * 50):
            with self.assertRaises(LineTooLong):
                list(batches(io.BytesIO(data).read, 10, 5, 40))
        self.assertEqual(len(list(batches(io.BytesIO(b"x" * 40).read, 10, 5, 40))), 1)


class MarkTests(SynchronousTestCase):
    """The mark comes back as it was, and nothing else is one."""

    def test_round_trip(self) -> None:
        end = End(3, 5, "ab", newline=False)
        self.assertEqual(End.decode(end.encode()), end)
        self.assertIn(b"\n", end.encode())

    def test_no_mark(self) -> None:
        for body in (b"", b"{}", b"[]", b"3", b"no", b'{"lines": "x"}', b"\xff"):
            with self.assertRaises(ValueError):
                End.decode(body)


class CopyTests(SynchronousTestCase):
    """What is written is what is read."""

    @settings(max_examples=150, deadline=None)
    @given(FILES, st.integers(1, 12), st.integers(1, 12))
    def test_copy(self, data: bytes, most: int, size: int) -> None:
        gate = FakeGate()
        with patch.object(write, "_SIZE", size):
            end = put(FakeClient(gate), data)
        lines = data.count(b"\n") + (not data.endswith(b"\n") and data != b"")
        newline = data.endswith(b"\n") or not data
        self.assertEqual(end, End(lines, len(data), sha256(data).hexdigest(), newline))
        self.assertEqual(get(FakeClient(gate), most), (data, end))
        self.assertEqual(len(gate.acked), lines + 1)
        self.assertEqual([*gate.queues["q"], *gate.leases], [])

    def test_the_mark_is_no_line(self) -> None:
        """A line that looks like it, and even has its type, is data."""
        gate = FakeGate()
        fake = End(0, 0, sha256(b"").hexdigest(), newline=True).encode()
        put(FakeClient(gate), fake * 2 + b"last")
        self.assertEqual(
            [job.content_type for job in gate.queues["q"]], [LINE_TYPE] * 3 + [END_TYPE]
        )
        self.assertEqual(get(FakeClient(gate))[0], fake * 2 + b"last")

    def test_two_files(self) -> None:
        """Each read stops exactly at its own mark."""
        gate = FakeGate()
        put(FakeClient(gate), b"one\n")
        put(FakeClient(gate), b"two")
        self.assertEqual(get(FakeClient(gate))[0], b"one\n")
        self.assertEqual(get(FakeClient(gate))[0], b"two")

    def test_without_a_mark(self) -> None:
        """It ends after so many empty polls in a row, and every line ends."""
        gate = FakeGate()
        put(FakeClient(gate), b"a\n\nb", mark=False)
        client = FakeClient(gate)
        asked: list[str] = []
        client = FakeClient(
            gate, lambda verb, when: asked.append(verb) if when == "after" else None
        )
        self.assertEqual(get(client, most=2), (b"a\n\nb\n", None))
        self.assertEqual(asked, ["pull", "leases"] * 2 + ["pull"] * 3)

    def test_bodies_that_are_no_lines(self) -> None:
        """What somebody else has pushed whole comes through whole."""
        gate = FakeGate()
        put(FakeClient(gate), b"a\n", mark=False)
        gate.queues["q"].append(Job("other", b"b\nc\n", "text/plain"))
        gate.queues["q"].append(Job("another", b"d", "text/html"))
        self.assertEqual(get(FakeClient(gate))[0], b"a\nb\nc\n\nd\n")

    def test_what_is_missing_is_told(self) -> None:
        gate = FakeGate()
        put(FakeClient(gate), b"a\nb\n")
        gate.queues["q"].popleft()
        with self.assertRaises(CliError) as told:
            get(FakeClient(gate))
        self.assertEqual(told.exception.status, 1)
        self.assertIn("read 1 lines", str(told.exception))
        self.assertIn("but 2 lines", str(told.exception))

    def test_large_answers_stay_out_of_memory(self) -> None:
        """And are no different for it."""
        gate = FakeGate()
        data = (b"z" * 100_000 + b"\n") * 20
        put(FakeClient(gate), data)
        with patch.object(read, "_SPOOL", 1000):
            self.assertEqual(get(FakeClient(gate))[0], data)


class TroubleTests(SynchronousTestCase):
    """Nothing is lost and nothing is doubled."""

    DATA = b"".join(b"line %d\n" % number for number in range(500))

    def copy(self, trouble: Callable[[FakeGate], Callable[[str, str], Answer | None]]) -> FakeGate:
        """Write and read under that trouble; the copy must be the same."""
        gate = FakeGate()
        with patch.object(write, "_SIZE", 100):
            put(FakeClient(gate, trouble(gate)), self.DATA)
        self.assertEqual(get(FakeClient(gate, trouble(gate)))[0], self.DATA)
        return gate

    def test_lost_before_and_after(self) -> None:
        """Every request and every answer may get lost, again and again."""
        for seed in range(20):
            random = Random(seed)

            def trouble(_: FakeGate, random: Random = random) -> Callable[[str, str], None]:
                def lose(verb: str, when: str) -> None:
                    if random.random() < 0.3:
                        raise Lost(f"{verb} {when}")

                return lose

            self.copy(trouble)

    def test_leases_that_lapse(self) -> None:
        """Before the answer, before the ack and behind it: no line is written twice."""
        for seed in range(20):
            random = Random(seed)

            def trouble(gate: FakeGate, random: Random = random) -> Callable[[str, str], None]:
                def lapse(verb: str, when: str) -> None:
                    if random.random() < 0.1:
                        gate.lapse()
                    if random.random() < 0.1:
                        raise Lost(f"{verb} {when}")

                return lapse

            self.copy(trouble)

    def test_busy(self) -> None:
        """503 and 429 are waited for, as long as they say."""
        waits = iter(
            [problem(503, "store-unavailable", {"retry-after": "7"}), problem(429, "x")] * 3
        )
        client = FakeClient(
            FakeGate(), lambda _, when: next(waits, None) if when == "before" else None
        )
        put(client, b"a\n")
        self.assertEqual([pause for pause, _ in client.rests], [7, 1] * 3)
        self.assertEqual(client.repeated, 6)

    def test_full(self) -> None:
        """Batches become smaller until they fit, and then a reader has to come."""
        gate = FakeGate(most=10)
        out: list[bytes] = []

        def drain(verb: str, when: str) -> None:
            if when == "before" and len(client.rests) > 8:
                client.rests.clear()
                found, _ = get(FakeClient(gate), retries=1)
                out.append(found)

        client = FakeClient(gate, drain)
        put(client, self.DATA, mark=False)
        out.append(get(FakeClient(gate))[0])
        self.assertEqual(b"".join(out), self.DATA)
        self.assertGreater(len(out), 10)

    def test_full_after_a_lost_try(self) -> None:
        """What may be in is not parted: the same lines go under the same key."""
        gate = FakeGate()
        happened: list[str] = []

        def lose(verb: str, when: str) -> Answer | None:
            if when == "after" and not happened:
                happened.append("lost")
                raise Lost("after")
            if when == "before" and happened == ["lost"]:
                happened.append("full")
                return problem(503, "queue-full")
            return None

        put(FakeClient(gate, lose), b"a\nb\nc\n")
        self.assertEqual(happened, ["lost", "full"])
        self.assertEqual(get(FakeClient(gate))[0], b"a\nb\nc\n")

    def test_too_large(self) -> None:
        """A gate with a small max_body gets small batches; a line above it is an error."""
        gate = FakeGate(max_body=200)
        put(FakeClient(gate), self.DATA)
        self.assertEqual(get(FakeClient(gate))[0], self.DATA)
        gate.max_body = 10
        with self.assertRaises(CliError) as told:
            put(FakeClient(gate), b"short\n" + b"x" * 11 + b"\nshort\n")
        self.assertEqual(told.exception.status, 3)
        self.assertIn("after 1 lines: body-too-large", str(told.exception))

    def test_patience(self) -> None:
        """It ends with what it waits for."""

        def lose(verb: str, when: str) -> None:
            raise Lost("nobody there")

        for work in (lambda client: put(client, b"a"), get):
            with self.assertRaises(CliError) as told:
                work(FakeClient(FakeGate(), lose, patience=1e-9))
            self.assertEqual((str(told.exception), told.exception.status), ("nobody there", 5))

    def test_refused(self) -> None:
        """What asking again would not help ends it at once."""
        for verb, work in (("push", lambda client: put(client, b"a")), ("pull", get)):
            client = FakeClient(FakeGate(), lambda *_: problem(403, "forbidden"))
            with self.assertRaises(CliError) as told:
                work(client)
            self.assertEqual(told.exception.status, 3)
            self.assertEqual(
                str(told.exception), "after 0 lines: forbidden: forbidden (executed: no)"
            )
            self.assertEqual(client.rests, [], verb)
