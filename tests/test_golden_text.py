"""The most likely continuation of a prompt, token for token what float32 transformers writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from backends import REFERENCE, Backend

import mlx_ferrum

GOLDEN = json.loads((Path(__file__).parent / "golden" / "greedy.json").read_text("utf-8"))
# It decodes all weights for each token; test_logits compares it at hundreds of positions of these models.
REFERENCE_TOKENS = 8


@pytest.mark.parametrize(
    ("name", "fixture"), [("smollm2-135m", "smollm2"), ("gemma3-270m", "gemma3")]
)
def test_greedy(
    fast_backend: Backend, name: str, fixture: str, request: pytest.FixtureRequest
) -> None:
    model, tokenizer = request.getfixturevalue(fixture)
    golden: dict[str, Any] = GOLDEN[name]
    assert tokenizer.encode(golden["prompt"], parse_special=True) == golden["prompt_tokens"]
    count = REFERENCE_TOKENS if fast_backend == REFERENCE else len(golden["tokens"])
    responses = list(
        mlx_ferrum.stream_generate(model, tokenizer, golden["prompt_tokens"], max_tokens=count)
    )
    assert [response.token for response in responses] == golden["tokens"][:count]
    text = "".join(response.text for response in responses)
    assert text == golden["text"][: len(text)]
    assert text == golden["text"] or count < len(golden["tokens"])
