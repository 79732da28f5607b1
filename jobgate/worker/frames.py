"""
The frames of contract 5.1, as a worker needs them: their types and their header.
"""

from __future__ import annotations

from struct import Struct

__all__ = [
    "BATCH",
    "CANCEL",
    "CHUNK",
    "COMMAND",
    "DECLINE",
    "DRAIN",
    "FAIL",
    "HEADER_SIZE",
    "HELLO",
    "MAX_FRAME",
    "PING",
    "PONG",
    "PROGRESS",
    "REPLY",
    "WELCOME",
    "pack",
    "unpack",
]

# Frame types, contract 5.1. A handler that takes one command is asked for them one by one,
# whatever BATCH says.
HELLO, WELCOME, COMMAND, REPLY, FAIL, CHUNK, PROGRESS = 1, 2, 3, 4, 5, 6, 7
CANCEL, DECLINE, PING, PONG, DRAIN, BATCH = 8, 9, 10, 11, 12, 13

_HEADER = Struct(">IBBHII")  # length of what follows it, version, type, flags, id, meta length
pack, unpack = _HEADER.pack, _HEADER.unpack_from
HEADER_SIZE = 16
MAX_FRAME = 64 * 1024 * 1024  # the largest length that a header may give
