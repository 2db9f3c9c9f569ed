"""Generation with a model whose logits are known: tokens, text, stops, caches, limits, figures."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from divergence import log_softmax
from fakes import FakeModel, FakeTokenizer, ScriptedModel, byte_tokenizer

import mlx_ferrum
from mlx_ferrum import sample
from mlx_ferrum.cache import Cache
from mlx_ferrum.generate import PromptCache, encode_prompt, generate_step, stream_generate
from mlx_ferrum.generate.step import token_ids
from mlx_ferrum.generate.stops import StopStrings
from mlx_ferrum.generate.stream import peak_memory
from mlx_ferrum.state.kinds import KV

PROMPT = [5, 9, 3, 17, 22, 9, 31]


@pytest.fixture(autouse=True)
def each_loop(lazy: bool) -> bool:
    """Every test here, with a step ahead and without."""
    return lazy


def tokens_of(steps: Any) -> list[int]:
    return [token for token, _ in steps]


# -- tokens ------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("step", [1, 2, 3, 6, 7, 8, 512])
def test_greedy_tokens_and_logprobs_are_the_models(seed: int, step: int) -> None:
    model: Any = FakeModel(seed=seed)
    steps = list(generate_step(PROMPT, model, max_tokens=12, prefill_step_size=step))
    assert tokens_of(steps) == model.greedy(PROMPT, 12)
    for count, (_, logprobs) in enumerate(steps):
        seen = PROMPT + tokens_of(steps[:count])
        np.testing.assert_allclose(logprobs, log_softmax(model.logits(seen)), atol=2e-5)


def test_the_prompt_is_fed_in_chunks_and_only_its_end_gets_logits() -> None:
    model: Any = FakeModel()
    seen: list[tuple[int, int]] = []
    steps = generate_step(
        PROMPT, model, max_tokens=3, prefill_step_size=5, progress=lambda *done: seen.append(done)
    )
    assert len(list(steps)) == 3
    assert model.fed == [5, 2, 1, 1], "the prompt in chunks, and one per token but the last"
    assert model.headed == [1, 1, 1]
    assert seen == [(0, 7), (5, 7), (7, 7)]


def test_on_a_lazy_backend_the_next_step_is_under_way_when_a_token_is_handed_out(
    lazy: bool,
) -> None:
    model: Any = FakeModel()
    cache = model.make_cache()
    steps = generate_step(PROMPT, model, max_tokens=3, cache=cache)
    found = [(len(model.fed), cache.offset - len(PROMPT)) for _ in steps]
    assert found == ([(2, 1), (3, 2), (3, 2)] if lazy else [(1, 0), (2, 1), (3, 2)])


def test_a_prompt_may_be_an_array() -> None:
    model: Any = FakeModel()
    assert tokens_of(generate_step(mx.array(PROMPT), model, max_tokens=4)) == model.greedy(
        PROMPT, 4
    )


def test_processors_see_all_tokens_and_come_before_the_sampler() -> None:
    model: Any = FakeModel()
    seen: list[list[int]] = []

    def ban_the_last(tokens: mx.array, logits: mx.array) -> mx.array:
        seen.append(token_ids(tokens))
        return logits.at[..., tokens[-1:]].add(-mx.inf)

    steps = list(
        generate_step(PROMPT, model, max_tokens=5, logits_processors=[ban_the_last], history=[8, 8])
    )
    made = tokens_of(steps)
    assert seen == [[8, 8, *PROMPT, *made[:n]] for n in range(5)]
    assert all(a != b for a, b in itertools.pairwise([*PROMPT, *made][6:]))
    assert steps[0][1][PROMPT[-1]].item() == -np.inf


def test_a_seed_gives_the_same_text_again() -> None:
    model: Any = FakeModel()
    runs = [
        tokens_of(
            generate_step(PROMPT, model, max_tokens=20, sampler=sample.make_sampler(2.0, seed=seed))
        )
        for seed in (1, 1, 2)
    ]
    assert runs[0] == runs[1] != runs[2]


# -- limits ------------------------------------------------------------------------------------


def test_generation_ends_with_the_context() -> None:
    model: Any = FakeModel(context=10)
    tokenizer: Any = byte_tokenizer()
    for max_tokens in (-1, 100):
        responses = list(stream_generate(model, tokenizer, PROMPT, max_tokens, ignore_eos=True))
        assert len(PROMPT) + len(responses) == 10
        assert [r.finish_reason for r in responses] == [None, None, "length"]


@pytest.mark.parametrize(
    ("held", "prompt", "fits"), [(0, 9, True), (0, 10, False), (4, 5, True), (4, 6, False)]
)
def test_a_prompt_that_leaves_no_room_is_refused(held: int, prompt: int, fits: bool) -> None:
    model: Any = FakeModel(context=10)
    cache = model.make_cache()
    if held:
        batch = cache.batch(np.zeros((1, held), np.int64))
        model.body(batch)
        batch.advance()
    if fits:
        assert len(list(generate_step([4] * prompt, model, cache=cache))) == 1
        return
    with pytest.raises(ValueError, match=rf"prompt has {prompt} tokens.* context of 10 tokens"):
        generate_step([4] * prompt, model, cache=cache)


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        ([], {}, "prompt is empty"),
        ("", {}, "prompt is empty"),
        ([3.5], {}, r"token ids are float64 \(1,\), expected integers"),
        ([[3, 4]], {}, r"token ids are int64 \(1, 2\), expected integers"),
        ([3, 40], {}, "token 40, expected 0 to 39"),
        ([-1], {}, "token -1, expected 0 to 39"),
        ([3], {"max_tokens": 0}, "max_tokens is 0"),
        ([3], {"max_tokens": -2}, "max_tokens is -2"),
        ([3], {"prefill_step_size": 0}, "prefill_step_size is 0"),
        ([3], {"stop": [""]}, "stop string is empty"),
        ([3], {"logit_bias": {40: 1.0}}, "logit_bias has token 40, expected 0 to 39"),
        ([3], {"top_logprobs": -1}, "top_logprobs is -1"),
        ([3], {"top_logprobs": 41}, "top_logprobs is 41"),
        ([3], {"top_logprobs": True}, "top_logprobs is True, expected an integer from 0 to 40"),
        ({"role": "user"}, {}, "the prompt is a dict, expected text, messages or token ids"),
        (5, {}, "token ids are 5, expected integers"),
        ([[3], [4, 5]], {}, r"token ids are \[\[3\], \[4, 5\]\], expected integers"),
        ([True], {}, r"token ids are bool \(1,\), expected integers"),
        ([3], {"max_tokens": "5"}, "max_tokens is '5', expected an integer"),
        ([3], {"max_tokens": 2.5}, r"max_tokens is 2\.5, expected an integer"),
        ([3], {"max_tokens": True}, "max_tokens is True, expected an integer"),
        ([3], {"max_tokens": None}, "max_tokens is None, expected an integer"),
        ([3], {"prefill_step_size": 1.5}, r"prefill_step_size is 1\.5, expected an integer"),
        ([3], {"stop": 5}, "stop is 5, expected a string or a list of strings"),
        ([3], {"stop": b"x"}, "stop is b'x', expected a string"),
        ([3], {"stop": ["x", 5]}, "a stop string is 5, expected a string"),
        ([3], {"sampler": 0.7}, r"sampler is 0\.7, expected a function"),
        ([3], {"logits_processors": sample.bias({3: 1.0})}, "logits_processors is <"),
        ([3], {"logits_processors": [None]}, "logits_processors has None, expected functions"),
        ([3], {"logit_bias": {"3": 1.0}}, "a key of logit_bias is '3', expected an integer"),
        ([3], {"logit_bias": [3]}, r"logit_bias is \[3\], expected a mapping"),
        ([3], {"cache": Cache([KV(1, 1, 1)] * 2, "fake-0")}, "it has 2 layers, the model 1"),
        ([3], {"cache": FakeModel(seed=1).make_cache()}, "the cache is of another model"),
        ([3], {"prompt_cache": []}, r"cache is a list, expected what model\.make_cache\(\) gives"),
        ([3], {"cache": [], "prompt_cache": []}, "cache and prompt_cache are the same argument"),
    ],
)
def test_bad_arguments_are_refused_at_the_call(
    prompt: Any, options: dict[str, Any], message: str
) -> None:
    model: Any = FakeModel()
    tokenizer: Any = FakeTokenizer([b"x"] * 37)
    with pytest.raises(ValueError, match=message):
        stream_generate(model, tokenizer, prompt, **options)
    assert model.fed == []


# -- text --------------------------------------------------------------------------------------


def say(pieces: Sequence[bytes], end: int | None = None, **options: Any) -> list[Any]:
    """The responses of a model that says `pieces`, one token each, and then token `end`."""
    tokenizer: Any = FakeTokenizer(pieces)
    script = [3 + i for i in range(len(pieces))] + ([] if end is None else [end])
    model: Any = ScriptedModel(script, len(pieces) + 3)
    return list(stream_generate(model, tokenizer, [0], len(script), **options))


def text_of(responses: list[Any]) -> str:
    return "".join(response.text for response in responses)


@pytest.mark.parametrize("end", [1, 2])
def test_every_end_token_stops_and_is_not_in_the_text(end: int) -> None:
    responses = say([b"a", b"b"], end)
    assert [(r.text, r.token, r.finish_reason) for r in responses] == [
        ("a", 3, None),
        ("b", 4, None),
        ("", end, "stop"),
    ]
    assert responses[-1].generation_tokens == 3


def test_ignored_end_tokens_are_never_chosen() -> None:
    responses = say([b"a", b"b"], 1, ignore_eos=True)
    assert responses[-1].finish_reason == "length"
    assert not {1, 2} & {r.token for r in responses}
    assert responses[0].logprobs[1].item() == -np.inf


def test_characters_come_whole() -> None:
    euro, smile = "€".encode(), "😀".encode()
    pieces = [euro[:1], euro[1:], smile[:3], smile[3:] + b"!", euro[:2]]
    assert [r.text for r in say(pieces)] == ["", "€", "", "😀!", "�"]


def splits(text: str) -> list[list[bytes]]:
    """All ways to cut `text` into pieces."""
    cuts = range(1, len(text))
    return [
        [text[a:b].encode() for a, b in itertools.pairwise([0, *chosen, len(text)])]
        for count in range(len(text))
        for chosen in itertools.combinations(cuts, count)
    ]


@pytest.mark.parametrize(
    ("text", "stops", "kept"),
    [
        ("abSTOPcd", ["STOP"], "ab"),
        ("abSTOP", ["STOP"], "ab"),
        ("STSTOPx", ["STOP"], "ST"),
        ("ababac!", ["abac"], "ab"),
        ("xabcdy", ["abcd", "bc"], "xa"),  # "bc" is complete first
        ("xabcdy", ["bcd", "abcd"], "x"),  # both are complete at once: the longer one
        ("xxabc", ["abd", "c"], "xxab"),
        ("héllo€", ["o€"], "héll"),
        ("abSTO", ["STOP"], "abSTO"),  # held back to the end, then let go
        ("abc", [], "abc"),
        ("abc", "c", "ab"),
    ],
)
def test_stop_strings_however_the_text_is_cut(text: str, stops: str | list[str], kept: str) -> None:
    for pieces in splits(text):
        responses = say(pieces, 1, stop=stops)
        assert text_of(responses) == kept, pieces
        assert responses[-1].finish_reason == "stop"
        stopped = kept != text
        assert (responses[-1].token == 1) is not stopped, (
            "the stop string ended it, not the end token"
        )


def test_what_may_be_a_stop_string_is_held_back_and_no_more() -> None:
    stops = StopStrings(["abc", "bd"])
    assert [stops.add(piece) for piece in ["x", "a", "b", "b", "y"]] == ["x", "", "", "ab", "by"]
    assert [stops.add("zab"), stops.finish(), stops.found] == ["z", "ab", None]
    assert [stops.add("1bd2"), stops.found] == ["1", "bd"]
    assert [stops.add("more"), stops.finish()] == ["", ""]


def test_a_stop_string_cut_by_the_length_is_text() -> None:
    responses = say([b"a", b"ST", b"O"], stop=["STOP"])
    assert [r.text for r in responses] == ["a", "", "STO"]
    assert responses[-1].finish_reason == "length"


def test_generate_returns_the_text(capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer: Any = FakeTokenizer([b"hello", b" you"])
    for verbose in (False, True):
        model: Any = ScriptedModel([3, 4, 1], 5)
        text = mlx_ferrum.generate(model, tokenizer, [0], verbose, max_tokens=9)
        assert text == "hello you"
        lines = capsys.readouterr().out.splitlines()
        assert lines[:1] == (["hello you"] if verbose else [])
        assert len(lines) == (4 if verbose else 0)


# -- what a response tells ---------------------------------------------------------------------


def test_top_logprobs_are_the_largest_in_order() -> None:
    model: Any = FakeModel()
    tokenizer: Any = byte_tokenizer()
    for response in stream_generate(model, tokenizer, PROMPT, 4, top_logprobs=5, ignore_eos=True):
        row = np.asarray(response.logprobs)
        expected = np.argsort(-row)[:5]
        assert [token for token, _ in response.top_logprobs] == expected.tolist()
        assert [value for _, value in response.top_logprobs] == row[expected].tolist()
        assert response.top_logprobs[0][0] == response.token


def test_figures_count_the_first_token_with_the_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count(100.0, 0.5)  # half a second passes between any two looks
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    responses = say([b"a", b"b", b"c"])
    assert [r.prompt_tokens for r in responses] == [1, 1, 1]
    assert [r.prompt_tps for r in responses] == [2.0, 2.0, 2.0]
    assert [r.generation_tokens for r in responses] == [1, 2, 3]
    assert [r.generation_tps for r in responses] == [0.0, 2.0, 2.0]
    assert all(0.01 < r.peak_memory <= peak_memory() for r in responses)


# -- prompts and caches ------------------------------------------------------------------------


def test_a_text_prompt_gets_one_bos_and_parses_special_tokens() -> None:
    tokenizer: Any = byte_tokenizer(bos=True)
    letters = [3 + byte for byte in b"hi"]
    assert encode_prompt(tokenizer, "hi") == [0, *letters]
    assert encode_prompt(tokenizer, "<s>hi") == [0, *letters]
    assert encode_prompt(tokenizer, "<s><s>hi") == [0, 0, *letters]
    assert encode_prompt(tokenizer, "hi<|end|>") == [0, *letters, 2]
    assert encode_prompt(tokenizer, [7, 0, 0]) == [7, 0, 0]
    assert encode_prompt(tokenizer, mx.array([7, 8])) == [7, 8]
    messages = [{"role": "user", "content": "hi"}]
    assert encode_prompt(tokenizer, messages) == encode_prompt(tokenizer, "u:hi<|end|>a:")


def test_none_is_no_stop_no_processor_and_no_bias() -> None:
    options = {"stop": None, "logits_processors": None, "logit_bias": None, "sampler": None}
    assert text_of(say([b"a", b"b"], 1, **options)) == "ab"


def test_a_cache_continues_where_it_was() -> None:
    model: Any = FakeModel()
    cache = model.make_cache()
    first = tokens_of(generate_step(PROMPT, model, max_tokens=4, cache=cache))
    assert cache.offset == len(PROMPT) + 3
    assert cache.tokens == [*PROMPT, *first[:-1]]
    rest = [first[-1], 30, 31]
    second = tokens_of(generate_step(rest, model, max_tokens=4, cache=cache))
    assert second == model.greedy([*PROMPT, *first[:-1], *rest], 4)


def run(held: PromptCache, prompt: list[int], count: int = 3) -> tuple[list[int], int]:
    """Generate with a reused cache; the tokens, and how many prompt tokens were processed."""
    rest = held.start(prompt)
    steps = generate_step(rest, held.model, max_tokens=count, cache=held.cache, history=held.tokens)
    return tokens_of(steps), len(rest)


@pytest.mark.parametrize("fixed", [False, True])
def test_a_prompt_reuses_what_it_has_in_common(fixed: bool) -> None:
    model: Any = FakeModel(fixed_cache=fixed)
    held = PromptCache(model)
    turns = [PROMPT]
    made, processed = run(held, turns[0])
    assert (made, processed) == (model.greedy(PROMPT, 3), 7)
    longer = [*PROMPT, *made, 4, 5]
    made, processed = run(held, longer)
    assert (made, processed) == (model.greedy(longer, 3), 3), "all but the last token were held"
    other = [*PROMPT[:4], 1, 2]
    made, processed = run(held, other)
    assert (made, processed) == (model.greedy(other, 3), 6 if fixed else 2)
    made, processed = run(held, other)
    assert (made, processed) == (model.greedy(other, 3), 6 if fixed else 1)


@pytest.mark.parametrize("handed_out", [0, 1, 2, 3])
def test_a_cache_is_right_after_an_interruption(lazy: bool, handed_out: int) -> None:
    """It holds the prompt and the tokens handed out; the last one only where the next step is under way."""
    model: Any = FakeModel()
    held = PromptCache(model)
    steps = generate_step(held.start(PROMPT), model, max_tokens=9, cache=held.cache)
    made = [next(steps)[0] for _ in range(handed_out)]
    steps.close()
    wanted = [*PROMPT, *(made if lazy else made[:-1])] if handed_out else []
    assert held.tokens == wanted
    following = [*PROMPT, *made[:1], 12]
    assert run(held, following) == (
        model.greedy(following, 3),
        len(following) - min(len(wanted), len(PROMPT) + len(made[:1])),
    )


def test_a_cache_that_cannot_go_back_is_right_after_an_interruption() -> None:
    model: Any = FakeModel(fixed_cache=True)
    held = PromptCache(model)
    steps = generate_step(held.start(PROMPT), model, max_tokens=9, cache=held.cache)
    made = [next(steps)[0] for _ in range(2)]
    steps.close()
    assert held.tokens == [*PROMPT, *made][: held.cache.offset]
    following = [*PROMPT, *made[:1], 12]
    assert run(held, following)[0] == model.greedy(following, 3)
