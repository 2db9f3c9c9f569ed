"""Chat and completions through OpenAI's client, against `stream_generate` of the same model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import engines
import mlx.core as mx
import numpy as np
import openai
import pytest
from servers import Served, served, write

from mlx_ferrum.engine import Request
from mlx_ferrum.generate import stream_generate
from mlx_ferrum.server.openai.completions import Echo, Offsets

MESSAGES: list[Any] = [
    {"role": "developer", "content": "Be brief."},
    {
        "role": "user",
        "content": [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}],
    },
]
PROMPT = "[system]Be brief.\n[user]one two\n[assistant]"


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Served]:
    with served(write(tmp_path_factory.mktemp("server") / "m.gguf")) as found:
        yield found


def alone(server: Served, prompt: str, count: int, **options: Any) -> list[Any]:
    return list(stream_generate(server.model, server.tokenizer, prompt, count, **options))


def joined(responses: list[Any]) -> str:
    return "".join(response.text for response in responses)


def chat(server: Served, **options: Any) -> Any:
    options = {"model": "tiny", "messages": MESSAGES, "max_tokens": 20, "temperature": 0} | options
    return server.openai.chat.completions.create(**options)


def test_chat_is_what_generate_gives(server: Served) -> None:
    found = chat(server)
    wanted = alone(server, PROMPT, 20)
    [choice] = found.choices
    assert choice.message.content == joined(wanted)
    assert choice.finish_reason == wanted[-1].finish_reason
    count = len(server.tokenizer.encode(PROMPT))
    assert (found.usage.prompt_tokens, found.usage.completion_tokens) == (count, len(wanted))
    assert found.model == "tiny"
    assert found.id.startswith("chatcmpl-")


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("seed", [5, 6])
def test_streams_give_what_whole_replies_give(server: Served, n: int, seed: int) -> None:
    options: dict[str, Any] = {
        "temperature": 1.3,
        "top_p": 0.9,
        "seed": seed,
        "n": n,
        "logprobs": True,
    }
    options |= {"top_logprobs": 3, "frequency_penalty": 0.5, "stop": ["zz", "e t"]}
    whole = chat(server, **options)
    texts, ends = [""] * n, [None] * n
    tokens: list[list[Any]] = [[] for _ in range(n)]
    usages, roles = [], 0
    for chunk in chat(server, stream=True, stream_options={"include_usage": True}, **options):
        usages.append(chunk.usage)
        for choice in chunk.choices:
            roles += choice.delta.role is not None
            texts[choice.index] += choice.delta.content or ""
            ends[choice.index] = choice.finish_reason or ends[choice.index]
            if choice.logprobs is not None:
                tokens[choice.index] += choice.logprobs.content
    assert texts == [choice.message.content for choice in whole.choices]
    assert ends == [choice.finish_reason for choice in whole.choices]
    assert tokens == [choice.logprobs.content for choice in whole.choices]
    assert roles == n
    assert usages[:-1] == [None] * (len(usages) - 1)
    assert usages[-1].total_tokens == whole.usage.total_tokens
    assert len(set(texts)) == n


def test_seed_draws_as_the_engine_does(server: Served) -> None:
    options = {"temp": 0.9, "top_k": 40, "min_p": 0.01, "seed": 11}
    request = Request(server.tokenizer.encode(PROMPT), 20, options)
    wanted = engines.alone(server.model, request)
    extra = {"top_k": 40, "min_p": 0.01}
    found = chat(server, temperature=0.9, seed=11, extra_body=extra)
    assert found.choices[0].message.content == server.tokenizer.decode(wanted)


def test_logprobs_are_those_of_generate(server: Served) -> None:
    wanted = alone(server, PROMPT, 6, top_logprobs=4)
    found = chat(server, max_tokens=6, logprobs=True, top_logprobs=4).choices[0].logprobs.content
    assert len(found) == 6
    for entry, response in zip(found, wanted, strict=True):
        assert bytes(entry.bytes) == server.tokenizer.piece(response.token)[0]
        assert entry.logprob == pytest.approx(float(response.logprobs[response.token]), abs=1e-3)
        values = [value for _, value in response.top_logprobs]
        np.testing.assert_allclose([top.logprob for top in entry.top_logprobs], values, atol=1e-3)


def test_stop_ends_before_the_string_and_frees_the_text(server: Served) -> None:
    text = chat(server).choices[0].message.content
    stop = text[4:6]
    found = chat(server, stop=stop, max_completion_tokens=400, max_tokens=None)
    assert found.choices[0].message.content == text[: text.index(stop)]
    assert found.choices[0].finish_reason == "stop"
    server.wait_until_free()


def test_bias_and_the_number_of_tokens(server: Served) -> None:
    token = server.tokenizer.encode("q")[0]
    found = chat(server, max_completion_tokens=5, logit_bias={str(token): 100})
    assert found.choices[0].message.content == "qqqqq"
    assert found.choices[0].finish_reason == "length"
    assert found.usage.completion_tokens == 5


def test_template_arguments_and_effort(server: Served) -> None:
    wanted = joined(alone(server, f"{PROMPT}(short)", 8))
    given = {"chat_template_kwargs": {"enable_thinking": False}}
    assert chat(server, max_tokens=8, extra_body=given).choices[0].message.content == wanted
    assert chat(server, max_tokens=8, reasoning_effort="none").choices[0].message.content == wanted
    with pytest.raises(openai.BadRequestError, match="does not use 'thoughts'"):
        chat(server, extra_body={"chat_template_kwargs": {"thoughts": 1}})


def test_the_last_message_can_be_continued(server: Served) -> None:
    asked = [*MESSAGES, {"role": "assistant", "content": "So"}]
    found = chat(server, messages=asked, extra_body={"continue_final_message": True})
    assert found.choices[0].message.content == joined(alone(server, f"{PROMPT}So", 20))


def test_cached_tokens_are_blocks_of_an_earlier_prompt(server: Served) -> None:
    asked = [{"role": "user", "content": f"{'abc ' * 40} {np.random.default_rng().random()}"}]
    first, second = (chat(server, messages=asked, max_tokens=2).usage for _ in range(2))
    assert first.prompt_tokens_details.cached_tokens < 160
    assert second.prompt_tokens_details.cached_tokens == (second.prompt_tokens - 1) // 32 * 32 > 96


def test_completions_of_several_prompts(server: Served) -> None:
    prompts = ["one", "two two", "x"]
    found = server.openai.completions.create(
        model="tiny", prompt=prompts, max_tokens=9, temperature=0, n=2
    )
    wanted = [joined(alone(server, prompt, 9)) for prompt in prompts for _ in range(2)]
    assert [choice.text for choice in found.choices] == wanted
    assert [choice.index for choice in found.choices] == list(range(6))
    ids = [server.tokenizer.encode(prompt) for prompt in prompts]
    same = server.openai.completions.create(model="tiny", prompt=ids, max_tokens=9, temperature=0)
    assert [choice.text for choice in same.choices] == wanted[::2]


def test_echo_with_logprobs_scores_the_prompt(server: Served) -> None:
    rng = np.random.default_rng(3)
    ids = rng.integers(
        33, 200, 300
    ).tolist()  # more than one part of the work, and than prompts may be
    found = server.openai.completions.create(
        model="tiny", prompt=[ids], max_tokens=1, temperature=0, logprobs=2, echo=True
    ).choices[0]
    own, tops = found.logprobs.token_logprobs, found.logprobs.top_logprobs
    assert own[0] is None
    assert len(own) == len(tops) == 301
    logits = np.asarray(server.model(mx.array([ids]))[0], np.float64)
    logprobs = logits - np.log(
        np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True)
    )
    logprobs -= logits.max(-1, keepdims=True)
    wanted = [logprobs[i, token] for i, token in enumerate(ids[1:])]
    np.testing.assert_allclose(own[1:-1], wanted, atol=2e-3)
    np.testing.assert_allclose([max(top.values()) for top in tops[1:]], logprobs.max(-1), atol=2e-3)
    alone = server.openai.completions.create(
        model="tiny", prompt=ids, max_tokens=0, logprobs=2, echo=True
    ).choices[0]
    assert alone.logprobs.token_logprobs == own[:-1]
    assert found.text.startswith(alone.text)


def test_offsets_of_tokens_that_share_a_character(server: Served) -> None:
    """Each token that is text stands where its offset says, also behind characters of several tokens."""
    options: dict[str, Any] = {"model": "tiny", "max_tokens": 20, "temperature": 2, "seed": 3}
    options |= {"prompt": "aé東 b😀c", "logprobs": 0, "echo": True}
    found = server.openai.completions.create(**options).choices[0]
    pairs = list(zip(found.logprobs.tokens, found.logprobs.text_offset, strict=True))
    parts = [token.startswith("bytes:") for token, _ in pairs]
    assert any(parts)
    assert not all(parts)
    for (token, offset), is_part in zip(pairs, parts, strict=True):
        assert is_part or found.text.startswith(token, offset), (token, offset, found.text)
    before = server.tokenizer.encode(options["prompt"])
    assert found.logprobs.text_offset[len(before)] == len(options["prompt"])


def test_offsets_of_tokens_that_are_no_text() -> None:
    """A token that the tokenizer puts before a prompt is not in its text; one that the prompt spells is."""
    offsets = Offsets(Echo("a<e>b", [(token, None) for token in range(4)]))
    spelled = [(b"<s>", True), (b"a", False), (b"<e>", True), (b"b", False), (b"<e>", True)]
    assert [offsets.add(*each) for each in [*spelled, (b"c", False)]] == [0, 0, 1, 4, 5, 5]


def test_offsets_of_a_prompt_that_gets_a_space() -> None:
    offsets = Offsets(Echo("ab c", [(token, None) for token in range(3)]))
    spelled = [(b"<s>", True), (b" ab", False), (b" c", False), (b" d", False), (b"e", False)]
    assert [offsets.add(*each) for each in spelled] == [0, 0, 2, 4, 6]


def test_completion_streams(server: Served) -> None:
    options: dict[str, Any] = {"model": "tiny", "prompt": "a b", "max_tokens": 8, "temperature": 0}
    options |= {"logprobs": 1, "echo": True}
    whole = server.openai.completions.create(**options).choices[0]
    chunks = [
        chunk.choices[0] for chunk in server.openai.completions.create(**options, stream=True)
    ]
    assert "".join(chunk.text for chunk in chunks) == whole.text
    offsets = [offset for chunk in chunks for offset in chunk.logprobs.text_offset]
    assert offsets == whole.logprobs.text_offset
    assert chunks[-1].finish_reason == whole.finish_reason
