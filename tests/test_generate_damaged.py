"""Models whose numbers are damaged end in an error that says so, on every kind of backend."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import random_models
from backends import CPU, REFERENCE, Backend
from fakes import FakeModel, byte_tokenizer

import mlx_ferrum
from mlx_ferrum import gguf, sample
from mlx_ferrum.generate import generate_step, main

PROMPT = [5, 9, 3, 17, 22, 9, 31]
SAMPLERS = {"greedy": None, "drawn": sample.make_sampler(1.0, seed=1)}


class Damaged(FakeModel):
    """A FakeModel whose logits after `good` steps are `spoil`ed."""

    def __init__(self, spoil: Any, good: int = 0, vocab_size: int = 40) -> None:
        super().__init__(vocab_size)
        self.spoil, self.good = spoil, good

    def scores(self, hidden: Any) -> Any:
        logits = super().scores(hidden)
        if len(self.headed) <= self.good:
            return logits
        return self.made(self.spoil(np.asarray(logits)))


def one_is(value: float) -> Any:
    return lambda logits: np.where(np.arange(logits.shape[-1]) == 30, value, logits)


FAULTS = {
    "nan": (one_is(np.nan), "a logit is NaN"),
    "inf": (one_is(np.inf), "a logit is infinite"),
    "all -inf": (lambda logits: logits - np.inf, "every logit is -inf"),
    "all 0": (lambda logits: 0 * logits, r"all logits are equal \(0\), as zeroed weights"),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("good", [0, 3])
@pytest.mark.parametrize(("spoil", "message"), FAULTS.values(), ids=FAULTS)
def test_logits_without_a_choice_are_an_error(
    spoil: Any, message: str, good: int, sampler: str, lazy: bool
) -> None:
    """The tokens before it are handed out first."""
    model: Any = Damaged(spoil, good)
    steps = generate_step(PROMPT, model, max_tokens=9, sampler=SAMPLERS[sampler])
    made = [next(steps)[0] for _ in range(good)]
    assert len(made) == good
    with pytest.raises(ValueError, match=f"after {len(PROMPT) + good} tokens {message}"):
        next(steps)


def test_one_banned_logit_and_a_vocabulary_of_one_are_no_error(lazy: bool) -> None:
    for model in (Damaged(one_is(-np.inf)), Damaged(lambda x: x, vocab_size=1)):
        prompt = [0, 0]
        assert len(list(generate_step(prompt, model, max_tokens=3))) == 3  # type: ignore[arg-type]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_processors_may_leave_one_token_but_not_none(sampler: str, lazy: bool) -> None:
    model: Any = FakeModel()
    others = {token: -np.inf for token in range(40) if token != 8}
    options: dict[str, Any] = {"max_tokens": 2, "sampler": SAMPLERS[sampler]}
    steps = generate_step(PROMPT, model, logits_processors=[sample.bias(others)], **options)
    assert [token for token, _ in steps] == [8, 8]
    every = [sample.bias(others), sample.bias({8: -np.inf})]
    steps = generate_step(PROMPT, model, logits_processors=every, **options)
    with pytest.raises(ValueError, match=r"every logit is -inf.* once the logit processors ran"):
        next(steps)


# -- files -------------------------------------------------------------------------------------


def damaged(path: Path, name: str, value: float, at: int = 0) -> Path:
    """A copy of a small model with one number of a float32 tensor replaced, or all by zero bytes."""
    info = gguf.read(path).tensors[name]
    content = bytearray(path.read_bytes())
    start = info.offset + 4 * at
    new = bytes(info.nbytes) if value == 0 else np.float32(value).tobytes()
    content[start : start + len(new)] = new
    copy = path.with_name("damaged.gguf")
    copy.write_bytes(content)
    return copy


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return random_models.write_case(tmp_path / "m.gguf", "llama", seed=3)


FILES = {
    "nan in a norm": ("blk.1.ffn_norm.weight", np.nan, "a logit is (NaN|infinite)"),
    "inf in a norm": ("blk.2.attn_norm.weight", np.inf, "a logit is (NaN|infinite)"),
    "zeroed embedding": ("token_embd.weight", 0, "all logits are equal"),
    "zeroed output": ("output.weight", 0, "all logits are equal"),
    "zeroed last norm": ("output_norm.weight", 0, "all logits are equal"),
}


@pytest.mark.parametrize("backend", [REFERENCE, CPU], ids=str)
@pytest.mark.parametrize(("tensor", "value", "message"), FILES.values(), ids=FILES)
def test_a_damaged_file_is_an_error(
    path: Path, tensor: str, value: float, message: str, backend: Backend
) -> None:
    with backend.in_use():
        model, tokenizer = mlx_ferrum.load(damaged(path, tensor, value))
        responses = mlx_ferrum.stream_generate(model, tokenizer, PROMPT, 4)
        with pytest.raises(ValueError, match=f"after 7 tokens {message}"):
            next(responses)


@pytest.mark.parametrize("flags", [[], ["--json"], ["--quiet"], ["--temp", "1"]], ids=str)
def test_the_command_line_fails_and_prints_no_text(
    flags: list[str], lazy: bool, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    model: Any = Damaged(one_is(np.nan), vocab_size=259)
    monkeypatch.setattr(mlx_ferrum, "load", lambda *_, **__: (model, byte_tokenizer()))
    assert main(["--prompt", "hi", *flags]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: after 7 tokens a logit is NaN: the model's file may be damaged")
    assert len(err.splitlines()) == 1


def test_a_failure_after_some_text_is_a_failure_too(
    lazy: bool, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    model: Any = Damaged(one_is(np.nan), good=3, vocab_size=259)
    monkeypatch.setattr(mlx_ferrum, "load", lambda *_, **__: (model, byte_tokenizer()))
    assert main(["--prompt", "hi", "--json", "--ignore-eos"]) == 1
    assert capsys.readouterr().out == ""


def test_a_nan_in_a_row_that_is_not_used_does_no_harm(tmp_path: Path) -> None:
    path = random_models.write(tmp_path / "m.gguf", arch="llama", seed=3, types=["F32"])
    info = gguf.read(path).tensors["token_embd.weight"]
    model, tokenizer = mlx_ferrum.load(
        damaged(path, "token_embd.weight", np.nan, 40 * info.shape[1])
    )
    assert 40 not in PROMPT
    banned = {40: -np.inf}
    assert (
        len(list(mlx_ferrum.stream_generate(model, tokenizer, PROMPT, 3, logit_bias=banned))) == 3
    )
    with pytest.raises(ValueError, match="a logit is NaN"):
        next(mlx_ferrum.stream_generate(model, tokenizer, [*PROMPT, 40], 3))
