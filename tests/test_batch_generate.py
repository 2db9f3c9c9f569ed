"""Text after many prompts at once is what each prompt gives alone."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from backends import CPU, REFERENCE

import mlx_ferrum
from mlx_ferrum.generate import batch_generate, generate
from mlx_ferrum.sample import make_sampler

PROMPTS = [
    "The capital of France is",
    "Once upon a time",
    "The three laws of robotics are",
    "def fibonacci(n):",
    "a",
]
LONG = "In the beginning God created the heaven and the earth. " * 8  # several blocks


@pytest.fixture(scope="module")
def loaded() -> tuple[Any, Any]:
    return mlx_ferrum.load("tiny-moe")


@pytest.fixture(autouse=True)
def native() -> Any:
    with CPU.in_use():
        yield


def alone(loaded: tuple[Any, Any], prompts: Any, **options: Any) -> list[str]:
    return [generate(*loaded, prompt, **options) for prompt in prompts]


def test_texts_are_those_of_each_prompt_alone(loaded: tuple[Any, Any]) -> None:
    found = batch_generate(*loaded, PROMPTS, max_tokens=20)
    assert found.texts == alone(loaded, PROMPTS, max_tokens=20)
    assert [len(ids) for ids in found.tokens] == [20] * len(PROMPTS)
    assert found.finish_reasons == ["length"] * len(PROMPTS)


def test_other_backends_give_the_same_texts(loaded: tuple[Any, Any]) -> None:
    prompts = ["Amen", LONG]
    expected = batch_generate(*loaded, prompts, max_tokens=4).texts
    with REFERENCE.in_use():
        assert (
            batch_generate(*loaded, prompts, max_tokens=4, prefill_step_size=80).texts == expected
        )


def test_texts_of_other_lengths_leave_one_by_one(loaded: tuple[Any, Any]) -> None:
    lengths = [9, 1, 14, 3, 6]
    found = batch_generate(*loaded, PROMPTS, max_tokens=lengths)
    expected = [generate(*loaded, p, max_tokens=n) for p, n in zip(PROMPTS, lengths, strict=True)]
    assert found.texts == expected
    assert found.stats.generation_tokens == sum(lengths)


@pytest.mark.parametrize("size", [7, 40, 512])
def test_long_prompts_are_read_in_pieces_beside_short_ones(
    loaded: tuple[Any, Any], size: int
) -> None:
    prompts = [PROMPTS[0], LONG, PROMPTS[1], LONG + "And", LONG]
    found = batch_generate(*loaded, prompts, max_tokens=8, prefill_step_size=size)
    assert found.texts == alone(loaded, prompts, max_tokens=8)


def test_what_prompts_have_in_common_is_computed_once(
    loaded: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = loaded
    rows: list[int] = []
    body = type(model.body)
    plain = body.__call__

    def counted(self: Any, batch: Any, *args: Any) -> Any:
        rows.append(len(batch.positions))
        return plain(self, batch, *args)

    monkeypatch.setattr(body, "__call__", counted)
    ids = tokenizer.encode(LONG)
    batch_generate(model, tokenizer, [ids, [*ids, 5], [*ids, 6]], max_tokens=1)
    again = 2 * (len(ids) % 32 + 1)  # what lies behind the last full block
    assert sum(rows) <= len(ids) + again


def test_prompts_wait_only_for_what_another_one_computes(
    loaded: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of many prompts with the same start the first is read alone, then the others together."""
    model, tokenizer = loaded
    passes: list[int] = []
    states = type(model.make_states())
    plain = states.batch

    def noted(self: Any, rows: Any, ids: Any) -> Any:
        passes.append(len(rows))
        return plain(self, rows, ids)

    monkeypatch.setattr(states, "batch", noted)
    start = tokenizer.encode(LONG)[:40]
    prompts = [[*start, token, 7, 9] for token in range(10, 22)]
    found = batch_generate(model, tokenizer, prompts, max_tokens=1)
    assert passes == [1, 11]
    monkeypatch.undo()
    assert found.texts == alone(loaded, prompts, max_tokens=1)


def test_stop_strings_and_end_tokens_end_a_text_alone(loaded: tuple[Any, Any]) -> None:
    texts = alone(loaded, PROMPTS, max_tokens=20)
    stop = texts[0][5:9]
    found = batch_generate(*loaded, PROMPTS, max_tokens=20, stop=stop)
    assert found.texts == alone(loaded, PROMPTS, max_tokens=20, stop=stop)
    assert found.finish_reasons[0] == "stop"


def test_ignored_end_tokens_and_biases(loaded: tuple[Any, Any]) -> None:
    first = batch_generate(*loaded, PROMPTS, max_tokens=1).tokens[0][0]
    options: dict[str, Any] = {"max_tokens": 6, "logit_bias": {first: -100.0}, "ignore_eos": True}
    found = batch_generate(*loaded, PROMPTS, **options)
    assert found.texts == alone(loaded, PROMPTS, **options)
    assert found.tokens[0][0] != first


def test_processors_see_the_tokens_of_their_own_text(loaded: tuple[Any, Any]) -> None:
    seen: list[list[int]] = []

    def note(tokens: mx.array, logits: mx.array) -> mx.array:
        assert logits.shape[0] == 1
        seen.append(np.asarray(tokens).tolist())
        return logits

    ids = [[5, 6], [7]]
    found = batch_generate(*loaded, ids, max_tokens=2, logits_processors=[note])
    assert seen == [[5, 6], [7], [5, 6, found.tokens[0][0]], [7, found.tokens[1][0]]]


def test_a_seed_gives_the_same_texts_again(loaded: tuple[Any, Any]) -> None:
    texts = [
        batch_generate(*loaded, PROMPTS, max_tokens=8, sampler=make_sampler(1.0, seed=3)).texts
        for _ in range(2)
    ]
    assert texts[0] == texts[1] != batch_generate(*loaded, PROMPTS, max_tokens=8).texts


def test_eight_bits_give_nearly_the_same_text(loaded: tuple[Any, Any]) -> None:
    found = batch_generate(*loaded, [LONG], max_tokens=8, kv_bits=8)
    assert found.texts == alone(loaded, [LONG], max_tokens=8)


def test_no_prompts_give_no_texts(loaded: tuple[Any, Any]) -> None:
    found = batch_generate(*loaded, [])
    assert (found.texts, found.stats.generation_tps) == ([], 0.0)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"prompts": [[1], []]}, "prompt 1: the prompt is empty"),
        ({"prompts": "abc"}, "prompts is a str, expected a list of prompts"),
        ({"prompts": 5}, "prompts is a int, expected a list of prompts"),
        ({"prompts": [[1]], "max_tokens": 1.5}, "prompt 0: max_tokens"),
        ({"prompts": [[1]], "kv_bits": 8.0}, "bits is 8.0, expected 8 or 16"),
        (
            {"prompts": [[1], [2]], "sampler": lambda logprobs: mx.array([1, 2])},
            "text 0: the sampler gave 2 tokens for 1 text",
        ),
        (
            {"prompts": [[1]], "logits_processors": [lambda _, logits: logits[0]]},
            "a processor gave .*, expected",
        ),
        ({"prompts": [[1], [10**6]]}, "prompt 1: the prompt has token 1000000"),
        ({"prompts": [[1] * 5000]}, "prompt 0: .*no room for a reply"),
        ({"prompts": [[1], [2]], "max_tokens": [1]}, "max_tokens has 1 numbers for 2 prompts"),
        ({"prompts": [[1]], "max_tokens": 0}, "prompt 0: max_tokens is 0"),
        ({"prompts": [[1]], "kv_bits": 4}, "bits is 4, expected 8 or 16"),
        ({"prompts": [[1]], "prefill_step_size": 0}, "prefill_step_size"),
        ({"prompts": [[1]], "sampler": 3}, "sampler is 3, expected a function"),
        ({"prompts": [[1]], "logit_bias": {10**6: 1.0}}, "logit_bias has token 1000000"),
    ],
)
def test_bad_arguments_are_refused(
    loaded: tuple[Any, Any], arguments: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        batch_generate(*loaded, **arguments)


def test_a_prompt_whose_logits_are_no_numbers_is_named(loaded: tuple[Any, Any]) -> None:
    def spoil(tokens: mx.array, logits: mx.array) -> mx.array:
        return logits * float("nan") if tokens.size == 1 else logits

    with pytest.raises(ValueError, match="text 1: after 1 tokens a logit is NaN"):
        batch_generate(*loaded, [[5, 6], [7]], max_tokens=2, logits_processors=[spoil])


def test_what_a_processor_raises_comes_out(loaded: tuple[Any, Any]) -> None:
    def broken(tokens: mx.array, logits: mx.array) -> mx.array:
        raise KeyError("broken")

    with pytest.raises(KeyError, match="broken"):
        batch_generate(*loaded, [[5, 6], [7]], max_tokens=2, logits_processors=[broken])


def test_texts_go_on_beside_prompts_that_are_read(
    loaded: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = loaded
    passes: list[list[int]] = []
    states = type(model.make_states())
    plain = states.batch

    def noted(self: Any, rows: Any, ids: Any) -> Any:
        passes.append([count for _, count in rows])
        return plain(self, rows, ids)

    monkeypatch.setattr(states, "batch", noted)
    batch_generate(model, tokenizer, [[5], [7] * 9], [4, 1], prefill_step_size=4)
    assert passes == [[1, 3], [1, 4], [1, 2], [1]]
