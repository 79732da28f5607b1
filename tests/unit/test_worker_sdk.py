"""
The parts of the worker SDK that need no process: values in, bytes out, and frames read in pieces.
"""

from __future__ import annotations

import json
import os
import struct
from contextlib import redirect_stderr
from io import StringIO
from time import monotonic

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from jobgate.worker import Command, Decline, Fail, Input, Reply, answers, serve
from jobgate.worker.commands import describe, line
from jobgate.worker.link import Link
from jobgate.worker.patience import Patience
from jobgate.worker.quick_json import dumps

HEADER = struct.Struct(">IBBHII")


def frame(kind: int, number: int, meta: bytes = b"", body: bytes = b"") -> bytes:
    """One frame, put together here and not by the code under test."""
    return HEADER.pack(12 + len(meta) + len(body), 1, kind, 0, number, len(meta)) + meta + body


def command(body: bytes = b"", received: float | None = None, **meta: object) -> Command:
    """A command as the gate would send it; its link is never used."""
    at = monotonic() if received is None else received
    link = Link(0, 1)
    return Command(link, 7, json.dumps(meta).encode() if meta else b"", body, at)


class EncodeTests(SynchronousTestCase):
    """What a handler returns, as the meta and body of a frame."""

    def encoded(self, value: object, kind: str = answers.JSON) -> tuple[object, bytes]:
        meta, body = answers.encode(value, kind)
        return json.loads(meta), bytes(body)

    def test_each_type_has_its_content_type(self) -> None:
        """Bytes are opaque, text is UTF-8, all else is JSON."""
        octets = {"content_type": "application/octet-stream"}
        text = {"content_type": "text/plain; charset=utf-8"}
        data = {"content_type": "application/json"}
        cases: list[tuple[object, object, bytes]] = [
            (b"raw", octets, b"raw"),
            (bytearray(b"raw"), octets, b"raw"),
            (memoryview(b"raw"), octets, b"raw"),
            (memoryview(b"r.a.w.")[::2], octets, b"raw"),
            (memoryview(b"\1\0\2\0").cast("H"), octets, b"\1\0\2\0"),
            (memoryview(b""), octets, b""),
            ("schön", text, "schön".encode()),
            ("", text, b""),
            (None, data, b"null"),
            (True, data, b"true"),
            ({"a": [1, 2.5, "ü"]}, data, '{"a":[1,2.5,"ü"]}'.encode()),
            ((1, 2), data, b"[1,2]"),
        ]
        for value, meta, body in cases:
            self.assertEqual(self.encoded(value), (meta, body), value)

    def test_a_large_buffer_is_not_copied(self) -> None:
        """What is large and flat is written from where it is."""
        large = bytearray(1 << 20)
        self.assertIs(answers.encode(large, answers.JSON)[1], large)
        view = memoryview(large)
        self.assertIs(answers.encode(view, answers.JSON)[1], view)

    def test_reply_says_type_and_status(self) -> None:
        """What a Reply leaves open follows from its body."""
        self.assertEqual(
            self.encoded(Reply(b"png", "image/png")),
            ({"content_type": "image/png"}, b"png"),
        )
        self.assertEqual(
            self.encoded(Reply({"a": 1}, status=201)),
            ({"content_type": "application/json", "status": 201}, b'{"a":1}'),
        )
        self.assertEqual(
            self.encoded(Reply("<p>", "text/html; charset=utf-8", 404)),
            ({"content_type": "text/html; charset=utf-8", "status": 404}, b"<p>"),
        )

    def test_reply_brings_jobs(self) -> None:
        """They go beside the body, whatever that is; none are not mentioned."""
        jobs = {"a/1": {"queue": "q", "body": ["é"]}, "b": {"queue": "q", "needs": ["a/1"]}}
        self.assertEqual(
            self.encoded(Reply(b"x", jobs=jobs)),
            ({"content_type": "application/octet-stream", "jobs": jobs}, b"x"),
        )
        self.assertEqual(
            self.encoded(Reply({"n": 1}, "text/x", 201, jobs)),
            ({"content_type": "text/x", "status": 201, "jobs": jobs}, b'{"n":1}'),
        )
        self.assertEqual(answers.encode(Reply(b"x", jobs={}), answers.JSON)[0], answers.BYTES_META)

    @given(st.text() | st.text(st.sampled_from("a\\u0\x07\x7fé\u2028\U0001f600")))
    def test_json_is_written_as_utf_8(self, text: str) -> None:
        """No character is escaped that need not be, whichever way was the quicker one."""
        value = {"text": text, text: [text, 1.5, None, True]}
        wanted = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
        self.assertEqual(dumps(value), wanted.encode("utf-8", "replace"))

    def test_items_of_a_stream_are_lines_of_json(self) -> None:
        """JSON items one after the other could not be told apart."""
        self.assertEqual(
            self.encoded({"a": 1}, answers.JSON_LINES),
            ({"content_type": "application/x-ndjson"}, b'{"a":1}\n'),
        )

    def test_what_cannot_be_sent_fails_in_words(self) -> None:
        """The caller reads what was wrong with the value."""
        loop: list[object] = []
        loop.append(loop)
        cases = [
            ({1, 2}, "TypeError: Object of type set is not JSON serializable"),
            (float("nan"), "ValueError: Out of range float values are not JSON compliant"),
            (loop, "RecursionError: maximum recursion depth exceeded"),
            ("\ud800", "UnicodeEncodeError: "),
            ({"a": "\ud800"}, "UnicodeEncodeError: "),
            (Reply(b"", jobs={"a": {"queue": "q", "body": {1}}}), "TypeError: "),
            (Reply(b"", jobs={"\ud800": {"queue": "q"}}), "UnicodeEncodeError: "),
        ]
        for value, detail in cases:
            fail = self.assertRaises(Fail, answers.encode, value, answers.JSON)
            self.assertEqual(fail.title, "the worker's handler returned what cannot be sent")
            self.assertIn(detail, str(fail.detail))
            self.assertIs(fail.retry, False)

    def test_a_returned_answer_is_raised(self) -> None:
        """To return Fail or Decline is to raise it."""
        self.assertRaises(Fail, answers.encode, Fail("no"), answers.JSON)
        self.assertRaises(Decline, answers.encode, Decline(), answers.JSON)


class AnswerTests(SynchronousTestCase):
    """Fail and Reply refuse what the gate would end the worker over."""

    def test_status(self) -> None:
        """Only whole numbers that are a status."""
        for status in (199, 600, 0, -1, "404", 404.0):
            self.assertRaises(ValueError, Reply, b"", None, status)
        for status in (200, 302, 399, 600, "404"):
            self.assertRaises(ValueError, Fail, "no", None, status)
        self.assertEqual(Reply(b"", status=599).status, 599)
        self.assertEqual(Fail("no", status=400).status, 400)

    def test_content_type(self) -> None:
        """It becomes an HTTP header: no line breaks, no control characters."""
        for kind in ("text/plain\r\nSet-Cookie: a=b", "text/\0", "text/\u2028", "text/ü"):
            self.assertRaises(ValueError, Reply, b"", kind)

    def test_description(self) -> None:
        """What is not given is not sent; the title is one line."""
        self.assertEqual(json.loads(describe(Fail("no"))), {"title": "no"})
        fail = Fail("a\nb", "more", 422, retry=False)
        self.assertEqual(
            json.loads(describe(fail)),
            {"title": "a b", "detail": "more", "status": 422, "retry": False},
        )

    def test_line(self) -> None:
        """An exception is told by its type and message, whatever its message does."""

        class MuteError(Exception):
            def __str__(self) -> str:
                raise RuntimeError

        self.assertEqual(line(ValueError("bad\nthing")), "ValueError: bad thing")
        self.assertEqual(line(KeyError()), "KeyError")
        self.assertEqual(line(MuteError()), "MuteError")
        self.assertEqual(len(line("x" * 10_000)), 500)
        self.assertEqual(json.loads(describe(Fail("\udcff"))), {"title": "?"})


class CommandTests(SynchronousTestCase):
    """A command's meta is read when it is asked for."""

    def test_everything_the_gate_says(self) -> None:
        """Each entry of the meta has its attribute."""
        one = command(
            b'{"n": 1}',
            id="gate-1",
            queue="resize",
            content_type="application/json",
            attempt=2,
            remaining_ms=60_000,
            headers={"traceparent": "00-1", "jobgate-key": "k"},
        )
        self.assertEqual((one.id, one.queue, one.attempt), ("gate-1", "resize", 2))
        self.assertEqual(one.content_type, "application/json")
        self.assertEqual(one.headers, {"traceparent": "00-1", "jobgate-key": "k"})
        self.assertEqual(one.inputs, {})
        self.assertEqual(one.json(), {"n": 1})
        self.assertTrue(59 < one.remaining <= 60)

    def test_without_meta(self) -> None:
        """A bare command has a value for everything."""
        one = command(b"x")
        self.assertEqual((one.id, one.queue, one.attempt), ("7", "", 1))
        self.assertEqual(one.content_type, "application/octet-stream")
        self.assertEqual((one.headers, one.inputs), ({}, {}))
        self.assertEqual(one.remaining, float("inf"))
        self.assertRaises(AttributeError, getattr, one, "nonsense")

    def test_remaining_counts_down_from_receipt_and_ends_at_zero(self) -> None:
        """The time a command waits in the worker is its own."""
        self.assertTrue(6.9 < command(received=monotonic() - 3, remaining_ms=10_000).remaining <= 7)
        self.assertEqual(command(received=monotonic() - 3, remaining_ms=1000).remaining, 0.0)
        self.assertEqual(command(remaining_ms=None).remaining, float("inf"))

    def test_inputs_follow_the_body(self) -> None:
        """Their bytes come in the order of the meta, and are no part of the body."""
        one = command(
            b"own" + b"first" + b"" + b"third",
            inputs=[
                {"name": "a", "content_type": "text/plain", "length": 5},
                {"name": "b", "content_type": None, "length": 0},
                {"name": "c", "content_type": "image/png", "length": 5},
            ],
        )
        self.assertEqual(list(one.inputs), ["a", "b", "c"])
        self.assertIsInstance(one.inputs["a"], Input)
        self.assertEqual(one.inputs["a"].body, b"first")
        self.assertEqual(one.inputs["b"].body, b"")
        self.assertEqual(one.inputs["b"].content_type, "application/octet-stream")
        self.assertEqual(one.inputs["c"].body, b"third")
        self.assertEqual(one.inputs["c"].content_type, "image/png")
        self.assertEqual(one.body, b"own")

    def test_bad_json_is_the_callers_fault(self) -> None:
        """Left alone, it becomes a 400 that is not tried again."""
        for body in (b"", b"{", b"\xff"):
            fail = self.assertRaises(Fail, command(body).json)
            self.assertEqual((fail.status, fail.retry), (400, False))

    def test_serve_wants_a_function(self) -> None:
        """The error says what it found."""
        error = self.assertRaises(TypeError, serve, "handler")
        self.assertIn("wants a function", str(error))
        self.assertIn("'handler'", str(error))


class _Hasty(Patience):
    """Does not really wait."""

    def __init__(self) -> None:
        super().__init__()
        self.waited: list[float] = []

    def wait(self, seconds: float) -> None:
        self.waited.append(seconds)


class PatienceTests(SynchronousTestCase):
    """What a worker does while it cannot reach its gate."""

    def test_growth(self) -> None:
        """A tenth of a second, doubling up to ten, give or take half; then from the beginning."""
        patience = _Hasty()
        for _ in range(2):
            for number in range(12):
                wanted = min(10.0, 0.1 * 2**number)
                patience.rest()
                self.assertTrue(0.5 * wanted <= patience.waited.pop() <= 1.5 * wanted)
            patience.renew()

    def test_what_the_gate_says(self) -> None:
        """Never sooner than that."""
        patience = _Hasty()
        for after in (1.0, 7.0, 60.0):
            patience.rest(after)
            self.assertTrue(after <= patience.waited.pop() <= 1.5 * after)

    def test_told_to_end(self) -> None:
        """Nothing is waited for any more."""
        patience = Patience()
        patience.end()
        patience.wait(1e6)

    def test_says_what_is_new(self) -> None:
        """The same once only."""
        said = StringIO()
        patience = Patience()
        with redirect_stderr(said):
            for text in ("lost", "lost", "back", "lost"):
                patience.say(text)
        lines = [f"jobgate.worker: {text}\n" for text in ("lost", "back", "lost")]
        self.assertEqual(said.getvalue(), "".join(lines))


class ReadTests(SynchronousTestCase):
    """Frames are the same however their bytes come."""

    @settings(max_examples=60, deadline=None)
    @given(
        frames=st.lists(
            st.tuples(
                st.sampled_from([0, 1, 15, 100, 70_000, 200_000]),  # bytes of meta
                st.sampled_from([0, 1, 100, 65_500, 65_536, 300_000]),  # bytes of body
            ),
            min_size=1,
            max_size=4,
        ),
        cuts=st.lists(st.integers(min_value=1, max_value=60_000), min_size=1, max_size=8),
    )
    def test_any_pieces(self, frames: list[tuple[int, int]], cuts: list[int]) -> None:
        """Bodies and metas come out whole and in order, from pieces of any size."""
        wanted = [(os.urandom(meta), os.urandom(body)) for meta, body in frames]
        data = b"".join(frame(3, n, meta, body) for n, (meta, body) in enumerate(wanted))
        source, sink = os.pipe()
        try:
            link = Link(source, sink)
            at = turn = 0
            while at < len(data):
                at += os.write(sink, data[at : at + cuts[turn % len(cuts)]])
                turn += 1
                while link._read_if_any():
                    pass
            got = [(c._number, c._meta, c.body) for c in link.inbox]
        finally:
            os.close(source)
            os.close(sink)
        self.assertEqual(got, [(n, meta, body) for n, (meta, body) in enumerate(wanted)])
        self.assertTrue(all(type(body) is bytes for _, _, body in got))

    def test_cancel_marks_what_runs_and_what_waits(self) -> None:
        """And nothing else."""
        source, sink = os.pipe()
        try:
            link = Link(source, sink)
            os.write(sink, b"".join(frame(3, n) for n in range(4)))
            running = link.take()
            os.write(sink, frame(8, 0) + frame(8, 2) + frame(8, 99))
            self.assertTrue(running is not None and running.cancelled)
            self.assertEqual([c._cancelled for c in link.inbox], [False, True, False])
        finally:
            os.close(source)
            os.close(sink)

    def test_no_frame_ends_reading(self) -> None:
        """A wrong version, flags, or lengths that cannot be: nothing after it is believed."""
        cases = [
            b"GET / HTTP/1.1\r\n\r\n",
            HEADER.pack(12, 2, 3, 0, 1, 0),
            HEADER.pack(12, 1, 3, 1, 1, 0),
            HEADER.pack(12, 1, 3, 0, 1, 1),
            HEADER.pack(0, 1, 3, 0, 1, 0),
            HEADER.pack((64 << 20) + 1, 1, 3, 0, 1, 0),
        ]
        for data in cases:
            source, sink = os.pipe()
            try:
                link = Link(source, sink)
                os.write(sink, frame(3, 1, b"", b"good") + data + frame(3, 2))
                first = link.take()
                self.assertTrue(first is not None and first.body == b"good")
                self.assertIsNone(link.take())
                self.assertIn("no frame", link.trouble)
            finally:
                os.close(source)
                os.close(sink)
