"""
`jobgate check-worker`: what keeps the protocol passes, and what does not is named.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from command_line import jobgate
from example_gate import EXAMPLES, need
from program import sdk

if TYPE_CHECKING:
    import subprocess
    from pathlib import Path

pytestmark = pytest.mark.timeout(120)

REFERENCE = {
    "count.js": ("node", "nodejs"),
    "count.php": ("php", "php-cli"),
    "count.pl": ("perl", "perl"),
    "count.py": ("python3", "python3"),
    "count.rb": ("ruby", "ruby"),
}
"""The reference workers that speak frames: the program that runs each, and its Debian package."""


def check(*arguments: str) -> tuple[subprocess.CompletedProcess[bytes], dict[str, str]]:
    """Run it; also returns what was found, by check."""
    done = jobgate("check-worker", "--json", *arguments)
    checks = json.loads(done.stdout)["checks"]
    return done, {entry["name"]: entry["found"] for entry in checks}


def not_held(*arguments: str) -> list[str]:
    """The checks that a worker failed, which the exit status must tell."""
    done, found = check(*arguments)
    assert done.returncode == 1, found
    return [name for name, word in found.items() if word == "FAIL"]


@pytest.mark.parametrize("name", REFERENCE)
def test_reference_workers_keep_the_protocol(name: str) -> None:
    """Each in its own language, by every check."""
    program, package = REFERENCE[name]
    need(program, package)
    done, found = check("--", program, str(EXAMPLES / "workers" / name))
    assert done.returncode == 0, done.stdout
    assert set(found.values()) == {"ok"}
    assert len(found) == 17


def test_the_shell_worker_keeps_the_protocol() -> None:
    """In the dullest shell there is."""
    need("sh", "dash")
    done, found = check("--protocol", "lines", "--", "sh", str(EXAMPLES / "workers" / "count.sh"))
    assert done.returncode == 0, done.stdout
    assert set(found.values()) == {"ok"}
    assert len(found) == 8


@pytest.mark.parametrize("name", ["echo", "actor"])
def test_the_sdk_keeps_the_protocol(name: str) -> None:
    """The one that most workers use."""
    done, found = check("--", *sdk(name))
    assert done.returncode == 0, done.stdout
    assert set(found.values()) == {"ok"}


@pytest.mark.parametrize(
    ("fault", "caught"),
    [
        ("one-read", "byte by byte"),
        ("ascii-meta", "strange meta"),
        ("no-empty-body", "empty body"),
        ("no-pong", "ping"),
        ("no-drain", "drain"),
        ("bad-exit", "drain"),
        ("lives-on", "end of input"),
        ("answers-cancel", "cancel"),
        ("knows-all-types", "unknown frames"),
        ("mute", "hello"),
    ],
)
def test_careless_readers_are_caught(fault: str, caught: str) -> None:
    """Each fault by the check that is made for it."""
    arguments = ["--patience", "3", "--only", caught, "--", *sdk("careless", fault)]
    assert not_held(*arguments) == [caught]


@pytest.mark.parametrize(
    "word",
    [
        "garbage",
        "good-then-garbage",
        "torn-eof",
        "huge",
        "wrong-version",
        "gate-type",
        "second-hello",
        "bad-meta",
        "bad-status 99",
        "bad-type",
        "wrong-id-only",
        "twice",
        "close-stdout",
        "die",
    ],
)
def test_broken_answers_are_caught(word: str) -> None:
    """Whatever a worker says instead of one proper answer."""
    checks = ["--only", "answer", "--only", "nothing stray", "--patience", "2"]
    assert not_held(*checks, "--body", word, "--", *sdk("raw"))


def test_an_answer_out_of_order_is_caught() -> None:
    """From a worker that promised to keep it."""
    worker = sdk("raw", "--ordered", "--in-flight", "3", "--gather", "3")
    assert not_held("--only", "joined frames", "--", *worker) == ["joined frames"]


def test_people_see_a_line_for_each_check_and_what_the_worker_said() -> None:
    """Its last words are below the check that it failed."""
    checks = ["--only", "answer", "--only", "unknown frames"]
    done = jobgate("check-worker", *checks, "--", *sdk("careless", "knows-all-types"))
    said = done.stdout.decode()
    assert "FAIL  unknown frames        exited with status 1\n      | no such type\n" in said
    assert said.endswith("1 of 2 checks passed\n")
    assert done.stderr == b""


@pytest.mark.parametrize("name", ["bc", "jq"])
def test_a_queue_of_a_configuration(name: str) -> None:
    """With all that it says about its workers; what is only advice fails nothing."""
    need(name, name)
    done, found = check(
        "--patience",
        "2",
        "--config",
        str(EXAMPLES / name / "jobgate.toml"),
        "--queue",
        {"bc": "bc", "jq": "totals"}[name],
    )
    assert done.returncode == 0, done.stdout
    assert found["answer"] == "ok"


def test_a_program_that_knows_nothing_of_it() -> None:
    """One that never says HELLO is waited for once, not in each check."""
    done = jobgate("check-worker", "--patience", "1", "--", "cat")
    first, *others, last = done.stdout.decode().splitlines()
    assert first == "FAIL  hello                 not ready within 1 s"
    assert {line[28:] for line in others} == {"not looked at: never ready"}
    assert last == f"0 of {len(others) + 1} checks passed"
    assert done.returncode == 1


def test_what_cannot_be_started(tmp_path: Path) -> None:
    """No program, no queue, nothing at all."""
    done = jobgate("check-worker", "--", str(tmp_path / "nothing"))
    assert done.returncode == 1
    assert b"No such file or directory" in done.stdout
    (tmp_path / "jobgate.toml").write_text("[queues.a]\n[queues.b]\n")
    for arguments, wanted in (
        ((), b"wanted either -- COMMAND or --config FILE"),
        (("--config", "jobgate.toml"), b"wanted --queue"),
        (("--config", "jobgate.toml", "--queue", "a"), b"no queue with a command"),
        (("--only", "everything", "--", "true"), b"found no check 'everything'"),
    ):
        done = jobgate("check-worker", *arguments, cwd=tmp_path)
        assert (done.returncode, done.stdout) == (2, b"")
        assert wanted in done.stderr
        assert done.stderr.count(b"\n") == 1
