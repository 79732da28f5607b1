"""
Requests about jobs and leases, without HTTP: `jobgate.web.pulls`, `leases`, `jobs`, `job_events`;
and the worker that makes them, `jobgate.worker.pulling`.
"""

from __future__ import annotations

import json
from email.message import Message
from typing import TYPE_CHECKING, Any, cast
from unittest.mock import patch

from twisted.internet.defer import CancelledError, Deferred, fail
from twisted.trial.unittest import SynchronousTestCase

from jobgate import errors
from jobgate.web.access import Access
from jobgate.web.calls import Calls
from jobgate.web.exchange import Exchange, Head, Response
from jobgate.web.jobs import JobRequests, run
from jobgate.web.leases import LeaseRequests
from jobgate.web.problems import problem_document
from jobgate.web.pulls import Pulls
from jobgate.web.pushes import Pushes, key_of
from jobgate.wire import frames
from jobgate.worker import line, pulling
from jobgate.worker.patience import Patience
from tests.unit.jobs_case import JobsCase

if TYPE_CHECKING:
    from jobgate.stream import ReplyStream
    from jobgate.worker import Command

ONE = {"command": ("w",), "workers": 1}


class _Alive:
    """A connection of a caller who stays."""

    def alive(self) -> bool:
        return True


def request(target: bytes, body: bytes = b"", **headers: str) -> Exchange:
    """A POST with these headers."""
    named = {name.replace("_", "-").encode(): text.encode() for name, text in headers.items()}
    return Exchange(_Alive(), Head(b"POST", target, named), body)  # type: ignore[arg-type]


def said(response: Response, name: str) -> str:
    """One of its headers."""
    fields = dict(line.split(": ", 1) for line in response.fields.splitlines())
    return fields[name]


class CallRequestsTests(JobsCase):
    """What callers are answered whose calls are stored."""

    def call(self, **headers: str) -> Response:
        """Call "q"."""
        access = Access(self.gate.config)
        answers: list[Response] = []
        calls = Calls(self.gate, access, Pushes(self.gate, access))
        calls.call(request(b"/call/q", b"x", **headers), "q", answers.append)
        self.turn(0.002)
        [answer] = answers
        return answer

    def test_later(self) -> None:
        """Who takes a 202 may say when it is to start, and whom to tell, as with a push."""
        self.build(q=ONE)
        asked = {"prefer": "respond-async, wait=0", "jobgate_callback": "http://a.example/b"}
        answer = self.call(**asked, jobgate_delay="5")
        job = json.loads(answer.body)
        self.assertEqual((answer.status, job["state"]), (202, "scheduled"))
        self.assertEqual(self.job(job["id"]).callback, "http://a.example/b")
        self.assertEqual(self.child.commands, [])
        self.turn(5)
        self.assertEqual(len(self.child.commands), 1)
        self.assertEqual(self.call(**{**asked, "jobgate_callback": "ftp://a/"}).status, 400)
        self.child.reply()

    def test_whose_problem(self) -> None:
        """Who has joined what another has sent, and waits no longer, is told the id of that."""
        self.build(q=ONE)
        first = self.call(prefer="respond-async, wait=0", idempotency_key="k")
        name = json.loads(first.body)["id"]
        joined = self.call(jobgate_timeout="0.001", idempotency_key="k")
        self.assertEqual((joined.status, json.loads(joined.body)["id"]), (504, name))
        self.assertEqual(said(joined, "Jobgate-Id"), name)
        self.child.reply()

    def test_at_once(self) -> None:
        """Who waits is told there and then: a header that would do nothing is refused."""
        self.build(q=ONE)
        for more in ({}, {"idempotency_key": "k"}, {"prefer": "wait=5"}):
            for name in ("Jobgate-Delay", "Jobgate-Callback"):
                header = {name.lower().replace("-", "_"): "http://a/"}
                answer = self.call(**header, **more)
                self.assertEqual(answer.status, 400)
                self.assertIn(name, json.loads(answer.body)["detail"])
        self.assertEqual(self.child.commands, [])


class LeaseRequestsTests(JobsCase):
    """What pullers are answered."""

    def setUp(self) -> None:
        super().setUp()
        self.build(q={"attempts": 2})
        access = Access(self.gate.config)
        self.pulls = Pulls(self.gate, access)
        self.leases = LeaseRequests(self.gate, access, self.pulls)

    def tearDown(self) -> None:
        self.conserved()

    def pull(self, query: bytes = b"lease=9&wait=0", **headers: str) -> Response:
        """Pull from "q"."""
        answers: list[Response] = []
        self.pulls.pull(request(b"/pull/q?" + query, **headers), "q", answers.append)
        [answer] = answers
        return answer

    def test_what_becomes_of_it(self) -> None:
        """Who fails or declines a job is told its state: it may be tried again."""
        name = self.push()
        states = []
        for way in (self.leases.decline, self.leases.fail, self.leases.fail):
            self.turn(3.0)
            lease = said(self.pull(), "Jobgate-Lease")
            answer = self.done(way(request(b"/jobs/x", jobgate_lease=lease), name))
            states.append(json.loads(answer.body)["state"])
        self.assertEqual(states, ["scheduled", "scheduled", "dead"])

    def test_too_late(self) -> None:
        """A stale reply is told the command that it was for."""
        name = self.push()
        lease = said(self.pull(), "Jobgate-Lease")
        self.done(self.leases.reply(request(b"/jobs/x/reply", jobgate_lease=lease), name))
        late = self.refused(
            self.leases.reply(request(b"/jobs/x/reply", jobgate_lease=lease), name),
            errors.StaleAttempt,
        )
        self.assertEqual(problem_document(late)["id"], name)
        jobs = JobRequests(self.gate, Access(self.gate.config))
        for way in (jobs.cancel, jobs.retry):
            over = self.refused(way(request(b"/jobs/x"), name), errors.WrongState)
            self.assertEqual(problem_document(over)["id"], name)

    def test_the_scope_of_a_key(self) -> None:
        """Token, method and path: who pulls again may wait for another time."""
        self.push(body=b"1")
        self.push(body=b"2")
        first = self.pull(idempotency_key="k")
        again = self.pull(b"lease=30&wait=1", idempotency_key="k")
        self.assertEqual((again.body, first.body), (b"1", b"1"))
        self.assertEqual(said(again, "Idempotency-Replayed"), "true")
        self.assertEqual(self.pull(idempotency_key="other").body, b"2")

    def test_a_key_goes_with_its_lease(self) -> None:
        """There may be a pull a millisecond: no key of theirs is kept for an hour."""
        self.push()
        exchange = request(b"/pull/q?lease=9&wait=0", idempotency_key="k")
        answers: list[Response] = []
        self.pulls.pull(exchange, "q", answers.append)
        self.assertEqual([answer.status for answer in answers], [200])
        key = key_of(exchange)
        assert key is not None
        self.assertIsNotNone(self.successResultOf(self.journal.kept(key)))
        for _ in range(3):
            self.turn(61.0)
        self.assertIsNone(self.successResultOf(self.journal.kept(key)))

    def reply_and_next(self, name: str, lease: str, queue: bytes = b"q", **headers: str) -> Any:
        """Reply, and pull."""
        target = b"/jobs/x/reply?lease=9&wait=0&next=" + queue
        return self.leases.reply(request(target, b"r", jobgate_lease=lease, **headers), name)

    def test_gone_before_the_next(self) -> None:
        """Whoever left while the store took the reply does not wait for the next command."""
        name = self.push(body=b"1")
        lease = said(self.pull(), "Jobgate-Lease")
        target = b"/jobs/x/reply?lease=9&wait=20&next=q"
        exchange = request(target, b"r", jobgate_lease=lease)
        with patch.object(_Alive, "alive", return_value=False):
            self.done(self.leases.reply(exchange, name))
        self.assertFalse(self.gate.jobs.backlogs["q"].busy)
        keyed = request(b"/pull/q?lease=9&wait=20", idempotency_key="k")
        with patch.object(_Alive, "alive", return_value=False):
            self.pulls.pull(keyed, "q", lambda _: None)
        self.assertFalse(self.gate.jobs.backlogs["q"].busy)

    def test_a_hand_over_that_goes_wrong(self) -> None:
        """It is answered, and the command stays for the next puller."""
        self.push(body=b"1")
        with patch.object(self.gate.leases, "lend", side_effect=ValueError):
            self.assertEqual(self.pull().status, 500)
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)
        self.assertEqual(self.pull().body, b"1")

    def test_reply_and_next_again(self) -> None:
        """Whoever did not hear the answer sends it again, and gets the same command."""
        one, two = self.push(body=b"1"), self.push(body=b"2")
        lease = said(self.pull(), "Jobgate-Lease")
        answers = [
            self.done(self.reply_and_next(one, lease, idempotency_key="k")) for _ in range(2)
        ]
        self.assertEqual([answer.body for answer in answers], [b"2", b"2"])
        self.assertEqual({said(answer, "Jobgate-Id") for answer in answers}, {two})
        self.refused(self.reply_and_next(one, lease), errors.StaleAttempt)

    def test_nothing_is_taken_of_what_is_refused(self) -> None:
        """A reply with a `next` that cannot be is refused whole."""
        name = self.push()
        lease = said(self.pull(), "Jobgate-Lease")
        self.refused(self.reply_and_next(name, lease, b"a%20b"), errors.UnknownQueue)
        self.refused(self.reply_and_next(name, lease, idempotency_key=""), errors.BadRequest)
        self.assertEqual(self.done(self.reply_and_next(name, lease)).status, 204)

    def test_drain(self) -> None:
        """Who waits when it begins is told that there is nothing; who comes later, why."""
        name = self.push()
        lease = said(self.pull(), "Jobgate-Lease")
        waiting: list[Response] = []
        self.pulls.pull(request(b"/pull/q?wait=9"), "q", waiting.append)
        drained = self.gate.drain()
        self.assertEqual([answer.status for answer in waiting], [204])
        late = self.pull(b"wait=9")
        self.assertEqual((late.status, late.close), (503, True))
        self.assertEqual(json.loads(late.body)["type"], "/problems/shutting-down")
        self.assertEqual(self.done(self.reply_and_next(name, lease)).status, 204)
        self.successResultOf(drained)

    def test_the_store_fails_in_between(self) -> None:
        """A reply that has been taken is not answered with an error: it would be sent again."""
        name = self.push()
        self.push()
        lease = said(self.pull(), "Jobgate-Lease")
        full = fail(errors.StoreUnavailable("full"))
        with patch.object(self.journal, "lease", lambda *_: full):
            self.assertEqual(self.done(self.reply_and_next(name, lease)).status, 204)
        self.assertEqual(self.pull().status, 200)

    def test_left_while_it_waits_for_the_next(self) -> None:
        """A puller who replies and leaves takes nothing, and nobody goes on waiting for it."""
        name = self.push()
        lease = said(self.pull(), "Jobgate-Lease")
        exchange = request(b"/jobs/x/reply?lease=9&wait=9&next=q", b"r", jobgate_lease=lease)
        # As a front door does that was given the route's Deferred.
        answer: Deferred[Response] = Deferred()
        exchange.on_lost = lambda: answer.cancel()  # noqa: PLW0108 (it is another one by then)
        answer = run(self.leases.reply(exchange, name))
        exchange.lost()
        self.failureResultOf(answer, CancelledError)
        self.push(body=b"next")
        self.assertEqual(self.pull().body, b"next")


class EventsTests(JobsCase):
    """`GET /jobs/<id>/events`."""

    def answer(self, name: str, **headers: str) -> Response:
        """The answer to somebody who wants to hear of a job."""
        jobs = JobRequests(self.gate, Access(self.gate.config))
        answer: Response = self.done(jobs.events(request(b"/jobs/x/events", **headers), name))
        return answer

    def follow(self, name: str) -> list[str]:
        """What is told from now on: the names of events, or the states."""
        response = self.answer(name)
        told: list[str] = []

        def chunk(data: bytes | bytearray) -> None:
            event = dict(line.split(": ", 1) for line in data.decode().splitlines() if line)
            if event.get("event") == "state":
                told.append(json.loads(event["data"])["state"])
            elif "event" in event:
                told.append(event["event"])

        cast("ReplyStream", response.stream).read(chunk, lambda *_: None)
        return told

    def test_the_store_is_slower_than_the_worker(self) -> None:
        """A part of the reply is told after `running`, which is told once."""
        self.build(q=ONE)
        late: list[tuple[Any, ...]] = []
        with patch.object(self.journal, "note_start", lambda *start: late.append(start)):
            name = self.push()
        told = self.follow(name)
        number = self.child.commands[0].id
        self.child.frame(frames.PROGRESS, number, {"done": 1})
        self.child.frame(frames.CHUNK, number, None, b"part")
        for start in late:
            self.journal.note_start(*start)
        self.child.reply(b"")
        self.assertEqual(told, ["queued", "running", "progress", "chunk", "succeeded"])

    def test_said_before_anybody_listened(self) -> None:
        """Who comes later is told how far it is, once."""
        self.build(q=ONE)
        name = self.push()
        number = self.child.commands[0].id
        for done in (1, 2):
            self.child.frame(frames.PROGRESS, number, {"done": done})
        told = self.follow(name)
        self.child.reply(b"")
        self.assertEqual(told, ["running", "progress", "succeeded"])

    def test_nothing_more_to_tell(self) -> None:
        """Who knows how it ended must not come back for ever, as a browser does."""
        self.build(q=ONE)
        name = self.push()
        self.child.reply(b"")
        self.assertEqual(self.answer(name, last_event_id="1.4").status, 204)
        self.assertEqual(self.answer(name, last_event_id="1.3").status, 200)


class PullerTests(SynchronousTestCase):
    """A worker of ours over a line that loses answers."""

    def serve(self, answers: list[Any]) -> list[tuple[str, str]]:
        """Work until the gate has nothing more to say; the ends of addresses, and their keys."""
        sent: list[tuple[str, str]] = []
        puller = pulling.Puller("http://h:1", "q", "", 60.0, 1.0, ("", "", ""))

        def ask(_: str, path: str, __: Any, headers: dict[str, str], **___: Any) -> Any:
            sent.append((path.partition("?")[0], headers["Idempotency-Key"]))
            answer = answers.pop(0)
            puller._leaving = not answers
            if answer is None:
                raise line.Lost("reset")
            return line.Answer(answer, self.headers(), b"body")

        puller._patience = _NoPatience()
        with (
            patch.object(puller._line, "ask", ask),
            patch.object(pulling, "take_signals"),
            patch.object(pulling, "start_new_thread"),
            patch.object(pulling.os, "register_at_fork"),
        ):
            puller.serve(self.handle)
        return sent

    @staticmethod
    def handle(command: Command) -> bytes:
        """Give it back."""
        return command.body

    @staticmethod
    def headers() -> Message:
        """Of a command under a lease."""
        message = Message()
        for name, text in (("Id", "j"), ("Attempt", "1"), ("Lease", "l")):
            message[f"Jobgate-{name}"] = text
        return message

    def test_asks_again_by_the_same_key(self) -> None:
        """What a lost answer carried comes again; every other request has a key of its own."""
        sent = self.serve([None, 204, None, 200, None, 200, 204])
        self.assertEqual(
            [path for path, _ in sent], ["/pull/q"] * 4 + ["/jobs/j/reply"] * 2 + ["/jobs/j/reply"]
        )
        keys = [key for _, key in sent]
        one, two, three, four = keys[0], keys[2], keys[4], keys[6]
        self.assertEqual(keys, [one, one, two, two, three, three, four])
        self.assertEqual(len({one, two, three, four}), 4)


class _NoPatience(Patience):
    """Waits for nothing, and says nothing."""

    def wait(self, seconds: float) -> None:
        """Not even a moment."""

    def say(self, text: str) -> None:
        """Nothing."""
