"""
The signature of Standard Webhooks (https://www.standardwebhooks.com): what a callback's
headers say, so that its receiver can tell that it comes from here, unchanged and lately.

Pure. Must not know what is signed.
"""

from __future__ import annotations

import hmac
from base64 import b64encode

__all__ = ["signed"]


def signed(message: str, timestamp: int, body: bytes, key: bytes) -> dict[str, str]:
    """
    The headers of one message.

    Args:
        message: Its id, the same each time it is sent.
        timestamp: When it is sent this time, seconds since the epoch.
        body: What is sent.
        key: The secret's bytes; without any there is no signature.
    """
    headers = {"webhook-id": message, "webhook-timestamp": str(timestamp)}
    if key:
        content = b"%b.%d.%b" % (message.encode(), timestamp, body)
        signature = b64encode(hmac.digest(key, content, "sha256")).decode()
        headers["webhook-signature"] = f"v1,{signature}"
    return headers
