"""
Who may do what: tokens, and without tokens the rule that keeps web pages out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from jobgate.errors import Forbidden, JobgateError, QuotaExceeded, Unauthorized
from jobgate.gate.tokens import Tokens

if TYPE_CHECKING:
    from collections.abc import Callable

    from jobgate.config import GateConfig
    from jobgate.gate.tokens import Token
    from jobgate.web.exchange import Exchange

__all__ = ["Access"]

_OPEN = (b"/healthz", b"/readyz")
_OPEN_UNDER = b"/problems/"
_BROWSERS_SAY = frozenset({b"sec-fetch-site", b"origin"})
_REMEMBERED = 4096
"""Header values whose verdict is remembered: callers repeat themselves."""


class Access:
    """
    Lets requests in, or not.

    Args:
        config: Tokens, and whether the operator insists on none.

    Attributes:
        has_tokens: Without any, the verdict on a head is always the same.
    """

    def __init__(self, config: GateConfig) -> None:
        self._tokens = Tokens(config)
        self.has_tokens = bool(self._tokens)
        self._insecure = config.gate.insecure
        self._by_header: dict[bytes, Token] = {}
        self._hosts: dict[bytes, bool] = {}

    def check(
        self, exchange: Exchange, seconds: Callable[[], float], *, local: bool
    ) -> JobgateError | None:
        """
        Whether the request may come in at all; sets its token.

        Args:
            exchange: The request; only its headers need be there.
            seconds: The time, for quotas.
            local: It came over a UNIX socket, which no web page can reach.

        Returns:
            Why not, or None.
        """
        if not self._tokens:
            if local or self._insecure:
                return None
            return self._foreign(exchange)
        head = exchange.head
        header = head.headers.get(b"authorization", b"")
        token = self._by_header.get(header) or self._look_up(header)
        exchange.token = token
        if token is None:
            if _is_open(head.path):
                return None
            return Unauthorized("send a known token as Authorization: Bearer")
        try:
            token.spend(seconds())
        except QuotaExceeded as error:
            return None if _is_open(head.path) else error
        return None

    def need(self, exchange: Exchange, right: str) -> None:
        """
        Insist on a right.

        Raises:
            Forbidden: The caller's token does not have it.
        """
        if exchange.token is not None and not exchange.token.may(right):
            message = f"the token {exchange.token.name!r} may not {right}"
            raise Forbidden(message)

    def _look_up(self, header: bytes) -> Token | None:
        scheme, _, value = header.partition(b" ")
        if scheme.lower() != b"bearer":
            return None
        token = self._tokens.find(value.strip())
        if token is not None and len(self._by_header) < _REMEMBERED:
            self._by_header[header] = token
        return token

    def _foreign(self, exchange: Exchange) -> JobgateError | None:
        """Without tokens, a web page must not reach the gate (DNS rebinding, cross-site posts)."""
        headers = exchange.head.headers
        host = headers.get(b"host", b"")
        known = self._hosts.get(host)
        if known is None:
            known = not host or _is_loopback_name(_hostname(host))
            if len(self._hosts) < _REMEMBERED:
                self._hosts[host] = known
        if not known:
            return Forbidden(
                f"Host: found {host.decode('latin-1')!r}, wanted a loopback name"
                " (there are no tokens)"
            )
        if _BROWSERS_SAY.isdisjoint(headers):
            return None
        site = headers.get(b"sec-fetch-site")
        if site is not None and site not in (b"same-origin", b"none"):
            return Forbidden(
                f"Sec-Fetch-Site: found {site.decode('latin-1')!r}: a foreign web page"
            )
        origin = headers.get(b"origin")
        if origin is not None and not _same_origin(origin, host):
            return Forbidden(f"Origin: found {origin.decode('latin-1')!r}: a foreign web page")
        return None


def _is_open(path: bytes) -> bool:
    """Whether anybody may read what is there."""
    return path in _OPEN or path.startswith(_OPEN_UNDER)


def _hostname(host: bytes) -> str:
    if b"@" in host:
        return ""
    try:
        return urlsplit(f"//{host.decode('latin-1')}").hostname or ""
    except ValueError:
        return ""


def _is_loopback_name(name: str) -> bool:
    parts = name.split(".")
    is_v4 = len(parts) == 4 and all(part.isdecimal() for part in parts) and parts[0] == "127"
    return name in ("localhost", "::1") or name.endswith(".localhost") or is_v4


def _same_origin(origin: bytes, host: bytes) -> bool:
    scheme, _, rest = origin.partition(b"://")
    return scheme in (b"http", b"https") and rest == host
