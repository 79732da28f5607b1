"""
Does this program speak the protocol? It is started, as a gate would, and asked unkindly.

    jobgate check-worker -- node worker.js
    jobgate check-worker --protocol lines -- jq --unbuffered -c .
    jobgate check-worker --config jobgate.toml --queue chess

One line for each promise that was looked at. Exit status 0 if all held (those marked `note` are
advice), else 1.
"""

from __future__ import annotations

import json
import shlex
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

from msgspec.structs import replace

from jobgate.cli.checks import FRAMES, LINES, Check, Sample
from jobgate.cli.exits import DONE, FAILED, USAGE, CliError
from jobgate.cli.probe import NotHeld, Probe
from jobgate.cli.turning import turn
from jobgate.options import Options

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import AsyncIterator

    from jobgate.config import QueueConfig, WorkerConfig

__all__ = ["arguments", "run"]

_AT_ONCE = 3
"""Commands handed over together, where the worker takes so many."""


class _Finding(NamedTuple):
    """What a check has found."""

    check: Check
    held: bool
    detail: str
    output: str = ""

    @property
    def word(self) -> str:
        return "ok" if self.held else "note" if self.check.advice else "FAIL"


def arguments(parser: ArgumentParser) -> None:
    """What it takes."""
    parser.add_argument("command", nargs="*", metavar="-- COMMAND", help="the worker")
    parser.add_argument("--protocol", choices=["frames", "lines"], help="default: frames")
    parser.add_argument("--config", "-c", metavar="FILE", help="take the worker from here")
    parser.add_argument("--queue", "-q", metavar="NAME", help="the queue in that file")
    parser.add_argument("--body", default="12", help="what to ask it (default: 12)")
    parser.add_argument("--content-type", default="text/plain", help="what that is")
    parser.add_argument(
        "--patience", type=float, default=10, metavar="SECONDS", help="for every answer (10)"
    )
    parser.add_argument(
        "--only", action="append", metavar="CHECK", help="this check alone; may be given again"
    )
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")


def run(args: Namespace) -> int:
    """Do it."""
    queue = _queue(args)
    checks = _checks(queue, args.only)
    sample = Sample(args.body.encode(), args.content_type)

    async def main(reactor: Any) -> list[_Finding]:  # noqa: ANN401 (IReactorTime and -Process)
        findings = []
        async for finding in _look(_kind(queue), checks, sample, reactor, args.patience):
            findings.append(finding)
            if not args.json:
                _show(finding)
        return findings

    findings = turn(main)
    failed = [finding for finding in findings if finding.word == "FAIL"]
    if args.json:
        found = [{"name": f.check.name, "found": f.word, "detail": f.detail} for f in findings]
        sys.stdout.write(json.dumps({"held": not failed, "checks": found}) + "\n")
    else:
        kept = len(findings) - len(failed)
        sys.stdout.write(f"{kept} of {len(findings)} checks passed\n")
    return FAILED if failed else DONE


def _queue(args: Namespace) -> QueueConfig:
    """What the options say, read as `twistd jobgate` reads them."""
    if bool(args.command) == bool(args.config):
        raise CliError("found no worker, wanted either -- COMMAND or --config FILE", USAGE)
    given = ["--config", args.config] if args.config else ["--worker", shlex.join(args.command)]
    for option in ("queue", "protocol"):
        if getattr(args, option):
            given += [f"--{option}", getattr(args, option)]
    options = Options()
    options.parseOptions(given)
    assert options.configuration is not None, "set by parseOptions"
    queues = options.configuration.queues
    name = args.queue or next(iter(queues), "")
    if len(queues) > 1 and not args.queue:
        raise CliError(f"found {len(queues)} queues, wanted --queue with one of them", USAGE)
    if not queues or not queues[name].command:
        raise CliError(f"{args.config}: found no queue with a command in it", USAGE)
    return queues[name]


def _checks(queue: QueueConfig, only: list[str] | None) -> list[Check]:
    known = {check.name: check for check in (LINES if queue.protocol == "lines" else FRAMES)}
    for name in only or ():
        if name not in known:
            raise CliError(f"found no check {name!r}, wanted one of {', '.join(known)}", USAGE)
    return [known[name] for name in only or known]


async def _look(
    config: WorkerConfig,
    checks: list[Check],
    sample: Sample,
    reactor: Any,  # noqa: ANN401 (as above)
    patience: float,
) -> AsyncIterator[_Finding]:
    """Every check in turn; a worker that is sound is asked again, others are replaced."""
    probe: Probe | None = None
    try:
        for at, check in enumerate(checks):
            if probe is None:
                probe = Probe(config, reactor, patience)
                try:
                    await probe.start()
                except NotHeld as why:
                    yield await _not_held(check, probe, str(why))
                    # To wait for each of the others would take minutes, to say the same.
                    for other in checks[at + 1 :]:
                        yield _Finding(other, held=False, detail="not looked at: never ready")
                    return
            try:
                finding = _Finding(check, held=True, detail=await check.run(probe, sample))
            except NotHeld as why:
                finding = await _not_held(check, probe, str(why))
            if check.ends or not finding.held:
                await probe.end()
                probe = None
            yield finding
    finally:
        if probe is not None:
            await probe.end()


def _kind(queue: QueueConfig) -> WorkerConfig:
    """As configured, but with more than one command at once, where the protocol knows that."""
    if queue.protocol == "lines":
        return queue.worker()
    return replace(queue.worker(), in_flight=max(_AT_ONCE, queue.in_flight))


async def _not_held(check: Check, probe: Probe, why: str) -> _Finding:
    await probe.end()
    output = "" if probe.report is None else probe.report.output
    return _Finding(check, held=False, detail=why, output=output)


def _show(finding: _Finding) -> None:
    sys.stdout.write(f"{finding.word:4}  {finding.check.name:20}  {finding.detail}\n")
    for line in finding.output.splitlines()[-10:]:
        sys.stdout.write(f"      | {line}\n")
    sys.stdout.flush()
