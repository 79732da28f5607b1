"""
Rows whose servers are compared: all of them alive at once, and measured in turn.
"""

from __future__ import annotations

import contextlib
import functools
from typing import TYPE_CHECKING

from measure import measure, probe
from runs import Row, interleave, say, wanted
from servers import version_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from report import Result
    from rows import Call
    from servers import Running, Starter

__all__ = ["chosen", "run_group"]


def chosen(group: Sequence[Call], patterns: Sequence[str], result: Result) -> list[Call]:
    """
    Return the rows to measure; without mosec, its rows are skipped, and that is noted.
    """
    calls = [call for call in group if wanted(call.name, patterns)]
    if version_of("mosec") is None:
        lost = [call.name for call in calls if call.server == "mosec"]
        result.skipped += [f"{name}: mosec is not installed (the extra `bench`)" for name in lost]
        calls = [call for call in calls if call.server != "mosec"]
    return calls


def run_group(
    calls: Sequence[Call], folder: Path, result: Result, starters: Mapping[str, Starter]
) -> None:
    """
    Start the servers of some rows, all at once, and measure; look at an answer before and after.

    Raises:
        BenchmarkError: A server did not start, or did not answer what it should.
    """
    with contextlib.ExitStack() as stack:
        servers: dict[str, Running] = {}
        for key in dict.fromkeys(call.server for call in calls):
            say(f"starting {key}")
            servers[key] = starters[key](folder / key.replace(" ", "-"))
            stack.enter_context(servers[key].child)

        def probe_all() -> None:
            for call in calls:
                probe(servers[call.server].url, call.load, call.expected)

        def row(call: Call) -> Row:
            running = servers[call.server]
            return Row(
                call.name,
                call.about,
                functools.partial(measure, running.child, running.url, call.load),
            )

        probe_all()
        interleave([row(call) for call in calls], result)
        probe_all()
