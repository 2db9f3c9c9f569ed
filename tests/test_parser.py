"""The argument parser of all commands: values that begin with a dash, names of other programs, help."""

from __future__ import annotations

import re

import pytest

from mlx_ferrum import __version__
from mlx_ferrum.parser import Parser


def parser() -> Parser:
    made = Parser("test", "About it.")
    made.add_argument("file", nargs="?")
    made.add_argument("-p", "--prompt", metavar="TEXT", help="the prompt")
    made.add_argument("--stop", action="append", default=[])
    made.add_argument("-n", "--max-tokens", type=int)
    made.add_argument("--temp", type=float)
    made.add_argument("-q", "--quiet", action="store_true")
    return made


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["-p", "-hello"], {"prompt": "-hello"}),
        (["--prompt", "-hello there"], {"prompt": "-hello there"}),
        (["-p", "--"], {"prompt": "--"}),
        (["-p", "-"], {"prompt": "-"}),
        (["-p", ""], {"prompt": ""}),
        (["-p", "-x=y=z"], {"prompt": "-x=y=z"}),
        (["-p", "-1"], {"prompt": "-1"}),
        (["-p-q"], {"prompt": "-q"}),
        (["--prompt=--quiet"], {"prompt": "--quiet"}),
        (["--stop", "---", "--stop", "-", "--stop", "a"], {"stop": ["---", "-", "a"]}),
        (["-n", "-1", "-q"], {"max_tokens": -1, "quiet": True}),
        (["-p", "-x", "--", "-file"], {"prompt": "-x", "file": "-file"}),
        (["--", "-p"], {"file": "-p"}),
        (["--temperature", "0.5"], {"temp": 0.5}),
        (["--n-predict=3"], {"max_tokens": 3}),
    ],
)
def test_values(args: list[str], expected: dict[str, object]) -> None:
    found = vars(parser().parse_args(args))
    assert {name: found[name] for name in expected} == expected
    assert found["file"] == expected.get("file")


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (
            ["-p", "--quiet"],
            "argument -p/--prompt: expected a value, found the option --quiet; "
            "write --prompt=--quiet if that is the value",
        ),
        (["-p", "-q"], "write --prompt=-q if"),
        (["--stop", "--max-tokens=5"], "write --stop=--max-tokens=5 if"),
        (["--stop", "--temperature"], "found the option --temperature"),
        (["-p"], "argument -p/--prompt: expected one argument"),
        (["-n", "-x"], "argument -n/--max-tokens: invalid int value: '-x'"),
        (["--wrong"], "unrecognized arguments: --wrong"),
        (["--prom", "x"], "unrecognized arguments: --prom"),
    ],
)
def test_usage_errors(args: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parser().parse_args(args)
    assert stop.value.code == 2
    *usage, error = capsys.readouterr().err.splitlines()
    assert usage[0].startswith("usage: python -m mlx_ferrum.test ")
    assert told in error


@pytest.mark.parametrize(
    ("program", "shown"),
    [
        ("/x/bin/ferrum-test", "ferrum-test"),
        ("/x/mlx_ferrum/test/__main__.py", "python -m mlx_ferrum.test"),
    ],
)
def test_help_names_the_program_as_it_was_started(
    program: str, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", [program])
    text = parser().format_help()
    assert text.startswith(f"usage: {shown} [")
    assert re.search("\n  -p, --prompt TEXT +the prompt\n", text)
    assert "temperature" not in text


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parser().parse_args(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"mlx_ferrum {__version__}\n"
