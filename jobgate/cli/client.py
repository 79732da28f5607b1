"""
One kept-alive connection to a gate, and the patience to use it.

Standard library only. Must not know what a request is for, only whether it may be repeated.
"""

from __future__ import annotations

import json
import random
import time
from http.client import HTTPConnection, HTTPException, HTTPSConnection, IncompleteRead
from typing import IO, TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from jobgate import __version__
from jobgate.cli.exits import BUSY, FAILED, REFUSED, UNREACHABLE, USAGE, CliError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

__all__ = ["Answer", "Client", "Lost"]

_CONNECT_WITHIN = 10.0
"""Seconds for a connection to be made."""
_ANSWER_WITHIN = 60.0
"""Seconds without a byte of an answer after which a connection is given up."""
_FIRST, _FACTOR, _LONGEST = 0.1, 2.0, 2.0
"""Seconds before the first repetition after a lost connection, growth, and the longest."""
_BUSY_FOR = 1.0
"""Seconds to wait where a gate that is busy does not say how long."""
_PIECE = 256 * 1024


class Lost(Exception):
    """No whole answer came: whether the request was carried out is not known."""


class Answer(NamedTuple):
    """
    What a gate said.

    Attributes:
        status: The HTTP status.
        headers: By lower-case name.
        body: All of it; empty if it went into a file.
        lost_before: An earlier try of the same request was lost: it may have been carried out.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    lost_before: bool = False

    @property
    def problem(self) -> dict[str, Any]:
        """The problem document (RFC 9457), or what can be said without one."""
        if self.headers.get("content-type", "").startswith("application/problem+json"):
            try:
                document = json.loads(self.body)
            except ValueError:
                document = None
            if isinstance(document, dict):
                return document
        return {"type": "about:blank", "title": f"HTTP status {self.status}", "status": self.status}

    @property
    def slug(self) -> str:
        """The problem's stable name, or nothing."""
        return str(self.problem["type"]).rpartition("/problems/")[2]

    @property
    def retry_after(self) -> float:
        """Seconds after which asking again makes sense."""
        text = self.headers.get("retry-after", "")
        return float(text) if text.isdecimal() else _BUSY_FOR

    @property
    def error(self) -> CliError:
        """What to say, and the exit status, where the answer is a refusal or a failure."""
        problem = self.problem
        words = [str(problem.get("title", "")), str(problem.get("detail") or "")]
        text = ": ".join(word for word in words if word)
        if "executed" in problem:
            text += f" (executed: {problem['executed']})"
        name = "" if self.slug == "about:blank" else f"{self.slug}: "
        if self.slug == "command-failed":
            return CliError(f"{name}{text}", FAILED)
        if self.status in (429, 503):
            return CliError(f"{name}{text}", BUSY)
        return CliError(f"{name}{text}", FAILED if self.status >= 500 else REFUSED)

    def json(self) -> Any:  # noqa: ANN401 (it is JSON)
        """
        The document.

        Raises:
            CliError: It is none.
        """
        try:
            return json.loads(self.body)
        except ValueError:
            found = self.headers.get("content-type", "nothing")
            raise CliError(f"found {found}, wanted JSON: is this a gate?", REFUSED) from None


class Client:
    """
    Talks to one gate.

    Args:
        url: Where it is: `http://host:port`, `https://…`, with a path in front if need be.
        token: What is shown to it, if anything.
        patience: Seconds without any success after which `insist` gives up; 0: never.
        told: Is told in a few words what it waits for, and "" when that is over.

    Attributes:
        repeated: How many requests had to be sent again.

    Raises:
        CliError: The URL or the token is none.
    """

    def __init__(
        self,
        url: str,
        token: str = "",
        patience: float = 0,
        told: Callable[[str], None] = lambda _: None,
    ) -> None:
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            parts, port = urlsplit(""), None
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise CliError(f"found the URL {url!r}, wanted http://HOST:PORT or https://…", USAGE)
        if parts.query or parts.fragment or parts.username:
            raise CliError(f"found the URL {url!r}, wanted it without ?, # and @", USAGE)
        if not (token.isascii() and token.isprintable()):
            raise CliError("found a JOBGATE_TOKEN that is not visible ASCII", USAGE)
        kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
        self._connection = kind(parts.hostname, port, timeout=_CONNECT_WITHIN)
        self._prefix = parts.path.rstrip("/")
        self._headers = {"User-Agent": f"jobgate/{__version__}"}
        if token:
            self._headers["Authorization"] = f"Bearer {token}"
        self._url = url
        self._patience = patience
        self._told = told
        self.repeated = 0

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def ask(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        *,
        wait: float = 0,
        into: IO[bytes] | None = None,
    ) -> Answer:
        """
        Send one request, once.

        Args:
            method: GET, POST or DELETE.
            path: Below the URL, with its query.
            body: What is sent.
            headers: What is said about it.
            wait: Seconds for which the gate may keep the answer back.
            into: Where the body of an answer with status 200 goes, instead of memory.

        Raises:
            Lost: There was no whole answer.
        """
        connection = self._connection
        try:
            if connection.sock is None:
                connection.timeout = _CONNECT_WITHIN
                connection.connect()
            assert connection.sock is not None, "connected"
            connection.sock.settimeout(wait + _ANSWER_WITHIN)
            connection.request(
                method, self._prefix + path, body or None, {**self._headers, **(headers or {})}
            )
            response = connection.getresponse()
            found = {name.lower(): value for name, value in response.getheaders()}
            data = b""
            if response.length is None and not response.chunked:
                # A connection that ends inside the headers looks to http.client as if they did.
                raise IncompleteRead(data)  # noqa: TRY301 (as `read` does)
            if into is not None and response.status == 200:
                while piece := response.read(_PIECE):
                    into.write(piece)
            else:
                data = response.read()
            if response.length:
                raise IncompleteRead(data, response.length)  # noqa: TRY301 (as `read` does)
        except (OSError, HTTPException) as error:
            connection.close()
            why = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise Lost(f"{self._url}: {why}") from None
        except BaseException:
            # Half an answer must not be taken for the next one.
            connection.close()
            raise
        return Answer(response.status, found, data)

    def once(self, *request: Any, **named: Any) -> Answer:  # noqa: ANN401 (as `ask` has them)
        """
        `ask`, for what must not be repeated.

        Raises:
            CliError: There was no whole answer.
        """
        try:
            return self.ask(*request, **named)
        except Lost as lost:
            raise CliError(str(lost), UNREACHABLE) from None

    def insist(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        *,
        wait: float = 0,
        into: IO[bytes] | None = None,
        also: Collection[str] = (),
    ) -> Answer:
        """
        Send a request until there is an answer; it must be one that may be repeated.

        A lost connection is made again after a while, a gate that is busy is asked again when
        it says so. Arguments as for `ask`.

        Args:
            method: As above.
            path: As above.
            body: As above.
            headers: As above.
            wait: As above.
            into: As above; emptied before a repetition.
            also: Slugs of refusals (429, 503) that are an answer, too, as long as no try was lost.

        Raises:
            CliError: Patience is at its end.
        """
        began = time.monotonic()
        delay, lost_before, waited = _FIRST, False, False
        while True:
            try:
                answer = self.ask(method, path, body, headers, wait=wait, into=into)
            except Lost as lost:
                lost_before, why, status = True, str(lost), UNREACHABLE
                pause = delay * random.uniform(0.5, 1)  # noqa: S311 (it need not be a secret)
                delay = min(delay * _FACTOR, _LONGEST)
            else:
                busy = answer.status in (429, 503) and (lost_before or answer.slug not in also)
                # 502 and 504 without a problem document are a balancer's, before a gate.
                absent = answer.status in (502, 504) and answer.slug == "about:blank"
                if not (busy or absent):
                    if waited:
                        self._told("")
                    return answer._replace(lost_before=lost_before)
                lost_before = lost_before or absent
                error = answer.error
                why, status = str(error), error.status if busy else UNREACHABLE
                pause = answer.retry_after
            if self._patience and time.monotonic() + pause - began > self._patience:
                raise CliError(why, status)
            waited = True
            self.rest(pause, why)
            if into is not None:
                into.seek(0)
                into.truncate()

    def rest(self, pause: float, why: str) -> None:
        """Wait for so many seconds before a request is sent again, and tell why."""
        self._told(why)
        self.repeated += 1
        time.sleep(pause)
