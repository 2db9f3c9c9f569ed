"""The command lines as processes, with real models."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest


def start(
    module: str, *flags: str, stdin: str = "", **options: Any
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", f"mlx_ferrum.{module}", *flags],
        input=stdin,
        capture_output=True,
        encoding="utf-8",
        timeout=300,
        check=False,
        **options,
    )


def check_failure(done: subprocess.CompletedProcess[str], told: str) -> None:
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert told in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("module", ["generate", "chat"])
@pytest.mark.parametrize("content", [None, b"", b"not a model", b"GGUF"])
def test_files_that_are_no_models(module: str, content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    if content is not None:
        path.write_bytes(content)
    flags = ["--prompt", "x"] if module == "generate" else []
    check_failure(start(module, "--model", str(path), *flags), str(path))


@pytest.mark.parametrize("name", ["nonsense", os.devnull])
def test_names_that_are_no_models(name: str) -> None:
    check_failure(start("generate", "--model", name, "--prompt", "x"), name)


def test_smollm2_answers(smollm2_path: Path, tmp_path: Path) -> None:
    saved = tmp_path / "cache"
    question = ["--model", str(smollm2_path), "--prompt", "What is the capital of France?"]
    done = start("generate", *question, "--save-prompt-cache", str(saved))
    assert done.stdout == "The capital of France is Paris.\n"
    assert done.returncode == 0
    assert "generation: 8 tokens" in done.stderr
    again = start("generate", *question, "--prompt-cache", str(saved), "--json", "--logprobs", "1")
    report = json.loads(again.stdout)
    assert report["text"] == "The capital of France is Paris."
    assert report["cached_tokens"] == report["prompt_tokens"] - 1
    assert [position["top"][0]["token"] for position in report["logprobs"]] == report["tokens"]


def test_a_prompt_cache_of_another_model_is_refused(
    smollm2_path: Path, gemma3_path: Path, tmp_path: Path
) -> None:
    saved = tmp_path / "cache"
    flags = ["--prompt", "Hi", "--raw", "-n", "1"]
    done = start("generate", "--model", str(gemma3_path), *flags, "--save-prompt-cache", str(saved))
    assert done.returncode == 0, done.stderr
    done = start("generate", "--model", str(smollm2_path), *flags, "--prompt-cache", str(saved))
    check_failure(done, str(saved))


def test_gemma_is_a_base_model(gemma3_path: Path) -> None:
    flags = ["--model", str(gemma3_path), "--prompt", "The capital of France is", "-n", "2"]
    done = start("generate", *flags)
    assert done.returncode == 0 and done.stdout.strip()
    assert done.stderr.startswith(f"{gemma3_path} has no chat template")
    check_failure(start("chat", "--model", str(gemma3_path)), "no chat template")


def test_a_prompt_too_long_for_smollm2(smollm2_path: Path) -> None:
    done = start("generate", "--model", str(smollm2_path), "--prompt", "-", stdin="word " * 9000)
    check_failure(done, "context of 8192 tokens")


def test_a_locale_without_unicode(smollm2_path: Path) -> None:
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    flags = ["--model", str(smollm2_path), "-p", "Repeat exactly: café", "-n", "1", "--quiet"]
    command = [sys.executable, "-m", "mlx_ferrum.generate", *flags]
    done = subprocess.run(command, capture_output=True, env={**os.environ, **plain}, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


def popen(flags: Sequence[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "mlx_ferrum.generate", *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )


@pytest.mark.parametrize("how", ["interrupt", "close"])
def test_the_end_is_clean_when_the_reader_leaves(smollm2_path: Path, how: str) -> None:
    process = popen(
        ["--model", str(smollm2_path), "--prompt", "Count to one hundred.", "--ignore-eos"]
    )
    assert process.stdout is not None
    assert process.stderr is not None
    first = process.stdout.read(1)
    if how == "interrupt":
        process.send_signal(signal.SIGINT)
        rest = process.stdout.read()
        assert (first + rest).endswith("\n")
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(60) == (130 if how == "interrupt" else 141)


def test_smollm2_chats(smollm2_path: Path) -> None:
    lines = "What is the capital of France?\n/stats\n/exit\n"
    done = start("chat", "--model", str(smollm2_path), "--temp", "0", stdin=lines)
    assert (done.returncode, done.stdout) == (0, "The capital of France is Paris.\n")
    assert "generation: 8 tokens" in done.stderr


@pytest.mark.parametrize("module", ["generate", "chat"])
def test_help_teaches(module: str) -> None:
    done = start(module, "--help")
    assert done.returncode == 0
    for words in (
        "--model",
        "--top-p",
        "--seed",
        "--logit-bias",
        "penalties",
        f"mlx_ferrum.{module}",
    ):
        assert words in done.stdout
