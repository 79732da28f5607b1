"""
The request headers that mean something here, read strictly.

Pure: bytes in, values out, `BadRequest` with the field's name otherwise.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import parse_qsl

from jobgate.errors import BadRequest

if TYPE_CHECKING:
    from collections.abc import Container

__all__ = [
    "CALL_FIELDS",
    "PUSH_FIELDS",
    "Preferences",
    "boolean",
    "count",
    "idempotency_key",
    "key",
    "preferences",
    "priority",
    "query",
    "seconds",
    "span",
    "status",
    "traceparent",
]

CALL_FIELDS = frozenset(
    {
        b"jobgate-timeout",
        b"jobgate-key",
        b"idempotency-key",
        b"jobgate-callback",
        b"jobgate-delay",
        b"jobgate-no-queue",
        b"prefer",
        b"priority",
        b"traceparent",
    }
)
"""What changes how a call is handled; a request without any of them is a plain one."""

PUSH_FIELDS = frozenset(
    {
        b"idempotency-key",
        b"jobgate-callback",
        b"jobgate-delay",
        b"jobgate-key",
        b"priority",
        b"traceparent",
    }
)
"""The same for a push."""

_SECONDS = re.compile(rb"\d{1,9}(\.\d{1,30})?\Z")
"""As many decimals as a program writes that subtracts two times and does not round."""
_COUNT = re.compile(r"[0-9]{1,9}\Z")
_URGENCY = re.compile(rb"(?:^|,)\s*u\s*=\s*(-?\d{1,9})\s*(?:,|;|\Z)")
_URGENCY_NAMED = re.compile(rb"(?:^|,)\s*u\s*(?:=|,|;|\Z)")
_PREFERENCE = re.compile(
    r"\s*([A-Za-z0-9!#$%&'*+.^_`|~-]+)\s*(?:=\s*(\"[^\"]*\"|[^;,\s]*))?\s*(;.*)?\Z"
)
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}(-.*)?\Z")
_LIST_ITEM = re.compile(r'(?:[^,"]|"(?:[^"\\]|\\.)*"?)+')
_LONGEST_KEY = 256
_DIGITS = 9
"""Of a number of seconds: thirty years are enough."""


class Preferences(NamedTuple):
    """
    `Prefer`, as far as it is understood (RFC 7240).

    Attributes:
        wait: Seconds the caller is ready to wait, or None.
        respond_async: The caller would take a 202.
    """

    wait: float | None = None
    respond_async: bool = False


def seconds(name: str, value: bytes) -> float:
    """
    A number of seconds above 0.

    Raises:
        BadRequest: It is none.
    """
    number = float(value) if _SECONDS.match(value) else 0.0
    if number <= 0:
        message = f"{name}: found {_shown(value)}, wanted a number of seconds above 0"
        raise BadRequest(message)
    return number


def count(name: str, text: str, most: int) -> int:
    """
    How many, from 1 to `most`.

    Raises:
        BadRequest: It is none.
    """
    number = int(text) if _COUNT.match(text) else 0
    if not 1 <= number <= most:
        message = f"{name}: found {text[:100]!r}, wanted a number from 1 to {most}"
        raise BadRequest(message)
    return number


def boolean(name: str, value: bytes) -> bool:
    """
    A structured-field boolean, `?1` or `?0` (RFC 9651, section 3.3.6).

    Raises:
        BadRequest: It is none.
    """
    if value not in (b"?1", b"?0"):
        message = f"{name}: found {_shown(value)}, wanted ?1 or ?0"
        raise BadRequest(message)
    return value == b"?1"


def priority(value: bytes) -> int:
    """
    The urgency in a `Priority` field, 0 to 7, default 3 (RFC 9218, section 4.1).

    Other parameters are ignored, as that RFC wants.

    Raises:
        BadRequest: There is an urgency, and it is not 0 to 7.
    """
    match = _URGENCY.search(value)
    if match is None and _URGENCY_NAMED.search(value) is None:
        return 3
    urgency = int(match[1]) if match else -1
    if not 0 <= urgency <= 7:
        message = f"Priority: found {_shown(value)}, wanted u=0 to u=7"
        raise BadRequest(message)
    return urgency


def preferences(value: bytes) -> Preferences:
    """
    What a `Prefer` field asks for; what is not understood is ignored (RFC 7240, section 2).

    Raises:
        BadRequest: `wait` is there without a whole number of seconds.
    """
    wait: float | None = None
    respond_async = False
    for item in _LIST_ITEM.findall(value.decode("latin-1")):
        match = _PREFERENCE.match(item)
        if match is None:
            continue
        name, argument = match[1].lower(), (match[2] or "").strip('"')
        if name == "respond-async":
            respond_async = True
        elif name == "wait" and wait is None:
            if not argument.isdecimal() or not argument.isascii():
                found = _shown(f"wait={argument}".encode("latin-1"))
                message = f"Prefer: found {found}, wanted a whole number of seconds"
                raise BadRequest(message)
            wait = float(argument[:_DIGITS]) if len(argument) <= _DIGITS else 10.0**_DIGITS
    return Preferences(wait, respond_async)


def key(value: bytes) -> str:
    """
    A `Jobgate-Key`.

    Raises:
        BadRequest: It is empty, too long or not visible ASCII.
    """
    text = value.decode("latin-1")
    if not text or len(text) > _LONGEST_KEY or not text.isascii() or not text.isprintable():
        wanted = f"1 to {_LONGEST_KEY} visible ASCII characters"
        message = f"Jobgate-Key: found {_shown(value)}, wanted {wanted}"
        raise BadRequest(message)
    return text


def idempotency_key(value: bytes) -> str:
    """
    An `Idempotency-Key`: a structured-field string, or the same without its quotes.

    Raises:
        BadRequest: It is empty, too long or not visible ASCII.
    """
    text = value.decode("latin-1")
    if len(text) > 1 and text[0] == text[-1] == '"':
        text = re.sub(r"\\([\\\"])", r"\1", text[1:-1])
    if not text or len(text) > _LONGEST_KEY or not text.isascii() or not text.isprintable():
        wanted = f"1 to {_LONGEST_KEY} visible ASCII characters"
        message = f"Idempotency-Key: found {_shown(value)}, wanted {wanted}"
        raise BadRequest(message)
    return text


def status(value: bytes) -> int:
    """
    A `Jobgate-Status`: what the caller of a pulled command is to get.

    Raises:
        BadRequest: It is none from 200 to 599.
    """
    if not (len(value) == 3 and value.isdigit() and 200 <= int(value) <= 599):
        message = f"Jobgate-Status: found {_shown(value)}, wanted a number from 200 to 599"
        raise BadRequest(message)
    return int(value)


def span(name: str, value: bytes) -> float:
    """
    A number of seconds, 0 included.

    Raises:
        BadRequest: It is none.
    """
    if not _SECONDS.match(value):
        raise BadRequest(f"{name}: found {_shown(value)}, wanted a number of seconds")
    return float(value)


def query(target: bytes, known: Container[str]) -> dict[str, str]:
    """
    The query of a request target, each parameter once.

    Args:
        target: Path and query as sent.
        known: The parameters that mean something here.

    Raises:
        BadRequest: One is there twice, or is not known.
    """
    found: dict[str, str] = {}
    text = target.partition(b"?")[2].decode("latin-1")
    for name, value in parse_qsl(text, keep_blank_values=True):
        if name not in known:
            raise BadRequest(f"query: found {_shown(name.encode())}, which means nothing here")
        if name in found:
            raise BadRequest(f"query: found {name} twice, wanted it once")
        found[name] = value
    return found


def traceparent(value: bytes) -> str | None:
    """A `traceparent` to hand on; one that is not well-formed is ignored (W3C Trace Context)."""
    text = value.decode("latin-1")
    return text if _TRACEPARENT.match(text) else None


def _shown(value: bytes) -> str:
    text = value.decode("latin-1")
    return repr(text if len(text) <= 80 else text[:80] + "…")
