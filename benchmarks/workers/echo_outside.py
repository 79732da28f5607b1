"""
As ``echo_bytes.py``, but it comes to the gate by itself: ``echo_outside.py WHERE``.
"""

from __future__ import annotations

import sys

from echo_bytes import echo

from jobgate.worker import serve

if __name__ == "__main__":
    serve(echo, connect=sys.argv[1], queue="bench")
