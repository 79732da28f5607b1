"""
`jobgate.jobs.outbound`: an HTTP client that trusts nobody.
"""

from __future__ import annotations

from OpenSSL import SSL
from service_identity import VerificationError
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectError, ConnectionAborted, ConnectionDone
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.client import ResponseNeverReceived

from jobgate.jobs.outbound import Outbound, Refused, explain
from jobgate.jobs.targets import Addresses
from tests.unit.fake_internet import FakeInternet, Wire

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n"


class OutboundTests(SynchronousTestCase):
    """From a URL to a status."""

    def setUp(self) -> None:
        self.reactor = FakeInternet()
        self.names = self.reactor.names

    def post(self, url: str = "http://a.example/x?y=1#z", *allow: str) -> Deferred[int]:
        outbound = Outbound(self.reactor, Addresses(allow))
        return Deferred.fromCoroutine(outbound.post(url, {"webhook-id": "i"}, b"{}"))

    def test_request(self) -> None:
        """One POST with what it was given, to the address that its name was found to have."""
        posted = self.post("http://a.example:8080/x?y=1#z")
        self.names.answer("1.1.1.1")
        self.assertEqual(self.reactor.tried, [("1.1.1.1", 8080)])
        wire = self.reactor.connect()
        head, _, body = wire.value().partition(b"\r\n\r\n")
        line, *fields = head.split(b"\r\n")
        self.assertEqual((line, body), (b"POST /x?y=1 HTTP/1.1", b"{}"))
        wanted = {b"Host: a.example:8080", b"Content-Length: 2", b"Connection: close"}
        self.assertLess(wanted, set(fields))
        self.assertIn(b"webhook-id: i", [field.lower() for field in fields])
        wire.protocol.dataReceived(ANSWER + b"ok")
        self.assertNoResult(posted)
        wire.end(ConnectionDone)
        self.assertEqual(self.successResultOf(posted), 200)
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_resolved_once(self) -> None:
        """What is connected to is what was checked: the name is not asked for again."""
        self.post()
        self.names.answer("1.1.1.1")
        self.reactor.connect()
        self.assertEqual(self.names.asked, ["a.example"])
        self.assertEqual(self.reactor.tried, [("1.1.1.1", 80)])

    def test_refused(self) -> None:
        """Nothing is connected to that must not be reached; the error says what it is."""
        posted = self.post()
        self.names.answer("10.0.0.1", "::1")
        error = self.failureResultOf(posted, Refused).value
        self.assertEqual(
            str(error),
            "a.example is 10.0.0.1 (private), ::1 (loopback):"
            " refused unless [callbacks] allow names it",
        )
        self.assertEqual(self.reactor.tried, [])

    def test_refused_literal(self) -> None:
        """An address that is one already is named once."""
        posted = self.post("http://[::1]:8080/")
        self.assertEqual(self.names.asked, ["::1"])
        self.names.answer("::1")
        error = self.failureResultOf(posted, Refused).value
        self.assertEqual(str(error), "::1 (loopback): refused unless [callbacks] allow names it")

    def test_refused_among_others(self) -> None:
        """Of several addresses only those are tried that may be."""
        posted = self.post()
        self.names.answer("127.0.0.1", "1.1.1.1", "169.254.169.254", "2606:4700::1")
        self.assertEqual(self.reactor.tried, [("1.1.1.1", 80)])
        self.reactor.refuse()
        self.assertEqual(self.reactor.tried, [("1.1.1.1", 80), ("2606:4700::1", 80)])
        self.reactor.refuse()
        error = self.failureResultOf(posted, ConnectError).value
        self.assertIn("cannot be connected to", explain(error))

    def test_allowed(self) -> None:
        """What the operator allows is reached."""
        self.post("http://a.example/", "10.0.0.0/8")
        self.names.answer("10.0.0.1")
        self.assertEqual(self.reactor.tried, [("10.0.0.1", 80)])

    def test_unknown_name(self) -> None:
        """A name without an address is said to be one."""
        posted = self.post()
        self.names.answer()
        error = self.failureResultOf(posted).value
        self.assertIn("a.example has no address", explain(error))

    def test_repeated_address(self) -> None:
        """An address that is told twice is tried once."""
        posted = self.post()
        self.names.answer("1.1.1.1", "1.1.1.1")
        self.reactor.refuse()
        self.failureResultOf(posted, ConnectError)

    def answered(self, data: bytes) -> tuple[Deferred[int], Wire]:
        posted = self.post()
        self.names.answer("1.1.1.1")
        wire = self.reactor.connect()
        wire.protocol.dataReceived(data)
        return posted, wire

    def test_no_redirect(self) -> None:
        """A redirect is an answer like any other."""
        posted, wire = self.answered(
            b"HTTP/1.1 302 Found\r\nLocation: http://10.0.0.1/\r\nContent-Length: 0\r\n\r\n"
        )
        wire.end(ConnectionDone)
        self.assertEqual(self.successResultOf(posted), 302)
        self.assertEqual((self.names.asked, len(self.reactor.tried)), (["a.example"], 1))

    def test_long_body(self) -> None:
        """More than is read of an answer ends the connection, but not what it has said."""
        posted, wire = self.answered(b"HTTP/1.1 200 OK\r\n\r\n")
        for _ in range(9):
            wire.protocol.dataReceived(b"x" * 8192)
            self.reactor.advance(0)
            if wire.ended:
                break
        self.assertIs(wire.ended, ConnectionAborted)
        self.assertEqual(self.successResultOf(posted), 200)

    def test_long_head(self) -> None:
        """A head that does not end is no answer."""
        posted, wire = self.answered(b"HTTP/1.1 200 OK\r\n")
        for _ in range(9):
            wire.protocol.dataReceived(b"X: y\r\n" * 1365)
            self.reactor.advance(0)
            if wire.ended:
                break
        error = self.failureResultOf(posted).value
        self.assertEqual(explain(error), "the head of its answer is longer than 65536 bytes")

    def test_slow_body(self) -> None:
        """Who has answered and does not end the connection has answered."""
        posted, wire = self.answered(ANSWER)
        self.assertNoResult(posted)
        self.reactor.advance(5)
        self.assertEqual(self.successResultOf(posted), 200)
        self.reactor.advance(0)
        self.assertIs(wire.ended, ConnectionAborted)

    def test_no_answer(self) -> None:
        """A connection that ends without an answer is said to have."""
        posted, wire = self.answered(b"HTTP/1.1 200")
        wire.end(ConnectionDone)
        error = self.failureResultOf(posted).value
        self.assertEqual(explain(error), "it closed the connection without an answer")

    def test_no_http(self) -> None:
        """What is no HTTP is not shown: it may not be for those who read the error."""
        for said in (
            b"SSH-2.0-secret\r\n",
            b"HTTP/1.1 secret\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: secret\r\n\r\n",
        ):
            posted, wire = self.answered(said)
            wire.end(ConnectionDone)
            error = self.failureResultOf(posted).value
            self.assertIn("its answer is not HTTP/1.1", explain(error))
            self.assertNotIn("secret", explain(error))

    def test_cancelled_while_it_runs(self) -> None:
        """Cancelling ends the connection."""
        posted, wire = self.answered(b"")
        posted.cancel()
        self.reactor.advance(0)
        self.assertIs(wire.ended, ConnectionAborted)
        self.failureResultOf(posted)

    def test_cancelled_while_it_resolves(self) -> None:
        """A name that is found after the cancelling is of no use to anybody."""
        posted = self.post()
        posted.cancel()
        self.failureResultOf(posted, CancelledError)
        self.names.answer("1.1.1.1")
        self.assertEqual(self.reactor.tried, [])

    def test_cancelled_while_it_connects(self) -> None:
        """A connection that is not there yet is not waited for."""
        posted = self.post()
        self.names.answer("1.1.1.1")
        posted.cancel()
        self.assertTrue(self.reactor.connectors[-1].stoppedConnecting)
        self.failureResultOf(posted)

    def test_tls(self) -> None:
        """What TLS finds wrong is said in its own words, without Python's."""
        for wrong, said in (
            (SSL.Error([("SSL routines", "", "certificate verify failed")]), "TLS: certificate"),
            (SSL.SysCallError(-1, "Unexpected EOF"), "TLS: the connection was cut"),
            (SSL.Error([]), "TLS: the connection was cut"),
            (VerificationError(errors=[]), "its certificate is for another host"),
        ):
            self.assertIn(said, explain(ResponseNeverReceived([Failure(wrong)])))

    def test_bug(self) -> None:
        """What nobody has thought of is named."""
        self.assertEqual(explain(KeyError("x")), "KeyError: 'x'")
