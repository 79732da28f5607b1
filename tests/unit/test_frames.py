"""
`jobgate.wire.frames`: any split of a stream gives the same frames, and garbage none.
"""

from __future__ import annotations

import tracemalloc

from hypothesis import example, given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from jobgate.wire import frames
from jobgate.wire.frames import HEADER, MAX_FRAME, FrameDecoder, WireError, encode, split_text

LONG = 64 * 1024

some_frames = st.lists(
    st.tuples(
        st.integers(frames.HELLO, frames.BATCH),
        st.integers(0, 2**32 - 1),
        st.binary(max_size=40),
        st.one_of(
            st.binary(max_size=60),
            st.integers(LONG - 40, LONG + 40).map(
                lambda size: bytes(range(256)) * (size // 256) + b"x" * (size % 256)
            ),
        ),
    ),
    min_size=1,
    max_size=6,
)


def plain(found: list[frames.Frame]) -> list[tuple[int, int, bytes, bytes]]:
    """Frames with bodies that compare."""
    return [(kind, number, bytes(meta), bytes(body)) for kind, number, meta, body in found]


def cut(data: bytes, cuts: list[int]) -> list[bytes]:
    """Data in pieces, cut at these places (modulo its length)."""
    places = sorted({place % (len(data) + 1) for place in cuts})
    return [data[a:b] for a, b in zip([0, *places], [*places, len(data)], strict=True)]


class EncodeTests(SynchronousTestCase):
    """One frame as bytes."""

    def test_contract_example(self) -> None:
        """The example of contract section 5.1, byte for byte."""
        self.assertEqual(
            encode(frames.COMMAND, 7, b'{"queue":"q"}', b"hi"),
            bytes.fromhex("0000001b 01030000 00000007 0000000d") + b'{"queue":"q"}' + b"hi",
        )

    def test_types_have_the_contract_numbers(self) -> None:
        """HELLO is 1 and BATCH is 13, with the others between them in the contract's order."""
        names = (
            "HELLO WELCOME COMMAND REPLY FAIL CHUNK PROGRESS CANCEL DECLINE PING PONG DRAIN BATCH"
        )
        found = [getattr(frames, name) for name in names.split()]
        self.assertEqual(found, list(range(1, 14)))

    def test_limit_counts_everything_but_the_length_itself(self) -> None:
        """64 MiB after the length field is the most; one byte more is refused."""
        room = MAX_FRAME - 12 - 2
        self.assertEqual(len(encode(frames.REPLY, 0, b"{}", bytes(room))), MAX_FRAME + 4)
        self.assertRaises(WireError, encode, frames.REPLY, 0, b"{}", bytes(room + 1))

    def test_first_byte_never_above_four(self) -> None:
        """The largest frame there is begins with 0x04, so text is told from it at once."""
        self.assertEqual(encode(frames.REPLY, 0, b"", bytes(MAX_FRAME - 12))[0], 4)


class DecodeTests(SynchronousTestCase):
    """Bytes to frames."""

    @given(some_frames, st.lists(st.integers(0, 2**20), max_size=12))
    def test_any_split(self, sent: list[tuple[int, int, bytes, bytes]], cuts: list[int]) -> None:
        """However a stream is cut, the same frames come out in the same order."""
        decoder = FrameDecoder()
        found: list[frames.Frame] = []
        for piece in cut(b"".join(encode(*frame) for frame in sent), cuts):
            found += decoder.feed(piece)
        self.assertEqual(plain(found), sent)
        self.assertFalse(decoder.torn)
        self.assertIsNone(decoder.error)

    @given(some_frames, st.lists(st.integers(1, 30000), min_size=1, max_size=8))
    def test_any_split_read_in_place(
        self, sent: list[tuple[int, int, bytes, bytes]], sizes: list[int]
    ) -> None:
        """A reader that fills `wanted()` itself gets the same frames."""
        data = memoryview(b"".join(encode(*frame) for frame in sent))
        decoder = FrameDecoder()
        found: list[frames.Frame] = []
        turn = 0
        while data:
            size = sizes[turn % len(sizes)]
            turn += 1
            view = decoder.wanted()
            if view is None:
                found += decoder.feed(bytes(data[:size]))
                data = data[size:]
                continue
            count = min(size, len(view), len(data))
            with view:
                view[:count] = data[:count]
            found += decoder.filled(count)
            data = data[count:]
        self.assertEqual(plain(found), sent)
        self.assertFalse(decoder.torn)

    def test_byte_by_byte(self) -> None:
        """One byte at a time is a split like any other, and `torn` tells the middle of a frame."""
        data = encode(frames.REPLY, 1, b"{}", b"one") + encode(frames.PONG, 2)
        decoder = FrameDecoder()
        found: list[frames.Frame] = []
        for place in range(len(data)):
            self.assertEqual(decoder.torn, place not in (0, 21))
            found += decoder.feed(data[place : place + 1])
        self.assertEqual(plain(found), [(4, 1, b"{}", b"one"), (11, 2, b"", b"")])

    def test_the_largest_frame_passes(self) -> None:
        """A frame of exactly 64 MiB is a frame."""
        decoder = FrameDecoder()
        [frame] = decoder.feed(encode(frames.REPLY, 1, b"", bytes(MAX_FRAME - 12)))
        self.assertEqual(len(frame[3]), MAX_FRAME - 12)

    @given(st.integers(5, 255), st.binary(max_size=3))
    def test_text_caught_at_its_first_byte(self, first: int, rest: bytes) -> None:
        """A first byte above 0x04 is never a frame, whatever follows and whatever came before."""
        decoder = FrameDecoder()
        found = decoder.feed(encode(frames.PONG) + bytes([first]))
        self.assertEqual(len(found), 1)
        self.assertIsInstance(decoder.error, WireError)
        self.assertEqual(decoder.feed(rest + encode(frames.PONG)), [])

    def test_wrong_length_caught_at_its_last_byte(self) -> None:
        """No frame is shorter than its header or longer than the limit: that is known at once."""
        for length in (0, 11, MAX_FRAME + 1):
            decoder = FrameDecoder()
            said = length.to_bytes(4, "big")
            decoder.feed(said[:3])
            self.assertIsNone(decoder.error)
            decoder.feed(said[3:])
            self.assertIsInstance(decoder.error, WireError)

    def test_wrong_version_caught_at_its_byte(self) -> None:
        """A version other than 1 is caught with the fifth byte."""
        decoder = FrameDecoder()
        decoder.feed(b"\x00\x00\x00\x0c")
        self.assertIsNone(decoder.error)
        decoder.feed(b"\x02")
        self.assertIsInstance(decoder.error, WireError)

    @given(
        st.sampled_from(
            [
                (12, 2, 4, 0, 0, 0),  # version
                (12, 0, 4, 0, 0, 0),
                (12, 1, 0, 0, 0, 0),  # type
                (12, 1, 14, 0, 0, 0),
                (12, 1, 255, 0, 0, 0),
                (12, 1, 4, 1, 0, 0),  # flags
                (12, 1, 4, 0x8000, 0, 0),
                (12, 1, 4, 0, 0, 1),  # meta longer than the frame
                (20, 1, 4, 0, 0, 9),
                (12, 1, 4, 0, 0, 2**32 - 1),
                (11, 1, 4, 0, 0, 0),  # shorter than its own header
                (0, 1, 4, 0, 0, 0),
                (MAX_FRAME + 1, 1, 4, 0, 0, 0),
                (2**31, 1, 4, 0, 0, 0),
                (2**32 - 1, 1, 4, 0, 0, 2**31),
            ]
        ),
        st.integers(0, 15),
    )
    def test_bad_headers(self, header: tuple[int, int, int, int, int, int], place: int) -> None:
        """A header with anything wrong in it ends the stream, wherever it was cut."""
        data = HEADER.pack(*header)
        decoder = FrameDecoder()
        self.assertEqual(decoder.feed(data[:place]) + decoder.feed(data[place:]), [])
        self.assertIsInstance(decoder.error, WireError)
        self.assertIsNone(decoder.wanted())

    def test_huge_length_allocates_nothing(self) -> None:
        """A length of 2**31 is refused before a buffer is made for it."""
        decoder = FrameDecoder()
        tracemalloc.start()
        try:
            decoder.feed(HEADER.pack(2**31, 1, 4, 0, 0, 0))
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        self.assertIsNotNone(decoder.error)
        self.assertLess(peak, 100_000)

    def test_frames_before_an_error_are_kept(self) -> None:
        """What came before the garbage is still returned, what comes after is not."""
        decoder = FrameDecoder()
        good = encode(frames.REPLY, 1, b"", b"x")
        self.assertEqual(len(decoder.feed(good + good + b"Traceback" + good)), 2)
        self.assertEqual(decoder.feed(good), [])
        self.assertIn("Traceback", str(decoder.error))

    def test_own_limit(self) -> None:
        """A decoder with a smaller limit refuses what is over it."""
        decoder = FrameDecoder(max_frame=20)
        self.assertEqual(len(decoder.feed(encode(frames.REPLY, 0, b"", bytes(8)))), 1)
        decoder.feed(encode(frames.REPLY, 0, b"", bytes(9)))
        self.assertIsNotNone(decoder.error)

    @settings(max_examples=100)
    @given(st.binary(max_size=200), st.lists(st.integers(0, 200), max_size=6))
    @example(b"\x04\x00\x00\x00\x01\x04\x00\x00" + bytes(8), [])
    def test_never_raises(self, data: bytes, cuts: list[int]) -> None:
        """Any bytes at all: frames, an error, or more wanted; the same for every split."""
        whole, parts = FrameDecoder(), FrameDecoder()
        expected = whole.feed(data)
        found: list[frames.Frame] = []
        for piece in cut(data, cuts):
            found += parts.feed(piece)
        self.assertEqual(plain(found), plain(expected))
        self.assertEqual(parts.error is None, whole.error is None)


class SplitTextTests(SynchronousTestCase):
    """What a program prints before its first frame."""

    @given(st.binary().map(lambda data: bytes(b | 0x20 for b in data)), some_frames)
    def test_parted(self, text: bytes, sent: list[tuple[int, int, bytes, bytes]]) -> None:
        """Text and frames are parted exactly where the first frame begins."""
        data = b"".join(encode(*frame) for frame in sent)
        self.assertEqual(split_text(text + data), (text, data))

    def test_only_text(self) -> None:
        """Without a frame everything is text."""
        self.assertEqual(split_text(b"Loading...\r\n"), (b"Loading...\r\n", b""))
        self.assertEqual(split_text(b""), (b"", b""))
