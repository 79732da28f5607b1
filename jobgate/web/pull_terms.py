"""
What a pull asks for: `?wait=&lease=&max=&min=&each=line`, read strictly.

Pure: text in, `Terms` out, `BadRequest` with the parameter's name otherwise.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from jobgate.errors import BadRequest
from jobgate.web import fields as read

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["PULL_QUERY", "Terms", "lease_seconds", "terms"]

PULL_QUERY: Final = ("wait", "lease", "max", "min", "each")
_MOST: Final = 1000
"""Commands in one answer: their ids must fit one header."""
_LONGEST_LEASE: Final = 7 * 86400.0
_MOST_WAIT: Final = 3600.0


class Terms(NamedTuple):
    """
    What a pull asks for.

    Attributes:
        wait: Seconds that it may wait.
        lease: Seconds for which the commands are the puller's; 0: for good.
        most: Commands that it takes at the most.
        least: With so many it waits no longer.
        lines: It takes them as lines.
    """

    wait: float
    lease: float
    most: int
    least: int
    lines: bool


def terms(asked: Mapping[str, str], wait: float) -> Terms:
    """
    What the parameters of a pull come to.

    Args:
        asked: Those of `PULL_QUERY` that are there.
        wait: Seconds that it may wait if it does not say.

    Raises:
        BadRequest: One of them cannot be.
    """
    waits = asked.get("wait")
    lease = asked.get("lease")
    each = asked.get("each")
    if each not in (None, "line"):
        message = f"each: found {each!r}, wanted line"
        raise BadRequest(message)
    most = read.count("max", asked.get("max", "1"), _MOST)
    least = read.count("min", asked.get("min", "1"), _MOST)
    if most > 1 and each is None:
        raise BadRequest("max: found more than 1, wanted each=line with it")
    if least > most:
        message = f"min: found {least}, wanted at most max = {most}"
        raise BadRequest(message)
    return Terms(
        wait=wait if waits is None else min(read.span("wait", waits.encode()), _MOST_WAIT),
        lease=0.0 if lease is None else lease_seconds(lease),
        most=most,
        least=least,
        lines=each is not None,
    )


def lease_seconds(text: str) -> float:
    """
    For how long a lease is to last.

    Raises:
        BadRequest: It is no number of seconds, or too large a one.
    """
    seconds = read.seconds("lease", text.encode())
    if seconds > _LONGEST_LEASE:
        message = f"lease: found {text}, wanted at most {_LONGEST_LEASE:.0f} seconds"
        raise BadRequest(message)
    return seconds
