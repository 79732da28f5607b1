"""
The baseline: a stock Klein application whose one route answers a constant.

It does what any Klein server must do for a POST (parse the request, read the body, write an
answer) and nothing else: no queue, no worker process. Every call that jobgate answers has been
through a second process and back.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from klein import Klein
from twisted.internet import reactor
from twisted.logger import globalLogBeginner
from twisted.web.server import Site

if TYPE_CHECKING:
    from twisted.web.iweb import IRequest

ANSWER = b'{"answer":"' + b"x" * 87 + b'"}'
"""As long as the body that is posted: 100 bytes."""

app = Klein()


@app.route("/constant", methods=["POST"])
def constant(request: IRequest) -> bytes:
    """
    Read the body, answer the constant.
    """
    request.content.read()
    return ANSWER


def main() -> None:
    """
    Serve on a free port of the loopback interface until killed.
    """
    # Drops what is logged; until logging begins Twisted keeps every access log line in memory.
    globalLogBeginner.beginLoggingTo([], redirectStandardIO=False)
    site = Site(app.resource())  # type: ignore[no-untyped-call]
    port = reactor.listenTCP(0, site, interface="127.0.0.1")  # type: ignore[arg-type]
    number = port.getHost().port  # type: ignore[attr-defined]
    sys.stdout.write(f"listening on http://127.0.0.1:{number}\n")
    sys.stdout.flush()
    reactor.run()


if __name__ == "__main__":
    main()
