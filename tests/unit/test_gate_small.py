"""
`jobgate.gate`: admission, ids, poison, stats, audit and the dispatcher.
"""

from __future__ import annotations

import json
import os
import re
from math import inf
from pathlib import Path
from unittest import mock

from hypothesis import example, given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from jobgate import ids as ids_module
from jobgate.command import Reply
from jobgate.errors import QueueFull, UnknownQueue, WorkerDied
from jobgate.gate import audit as audit_module
from jobgate.gate.admission import expected_wait, retry_after
from jobgate.gate.audit import Audit
from jobgate.gate.dispatcher import Dispatcher
from jobgate.gate.poison import Poison
from jobgate.gate.stats import BOUNDS, QueueStats
from jobgate.ids import IdMaker
from tests.unit.fakes import command


class AdmissionTests(SynchronousTestCase):
    """Numbers in, a decision out."""

    def test_expected_wait(self) -> None:
        """Those ahead and oneself, by the service time, over the lanes."""
        self.assertEqual(expected_wait(9, 2.0, 4), 5.0)
        self.assertEqual(expected_wait(9, 0.0, 4), 0.0)
        self.assertEqual(expected_wait(0, 1.0, 0), inf)

    @given(st.integers(0, 10**9), st.floats(0, 1e9), st.integers(0, 1000))
    def test_retry_after_is_a_sane_header(self, waiting: int, service: float, lanes: int) -> None:
        """Always whole seconds, at least one and at most an hour."""
        seconds = retry_after(waiting, service, lanes)
        self.assertIsInstance(seconds, int)
        self.assertTrue(1 <= seconds <= 3600)

    @given(st.integers(0, 10**6), st.floats(0.001, 1e3), st.integers(1, 100))
    def test_more_waiting_waits_longer(self, waiting: int, service: float, lanes: int) -> None:
        """One more ahead never shortens the wait, one more lane never lengthens it."""
        self.assertLess(
            expected_wait(waiting, service, lanes), expected_wait(waiting + 1, service, lanes)
        )
        self.assertLess(
            expected_wait(waiting, service, lanes + 1), expected_wait(waiting, service, lanes)
        )


class IdTests(SynchronousTestCase):
    """Opaque, URL-safe, unguessable, sortable."""

    def test_shape(self) -> None:
        """The gate's name, a dash, the time, a place in it, and 128 random bits; all URL-safe."""
        made = IdMaker("gate.1~a").make()
        self.assertTrue(re.fullmatch(r"gate\.1~a-[0-9a-f]{12}[0-9a-f]{3}[0-9a-f]{32}", made), made)

    def test_unique_and_random(self) -> None:
        """Ten thousand ids share no random part, and every bit of it changes."""
        maker = IdMaker("g")
        tails = {maker.make()[-32:] for _ in range(5_000)}
        tails |= {made[-32:] for made in maker.some(5_000)}
        self.assertEqual(len(tails), 10_000)
        ones, zeros = 0, 2**128 - 1
        for tail in tails:
            ones |= int(tail, 16)
            zeros &= int(tail, 16)
        self.assertEqual((ones, zeros), (2**128 - 1, 0))

    def test_sortable(self) -> None:
        """An id of a later millisecond is greater, also across the digits' growth."""
        now = [0.0]
        self.patch(ids_module, "time", type("T", (), {"time": staticmethod(lambda: now[0])}))
        maker = IdMaker("g")
        made = []
        for at in (0.001, 0.999, 1.0, 15.999, 1_700_000_000.123, 1_700_000_000.124, 8e9):
            now[0] = at
            made.append(maker.make())
            made += sorted(maker.some(3))
            self.assertEqual({each[:-32] for each in made[-2:]}, {made[-3][:-32]})
            self.assertEqual({each[:-35] for each in made[-3:]}, {made[-4][:-35]})
        self.assertEqual(made, sorted(made))

    @example([(0, 5_000), (-9, 5_000)])
    @given(st.lists(st.tuples(st.integers(-3, 3), st.integers(0, 99)), max_size=9))
    def test_in_order_within_a_millisecond(self, steps: list[tuple[int, int]]) -> None:
        """Each is greater than the one before: however many, and when the clock is set back."""
        now = [1_700_000_000.0]
        clock = type("T", (), {"time": staticmethod(lambda: now[0])})
        made = []
        with mock.patch.object(ids_module, "time", clock):
            maker = IdMaker("g")
            for later, count in steps:
                now[0] += later / 1000
                made += [*(maker.make() for _ in range(count)), *sorted(maker.some(count))]
        self.assertEqual(len(set(made)), sum(2 * count for _, count in steps))
        self.assertEqual(made, sorted(made))

    def test_two_makers(self) -> None:
        """Two gates of one name do not make the same ids."""
        one, two = IdMaker("g"), IdMaker("g")
        self.assertFalse({one.make() for _ in range(100)} & {two.make() for _ in range(100)})


class PoisonTests(SynchronousTestCase):
    """Kept out for an hour, at most ten thousand."""

    def test_fingerprint(self) -> None:
        """Queue, content type and body must all be the same."""
        poison = Poison()
        self.assertFalse(poison)
        poison.add(command(b"x", content_type="a/b"), 0.0)
        self.assertTrue(poison)
        self.assertTrue(poison.knows("q", "a/b", b"x", 1.0))
        for other in (
            ("r", "a/b", b"x"),
            ("q", "a/c", b"x"),
            ("q", "a/b", b"y"),
            ("q", "a/b", b""),
        ):
            self.assertFalse(poison.knows(*other, 1.0))

    def test_an_hour(self) -> None:
        """It is refused for an hour, and then forgotten."""
        poison = Poison()
        poison.add(command(b"x"), 100.0)
        self.assertTrue(poison.knows("q", "text/plain", b"x", 3699.0))
        self.assertFalse(poison.knows("q", "text/plain", b"x", 3701.0))
        self.assertFalse(poison)

    def test_ten_thousand(self) -> None:
        """At most 10,000 are kept; the oldest goes."""
        poison = Poison()
        for number in range(10_001):
            poison.add(command(b"%d" % number), 0.0)
        self.assertEqual(len(poison._until), 10_000)
        self.assertFalse(poison.knows("q", "text/plain", b"0", 1.0))
        self.assertTrue(poison.knows("q", "text/plain", b"1", 1.0))
        self.assertTrue(poison.knows("q", "text/plain", b"10000", 1.0))

    def test_killing_again_renews(self) -> None:
        """One that has killed again is the youngest, not the first to be forgotten."""
        poison = Poison()
        poison.add(command(b"a"), 0.0)
        for number in range(9_999):
            poison.add(command(b"%d" % number), 0.0)
        poison.add(command(b"a"), 5.0)
        poison.add(command(b"one too many"), 5.0)
        self.assertTrue(poison.knows("q", "text/plain", b"a", 6.0))

    def test_clear(self) -> None:
        """A reload forgets all."""
        poison = Poison()
        poison.add(command(b"x"), 0.0)
        poison.clear()
        self.assertFalse(poison.knows("q", "text/plain", b"x", 0.0))


class StatsTests(SynchronousTestCase):
    """What is counted."""

    @given(st.lists(st.floats(0, 1e7), max_size=30))
    def test_histogram(self, durations: list[float]) -> None:
        """Every duration is counted once, in the bucket its bound says, and summed."""
        stats = QueueStats()
        for duration in durations:
            stats.measure(duration, 0.0)
        histogram = stats.waited
        self.assertEqual(sum(histogram.counts), len(durations))
        self.assertEqual(len(histogram.counts), len(BOUNDS) + 1)
        self.assertAlmostEqual(histogram.total, sum(durations), delta=1e-6 * (1 + sum(durations)))
        for place, bound in enumerate(BOUNDS):
            within = sum(histogram.counts[: place + 1])
            self.assertLessEqual(sum(d < bound for d in durations), within)
            self.assertLessEqual(within, sum(d <= bound for d in durations))

    def test_bounds_rise(self) -> None:
        """The bounds are in order, as Prometheus wants them."""
        self.assertEqual(list(BOUNDS), sorted(set(BOUNDS)))

    def test_service_time(self) -> None:
        """The first measurement is taken as it is; later ones move the average towards them."""
        stats = QueueStats()
        stats.measure(0.5, 2.0)
        self.assertEqual(stats.service_time, 2.0)
        for _ in range(200):
            stats.measure(0.5, 1.0)
        self.assertAlmostEqual(stats.service_time, 1.0, places=3)
        self.assertEqual(sum(stats.waited.counts), 201)
        self.assertEqual(sum(stats.ran.counts), 201)


class AuditTests(SynchronousTestCase):
    """One line at acceptance, one at outcome, never bodies."""

    def setUp(self) -> None:
        self.path = self.mktemp()
        self.audit = Audit(self.path)
        self.addCleanup(self.audit.close)

    def lines(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in Path(self.path).read_text().splitlines()]

    def test_a_life(self) -> None:
        """Acceptance and outcome: id, queue, token, attempt, times and status."""
        made = command(b"SECRET BODY", id="g-1", now=10.0)
        made.caller = "ci"
        self.audit.accepted(made)
        made.attempt, made.began, made.ended = 1, 10.5, 12.0
        self.audit.ended(made, Reply(b"SECRET REPLY", "text/plain", 201))
        accepted, ended = self.lines()
        self.assertEqual(accepted["event"], "accepted")
        self.assertNotIn("status", accepted)
        self.assertEqual(ended["event"], "ended")
        self.assertEqual(
            [ended[key] for key in ("id", "queue", "token", "attempt", "status", "waited", "ran")],
            ["g-1", "q", "ci", 1, 201, 0.5, 1.5],
        )
        self.assertTrue(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", str(ended["at"])))

    def test_never_bodies(self) -> None:
        """Neither a body nor a reply nor an error's detail is ever written."""
        made = command(b"SECRET")
        self.audit.accepted(made)
        self.audit.refused(made, QueueFull("SECRET"))
        self.audit.ended(made, Reply(b"SECRET", "text/plain"))
        self.audit.ended(made, WorkerDied("SECRET"))
        self.assertNotIn("SECRET", Path(self.path).read_text())
        self.assertEqual(len(self.lines()), 4)

    def test_outcomes(self) -> None:
        """
        A problem is its slug, a caller's leaving is `cancelled`, a refusal one line with its slug.
        """
        made = command()
        self.audit.ended(made, WorkerDied("x"))
        self.audit.ended(made, None)
        self.audit.refused(made, QueueFull("x"))
        self.assertEqual(
            [line["status"] for line in self.lines()], ["worker-died", "cancelled", "queue-full"]
        )
        self.assertEqual(self.lines()[2]["event"], "refused")
        self.assertIsNone(self.lines()[0]["token"])

    def test_never_ran(self) -> None:
        """A command that never began waited all its time and ran none."""
        made = command(now=5.0)
        made.ended = 8.0
        self.audit.ended(made, None)
        self.assertEqual((self.lines()[0]["waited"], self.lines()[0]["ran"]), (3.0, 0.0))

    def test_appends(self) -> None:
        """An audit that is there already is continued, and only its owner may read it."""
        self.audit.accepted(command())
        again = Audit(self.path)
        again.accepted(command())
        again.close()
        self.assertEqual(len(self.lines()), 2)
        self.assertEqual(os.stat(self.path).st_mode & 0o777, 0o600)  # noqa: PTH116

    def test_cannot_be_opened(self) -> None:
        """A path that cannot be opened is an OSError at the start, not later."""
        self.assertRaises(OSError, Audit, os.path.join(self.mktemp(), "nowhere", "audit"))  # noqa: PTH118

    def test_disk_full(self) -> None:
        """
        A line that cannot be written holds nobody up, is logged once, and again after it worked.
        """
        logged: list[str] = []

        class Log:
            def error(self, text: str, **named: object) -> None:
                logged.append(text.format(**named))

        self.patch(Audit, "_log", Log())
        working = [False]

        class System:
            def __getattr__(self, name: str) -> object:
                return getattr(os, name)

            def write(self, fd: int, data: bytes) -> int:
                if not working[0]:
                    raise OSError(28, "No space left on device")
                return os.write(fd, data)

        self.patch(audit_module, "os", System())
        self.audit.accepted(command())
        self.audit.accepted(command())
        self.assertEqual(logged, ["the audit cannot be written: No space left on device"])
        working[0] = True
        self.audit.accepted(command())
        working[0] = False
        self.audit.accepted(command())
        self.assertEqual(len(logged), 2)
        self.assertEqual(len(self.lines()), 1)


class DispatcherTests(SynchronousTestCase):
    """From a name to a road."""

    def test_known_and_unknown(self) -> None:
        """A known name gives its road, another one UnknownQueue that names it."""
        dispatcher = Dispatcher()
        road = object()
        dispatcher.roads["q"] = road  # type: ignore[assignment]
        self.assertIs(dispatcher["q"], road)
        self.assertEqual(list(dispatcher), [road])
        error = self.assertRaises(UnknownQueue, lambda: dispatcher["nope"])
        self.assertIn("'nope'", str(error))
