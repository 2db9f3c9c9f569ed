"""The command line of the doctor."""

from __future__ import annotations

import json
from collections.abc import Sequence

from ..backends import BACKENDS
from ..entry import begin, command
from ..parser import Parser
from . import machine, report
from .advice import advise
from .choice import choose


@command
def main(argv: Sequence[str] | None) -> int:
    """Print the report; returns the exit code: 1 if a backend cannot run or fails its self-test."""
    parser = Parser(
        "doctor",
        description="Show what this machine has and which backend runs on it, test every operation of "
        "that backend against the reference, and give advice. The report can be pasted into an issue: "
        "it names no user, host or folder.",
    )
    add = parser.add_argument
    add("--backend", choices=BACKENDS, help="test this one (default: the one that models get)")
    add("--no-test", action="store_true", help="skip the self-test")
    add("--json", action="store_true", help="print one JSON object; sizes are in bytes")
    args = parser.parse_args(argv)
    begin()
    found = examine(args.backend, test=not args.no_test)
    lines = [json.dumps(report.as_json(found))] if args.json else report.as_text(found)
    print("\n".join(lines))
    failures = [result for result in found.results or () if result.failures]
    failed = any(check.failed for check in found.metal or ())
    return int(bool(failures or failed or found.choice.error))


def examine(backend: str | None = None, *, test: bool = True) -> report.Report:
    """Look at the machine, choose the backend and test it. The backend stays in use."""
    here, choice = machine.inspect(), choose(backend)
    results, checks, seconds = None, None, 0.0
    if test and choice.error is None:
        from . import selftest

        results, seconds = selftest.run()
        if choice.name == "metal":
            from . import metal

            checks = metal.run()
    failed = any(result.failures for result in results or ())
    failed = failed or any(check.failed for check in checks or ())
    return report.Report(here, choice, results, seconds, advise(here, choice, failed), checks)
