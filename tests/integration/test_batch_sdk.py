"""
`serve(handler, batch=True)`: a real worker, and the test as its gate.
"""

from __future__ import annotations

from test_worker_sdk import (
    BATCH,
    CANCEL,
    CHUNK,
    COMMAND,
    DECLINE,
    DRAIN,
    FAIL,
    JSON,
    OCTETS,
    PROGRESS,
    REPLY,
    TEXT,
    Child,
    pack,
)

ECHO = """
from jobgate.worker import serve
serve(lambda commands: [b"%d:" % len(commands) + c.body for c in commands], batch=True)
"""


def batch(*bodies: bytes, start: int = 1) -> bytes:
    """A batch as the gate writes it."""
    commands = [pack(COMMAND, start + n, {"id": f"g-{n}"}, body) for n, body in enumerate(bodies)]
    return pack(BATCH, 0, {"count": len(bodies)}) + b"".join(commands)


def test_together() -> None:
    """All of a batch in one call; what comes by itself is a batch of its own."""
    with Child(ECHO) as child:
        child.write(batch(b"a", b"b", b"c") + pack(COMMAND, 9, None, b"d") + batch(b"e", start=10))
        wanted = {1: b"3:a", 2: b"3:b", 3: b"3:c", 9: b"1:d", 10: b"1:e"}
        for number, body in wanted.items():
            assert child.read() == (REPLY, number, OCTETS, body)
        assert child.end() == 0
        assert child.stderr() == ""


def test_a_handler_of_one_command() -> None:
    """It gets the members of a batch one by one, in order."""
    source = """
    from jobgate.worker import serve
    serve(lambda command: command.body)
    """
    with Child(source) as child:
        child.write(batch(b"a", b"b"))
        assert [child.read().body for _ in range(2)] == [b"a", b"b"]
        assert child.end() == 0


def test_torn_in_the_middle() -> None:
    """However the bytes come, the handler is called once all are there."""
    with Child(ECHO) as child:
        data = batch(b"a" * 100_000, b"b", b"c" * 300_000)
        for at in range(0, len(data), 40_000):
            child.write(data[at : at + 40_000])
        bodies = [child.read().body for _ in range(3)]
        assert bodies == [b"3:" + b"a" * 100_000, b"3:b", b"3:" + b"c" * 300_000]
        assert child.end() == 0


def test_every_kind_of_item() -> None:
    """Each item of the list is the last word on its own command."""
    source = """
    from jobgate.worker import Decline, Fail, Reply, serve

    def handler(commands):
        values = {
            b"bytes": b"b", b"str": "s", b"json": [1], b"reply": Reply("x", status=201),
            b"decline": Decline(), b"fail": Fail("no", status=404), b"error": KeyError("k"),
            b"unfit": object(), b"stream": iter([b"1", b"2"]), b"broken": broken(),
        }
        return tuple(values[command.body] for command in commands)

    def broken():
        yield b"part"
        raise RuntimeError("in the middle")

    serve(handler, batch=True)
    """
    with Child(source) as child:
        words = b"bytes str json reply decline fail error unfit stream broken".split()
        child.write(batch(*words))
        frames = [child.read() for _ in range(len(words) + 3)]
        chunks = [frame for frame in frames if frame.kind == CHUNK]
        assert [(f.number, f.body) for f in chunks] == [(9, b"1"), (9, b"2"), (10, b"part")]
        last = {f.number: f for f in frames if f.kind != CHUNK}
        assert last[1] == (REPLY, 1, OCTETS, b"b")
        assert last[2] == (REPLY, 2, TEXT, b"s")
        assert last[3] == (REPLY, 3, JSON, b"[1]")
        assert last[4] == (REPLY, 4, {**TEXT, "status": 201}, b"x")
        assert last[5].kind == DECLINE
        assert last[6] == (FAIL, 6, {"title": "no", "status": 404}, b"")
        assert last[7] == (FAIL, 7, {"title": "KeyError: 'k'"}, b"")
        assert last[8].meta["title"] == "the worker's handler returned what cannot be sent"
        assert last[9].kind == REPLY
        assert last[10] == (FAIL, 10, {"title": "RuntimeError: in the middle"}, b"")
        assert child.end() == 0


def test_what_is_raised_or_no_list() -> None:
    """Then all are told; the worker lives on."""
    source = """
    from jobgate.worker import Decline, Fail, serve

    def handler(commands):
        word = commands[0].body
        if word == b"raise":
            raise ValueError("all of you")
        if word == b"fail":
            raise Fail("no", status=404)
        if word == b"decline":
            raise Decline
        commands.clear()
        return {b"none": None, b"text": "ab", b"short": [1], b"dict": {1: 2, 3: 4}}[word]

    serve(handler, batch=True)
    """
    with Child(source) as child:
        for word, kind, title in (
            (b"raise", FAIL, "ValueError: all of you"),
            (b"fail", FAIL, "no"),
            (b"decline", DECLINE, None),
            (b"none", FAIL, "the worker's handler returned no list of replies"),
            (b"text", FAIL, "the worker's handler returned no list of replies"),
            (b"dict", FAIL, "the worker's handler returned no list of replies"),
            (b"short", FAIL, "the worker's handler returned 1 replies to 2 commands"),
        ):
            child.write(batch(word, b"other"))
            frames = [child.read() for _ in range(2)]
            assert [(f.kind, f.number, f.meta.get("title")) for f in frames] == [
                (kind, 1, title),
                (kind, 2, title),
            ]
        assert child.end() == 0
        assert child.stderr().count("Traceback") == 1


def test_large_replies() -> None:
    """Many of them are whole, and in the pipe before the next handler starts."""
    source = """
    from jobgate.worker import serve
    serve(lambda commands: [c.body * 1000 for c in commands], batch=True)
    """
    with Child(source) as child:
        bodies = [b"x" * size for size in (1, 100, 255, 300, 5, 700, 0)]
        child.write(batch(*bodies) + batch(*bodies, start=20))
        for start in (1, 20):
            frames = [child.read() for _ in bodies]
            assert {f.number - start: f.body for f in frames} == {
                n: body * 1000 for n, body in enumerate(bodies)
            }
        assert child.end() == 0


def test_many_small_replies() -> None:
    """More of them than are written at once are whole as well."""
    with Child(ECHO) as child:
        bodies = [b"%d" % n * 900 for n in range(300)]
        child.write(batch(*bodies))
        for number, body in enumerate(bodies, 1):
            assert child.read() == (REPLY, number, OCTETS, b"300:" + body)
        assert child.end() == 0


def test_inputs() -> None:
    """They are parted from the body, also in a batch that came while another ran."""
    source = """
    import time
    from jobgate.worker import serve

    def handler(commands):
        if commands[0].body == b"wait":
            while len(commands[0]._link.inbox) < 3:
                time.sleep(0.001)
        return [c.body + b"|" + b"".join(i.body for i in c.inputs.values()) for c in commands]

    serve(handler, batch=True)
    """
    inputs = {"inputs": [{"name": "i", "content_type": "text/plain", "length": 3}]}
    with Child(source) as child:
        child.write(batch(b"wait"))
        child.write(pack(BATCH, 0, {"count": 2}) + pack(COMMAND, 2, inputs, b"bodyin1"))
        child.write(pack(COMMAND, 3, None, b"plain") + batch(b"last", start=4))
        bodies = [child.read().body for _ in range(4)]
        assert bodies == [b"wait|", b"body|in1", b"plain|", b"last|"]
        assert child.end() == 0


def test_progress_and_cancel() -> None:
    """A member has a say while its batch runs, and sees that its caller has left."""
    source = """
    import time
    from jobgate.worker import serve

    def handler(commands):
        commands[1].progress(1, 2)
        while not commands[1].cancelled:
            time.sleep(0.001)
        return [c.cancelled for c in commands]

    serve(handler, batch=True)
    """
    with Child(source) as child:
        child.write(batch(b"a", b"b", b"c"))
        assert child.read() == (PROGRESS, 2, {"done": 1, "total": 2}, b"")
        child.send(CANCEL, 2)
        assert [child.read().body for _ in range(3)] == [b"false", b"true", b"false"]
        assert child.end() == 0


def test_cancelled_before_it_began() -> None:
    """It is left out of the list that the handler gets, and answered all the same."""
    source = """
    import time
    from jobgate.worker import serve

    def handler(commands):
        if commands[0].body == b"wait":
            commands[0].progress(0)
            while not commands[0].cancelled:
                time.sleep(0.001)
        return [b"%d" % len(commands)] * len(commands)

    serve(handler, batch=True)
    """
    with Child(source) as child:
        child.write(batch(b"wait") + batch(b"a", b"b", b"c", start=2) + batch(b"d", start=5))
        assert child.read().kind == PROGRESS
        for number in (3, 5, 1):
            child.send(CANCEL, number)
        frames = {f.number: f for f in (child.read() for _ in range(5))}
        assert frames[1].body == b"1"
        assert frames[2].body == frames[4].body == b"2"
        assert frames[3] == (FAIL, 3, {"title": "cancelled"}, b"")
        assert frames[5] == (FAIL, 5, {"title": "cancelled"}, b"")
        assert child.end() == 0


def test_drain_and_end_of_input() -> None:
    """What it holds is finished; half a batch is nothing that could be run."""
    with Child(ECHO) as child:
        child.write(batch(b"a", b"b") + pack(DRAIN, 0))
        assert [child.read().body for _ in range(2)] == [b"2:a", b"2:b"]
        assert child.gone() == 0
    with Child(ECHO) as child:
        child.write(pack(BATCH, 0, {"count": 2}) + pack(COMMAND, 1, None, b"a"))
        assert child.end() == 0
