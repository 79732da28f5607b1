"""
The reference for jobs: one process that does the work itself before it answers.

``baseline_inline.py MILLISECONDS``: the same bare front as for large bodies, but each request is
work that keeps the process busy for so long (it spins, as work does). What arrives meanwhile
waits in the sockets.
"""

from __future__ import annotations

import sys
import time

from baseline_front import ConstantProtocol, serve

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\nok"


class WorkingProtocol(ConstantProtocol):
    """
    Works, then answers.
    """

    seconds = 0.0

    def on_message_complete(self) -> None:
        """
        Do the work here and now.
        """
        self.parts.clear()
        until = time.perf_counter() + self.seconds
        while time.perf_counter() < until:
            pass
        self.socket.write(ANSWER)  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    WorkingProtocol.seconds = float(sys.argv[1]) / 1000
    serve(WorkingProtocol)
