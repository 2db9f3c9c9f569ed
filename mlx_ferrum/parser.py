"""The argument parser of all commands."""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import PurePath
from typing import Any

from . import __version__

# Names of other programs that mean an option here; --help does not list them.
_ALIASES = (
    ("--temperature", "--temp"),
    ("--n-predict", "--max-tokens"),
    ("--n-predict", "--tokens"),
    ("--max-tokens", "--tokens"),
)


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Keeps the lines of examples, and the options in one column: `-p, --prompt TEXT`."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings or action.nargs == 0:
            return super()._format_action_invocation(action)
        value = self._format_args(action, self._get_default_metavar_for_optional(action))
        return f"{', '.join(action.option_strings)} {value}"


class Parser(argparse.ArgumentParser):
    """Reads arguments as llama.cpp does: what follows an option that takes a value is its value.

    argparse alone refuses values that begin with a dash, such as `--stop ---`. Only an argument that
    is exactly an option stays one. Options cannot be abbreviated. --version is there.
    """

    def __init__(self, command: str, description: str, **options: Any) -> None:
        """command: the module after `python -m mlx_ferrum.`, and a subcommand; options: those of argparse."""
        super().__init__(
            prog=_program(command),
            description=textwrap.fill(description, 79),
            formatter_class=HelpFormatter,
            allow_abbrev=False,
            **options,
        )
        self.add_argument(
            "--version",
            action="version",
            version=f"mlx_ferrum {__version__}",
            help="show the version and exit",
        )

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse does, with the values of options joined to them first."""
        for alias, name in _ALIASES:
            if name in self._option_string_actions:
                self._option_string_actions.setdefault(alias, self._option_string_actions[name])
        given = sys.argv[1:] if args is None else args
        return super().parse_known_args(list(self._joined(given)), namespace)

    def _print_message(self, message: str, file: Any = None) -> None:
        (file or sys.stderr).write(message)  # argparse hides that a disk is full or a reader gone

    def _joined(self, args: Iterable[str]) -> Iterator[str]:
        rest = iter(args)
        for arg in rest:
            action = self._option_string_actions.get(arg)
            takes_value = action is not None and action.nargs is None
            value = next(rest, None) if takes_value else None
            if action is not None and value is not None:
                yield from self._with_value(arg, action, value)
            else:
                yield arg
            if arg == "--":
                yield from rest

    def _with_value(self, arg: str, action: argparse.Action, value: str) -> tuple[str, ...]:
        """An option and its value: as one argument if the value begins with a dash."""
        if not value.startswith("-"):
            return arg, value
        name = next(name for name in action.option_strings if name.startswith("--"))
        if value.partition("=")[0] in self._option_string_actions:
            names = "/".join(action.option_strings)
            self.error(
                f"argument {names}: expected a value, found the option {value}; "
                f"write {name}={value} if that is the value"
            )
        return (f"{name}={value}",)

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:
        if arg_strings == ["--"] and action.nargs is None and action.option_strings:
            return self._get_value(action, "--")  # argparse drops it before Python 3.13
        return super()._get_values(action, arg_strings)


def _program(command: str) -> str:
    """The program's name as the user started it, with the subcommand."""
    script, (_, *subcommand) = PurePath(sys.argv[0]).name, command.split()
    if script.startswith("ferrum-"):
        return " ".join([script, *subcommand])
    return f"python -m mlx_ferrum.{command}"
