"""`/v1/responses` through OpenAI's client."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from servers import Served, served, write

from mlx_ferrum.generate import generate
from mlx_ferrum.server.errors import RequestError
from mlx_ferrum.server.openai.store import Store

CUT = {"temperature": 0, "max_output_tokens": 14}


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Served]:
    with served(write(tmp_path_factory.mktemp("server") / "m.gguf")) as found:
        yield found


def create(server: Served, **options: Any) -> Any:
    return server.openai.responses.create(**{"model": "tiny", "input": "hi", **CUT, **options})


def alone(server: Served, prompt: str) -> str:
    return generate(server.model, server.tokenizer, prompt, max_tokens=14)


def test_a_response_is_what_generate_gives(server: Served) -> None:
    found = create(server, instructions="Be brief.", metadata={"a": "b"}, user="me")
    prompt = "[system]Be brief.\n[user]hi\n[assistant]"
    assert found.output_text == alone(server, prompt)
    assert (found.status, found.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    count = len(server.tokenizer.encode(prompt))
    assert (found.usage.input_tokens, found.usage.output_tokens) == (count, 14)
    assert (found.metadata, found.user, found.temperature) == ({"a": "b"}, "me", 0)
    stop = {"stop": found.output_text[3:5]}
    ended = create(server, instructions="Be brief.", extra_body=stop)
    assert (ended.status, ended.incomplete_details) == ("completed", None)


def test_events_are_in_order_and_add_up(server: Served) -> None:
    options = {"temperature": 1, "extra_body": {"seed": 4}, "top_logprobs": 2}
    options |= {"include": ["message.output_text.logprobs"]}
    whole = create(server, **options)
    events = list(create(server, stream=True, **options))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type.removeprefix("response.") for event in events]
    deltas = [event for event in events if event.type.endswith("text.delta")]
    assert kinds == [
        *("created", "in_progress", "output_item.added", "content_part.added"),
        *["output_text.delta"] * len(deltas),
        *("output_text.done", "content_part.done", "output_item.done", "incomplete"),
    ]
    last = events[-1].response
    assert "".join(event.delta for event in deltas) == whole.output_text == last.output_text
    assert last.usage.total_tokens == whole.usage.total_tokens
    assert {event.item_id for event in deltas} == {last.output[0].id}
    assert {event.response.id for event in events if hasattr(event, "response")} == {last.id}
    logprobs = [entry.logprob for event in deltas for entry in event.logprobs]
    part = whole.output[0].content[0]
    assert logprobs == [entry.logprob for entry in part.logprobs]
    assert len(part.logprobs[0].top_logprobs) == 2
    stop = {"model": "tiny", "input": "hi", "extra_body": {"stop": create(server).output_text[5:7]}}
    with server.openai.responses.stream(**CUT, **stop) as stream:
        assert stream.get_final_response().output_text == create(server, **stop).output_text


@pytest.mark.parametrize("stream", [False, True])
def test_a_response_goes_on_from_an_earlier_one(server: Served, stream: bool) -> None:
    first = create(server, instructions="Once.", stream=stream)
    if stream:
        first = list(first)[-1].response
    second = create(
        server, input=[{"role": "user", "content": "on"}], previous_response_id=first.id
    )
    text = f"[user]hi\n[assistant]{first.output_text}\n[user]on\n[assistant]"
    assert second.output_text == alone(server, text)
    third = create(server, input="x", previous_response_id=second.id)
    text = (
        text.removesuffix("[assistant]") + f"[assistant]{second.output_text}\n[user]x\n[assistant]"
    )
    assert third.output_text == alone(server, text)
    assert server.openai.responses.retrieve(second.id).output_text == second.output_text
    server.openai.responses.delete(second.id)
    for call in (server.openai.responses.retrieve, server.openai.responses.delete):
        with pytest.raises(openai.NotFoundError):
            call(second.id)
    with pytest.raises(openai.NotFoundError):
        create(server, previous_response_id=second.id)


def test_tokens_of_a_prompt_are_counted(server: Served) -> None:
    count: Any = server.openai.responses.input_tokens.count
    first = create(server, instructions="Once.")
    tool = {"type": "function", "name": "f", "parameters": {}}
    bodies: list[dict[str, Any]] = [
        {"input": "hi"},
        {"input": "so", "instructions": "Be brief.", "previous_response_id": first.id},
        {"input": [{"role": "user", "content": "add"}], "tools": [tool], "tool_choice": "none"},
        {"input": "hi", "reasoning": {"effort": "none"}},
    ]
    counts = [count(model="tiny", **body) for body in bodies]
    assert [found.object for found in counts] == ["response.input_tokens"] * len(bodies)
    used = [create(server, **body).usage.input_tokens for body in bodies]
    assert [found.input_tokens for found in counts] == used
    assert len(set(used)) == len(used)
    with pytest.raises(openai.NotFoundError):
        count(model="tiny", input="x", previous_response_id="resp_none")


def test_what_is_not_stored_is_not_there(server: Served) -> None:
    found = create(server, store=False)
    with pytest.raises(openai.NotFoundError):
        server.openai.responses.retrieve(found.id)


def test_items_become_messages(server: Served) -> None:
    call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": '{"a": 1}'}
    found = create(
        server,
        input=[
            {"role": "developer", "content": "be"},
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "add"}]},
            {"type": "reasoning", "id": "r", "summary": []},
            {"role": "assistant", "content": [{"type": "output_text", "text": "so"}]},
            call,
            {"type": "function_call_output", "call_id": "c", "output": "2"},
        ],
    )
    assert found.output_text == alone(
        server, "[system]be\n[user]add\n[assistant]so\n[tool]2\n[assistant]"
    )


@pytest.mark.parametrize(
    "wrong",
    [
        {"input": []},
        {"input": [{"type": "item_reference", "id": "x"}]},
        {"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
        {"background": True},
        {"tools": [{"type": "web_search"}]},
        {"truncation": "auto"},
        {"text": {"format": {"type": "xml"}}},
        {"include": ["file_search_call.results"]},
        {"reasoning": {"effort": "huge"}},
    ],
)
def test_what_cannot_be_honoured_is_an_error(server: Served, wrong: dict[str, Any]) -> None:
    with pytest.raises(openai.BadRequestError):
        create(server, **wrong)


def test_a_failed_response_is_an_event(tmp_path) -> None:
    with served(write(tmp_path / "m.gguf")) as server:
        steps = itertools.count()

        def check(thorough: bool) -> None:
            if next(steps) == 5:
                raise OSError("the file has changed")

        server.model.check_file = check
        options = {"max_output_tokens": 400, "extra_body": {"ignore_eos": True}}
        *_, last = create(server, stream=True, **options)
        assert (last.type, last.response.status) == ("response.failed", "failed")
        assert last.response.error.code == "server_error"
        assert "the file has changed" in last.response.error.message


def test_the_store_is_bounded() -> None:
    store = Store(most=3, characters=1000)
    for i in range(5):
        store.put({"id": f"r{i}"}, [{"content": "x" * 100}])
    store.get("r2")
    store.put({"id": "long"}, [{"content": "x" * 700}])
    assert [store.get(id).response["id"] for id in ("r2", "long")] == ["r2", "long"]
    for id in ("r0", "r1", "r3"):
        with pytest.raises(RequestError, match="no longer"):
            store.get(id)
    store.put({"id": "huge"}, [{"content": "x" * 2000}])
    with pytest.raises(RequestError):
        store.get("huge")
