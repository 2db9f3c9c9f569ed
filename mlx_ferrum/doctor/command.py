"""The command line of the doctor."""

from __future__ import annotations

import json
from collections.abc import Sequence

from ..argument_types import positive
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
    add(
        *("-m", "--model"),
        metavar="NAME",
        help="also say whether this model fits in memory, what its experts get, and how fast it can be: a file, or "
        "another name that the commands take. It is not loaded; the disk is read for a second",
    )
    add(
        "--context",
        type=positive,
        metavar="TOKENS",
        help="with --model: what keys and values are counted for (default: 8192, or the model's context)",
    )
    add("--no-test", action="store_true", help="skip the self-test")
    add("--json", action="store_true", help="print one JSON object; sizes are in bytes")
    args = parser.parse_args(argv)
    if args.context is not None and args.model is None:
        parser.error("argument --context: needs --model")
    begin()
    found = examine(args.backend, test=not args.no_test, name=args.model, context=args.context)
    lines = [json.dumps(report.as_json(found))] if args.json else report.as_text(found)
    print("\n".join(lines))
    failures = [result for result in found.results or () if result.failures]
    failed = any(check.failed for check in found.metal or ())
    return int(bool(failures or failed or found.choice.error))


def examine(
    backend: str | None = None,
    *,
    test: bool = True,
    name: str | None = None,
    context: int | None = None,
) -> report.Report:
    """Look at the machine and the model of this name, choose the backend and test it. The backend stays in use.

    context: tokens that keys and values of the model are counted for; None: 8,192, or the model's context
    """
    here, choice = machine.inspect(), choose(backend)
    results, checks, seconds, about = None, None, 0.0, None
    if name is not None and choice.error is None:
        from . import model

        about = model.examine(name, context)
    if test and choice.error is None:
        from . import selftest

        results, seconds = selftest.run()
        if choice.name == "metal":
            from . import metal

            checks = metal.run()
    failed = any(result.failures for result in results or ())
    failed = failed or any(check.failed for check in checks or ())
    advice = advise(here, choice, failed)
    return report.Report(here, choice, results, seconds, advice, checks, about)
