"""The command line of the doctor."""

from __future__ import annotations

import argparse
import json

from .. import ops
from ..cli import guarded
from . import machine, report, selftest
from .advice import advise
from .choice import choose


def main(argv: list[str] | None = None) -> int:
    """Print the report; returns the exit code: 1 if a backend cannot run or fails its self-test."""
    parser = argparse.ArgumentParser(
        prog="python -m mlx_ferrum.doctor",
        description="Say what this machine has and which backend runs on it, test every operation of that "
        "backend against the reference, and advise. Made to be pasted into an issue: it "
        "names no user, host or folder.",
    )
    add = parser.add_argument
    add("--backend", choices=ops.BACKENDS, help="test this one (default: the one that models get)")
    add("--no-test", action="store_true", help="leave out the self-test")
    add("--json", action="store_true", help="print one JSON object; sizes are in bytes")
    args = parser.parse_args(argv)

    def run() -> int:
        found = examine(args.backend, test=not args.no_test)
        lines = [json.dumps(report.as_json(found))] if args.json else report.as_text(found)
        print("\n".join(lines))
        failures = [result for result in found.results or () if result.failures]
        return int(bool(failures or found.choice.error))

    return guarded(run)


def examine(backend: str | None = None, *, test: bool = True) -> report.Report:
    """Look at the machine, choose the backend and test it. The backend stays in use."""
    here, choice = machine.inspect(), choose(backend)
    results, seconds = None, 0.0
    if test and choice.error is None:
        results, seconds = selftest.run()
    failed = any(result.failures for result in results or ())
    return report.Report(here, choice, results, seconds, advise(here, choice, failed))
