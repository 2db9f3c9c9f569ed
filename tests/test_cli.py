"""The command line of generation, with a model whose output is known; test_cli_processes.py has real ones."""

from __future__ import annotations

import argparse
import io
import json
import os
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeModel, ScriptedModel, byte_tokenizer

import mlx_ferrum
from mlx_ferrum import cli
from mlx_ferrum.generate import main

Output = Any


class Command:
    """Runs `main` with a model that says `reply` and an end token after the prompt."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
        self.monkeypatch, self.capsys = monkeypatch, capsys
        self.tokenizer = byte_tokenizer()
        self.prompt = "u:hi<|end|>a:"
        self.reply = "hello €"
        self.model: FakeModel | None = None

    def __call__(self, *flags: str, stdin: bytes = b"") -> int:
        model = self.model
        if model is None:
            length = len(self.tokenizer.encode(self.prompt, parse_special=True))
            script = [*self.tokenizer.encode(self.reply), 1]
            model = ScriptedModel(script, 259, length)
        self.monkeypatch.setattr(mlx_ferrum, "load", lambda *_, **__: (model, self.tokenizer))
        self.monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        try:
            code = main(list(flags))
        except SystemExit as stop:
            code = int(str(stop.code))
        self.out, self.err = self.capsys.readouterr()
        return code


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(monkeypatch, capsys)


def test_text_on_stdout_and_figures_on_stderr(run: Command) -> None:
    assert run("--prompt", "hi") == 0
    assert run.out == "hello €\n"
    assert [line.split(":")[0] for line in run.err.splitlines()] == [
        "load",
        "prompt",
        "generation",
        "peak memory",
    ]
    assert "prompt: 7 tokens, " in run.err
    assert "generation: 10 tokens, " in run.err


@pytest.mark.parametrize("newline", ["", "\n"])
def test_quiet_prints_only_the_text(run: Command, newline: str) -> None:
    run.prompt = f"u:hi{newline}<|end|>a:"
    assert run("--prompt", "-", "--quiet", stdin=f"hi{newline}".encode()) == 0
    assert (run.out, run.err) == ("hello €\n", "")


@pytest.mark.parametrize(
    ("flags", "prompt"),
    [
        (["--system", "be kind", "--prompt", "hi"], "s:be kind<|end|>u:hi<|end|>a:"),
        (["--system-prompt", "be kind", "--prompt", "hi"], "s:be kind<|end|>u:hi<|end|>a:"),
        (["--template-arg", "x=false", "--prompt", "hi"], "u:hi<|end|>x=False;a:"),
        (
            ["--template-arg", "x=a=b", "--template-arg", "y=[1]", "--prompt", "hi"],
            "u:hi<|end|>x=a=b;y=[1];a:",
        ),
        (["--raw", "--prompt", "once upon"], "once upon"),
        (["--raw", "--prompt", "<s>x<|end|>"], "<s>x<|end|>"),
    ],
)
def test_what_the_model_gets(run: Command, flags: list[str], prompt: str) -> None:
    run.prompt = prompt
    assert run(*flags, "--json") == 0
    report = json.loads(run.out)
    assert report["text"] == "hello €"
    assert report["prompt_tokens"] == len(run.tokenizer.encode(prompt, parse_special=True))


def test_a_prefill_begins_the_reply(run: Command) -> None:
    run.prompt = "u:hi<|end|>a:Well, "
    assert run("--prompt", "hi", "--prefill", "Well, ") == 0
    assert run.out == "Well, hello €\n"
    assert run("--prompt", "hi", "--prefill", "Well, ", "--json") == 0
    report = json.loads(run.out)
    assert report["text"] == "Well, hello €"
    assert report["tokens"] == [*run.tokenizer.encode(run.reply), 1]


def test_json_tells_all(run: Command) -> None:
    assert run("--prompt", "hi", "--json", "--logprobs", "2", "--logit-bias", "0=-inf") == 0
    report = json.loads(run.out)
    assert run.err == ""
    assert report["model"] == "smollm2-135m"
    assert report["tokens"] == [*run.tokenizer.encode(run.reply), 1]
    assert report["finish_reason"] == "stop"
    assert report["generation_tokens"] == len(report["logprobs"]) == 10
    assert report["cached_tokens"] == 0
    first = report["logprobs"][0]
    assert (first["token"], first["text"], len(first["top"])) == (3 + ord("h"), "h", 2)
    assert first["top"][0]["logprob"] == first["logprob"] == pytest.approx(0, abs=1e-6)


def test_a_banned_token_is_null_in_json(run: Command) -> None:
    assert (
        run("--prompt", "hi", "-n", "1", "--json", "--logprobs", "259", "--logit-bias", "9=-inf")
        == 0
    )
    (position,) = json.loads(run.out)["logprobs"]
    assert [top["token"] for top in position["top"] if top["logprob"] is None] == [9]


def test_stop_and_length(run: Command) -> None:
    assert run("--prompt", "hi", "--stop", "xyz", "--stop", "lo") == 0
    assert run.out == "hel\n"
    assert "length" not in run.err
    assert run("--prompt", "hi", "--max-tokens", "4") == 0
    assert run.out == "hell\n"
    assert "generation: 4 tokens" in run.err
    assert "stopped by the length" in run.err


def temperature(*flags: str, temp: float = 0.0) -> Any:
    parser = argparse.ArgumentParser()
    cli.sampling_arguments(parser, temp)
    args = parser.parse_args(list(flags))
    cli.check_sampling(parser, args)
    return args.temp


@pytest.mark.parametrize("name", ["top-k", "top-p", "min-p", "typical", "xtc-probability"])
def test_a_filter_without_temperature_draws_at_one(name: str, run: Command) -> None:
    on, off = f"--{name}=1", f"--{name}=0"
    if name in ("top-p", "typical"):
        on, off = off, on
    assert temperature(on) == 1
    assert temperature(on, "--temp", "0") == 0
    assert temperature(off) is None, "nothing is filtered"
    assert temperature(on, temp=0.7) is None, "the default draws already"
    assert run("--prompt", "hi", on) == 0


def test_profile_lists_stages_that_add_up(run: Command) -> None:
    assert run("--prompt", "hi", "--profile") == 0
    assert run.err.splitlines()[4].split()[0] == "other"
    assert run.err.splitlines()[4].endswith("100.0 %")


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ([], "required: -p/--prompt"),
        (["--prompt", "x", "--wrong"], "unrecognized arguments: --wrong"),
        (["--prompt", "x", "--template-arg", "x"], "'x' found, expected NAME=VALUE"),
        (["--prompt", "x", "--template-arg", "=x"], "'=x' found, expected NAME=VALUE"),
        (["--prompt", "x", "--template-arg", "messages=[]"], "messages is set by the program"),
        (["--prompt", "x", "--raw", "--prefill", "y"], "--prefill: needs the chat template"),
        (["--prompt", "x", "--prompt-cache", ""], "--prompt-cache: is empty"),
        (["--prompt", "x", "--save-prompt-cache", ""], "--save-prompt-cache: is empty"),
        (["-m", "tiny-moe", "--prefill", "y"], "the chat template, so it needs --prompt"),
        (["--prompt", "x", "--raw", "--template-arg", "x=1"], "--template-arg: needs the chat"),
        (["--prompt", "x", "--max-tokens", "0"], "--max-tokens"),
        (["--prompt", "x", "--max-tokens", "many"], "--max-tokens"),
        (["--prompt", "x", "--temp", "-1"], "temp is -1.0, expected"),
        (
            ["--prompt", "x", "--temp", "1", "--top-p", "1.5"],
            "top_p is 1.5, expected a number from 0",
        ),
        (["--prompt", "x", "--top-k", "-1"], "top_k is -1, expected an integer of at least 1"),
        (["--prompt", "x", "--seed", "-5"], "seed is -5"),
        (["--prompt", "x", "--repetition-penalty", "0"], "repetition_penalty is 0.0"),
        (["--prompt", "x", "--logit-bias", "5"], "'5' is not ID=BIAS"),
        (["--prompt", "x", "--logit-bias", "5=inf"], "logit_bias of token 5 is inf"),
        (["--prompt", "x", "--json", "--quiet"], "not allowed with"),
        (["--prompt", "x", "--raw", "--system", "y"], "--system: needs the chat template"),
        (["--prompt", "x", "--logprobs", "2"], "--logprobs: is printed by --json only"),
        (["--prompt", "x", "--stop", ""], "--stop: is empty"),
        (["--prompt", "x", "--prefill-step-size", "0"], "--prefill-step-size"),
        (["--prompt", "x", "--backend", "abacus"], "--backend: invalid choice: 'abacus'"),
        (["--prompt", "\udcff"], "-p/--prompt: is not valid UTF-8"),
    ],
)
def test_usage_errors(run: Command, flags: list[str], told: str) -> None:
    assert run(*flags) == 2
    assert told in run.err
    assert run.out == ""


@pytest.mark.parametrize(
    ("flags", "stdin", "told"),
    [
        (["--prompt", "-"], b"abc\xff", "stdin is not valid UTF-8: invalid start byte at byte 3"),
        (["--prompt", "", "--raw"], b"", "the prompt is empty (0 tokens)"),
        (
            ["--prompt", "x", "--logit-bias", "259=1"],
            b"",
            "logit_bias has token 259, expected 0 to 258",
        ),
        (["--prompt", "x", "--json", "--logprobs", "-1"], b"", "top_logprobs is -1"),
        (
            ["--prompt", "y" * 40],
            b"",
            "prompt has 45 tokens, which leaves no room for a reply in the model's context of 32 tokens",
        ),
        (["--prompt", "x", "--prompt-cache", "nowhere"], b"", "no cache file nowhere"),
    ],
)
def test_failures_are_one_line(run: Command, flags: list[str], stdin: bytes, told: str) -> None:
    run.model = FakeModel(259, context=32)
    assert run(*flags, stdin=stdin) == 1
    assert run.err.startswith("error: ")
    assert told in run.err
    assert (run.err.count("\n"), run.out) == (1, "")


def test_a_base_model_continues_the_prompt_and_says_so(run: Command) -> None:
    run.tokenizer, run.prompt = byte_tokenizer(chat=False), "hi"
    assert run("--prompt", "hi") == 0
    assert run.out == "hello €\n"
    assert run.err.startswith(
        "smollm2-135m has no chat template: the prompt is continued as it is\n"
    )
    for silent in ("--raw", "--quiet"):
        assert run("--prompt", "hi", silent) == 0
        assert (run.out, "template" in run.err) == ("hello €\n", False)


def test_a_base_model_has_no_system_message(run: Command) -> None:
    run.tokenizer = byte_tokenizer(chat=False)
    assert run("--prompt", "hi", "--system", "x") == 1
    assert run.err == "error: smollm2-135m has no chat template, which --system needs\n"


def test_a_model_of_the_package_needs_no_prompt(run: Command) -> None:
    run.tokenizer, run.prompt = byte_tokenizer(chat=False, bos=True), ""
    assert run("--model", "tiny-moe", "--json") == 0
    assert json.loads(run.out)["prompt_tokens"] == 1


@pytest.mark.parametrize(
    ("flags", "prompt"),
    [
        (["-p", "-hello"], "u:-hello<|end|>a:"),
        (["--system", "-x", "-p", "--"], "s:-x<|end|>u:--<|end|>a:"),
        (["-p", "hi", "--stop", "---", "-n", "-1", "-t", "1", "-m", "any"], "u:hi<|end|>a:"),
    ],
)
def test_values_may_begin_with_a_dash(run: Command, flags: list[str], prompt: str) -> None:
    run.prompt = prompt
    assert run(*flags) == 0
    assert run.out == "hello €\n"


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("no/cache", "there is no folder {}/no"),
        ("folder", "is a folder, expected a file"),
        ("file/cache", "there is no folder {}/file"),
        ("pipe", "is not a regular file, so it is not replaced"),
    ],
)
def test_a_cache_that_cannot_be_saved_fails_before_the_work(
    run: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, told: str
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.setattr(cli, "load_model", lambda args: pytest.fail("asked before it loads"))
    path = tmp_path / name
    assert run("-p", "hi", "--save-prompt-cache", str(path)) == 1
    assert run.err == f"error: {path}: {told.format(tmp_path)}\n"
    assert sorted(left.name for left in tmp_path.iterdir()) == ["file", "folder", "pipe"]


def test_ctrl_c_keeps_what_was_printed(run: Command, lazy: bool) -> None:
    class Interrupted(ScriptedModel):
        def scores(self, hidden: Any) -> Any:
            if len(self.fed) == 4:
                raise KeyboardInterrupt
            return super().scores(hidden)

    run.model = Interrupted(run.tokenizer.encode("hello"), 259, 7)
    assert run("--prompt", "hi") == 130
    assert (run.out, run.err) == ("he\n" if lazy else "hel\n", "")
