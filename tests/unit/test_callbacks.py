"""
`jobgate.jobs.callbacks`: telling the end of a job.
"""

from __future__ import annotations

import json
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import ConnectionAborted, ConnectionDone
from twisted.trial.unittest import SynchronousTestCase

from jobgate import errors
from jobgate.command import Command
from jobgate.config import CallbackSettings, Secret
from jobgate.gate.road import Road
from jobgate.jobs.callbacks import QUEUE, Callbacks
from jobgate.jobs.job import CALLBACKS, State, callback
from tests.unit.fake_internet import FakeInternet, Wire

URL = "http://a.example/hook?token=secret"
DOCUMENT = b'{"id":"g-1","state":"succeeded"}'
NOW = 1614265330.9


class RoadForeman:
    """Puts workers to work on a Road, as a gate does."""

    def __init__(self, road: Road) -> None:
        self.road = road

    def worker_ready(self, worker: Any, post: int) -> None:
        runner = self.road.hire(worker, post)
        worker.hire(runner)
        runner.start()

    def worker_leaving(self, worker: Any) -> None:
        self.road.dismiss(worker)


class CallbackTests(SynchronousTestCase):
    """The job that tells an end."""

    def test_job(self) -> None:
        """Its id is the other's and how that ended, so that it is put once for each end."""
        job = callback("g-1", State.DEAD, "https://a.example/")
        self.assertEqual(
            (job.id, job.queue, job.content_type), ("g-1-dead", CALLBACKS, "application/json")
        )
        self.assertEqual(job.attempts, 10)
        self.assertEqual(
            json.loads(job.body), {"job": "g-1", "state": "dead", "url": "https://a.example/"}
        )


class CallbacksTests(SynchronousTestCase):
    """From a job of the reserved queue to a request, and what becomes of it."""

    def setUp(self) -> None:
        self.reactor = FakeInternet()
        self.reactor.advance(1000)
        self.road = Road(QUEUE, self.reactor, None)
        self.asked: list[str] = []
        self.document: Any = lambda: succeed(DOCUMENT)
        self.addCleanup(self.road.close)

    def start(self, **settings: Any) -> Callbacks:
        callbacks = Callbacks(
            CallbackSettings(**{"runners": 1, **settings}), self.reactor, lambda: NOW
        )
        callbacks.tell(self.document_of)
        callbacks.work_for(RoadForeman(self.road))
        return callbacks

    def document_of(self, job: str) -> Deferred[bytes | None]:
        self.asked.append(job)
        found: Deferred[bytes | None] = self.document()
        return found

    def submit(self, url: str = URL, body: bytes | None = None, job: str = "g-1") -> Command:
        made = callback(job, State.SUCCEEDED, url)
        now = self.reactor.seconds()
        command = Command(
            made.queue, made.id, made.body if body is None else body, "", 3, now, float("inf")
        )
        self.road.submit(command)
        self.reactor.advance(0)
        return command

    def deliver(self, url: str = URL) -> tuple[Command, Wire]:
        """As far as a receiver that has the request and has not answered."""
        command = self.submit(url)
        self.reactor.names.answer("1.1.1.1")
        return command, self.reactor.connect()

    def answer(self, wire: Wire, status: int) -> None:
        wire.protocol.dataReceived(b"HTTP/1.1 %d X\r\nContent-Length: 0\r\n\r\n" % status)
        wire.end(ConnectionDone)

    def failed(self, command: Command, kind: type[Exception] = errors.CommandFailed) -> Any:
        return self.failureResultOf(command.reply, kind).value

    def test_delivered(self) -> None:
        """The receiver gets the state document, signed; the reply says what it answered."""
        self.start(secret=Secret("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"))
        command, wire = self.deliver()
        head, _, body = wire.value().partition(b"\r\n\r\n")
        fields = {
            name.lower().decode(): value.decode()
            for name, _, value in (line.partition(b": ") for line in head.split(b"\r\n")[1:])
        }
        self.assertEqual((self.asked, body), (["g-1"], DOCUMENT))
        self.assertTrue(head.startswith(b"POST /hook?token=secret HTTP/1.1\r\n"))
        self.assertEqual(fields["content-type"], "application/json")
        self.assertEqual(fields["webhook-id"], "g-1-succeeded")
        self.assertEqual(fields["webhook-timestamp"], "1614265330")
        self.assertRegex(fields["webhook-signature"], r"^v1,[A-Za-z0-9+/]{43}=$")
        self.assertTrue(fields["user-agent"].startswith("jobgate/"))
        self.answer(wire, 204)
        reply = self.successResultOf(command.reply)
        self.assertEqual((reply.body, reply.content_type), (b'{"status":204}', "application/json"))
        self.assertEqual(command.worker.name, "~callbacks-1")  # type: ignore[union-attr]

    def test_not_before_both_are_known(self) -> None:
        """Nobody is hired before there is a Road, nor before it is known what is told."""
        foreman: Any = RoadForeman(self.road)
        for first, then in (
            (lambda c: c.work_for(foreman), lambda c: c.tell(self.document_of)),
            (lambda c: c.tell(self.document_of), lambda c: c.work_for(foreman)),
        ):
            callbacks = Callbacks(CallbackSettings(runners=2), self.reactor)
            first(callbacks)
            callbacks.reconfigure(CallbackSettings(runners=3))
            self.assertEqual(callbacks.workers, [])
            then(callbacks)
            self.assertEqual(len(callbacks.workers), 3)
            callbacks.stop()
            self.assertEqual(callbacks.workers, [])

    def test_unsigned(self) -> None:
        """Without a secret there is no signature."""
        self.start()
        _, wire = self.deliver()
        self.assertIn(b"webhook-id", wire.value().lower())
        self.assertNotIn(b"webhook-signature", wire.value().lower())

    def test_statuses(self) -> None:
        """Only 2xx is a success; after 410 nobody tries again, after all others one does."""
        self.start()
        for status, again in ((302, True), (404, True), (410, False), (429, True), (500, True)):
            command, wire = self.deliver()
            self.answer(wire, status)
            error = self.failed(command)
            self.assertEqual((error.again, error.status, error.executed), (again, 502, "yes"))
            self.assertIn(f"a.example answered {status}, wanted 200 to 299", error.detail)
            self.assertNotIn("secret", error.detail)
            self.assertEqual("redirects" in error.detail, status == 302)

    def test_network(self) -> None:
        """What goes wrong on the way is tried again, and said."""
        self.start()
        command = self.submit()
        self.reactor.names.answer("1.1.1.1")
        self.reactor.refuse()
        error = self.failed(command)
        self.assertIn("a.example: it cannot be connected to", error.detail)
        self.assertEqual((error.again, error.executed), (True, "maybe"))

    def test_refused_address(self) -> None:
        """An address that must not be reached will not be later, either."""
        self.start()
        command = self.submit()
        self.reactor.names.answer("127.0.0.1")
        error = self.failed(command)
        self.assertIn("a.example is 127.0.0.1 (loopback)", error.detail)
        self.assertFalse(error.again)

    def test_forgotten_job(self) -> None:
        """Of a job that nobody knows any more there is nothing to tell."""
        self.start()
        self.document = lambda: succeed(None)
        error = self.failed(self.submit())
        self.assertEqual((error.again, error.detail), (False, "the job g-1 is no longer kept"))
        self.assertEqual(self.reactor.names.asked, [])

    def test_store_in_trouble(self) -> None:
        """What the store says is what it ends with."""
        self.start()
        store: Deferred[bytes | None] = Deferred()
        self.document = lambda: store
        command = self.submit()
        store.errback(errors.StoreUnavailable("full"))
        self.failed(command, errors.StoreUnavailable)

    def test_strange_bodies(self) -> None:
        """What is no callback is not delivered, and tried no more."""
        self.start()
        for body in (b"", b"[]", b'{"job":"g"}'):
            self.assertFalse(self.failed(self.submit(body=body)).again)
        self.failed(self.submit("http://user@a.example/"), errors.BadRequest)

    def test_bug(self) -> None:
        """Whatever happens, the command ends, and the next one is delivered."""
        self.start()
        self.document = lambda: 1 / 0
        self.failed(self.submit(), errors.InternalError)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.document = lambda: succeed(DOCUMENT)
        command, wire = self.deliver()
        self.answer(wire, 200)
        self.successResultOf(command.reply)

    def test_runners(self) -> None:
        """As many are under way at once as there are runners; the others wait."""
        self.start(runners=2)
        first, second, third = self.submit(), self.submit(), self.submit()
        self.assertEqual((self.road.running, self.road.waiting), (2, 1))
        self.assertEqual(len(self.reactor.names.asked), 2)
        self.reactor.names.answer()
        self.reactor.advance(0)
        self.assertEqual(len(self.reactor.names.asked), 3)
        self.failed(first)
        for command in (second, third):
            self.reactor.names.answer()
            self.failed(command)

    def test_hangs(self) -> None:
        """A receiver that hangs is left after the queue's time, and its runner goes on."""
        self.start()
        command, wire = self.deliver()
        following = self.submit()
        self.reactor.advance(29)
        self.assertNoResult(command.reply)
        self.reactor.advance(2)
        error = self.failed(command, errors.WorkerTimeout)
        self.assertIn("30 s", error.detail)
        self.reactor.advance(0)
        self.assertIs(wire.ended, ConnectionAborted)
        self.assertEqual(len(self.reactor.names.asked), 2)
        # What the first one left behind ends nothing of the second.
        self.reactor.advance(20)
        self.assertNoResult(following.reply)
        self.reactor.names.answer("1.1.1.1")
        self.answer(self.reactor.connect(), 200)
        self.successResultOf(following.reply)
        self.road.close()
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_name_server_hangs(self) -> None:
        """A name that is found after the time is up is of no use, and does no harm."""
        self.start()
        command = self.submit()
        self.reactor.advance(31)
        self.failed(command, errors.WorkerTimeout)
        self.reactor.names.answer("1.1.1.1")
        self.assertEqual(self.reactor.tried, [])

    def test_cancelled(self) -> None:
        """Nobody wants it any more: it is cut off, and the next one is delivered."""
        self.start()
        command, wire = self.deliver()
        following = self.submit()
        command.reply.addErrback(lambda _: None)
        command.reply.cancel()
        self.reactor.advance(0)
        self.assertIs(wire.ended, ConnectionAborted)
        self.reactor.names.answer()
        self.failed(following)
        self.assertEqual(self.road.stats.cancelled, 1)

    def test_settled_at_once(self) -> None:
        """However many end without waiting for anything, they end one after the other."""
        self.start()
        self.document = lambda: succeed(None)
        commands = [self.submit() for _ in range(3)]
        many = [self.road.submit(made) or made for made in self.made(120)]
        for _ in range(130):
            self.reactor.advance(0)
        for command in [*commands, *many]:
            self.failed(command)

    def made(self, count: int) -> list[Command]:
        body = callback("g-1", State.FAILED, URL).body
        now = self.reactor.seconds()
        return [Command(CALLBACKS, f"c{n}", body, "", 3, now, float("inf")) for n in range(count)]

    def test_other_settings(self) -> None:
        """A reload changes secret, addresses and the number of runners; none is interrupted."""
        callbacks = self.start(runners=3)
        command, wire = self.deliver()
        secret = Secret("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
        callbacks.reconfigure(CallbackSettings(runners=1, secret=secret, allow=("10.0.0.0/8",)))
        self.answer(wire, 200)
        self.successResultOf(command.reply)
        following = self.submit()
        self.submit().reply.addErrback(lambda _: None)
        self.assertEqual((self.road.running, self.road.waiting), (1, 1))
        self.reactor.names.answer("10.0.0.1")
        wire = self.reactor.connect()
        self.assertIn(b"webhook-signature: v1,", wire.value().lower())
        callbacks.reconfigure(CallbackSettings(runners=2))
        self.reactor.advance(0)
        self.assertEqual((self.road.running, self.road.waiting), (2, 0))
        self.answer(wire, 200)
        self.successResultOf(following.reply)

    def test_fewer_runners(self) -> None:
        """A runner too many ends what it has, and takes no more."""
        callbacks = self.start(runners=2)
        both = [self.submit(), self.submit()]
        waiting = self.submit()
        callbacks.reconfigure(CallbackSettings(runners=1))
        self.assertEqual((self.road.running, self.road.waiting), (2, 1))
        self.reactor.names.answer()
        self.reactor.names.answer()
        for command in both:
            self.failed(command)
        self.reactor.advance(0)
        self.assertEqual((self.road.running, self.road.waiting), (1, 0))
        self.reactor.names.answer()
        self.failed(waiting)

    def test_stop(self) -> None:
        """At the end nothing goes on."""
        callbacks = self.start()
        command, wire = self.deliver()
        worker = callbacks.workers[0]
        self.assertEqual(repr(worker), "<~callbacks-1 busy>")
        self.road.abandon()
        callbacks.stop()
        self.failed(command, errors.ShuttingDown)
        self.reactor.advance(0)
        self.assertIs(wire.ended, ConnectionAborted)
        self.assertEqual((worker.room, worker.send(command)), (0, False))
        self.assertEqual(repr(worker), "<~callbacks-1 idle>")
        self.road.close()
        self.assertEqual(self.reactor.getDelayedCalls(), [])
