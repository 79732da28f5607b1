"""
`jobgate graph`: what is sent, what is printed, how it ends.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from jobgate.cli import target
from jobgate.cli.client import Answer, Client
from tests.unit.fake_gate import problem
from tests.unit.test_cli import run

GRAPH = {"jobs": {"a": {"queue": "q", "body": 1}, "b": {"queue": "q", "needs": ["a"]}}}


class GraphTests(SynchronousTestCase):
    """Against a gate that answers what it is told to."""

    def setUp(self) -> None:
        self.asked: list[tuple[str, str]] = []
        self.sent: list[bytes] = []
        self.file = Path(self.mktemp())
        self.file.write_text(json.dumps(GRAPH))

    def answer(self, *answers: Answer | tuple[int, Any]) -> None:
        """What the gate says, one after the other."""
        waiting = list(answers)
        test = self

        class Told(Client):
            def ask(self, method: str, path: str, body: bytes = b"", *_: Any, **__: Any) -> Answer:
                test.asked.append((method, path))
                test.sent.append(body)
                found = waiting.pop(0)
                if isinstance(found, Answer):
                    return found
                return Answer(found[0], {}, json.dumps(found[1]).encode())

        self.patch(target, "Client", Told)

    def test_submit(self) -> None:
        """The id is printed; with --json, the whole answer."""
        accepted = {"id": "g-1", "jobs": {"a": "j-1", "b": "j-2"}}
        self.answer((202, accepted), (202, accepted))
        self.assertEqual(run("graph", str(self.file)), (0, "g-1\n", ""))
        self.assertEqual(json.loads(self.sent[0]), GRAPH)
        status, out, _ = run("graph", str(self.file), "--json")
        self.assertEqual((status, json.loads(out)), (0, accepted))
        self.assertEqual(self.asked, [("POST", "/graphs")] * 2)

    def test_wait(self) -> None:
        """How the graph ended is how it ends."""
        for state, wanted in (("succeeded", 0), ("failed", 1), ("cancelled", 1)):
            jobs = {"a": {"id": "j-1", "state": state}}
            self.answer((202, {"id": "g-1"}), (200, {"id": "g-1", "state": state, "jobs": jobs}))
            found = run("graph", str(self.file), "--wait", "9")
            self.assertEqual(found, (wanted, f"g-1\t{state}\na\t{state}\tj-1\n", ""))
        self.assertTrue(self.asked[-1][1].startswith("/graphs/g-1/result?wait="))

    def test_not_in_time(self) -> None:
        """Nothing has gone wrong, but nothing has come."""
        self.answer((202, {"id": "g-1", "state": "running", "jobs": {}}))
        self.assertEqual(run("graph", "--id", "g-1", "--wait", "0"), (6, "g-1\trunning\n", ""))

    def test_one_that_is_there(self) -> None:
        """Shown, cancelled, unknown."""
        document = {"id": "g-1", "state": "running", "jobs": {}}
        self.answer((200, document), (200, document), problem(404, "not-found"))
        self.assertEqual(run("graph", "--id", "g-1")[0], 0)
        self.assertEqual(run("graph", "--id", "g-1", "--cancel")[0], 0)
        self.assertEqual(run("graph", "--id", "g/1")[0], 3)
        wanted = [("GET", "/graphs/g-1"), ("DELETE", "/graphs/g-1"), ("GET", "/graphs/g%2F1")]
        self.assertEqual(self.asked, wanted)

    def test_refused(self) -> None:
        """What the gate says of it is told."""
        self.answer(problem(422, "unprocessable"))
        status, out, err = run("graph", str(self.file))
        self.assertEqual((status, out), (3, ""))
        self.assertTrue(err.startswith("jobgate: unprocessable: "))

    def test_senseless(self) -> None:
        """No graph, two graphs, a file that is none."""
        for arguments in ((), (str(self.file), "--id", "g"), (str(self.file), "--cancel")):
            self.assertEqual(run("graph", *arguments)[0], 2)
        self.assertEqual(run("graph", self.mktemp())[0], 1)
