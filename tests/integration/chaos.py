"""
Chaos: clients that keep a ledger, while the gate is killed again and again.

Pushes, calls, calls with keys, pulls under leases and graphs go on while the gate is ended by
`kill -9` at random, and its workers more often. Every client writes into its ledger, and syncs
it, before it sends and after it was answered. In the end the ledger, the gate and what the
workers wrote down must agree: nothing that got 202 is lost, every reply is its own, no attempt
goes back, and nothing that was finished runs again.

The long form::

    python tests/integration/chaos.py --kills 500 --seed 1
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from program import Program, sdk

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from raw_http import Answer

NO_ANSWER = (OSError, http.client.HTTPException)
"""What a client meets when the gate dies under its request."""
ENDS = ("succeeded", "failed", "cancelled", "dead")
PATIENCE = 180.0
"""Seconds in which whoever asks again must be answered, and after the last kill all must end."""


def digest(*parts: bytes) -> bytes:
    """What a worker makes of a body and its inputs."""
    return sha256(b"".join(parts)).hexdigest().encode()


def tables(log: Path) -> dict[str, Any]:
    """The gate's configuration."""
    worker = {
        "command": sdk("chaotic"),
        "env": {"CHAOS_LOG": str(log)},
        "workers": 2,
        # Deaths are no fault of the commands here: none is to be given up because of them.
        "attempts": 1000,
        "backoff": {"first": 0.05, "factor": 1.5, "max": 0.5},
    }
    return {
        "gate": {"store": "sqlite:chaos.db"},
        "queues": {
            "work": worker,
            "call": {**worker, "retry": "safe"},
            "once": {**worker, "workers": 1, "retry": "never"},
            "pull": {"attempts": 1000, "backoff": worker["backoff"]},
        },
    }


class Ledger:
    """
    What clients did and were told, line by line, synced before they go on.

    Args:
        path: The file; it is made.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self._lock = threading.Lock()

    def write(self, event: str, **what: Any) -> None:
        """One line."""
        line = json.dumps({"event": event, "at": time.monotonic_ns(), **what}).encode() + b"\n"
        with self._lock:
            os.write(self._fd, line)
            os.fdatasync(self._fd)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        with self._path.open() as file:
            yield from map(json.loads, file)


class Chaos:
    """
    One run.

    Args:
        folder: Where everything is kept.
        seed: Makes what is random the same again, as far as it is ours.
        say: Told of the progress.

    Attributes:
        counts: What happened, by name.
    """

    def __init__(self, folder: Path, seed: int, say: Callable[[str], None] = print) -> None:
        self._random = random.Random(seed)
        self._say = say
        self._log = folder / "worker.log"
        self._ledger = Ledger(folder / "ledger.jsonl")
        self._gate = Program(folder, tables(self._log))
        self._over = threading.Event()
        self._failures: list[str] = []
        self.counts: Counter[str] = Counter()

    def run(self, kills: int, apart: float = 1.5) -> Counter[str]:
        """
        Kill the gate so many times, at most so many seconds after it has started.

        Returns:
            The counts.

        Raises:
            AssertionError: A promise is broken.
        """
        clients = [
            threading.Thread(target=self._client, args=(step, self._random.random()), daemon=True)
            for step in (
                self._push,
                self._push,
                self._push_with_key,
                self._push_lines,
                self._push_once,
                self._push_for_pullers,
                self._pull,
                self._pull,
                self._call,
                self._call_with_key,
                self._graph,
            )
        ]
        reaper = threading.Thread(
            target=self._kill_workers, args=(self._random.random(),), daemon=True
        )
        try:
            self._gate.start()
            for thread in (*clients, reaper):
                thread.start()
            for number in range(kills):
                time.sleep(self._random.uniform(0.1, apart))
                self._gate.no_traceback()
                self._gate.kill()
                self.counts["gate kills"] += 1
                self._gate.start()
                self._gate.conserved()
                self._say(f"kill {number + 1} of {kills}: {dict(self.counts)}")
            time.sleep(1)
        finally:
            self._over.set()
            for thread in (*clients, reaper):
                if thread.ident is not None:
                    thread.join(90)
        try:
            assert not self._failures, self._failures[:5]
            self._verify()
            self._gate.stop()
        finally:
            self._gate.end_by_force()
        return self.counts

    # --- what goes wrong

    def _kill_workers(self, seed: float) -> None:
        chance = random.Random(seed)
        while not self._over.wait(chance.uniform(0.02, 0.4)):
            try:
                children = psutil.Process(self._gate.pid).children()
                workers = [each for each in children if "chaotic.py" in " ".join(each.cmdline())]
                if workers:
                    chance.choice(workers).kill()
                    self.counts["worker kills"] += 1
            except psutil.NoSuchProcess:
                continue

    # --- clients

    def _client(self, step: Callable[[random.Random], None], seed: float) -> None:
        chance = random.Random(seed)
        while not self._over.is_set():
            try:
                step(chance)
            except Exception as error:  # noqa: BLE001 (it is told in the end)
                self._failures.append(f"{step.__name__}: {error!r}")
                return

    def _ask(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        again: bool = False,
    ) -> Answer | None:
        """One request; None if it was not answered; `again`: until it is."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                answer = self._gate.request(method, path, body, headers)
            except NO_ANSWER:
                answer = None
                # Its port is closed, or it is on its way.
                time.sleep(0.02)
            if answer is not None and answer.status < 500:
                return answer
            if not again:
                return answer
            assert time.monotonic() < deadline, f"no answer for {PATIENCE} s; the last: {answer}"
            if answer is not None:
                time.sleep(0.02)

    def _nonce(self, chance: random.Random) -> bytes:
        return chance.randbytes(12).hex().encode()

    def _accepted(self, answer: Answer | None, queue: str, bodies: list[bytes]) -> list[str]:
        """Take down what a push was told; the ids of its jobs, where they are told."""
        if answer is None:
            self.counts["pushes without an answer"] += 1
            return []
        if answer.status != 202:
            self.counts["pushes refused"] += 1
            assert answer.json["executed"] == "no", answer
            return []
        told = answer.json
        if "id" in told:
            self._ledger.write("accepted", id=told["id"], queue=queue, body=bodies[0].decode())
            self.counts["jobs accepted"] += 1
            return [told["id"]]
        self._ledger.write("lot", **told, queue=queue, bodies=[each.decode() for each in bodies])
        self.counts["jobs accepted"] += told["accepted"]
        return []

    def _push(self, chance: random.Random) -> None:
        body = self._nonce(chance)
        self._ledger.write("push", body=body.decode())
        headers = {"Priority": f"u={chance.randrange(8)}"}
        if chance.random() < 0.2:
            headers["Jobgate-Delay"] = f"{chance.uniform(0.01, 2):.2f}"
        answer = self._ask("POST", "/push/work", body, headers)
        for name in self._accepted(answer, "work", [body]):
            if chance.random() < 0.5:
                self._await(name, digest(body))

    def _await(self, name: str, wanted: bytes) -> None:
        """Wait for a job's outcome for a while; what has been seen to end must not run again."""
        answer = self._ask("GET", f"/jobs/{name}/result?wait=2")
        if answer is not None and answer.status == 200:
            assert answer.body == wanted, (name, answer)
            self._ledger.write("finished", id=name)
            self.counts["outcomes seen at once"] += 1

    def _push_with_key(self, chance: random.Random) -> None:
        """Sent until it is answered: one job, however often it was sent."""
        body, key = self._nonce(chance), self._nonce(chance).decode()
        self._ledger.write("keyed push", body=body.decode(), key=key)
        headers = {"Idempotency-Key": key}
        answer = self._ask("POST", "/push/work", body, headers, again=True)
        [name] = self._accepted(answer, "work", [body])
        if chance.random() < 0.3:
            again = self._ask("POST", "/push/work", body, headers, again=True)
            assert again is not None
            assert again.json["id"] == name, (again, name)

    def _push_lines(self, chance: random.Random) -> None:
        bodies = [self._nonce(chance) for _ in range(chance.randrange(1, 20))]
        self._ledger.write("push lines", bodies=[each.decode() for each in bodies])
        answer = self._ask("POST", "/push/work?each=line", b"\n".join(bodies))
        self._accepted(answer, "work", bodies)
        time.sleep(0.05)

    def _push_once(self, chance: random.Random) -> None:
        body = self._nonce(chance)
        self._ledger.write("push once", body=body.decode())
        self._accepted(self._ask("POST", "/push/once", body), "once", [body])
        time.sleep(0.05)

    def _push_for_pullers(self, chance: random.Random) -> None:
        body = self._nonce(chance)
        self._ledger.write("push for pullers", body=body.decode())
        self._accepted(self._ask("POST", "/push/pull", body), "pull", [body])
        time.sleep(0.02)

    def _pull(self, chance: random.Random) -> None:
        """Take some under a lease; answer them, or fail them, or say nothing."""
        answer = self._ask("GET", "/pull/pull?wait=1&lease=1&max=4&each=line")
        if answer is None or answer.status != 200:
            return
        names = answer["Jobgate-Ids"].split(", ")
        lease = {"Jobgate-Lease": answer["Jobgate-Lease"]}
        self.counts["jobs pulled"] += len(names)
        self._ledger.write("pulled", ids=names)
        for name, body in zip(names, answer.body.splitlines(), strict=True):
            fate = chance.random()
            if fate < 0.1:
                continue
            verb, said = ("fail", b"") if fate < 0.2 else ("reply", digest(body))
            told = self._ask("POST", f"/jobs/{name}/{verb}", said, lease)
            if told is None:
                continue
            if told.status == 409:
                self.counts["late replies of pullers"] += 1
            elif verb == "reply":
                assert told.status == 200, told
                self._ledger.write("finished", id=name)

    def _call(self, chance: random.Random) -> None:
        body = self._nonce(chance)
        self._ledger.write("call", body=body.decode())
        answer = self._ask("POST", "/call/call", body)
        if answer is not None and answer.status == 200:
            assert answer.body == digest(body), answer
            self._ledger.write("called", id=answer["Jobgate-Id"])
            self.counts["calls answered"] += 1
        else:
            self.counts["calls failed"] += 1

    def _call_with_key(self, chance: random.Random) -> None:
        """Sent until there is an outcome, which is then that of all who ask again."""
        body, key = self._nonce(chance), self._nonce(chance).decode()
        self._ledger.write("keyed call", body=body.decode(), key=key)
        while not self._over.is_set():
            answer = self._ask("POST", "/call/call", body, {"Idempotency-Key": key})
            if answer is None:
                continue
            if answer.status == 200:
                assert answer.body == digest(body), answer
            elif answer.json["executed"] == "no":
                continue
            # What is not kept is no outcome: it may have run, and the same key asks again.
            if answer.slug in ("store-unavailable", "worker-timeout"):
                continue
            outcome = answer.status, answer.body.decode()
            self._ledger.write("outcome", key=key, body=body.decode(), outcome=outcome)
            self.counts["outcomes of keys"] += 1
            return

    def _graph(self, chance: random.Random) -> None:
        """One, two beside each other, and one that needs both."""
        top, left, right, end = (self._nonce(chance).decode() for _ in range(4))

        def job(body: str, *needs: str) -> dict[str, Any]:
            return {"queue": "work", "body": body, "needs": needs}

        key = self._nonce(chance).decode()
        self._ledger.write("graph", key=key)
        document = {
            "top": job(top),
            "left": job(left, "top"),
            "right": job(right, "top"),
            "end": job(end, "left", "right"),
        }
        body = json.dumps({"jobs": document}).encode()
        answer = self._ask("POST", "/graphs", body, {"Idempotency-Key": key}, again=True)
        assert answer is not None
        assert answer.status == 202, answer
        bodies = {"top": top, "left": left, "right": right, "end": end}
        self._ledger.write("graph accepted", id=answer.json["id"], bodies=bodies)
        self.counts["graphs accepted"] += 1
        time.sleep(0.2)

    # --- the reckoning

    def _verify(self) -> None:
        ran = self._runs()
        accepted: dict[str, tuple[str, bytes]] = {}
        finished: dict[str, int] = {}
        pulled: list[tuple[int, str]] = []
        lots, graphs, outcomes = [], [], []
        for line in self._ledger:
            event = line["event"]
            if event == "accepted":
                before = accepted.setdefault(line["id"], (line["queue"], line["body"].encode()))
                assert before == (line["queue"], line["body"].encode()), line
            elif event in ("finished", "called"):
                finished.setdefault(line["id"], line["at"])
            elif event == "pulled":
                pulled += [(line["at"], name) for name in line["ids"]]
            elif event == "lot":
                lots.append(line)
            elif event == "graph accepted":
                graphs.append(line)
            elif event == "outcome":
                outcomes.append(line)
        self._everything_ends(accepted, ran)
        self._lots_are_whole(lots)
        for graph in graphs:
            self._graph_is_right(graph)
        for line in outcomes:
            headers = {"Idempotency-Key": line["key"]}
            answer = self._gate.call("call", line["body"].encode(), headers)
            assert [answer.status, answer.body.decode()] == line["outcome"], (answer, line)
        # Whatever came to its end in the meantime, too, is over before it is asked for.
        ran = self._runs()
        self._nothing_runs_again(finished, ran, pulled)
        numbers = self._gate.conserved()
        for queue in ("work", "call", "once", "pull"):
            inside = numbers[queue]["commands_waiting"], numbers[queue]["commands_running"]
            assert inside == (0, 0), (queue, numbers[queue])
        self.counts["starts"] = sum(map(len, ran.values()))
        self.counts["started more than once"] = sum(len(starts) > 1 for starts in ran.values())

    def _runs(self) -> dict[str, list[tuple[int, int]]]:
        """When each command was begun, with which attempt."""
        ran = defaultdict(list)
        for line in self._log.read_text().splitlines():
            at, name, attempt = line.split()
            ran[name].append((int(at), int(attempt)))
        return ran

    def _everything_ends(
        self,
        accepted: Mapping[str, tuple[str, bytes]],
        ran: Mapping[str, list[tuple[int, int]]],
    ) -> None:
        """What got 202 ends, and with its own reply."""
        deadline = time.monotonic() + PATIENCE
        # What pullers have let fall, somebody has to do.
        while time.monotonic() < deadline:
            answer = self._gate.get("/pull/pull?wait=1&lease=10")
            if answer.status != 204:
                lease = {"Jobgate-Lease": answer["Jobgate-Lease"]}
                self._gate.post(f"/jobs/{answer['Jobgate-Id']}/reply", digest(answer.body), lease)
                continue
            numbers = self._gate.conserved()
            if not any(of["commands_waiting"] or of["commands_running"] for of in numbers.values()):
                break
        for name, (queue, body) in accepted.items():
            answer = self._gate.get(f"/jobs/{name}")
            assert answer.status == 200, (name, answer)
            shown = answer.json
            assert shown["state"] in ENDS, shown
            if queue == "once":
                assert len(ran.get(name, ())) <= 1, (name, ran[name])
                assert shown["state"] in ("succeeded", "dead"), shown
                if shown["state"] == "dead":
                    self.counts["once: dead"] += 1
                    continue
            assert shown["state"] == "succeeded", shown
            result = self._gate.get(f"/jobs/{name}/result")
            assert (result.status, result.body) == (200, digest(body)), (name, result)
            self.counts["replies checked"] += 1

    def _lots_are_whole(self, lots: list[dict[str, Any]]) -> None:
        """Of a lot of lines all are there, in order, each with its own reply."""
        after, listed = "", []
        while True:
            page = self._gate.get(f"/jobs?queue=work&limit=1000&after={after}").json
            listed += [each["id"] for each in page["jobs"]]
            if page["after"] is None:
                break
            after = page["after"]
        place = {name: number for number, name in enumerate(reversed(listed))}
        names = list(reversed(listed))
        for lot in lots:
            first, last = place[lot["first"]], place[lot["last"]]
            assert last - first + 1 == len(lot["bodies"]) == lot["accepted"], lot
            for name, body in zip(names[first : last + 1], lot["bodies"], strict=True):
                result = self._gate.get(f"/jobs/{name}/result")
                assert (result.status, result.body) == (200, digest(body.encode())), (name, result)
                self.counts["replies checked"] += 1

    def _graph_is_right(self, graph: dict[str, Any]) -> None:
        """Every node has the reply that its body and its inputs make."""
        found = self._gate.get(f"/graphs/{graph['id']}/result?wait=30")
        assert (found.status, found.json["state"]) == (200, "succeeded"), found
        said = {name: json.dumps(body).encode() for name, body in graph["bodies"].items()}
        top = digest(said["top"])
        left, right = digest(said["left"], top), digest(said["right"], top)
        wanted = {"top": top, "left": left, "right": right}
        wanted["end"] = digest(said["end"], left, right)
        for name, node in found.json["jobs"].items():
            result = self._gate.get(f"/jobs/{node['id']}/result")
            assert (result.status, result.body) == (200, wanted[name]), (name, result)
            self.counts["replies checked"] += 1

    @staticmethod
    def _nothing_runs_again(
        finished: Mapping[str, int],
        ran: Mapping[str, list[tuple[int, int]]],
        pulled: list[tuple[int, str]],
    ) -> None:
        """Attempts never go back, and nothing begins after somebody has seen its end."""
        for name, starts in ran.items():
            attempts = [attempt for _, attempt in sorted(starts)]
            assert attempts == sorted(attempts), (name, attempts)
            if name in finished:
                late = [at for at, _ in starts if at > finished[name]]
                assert not late, (name, finished[name], starts)
        for at, name in pulled:
            assert name not in finished or at <= finished[name], (name, at)


def main() -> int:
    """The long form."""
    parser = argparse.ArgumentParser(description="Kill a gate again and again; lose nothing.")
    parser.add_argument("--kills", type=int, default=500, help="of the gate")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--folder", type=Path, help="where to keep ledger, store and logs")
    told = parser.parse_args()
    seed = random.SystemRandom().randrange(2**32) if told.seed is None else told.seed
    print(f"seed {seed}, {told.kills} kills", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = told.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        began = time.monotonic()
        counts = Chaos(folder, seed, lambda line: print(line, file=sys.stderr)).run(told.kills)
        seconds = time.monotonic() - began
    for name, count in counts.items():
        print(f"{name:28} {count:8}")
    print(f"nothing lost in {seconds:.0f} s")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
