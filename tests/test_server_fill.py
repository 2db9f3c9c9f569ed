"""The field suffix: a text between two others, by models that have the tokens for it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import random_models
from backends import CPU
from servers import SIZES, TEMPLATE, Served, served

from mlx_ferrum.generate import generate

FIRST = 328  # the first unused token
PREFIX, SUFFIX, MIDDLE = FIRST + 2, FIRST, FIRST + 1
KEY = "tokenizer.ggml."
OLD = {"prefix_token_id": PREFIX, "suffix_token_id": SUFFIX, "middle_token_id": MIDDLE}
NEW = {"fim_pre_token_id": PREFIX, "fim_suf_token_id": SUFFIX, "fim_mid_token_id": MIDDLE}
TEXTS = {2: "<fim_prefix>", 0: "<fim_suffix>", 1: "<fim_middle>"}
KINDS: dict[str, Any] = {
    "new": {"keys": {KEY + name: token for name, token in NEW.items()}},
    "old": {"keys": {KEY + name: token for name, token in OLD.items()}},
    "text": {"named": TEXTS},
}
BEFORE, AFTER = "def f(x):\n", "\n    return y"


def write(path: Path, **options: Any) -> Path:
    sizes = replace(SIZES, vocab=340)
    return random_models.write(path, "llama", 7, sizes=sizes, template=TEMPLATE, **options)


@pytest.fixture(scope="module", params=KINDS)
def server(request, tmp_path_factory) -> Iterator[Served]:
    with served(write(tmp_path_factory.mktemp("fill") / "m.gguf", **KINDS[request.param])) as found:
        yield found


def expected(server: Served) -> str:
    first, last = (server.tokenizer.encode(text, add_special=False) for text in (BEFORE, AFTER))
    ids = [PREFIX, *first, SUFFIX, *last, MIDDLE]
    with CPU.in_use():
        return generate(server.model, server.tokenizer, ids, max_tokens=12)


@pytest.mark.parametrize("is_text", [True, False])
def test_completions(server: Served, is_text: bool) -> None:
    prompt = BEFORE if is_text else server.tokenizer.encode(BEFORE, add_special=False)
    ask: Any = {"model": "tiny", "prompt": prompt, "suffix": AFTER, "max_tokens": 12}
    ask["temperature"] = 0
    assert server.openai.completions.create(**ask).choices[0].text == expected(server)
    stream = server.openai.completions.create(**ask, stream=True)
    assert "".join(piece.choices[0].text for piece in stream) == expected(server)


@pytest.mark.parametrize("stream", [True, False])
def test_ollama(server: Served, stream: bool) -> None:
    options = {"num_predict": 12, "temperature": 0}
    ask = {"prompt": BEFORE, "suffix": AFTER, "stream": stream, "options": options}
    lines = server.http.post("/api/generate", json=ask).text.splitlines()
    assert "".join(json.loads(line)["response"] for line in lines) == expected(server)


def test_echo_is_refused(server: Served) -> None:
    ask = {"prompt": BEFORE, "suffix": AFTER, "echo": True}
    found = server.http.post("/v1/completions", json=ask)
    assert found.status_code == 400
    assert "echo" in found.json()["error"]["message"]


@pytest.mark.parametrize(
    ("named", "lacks"), [({}, "prefix, suffix, middle"), ({2: TEXTS[2]}, "suffix, middle")]
)
def test_what_a_model_lacks_is_named(tmp_path: Path, named: Any, lacks: str) -> None:
    with served(write(tmp_path / "m.gguf", named=named)) as server:
        for path in ("/v1/completions", "/api/generate"):
            found = server.http.post(path, json={"prompt": BEFORE, "suffix": AFTER})
            assert found.status_code == 400
            assert f"token for: {lacks};" in found.text
