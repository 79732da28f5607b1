"""
`jobgate.wire.lines`: programs that read a line and print lines.
"""

from __future__ import annotations

import json
import re

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from jobgate.wire.frames import WireError
from jobgate.wire.lines import LinesDecoder, Template, one_line

JSON = "application/json"
TEXT = "text/plain"


def feed(decoder: LinesDecoder, data: bytes, sizes: list[int]) -> bytes | None:
    """Feed in pieces until there is a reply; the rest follows in one piece."""
    place, turn = 0, 0
    while place < len(data):
        size = sizes[turn % len(sizes)]
        turn += 1
        reply = decoder.feed(data[place : place + size])
        place += size
        if reply is not None:
            decoder_rest = data[place:]
            if decoder_rest:
                decoder._buffer += decoder_rest
            return reply
    return None


lines = st.lists(
    st.binary(max_size=12).map(lambda line: line.replace(b"\n", b"").replace(b"\r", b"")),
    max_size=6,
)
pieces = st.lists(st.integers(1, 9), min_size=1, max_size=5)


class DecoderTests(SynchronousTestCase):
    """Output to replies."""

    @given(
        st.binary(max_size=30).map(lambda line: line.replace(b"\n", b"")),
        st.binary(max_size=20),
        pieces,
    )
    def test_one_line(self, line: bytes, rest: bytes, sizes: list[int]) -> None:
        """Without `until` a reply is one line; what follows it is left over."""
        decoder = LinesDecoder()
        self.assertEqual(feed(decoder, line + b"\n" + rest, sizes), line)
        self.assertEqual(decoder.pending, rest)

    @given(lines, st.sampled_from([b"\n", b"\r\n"]), pieces)
    def test_until(self, said: list[bytes], ending: bytes, sizes: list[int]) -> None:
        """The reply is all lines before the one that equals `until`, however they are cut."""
        said = [line for line in said if line != b"{ready}"]
        data = b"".join(line + ending for line in [*said, b"{ready}"])
        decoder = LinesDecoder(until="{ready}")
        whole = ending.join(said) + (ending[:-1] if said else b"")
        self.assertEqual(feed(decoder, data, sizes), whole)
        self.assertEqual(decoder.pending, b"")

    @given(lines, pieces)
    def test_until_regex(self, said: list[bytes], sizes: list[int]) -> None:
        """The reply is all lines up to and with the one that matches."""
        said = [line for line in said if not line.startswith(b"bestmove")]
        decoder = LinesDecoder(until_regex=re.compile(b"^bestmove"))
        data = b"".join(line + b"\n" for line in [*said, b"bestmove e2e4"])
        self.assertEqual(feed(decoder, data, sizes), b"\n".join([*said, b"bestmove e2e4"]))
        self.assertEqual(decoder.pending, b"")

    def test_regex_sees_the_line_without_its_carriage_return(self) -> None:
        """`$` matches at the end of a line that ends as Windows programs end it."""
        decoder = LinesDecoder(until_regex=re.compile(b"ok$"))
        self.assertIsNotNone(decoder.feed(b"all ok\r\n"))

    def test_regex_matches_within_one_line_only(self) -> None:
        """A pattern is tried on each line, never across two."""
        decoder = LinesDecoder(until_regex=re.compile(b"a.*b", re.DOTALL))
        self.assertIsNone(decoder.feed(b"a\nb\n"))
        self.assertEqual(decoder.feed(b"ab\n"), b"a\nb\nab")

    def test_until_must_equal_the_line(self) -> None:
        """A line that only contains `until` is part of the reply."""
        decoder = LinesDecoder(until="done")
        self.assertIsNone(decoder.feed(b"done?\n done\nundone\n"))
        self.assertEqual(decoder.feed(b"done\n"), b"done?\n done\nundone")

    def test_empty_replies(self) -> None:
        """An empty line is an empty reply; so is nothing at all before `until`."""
        self.assertEqual(LinesDecoder().feed(b"\n"), b"")
        self.assertEqual(LinesDecoder(until="x").feed(b"x\n"), b"")
        self.assertEqual(LinesDecoder(until="x").feed(b"\nx\n"), b"")
        self.assertEqual(LinesDecoder(until="x").feed(b"\n\nx\n"), b"\n")

    def test_leftovers_stay(self) -> None:
        """What follows a reply is in `pending`, never part of it, and begins the next."""
        decoder = LinesDecoder()
        self.assertEqual(decoder.feed(b"one\ntwo"), b"one")
        self.assertEqual(decoder.pending, b"two")
        self.assertEqual(decoder.feed(b"!\n"), b"two!")
        self.assertEqual(decoder.pending, b"")

    def test_limit(self) -> None:
        """A reply without its end over the limit is an error; one at the limit is none."""
        self.assertEqual(LinesDecoder(limit=5).feed(b"12345\n"), b"12345")
        decoder = LinesDecoder(limit=5)
        self.assertIsNone(decoder.feed(b"12345"))
        self.assertRaises(WireError, decoder.feed, b"6")

    def test_limit_counts_all_lines(self) -> None:
        """With `until` it is the whole reply that is bounded, not each line."""
        decoder = LinesDecoder(until="end", limit=10)
        self.assertRaises(WireError, decoder.feed, b"1234\n5678\n90")

    def test_limit_holds_for_any_split(self) -> None:
        """A reply over the limit is an error also when its end comes in the same read."""
        self.assertRaises(WireError, LinesDecoder(limit=5).feed, b"123456789\n")


class OneLineTests(SynchronousTestCase):
    """A body as the line that is written."""

    def test_plain_text_is_untouched(self) -> None:
        """A body without a newline that is not JSON goes as it is, byte for byte."""
        for body in (b"", b"  2 + 2 ", b"{ not json", b"\x00\xff", b"a\rb"):
            self.assertEqual(one_line(body, TEXT), body)

    def test_json_keeps_digits_and_order(self) -> None:
        """Compacting does not decode: big numbers, floats, order and doubled keys stay."""
        body = b'{\n "z": 123456789012345678901234567890,\n "a": 1.10,\n "z": 1E400\n}\n'
        self.assertEqual(
            one_line(body, JSON), b'{"z":123456789012345678901234567890,"a":1.10,"z":1E400}'
        )

    def test_newlines_in_strings_stay_escaped(self) -> None:
        """An escaped newline in a JSON string is no newline."""
        self.assertEqual(one_line(b'"a\\nb"', JSON), b'"a\\nb"')

    def test_json_without_saying_so(self) -> None:
        """A body with newlines that is JSON is compacted whatever its type says."""
        self.assertEqual(one_line(b"[1,\n 2]", TEXT), b"[1,2]")

    def test_json_types(self) -> None:
        """Parameters and case do not matter, and `+json` is JSON too."""
        for kind in ("application/json; charset=utf-8", "APPLICATION/JSON", "application/geo+json"):
            self.assertEqual(one_line(b"[1, 2]", kind), b"[1,2]")

    def test_text_with_newline_is_refused(self) -> None:
        """A newline in a body that is not JSON is a ValueError that says so."""
        error = self.assertRaises(ValueError, one_line, b"two\nlines", TEXT)
        self.assertIn("newline", str(error))

    def test_bad_json_is_refused(self) -> None:
        """A body that says it is JSON and is not is a ValueError that says so."""
        for body in (b"{", b"", b"1 2", b'{"a":1}\n{"b":2}', b'"a\nb"', b"\xff"):
            error = self.assertRaises(ValueError, one_line, body, JSON)
            self.assertIn("JSON", str(error))

    def test_deep_json_is_refused(self) -> None:
        """JSON nested deeper than can be read is refused like other bad JSON, with a ValueError."""
        self.assertRaises(ValueError, one_line, b"[" * 200_000, JSON)
        self.assertRaises(ValueError, one_line, b"[\n" * 200_000, TEXT)

    @given(st.binary(max_size=40), st.sampled_from([JSON, TEXT, ""]))
    def test_never_two_lines(self, body: bytes, kind: str) -> None:
        """Whatever comes in, what is written is one line, or a ValueError."""
        try:
            line = one_line(body, kind)
        except ValueError:
            return
        self.assertNotIn(b"\n", line)

    values = st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
        ),
        max_leaves=6,
    )

    @given(values, st.sampled_from([None, 1, "\t"]))
    def test_json_means_the_same(self, value: object, indent: object) -> None:
        """What is written decodes to what the caller sent."""
        line = one_line(json.dumps(value, indent=indent).encode(), JSON)
        self.assertEqual(json.loads(line), value)
        self.assertNotIn(b"\n", line)


class TemplateTests(SynchronousTestCase):
    """What is written for a command."""

    def test_default(self) -> None:
        """The line and its newline."""
        self.assertEqual(Template("{line}\n").fill(b"2+2"), b"2+2\n")

    def test_every_place_is_filled(self) -> None:
        """Every `{line}` is replaced; other braces are text."""
        self.assertEqual(
            Template("-j\n{line}\n{x} {line}\n-execute\n").fill(b"a.jpg"),
            b"-j\na.jpg\n{x} a.jpg\n-execute\n",
        )

    def test_a_body_is_no_template(self) -> None:
        """`{line}` in a body is not replaced again."""
        self.assertEqual(Template("<{line}>\n").fill(b"{line}{line}"), b"<{line}{line}>\n")
