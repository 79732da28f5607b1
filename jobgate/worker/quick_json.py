"""
JSON as a worker needs it: quickly at hand, and quick for small documents.

`json` is imported when the first document is read or written: a handler that takes bytes and
gives bytes never waits for that.
"""

from __future__ import annotations

TYPE_CHECKING = False  # as in `jobgate.worker`
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

__all__ = ["dumps", "loads"]

# Made when first needed. What `json.loads` and `json.dumps` do around these takes longer than the
# parsing and writing of a small document; on any doubt they get it themselves.
_scan: Callable[[str, int], tuple[Any, int]] | None = None
_plain: Callable[[object, int], Sequence[str]] | None = None
_escaped: Callable[[object, int], Sequence[str]] | None = None


def loads(data: bytes) -> Any:  # noqa: ANN401 - it is JSON
    """
    Parse a document.

    Raises:
        ValueError: It is none.
        RecursionError: It is nested too deeply.
    """
    global _scan  # noqa: PLW0603
    if not _scan:
        from json import JSONDecoder

        _scan = JSONDecoder().scan_once  # type: ignore[attr-defined]
    try:
        text = data.decode()
        value, end = _scan(text, 0)
    except (ValueError, StopIteration):
        end, text = 0, " "
    if end == len(text):
        return value
    import json

    return json.loads(data)


def dumps(value: object, errors: str = "replace") -> bytes:
    """
    Write a document; `errors` says what becomes of half a surrogate pair.

    Raises:
        TypeError: There is something in it that JSON does not know.
        ValueError: It holds itself, or a number that is none.
        RecursionError: It is nested too deeply.
    """
    global _plain, _escaped
    if not _plain or not _escaped:
        _plain, _escaped = _encoder(plain=True), _encoder(plain=False)
    # Long ASCII is written in a quarter of the time by the one that escapes all else. Where it has
    # escaped anything that need not be, there is a \u in it.
    text = "".join(_escaped(value, 0))
    if "\\u" in text:
        text = "".join(_plain(value, 0))
    return text.encode("utf-8", errors)


def _encoder(*, plain: bool) -> Callable[[object, int], Sequence[str]]:
    """
    Return what writes compact JSON: `json`'s C code, or all of `json` where there is none.

    Args:
        plain: Whether characters beyond ASCII are written as they are.
    """
    from json import JSONEncoder, encoder

    whole = JSONEncoder(ensure_ascii=not plain, allow_nan=False, separators=(",", ":"))
    make: Any = getattr(encoder, "c_make_encoder", None)
    if make is None:
        return lambda value, _: (whole.encode(value),)
    quote: Any = encoder.encode_basestring if plain else encoder.encode_basestring_ascii
    no = False
    chunks: Callable[[object, int], Sequence[str]] = make(
        None, whole.default, quote, None, ":", ",", no, no, no
    )
    return chunks
