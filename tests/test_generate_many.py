"""`--batch`: a file of prompts in, a file of results out, whatever stops the process."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from mlx_ferrum import generate, load
from mlx_ferrum.generate.command import main
from mlx_ferrum.generate.many.journal import Journal

MODEL = ["--model", "tiny-moe", "--backend", "cpu"]
PROMPTS = ["The robin sings", "The owl", "A storm", "It was", "Once", "She said that the sea"]


def write(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def run(prompts: Path, out: Path, *options: str) -> int:
    return main([*MODEL, "--batch", str(prompts), "--out", str(out), *options])


def test_results_are_those_of_each_prompt_alone(tmp_path: Path) -> None:
    lines: list[dict[str, Any]] = [{"prompt": text, "id": text[:3], "label": 1} for text in PROMPTS]
    lines[2] |= {"max_tokens": 3}
    out = tmp_path / "r.jsonl"
    assert run(write(tmp_path / "p.jsonl", lines), out, "-n", "12", "--sequences", "2") == 0
    model, tokenizer = load("tiny-moe")
    for i, (line, found) in enumerate(zip(lines, read(out), strict=True)):
        most = line.get("max_tokens", 12)
        text = generate(model, tokenizer, line["prompt"], max_tokens=most)
        assert found["text"] == text
        assert (found["index"], found["id"], found["generation_tokens"]) == (i, line["id"], most)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["p.jsonl", "r.jsonl"]


def test_draws_do_not_depend_on_how_many_run(tmp_path: Path) -> None:
    prompts = write(tmp_path / "p.jsonl", [{"prompt": "The robin"}] * 4)
    options = ["-n", "8", "--temp", "1", "--seed", "3"]
    texts = []
    for n in ("1", "4"):
        assert run(prompts, tmp_path / n, *options, "--sequences", n) == 0
        texts.append([line["text"] for line in read(tmp_path / n)])
    assert texts[0] == texts[1]
    assert len(set(texts[0])) == 4


def test_a_prompt_that_fails_is_named_and_the_others_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    messages = [{"role": "user", "content": "Hi"}]  # tiny-moe has no chat template
    lines: list[dict[str, Any]] = [
        {"prompt": "The"},
        {"messages": messages},
        {"prompt": "A storm " * 900},
        {"prompt": "x"},
    ]
    out = tmp_path / "r.jsonl"
    assert run(write(tmp_path / "p.jsonl", lines), out, "-n", "4") == 1
    assert "2 of 4 prompts failed" in capsys.readouterr().err
    found = read(out)
    assert [sorted(line) for line in found][1:3] == [["error", "index"]] * 2
    assert "no chat format" in found[1]["error"]
    assert "leaves no room" in found[2]["error"]
    assert "text" in found[0] and "text" in found[3]


def test_a_killed_process_goes_on_where_it_was(tmp_path: Path) -> None:
    prompts = write(tmp_path / "p.jsonl", [{"prompt": text} for text in PROMPTS * 20])
    out, part = tmp_path / "r.jsonl", tmp_path / "r.jsonl.part"
    options = ["--batch", str(prompts), "--out", str(out), "-n", "30", "--sequences", "3"]
    command = [sys.executable, "-m", "mlx_ferrum.generate", *MODEL, *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    until = time.monotonic() + 120
    while not (part.exists() and part.read_bytes().count(b"\n") > 10):
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not out.exists()
    with part.open("ab") as file:
        file.write(b'{"index": 9')  # a line that was cut off
    held = part.read_bytes().splitlines(keepends=True)[1:-1]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert f"{len(held)} of 120 results are there already" in done.stderr
    assert out.read_bytes().startswith(b"".join(held))
    found = read(out)
    assert [line["index"] for line in found] == list(range(120))
    assert not part.exists()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 2: expected a JSON object, found '{'"),
        ("[" * 200_000, "line 2: expected a JSON object"),
        ("[1]", "line 2: expected a JSON object, found a list"),
        ('{"text": "x"}', 'line 2: expected "prompt" or "messages", found neither'),
        ('{"prompt": "x", "id": NaN}', "line 2: expected a JSON object"),
        ('{"prompt": 3}', 'line 2: "prompt" is a int, expected text'),
        ('{"messages": []}', 'line 2: "messages" is no list'),
        ('{"prompt": "x", "max_tokens": 0}', 'line 2: "max_tokens" is 0'),
        ('{"prompt": "x", "max_tokens": true}', 'line 2: "max_tokens" is True'),
    ],
)
def test_bad_lines_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], line: str, said: str
) -> None:
    prompts = tmp_path / "p.jsonl"
    prompts.write_text('{"prompt": "x"}\n' + line + "\n")
    assert run(prompts, tmp_path / "r.jsonl") == 1
    assert said in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["p.jsonl"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--batch", "p"], "argument --batch: needs --out"),
        (["--out", "p"], "argument --out: needs --batch"),
        (["--batch", "p", "--out", "r", "-p", "x"], "--prompt: not allowed with --batch"),
        (["--batch", "p", "--out", "r", "--json"], "--json: not allowed with --batch"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(
    capsys: pytest.CaptureFixture[str], options: list[str], said: str
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(options)
    assert said in capsys.readouterr().err


def test_a_part_of_other_work_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    with Journal(path, {"prompts": "a", "model": "m"}) as journal:
        journal.add({"text": "x"})
        with pytest.raises(BlockingIOError, match="another process is writing it"):
            Journal(path, {"prompts": "a", "model": "m"})
    with pytest.raises(ValueError, match="was begun with other prompts; remove it"):
        Journal(path, {"prompts": "b", "model": "m"})
    with Journal(path, {"prompts": "a", "model": "m"}) as journal:
        assert (journal.count, journal.failed) == (1, 0)
        journal.finish()
    assert path.read_text() == '{"text": "x"}\n'
    with pytest.raises(FileExistsError, match="there already"):
        Journal(path, {"prompts": "a", "model": "m"})
    other = tmp_path / "s.jsonl"
    for text in ("my notes\n", "my notes", "one\ntwo"):
        Path(f"{other}.part").write_text(text)
        with pytest.raises(ValueError, match="is no part of results"):
            Journal(other, {})
        assert Path(f"{other}.part").read_text() == text


def test_an_id_may_be_half_of_a_pair(tmp_path: Path) -> None:
    prompts = write(tmp_path / "p.jsonl", [{"prompt": "x", "id": "\ud800"}])
    assert run(prompts, tmp_path / "r.jsonl", "-n", "2") == 0
    assert read(tmp_path / "r.jsonl")[0]["id"] == "\ud800"
