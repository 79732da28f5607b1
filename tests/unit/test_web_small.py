"""
`jobgate.web`: fields, access, problems, events, exchange and outbox.
"""

from __future__ import annotations

import json
from base64 import b64decode
from hashlib import sha256

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from jobgate import errors
from jobgate.config import GateConfig, GateSettings, Rate, TokenConfig
from jobgate.errors import BadRequest, Forbidden, JobgateError, QuotaExceeded, Unauthorized
from jobgate.gate.tokens import Token
from jobgate.web import fields
from jobgate.web.access import Access
from jobgate.web.events import as_event, error_event
from jobgate.web.exchange import Exchange, Head, Response, json_response, phrase
from jobgate.web.fields import CALL_FIELDS, PUSH_FIELDS
from jobgate.web.handler import HTTPHandler
from jobgate.web.openapi import document
from jobgate.web.outbox import Ledger, Outbox
from jobgate.web.problems import PROBLEMS, page, problem
from tests.unit.fakes import FakeTransport

READERS = {
    "seconds": lambda value: fields.seconds("Jobgate-Timeout", value),
    "boolean": lambda value: fields.boolean("Jobgate-No-Queue", value),
    "priority": fields.priority,
    "preferences": fields.preferences,
    "key": fields.key,
    "traceparent": fields.traceparent,
}


class FieldsTests(SynchronousTestCase):
    """Headers, read strictly."""

    header = st.binary(max_size=40) | st.text(
        '0123456789.-+eEinfau=?,; wt"respond-async_', max_size=30
    ).map(str.encode)

    @given(st.sampled_from(sorted(READERS)), header)
    @settings(max_examples=400)
    def test_only_bad_request(self, reader: str, value: bytes) -> None:
        """Whatever bytes a header is made of: a value, or BadRequest; never anything else."""
        try:
            READERS[reader](value)
        except BadRequest as error:
            self.assertTrue(error.detail)

    def test_very_long(self) -> None:
        """The same for headers as long as headers may be, digits above all."""
        for piece in (b"9", b"a", b",", b'"', b"=", b";", b" "):
            for start in (b"", b"u=", b"wait=", b"?", b"1e", b"u=-"):
                for reader in READERS.values():
                    try:
                        reader(start + piece * 20_000)
                    except BadRequest as error:
                        self.assertLess(len(error.detail), 500)

    def test_seconds(self) -> None:
        """A number above 0; the field is named otherwise."""
        for good in ("2.5", repr(1 / 3), repr(2.4894953279981564), repr(0.0012345678901234567)):
            self.assertEqual(fields.seconds("X", good.encode()), float(good))
            self.assertEqual(fields.span("X", good.encode()), float(good))
        for bad in (b"", b"0", b"-1", b"nan", b"inf", b"-inf", b"1e999", b"2s", b"1,5", b"0.0"):
            error = self.assertRaises(BadRequest, fields.seconds, "Jobgate-Timeout", bad)
            self.assertIn("Jobgate-Timeout", error.detail)

    def test_boolean(self) -> None:
        """`?1` and `?0`, nothing else."""
        self.assertEqual((fields.boolean("X", b"?1"), fields.boolean("X", b"?0")), (True, False))
        for bad in (b"", b"1", b"true", b"?2", b" ?1", b"?1;x"):
            self.assertRaises(BadRequest, fields.boolean, "X", bad)

    def test_priority(self) -> None:
        """`u` from 0 to 7, 3 without; other parameters are none of ours (RFC 9218)."""
        good = {
            b"u=0": 0,
            b"u=7": 7,
            b"": 3,
            b"i": 3,
            b"i, u=5": 5,
            b"u=1;x, i=?0": 1,
            b"du=9": 3,
            b"u=2,i": 2,
        }
        for value, wanted in good.items():
            self.assertEqual(fields.priority(value), wanted, value)
        for bad in (b"u=8", b"u=-1", b"u=", b"u", b"u=1.5", b"u=high", b"u=77"):
            self.assertRaises(BadRequest, fields.priority, bad)

    def test_preferences(self) -> None:
        """`respond-async` and `wait`, among others that are ignored (RFC 7240)."""
        read = fields.preferences
        self.assertEqual(read(b"wait=5"), (5.0, False))
        self.assertEqual(read(b"respond-async, wait=10"), (10.0, True))
        self.assertEqual(read(b'Respond-Async; x=y, WAIT="7"'), (7.0, True))
        self.assertEqual(read(b"return=minimal, handling=lenient"), (None, False))
        self.assertEqual(read(b"wait=1, wait=2"), (1.0, False))
        for bad in (b"wait", b"wait=", b"wait=-1", b"wait=1.5", b"wait=soon"):
            self.assertRaises(BadRequest, read, bad)

    def test_comma_in_a_quoted_preference(self) -> None:
        """A comma inside a quoted value does not begin another preference."""
        self.assertEqual(fields.preferences(b'foo="a, wait=3"'), (None, False))

    def test_endless_wait(self) -> None:
        """A wait of absurdly many digits is refused, or a number that can be counted with."""
        try:
            wait = fields.preferences(b"wait=" + b"9" * 400).wait
        except BadRequest:
            return
        self.assertLess(wait or 0.0, float("inf"))

    def test_key(self) -> None:
        """1 to 256 visible ASCII characters."""
        self.assertEqual(fields.key(b"user 7/x"), "user 7/x")
        self.assertEqual(len(fields.key(b"k" * 256)), 256)
        for bad in (b"", b"k" * 257, b"\xc3\xa9", b"a\tb", b"\x7f"):
            self.assertRaises(BadRequest, fields.key, bad)

    def test_traceparent(self) -> None:
        """A well-formed one is handed on, any other is dropped without complaint."""
        good = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
        self.assertEqual(fields.traceparent(good), good.decode())
        for bad in (b"", b"00-xyz", good + b"x", good.upper(), good[:-1]):
            self.assertIsNone(fields.traceparent(bad))


def request(path: bytes = b"/call/q", **headers: str) -> Exchange:
    """A request with these headers."""
    named = {
        name.replace("_", "-").encode(): value.encode("latin-1") for name, value in headers.items()
    }
    return Exchange(None, Head(b"POST", path, named))  # type: ignore[arg-type]


def token(
    name: str = "ci", secret: str = "s3cret", allow: tuple[str, ...] = (), rate: float | None = None
) -> TokenConfig:
    """A token's configuration."""
    digest = sha256(secret.encode()).hexdigest()
    return TokenConfig(
        name=name, sha256=digest, allow=allow, rate=None if rate is None else Rate(rate)
    )


class OpenApiTests(SynchronousTestCase):
    """What `/openapi.json` says is taken."""

    def test_what_a_route_takes(self) -> None:
        """The headers that are read, and a body where one is."""
        paths = document(HTTPHandler.app)["paths"]
        named = {
            path: {one["name"].lower().encode() for one in post["parameters"]}
            for path, operations in paths.items()
            if (post := operations.get("post")) and "parameters" in post
        }
        self.assertEqual(named["/call/{queue}"], {b"queue", *CALL_FIELDS})
        self.assertEqual(named["/push/{queue}"], {b"queue", b"each", *PUSH_FIELDS})
        for word in ("reply", "fail", "decline", "extend"):
            self.assertIn(b"jobgate-lease", named[f"/jobs/{{name}}/{word}"], word)
        taking = {
            path
            for path, operations in paths.items()
            if "requestBody" in operations.get("post", {})
        }
        self.assertEqual(
            taking,
            {
                "/call/{queue}",
                "/push/{queue}",
                "/jobs/{name}/reply",
                "/jobs/{name}/fail",
                "/leases/{lease}/fail",
                "/graphs",
            },
        )


class AccessTests(SynchronousTestCase):
    """Who may come in."""

    def setUp(self) -> None:
        self.now = 100.0

    def check(
        self, access: Access, exchange: Exchange, *, local: bool = False
    ) -> JobgateError | None:
        return access.check(exchange, lambda: self.now, local=local)

    def test_tokens(self) -> None:
        """A known token comes in and is known by name; others get `unauthorized`."""
        access = Access(GateConfig(tokens=(token(),)))
        for header in ("Bearer s3cret", "bearer s3cret", "BEARER  s3cret "):
            good = request(authorization=header)
            self.assertIsNone(self.check(access, good), header)
            self.assertEqual(good.token.name if good.token else None, "ci")
        for header in (
            "Bearer wrong",
            "s3cret",
            "Basic s3cret",
            "Bearer",
            "",
            "Bearer s3cret x",
            "Bearer S3CRET",
        ):
            for _ in range(2):
                bad = request(authorization=header)
                self.assertIsInstance(self.check(access, bad), Unauthorized, header)
                self.assertIsNone(bad.token)
        self.assertIsInstance(self.check(access, request()), Unauthorized)

    def test_local_needs_a_token_too(self) -> None:
        """Where there are tokens, a UNIX socket does not do without."""
        access = Access(GateConfig(tokens=(token(),)))
        self.assertIsInstance(self.check(access, request(), local=True), Unauthorized)

    def test_open_paths(self) -> None:
        """Health and problem pages are open, and nothing that only looks like them."""
        access = Access(GateConfig(tokens=(token(),)))
        for path in (b"/healthz", b"/readyz", b"/problems/queue-full", b"/healthz?x=1"):
            self.assertIsNone(self.check(access, request(path)), path)
        for path in (
            b"/healthz/",
            b"/metrics",
            b"/problems",
            b"/queues",
            b"/call/healthz",
            b"/%68ealthz",
        ):
            self.assertIsInstance(self.check(access, request(path)), Unauthorized, path)

    def test_rights(self) -> None:
        """Grants are matched whole, with `*` for any queue; `need` says what is missing."""
        access = Access(
            GateConfig(tokens=(token(allow=("call:resize", "push:*", "call:img.*", "metrics")),))
        )
        exchange = request(authorization="Bearer s3cret")
        self.check(access, exchange)
        for right in ("call:resize", "push:anything", "call:img.a", "metrics"):
            access.need(exchange, right)
            access.need(exchange, right)
        for right in (
            "call:resize2",
            "call:Resize",
            "call:other",
            "pull:x",
            "admin",
            "call:",
            "metric",
            "call:imgxa",
        ):
            error = self.assertRaises(Forbidden, access.need, exchange, right)
            self.assertIn(right, error.detail)

    def test_no_tokens_no_rights_asked(self) -> None:
        """Without tokens everything may be done by whoever comes in."""
        access = Access(GateConfig())
        exchange = request(host="localhost")
        self.assertIsNone(self.check(access, exchange))
        access.need(exchange, "admin")

    @given(
        st.lists(st.floats(0, 3), min_size=1, max_size=60), st.sampled_from([0.5, 1.0, 2.0, 7.5])
    )
    def test_quota(self, steps: list[float], rate: float) -> None:
        """
        Over any time no more than the rate and one burst come in; who waits `retry_after` does.
        """
        owner = Token(token(rate=rate))
        now, let_in = 1000.0, 0
        for step in steps:
            now += step
            try:
                owner.spend(now)
                let_in += 1
            except QuotaExceeded as error:
                assert error.retry_after is not None  # noqa: PT017
                self.assertGreater(error.retry_after, 0)
                now += error.retry_after + 1e-6
                owner.spend(now)
                let_in += 1
            self.assertLessEqual(let_in, max(1.0, rate) + (now - 1000.0) * rate + 1e-6)

    def test_quotas_are_each_ones_own(self) -> None:
        """One caller's spent quota is nobody else's."""
        access = Access(GateConfig(tokens=(token("a", "a", rate=1), token("b", "b", rate=1))))
        self.assertIsNone(self.check(access, request(authorization="Bearer a")))
        self.assertIsInstance(self.check(access, request(authorization="Bearer a")), QuotaExceeded)
        self.assertIsNone(self.check(access, request(authorization="Bearer b")))

    def test_open_whatever_is_spent(self) -> None:
        """Who sends its token along to health may do so more often than it may call."""
        access = Access(GateConfig(tokens=(token(rate=1),)))
        spent = request(authorization="Bearer s3cret")
        self.assertIsNone(self.check(access, spent))
        error = self.check(access, spent)
        assert isinstance(error, QuotaExceeded)
        self.assertEqual(error.detail, "ci may send 1 request a second")
        for path in (b"/healthz", b"/readyz", b"/problems/quota-exceeded"):
            opened = request(path, authorization="Bearer s3cret")
            self.assertIsNone(self.check(access, opened), path)

    def test_hosts(self) -> None:
        """Without tokens only loopback names are answered: a rebound name is not."""
        access = Access(GateConfig())
        good = (
            "localhost",
            "localhost:8080",
            "LOCALHOST",
            "127.0.0.1:80",
            "127.9.9.9",
            "[::1]:8080",
            "a.localhost",
        )
        bad = (
            "evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "10.0.0.1", "[::2]", "0.0.0.0",  # noqa: E501
            "127.0.0.evil", "evil.example:127.0.0.1", "localhost@evil.example", "[::1", "128.0.0.1", "xlocalhost", "é",  # noqa: E501
        )  # fmt: skip
        for host in good:
            self.assertIsNone(self.check(access, request(host=host)), host)
        for host in bad:
            for _ in range(2):
                self.assertIsInstance(self.check(access, request(host=host)), Forbidden, host)

    def test_web_pages(self) -> None:
        """
        Without tokens a foreign web page is refused by Origin or Sec-Fetch-Site, its own page is
        not.
        """
        access = Access(GateConfig())
        good = (
            {"origin": "http://localhost:8080"},
            {"sec_fetch_site": "same-origin"},
            {"sec_fetch_site": "none"},
            {"origin": "http://localhost:8080", "sec_fetch_site": "same-origin"},
        )
        bad = (
            {"origin": "http://evil.example"},
            {"origin": "null"},
            {"origin": ""},
            {"origin": "http://localhost"},
            {"origin": "http://localhost:9090"},
            {"origin": "http://localhost:8080.evil.example"},
            {"sec_fetch_site": "cross-site"},
            {"sec_fetch_site": "same-site"},
            {"sec_fetch_site": ""},
            {"origin": "http://evil.example", "sec_fetch_site": "same-origin"},
        )
        for headers in good:
            self.assertIsNone(
                self.check(access, request(host="localhost:8080", **headers)), headers
            )
        for headers in bad:
            found = self.check(access, request(host="localhost:8080", **headers))
            self.assertIsInstance(found, Forbidden, headers)

    def test_local_and_insecure(self) -> None:
        """A UNIX socket and `insecure = true` ask for no Host."""
        self.assertIsNone(self.check(Access(GateConfig()), request(host="x"), local=True))
        access = Access(GateConfig(gate=GateSettings(insecure=True)))
        self.assertIsNone(
            self.check(access, request(host="anything.example", origin="http://evil.example"))
        )


def subclasses(kind: type[JobgateError]) -> set[type[JobgateError]]:
    """All errors there are."""
    return {kind, *(one for sub in kind.__subclasses__() for one in subclasses(sub))}


def made(kind: type[JobgateError]) -> JobgateError:
    """One of this kind."""
    return kind("GET") if kind is errors.MethodNotAllowed else kind("the detail")


class ProblemsTests(SynchronousTestCase):
    """Errors as documents (RFC 9457)."""

    def test_every_error(self) -> None:
        """
        Every error has a status, a document with all members, a page, and says what was executed.
        """
        for kind in subclasses(JobgateError):
            error = made(kind)
            response = problem(error, "g-1")
            document = json.loads(response.body)
            self.assertEqual(response.content_type, "application/problem+json")
            self.assertTrue(400 <= response.status < 600, kind)
            self.assertEqual(
                (document["type"], document["status"], document["id"]),
                (f"/problems/{kind.slug}", response.status, "g-1"),
            )
            self.assertTrue(document["title"])
            self.assertIn(document["executed"], ("no", "maybe", "yes"), kind)
            self.assertIn("detail", document)
            self.assertIn("Jobgate-Id: g-1\r\n", response.fields)
            shown = page(kind.slug)
            self.assertEqual(shown.status, 200)
            self.assertIn(f"Status: {PROBLEMS[kind.slug].status}", bytes(shown.body).decode())

    def test_the_contracts_table(self) -> None:
        """Statuses and slugs are those of contract section 4.5."""
        wanted = {
            "unknown-queue": 404, "not-found": 404, "method-not-allowed": 405, "bad-request": 400,
            "unprocessable": 422, "body-too-large": 413, "queue-full": 503, "would-miss-deadline": 503,  # noqa: E501
            "gate-full": 503, "quota-exceeded": 429, "queue-timeout": 504, "worker-timeout": 504,
            "worker-died": 502, "poison-command": 502, "worker-protocol-error": 502, "command-failed": 500,  # noqa: E501
            "no-worker": 503, "shutting-down": 503, "unauthorized": 401, "forbidden": 403,
        }  # fmt: skip
        for slug, status in wanted.items():
            self.assertEqual(PROBLEMS[slug].status, status, slug)

    def test_fields(self) -> None:
        """
        Retry-After on 429 and 503, Allow on 405, WWW-Authenticate on 401, close while draining.
        """
        for kind in subclasses(JobgateError):
            response = problem(made(kind))
            self.assertEqual(
                "Retry-After: 1\r\n" in response.fields, response.status in (429, 503), kind
            )
            self.assertEqual(response.close, kind is errors.ShuttingDown)
        self.assertIn("Retry-After: 3\r\n", problem(errors.QueueFull("x", retry_after=2.1)).fields)
        self.assertIn("Allow: GET\r\n", problem(errors.MethodNotAllowed("GET")).fields)
        self.assertIn("WWW-Authenticate: Bearer", problem(Unauthorized()).fields)

    def test_full_status(self) -> None:
        """
        `queue-full` is 429 where the queue says so, and still has Retry-After; nothing else is.
        """
        response = problem(errors.QueueFull("x"), "", 429)
        self.assertEqual((response.status, json.loads(response.body)["status"]), (429, 429))
        self.assertIn("Retry-After", response.fields)
        self.assertEqual(problem(errors.GateFull("x"), "", 429).status, 503)

    def test_command_failed(self) -> None:
        """FAIL has the worker's title, detail and status, and has been executed."""
        response = problem(errors.CommandFailed("Bad picture", "no pixels", 422))
        document = json.loads(response.body)
        self.assertEqual(
            (response.status, document["title"], document["detail"], document["executed"]),
            (422, "Bad picture", "no pixels", "yes"),
        )

    def test_extra(self) -> None:
        """
        Further members are in the document, empty ones are not; `executed` may be said better.
        """
        error = errors.WorkerDied("x", exit_status=None, signal="SIGKILL", attempt=2, executed="no")
        document = json.loads(problem(error).body)
        self.assertEqual(
            (document["signal"], document["attempt"], document["executed"]), ("SIGKILL", 2, "no")
        )
        self.assertNotIn("exit_status", document)

    def test_pages(self) -> None:
        """No two kinds share a page's title, and an unknown one is not found."""
        titles = [bytes(page(slug).body).decode().split("\n")[0] for slug in PROBLEMS]
        self.assertEqual(len(set(titles)), len(titles), sorted(titles))
        self.assertRaises(errors.NotFound, page, "nope")

    @given(st.text(max_size=40).filter(lambda text: text.isprintable()))
    def test_no_header_injection(self, text: str) -> None:
        """A detail never gets into the headers."""
        response = problem(errors.QueueFull(f"a\r\nX-Evil: {text}"))
        self.assertNotIn("Evil", response.fields)


class EventsTests(SynchronousTestCase):
    """Server-sent events."""

    @staticmethod
    def parse(event: bytes) -> tuple[str, str]:
        """As a browser does."""
        kind, data = "message", []
        for line in event.decode().split("\n"):
            if line.startswith("event: "):
                kind = line[7:]
            elif line.startswith("data: "):
                data.append(line[6:])
        return kind, "\n".join(data)

    @given(st.binary(max_size=60) | st.text(max_size=30).map(str.encode))
    @settings(max_examples=150)
    def test_anything_survives(self, data: bytes) -> None:
        """Any bytes come out as they went in, as one event that cannot be mistaken for two."""
        event = as_event(data)
        self.assertTrue(event.endswith(b"\n\n"))
        self.assertNotIn(b"\n\n", event[:-1])
        self.assertNotIn(b"\r", event)
        kind, text = self.parse(event)
        self.assertEqual(b64decode(text) if kind == "base64" else text.encode(), data)

    def test_named(self) -> None:
        """An event may have a name."""
        self.assertEqual(as_event(b"x", "state"), b"event: state\ndata: x\n\n")

    def test_errors(self) -> None:
        """A failure is the event `error` with the problem; what has no name is the gate's own."""
        kind, text = self.parse(error_event(Failure(errors.WorkerDied("why")), "c1"))
        self.assertEqual((kind, json.loads(text)["type"]), ("error", "/problems/worker-died"))
        _, text = self.parse(error_event(Failure(ZeroDivisionError("secret")), ""))
        self.assertEqual(json.loads(text)["type"], "/problems/internal-error")
        self.assertNotIn("secret", text)
        self.assertLessEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)


class ExchangeTests(SynchronousTestCase):
    """One request and its response."""

    def test_path(self) -> None:
        """The path is what stands before the first question mark, as sent."""
        self.assertEqual(request(b"/a%20b?c?d").head.path, b"/a%20b")

    def test_lost_once(self) -> None:
        """Whoever serves it is told once that the caller has left."""
        told: list[int] = []
        exchange = request()
        exchange.lost()
        exchange.on_lost = lambda: told.append(1)
        exchange.lost()
        exchange.lost()
        self.assertEqual(told, [1])

    def test_phrases(self) -> None:
        """Every status has a reason phrase, strange ones too."""
        self.assertEqual(
            (phrase(200), phrase(413), phrase(599)), ("OK", "Content Too Large", "Unknown")
        )

    def test_json(self) -> None:
        """A document as a response."""
        response = json_response({"a": 1}, 202, fields="X: y\r\n")
        self.assertIsInstance(response, Response)
        self.assertEqual(
            (response.status, response.body, response.fields), (202, b'{"a":1}', "X: y\r\n")
        )
        self.assertEqual(response.content_type, "application/json")


class LedgerTests(SynchronousTestCase):
    """Bytes held."""

    def test_reserve(self) -> None:
        """Room is taken whole or not at all."""
        ledger = Ledger(10)
        self.assertTrue(ledger.reserve(10))
        self.assertFalse(ledger.reserve(1))
        self.assertTrue(ledger.reserve(0))
        self.assertEqual(ledger.held, 10)


class OutboxTests(SynchronousTestCase):
    """The sending side."""

    def build(self, room: float = float("inf")) -> None:
        self.ledger = Ledger(10**9)
        self.transport = FakeTransport(room)
        self.outbox = Outbox(self.transport, self.ledger, lambda: 7.0)
        self.empty = 0

        def emptied() -> None:
            self.empty += 1

        self.outbox.on_empty = emptied

    @given(
        st.lists(
            st.tuples(
                st.integers(1, 300),
                st.sampled_from([0, 0, 10, 5_000, 40_000, 300_000, 600_000]),
                st.sampled_from([0, 0, 1, 100, 50_000, 400_000, 10**7]),
            ),
            min_size=1,
            max_size=8,
        ),
        st.sampled_from([0, 1, 100, 70_000, 10**6, 10**9]),
    )
    @settings(max_examples=100)
    def test_order_and_sums(self, steps: list[tuple[int, int, int]], room: int) -> None:
        """
        However little the reader takes at a time, everything arrives in order and the sums end at
        zero.
        """
        self.build(room)
        wanted = bytearray()
        for number, (head, body, reads) in enumerate(steps):
            first, second = bytes([65 + number]) * head, bytes([97 + number]) * body
            self.outbox.send(first, second)
            wanted += first + second
            self.assertEqual(self.ledger.held, self.outbox.unsent)
            self.assertTrue(bytes(wanted).startswith(self.transport.sent))
            if reads:
                self.transport.reads(reads)
        while len(self.transport.sent) < len(wanted):
            self.transport.reads(300_000)
        self.transport.reads(1)
        self.assertEqual(self.transport.sent, bytes(wanted))
        self.assertEqual(
            (self.ledger.held, self.outbox.unsent, self.transport.producer), (0, 0, None)
        )

    def test_all_at_once(self) -> None:
        """What the kernel takes whole is never held, nor is a producer registered."""
        self.build()
        self.outbox.send(b"head", b"x" * 100_000)
        self.assertEqual((self.ledger.held, self.transport.producer, self.empty), (0, None, 0))

    def test_told_when_empty(self) -> None:
        """It tells once when the reader has taken everything."""
        self.build(10)
        self.outbox.send(b"head", b"x" * 600_000)
        self.assertGreater(self.outbox.unsent, 0)
        self.transport.reads(100_000)
        self.assertEqual(self.empty, 0)
        self.transport.reads()
        self.assertEqual((self.empty, self.outbox.unsent), (1, 0))

    def test_close(self) -> None:
        """What a caller that left did not take is forgotten, once."""
        self.build(10)
        self.outbox.send(b"head", b"x" * 600_000)
        self.outbox.close()
        self.outbox.close()
        self.assertEqual((self.ledger.held, self.outbox.unsent), (0, 0))

    def test_connection_lost(self) -> None:
        """A broken connection gives its bytes back by itself."""
        self.build(10)
        self.outbox.send(b"head", b"x" * 600_000)
        self.transport._lost()
        self.assertEqual(self.ledger.held, 0)

    def test_dead_socket(self) -> None:
        """A socket that fails is Twisted's to notice; nothing is held for it."""
        self.build()

        def broken(_: bytes) -> int:
            raise ConnectionResetError

        self.transport.socket.send = broken  # type: ignore[method-assign]
        self.outbox.send(b"head")
        self.assertEqual(self.ledger.held, 0)
