"""`--grammar` and `--json-schema` of the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mlx_ferrum import generate, load
from mlx_ferrum.generate import main
from mlx_ferrum.structured import Grammars

PROMPT = ["--model", "tiny-moe", "--prompt", "The robin", "--raw", "--quiet"]
SCHEMA = {
    "type": "object",
    "properties": {"birds": {"type": "array", "items": {"enum": ["wren", "owl"]}, "maxItems": 2}},
    "required": ["birds"],
    "additionalProperties": False,
}


@pytest.fixture
def schema(tmp_path: Path) -> str:
    path = tmp_path / "schema.json"
    path.write_text(json.dumps(SCHEMA))
    return str(path)


def test_a_schema(schema: str, capsys: Any) -> None:
    assert main([*PROMPT, "--json-schema", schema]) == 0
    text = capsys.readouterr().out.removesuffix("\n")
    assert set(json.loads(text)["birds"]) <= {"wren", "owl"}
    model, tokenizer = load("tiny-moe")
    grammar = Grammars(tokenizer, model.args.vocab_size).json_schema(SCHEMA)
    assert generate(model, tokenizer, "The robin", constraint=grammar) == text


def test_a_grammar(tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "g.lark"
    path.write_text('start: "sings " ("loud" | "low") "ly"\n')
    assert main([*PROMPT, "--grammar", str(path)]) == 0
    assert capsys.readouterr().out in ("sings loudly\n", "sings lowly\n")


def test_a_batch(tmp_path: Path, schema: str) -> None:
    prompts, out = tmp_path / "p.jsonl", tmp_path / "r.jsonl"
    prompts.write_text('{"prompt": "The robin"}\n{"prompt": "An owl"}\n')
    flags = ["--model", "tiny-moe", "--quiet", "--batch", str(prompts), "--out", str(out)]
    assert main([*flags, "--json-schema", schema]) == 0
    for line in out.read_text().splitlines():
        found = json.loads(line)
        assert found["finish_reason"] == "stop" and "birds" in json.loads(found["text"])


@pytest.mark.parametrize(
    ("content", "flags", "said"),
    [
        ("start: nothing", ["--grammar"], "the grammar: "),
        ("{", ["--json-schema"], "the JSON schema: Expecting property name"),
        ("{}", ["--ignore-eos", "--json-schema"], "not allowed with argument --ignore-eos"),
        (None, ["--grammar"], "No such file"),
    ],
)
def test_what_is_wrong_is_said(
    tmp_path: Path, capsys: Any, content: str | None, flags: list[str], said: str
) -> None:
    path = tmp_path / "f"
    if content is not None:
        path.write_text(content)
    try:
        code = main([*PROMPT, *flags, str(path)])
    except SystemExit as end:
        code = int(str(end.code))
    assert code and said in capsys.readouterr().err
