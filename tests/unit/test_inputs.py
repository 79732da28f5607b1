"""
`jobgate.jobs.inputs`: large inputs, one after the other, and only while little waits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from jobgate import errors
from jobgate.command import DONE, WAITING, Command
from jobgate.jobs.inputs import Feeder, as_input
from jobgate.jobs.job import Ending, Reply, State, Taken
from jobgate.wire.frames import MAX_FRAME

if TYPE_CHECKING:
    from collections.abc import Sequence

MIB = 1024 * 1024


class FakeRoad:
    """So many bytes wait."""

    bytes_waiting = 0


class FakeJournal:
    """Has what a test puts into it."""

    def __init__(self) -> None:
        self.endings_: dict[str, Ending] = {}
        self.asked: list[tuple[Sequence[str], int]] = []
        self.waiting: list[Deferred[dict[str, Ending]]] = []
        self.hold = False
        self.trouble: errors.StoreUnavailable | None = None

    def endings(self, ids: Sequence[str], most: int) -> Deferred[dict[str, Ending]]:
        self.asked.append((ids, most))
        answer: Deferred[dict[str, Ending]] = Deferred()
        if self.trouble is not None:
            answer.errback(self.trouble)
        elif self.hold:
            self.waiting.append(answer)
        else:
            answer.callback({name: self.endings_[name] for name in ids if name in self.endings_})
        return answer


class FeederTests(SynchronousTestCase):
    """Large inputs, one after the other."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.journal = FakeJournal()
        self.road = FakeRoad()
        self.fed: list[str] = []
        self.refused: list[str] = []
        self.feeder = Feeder(
            self.journal,  # type: ignore[arg-type]
            self.road,  # type: ignore[arg-type]
            self.clock,
            lambda command, _: self.fed.append(command.id),
            lambda command, _, error: self.refused.append(f"{command.id} {error.detail[:10]}"),
        )
        self.journal.endings_["in"] = Ending(State.SUCCEEDED, Reply(200, "x/y", b"input"))

    def add(self, name: str, *inputs: str) -> Command:
        command = Command("q", name, b"", "", 3, 0.0, 1e9)
        named = tuple((f"name of {need}", need) for need in inputs or ("in",))
        taken = Taken(name, "q", b"", "", 3, 0, 0, 3, 0.0, "", "", inputs=named)
        self.feeder.add(command, taken)
        return command

    def test_fed(self) -> None:
        """It has its inputs by name, and is asked for once."""
        command = self.add("a", "in", "in")
        self.assertEqual(self.fed, ["a"])
        self.assertEqual([its.name for its in command.inputs], ["name of in"] * 2)
        self.assertEqual(command.extra, 10)
        self.assertEqual(self.journal.asked, [(["in"], MAX_FRAME)])
        self.assertEqual(len(self.feeder.hungry), 0)

    def test_room(self) -> None:
        """While much waits nothing more is fetched."""
        self.road.bytes_waiting = 17 * MIB
        self.add("a")
        self.add("b")
        self.feeder.room()
        self.assertEqual((self.fed, self.journal.asked, len(self.feeder.hungry)), ([], [], 2))
        self.road.bytes_waiting = 0
        self.feeder.room()
        self.assertEqual(self.fed, ["a", "b"])

    def test_too_large(self) -> None:
        """What does not fit is refused, and the next one's turn comes."""
        self.add("a", "in", "other")
        self.add("b")
        self.assertEqual((self.fed, self.refused), (["b"], ["a its inputs"]))

    def test_trouble(self) -> None:
        """A store that cannot be asked is asked again."""
        self.journal.trouble = errors.StoreUnavailable("no")
        self.add("a")
        self.add("b")
        self.clock.advance(3)
        self.assertEqual((self.fed, len(self.feeder.hungry)), ([], 2))
        self.journal.trouble = None
        self.clock.advance(1)
        self.assertEqual(self.fed, ["a", "b"])

    def test_cleared(self) -> None:
        """Who is let go is fed no more, wherever that finds it."""
        self.journal.hold = True
        commands = [self.add(name) for name in "ab"]
        self.assertEqual(self.feeder.clear(), commands)
        self.assertEqual([command.state for command in commands], [DONE, DONE])
        self.journal.hold = False
        self.journal.waiting.pop().callback(self.journal.endings_)
        self.assertEqual(self.fed, [])
        self.assertEqual(self.add("c").state, WAITING)
        self.assertEqual(self.fed, ["c"])

    def test_cleared_in_trouble(self) -> None:
        """No timer is left."""
        self.journal.trouble = errors.StoreUnavailable("no")
        self.add("a")
        self.feeder.clear()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_cleared_in_trouble_twice(self) -> None:
        """Nor if another has come meanwhile, for whom the store was not asked any sooner."""
        self.journal.trouble = errors.StoreUnavailable("no")
        self.add("a")
        self.clock.advance(0.5)
        self.add("b")
        self.assertEqual(len(self.journal.asked), 1)
        self.feeder.clear()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_ended_meanwhile(self) -> None:
        """Who has been ended is passed over."""
        self.journal.hold = True
        self.add("a").state = DONE
        self.add("b")
        self.journal.hold = False
        self.journal.waiting.pop().callback(self.journal.endings_)
        self.assertEqual((self.fed, len(self.feeder.hungry)), (["b"], 0))

    def test_as_input(self) -> None:
        """A job that ended well without a reply has given nothing."""
        given_ = as_input("n", Ending(State.SUCCEEDED))
        self.assertEqual(given_, ("n", "application/octet-stream", b""))
