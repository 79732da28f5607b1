"""
The peer: mosec, a Rust HTTP front with Python worker processes, echoing JSON in two of them.

The worker does what the JSON worker on jobgate's side does: the standard library's ``json.loads``
and an encoder with the same settings, so both answer the same bytes. (mosec's own default writes
with ``indent=2``, for which Python 3.11 has no C encoder; that would be a handicap that has
nothing to do with serving, so it is not used.) The arguments on the command line are mosec's own.
"""

from __future__ import annotations

import json
from typing import Any

from mosec import Server, Worker

PROCESSES = 2
ENCODE = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode
"""As in ``jobgate.worker``."""


class Echo(Worker):  # type: ignore[misc, unused-ignore]
    """
    Gives back the document it was given.
    """

    def forward(self, data: Any) -> Any:  # noqa: ANN401 - any JSON, as mosec declares it
        """
        Answer with the parsed document.
        """
        return data

    def serialize(self, data: Any) -> bytes:  # noqa: ANN401 - any JSON, as mosec declares it
        """
        Write the document on one line.
        """
        return ENCODE(data).encode()


def main() -> None:
    """
    Serve until killed.
    """
    server = Server()  # type: ignore[no-untyped-call, unused-ignore]
    server.append_worker(Echo, num=PROCESSES)
    server.run()  # type: ignore[no-untyped-call, unused-ignore]


if __name__ == "__main__":
    main()
