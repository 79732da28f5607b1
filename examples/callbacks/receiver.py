"""
Receives the callbacks of a gate, and believes only what that gate has signed.

    JOBGATE_SECRET=whsec_… python receiver.py 8090
"""

import base64
import hmac
import json
import os
import sys
import time
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

KEY = base64.b64decode(os.environ["JOBGATE_SECRET"].removeprefix("whsec_"))
PATIENCE = 300  # seconds that a callback may be old: whoever records one cannot send it later
seen: set[str] = set()  # a real receiver keeps this where it keeps what it does with them


def is_genuine(headers: Message, body: bytes) -> bool:
    """Whether this was signed with our secret, lately."""
    name, sent = headers.get("webhook-id", ""), headers.get("webhook-timestamp", "")
    if not sent.isdecimal() or abs(time.time() - int(sent)) > PATIENCE:
        return False
    digest = hmac.digest(KEY, f"{name}.{sent}.".encode() + body, "sha256")
    wanted = "v1," + base64.b64encode(digest).decode()
    given = headers.get("webhook-signature", "").split(" ")
    return any(hmac.compare_digest(wanted.encode(), one.encode()) for one in given)


class Receiver(BaseHTTPRequestHandler):
    """Answers 2xx once it has done its part: anything else, and the gate tries again."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        if not is_genuine(self.headers, body):
            self.send_error(401)
            return
        job = json.loads(body)
        if self.headers["webhook-id"] not in seen:  # the same one may come twice
            print(job["id"], job["state"], flush=True)
            seen.add(self.headers["webhook-id"])
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Print the jobs only."""


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Receiver).serve_forever()
