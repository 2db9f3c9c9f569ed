"""Anthropic's and Ollama's clients, and embeddings."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import anthropic
import hf_bert
import numpy as np
import openai
import pytest
from servers import Served, served, write

import mlx_ferrum
from mlx_ferrum.generate import generate

SYSTEM = "x-anthropic-billing-header: cc_version=2.1; cch={};\nBe brief. " + "Rules. " * 20
MESSAGES: list[Any] = [{"role": "user", "content": [{"type": "text", "text": "one two"}]}]
OPTIONS = {"temperature": 0, "num_predict": 12}


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("server")
    hf_bert.write(folder / "bert")
    encoder = hf_bert.converted(folder / "bert")
    with served(write(folder / "m.gguf"), encoder=encoder) as found:
        found.encoder = mlx_ferrum.load(encoder)
        yield found


@pytest.fixture(scope="module")
def claude(server: Served) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0) as client:
        yield client


def create(client: anthropic.Anthropic, **options: Any) -> Any:
    messages: Any = client.messages
    return messages.create(**asked(**options))


def asked(**options: Any) -> dict[str, Any]:
    """Arguments of a request; those of sampling are not in every version of the client."""
    body = {"temperature": 0}
    body |= {
        name: options.pop(name) for name in ("temperature", "top_k", "seed") if name in options
    }
    options = {"model": "claude-x", "max_tokens": 16, "messages": MESSAGES} | options
    return {**options, "extra_body": body}


def alone(server: Served, prompt: str, count: int) -> str:
    return generate(server.model, server.tokenizer, prompt, max_tokens=count)


def test_messages_are_what_generate_gives(server: Served, claude: anthropic.Anthropic) -> None:
    found = create(claude, system="Be brief.")
    prompt = "[system]Be brief.\n[user]one two\n[assistant]"
    assert found.content[0].text == alone(server, prompt, 16)
    assert found.stop_reason == "max_tokens"
    usage = found.usage
    count = len(server.tokenizer.encode(prompt))
    assert usage.input_tokens + usage.cache_read_input_tokens == count
    assert usage.output_tokens == 16
    counted = claude.messages.count_tokens(model="claude-x", system="Be brief.", messages=MESSAGES)
    assert counted.input_tokens == count


def test_message_streams_are_whole_messages(claude: anthropic.Anthropic) -> None:
    options: dict[str, Any] = {"top_k": 30, "temperature": 1.0, "seed": 3}
    whole = create(claude, **options)
    messages: Any = claude.messages
    with messages.stream(**asked(**options)) as stream:
        kinds: list[str] = [event.type for event in stream if event.type not in ("text", "ping")]
        found = stream.get_final_message()
    assert found.content[0].text == whole.content[0].text
    assert (found.stop_reason, found.stop_sequence) == (whole.stop_reason, whole.stop_sequence)
    assert found.usage.output_tokens == whole.usage.output_tokens
    deltas = kinds.count("content_block_delta")
    assert kinds == [
        *("message_start", "content_block_start"),
        *["content_block_delta"] * deltas,
        *("content_block_stop", "message_delta", "message_stop"),
    ]


def test_a_stop_sequence_is_named(claude: anthropic.Anthropic) -> None:
    text = create(claude).content[0].text
    found = create(claude, stop_sequences=["\0never", text[3:5]])
    assert found.content[0].text == text[: text.index(text[3:5])]
    assert (found.stop_reason, found.stop_sequence) == ("stop_sequence", text[3:5])


def test_a_header_that_changes_does_not_hide_the_prefix(claude: anthropic.Anthropic) -> None:
    create(claude, system=SYSTEM.format("a1b2c"))
    blocks = [{"type": "text", "text": SYSTEM.format("zzzzz")}]
    usage = create(claude, system=blocks).usage
    assert usage.cache_read_input_tokens > 96


def test_blocks_become_messages(server: Served, claude: anthropic.Anthropic) -> None:
    turns = [
        {"role": "user", "content": "add"},
        {
            "role": "assistant",
            "content": [
                {"type": "text", "text": "so"},
                {"type": "tool_use", "id": "t1", "name": "f", "input": {"a": 1}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "2"}]},
                {"type": "text", "text": "more"},
            ],
        },
        {"role": "assistant", "content": "It"},
    ]  # fmt: skip
    found = create(claude, messages=turns)
    prompt = "[user]add\n[assistant]so\n[tool]2\n[user]more\n[assistant]It"
    assert found.content[0].text == alone(server, prompt, 16)


@pytest.mark.parametrize(
    "wrong",
    [
        {"messages": []},
        {"messages": [{"role": "user", "content": [{"type": "image"}]}]},
        {"messages": [{"role": "robot", "content": "x"}]},
        {"temperature": -1},
        {"tools": [{"type": "web_search_20250305", "name": "f"}]},
        {"tools": [{"name": "f"}], "tool_choice": {"type": "any"}},
    ],
)
def test_errors_have_anthropics_form(claude: anthropic.Anthropic, wrong: dict[str, Any]) -> None:
    with pytest.raises(anthropic.BadRequestError) as caught:
        create(claude, **wrong)
    body: Any = caught.value.body
    assert (body["type"], body["error"]["type"]) == ("error", "invalid_request_error")
    with pytest.raises(anthropic.NotFoundError):
        create(claude, model="gpt")


def test_ollama_chat_and_generate(server: Served) -> None:
    wanted = alone(server, "[system]short\n[user]hi\n[assistant]", 12)
    turns = [{"role": "system", "content": "short"}, {"role": "user", "content": "hi"}]
    asks: list[tuple[str, dict[str, Any]]] = [
        ("chat", {"messages": turns}),
        ("generate", {"prompt": "hi", "system": "short"}),
        ("generate", {"prompt": "[system]short\n[user]hi\n[assistant]", "raw": True}),
    ]
    for path, body in asks:
        body |= {"model": "tiny:latest", "options": OPTIONS}
        whole = server.http.post(f"/api/{path}", json={**body, "stream": False}).json()
        text = server.http.post(f"/api/{path}", json=body).text
        *lines, last = map(json.loads, text.splitlines())
        texts = [
            line["message"]["content"] if path == "chat" else line["response"] for line in lines
        ]
        assert "".join(texts) == wanted
        assert wanted == (whole["message"]["content"] if path == "chat" else whole["response"])
        assert (last["done"], last["done_reason"], last["eval_count"]) == (True, "length", 12)
        assert not any(line["done"] for line in lines)
        assert whole["prompt_eval_count"] == last["prompt_eval_count"]


def test_ollama_lists_models_and_refuses(server: Served) -> None:
    model, encoder = server.http.get("/api/tags").json()["models"]
    assert (encoder["name"], encoder["details"]["family"]) == ("bert", "bert")
    assert (model["name"], model["details"]["family"]) == ("tiny", "llama")
    shown = server.http.post("/api/show", json={"model": "tiny"}).json()
    assert shown["model_info"]["llama.context_length"] == 512
    assert server.http.post("/api/generate", json={"model": "tiny"}).json()["done_reason"] == "load"
    for wrong in [
        {"model": "x"},
        {"options": {"num_predict": "x"}},
        {"messages": 3},
        {"format": "xml"},
    ]:
        found = server.http.post("/api/chat", json=wrong)
        assert found.status_code in (400, 404)
        assert isinstance(found.json()["error"], str)


def test_embeddings(server: Served) -> None:
    texts = ["a", "hello text", "abc " * 5] * 15  # more than one part of the work
    model, tokenizer = server.encoder
    wanted = mlx_ferrum.embed(model, tokenizer, texts)
    for form in ("float", "base64"):
        found = server.openai.embeddings.create(model="bert", input=texts, encoding_format=form)
        assert [entry.index for entry in found.data] == list(range(45))
        vectors = [
            np.frombuffer(base64.b64decode(entry.embedding), "<f4")
            if form == "base64"
            else entry.embedding
            for entry in found.data
        ]
        np.testing.assert_allclose(vectors, wanted, atol=1e-6)
    found = server.http.post("/api/embed", json={"model": "bert", "input": texts[1]}).json()
    np.testing.assert_allclose(found["embeddings"], wanted[1:2], atol=1e-4)
    assert found["prompt_eval_count"] == len(server.encoder[1].encode(texts[1]))
    long = "b " * 60
    with pytest.raises(openai.BadRequestError, match="expected at most 32"):
        server.openai.embeddings.create(model="bert", input=["a", long])
    assert server.http.post("/api/embed", json={"input": long}).status_code == 200
    for wrong in [{"input": []}, {"input": [[1, 2]]}, {"input": "a", "dimensions": 8}]:
        assert server.http.post("/v1/embeddings", json=wrong).status_code == 400
    assert server.http.post("/v1/embeddings", json={"input": "a", "model": "x"}).status_code == 404
