# A jobgate worker in plain Python without the SDK: counts the bytes and words of a text. It speaks
# frames on stdin and stdout. (With the SDK it is four lines: see docs/workers.md.)
#
# A frame: u32 length of all that follows, u8 version, u8 type, u16 flags, u32 id,
# u32 length of the meta, then the meta (JSON) and the body. Numbers are big-endian.
import json
import os
import struct
import sys
import traceback

HELLO, COMMAND, REPLY, FAIL, PING, PONG, DRAIN = 1, 3, 4, 5, 10, 11, 12
HEADER = struct.Struct(">IBBHII")

# Nothing but frames may reach the real stdout: what is printed goes to stderr, which is logged.
gate = os.fdopen(os.dup(1), "wb")
os.dup2(2, 1)


def count(body: bytes) -> dict[str, int]:
    body.decode()
    return {"bytes": len(body), "words": len(body.split())}


def receive(size: int) -> bytes:
    data = sys.stdin.buffer.read(size)
    if len(data) < size:  # the gate is gone
        sys.exit(0)
    return data


def send(kind: int, number: int, meta: dict[str, object] | None = None, body: bytes = b"") -> None:
    said = json.dumps(meta).encode() if meta else b""
    gate.write(HEADER.pack(12 + len(said) + len(body), 1, kind, 0, number, len(said)))
    gate.write(said + body)
    gate.flush()


send(HELLO, 0, {"protocol": 1, "ordered": True})
while True:
    length, _version, kind, _flags, number, meta_length = HEADER.unpack(receive(HEADER.size))
    meta = receive(meta_length)
    body = receive(length - 12 - meta_length)
    if kind == COMMAND:
        try:
            reply = json.dumps(count(body), separators=(",", ":")).encode()
            send(REPLY, number, {"content_type": "application/json"}, reply)
        except UnicodeDecodeError:
            send(FAIL, number, {"title": "the body is not UTF-8", "status": 422})
        except Exception as error:  # noqa: BLE001 (whatever it is, it is this one command's)
            traceback.print_exc()
            send(FAIL, number, {"title": str(error)})
    elif kind == PING:
        send(PONG, number)
    elif kind == DRAIN:
        sys.exit(0)
    # other types (WELCOME, CANCEL) ask nothing of a worker this simple
