"""
The peer in batches: mosec with one worker whose run takes 10 ms, however many are in it.

It gives the bytes back as they came: no JSON on either side. The wait is mosec's own default for a
batch that is not full, 10 ms from its first member. The arguments on the command line are mosec's
own.
"""

from __future__ import annotations

import time

from mosec import Server, Worker
from workers.punctual import punctual

SECONDS = 0.01
SIZE = 32


class Model(Worker):  # type: ignore[misc, unused-ignore]
    """
    Sleeps as `workers/batch.py` does.
    """

    def __init__(self) -> None:
        """
        Prepare the process that runs it.
        """
        super().__init__()  # type: ignore[no-untyped-call, unused-ignore]
        punctual()

    def deserialize(self, data: bytes) -> bytes:
        """
        Take the body as it is.
        """
        return data

    def forward(self, data: list[bytes]) -> list[bytes]:
        """
        Answer all of a batch after the same time.
        """
        time.sleep(SECONDS)
        return data

    def serialize(self, data: bytes) -> bytes:
        """
        Give the body as it is.
        """
        return data


def main() -> None:
    """
    Serve until killed.
    """
    server = Server()  # type: ignore[no-untyped-call, unused-ignore]
    server.append_worker(Model, num=1, max_batch_size=SIZE)
    server.run()  # type: ignore[no-untyped-call, unused-ignore]


if __name__ == "__main__":
    main()
